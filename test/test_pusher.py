"""The arm that pushes a puck: physics by hand, what motion capture reports, cost, noise."""

from hypothesis import given, settings
from hypothesis import strategies as st
import mujoco
import numpy as np
import pytest

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.core.task import load_task
from mbrl_ros.costs import CostFunction, reach
from mbrl_ros.sim.mujoco_robot import MujocoRobot

ROBOT = load_robot('pusher')
TASK = load_task('pusher_push', ROBOT)
COST = CostFunction(TASK, ROBOT)
NO_TORQUE = np.zeros(7)
# The arm stretched out from (0, -0.6, 0): 0.1 + 0.4 + 0.321 + 0.1 along x. The puck 0.15 m beyond
# (0.45, -0.05) in x and 0.25 m short of it in y.
START = np.array([*np.zeros(14), 0.921, -0.6, 0.0, 0.6, -0.3])
# The chain of the arm, with the fork's 0.1 m for a hand.
CHAIN = reach.Params.model_validate({'base': [0.0, -0.6, 0.0], 'goal': ['x', 'y', 'z'], 'chain': [
    {'joint': '0', 'axis': 'z', 'move': [0.1, 0.0, 0.0]}, {'joint': '1', 'axis': 'y'},
    {'joint': '2', 'axis': 'x', 'move': [0.4, 0.0, 0.0]}, {'joint': '3', 'axis': 'y'},
    {'joint': '4', 'axis': 'x', 'move': [0.321, 0.0, 0.0]}, {'joint': '5', 'axis': 'y'},
    {'joint': '6', 'axis': 'x', 'move': [0.1, 0.0, 0.0]}]})


def simulation(**changes):
    return RobotSpec.model_validate(
        ROBOT.model_dump() | {'simulation': ROBOT.simulation.model_dump() | changes})


def capsule_kg(length, radius):
    return 300.0 * np.pi * radius**2 * (length + 4 / 3 * radius)


def test_the_figures_of_the_task():
    model = MujocoRobot(ROBOT).model
    # Of the four time steps of 0.01 s in 1 / 25 s; Euler's integrator, no gravity.
    assert (model.opt.timestep, ROBOT.dt_s) == (0.01, 0.04)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
    np.testing.assert_array_equal(model.opt.gravity, 0.0)
    np.testing.assert_allclose(
        [model.body(name).mass[0] for name in ('shoulder', 'upper_arm', 'forearm', 'fork')],
        [capsule_kg(0.6, 0.1) + capsule_kg(0.2, 0.1), capsule_kg(0.4, 0.06),
         capsule_kg(0.321, 0.05), capsule_kg(0.2, 0.02) + 2 * capsule_kg(0.1, 0.02)], rtol=1e-6)
    np.testing.assert_allclose(model.jnt_range[:7], [
        [-2.2854, 2.0], [-0.5236, 1.3963], [-1.5, 1.7], [-2.3213, 0.0], [-1.5, 1.5],
        [-1.094, 0.0], [-1.5, 1.5]])
    np.testing.assert_array_equal(model.dof_damping, [1.0, 1.0, *[0.1] * 5, 0.5, 0.5])
    # The armature of the puck's slides is its mass (see the MJCF).
    np.testing.assert_allclose(model.dof_armature, [*[0.04] * 7, 0.0, 0.0])
    assert model.body('puck').mass[0] == 0.04
    assert model.jnt_limited.tolist() == [1] * 7 + [0, 0]
    # PETS's 27 inputs less the z of the puck.
    assert len(ROBOT.observation) + len(ROBOT.action) == 26


def test_at_rest_it_starts_as_by_hand_and_stays():
    robot = MujocoRobot(ROBOT)
    np.testing.assert_allclose(robot.state(), START, atol=1e-12)
    for _ in range(20):
        robot.step(NO_TORQUE)
    np.testing.assert_allclose(robot.state(), START, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-2.0, 2.0), min_size=7, max_size=7))
def test_tip_and_puck_are_reported_where_they_are(angles):
    robot = MujocoRobot(ROBOT)
    robot.data.qpos[:] = [*angles, 0.02, -0.03]
    tip = robot.observe()['tip_pose'].pose
    expected = reach.position(lambda joint: np.array(angles[int(joint)]), CHAIN)
    np.testing.assert_allclose([tip.position.x, tip.position.y, tip.position.z], expected,
                               atol=1e-9)
    q = tip.orientation
    assert q.x**2 + q.y**2 + q.z**2 + q.w**2 == pytest.approx(1.0)
    puck = robot.observe()['puck_pose'].pose.position
    np.testing.assert_allclose([puck.x, puck.y, puck.z], [0.47, -0.08, -0.275], atol=1e-12)


def test_watching_changes_nothing():
    watched, alone = MujocoRobot(ROBOT), MujocoRobot(ROBOT)
    rng = np.random.default_rng(0)
    for _ in range(50):
        action = rng.uniform(ROBOT.action_min, ROBOT.action_max)
        watched.step(action)
        watched.observe()
        alone.step(action)
        np.testing.assert_array_equal(watched.data.qpos, alone.data.qpos)


def test_the_puck_slides_to_a_stop():
    robot = MujocoRobot(ROBOT)
    robot.data.qvel[7] = 1.0
    for _ in range(50):
        robot.step(NO_TORQUE)
    # 0.04 kg against 0.5 N s/m: 1 m/s carries it 0.04 / 0.5 m.
    np.testing.assert_allclose(robot.state()[-2:], [0.68, -0.3], atol=1e-4)


