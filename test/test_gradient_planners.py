"""Gradient shooting and iLQR: against known optima, on linear systems and on the cart-pole."""

from dataclasses import replace
from types import SimpleNamespace

from fakes import artifact_of, cart, cart_task, linear_model
import mujoco
import numpy as np
import pytest
from scipy.linalg import solve_discrete_are
from scipy.optimize import minimize

from mbrl_ros.bench.returns import drive, pilot_config
from mbrl_ros.control.build import build_pilot
from mbrl_ros.control.latch import Latch
from mbrl_ros.core.errors import PlanningError, SpecError
from mbrl_ros.core.paths import share_dir
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.planning import ActionSpace, gradient, ilqr, load_planning, make_planner, optimise
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.rollout_config import RolloutConfig
from mbrl_ros.sim.mujoco_robot import MujocoRobot

# The cart of fakes.py, position and velocity, and its task: position^2 + 0.1 force^2.
A, B = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.0], [0.1]])
Q, R = np.diag([1.0, 0.0]), np.array([[0.1]])
START, HORIZON = np.array([1.0, -0.5]), 20
MEAN = RolloutConfig(propagation='mean')


def make_rollout(config, horizon=HORIZON, limit=3.0, model=None):
    robot = cart(min=-limit, max=limit)
    model = model or linear_model([A] * 2, [B] * 2, np.zeros((2, 2)), np.zeros((2, 2)))
    return Rollout(artifact_of(model, robot, 2), robot, cart_task(
        horizon=horizon, goal=[{'name': 'where', 'value': 0.0}]), config)


@pytest.fixture(scope='module')
def sampled():
    rollout = make_rollout(RolloutConfig(particles=2))
    yield rollout
    rollout.close()


@pytest.fixture(scope='module')
def mean():
    rollout = make_rollout(MEAN)
    yield rollout
    rollout.close()


def space(horizon=HORIZON, limit=3.0):
    return ActionSpace(horizon, np.array([-limit]), np.array([limit]))


def riccati(start, horizon):
    """Return the best actions of the linear-quadratic problem, and the gain of each step."""
    value, gains = np.zeros((2, 2)), []
    for _ in range(horizon):  # the cost is of the state after the action
        value = Q + value
        gain = np.linalg.solve(R + B.T @ value @ B, B.T @ value @ A)
        gains.insert(0, gain)
        value = A.T @ value @ (A - B @ gain)
    state, actions = start, []
    for gain in gains:
        actions.append(-gain @ state)
        state = A @ state + B @ actions[-1]
    return np.array(actions), gains


def solve(planner, evaluate, seed=0):
    return optimise(planner, planner.init(), planner.noise(np.random.default_rng(seed)), evaluate)


def asked(rollout, planner, start=START):
    draw = rollout.draw(np.random.default_rng(0))
    return lambda actions: getattr(rollout, planner.asks)(start, actions, draw)


def cost_of(rollout, actions, start=START):
    return rollout.costs(start, actions[None], rollout.draw(np.random.default_rng(0)))[0]


def test_gradient_shooting_reaches_the_optimum_of_a_linear_system(sampled):
    planner = gradient.Planner(gradient.Config(starts=2, iterations=300), space())
    plan = solve(planner, asked(sampled, planner))
    np.testing.assert_allclose(plan.actions, riccati(START, HORIZON)[0], atol=1e-4)
    assert plan.candidates == 600


def test_ilqr_reaches_the_optimum_of_a_linear_system(mean):
    # By default a step is kept a little short: of 1e-4 here.
    planner = ilqr.Planner(ilqr.Config(regularisation=1e-6), space())
    plan = solve(planner, asked(mean, planner))
    np.testing.assert_allclose(plan.actions, riccati(START, HORIZON)[0], atol=1e-4)
    # A linear-quadratic problem is solved by one step, and the next round finds nothing to gain.
    assert plan.candidates <= 8 + 3 * 8


def test_gains_of_ilqr_are_those_of_riccati(mean):
    expansion = asked(mean, ilqr.Planner)(np.zeros((1, HORIZON, 1)))
    free = np.full((HORIZON, 1), np.inf)
    policy = ilqr.solve(*ilqr.quadratic_model(expansion), -free, free, np.array([1e-12]))
    np.testing.assert_allclose(policy.feedback, -np.array(riccati(START, HORIZON)[1]), atol=1e-4)
    long = make_rollout(MEAN, horizon=120)
    expansion = asked(long, ilqr.Planner)(np.zeros((1, 120, 1)))
    free = np.full((120, 1), np.inf)
    policy = ilqr.solve(*ilqr.quadratic_model(expansion), -free, free, np.array([1e-12]))
    value = solve_discrete_are(A, B, Q, R)  # counts the state before the action, too: no matter
    gain = np.linalg.solve(R + B.T @ value @ B, B.T @ value @ A)
    np.testing.assert_allclose(policy.feedback[0], -gain, atol=1e-4)
    long.close()


