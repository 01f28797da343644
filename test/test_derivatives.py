"""Derivatives of compiled rollouts against differences of their costs, and against torch."""

from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
import sys
from types import ModuleType

from fakes import artifact_of, cart, cart_task, save_cart_model
import numpy as np
import pytest
import torch

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.costs import CostFunction
from mbrl_ros.learning import export
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.runtime import artifact, autodiff, derivatives
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.precompile import precompile
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.rollout_config import RolloutConfig

HORIZON, MEMBERS = 4, 5
STATE = np.array([0.2, 2.0, -0.5, 0.3])
MEAN = RolloutConfig(propagation='mean')


@pytest.fixture(scope='module')
def robot():
    return load_robot('cartpole')


@pytest.fixture(scope='module')
def task(robot):
    return load_task('cartpole_swingup', robot).model_copy(update={'horizon': HORIZON})


@pytest.fixture(scope='module')
def ensemble(robot):
    ensemble = Ensemble(robot, MEMBERS, (16, 16), (-4.0, -1.0), torch.Generator().manual_seed(0))
    ensemble.target_std.fill_(0.5)
    ensemble.input_mean.fill_(0.1)
    ensemble.input_std.fill_(2.0)
    return ensemble


@pytest.fixture(scope='module')
def model(robot, ensemble):
    return artifact_of(export.to_onnx(ensemble, 4, 1), robot, MEMBERS, spread_p99=0.05)


def candidates(count=3, seed=0):
    return np.random.default_rng(seed).uniform(-3.0, 3.0, (count, HORIZON, 1))


DOUBTS = {
    'mean': {}, 'worst': {'risk': 'worst'}, 'cvar': {'risk': 'cvar', 'risk_level': 0.4},
    'mean_std': {'risk': 'mean_std'}, 'price': {'disagreement_weight': 0.1},
    'ends': {'max_disagreement': 1.0, 'doubt_cost': 2.0}, 'horizon': {'adaptive_horizon': True}}


@pytest.mark.parametrize(('propagation', 'doubt'), [
    *((name, 'mean') for name in ('ts1', 'mean', 'distribution_sampling', 'moment_matching')),
    *(('ts_infinity', doubt) for doubt in DOUBTS), ('ts1', 'ends')])
def test_gradients_are_the_slopes_of_the_costs(robot, task, model, propagation, doubt):
    config = RolloutConfig(particles=10, propagation=propagation, **DOUBTS[doubt])
    rollout = Rollout(model, robot, task, config)
    draw = replace(rollout.draw(np.random.default_rng(0)),
                   horizon=3 if doubt == 'horizon' else HORIZON)
    actions = candidates()
    found = rollout.gradients(STATE, actions, draw)
    assert found.gradient.shape == actions.shape
    np.testing.assert_allclose(found.cost, rollout.costs(STATE, actions, draw), rtol=1e-5)
    # All candidates' slopes along four directions. Costs in float32 are rounded by 1e-6 or less,
    # so that differences over 2 x 3e-3 are by 3e-4; and a bend in between would show.
    for direction in np.random.default_rng(1).normal(size=(4, *actions.shape)):
        ahead, behind = (rollout.costs(STATE, actions + step * direction, draw)
                         for step in (3e-3, -3e-3))
        expected = (ahead.astype(float) - behind) / 6e-3
        np.testing.assert_allclose((found.gradient * direction).sum(axis=(1, 2)), expected,
                                   rtol=2e-3, atol=2e-3)
    assert np.abs(found.gradient[:, :3]).max() > 0.01  # something to compare
    if doubt == 'horizon':
        np.testing.assert_array_equal(found.gradient[:, 3:], 0.0)
    rollout.close()


