"""What people look at: plans, predictions, shares of the cost, markers; and how topics meet."""

import json
from pathlib import Path
import signal
import subprocess
import sys
import time

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip('rclpy')

from controller_files import (
    DT_S,
    edit,
    FORCE_GAIN,
    HORIZON,
    make_controller,
    parameters_of,
    SAFE,
)
from controller_robot import COMMANDS, DT_NS, JOINTS, STATE, tick_values
from endpoints import have_matched, known_pairs
from fakes import cart
from lifecycle_msgs.srv import GetState
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray
import yaml

from mbrl_ros.control.gate import limit_following
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.costs import CostFunction

OK = TransitionCallbackReturn.SUCCESS
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
POLE_M = 0.6


@pytest.fixture
def heard(robot, eventually):
    """Return a function that subscribes to a topic of the controller, and returns what comes."""
    def subscribe(controller, kind, topic, qos=10):
        messages, topic = [], f'/mpc_controller/{topic}'
        robot.create_subscription(kind, topic, messages.append, qos)
        assert eventually(lambda: known_pairs(topic, robot, controller) == (1, 1))
        return messages
    return subscribe


def tip(state):
    return [state[0] - POLE_M * np.sin(state[1]), 0.0, -POLE_M * np.cos(state[1])]


def step(state, force):
    """Do what the linear model of controller_files predicts."""
    return np.array([state[0] + DT_S * state[2], state[1] + DT_S * state[3],
                     state[2] + FORCE_GAIN * force, state[3]])


# Beside the command


def test_the_predicted_joint_state_is_that_of_one_period_after_the_command(start, heard, answer,
                                                                           eventually):
    predicted = heard(start(), JointState, 'predicted_joint_states')
    command, _ = answer()
    assert eventually(lambda: predicted)
    message, = predicted
    assert tuple(message.name) == JOINTS
    expected = step(STATE, command)
    np.testing.assert_allclose([*message.position, *message.velocity], expected, atol=1e-5)
    # In lock-step a command acts at once: one period after the observation, which was the first.
    assert message.header.stamp.nanosec == 2 * DT_NS


def test_the_delay_of_the_command_counts_in_the_predicted_stamp(start, heard, answer, eventually):
    predicted = heard(start(actuation_delay_steps=2), JointState, 'predicted_joint_states')
    command, _ = answer()
    assert eventually(lambda: predicted)
    # The two commands in flight are the safe value, then this one acts.
    expected = step(step(step(STATE, SAFE), SAFE), command)
    np.testing.assert_allclose([*predicted[0].position, *predicted[0].velocity], expected,
                               atol=1e-5)
    assert predicted[0].header.stamp.nanosec == 4 * DT_NS


def test_the_shares_of_the_cost_come_with_their_labels(start, heard, answer, eventually):
    shares = heard(start(), Float64MultiArray, 'cost_terms')
    _, tick = answer()
    assert eventually(lambda: shares)
    labels = [dim.label for dim in shares[0].layout.dim]
    assert labels == ['pole_tip', 'effort']
    told = tick_values(tick)
    np.testing.assert_allclose(shares[0].data, [float(told[f'cost.{label}']) for label in labels],
                               rtol=1e-5)
    np.testing.assert_allclose(sum(shares[0].data), float(told['cost']), rtol=1e-5)


def test_nothing_is_built_for_nobody(start, answer, monkeypatch):
    controller = start()
    built = []
    for owner, name in ((controller._topics._messages, 'next_joint_state'),
                        (controller._topics._markers, 'build')):
        monkeypatch.setattr(owner, name, lambda *_, name=name: built.append(name))
    commands = [answer()[0] for _ in range(3)]
    assert SAFE not in commands
    assert built == []


def test_whoever_comes_late_still_hears_of_the_model(start, heard, eventually):
    controller = start()
    controller._topics.publish_model_info({'hash': 'abc', 'members': 2, 'path': Path('x.onnx')})
    infos = heard(controller, String, 'model_info', LATCHED)
    assert eventually(lambda: infos)
    assert json.loads(infos[-1].data) == {'hash': 'abc', 'members': 2, 'path': 'x.onnx'}