def test_a_point_mass_in_50_steps_of_adam(sampled):
    planner = gradient.Planner(gradient.Config(starts=1, iterations=50),
                               space())
    plan = solve(planner, asked(sampled, planner))
    best = cost_of(sampled, riccati(START, HORIZON)[0])
    assert cost_of(sampled, plan.actions) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize('name', ['gradient', 'ilqr'])
def test_limits_bind_where_they_must(name, sampled, mean):
    # Reference: the same problem by a solver with bounds, in float64.
    def cost(actions):
        state, total = START, 0.0
        for action in actions:
            state = A @ state + B[:, 0] * action
            total += state @ Q @ state + R[0, 0] * action**2
        return total
    bounds = [(-0.8, 0.8)] * HORIZON
    expected = minimize(cost, np.zeros(HORIZON), bounds=bounds, options={'ftol': 1e-15,
                                                                        'gtol': 1e-10}).x
    assert (np.abs(expected) == 0.8).sum() >= 2
    config, rollout = {
        'gradient': (gradient.Config(starts=2, iterations=300), sampled),
        'ilqr': (ilqr.Config(iterations=20), mean)}[name]
    planner = make_planner(name, config, space(limit=0.8))
    plan = solve(planner, asked(rollout, planner))
    np.testing.assert_allclose(plan.actions[:, 0], expected, atol=1e-3)
    assert np.abs(plan.actions).max() <= 0.8


def test_a_model_that_amplifies_needs_short_gradients():
    # Every step makes a deviation 1.2 times as large: 1.2^19 = 32 from the first action to the
    # last state. From a plan that pushes away with all its might the first gradients are 1e4 times
    # as long as those near the optimum, and Adam, which does not forget them, hardly moves on.
    growing = np.array([[1.2, 0.0], [0.0, 1.0]])
    push = np.array([[0.1], [0.0]])
    rollout = make_rollout(RolloutConfig(particles=2), model=linear_model(
        [growing] * 2, [push] * 2, np.zeros((2, 2)), np.zeros((2, 2))))
    start = np.array([1.0, 0.0])
    reach = 0.1 * np.tril(1.2 ** np.subtract.outer(np.arange(HORIZON), np.arange(HORIZON)))
    free = 1.2 ** np.arange(1, HORIZON + 1)
    best = -np.linalg.solve(reach.T @ reach + 0.1 * np.eye(HORIZON), reach.T @ free)
    optimum = cost_of(rollout, best[:, None], start)
    found = {}
    for max_norm in (0.0, 1.0):
        planner = gradient.Planner(gradient.Config(
            starts=1, iterations=200, learning_rate=0.05, max_norm=max_norm), space(limit=20.0))
        worst = replace(planner.init(), best=np.full((HORIZON, 1), 20.0))
        plan = optimise(planner, worst, planner.noise(np.random.default_rng(0)),
                        asked(rollout, planner, start))
        found[max_norm] = cost_of(rollout, plan.actions, start) / optimum
    assert found[1.0] < 1.01
    assert found[0.0] > 2.0
    rollout.close()


def bowl(actions, target=0.3):
    """Gradients of a quadratic that overflow on one side, and costs that do on the other."""
    cost = ((actions - target)**2).sum(axis=(1, 2))
    slope = 2.0 * (actions - target)
    slope = np.where((actions > 1.0).any(axis=(1, 2), keepdims=True), np.inf, slope)
    return SimpleNamespace(cost=np.where((actions < -1.0).any(axis=(1, 2)), np.nan, cost),
                           gradient=slope)


def test_gradient_shooting_survives_what_is_not_finite():
    planner = gradient.Planner(gradient.Config(starts=12, iterations=60, initial_std=0.5),
                               space(4, 2.0))
    plan = solve(planner, bowl)
    assert plan.rejected > 0
    np.testing.assert_allclose(plan.actions, 0.3, atol=1e-3)
    nothing = SimpleNamespace(cost=np.full(12, np.nan), gradient=np.zeros((12, 4, 1)))
    with pytest.raises(PlanningError, match='none of 13 candidates'):
        planner.update(planner.init(), np.zeros((12, 4, 1)), nothing)
    # What was found stays, if all go astray later.
    after = planner.update(plan.state, plan.state.actions, nothing)
    np.testing.assert_array_equal(planner.solution(after), plan.actions)
    assert np.isfinite(after.actions).all()