def torch_cost(ensemble, actions, draw, is_ts1):
    """Sum the candidates' costs by the definition of trajectory sampling, in torch."""
    particles = draw.noise.shape[1]
    share, total = particles // ensemble.members, torch.zeros(())
    for sequence in actions:
        cloud = [torch.tensor(STATE, dtype=torch.float32)] * particles
        for step, action in enumerate(sequence):
            order = draw.permutation[step] if is_ts1 else range(particles)
            moved = list(cloud)
            for slot, particle in enumerate(order):
                mean, std = ensemble(cloud[particle].expand(ensemble.members, 1, -1),
                                     action.expand(ensemble.members, 1, -1))
                member = slot // share
                moved[particle] = mean[member, 0] + std[member, 0] * torch.from_numpy(
                    draw.noise[step, slot])
            cloud = moved
            for x, hinge, _, _ in cloud:
                away = (x - 0.6 * torch.sin(hinge))**2 + (-0.6 * torch.cos(hinge) - 0.6)**2
                total = total + (-torch.exp(-away / 0.36) + 0.01 * action[0]**2) / particles
    return total


@pytest.mark.parametrize('propagation', ['ts_infinity', 'ts1'])
def test_gradients_are_those_of_torch(robot, task, ensemble, model, propagation):
    rollout = Rollout(model, robot, task, RolloutConfig(particles=10, propagation=propagation))
    draw = rollout.draw(np.random.default_rng(0))
    actions = candidates()
    leaf = torch.tensor(actions, dtype=torch.float32, requires_grad=True)
    torch_cost(ensemble, leaf, draw, propagation == 'ts1').backward()
    found = rollout.gradients(STATE, actions, draw)
    np.testing.assert_allclose(found.gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-5)
    rollout.close()


def test_an_expansion_is_the_model_and_the_cost_around_the_cheapest(robot, task, model):
    rollout = Rollout(model, robot, task, MEAN)
    draw = rollout.draw(np.random.default_rng(0))
    actions = candidates(4)
    found = rollout.expansion(STATE, actions, draw)
    np.testing.assert_allclose(found.cost, rollout.costs(STATE, actions, draw), rtol=1e-5)
    assert found.best == np.argmin(found.cost)
    chosen = actions[found.best]
    states = rollout.predict(STATE, chosen, draw).states[:, 0]
    np.testing.assert_allclose(found.states, [STATE, *states], rtol=1e-4, atol=1e-5)
    step, cost = Dynamics(model.model, model.metadata), CostFunction(task, robot)

    def next_of(x, u):
        return step(x[None], u[None])[0][:, 0].mean(axis=0).astype(float)

    def cost_of(x, u):
        return draw.weights.astype(float) @ cost.terms(x, u, draw.goal.astype(float))

    def slope_of(function, x, u, size):
        """Return central differences by (x, u); the last axis is theirs."""
        point, moves = np.concatenate([x, u]), size * np.eye(5)
        return np.stack([(function(*np.split(point + move, [4]))
                          - function(*np.split(point - move, [4]))) / (2 * size)
                         for move in moves], axis=-1)

    for t, (before, after) in enumerate(pairwise(found.states.astype(float))):
        jacobian = slope_of(next_of, before, chosen[t], 1e-2)  # float32
        np.testing.assert_allclose(np.hstack([found.by_state[t], found.by_action[t]]), jacobian,
                                   atol=2e-3)
        slope = slope_of(cost_of, after, chosen[t], 1e-5)
        np.testing.assert_allclose(np.hstack([found.l_x[t], found.l_u[t]]), slope, atol=1e-5)
        curvature = slope_of(lambda x, u: slope_of(cost_of, x, u, 1e-4), after, chosen[t], 1e-4)
        np.testing.assert_allclose(np.block([[found.l_xx[t], found.l_ux[t].T],
                                             [found.l_ux[t], found.l_uu[t]]]), curvature,
                                   atol=1e-4)
    rollout.close()


def test_steps_beyond_the_horizon_count_nothing_in_an_expansion(robot, task, model):
    rollout = Rollout(model, robot, task, MEAN.model_copy(update={'adaptive_horizon': True}))
    draw = replace(rollout.draw(np.random.default_rng(0)), horizon=2)
    found = rollout.expansion(STATE, candidates(), draw)
    np.testing.assert_allclose(found.cost, rollout.costs(STATE, candidates(), draw), rtol=1e-5)
    assert np.abs(found.l_x[:2]).max(axis=1).min() > 0.0
    for part in (found.l_x, found.l_u, found.l_xx, found.l_ux, found.l_uu):
        np.testing.assert_array_equal(part[2:], 0.0)
    rollout.close()