def test_uncertainty_is_published_as_it_is_given(start, heard, eventually):
    controller = start()
    values = heard(controller, Float64, 'uncertainty')
    controller._topics.publish_uncertainty(np.float32(0.25))
    assert eventually(lambda: [value.data for value in values] == [0.25])


# Markers


@pytest.fixture
def markers(start, heard, answer, eventually):
    """Return the markers of the first plan, by namespace, and its decision."""
    controller = start(frame='rail')
    arrays = heard(controller, MarkerArray, 'plan_markers')
    answer()
    assert eventually(lambda: arrays)
    decision = controller._meter.last.decision
    return {marker.ns: marker for marker in arrays[0].markers}, decision


def test_the_chosen_plan_is_the_path_of_the_point_that_the_cost_drives(markers):
    shown, decision = markers
    plan = shown['plan']
    assert plan.type == Marker.LINE_STRIP
    assert len(plan.points) == HORIZON + 1
    np.testing.assert_allclose([plan.points[0].x, plan.points[0].y, plan.points[0].z], tip(STATE),
                               atol=1e-5)
    after = step(STATE, decision.actions[0, 0])
    np.testing.assert_allclose([plan.points[1].x, plan.points[1].y, plan.points[1].z], tip(after),
                               atol=1e-5)


def test_candidates_go_from_green_to_red_by_cost(markers):
    shown, _ = markers
    lines = shown['candidates']
    assert lines.type == Marker.LINE_LIST
    # A population of 8, all shown: 5 steps each, two points a step.
    assert len(lines.points) == len(lines.colors) == 8 * HORIZON * 2
    assert lines.scale.x < shown['plan'].scale.x
    reds = [lines.colors[k * HORIZON * 2].r for k in range(8)]
    assert reds == sorted(reds, reverse=True)  # the best is drawn last
    assert (reds[0], reds[-1]) == (1.0, 0.0)
    greens = [lines.colors[k * HORIZON * 2].g for k in range(8)]
    np.testing.assert_allclose(np.add(reds, greens), 1.0, atol=1e-6)
    # The linear model makes the path of a constant-velocity hinge; only the slider is driven, so
    # the best candidate ends nearer to the goal (0, 0.6) than the worst.
    ends = [lines.points[(k + 1) * HORIZON * 2 - 1] for k in (0, 7)]
    worst, best = (np.hypot(end.x, end.z - POLE_M) for end in ends)
    assert best < worst


def test_the_goal_is_a_sphere_and_all_of_it_fades(markers):
    shown, _ = markers
    goal = shown['goal']
    assert goal.type == Marker.SPHERE
    assert (goal.pose.position.x, goal.pose.position.y) == (0.0, 0.0)
    assert goal.pose.position.z == pytest.approx(0.6)
    for marker in shown.values():
        assert marker.header.frame_id == 'rail'
        assert marker.header.stamp.nanosec == DT_NS
        assert 0 < marker.lifetime.sec + marker.lifetime.nanosec * 1e-9 <= 1.0
        assert marker.pose.orientation.w == 1.0


def test_markers_come_a_few_times_a_second_at_the_most(start, heard, answer, eventually):
    arrays = heard(start(), MarkerArray, 'plan_markers')
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        answer()
    assert eventually(lambda: arrays)
    assert 1 <= len(arrays) <= 1 + (time.monotonic() - began) / 0.3


def test_a_task_without_a_point_has_no_markers_and_goes_on(files, start, heard, answer):
    edit(files / 'tasks.yaml', cost=[{'term': 'squared', 'params': {'signal': 'slider_position'}}],
         goal=[])
    arrays = heard(start(), MarkerArray, 'plan_markers')
    assert answer()[0] != SAFE
    time.sleep(0.2)
    assert arrays == []


