"""The compiled rollout against an independent reference, one particle at a time."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
import itertools
import threading
import time

from fakes import artifact_of, cart, cart_model, cart_task, linear_model, rolls
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mbrl_ros.core.errors import ProviderError, SpecError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.learning import export
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.runtime.compile import compile_rollout
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.ort import open_ort
from mbrl_ros.runtime.providers import Form
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.rollout_config import RolloutConfig
from mbrl_ros.runtime.trunk import halve

HORIZON = 5
PLAIN = Form()


@pytest.fixture(scope='module')
def robot():
    return load_robot('cartpole')


@pytest.fixture(scope='module')
def task(robot):
    task = load_task('cartpole_swingup', robot)
    return task.model_copy(update={'horizon': HORIZON})


def make_ensemble(robot, members):
    ensemble = Ensemble(robot, members, (16, 16), (-4.0, -1.0),
                        torch.Generator().manual_seed(members))
    ensemble.target_std.fill_(0.5)
    ensemble.input_mean.fill_(0.1)
    ensemble.input_std.fill_(2.0)
    return ensemble


def small_model(robot):
    return artifact_of(export.to_onnx(make_ensemble(robot, 2), 4, 1), robot, 2)


def reference(ensemble, state, actions, draw, propagation, goal, weights):
    """Trajectory sampling by its definition: loops over candidates, steps and particles."""
    particles = draw.noise.shape[1]
    share = particles // ensemble.members
    costs = []
    for sequence in actions:
        cloud = [torch.tensor(state, dtype=torch.float32)] * particles
        total = 0.0
        for step, action in enumerate(sequence):
            order = draw.permutation[step] if propagation == 'ts1' else range(particles)
            force = torch.tensor(action, dtype=torch.float32)
            for slot, particle in enumerate(order):
                member = slot // share
                with torch.no_grad():
                    mean, std = ensemble(cloud[particle].expand(ensemble.members, 1, -1),
                                         force.expand(ensemble.members, 1, -1))
                cloud[particle] = (mean[member, 0]
                                   + std[member, 0] * torch.from_numpy(draw.noise[step, slot]))
            for x, hinge, _, _ in torch.stack(cloud).numpy().astype(float):
                tip = np.array([x - 0.6 * np.sin(hinge), -0.6 * np.cos(hinge)])
                reward = np.exp(-np.sum((tip - goal)**2) / 0.36)
                total += (weights[0] * -reward + weights[1] * action[0]**2) / particles
        costs.append(total)
    return np.array(costs)


def session_of(model, robot, task, particles, propagation='ts_infinity', form=PLAIN):
    graph = compile_rollout(model, robot, task, rolls(particles, propagation), form)
    return open_ort(graph.SerializeToString(), 'CPUExecutionProvider')


def problem(robot, population, seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=len(robot.observation)) * [1.0, 3.0, 1.0, 1.0],
            rng.uniform(-3.0, 3.0, (population, HORIZON, 1)))


@pytest.mark.parametrize('propagation', ['ts_infinity', 'ts1'])
@pytest.mark.parametrize(('members', 'particles'), [(2, 2), (2, 6), (5, 5), (3, 12)])
def test_equals_the_definition(robot, task, members, particles, propagation):
    ensemble = make_ensemble(robot, members)
    model = artifact_of(export.to_onnx(ensemble, 4, 1), robot, members)
    rollout = Rollout(model, robot, task, rolls(particles, propagation), threads=2)
    draw = rollout.draw(np.random.default_rng(particles))
    for population in (1, 7, 40):
        state, actions = problem(robot, population, population)
        chosen = actions if population <= 7 else actions[::13]  # the reference is slow
        found = rollout.costs(state, actions, draw)
        assert found.shape == (population,)
        expected = reference(ensemble, state, chosen, draw, propagation, [0.0, 0.6], [1.0, 0.01])
        np.testing.assert_allclose(found if population <= 7 else found[::13], expected,
                                   atol=1e-4)
    rollout.close()


def test_the_two_schemes_differ(robot, task):
    ensemble = make_ensemble(robot, 2)
    model = artifact_of(export.to_onnx(ensemble, 4, 1), robot, 2)
    state, actions = problem(robot, 3, 0)
    one, other = (Rollout(model, robot, task, rolls(4, kind)) for kind in ('ts_infinity', 'ts1'))
    draw = other.draw(np.random.default_rng(0))
    assert np.abs(one.costs(state, actions, draw) - other.costs(state, actions, draw)).min() > 1e-4
    # With the identity as permutation TS1 is TS-infinity.
    still = replace(draw, permutation=np.tile(np.arange(4), (HORIZON, 1)))
    np.testing.assert_array_equal(one.costs(state, actions, still),
                                  other.costs(state, actions, still))
    one.close()
    other.close()


def test_draw_is_normal_noise_and_permutations():
    rollout = Rollout(artifact_of(cart_model(), cart(), 2), cart(), cart_task(horizon=50),
                      rolls(20, 'ts1'))
    draw = rollout.draw(np.random.default_rng(0))
    assert draw.noise.shape == (50, 20, 2)
    # 2000 draws: the mean's std is 0.022, that of the std 0.016; five of each allowed.
    assert abs(draw.noise.mean()) < 0.11
    assert abs(draw.noise.std() - 1.0) < 0.08
    np.testing.assert_array_equal(np.sort(draw.permutation, axis=1),
                                  np.tile(np.arange(20), (50, 1)))
    assert len(np.unique(draw.permutation, axis=0)) == 50
    rollout.close()


def test_tiles_do_not_change_the_result(robot, task):
    model = small_model(robot)
    state, actions = problem(robot, 41, 0)
    found = []
    for threads in (1, 2, 3, 64):
        rollout = Rollout(model, robot, task, rolls(4), threads=threads)
        found.append(rollout.costs(state, actions, rollout.draw(np.random.default_rng(0))))
        rollout.close()
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-6)


def test_prediction_and_costs_agree():
    robot, task = cart(), cart_task()
    rollout = Rollout(artifact_of(cart_model(std=0.5), robot, 2), robot, task, rolls(4))
    draw = rollout.draw(np.random.default_rng(0))
    actions = np.array([[1.0], [2.0], [0.0], [-1.0]])
    prediction = rollout.predict(np.array([0.0, 1.0]), actions, draw)
    assert prediction.cost == pytest.approx(
        rollout.costs(np.array([0.0, 1.0]), actions[None], draw)[0], rel=1e-6)
    assert prediction.cost == pytest.approx(task.weights @ prediction.terms, rel=1e-6)
    assert prediction.states.shape == (4, 4, 2)
    # First step from (0, 1) under force 1: mean (0.1, 1.1), plus 0.5 x the particle's noise.
    np.testing.assert_allclose(prediction.states[0], [0.1, 1.1] + 0.5 * draw.noise[0], rtol=1e-5)
    assert prediction.terms[1] == pytest.approx(1.0 + 4.0 + 0.0 + 1.0)
    rollout.close()


def test_goal_and_weights_are_inputs():
    robot, task = cart(), cart_task(horizon=2)
    session = session_of(artifact_of(cart_model(), robot, 2), robot, task, 2)

    def cost(goal, weights):
        feeds = {'state': [0.0, 1.0], 'actions': [[[1.0], [2.0]]], 'noise': np.zeros((2, 2, 2)),
                 'goal': [goal], 'weights': weights}
        feeds = {name: np.asarray(value, np.float32) for name, value in feeds.items()}
        return float(session.run(['cost'], feeds)[0][0])
    # Positions 0.1, 0.21 (velocity 1, then 1.1); forces 1, 2.
    assert cost(0.0, [1.0, 0.0]) == pytest.approx(0.1**2 + 0.21**2)
    assert cost(1.0, [1.0, 0.0]) == pytest.approx(0.9**2 + 0.79**2)
    assert cost(1.0, [0.0, 0.1]) == pytest.approx(0.1 * (1 + 4))
    assert cost(1.0, [2.0, 1.0]) == pytest.approx(2 * (0.9**2 + 0.79**2) + 5)


def test_a_new_goal_is_that_of_the_next_plan():
    robot, task = cart(), cart_task(horizon=1)
    rollout = Rollout(artifact_of(cart_model(), robot, 2), robot, task, rolls(2))
    draw, still = rollout.draw(np.random.default_rng(0)), np.zeros((1, 1, 1))
    # One step from (0, 0) without force stays there: the cost is the goal's square.
    assert rollout.costs(np.zeros(2), still, draw)[0] == pytest.approx(1.0)
    rollout.set_goal(np.array([3.0]))
    # The plan under way keeps its goal: half of a ranking by another one would be no ranking.
    assert rollout.costs(np.zeros(2), still, draw)[0] == pytest.approx(1.0)
    draw = rollout.draw(np.random.default_rng(0))
    assert rollout.costs(np.zeros(2), still, draw)[0] == pytest.approx(9.0)
    with pytest.raises(ValueError, match=r'\(2,\).* 1 number'):
        rollout.set_goal(np.array([3.0, 4.0]))
    rollout.close()


# Of 20 particles and 5 members.
@pytest.mark.parametrize(('settings', 'expected'), [
    ({'propagation': 'ts_infinity'}, 20), ({'propagation': 'ts1'}, 20),
    ({'propagation': 'mean'}, 5), ({'propagation': 'distribution_sampling'}, 100),
    ({'propagation': 'moment_matching'}, 100), ({'disagreement_weight': 0.1}, 100),
    ({'max_disagreement': 1.0, 'doubt_cost': 1.0}, 100), ({'adaptive_horizon': True}, 20)],
    ids=str)
def test_evaluations_of_a_step(settings, expected):
    assert RolloutConfig(particles=20, **settings).evaluations(5) == expected


def test_particles_are_shared_out_evenly():
    with pytest.raises(SpecError, match=r'particles: 5 .* 2 members; allowed: multiples of 2'):
        Rollout(artifact_of(cart_model(), cart(), 2), cart(), cart_task(), rolls(5))


@pytest.mark.skipif('CUDAExecutionProvider' in onnxruntime.get_available_providers(),
                    reason='this ONNX Runtime has CUDA')
def test_a_missing_provider_is_refused_with_what_there_is():
    with pytest.raises(ProviderError) as caught:
        Rollout(artifact_of(cart_model(), cart(), 2), cart(), cart_task(), rolls(2),
                provider='cuda')
    for part in ("'cuda'", 'CUDAExecutionProvider', 'CPUExecutionProvider', 'onnxruntime-gpu'):
        assert part in str(caught.value)


def test_an_unknown_provider_is_answered_with_the_known():
    with pytest.raises(SpecError, match=r"providers: unknown name 'tpu'. Known: cpu, cuda"):
        Rollout(artifact_of(cart_model(), cart(), 2), cart(), cart_task(), rolls(2),
                provider='tpu')


def test_an_unknown_precision_is_answered_with_the_known():
    with pytest.raises(ProviderError, match=r"'cpu' knows no precision 'int8'; .* float32"):
        Rollout(artifact_of(cart_model(), cart(), 2), cart(), cart_task(), rolls(2),
                precision='int8')


@pytest.mark.parametrize('propagation', ['ts_infinity', 'ts1'])
@pytest.mark.parametrize('form', [Form(*flags) for flags in itertools.product(
    (False, True), (False, True), ('float32', 'float16'))], ids=repr)
def test_every_form_is_the_same_function(robot, task, form, propagation):
    model = small_model(robot)
    rollout = Rollout(model, robot, task, rolls(4, propagation))
    state, actions = problem(robot, 7, 0)
    draw = rollout.draw(np.random.default_rng(0))
    expected = rollout.costs(state, actions, draw)
    feeds = rollout._feeds(state, actions.astype(np.float32), draw)
    found = session_of(model, robot, task, 4, propagation, form).run(['cost'], feeds)[0]
    # float16 has 11 bits: 5e-4 relative in each layer's result, of costs of a few units.
    np.testing.assert_allclose(found, expected, atol=1e-5 if form.trunk == 'float32' else 1e-2)
    rollout.close()


def test_an_error_in_one_tile_leaves_no_tile_running(robot, task):
    model = small_model(robot)
    rollout = Rollout(model, robot, task, rolls(4), threads=2)
    session, running = rollout._session, []

    class Failing:
        def run(self, outputs, feeds):
            running.append(1)
            if threading.current_thread() is threading.main_thread():
                raise RuntimeError('out of memory')
            time.sleep(0.05)
            found = session.run(outputs, feeds)
            running.pop()
            return found
    rollout._session = Failing()
    state, actions = problem(robot, 40, 0)
    with pytest.raises(RuntimeError, match='out of memory'):
        rollout.costs(state, actions, rollout.draw(np.random.default_rng(0)))
    assert len(running) == 1  # the one that failed
    rollout.close()


def test_predictions_and_costs_at_the_same_time(robot, task):
    model = small_model(robot)
    rollout = Rollout(model, robot, task, rolls(4), threads=2)
    state, actions = problem(robot, 40, 0)
    draw = rollout.draw(np.random.default_rng(0))
    costs = rollout.costs(state, actions, draw)
    expected = rollout.predict(state, actions[3], draw)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            planned = pool.submit(rollout.costs, state, actions, draw)
            foreseen = pool.submit(rollout.predict, state, actions[3], draw)
            np.testing.assert_array_equal(planned.result(), costs)
            np.testing.assert_array_equal(foreseen.result().states, expected.states)
    rollout.close()


def test_float16_bears_fields_of_any_size(robot, task):
    # Inputs that vary by 1e5 (pascals, say) and steps of 1e-5: neither fits float16.
    ensemble = make_ensemble(robot, 2)
    ensemble.input_std.fill_(1e5)
    ensemble.target_std.fill_(1e-5)
    model = artifact_of(export.to_onnx(ensemble, 4, 1), robot, 2)
    rng = np.random.default_rng(0)
    feeds = {'observation': rng.normal(size=(2, 50, 4)) * 2e5, 'action': np.zeros((2, 50, 1))}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    plain, half = (open_ort(graph.SerializeToString(), 'CPUExecutionProvider').run(None, feeds)
                   for graph in (model.model, halve(model.model)))
    assert np.isfinite(half[0]).all()
    np.testing.assert_allclose(half[1], plain[1], rtol=1e-3)


def test_calibration_takes_the_fewest_tiles_that_are_fast(robot, task):
    model = small_model(robot)
    rollout = Rollout(model, robot, task, rolls(4), threads=2)
    state, actions = problem(robot, 64, 0)
    draw = rollout.draw(np.random.default_rng(0))
    before = rollout.costs(state, actions, draw)
    times = rollout.calibrate(state, actions, draw)
    # 1, 2, 4 and 8 tiles of 64, 32, 16 and 8 candidates.
    assert list(times) == [1, 2, 4, 8]
    slow = [count for count, spent_s in times.items() if spent_s > 1.1 * min(times.values())]
    assert rollout.num_tiles not in slow
    assert all(count in slow for count in times if count < rollout.num_tiles)
    np.testing.assert_allclose(rollout.costs(state, actions, draw), before, rtol=1e-5, atol=1e-6)
    rollout.close()


def test_the_graph_is_float32_without_shape_arithmetic(robot, task):
    model = small_model(robot)
    for propagation in ('ts_infinity', 'ts1'):
        graph = compile_rollout(model, robot, task, rolls(4, propagation), PLAIN).graph
        assert {node.op_type for node in graph.node} & {'Shape', 'Size', 'Cast', 'Loop'} == set()
        types = {node.attribute[0].t.data_type for node in graph.node
                 if node.op_type == 'Constant'}
        assert types == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


@pytest.mark.parametrize('form', [Form(), Form(split_members=True)])
def test_weights_are_kept_once(robot, task, form):
    model = compile_rollout(small_model(robot), robot, task, rolls(2), form)
    large = [node for node in model.graph.node if node.op_type == 'Constant'
             and len(node.attribute[0].t.raw_data) >= 6 * 16 * 4]
    # Three weight matrices (6 features: x, two velocities, sin, cos, force), whatever the horizon;
    # of two members if they are split.
    assert len(large) == (6 if form.split_members else 3)


# A state that leaves the range of float32 (1e30 a step, squared) or is no number from the start.
@pytest.mark.parametrize('gain', [1e30, np.nan])
@pytest.mark.parametrize('signal', ['position', 'velocity', 'force'])
def test_a_diverging_candidate_has_no_finite_cost(gain, signal):
    robot = cart()
    model = linear_model([[[gain, 0.0], [0.0, 1.0]]] * 2, [[[1.0], [0.0]]] * 2, [[0.0, 0.0]] * 2,
                         [[0.0, 0.0]] * 2)
    task = cart_task(goal=[], cost=[{'term': 'squared', 'params': {'signal': signal}}])
    rollout = Rollout(artifact_of(model, robot, 2), robot, task, rolls(2))
    draw = rollout.draw(np.random.default_rng(0))
    cost = rollout.costs(np.zeros(2), np.full((1, 4, 1), 1.0), draw)
    assert not np.isfinite(cost).any()
    rollout.close()


def test_a_saturating_cost_does_not_hide_infinity(robot, task):
    # exp(-inf) is 0: with positive terms beside it, a diverged rollout would look cheap.
    eye = np.eye(4)
    # The slider: 1, 1e10, ... 1e40 after five steps, infinite in float32 at the last one only.
    gain = eye * np.array([1e10, 1.0, 1.0, 1.0])
    model = linear_model([gain] * 2, [np.ones((4, 1))] * 2, np.zeros((2, 4)), np.zeros((2, 4)))
    rollout = Rollout(artifact_of(model, robot, 2), robot, task, rolls(2))
    actions = np.array([[0.0] * HORIZON, [1.0] * HORIZON])[..., None]
    cost = rollout.costs(np.zeros(4), actions, rollout.draw(np.random.default_rng(0)))
    assert np.isfinite(cost).tolist() == [True, False]
    rollout.close()


def test_one_step_of_all_members():
    metadata = {'members': 2, 'step_std': [1.0, 0.5]}
    dynamics = Dynamics(cart_model(std=0.25, disagreement=3.0), metadata)
    mean, std = dynamics(np.array([[0.0, 1.0]]), np.array([[2.0]]))
    # Member e: (0 + 0.1 x 1, 1 + 0.1 x 2 + 3 e).
    np.testing.assert_allclose(mean[:, 0], [[0.1, 1.2], [0.1, 4.2]], rtol=1e-6)
    np.testing.assert_allclose(std, 0.25)
    # Members 3 apart: std 1.5, in steps of 0.5 it is 3; root mean square with 0: 3 / sqrt(2).
    np.testing.assert_allclose(dynamics.spread(mean), [3 / np.sqrt(2)], rtol=1e-6)
    each = np.array([[[0.0, 1.0]], [[0.0, 2.0]]])
    mean, _ = dynamics(each, np.zeros((2, 1, 1)))
    np.testing.assert_allclose(mean[:, 0, 1], [1.0, 5.0], rtol=1e-6)
