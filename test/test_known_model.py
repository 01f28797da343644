"""MuJoCo itself as the model: what it foresees is what the robot then does, bit for bit."""

import numpy as np
import pytest

from mbrl_ros.bench.known import drive_known_episode, known_planner
from mbrl_ros.control.mpc import Mpc
from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.core.task import CostTerm, load_task
from mbrl_ros.costs import CostFunction
from mbrl_ros.planning import load_planning, PlanningConfig
from mbrl_ros.sim.command_delay import CommandDelay
from mbrl_ros.sim.known_model import KnownDynamics, KnownRollout
from mbrl_ros.sim.mujoco_robot import MujocoRobot

TASKS = {'cartpole': 'cartpole_swingup', 'arm': 'arm_reach', 'base': 'base_goal',
         'pusher': 'pusher_push', 'half_cheetah': 'half_cheetah_run'}
STEPS = 6


def moving(name, **changes):
    """Return a robot in the midst of random motion, its task, and candidates (5, 6, A)."""
    if name == 'half_cheetah':
        pytest.importorskip('gymnasium')  # its MJCF
    robot = load_robot(name)
    task = load_task(TASKS[name], robot).model_copy(update={'horizon': STEPS} | changes)
    rng = np.random.default_rng(1)
    body = MujocoRobot(robot)
    body.reset(rng)
    for _ in range(20):
        body.step(rng.uniform(robot.action_min, robot.action_max))
    actions = rng.uniform(robot.action_min, robot.action_max, (5, STEPS, len(robot.action)))
    return body, task, actions


def draw_of(rollout):
    return rollout.draw(np.random.default_rng(0))


def step_by_hand(body, actions):
    """Return what the robot observes after each action, shape (H, S)."""
    states = []
    for action in actions:
        body.step(action)
        states.append(body.state())
    return np.array(states)


@pytest.mark.parametrize('name', TASKS)
def test_it_foresees_what_the_robot_then_observes_and_is_charged_for(name):
    body, task, actions = moving(name)
    rollout, start = KnownRollout(body, task), body.state()
    found = rollout.costs(start, actions, draw_of(rollout))
    prediction = rollout.predict(start, actions[3], draw_of(rollout))
    states = step_by_hand(body, actions[3])
    # Bit for bit but for a turn, whose rotation vector is found on another way.
    np.testing.assert_allclose(prediction.states[:, 0], states, rtol=1e-12, atol=1e-12)
    assert np.abs(np.diff(states, axis=0)).min(axis=0).max() > 0.0  # it moved
    by_hand = sum(np.array(CostFunction(task, body.spec).terms(state, action, task.goal_values))
                  for state, action in zip(states, actions[3], strict=True))
    np.testing.assert_allclose(prediction.terms, by_hand, rtol=1e-12)
    assert found[3] == pytest.approx(task.weights @ by_hand, rel=1e-12)
    assert prediction.cost == found[3]
    assert len(set(found)) == 5
    rollout.close()


def test_a_mean_twist_turns_as_the_sensor_says():
    # No shipped task observes the turn: roll, pitch and yaw rates of the torso, which pitches.
    pytest.importorskip('gymnasium')
    spec = load_robot('half_cheetah').model_dump()
    spec['observation'] = [field for field in spec['observation'] if 'thigh' not in field['name']]
    spec['observation'] += [
        dict(spec['observation'][0], name=f'turn_{axis}', unit='rad/s',
             path=f'twist.angular.{axis}') for axis in 'xyz']
    body = MujocoRobot(RobotSpec.model_validate(spec))
    body.reset(np.random.default_rng(3))
    dynamics, action = KnownDynamics(body), np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    for _ in range(5):
        mean, _ = dynamics(body.state()[None], action[None])
        body.step(action)
        np.testing.assert_allclose(mean[0, 0], body.state(), rtol=1e-9, atol=1e-12)
    assert abs(body.state()[-2]) > 0.1