def test_the_point_of_a_term_in_any_shape():
    robot = load_robot('cartpole')
    cost = CostFunction(load_task('cartpole_swingup', robot), robot)
    states = np.random.default_rng(0).normal(size=(3, 7, 4))
    points = cost.position(states, np.zeros((3, 7, 1)), np.zeros(2))
    assert points.shape == (3, 7, 3)
    np.testing.assert_allclose(points[1, 2], tip(states[1, 2]))
    np.testing.assert_allclose(cost.target(np.array([0.5, 0.25])), [0.5, 0.0, 0.25])


# Waiting for a person


def test_a_node_may_configure_itself_and_wait(files, robot, spin, eventually):
    arguments = [text for name, value in parameters_of(files, autoconfigure=True).items()
                 for text in ('-p', f'{name}:={json.dumps(value)}')]
    spin(robot)
    with subprocess.Popen([sys.executable, '-m', 'mbrl_ros.nodes.mpc_controller', '--ros-args',
                           *arguments], cwd=Path(__file__).parents[1]) as process:
        try:
            assert eventually(lambda: robot.states.get_subscription_count() == 1, 20.0)
            robot.observe()
            assert robot.state_client.wait_for_service(5.0)

            def label():
                future = robot.state_client.call_async(GetState.Request())
                assert eventually(future.done, 10.0)
                return future.result().current_state.label
            assert eventually(lambda: label() == 'inactive', 10.0)
            assert robot.sent == []
            process.send_signal(signal.SIGINT)
            assert process.wait(10.0) == 0
        finally:
            process.kill()


# How topics meet


def test_a_publisher_like_joint_state_broadcaster_is_heard(files, robot, spin, eventually):
    broadcaster = robot.create_publisher(JointState, 'joint_states', LATCHED)
    robot.destroy_publisher(robot.states)
    robot.states = broadcaster
    controller = make_controller(files, lockstep=False, allow_slow=True)
    assert controller.trigger_configure() == OK, controller.refusal
    spin(robot)
    spin(controller)
    assert eventually(lambda: known_pairs('/joint_states', robot, controller) == (1, 1))
    robot.observe(stamp_ns=robot.get_clock().now().nanoseconds)
    assert eventually(lambda: np.isfinite(controller._inbox.age_s()))