def test_proposals_join_the_first_step_of_gradient_shooting():
    planner = gradient.Planner(gradient.Config(starts=2), space(4, 2.0))
    noise = planner.noise(np.random.default_rng(0))
    first = planner.sample(planner.init(), noise)
    more = np.concatenate([first, np.full((3, 4, 1), 0.25)])
    state = planner.update(planner.init(), more, bowl(more))
    np.testing.assert_array_equal(planner.solution(state), 0.25)
    assert planner.sample(state, noise).shape == (2, 4, 1)
    later = np.concatenate([state.actions, more[-1:]])
    assert planner.update(state, later, bowl(later)).actions.shape == (2, 4, 1)


@pytest.mark.parametrize('name', ['gradient', 'ilqr'])
def test_warm_start_moves_towards_now(name, sampled, mean):
    config, rollout = {'gradient': (gradient.Config(), sampled),
                       'ilqr': (ilqr.Config(), mean)}[name]
    planner = make_planner(name, config, space())
    done = solve(planner, asked(rollout, planner))
    moved = planner.shift(done.state, 3)
    np.testing.assert_array_equal(planner.solution(moved)[:-3], done.actions[3:])
    np.testing.assert_array_equal(planner.solution(moved)[-3:], 0.0)
    first = planner.sample(moved, planner.noise(np.random.default_rng(0)))
    np.testing.assert_array_equal(first[0], planner.solution(moved))
    config = planner.config.model_copy(update={'warm_start': False})
    cold = make_planner(name, config, space()).shift(done.state, 3)
    np.testing.assert_array_equal(planner.solution(cold), 0.0)


def test_ilqr_keeps_its_plan_where_the_linear_model_leads_astray(mean):
    planner = ilqr.Planner(ilqr.Config(), space())
    noise = planner.noise(np.random.default_rng(0))
    evaluate = asked(mean, planner)
    actions = planner.sample(planner.init(), noise)
    first = planner.update(planner.init(), actions, evaluate(actions))
    tried = planner.sample(first, noise)
    worse = replace(evaluate(tried), cost=np.full(len(tried), 1e6))
    second = planner.update(first, tried, worse)
    np.testing.assert_array_equal(second.actions, first.actions)
    assert second.regularisation > first.regularisation
    assert np.abs(second.candidates[0] - first.actions).max() \
        < np.abs(tried[0] - first.actions).max()
    assert not planner.is_settled(second)
    # The next plan begins as trusting as the first, however often this one was led astray.
    lost = replace(second, regularisation=np.array(ilqr.REGULARISATION_MAX))
    assert planner.shift(lost, 1).regularisation == planner.config.regularisation
    diverged = replace(worse, cost=np.full(len(tried), np.nan))
    np.testing.assert_array_equal(planner.update(first, tried, diverged).actions, first.actions)
    with pytest.raises(PlanningError, match='none of'):
        planner.update(planner.init(), tried, diverged)


@pytest.mark.parametrize('name', ['gradient', 'ilqr'])
def test_shipped_settings_and_a_state_of_arrays(name):
    planning = load_planning(name)
    module = {'gradient': gradient, 'ilqr': ilqr}[name]
    config = module.Config.model_validate(planning.params)
    assert planning.params.keys() == module.Config.model_fields.keys()
    planner = make_planner(planning.planner, config, space())
    assert all(isinstance(value, np.ndarray) for value in vars(planner.init()).values())


def test_an_expansion_is_refused_where_it_would_leave_something_out():
    rollout = make_rollout(RolloutConfig(particles=2, disagreement_weight=1.0))
    with pytest.raises(SpecError, match=r'propagation, disagreement_weight: .*planner .gradient'):
        asked(rollout, ilqr.Planner)(np.zeros((1, HORIZON, 1)))
    rollout.close()


class Upright(MujocoRobot):
    """The cart-pole, its pole 0.2 rad from upright when an episode begins."""

    def reset(self, rng=None):
        """Turn the pole up."""
        super().reset(rng)
        self.data.qpos[:] = 0.1, np.pi - 0.2
        self.data.qvel[:] = 0.0
        mujoco.mj_forward(self.model, self.data)


def test_ilqr_balances_the_cart_pole_with_the_shipped_model():
    robot = load_robot('cartpole')
    task = load_task('cartpole_swingup', robot).model_copy(update={'episode_steps': 50})
    fallen = Upright(robot)
    fallen.reset()
    for _ in range(50):
        fallen.step(np.zeros(1))
    assert np.cos(fallen.state()[1]) > -0.9  # -1 is upright: without control it does not stay
    built = build_pilot(robot, task, pilot_config(
        share_dir() / 'models' / 'cartpole' / 'dynamics.onnx', task, seed=0,
        planning=load_planning('ilqr')), Latch())
    tips = []
    try:
        total = drive(built, Upright(robot), task, seed=0,
                      watch=lambda tick, body: tips.append(np.cos(body.state()[1])))
    finally:
        built.close()
    # At most 1 a step; upright and in the middle from the 15th step on alone comes to 35.
    assert total > 43.0
    assert max(tips[15:]) < -0.98