def test_a_heading_goes_on_beyond_half_a_turn():
    body, task, _ = moving('base')
    circle = np.tile([0.0, 2.0], (60, 1))  # 2 rad/s for 3 s: almost a whole turn
    step_by_hand(body, circle)
    rollout = KnownRollout(body, task.model_copy(update={'horizon': 60}))
    found = rollout.predict(body.state(), circle, draw_of(rollout)).states[:, 0]
    states = step_by_hand(body, circle)
    assert states[-1, 2] > 2.0 * np.pi
    np.testing.assert_allclose(found, states, rtol=1e-9, atol=1e-12)
    rollout.close()


def test_threads_and_company_change_no_bit():
    body, task, actions = moving('pusher')
    start, found = body.state(), []
    for threads in (1, 2, 3):
        rollout = KnownRollout(body, task, threads)
        found.append(rollout.costs(start, actions, draw_of(rollout)))
        alone = rollout.costs(start, actions[2:3], draw_of(rollout))
        assert alone[0] == found[-1][2]
        rollout.close()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_it_starts_from_all_of_the_physics_not_from_what_is_observed():
    # The half-cheetah does not observe where it is; the arm here does not observe its velocities.
    spec = load_robot('arm').model_dump()
    spec['observation'] = [field for field in spec['observation'] if 'velocity' not in
                           field['name']]
    body = MujocoRobot(RobotSpec.model_validate(spec))
    dynamics, push = KnownDynamics(body), np.full(7, 5.0)
    resting = body.state()
    body.step(push)
    # The same positions as at rest, but now it moves.
    body.data.qpos[:] = 0.0
    moving_state = body.state() + 1e-9
    expected, _ = dynamics(moving_state[None], np.zeros((1, 7)))
    body.step(np.zeros(7))
    np.testing.assert_array_equal(expected[0, 0], body.state())
    assert np.abs(body.state() - resting).max() > 1e-3


def test_a_prediction_can_be_continued_and_the_past_looked_back_at():
    body, task, actions = moving('half_cheetah')
    rollout, past = KnownRollout(body, task), body.state()
    first, _ = rollout.dynamics(past[None], actions[0, :1])
    second, std = rollout.dynamics(first[0], actions[0, 1:2])
    assert second.shape == (1, 1, 18)
    assert not std.any()
    assert not rollout.dynamics.spread(second).any()
    continued = rollout.predict(second[0, 0], actions[0, 2:], draw_of(rollout)).states[:, 0]
    states = step_by_hand(body, actions[0])
    np.testing.assert_array_equal(np.concatenate([first[0], second[0], continued]), states)
    # The robot has moved on: what was foreseen from the past still is.
    again = rollout.predict(past, actions[0], draw_of(rollout)).states[:, 0]
    np.testing.assert_array_equal(again, states)
    rollout.close()


def test_a_robot_put_back_to_its_start_begins_anew():
    body, task, actions = moving('cartpole')
    rollout = KnownRollout(body, task)
    rest = np.zeros(4)  # stands for the moving robot, and then for the one that hangs still
    moved = rollout.costs(rest, actions, draw_of(rollout))
    body.reset()
    np.testing.assert_array_equal(body.state(), rest)
    found = rollout.costs(rest, actions, draw_of(rollout))
    assert (found != moved).all()
    fresh = KnownRollout(body, task)
    np.testing.assert_array_equal(found, fresh.costs(rest, actions, draw_of(fresh)))
    rollout.close()
    fresh.close()


@pytest.mark.parametrize('delay', [0, 1, 3])
def test_plans_begin_where_the_commands_in_flight_lead(delay):
    body, task, actions = moving('cartpole')
    rollout, robot = KnownRollout(body, task), body.spec
    planner = known_planner(robot, task, load_planning('cem'))
    mpc = Mpc(rollout.dynamics, rollout, planner, robot, np.random.default_rng(0))
    in_flight = actions[0, :delay]
    decision = mpc.plan(1, body.state(), in_flight)
    line = CommandDelay(delay, robot.safe_value)
    for command in in_flight:
        line.push(command)
    states = step_by_hand(body, [line.push(action) for action in decision.actions])
    np.testing.assert_array_equal(
        decision.start, states[delay - 1] if delay else decision.inputs.observation)
    np.testing.assert_array_equal(decision.prediction.states[:STEPS - delay, 0], states[delay:])
    rollout.close()