def test_the_fork_takes_the_puck_along_and_passes_through_the_table():
    robot = MujocoRobot(ROBOT)
    # Panned to the puck at (0.6, 0.3) from the base, and down: 0.1 m out, then 0.821 m long.
    pan, lift = np.arctan2(0.3, 0.6), np.arcsin(0.275 / 0.821)
    robot.data.qpos[:2] = pan, lift
    mujoco.mj_forward(robot.model, robot.data)
    assert robot.data.ncon == 0  # 0.87 m out, and the puck is 0.67 m from the base
    out = 0.1 + 0.821 * np.cos(lift)
    puck = np.array([np.cos(pan), np.sin(pan)]) * out + [-0.45, -0.55]
    robot.data.qpos[7:] = puck
    mujoco.mj_forward(robot.model, robot.data)
    assert robot.data.ncon == 0  # between the prongs, 0.05 m of puck and 0.08 m of room
    for _ in range(15):
        robot.step(np.array([2.0, 0, 0, 0, 0, 0, 0]))
        where = robot.data.qpos[7:] + np.array([0.45, 0.55])
        # The right prong follows the puck, and never runs into it by more than 2 mm of the 0.03 m
        # that were between them: sideways, in the frame of the fork.
        prong_x, prong_y = robot.data.geom('right_prong').xpos[:2] - np.array([0.0, -0.6])
        turned = robot.data.qpos[0]
        aside = (where - [prong_x, prong_y]) @ [-np.sin(turned), np.cos(turned)]
        assert aside > 0.07 - 0.002
    # Swept counter-clockwise about the base.
    assert np.arctan2(where[1], where[0]) - pan > 0.2
    robot.reset()
    robot.data.qpos[1] = 0.7
    mujoco.mj_forward(robot.model, robot.data)
    assert robot.state()[16] < -0.325  # the tip is below the table, and nothing touches
    assert robot.data.ncon == 0


def test_reward_of_a_state_by_hand():
    puck, tip, *efforts = COST.terms(START, np.array([2.0, 0, 0, 0, 0, 0, -1.0]), TASK.goal_values)
    # |0.6 - 0.45| + |-0.3 + 0.05| + |-0.275 + 0.323|; |0.921 - 0.6| + |-0.6 + 0.3| + |0.275|.
    assert (puck, tip) == (pytest.approx(0.448), pytest.approx(0.896))
    assert sum(efforts) == 5.0
    # 1.25 x 0.448 + 0.5 x 0.896 + 0.1 x 5
    assert TASK.weights @ [puck, tip, *efforts] == pytest.approx(1.508)
    np.testing.assert_array_equal(COST.position(START, NO_TORQUE, TASK.goal_values),
                                  [0.6, -0.3, -0.275])
    np.testing.assert_array_equal(COST.target(TASK.goal_values), [0.45, -0.05, -0.323])


def test_only_the_puck_starts_somewhere_else():
    robot, rng = MujocoRobot(ROBOT), np.random.default_rng(0)
    starts = []
    for _ in range(400):
        robot.reset(rng)
        np.testing.assert_array_equal(robot.data.qvel, 0.0)
        starts.append(robot.data.qpos.copy())
    starts = np.array(starts)
    np.testing.assert_array_equal(starts[:, :7], 0.0)
    # Five standard errors: 0.025 / sqrt(400) of the mean, 0.025 / sqrt(800) of the deviation.
    np.testing.assert_allclose(starts[:, 7:].mean(axis=0), [0.15, -0.25], atol=0.00625)
    np.testing.assert_allclose(starts[:, 7:].std(axis=0), 0.025, atol=0.0045)


def test_random_torques_stay_finite():
    robot, rng = MujocoRobot(ROBOT), np.random.default_rng(1)
    robot.reset(rng)
    for _ in range(TASK.episode_steps):
        robot.step(rng.uniform(ROBOT.action_min, ROBOT.action_max))
    assert np.isfinite(robot.state()).all()
    assert robot.num_clipped == 0


@pytest.mark.parametrize(('changes', 'text'), [
    ({'initial_std': {'puck_z': 0.1}}, "no joint 'puck_z'. Allowed: shoulder_pan"),
    ({'body': {'tip_pose': 'finger'}}, "no body 'finger'. Allowed: world, shoulder"),
])
def test_refuses_names_that_the_mjcf_lacks(changes, text):
    with pytest.raises(SpecError, match=text):
        MujocoRobot(simulation(**changes))


@pytest.mark.parametrize(('changes', 'text'), [
    ({'body': {'palm_pose': 'fork'}}, 'body: not observed: palm_pose; allowed: joint_states'),
    ({'initial_std': {'puck_x': -0.1}}, 'greater than or equal to 0'),
    ({'initial_std': -0.1}, 'greater than or equal to 0'),
])
def test_refuses_a_start_that_makes_no_sense(changes, text):
    with pytest.raises(ValueError, match=text):
        simulation(**changes)


def test_there_is_no_model_yet_and_the_refusal_says_so():
    with pytest.raises(SpecError, match=r"no model 'pusher'.*shipped models: arm, base, cartpole"):
        find_model('pusher')


def test_poses_become_messages():
    pytest.importorskip('rclpy')
    from mbrl_ros.nodes.messages import fill, message_class  # noqa: PLC0415 (needs ROS)
    robot = MujocoRobot(ROBOT)
    robot.reset(np.random.default_rng(2))
    readings = robot.observe()
    for topic, body in (('tip_pose', 'tip'), ('puck_pose', 'puck')):
        message = fill(message_class('geometry_msgs/msg/PoseStamped')(), readings[topic])
        p, q = message.pose.position, message.pose.orientation
        np.testing.assert_array_equal([p.x, p.y, p.z], robot.data.body(body).xpos)
        np.testing.assert_array_equal([q.w, q.x, q.y, q.z], robot.data.body(body).xquat)
