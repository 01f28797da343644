"""The half-cheetah of gymnasium: found without importing it, its mean speed, cost, refusals."""

import importlib.util
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.core.task import load_task
from mbrl_ros.costs import CostFunction
from mbrl_ros.sim.mujoco_robot import MujocoRobot
from mbrl_ros.sim.sensors import MeanTwistSensor

pytest.importorskip('gymnasium', reason='extra gymnasium')

ROBOT = load_robot('half_cheetah')
TASK = load_task('half_cheetah_run', ROBOT)
COST = CostFunction(TASK, ROBOT)
NO_GOAL = np.zeros(0)


@pytest.fixture(scope='module')
def body():
    return MujocoRobot(ROBOT)


def run(robot, steps, seed=0):
    """Return the states after each of `steps` periods of random actions."""
    rng, states = np.random.default_rng(seed), []
    for _ in range(steps):
        robot.step(rng.uniform(ROBOT.action_min, ROBOT.action_max))
        states.append(robot.state())
    return np.array(states)


def test_the_figures_of_the_task(body):
    model = body.model
    assert (model.opt.timestep, ROBOT.dt_s) == (0.01, 0.05)
    assert (model.nq, model.nv, model.nu) == (9, 9, 6)
    assert model.body_mass.sum() == pytest.approx(14.0)
    # PETS: 18 numbers, of which the model sees all but the speed, one of them as sine and cosine;
    # with 6 actions 24 inputs.
    features = [field.feature for field in ROBOT.observation]
    assert (len(features), features.count('ignored'), features.count('angle')) == (18, 1, 1)
    speed, *others = ROBOT.observation
    assert (speed.name, speed.feature, speed.target) == ('forward_speed', 'ignored', 'absolute')
    assert {field.target for field in others} == {'delta'}
    assert ROBOT.action_names == [model.actuator(i).name for i in range(6)]


def test_starts_near_the_pose_of_the_mjcf(body):
    body.reset()
    np.testing.assert_array_equal(body.state(), 0.0)
    rng, starts = np.random.default_rng(0), []
    for _ in range(300):
        body.reset(rng)
        starts.append(np.concatenate([body.data.qpos, body.data.qvel]))
        assert body.state()[0] == 0.0  # no way gone yet
    # Five standard errors of a deviation: 0.001 / sqrt(600).
    np.testing.assert_allclose(np.std(starts, axis=0), 0.001, atol=0.0002)


def test_the_state_is_that_of_mujoco_in_the_order_of_pets(body):
    body.reset(np.random.default_rng(1))
    before = body.data.qpos[0]
    action = np.array([1.0, -1.0, 0.5, -0.5, 0.25, 0.0])
    body.step(action)
    np.testing.assert_allclose(body.state(), [
        (body.data.qpos[0] - before) / 0.05, *body.data.qpos[1:], *body.data.qvel], atol=1e-12)
    np.testing.assert_array_equal(body.data.ctrl, action)


def test_mean_speeds_add_up_to_the_way_and_speeds_of_moments_do_not(body):
    body.reset()
    states = run(body, 40)
    assert states[:, 0].sum() * ROBOT.dt_s == pytest.approx(body.data.qpos[0], abs=1e-9)
    # Random actions sway it by 1 m/s and more within a period.
    at_the_ends = states[:, ROBOT.state_names.index('rootx_velocity')]
    assert np.abs(at_the_ends - states[:, 0]).max() > 0.5


def test_reading_twice_reads_the_same_and_changes_nothing():
    watched, alone = MujocoRobot(ROBOT), MujocoRobot(ROBOT)
    rng = np.random.default_rng(3)
    for _ in range(40):
        action = rng.uniform(ROBOT.action_min, ROBOT.action_max)
        watched.step(action)
        np.testing.assert_array_equal(watched.state(), watched.state())
        alone.step(action)
        np.testing.assert_array_equal(watched.data.qpos, alone.data.qpos)


def test_the_mean_twist_turns_too():
    # A free body: 2 s at 0.3 m/s along y, and at 0.4 rad/s about an axis through (1, 2, 2).
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><option gravity="0 0 0"/><worldbody><body><freejoint/><geom size="1"/></body>'
        '</worldbody></mujoco>')
    data, sensor = mujoco.MjData(model), MeanTwistSensor(model, 1)
    data.qpos[3:] = 0.5  # a third of a turn about (1, 1, 1): the world's y is the body's x
    data.qvel[:3] = [0.0, 0.3, 0.0]
    data.qvel[3:] = 0.4 * np.array([1.0, 2.0, 2.0]) / 3.0
    spin = np.zeros(3)
    mujoco.mju_rotVecQuat(spin, data.qvel[3:], data.qpos[3:])
    sensor.begin(data)
    mujoco.mj_step(model, data, 1000)
    twist = sensor.read(data, np.zeros).twist
    np.testing.assert_allclose([twist.linear.x, twist.linear.y, twist.linear.z], [0.0, 0.3, 0.0],
                               atol=1e-9)
    np.testing.assert_allclose([twist.angular.x, twist.angular.y, twist.angular.z], spin,
                               atol=1e-6)


def test_reward_of_a_state_by_hand():
    state = np.full(18, 9.0)
    state[0] = 3.0
    speed, *efforts = COST.terms(state, np.array([1.0, -1.0, 0.5, 0, 0, 0]), NO_GOAL)
    assert (speed, sum(efforts)) == (-3.0, 2.25)
    assert TASK.weights @ [speed, *efforts] == pytest.approx(-3.0 + 0.225)
    assert COST.position(state, np.zeros(6), NO_GOAL) is None


def test_it_runs_finite_for_a_while(body):
    body.reset(np.random.default_rng(4))
    assert np.isfinite(run(body, 300, seed=4)).all()


def changed(mjcf):
    return RobotSpec.model_validate(
        ROBOT.model_dump() | {'simulation': ROBOT.simulation.model_dump() | {'mjcf': mjcf}})


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr('mbrl_ros.sim.mjcf.find_spec', lambda name: None)
    with pytest.raises(SpecError, match=r"package 'gymnasium', which is not installed\. Try: pip "
                                        r'install gymnasium'):
        MujocoRobot(ROBOT)


def test_a_file_that_the_package_lacks_is_refused():
    with pytest.raises(SpecError, match="installed Python package 'gymnasium' has no file"):
        MujocoRobot(changed('gymnasium:envs/mujoco/assets/whole_cheetah.xml'))


def test_a_package_is_found_without_importing_it(tmp_path):
    code = ("import sys; from mbrl_ros.sim.mjcf import load_mjcf; "
            f"load_mjcf('{ROBOT.simulation.mjcf}'); assert 'gymnasium' not in sys.modules")
    assert importlib.util.find_spec('gymnasium') is not None
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []  # MuJoCo leaves no log of its warnings behind


def test_the_twist_becomes_a_message(body):
    pytest.importorskip('rclpy')
    from mbrl_ros.nodes.messages import fill, message_class  # noqa: PLC0415 (needs ROS)
    body.reset()
    run(body, 1)
    message = fill(message_class('geometry_msgs/msg/TwistStamped')(), body.observe()['mean_twist'])
    assert message.twist.linear.x == pytest.approx(body.data.qpos[0] / 0.05, rel=1e-12)
    assert message.twist.linear.y == 0.0
