"""The differential-drive base without ROS: physics, what it reports, its cost, refusals."""

import numpy as np
import pytest

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.core.task import load_task
from mbrl_ros.costs import CostFunction
from mbrl_ros.sim.mujoco_robot import MujocoRobot

SPEC = load_robot('base')
MS = 1_000_000


def changed(**changes):
    return RobotSpec.model_validate(SPEC.model_dump() | changes)


def simulation(**changes):
    return changed(simulation=SPEC.simulation.model_dump() | changes)


def circling():
    """Return a robot after 5 s at full speed in a circle."""
    robot = MujocoRobot(SPEC)
    for _ in range(100):
        robot.step(np.array([1.0, 2.0]))
        state = robot.state()
    return robot, state


def test_speeds_settle_where_servo_and_rolling_resistance_balance():
    _, state = circling()
    # Turning: 2.5 (2 - w) = 0.05 w.
    assert state[4] == pytest.approx(5.0 / 2.55, rel=1e-3)
    # Forward: 100 (1 - v) = 2 v + what the sideways tyres take, v w^2 m^2 / (500 + 2) here.
    w = state[4]
    assert state[3] == pytest.approx(100 / (102 + 100 * w * w / 502), rel=0.01)
    # 5 s less the start, 1.96 rad/s: more than a turn, and not wrapped.
    assert state[2] == pytest.approx(5.0 * w, rel=0.03)


def test_odometry_turns_with_the_robot_and_agrees_with_itself():
    robot, state = circling()
    before = robot.observe()['odom']
    heading = before.pose.pose.orientation
    yaw = 2 * np.arctan2(heading.z, heading.w)
    assert np.mod(yaw - state[2], 2 * np.pi) == pytest.approx(0.0, abs=1e-9)
    # Its own frame: what it drives forward, the world sees along the heading.
    speed = np.hypot(*robot.data.qvel[:2])
    assert before.twist.twist.linear.x == pytest.approx(speed, rel=0.01)
    # One control period on, it is where the twist says.
    robot.step(np.array([1.0, 2.0]))
    after = robot.observe()['odom']
    moved = np.array([after.pose.pose.position.x - before.pose.pose.position.x,
                      after.pose.pose.position.y - before.pose.pose.position.y])
    twist = before.twist.twist
    middle = yaw + twist.angular.z * 0.025
    ahead = np.array([np.cos(middle), np.sin(middle)]) * twist.linear.x
    aside = np.array([-np.sin(middle), np.cos(middle)]) * twist.linear.y
    # Within 1 % of these 5 cm.
    np.testing.assert_allclose(moved, 0.05 * (ahead + aside), rtol=0.0, atol=5e-4)


def test_the_imu_feels_gravity_and_the_curve():
    at_rest = MujocoRobot(SPEC).observe()['imu'].linear_acceleration
    assert (at_rest.x, at_rest.y, at_rest.z) == (0.0, 0.0, pytest.approx(9.81))
    robot, state = circling()
    reading = robot.observe()['imu']
    assert reading.angular_velocity.z == pytest.approx(state[4])
    # Towards the centre of the circle, to the left: v w; the time step of 1 ms, against tyres
    # with a time constant of 20 ms, is worth 5 %.
    assert reading.linear_acceleration.y == pytest.approx(state[3] * state[4], rel=0.06)


def test_tyres_do_not_slip_sideways():
    robot = MujocoRobot(SPEC)
    robot.data.qvel[1] = 1.0
    robot.step(np.zeros(2))
    # Time constant 10 / (500 + 2) s: after 0.05 s exp(-2.51) is left; a little more in steps.
    assert robot.data.qvel[1] == pytest.approx(np.exp(-2.51), rel=0.1)


def test_watching_more_often_changes_nothing():
    often, seldom = MujocoRobot(SPEC), MujocoRobot(simulation(topic_rates_hz={}))
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(SPEC.action_min, SPEC.action_max)
        between = often.step(action)
        assert [elapsed for elapsed, _ in between] == [10 * MS, 20 * MS, 30 * MS, 40 * MS]
        assert {tuple(readings) for _, readings in between} == {('imu',)}
        assert seldom.step(action) == []
        np.testing.assert_array_equal(often.data.qpos, seldom.data.qpos)
        np.testing.assert_array_equal(often.state(), seldom.state())


def test_between_the_ticks_is_between_the_states():
    robot = MujocoRobot(SPEC)
    rates = [robot.state()[5]]
    rates += [r['imu'].angular_velocity.z for _, r in robot.step(np.array([0.0, 1.0]))]
    rates.append(robot.state()[5])
    assert len(rates) == 6
    assert np.all(np.diff(rates) > 0.0)


def test_noise_reaches_every_number_and_no_other():
    noisy = MujocoRobot(SPEC, observation_noise_std=0.01, noise_seed=1)
    states = np.array([noisy.state() for _ in range(400)])
    # 400 draws: the sample std is within 5 standard errors, 0.01 / sqrt(800) each.
    np.testing.assert_allclose(states.std(axis=0), 0.01, atol=5 * 0.01 / np.sqrt(800))
    np.testing.assert_array_equal(noisy.data.qpos, np.zeros(3))


@pytest.mark.parametrize(('spec', 'text'), [
    (lambda: simulation(body='arm'), "no body 'arm'. Allowed: world, base_link"),
    (lambda: simulation(topic_rates_hz={'imu': 80.0}), 'imu at 80 Hz asks for 4 messages'),
    (lambda: changed(observation=[f | {'type': 'sensor_msgs/msg/NavSatFix'}
                                  if f['topic'] == 'odom' else f
                                  for f in SPEC.model_dump()['observation']]),
     'cannot publish sensor_msgs/msg/NavSatFix. Allowed: sensor_msgs/msg/JointState'),
    (lambda: changed(observation=[*SPEC.model_dump()['observation'],
                                  SPEC.model_dump()['observation'][5]
                                  | {'name': 'heat', 'path': 'temperature'}]),
     "observation 'heat' cannot be read from a simulated sensor_msgs/msg/Imu"),
])
def test_refuses_what_it_cannot_report(spec, text):
    with pytest.raises(SpecError, match=text):
        MujocoRobot(spec())


@pytest.mark.parametrize(('rates', 'text'), [
    ({'gps': 100.0}, 'not observed: gps; allowed: imu, odom'),
    ({'imu': 50.0}, 'no multiple of the control rate, 20 Hz'),
    ({'imu': 5.0}, 'no multiple of the control rate, 20 Hz'),
    ({'odom': 40.0}, 'sets the pace'),
])
def test_refuses_rates_that_fit_no_period(rates, text):
    with pytest.raises(ValueError, match=text):
        simulation(topic_rates_hz=rates)


# sqrt(d^2 + 0.05^2) - 0.05 at d = 0, at 3-4-5 and at d = blur.
@pytest.mark.parametrize(('x', 'y', 'expected'), [
    (1.0, 2.0, 0.0), (4.0, 6.0, np.sqrt(25.0025) - 0.05), (1.05, 2.0, 0.05 * (np.sqrt(2) - 1))])
def test_distance_from_a_goal_in_the_plane(x, y, expected):
    task = load_task('base_goal', SPEC)
    distance, turning = CostFunction(task, SPEC).terms(
        np.array([x, y, 9.0, 9.0, 9.0, 9.0]), np.array([9.0, 0.5]), np.array([1.0, 2.0]))
    assert distance == pytest.approx(expected, abs=1e-12)
    assert turning == 0.25