def test_warming_up_leaves_no_trace():
    body, task, _ = moving('half_cheetah')
    decisions = []
    for plans in (0, 1):
        rollout = KnownRollout(body, task)
        planner = known_planner(body.spec, task, load_planning('cem'))
        mpc = Mpc(rollout.dynamics, rollout, planner, body.spec, np.random.default_rng(0))
        if plans:
            mpc.calibrate()
            mpc.warm_up(most_plans=plans, most_s=0.0)
        decisions.append(mpc.plan(1, body.state(), ()))
        rollout.close()
    np.testing.assert_array_equal(decisions[0].actions, decisions[1].actions)
    assert decisions[1].spread == 0.0


def test_goal_weights_and_horizon_are_those_of_the_draw():
    body, task, actions = moving('base')
    rollout, start = KnownRollout(body, task), body.state()
    rollout.set_goal(np.array([3.0, -1.0]))
    rollout.set_weights(np.array([2.0, 0.0]))
    draw = draw_of(rollout)
    rollout.set_goal(np.zeros(2))
    rollout.set_weights(np.ones(2))
    short = type(draw)(draw.goal, draw.weights, 4)
    prediction = rollout.predict(start, actions[1], short)
    x, y = prediction.states[:4, 0, :2].T
    # Twice sqrt(d^2 + blur^2) - blur, over four of the six steps.
    expected = 2.0 * (np.sqrt((x - 3.0)**2 + (y + 1.0)**2 + 0.05**2) - 0.05).sum()
    assert prediction.cost == pytest.approx(expected, rel=1e-12)
    assert rollout.costs(start, actions, short)[1] == pytest.approx(expected, rel=1e-12)
    assert len(prediction.states) == STEPS
    with pytest.raises(ValueError, match='2'):
        rollout.set_goal(np.zeros(3))
    rollout.close()


@pytest.mark.filterwarnings('ignore')
def test_what_diverges_is_rejected_and_nothing_else():
    body, task, actions = moving('cartpole')
    rollout = KnownRollout(body, task, 2)
    start = body.state()
    expected = rollout.costs(start, actions, draw_of(rollout))
    actions[1, 2] = np.nan
    body.model.actuator_ctrllimited[:] = 0
    actions[4, -1] = 9e9  # 9e11 N, in the very last step, which none after it could tell of
    found = rollout.costs(start, actions, draw_of(rollout))
    np.testing.assert_array_equal(np.isfinite(found), [True, False, True, True, False])
    np.testing.assert_array_equal(found[[0, 2, 3]], expected[[0, 2, 3]])
    assert np.isnan(rollout.predict(start, actions[4], draw_of(rollout)).cost)
    # The threads' data are not poisoned.
    np.testing.assert_array_equal(rollout.costs(start, actions, draw_of(rollout)), found)
    body.data.qvel[:] = 1e9  # the pole turns 3e6 times a time step
    mean, _ = rollout.dynamics(body.state()[None], actions[0, :1])
    assert not np.isfinite(mean).any()
    assert not np.isfinite(rollout.costs(body.state(), actions, draw_of(rollout))).any()
    rollout.close()


def test_the_robot_itself_is_left_alone():
    body, task, actions = moving('half_cheetah')
    twin, _, _ = moving('half_cheetah')
    rollout = KnownRollout(body, task)
    rollout.costs(body.state(), actions, draw_of(rollout))
    rollout.dynamics(body.state()[None], actions[0, :1])
    np.testing.assert_array_equal(body.state(), twin.state())
    np.testing.assert_array_equal(step_by_hand(body, actions[0]), step_by_hand(twin, actions[0]))
    rollout.close()


