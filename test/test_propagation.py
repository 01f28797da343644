"""Propagation by its definition: who propagates whom, and what ends a particle."""

import ast
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from fakes import artifact_of, cart, cart_model, cart_task, JOINT_STATE, linear_model, rolls
import numpy as np
from pydantic import ValidationError
import pytest

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.runtime.rollout import Rollout

ZEROS = np.zeros(2)


def use(model, task, config, members=2, robot=None, **metadata):
    """Open a rollout that is closed by the test's `with`."""
    robot = robot or cart()
    return Rollout(artifact_of(model, robot, members, **metadata), robot, task, config, threads=1)


def visited(propagation, particles=6, horizon=5, **settings):
    """
    Return each particle's member at each step, (H, K), and the draw.

    Member e of three writes its number: the position becomes 10 x position + e.
    """
    model = linear_model([[[10.0, 0.0], [0.0, 0.0]]] * 3, np.zeros((3, 2, 1)),
                         [[e, 0.0] for e in range(3)], np.zeros((3, 2)))
    rollout = use(model, cart_task(horizon=horizon), rolls(particles, propagation, **settings), 3)
    draw = rollout.draw(np.random.default_rng(1))
    written = rollout.predict(ZEROS, np.zeros((horizon, 1)), draw).states[:, :, 0].astype(int)
    rollout.close()
    # A particle keeps what was written before: otherwise it would not be the same one.
    np.testing.assert_array_equal(written[1:] // 10, written[:-1])
    return written % 10, draw


@pytest.mark.parametrize('settings', [{}, {'disagreement_weight': 1.0}], ids=['', 'with doubt'])
@pytest.mark.parametrize('particles', [3, 6])
def test_ts_infinity_keeps_the_member(particles, settings):
    members, _ = visited('ts_infinity', particles, **settings)
    share = particles // 3
    np.testing.assert_array_equal(members, np.tile(np.repeat(range(3), share), (5, 1)))


@pytest.mark.parametrize('settings', [{}, {'disagreement_weight': 1.0}], ids=['', 'with doubt'])
@pytest.mark.parametrize('particles', [3, 6])
def test_ts1_shares_out_the_members_evenly_at_each_step(particles, settings):
    members, draw = visited('ts1', particles, **settings)
    share = particles // 3
    for step in range(5):
        assert np.bincount(members[step]).tolist() == [share] * 3
        np.testing.assert_array_equal(members[step][draw.permutation[step]],
                                      np.repeat(range(3), share))
    assert len(np.unique(members, axis=0)) > 1


def test_mean_propagation_is_the_mean_by_hand():
    rollout = use(cart_model(members=3, std=0.7, disagreement=0.3), cart_task(horizon=2),
                  rolls(7, 'mean'), 3)
    draw = rollout.draw(np.random.default_rng(0))
    assert draw.noise.size == 0
    found = rollout.predict(np.array([0.0, 1.0]), np.array([[1.0], [2.0]]), draw)
    # Members add 0, 0.3, 0.6 to the velocity, 0.3 on average: 1 + 0.1 + 0.3 = 1.4, then
    # 1.4 + 0.2 + 0.3 = 1.9; positions 0.1 and 0.1 + 0.14. No noise.
    np.testing.assert_allclose(found.states[:, 0], [[0.1, 1.4], [0.24, 1.9]], rtol=1e-6)
    # One particle, whatever the setting says: 0.9^2 + 0.76^2 + 0.1 (1 + 4).
    assert found.cost == pytest.approx(0.81 + 0.5776 + 0.5, rel=1e-5)
    rollout.close()


def test_sampling_the_mixture_has_the_total_variance():
    rollout = use(cart_model(std=0.4, disagreement=0.6), cart_task(horizon=1),
                  rolls(1000, 'distribution_sampling'))
    draw = rollout.draw(np.random.default_rng(0))
    states = rollout.predict(ZEROS, np.zeros((1, 1)), draw).states[0]
    # The members' velocities are 0 and 0.6: mean 0.3, variance 0.09 beside their own 0.16.
    np.testing.assert_allclose(states, [0.0, 0.3] + np.array([0.4, 0.5]) * draw.noise[0],
                               rtol=1e-5, atol=1e-6)
    rollout.close()


def test_matched_moments_are_those_of_the_particles():
    rollout = use(cart_model(std=0.4, disagreement=0.6), cart_task(horizon=1),
                  rolls(7, 'moment_matching'))
    draw = rollout.draw(np.random.default_rng(0))
    states = rollout.predict(ZEROS, np.zeros((1, 1)), draw).states[0]
    sampled = [0.0, 0.3] + np.array([0.4, 0.5]) * draw.noise[0, 0]
    np.testing.assert_allclose(
        states, sampled.mean(axis=0) + sampled.std(axis=0) * draw.noise[0, 1], atol=1e-6)
    rollout.close()


@pytest.mark.parametrize('propagation', ['mean', 'distribution_sampling', 'moment_matching'])
def test_only_trajectory_sampling_shares_out_particles(propagation):
    use(cart_model(), cart_task(horizon=1), rolls(5, propagation)).close()
    with pytest.raises(SpecError, match='multiples of 2'):
        use(cart_model(), cart_task(horizon=1), rolls(5, 'ts1', disagreement_weight=1.0))


def exploding(**settings):
    """Two members that multiply the position by 1e15 and 1.1e15, then add the force."""
    model = linear_model([[[g, 0.0], [0.0, 1.0]] for g in (1e15, 1.1e15)],
                         [[[1.0], [0.0]]] * 2, np.zeros((2, 2)), np.zeros((2, 2)))
    task = cart_task(horizon=5, goal=[], cost=[
        {'term': 'squared', 'params': {'signal': 'force'}}])
    rollout = use(model, task, rolls(2, **settings))
    actions = np.array([[0.0] * 5, [1.0, 2.0, 0.0, 0.0, 3.0]])[..., None]
    cost = rollout.costs(ZEROS, actions, rollout.draw(np.random.default_rng(0)))
    rollout.close()
    return cost


def test_what_an_ended_particle_does_afterwards_does_not_count():
    # Position 1, 1e15, 1e30, 1e45: infinite in float32 at the fourth step.
    assert np.isfinite(exploding()).tolist() == [True, False]
    # The members first part at the second step, which still counts: 1 + 4, then three steps at 7.
    assert exploding(max_disagreement=1.0, doubt_cost=7.0).tolist() == [0.0, 26.0]


def test_doubt_is_counted_in_units_of_the_held_out_data():
    # Members 3 apart in the velocity: std 1.5, in steps of 0.5 it is 3, root mean square with the
    # position 3 / sqrt(2), in units of 0.5 it is 6 / sqrt(2). Members that agreed to the last
    # digit on the holdout have a unit all the same, a thousandth of a step.
    for unit, expected in ((0.5, 6 / np.sqrt(2)), (0.0, 3000 / np.sqrt(2))):
        rollout = use(cart_model(disagreement=3.0), cart_task(horizon=1),
                      rolls(2, disagreement_weight=2.0), step_std=[1.0, 0.5], spread_p99=unit)
        plain = use(cart_model(disagreement=3.0), cart_task(horizon=1), rolls(2))
        draw = rollout.draw(np.random.default_rng(0))
        found = rollout.predict(ZEROS, np.zeros((1, 1)), draw)
        assert found.disagreement == pytest.approx([expected], rel=1e-5)
        assert found.lengths is None
        without = plain.predict(ZEROS, np.zeros((1, 1)), draw)
        assert found.cost == pytest.approx(without.cost + 2.0 * expected, rel=1e-5)
        assert without.disagreement is None
        rollout.close()
        plain.close()


def test_ending_that_costs_nothing_is_refused():
    with pytest.raises(ValidationError, match='set doubt_cost to more than a step can cost'):
        rolls(2, max_disagreement=1.0)


def hopper():
    """A robot with the state of gymnasium's Hopper, commanded where to be next."""
    names = ['x', 'z', 'angle', *(f's{i}' for i in range(3, 12))]
    return RobotSpec.model_validate({
        'name': 'hopper', 'control_rate_hz': 125.0, 'stale_after_s': {'joint_states': 1.0},
        'observation': [{'name': name, 'unit': 'rad', 'path': f'position[{name}]', **JOINT_STATE}
                        for name in names],
        'action': [{'name': f'to_{name}', 'unit': 'rad', 'path': f'data[{i}]', 'min': -1e3,
                    'max': 1e3, 'rate_limit': 1e6, 'safe_value': 0.0, 'topic': 'commands',
                    'type': 'std_msgs/msg/Float64MultiArray'} for i, name in enumerate(names)]})


def is_healthy(states):
    """Return what gymnasium's own text says of states (N, 12); its module needs a display."""
    spec = find_spec('gymnasium')
    if spec is None:
        pytest.skip('extra gymnasium')
    path = Path(spec.origin).parent / 'envs' / 'mujoco' / 'hopper_v5.py'
    names = {'healthy_state_range', 'healthy_z_range', 'healthy_angle_range'}
    tree, ranges, code = ast.parse(path.read_text()), {}, None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == '__init__':
            given = node.args.args[-len(node.args.defaults):]
            ranges = {f'_{a.arg}': eval(ast.unparse(d), {'float': float})
                      for a, d in zip(given, node.args.defaults, strict=True) if a.arg in names}
        if isinstance(node, ast.FunctionDef) and node.name == 'is_healthy':
            node.decorator_list = []
            code = compile(ast.Module([node], []), str(path), 'exec')
    found = {'np': np}
    exec(code, found)
    return [bool(found['is_healthy'](SimpleNamespace(
        **ranges, state_vector=lambda state=state: state,
        data=SimpleNamespace(qpos=state[:6], qvel=state[6:])))) for state in states]


def test_termination_is_that_of_gymnasiums_hopper_on_ten_thousand_states():
    robot, count = hopper(), 10_000
    rng = np.random.default_rng(0)
    # Half of the heights and two thirds of the angles are healthy, most of the other fields.
    states = np.column_stack([
        rng.normal(size=count), rng.uniform(0.4, 1.0, count), rng.uniform(-0.3, 0.3, count),
        rng.normal(0.0, 45.0, (count, 9))]).astype(np.float32)
    task = TaskSpec.model_validate({
        'name': 'hop', 'robot': 'hopper', 'horizon': 2, 'episode_steps': 1, 'termination_cost': 1,
        'cost': [{'term': 'squared', 'weight': 0.0, 'params': {'signal': 'to_x'}}],
        'termination': {'z': {'min': 0.7, 'max': 1e9}, 'angle': {'min': -0.2, 'max': 0.2}} | {
            f's{i}': {'min': -100, 'max': 100} for i in range(3, 12)}})
    model = linear_model(np.zeros((1, 12, 12)), np.eye(12)[None], np.zeros((1, 12)),
                         np.zeros((1, 12)))
    rollout = use(model, task, rolls(1), 1, robot)
    actions = np.stack([states, states], axis=1)
    cost = rollout.costs(np.zeros(12), actions, rollout.draw(rng))
    rollout.close()
    healthy = is_healthy(states)
    assert 0.15 < np.mean(healthy) < 0.35
    # A particle that ends at the first step is charged for the second.
    np.testing.assert_array_equal(cost == 0.0, healthy)
    assert set(cost.tolist()) == {0.0, 1.0}


def test_fewer_steps_count_only_where_the_horizon_is_adaptive():
    actions = np.array([[[1.0], [2.0], [3.0]]])
    task = cart_task(horizon=3, goal=[], cost=[
        {'term': 'squared', 'params': {'signal': 'force'}}])
    rollout, fixed = (use(cart_model(), task, rolls(2, adaptive_horizon=adaptive))
                      for adaptive in (True, False))
    draw = rollout.draw(np.random.default_rng(0))
    for steps, expected in ((1, 1.0), (2, 5.0), (3, 14.0)):
        found = rollout.costs(ZEROS, actions, replace(draw, horizon=steps))
        assert found.tolist() == [expected]
    with pytest.raises(ValueError, match=r'1 of 3 steps .* set adaptive_horizon'):
        fixed.costs(ZEROS, actions, replace(draw, horizon=1))
    rollout.close()
    fixed.close()


def test_a_price_of_ending_without_bounds_is_refused():
    with pytest.raises(ValidationError, match='name a field and its range'):
        cart_task(termination_cost=1.0)


def test_termination_without_a_price_is_the_gates_alone():
    bounds = {'termination': {'position': {'min': -0.05, 'max': 0.05}}}
    costs = []
    for further in ({}, bounds, bounds | {'termination_cost': 0.0}):
        rollout = use(cart_model(), cart_task(horizon=3, **further), rolls(2))
        draw = rollout.draw(np.random.default_rng(0))
        costs.append(rollout.costs(np.array([0.0, 1.0]), np.zeros((1, 3, 1)), draw)[0])
        rollout.close()
    # Positions 0.1, 0.2, 0.3; out of bounds after the first step, and leaving for nothing pays.
    assert costs == pytest.approx([0.81 + 0.64 + 0.49] * 2 + [0.81])
