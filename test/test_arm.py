"""The seven-joint arm: kinematics, cost, goals of its own, and the shipped model in lock-step."""

from hypothesis import given, settings
from hypothesis import strategies as st
import mujoco
import ndonnx as ndx
import numpy as np
import pytest
from spox import argument, build, Tensor

from mbrl_ros.cli.trial import final_distance, realised_return
from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import GoalField, load_task, TaskSpec
from mbrl_ros.costs import CostFunction
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.data.resample import Episode
from mbrl_ros.runtime.ort import open_ort
from mbrl_ros.sim.mujoco_robot import MujocoRobot

ROBOT = load_robot('arm')
TASK = load_task('arm_reach', ROBOT)
COST = CostFunction(TASK, ROBOT)
BODY = MujocoRobot(ROBOT)
REST = np.zeros(14)
NO_TORQUE = np.zeros(7)
HALF_TURN = np.pi / 2


def posed(**positions):
    """Return the state at rest with some joints away from zero [rad]."""
    state = REST.copy()
    for joint, value in positions.items():
        state[ROBOT.state_names.index(f'{joint}_position')] = value
    return state


# Pan 0.1 m out, upper arm 0.4 m, forearm 0.321 m, hand 0.16828 m; the base at y = -0.188.
@pytest.mark.parametrize(('state', 'expected'), [
    (REST, (0.98928, -0.188, 0.0)),  # 0.1 + 0.4 + 0.321 + 0.16828 = 0.98928 along x
    (posed(shoulder_pan=HALF_TURN), (0.0, 0.80128, 0.0)),  # the same along y, less 0.188
    # Hinges about y lift for negative angles: x turns towards -z for positive ones.
    (posed(shoulder_lift=HALF_TURN), (0.1, -0.188, -0.88928)),
    (posed(elbow_flex=-HALF_TURN), (0.5, -0.188, 0.48928)),
    (posed(wrist_flex=-HALF_TURN), (0.821, -0.188, 0.16828)),
    # Rolled by -90 degrees about x, what was up (z) points to +y: (y, z) -> (z, -y).
    (posed(upper_arm_roll=-HALF_TURN, elbow_flex=-HALF_TURN), (0.5, 0.30128, 0.0)),
    (posed(forearm_roll=-HALF_TURN, wrist_flex=-HALF_TURN), (0.821, -0.01972, 0.0)),
])
def test_where_the_end_effector_is(state, expected):
    np.testing.assert_allclose(COST.position(state, NO_TORQUE, TASK.goal_values), expected,
                               atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-7.0, 7.0), min_size=7, max_size=7))
def test_the_kinematics_are_those_of_the_mjcf(angles):
    data = mujoco.MjData(BODY.model)
    data.qpos[:] = angles
    mujoco.mj_kinematics(BODY.model, data)
    state = np.concatenate([angles, np.zeros(7)])
    np.testing.assert_allclose(COST.position(state, NO_TORQUE, TASK.goal_values),
                               data.site('end_effector').xpos, atol=1e-9)


def test_cost_is_square_of_distance_and_of_torque():
    # From (0.98928, -0.188, 0) to (0, 0.25, 0): 0.98928^2 + 0.438^2 = 1.170518918...
    distance, *efforts = COST.terms(REST, np.array([20.0, 0, 0, -2.0, 0, 0, 1.0]),
                                    TASK.goal_values)
    assert distance == pytest.approx(0.98928**2 + 0.438**2, rel=1e-12)
    # 0.01 |u|^2 with u in N m: 4 + 0.04 + 0.01
    assert TASK.weights[1:] @ efforts == pytest.approx(4.05)
    np.testing.assert_allclose(COST.target(TASK.goal_values), [0.0, 0.25, 0.0])


def test_reach_in_numpy_and_traced():
    rng = np.random.default_rng(0)
    arrays = {'state': rng.normal(size=(20, 14)).astype(np.float32),
              'action': rng.normal(size=(20, 7)).astype(np.float32),
              'goal': rng.normal(size=3).astype(np.float32)}
    inputs = {'state': argument(Tensor(np.float32, ('N', 14))),
              'action': argument(Tensor(np.float32, ('N', 7))),
              'goal': argument(Tensor(np.float32, (3,)))}
    traced = COST.terms(*(ndx.asarray(var) for var in inputs.values()))[0]
    model = build(inputs, {'reach': traced.unwrap_spox()})
    found, = open_ort(model.SerializeToString(), 'CPUExecutionProvider').run(['reach'], arrays)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, COST.terms(*arrays.values())[0], rtol=1e-4, atol=1e-5)