def test_leaving_the_bounds_ends_a_sequence_at_the_price_of_the_task():
    body, task, actions = moving('cartpole', termination_cost=50.0)
    actions[:] = np.linspace(-3.0, 3.0, 5)[:, None, None]  # to the left, stay, to the right
    free, start = KnownRollout(body, task), body.state()
    slider = np.array([free.predict(start, action, draw_of(free)).states[:, 0, 0]
                       for action in actions])
    low, high = slider[2].min() - 0.05, slider[2].max() + 0.05
    bounds = {'slider_position': {'min': low, 'max': high}}
    task = type(task).model_validate(task.model_dump() | {'termination': bounds})
    bounded = KnownRollout(body, task)
    found = bounded.costs(start, actions, draw_of(bounded))
    outside = (slider < low) | (slider > high)
    lengths = np.where(outside.any(axis=1), outside.argmax(axis=1) + 1, STEPS)
    assert len(set(lengths)) > 2
    assert lengths[2] == STEPS
    for action, length, cost in zip(actions, lengths, found, strict=True):
        short = type(draw_of(free))(task.goal_values, task.weights, int(length))
        expected = free.predict(start, action, short).cost + 50.0 * (STEPS - length)
        assert cost == pytest.approx(expected, rel=1e-12)
    free.close()
    bounded.close()


def test_what_only_a_learned_model_knows_is_refused():
    body, task, _ = moving('cartpole', cost=(CostTerm(term='learned_reward'),))
    with pytest.raises(SpecError, match='charges for reward, which only a learned model'):
        KnownRollout(body, task)
    planning = load_planning('cem')
    helped = planning.rollout.model_copy(update={'value': 'value.onnx'})
    with pytest.raises(SpecError, match=r'takes no value\.onnx'):
        known_planner(body.spec, task, planning.model_copy(update={'rollout': helped}))


def test_a_planner_that_asks_for_gradients_is_told_who_does_not():
    body, task, _ = moving('cartpole')
    with pytest.raises(SpecError, match=r"'gradient' asks for gradients.*Allowed: cem, icem, "):
        known_planner(body.spec, task, PlanningConfig(planner='gradient'))


def test_a_force_is_refused():
    spec = load_robot('cartpole').model_dump()
    force = spec['observation'][0] | {'path': 'effort[slider]', 'unit': 'N'}
    spec['observation'] = [force, *spec['observation'][1:]]
    body = MujocoRobot(RobotSpec.model_validate(spec))
    with pytest.raises(SpecError, match=r"'slider_position' is a force.*Allowed: positions"):
        KnownDynamics(body)


def test_a_model_has_a_hash_that_tells_its_physics():
    robot = load_robot('cartpole')
    task = load_task('cartpole_swingup', robot)
    bodies = [MujocoRobot(robot), MujocoRobot(robot), MujocoRobot(robot, mass_scale=1.2)]
    rollouts = [KnownRollout(body, task) for body in bodies]
    hashes = [rollout.model_hash for rollout in rollouts]
    assert hashes[0] == hashes[1] != hashes[2]
    for rollout in rollouts:
        rollout.close()


def test_a_planner_swings_the_pole_up_with_it_and_in_spite_of_a_delay():
    robot = load_robot('cartpole')
    task = load_task('cartpole_swingup', robot).model_copy(update={'episode_steps': 60})
    # 24 candidates twice, 60 of 200 steps: hanging all the way costs about 60 exp(-4) = 1.1.
    planning = load_planning('cem').model_copy(update={'params': {
        'population': 24, 'num_elites': 4, 'iterations': 2, 'noise_exponent': 2.0}})
    assert drive_known_episode(robot, task, 0, planning, threads=1) > 35.0
    delayed = robot.model_copy(update={'actuation_delay_steps': 2})
    assert drive_known_episode(delayed, task, 0, planning, threads=1) > 30.0