def test_a_candidate_that_diverges_is_not_the_best(robot, task, model):
    rollout = Rollout(model, robot, task, MEAN)
    actions = candidates()
    actions[1, 2] = np.inf
    found = rollout.expansion(STATE, actions, rollout.draw(np.random.default_rng(0)))
    assert not np.isfinite(found.cost[1])
    assert found.best != 1
    assert np.isfinite(found.cost[[0, 2]]).all()
    rollout.close()


def test_graphs_are_made_when_asked_for_and_found_again(robot, task, model, monkeypatch):
    opened = []

    def counted(graph, provider):
        opened.append(provider)
        return open_before(graph, provider)
    open_before = derivatives.open_ort
    monkeypatch.setattr(derivatives, 'open_ort', counted)
    config = RolloutConfig(particles=5)
    first = Rollout(model, robot, task, config)
    draw = first.draw(np.random.default_rng(0))
    first.costs(STATE, candidates(), draw)
    assert opened == []
    found = [first.gradients(STATE, candidates(), draw) for _ in range(2)]
    assert len(opened) == 1
    first.close()

    def refuse(*args):
        raise AssertionError('compiled again')
    monkeypatch.setattr('mbrl_ros.runtime.compile_derivatives.compile_gradient', refuse)
    again = Rollout(model, robot, task, config)
    np.testing.assert_array_equal(again.gradients(STATE, candidates(), draw).gradient,
                                  found[1].gradient)
    again.close()


def test_a_cost_term_without_derivative_is_named(robot, task, model, monkeypatch):
    class Params(Strict):
        """None."""

    def cost(signal, params):
        x = signal('slider_position')
        xp = x.__array_namespace__()
        return xp.prod(xp.stack([x, x], axis=-1), axis=-1)
    module = ModuleType('odd.term')
    module.Params, module.cost, module.__file__ = Params, cost, __file__
    monkeypatch.setitem(sys.modules, 'odd', ModuleType('odd'))
    monkeypatch.setitem(sys.modules, 'odd.term', module)
    terms = [*task.cost, task.cost[1].model_copy(update={
        'term': 'odd.term', 'name': 'oddity', 'params': {}})]
    odd = task.model_copy(update={'cost': type(task.cost)(terms)})
    for config, ask in ((RolloutConfig(particles=5), 'gradients'), (MEAN, 'expansion')):
        rollout = Rollout(model, robot, odd, config)
        draw = rollout.draw(np.random.default_rng(0))
        with pytest.raises(SpecError, match=r"cost term 'oddity': .*'ReduceProd'"):
            getattr(rollout, ask)(STATE, candidates(), draw)
        rollout.close()


def test_a_process_of_its_own_makes_the_graphs_that_a_planner_will_ask_for(tmp_path, monkeypatch):
    robot, task = cart(), cart_task()
    save_cart_model(tmp_path)
    config, path = RolloutConfig(particles=2), tmp_path / 'dynamics.onnx'
    precompile(path, robot, task, config, 'cpu', '', 'gradients')

    def refuse(*args):
        raise AssertionError('compiled again')
    monkeypatch.setattr('mbrl_ros.runtime.compile_derivatives.compile_gradient', refuse)
    rollout = Rollout(artifact.load(path, robot), robot, task, config)
    assert rollout.was_cached
    draw = rollout.draw(np.random.default_rng(0))
    assert rollout.gradients(np.zeros(2), np.zeros((1, 4, 1)), draw).gradient.shape == (1, 4, 1)
    rollout.close()


def test_graphs_are_compiled_anew_when_the_rules_of_differentiation_change(tmp_path, monkeypatch):
    robot, task = cart(), cart_task()
    save_cart_model(tmp_path)
    rollout = Rollout(artifact.load(tmp_path / 'dynamics.onnx', robot), robot, task, MEAN)
    seen = []
    monkeypatch.setattr('mbrl_ros.runtime.derivatives.cached',
                        lambda ingredients, make: seen.extend(ingredients) or (make(), False))
    rollout.gradients(np.zeros(2), np.zeros((1, 4, 1)), rollout.draw(np.random.default_rng(0)))
    rules = Path(autodiff.__file__).with_name('rules.py')
    assert sha256(rules.read_bytes()).digest() in seen
    rollout.close()