def test_an_unknown_joint_is_refused():
    term = TASK.cost[0].model_copy(update={'params': TASK.cost[0].params | {
        'chain': [{'joint': 'knee', 'axis': 'x'}]}})
    with pytest.raises(SpecError, match="unknown field 'knee'; allowed: shoulder_pan_position"):
        CostFunction(TASK.model_copy(update={'cost': (term,)}), ROBOT)


def test_without_torque_nothing_moves():
    BODY.reset()
    for _ in range(20):
        BODY.step(NO_TORQUE)
    np.testing.assert_array_equal(BODY.state(), REST)  # no gravity


def test_the_stretched_arm_pans_as_one_body():
    BODY.reset()
    inertia = np.zeros((7, 7))
    mujoco.mj_fullM(BODY.model, BODY.data, inertia)
    for _ in range(25):
        BODY.step(np.array([5.0, 0, 0, 0, 0, 0, 0]))
    # I dw/dt = 5 - 10 w, from rest: w = 0.5 (1 - exp(-10 t / I)); 25 steps are 0.5 s.
    assert BODY.data.qvel[0] == pytest.approx(0.5 * (1.0 - np.exp(-5.0 / inertia[0, 0])),
                                              rel=1e-6)
    np.testing.assert_allclose(BODY.data.qpos[1:], 0.0, atol=1e-9)


def test_every_trial_has_a_goal_of_its_own_from_the_seed():
    goals = np.array([TASK.draw_goal(np.random.default_rng([3, n])) for n in range(2000)])
    np.testing.assert_array_equal(goals[7], TASK.draw_goal(np.random.default_rng([3, 7])))
    # N((0, 0.25, 0), 0.1): 2000 draws, standard errors 0.1 / sqrt(2000) = 0.0022 of the mean and
    # 0.1 / sqrt(4000) = 0.0016 of the deviation; five of them.
    np.testing.assert_allclose(goals.mean(axis=0), [0.0, 0.25, 0.0], atol=0.0112)
    np.testing.assert_allclose(goals.std(axis=0), 0.1, atol=0.0079)
    steady = load_task('cartpole_swingup', load_robot('cartpole'))
    np.testing.assert_array_equal(steady.draw_goal(np.random.default_rng(0)), steady.goal_values)


def test_a_goal_that_varies_needs_a_topic():
    with pytest.raises(ValueError, match='needs topic, type and path'):
        GoalField(name='goal_x', value=0.0, std=0.1)
    assert not TaskSpec.model_validate(TASK.model_dump() | {'goal': [
        {'name': f'goal_{axis}', 'value': 0.0} for axis in 'xyz']}).is_goal_live


def test_return_and_distance_are_those_of_the_trials_goal():
    states = np.stack([REST, posed(elbow_flex=-HALF_TURN), posed(shoulder_pan=HALF_TURN)])
    actions = np.array([[10.0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 2.0]])
    dataset = Dataset((Episode(states, actions, 0, 'by hand'),), ROBOT)
    goal = np.array([0.5, -0.188, 0.0])
    # Elbow up: (0.5, -0.188, 0.48928), 0.48928 away. Panned: (0, 0.80128, 0), (0.5, 0.98928) away.
    # Torques: 0.01 (100 + 4).
    panned = 0.5**2 + 0.98928**2
    assert realised_return(dataset, ROBOT, TASK, goal) == pytest.approx(
        -(0.48928**2 + panned + 1.04))
    assert final_distance(dataset, ROBOT, TASK, goal) == pytest.approx(panned**0.5)


def test_the_goal_as_messages():
    pytest.importorskip('rclpy')
    from mbrl_ros.nodes.goal_message import build_goal  # noqa: PLC0415 (needs ROS)
    messages = build_goal(TASK.goal, [0.1, 0.2, -0.3])
    assert list(messages) == ['goal']
    point = messages['goal'].point
    assert (point.x, point.y, point.z) == (0.1, 0.2, -0.3)
    assert build_goal([GoalField(name='tip_x', value=0.0)], [1.0]) == {}
    indexed = GoalField(name='goal_x', value=0.0, topic='goal', path='data[0]',
                        type='std_msgs/msg/Float64MultiArray')
    with pytest.raises(SpecError, match=r"path 'data\[0\]' cannot be published"):
        build_goal([indexed], [1.0])