def test_qos_that_does_not_fit_is_logged_with_topic_and_parameter(files, robot, spin, logged):
    robot.create_publisher(JointState, 'joint_states',
                           QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    controller = make_controller(files)  # lock-step: reliable
    assert controller.trigger_configure() == OK, controller.refusal
    spin(controller)
    assert logged('/joint_states: incompatible QoS, RELIABILITY: a publisher offers less')
    assert logged("'qos_overrides./joint_states.subscription.reliability'")


def test_qos_may_be_overridden_by_parameters(files, robot, spin, eventually):
    reliable = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    robot.create_subscription(Float64MultiArray, COMMANDS, lambda _: None, reliable)
    controller = make_controller(files)
    controller._parameter_overrides |= {
        f'qos_overrides./{COMMANDS}.publisher.durability': Parameter(
            f'qos_overrides./{COMMANDS}.publisher.durability', value='transient_local')}
    assert controller.trigger_configure() == OK, controller.refusal
    spin(robot)
    spin(controller)
    publisher, = controller._outlet._publishers.values()
    assert eventually(lambda: publisher.get_subscription_count() == 2)
    # Configured again: the parameters are there already.
    assert controller.trigger_cleanup() == OK
    assert controller.trigger_configure() == OK, controller.refusal
    publisher, = controller._outlet._publishers.values()
    assert eventually(lambda: publisher.get_subscription_count() == 2)


# Trajectories


@pytest.fixture
def trajectory_robot(files, robot):
    """Make the robot take trajectories; return those that it hears."""
    spec = yaml.safe_load((files / 'robots.yaml').read_text())
    topic = 'joint_trajectory_controller/joint_trajectory'
    spec['action'][0] |= {'topic': topic, 'type': 'trajectory_msgs/msg/JointTrajectory',
                          'path': 'points[0].effort[slider]', 'rate_limit': 10.0}
    edit(files / 'robots.yaml', **spec)
    sent = []
    robot.create_subscription(JointTrajectory, topic, sent.append, 10)
    return sent


def test_a_trajectory_holds_the_whole_plan_and_ends_safe(files, trajectory_robot, robot, spin,
                                                         eventually):
    controller = make_controller(files)
    assert controller.trigger_configure() == OK, controller.refusal
    spin(robot)
    spin(controller)
    assert eventually(lambda: have_matched(robot, controller))
    assert controller.trigger_activate() == OK, controller.refusal
    assert eventually(lambda: trajectory_robot)
    robot.observe()
    assert eventually(lambda: len(trajectory_robot) == 2)
    safe, plan = trajectory_robot
    assert [list(point.effort) for point in safe.points] == [[SAFE]]
    assert list(plan.joint_names) == ['slider']
    efforts = [point.effort[0] for point in plan.points]
    # The command, the other steps of the horizon, and the safe value.
    assert len(efforts) == HORIZON + 1
    assert efforts[-1] == SAFE
    # 10 a second is 0.4 a period, from the safe value that was sent first.
    assert np.abs(np.diff([SAFE, *efforts[:-1]])).max() <= 10.0 * DT_S + 1e-9
    assert eventually(lambda: controller._meter.last is not None)  # counted after it was sent
    decision = controller._meter.last.decision
    np.testing.assert_allclose(efforts[1:-1], limit_following(
        controller._robot, np.array(efforts[:1]), decision.actions[1:])[:, 0])
    due_ns = [p.time_from_start.sec * 10**9 + p.time_from_start.nanosec for p in plan.points]
    assert due_ns == [(k + 1) * DT_NS for k in range(HORIZON + 1)]
    # Stopped: one point, and nothing of the plan after it.
    controller._stop_robot('test')
    assert eventually(lambda: len(trajectory_robot) == 3)
    assert [list(point.effort) for point in trajectory_robot[-1].points] == [[SAFE]]


def test_a_command_without_a_plan_ends_safe_too(files, trajectory_robot, robot, spin, eventually):
    controller = make_controller(files, mode='collect')  # an exploration signal plans nothing
    assert controller.trigger_configure() == OK, controller.refusal
    spin(robot)
    spin(controller)
    assert eventually(lambda: not controller._outlet.silent_topics())
    assert controller.trigger_activate() == OK, controller.refusal
    outgoing = controller._outlet.prepare(np.array([1.5]))
    now_ns = controller.get_clock().now().nanoseconds
    controller._outlet.send(outgoing)
    assert eventually(lambda: len(trajectory_robot) == 2)
    stamp = trajectory_robot[-1].header.stamp  # of when it was sent, not of when it was built
    assert stamp.sec * 10**9 + stamp.nanosec >= now_ns
    assert [list(point.effort) for point in trajectory_robot[-1].points] == [[1.5], [SAFE]]


NUMBERS = st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf])


@given(command=st.floats(-2.0, 2.0), actions=st.lists(NUMBERS, max_size=8))
def test_what_follows_is_finite_inside_the_limits_and_the_rate_limit(command, actions):
    robot = cart(rate_limit=5.0)
    found = limit_following(robot, np.array([command]), np.reshape(actions, (-1, 1)))
    finite = np.isfinite(np.array(actions, float))
    assert len(found) == (len(actions) if finite.all() else np.argmin(finite))
    assert (np.abs(found) <= 2.0).all()
    # 5 N/s at 10 Hz is 0.5 N a period.
    steps = np.abs(np.diff([command, *found[:, 0]]))
    assert (steps <= 0.5 + 1e-9).all()


def test_what_is_allowed_already_follows_unchanged():
    actions = np.array([[0.4], [0.1], [-0.3]])
    np.testing.assert_array_equal(
        limit_following(cart(rate_limit=5.0), np.array([0.2]), actions), actions)
