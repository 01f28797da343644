"""Commands as messages: stamps, arrays, nested fields, trajectories; readings as messages."""

from bag_factory import tiny_robot
import numpy as np
import pytest

pytest.importorskip('rclpy')

from pydantic import ValidationError

from mbrl_ros.core.errors import ObservationError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.nodes.command_builder import CommandBuilder
from mbrl_ros.nodes.messages import fill, has_stamp, message_class
from mbrl_ros.sim.command_inbox import CommandInbox
from mbrl_ros.sim.mujoco_robot import MujocoRobot

TRAJECTORY = 'trajectory_msgs/msg/JointTrajectory'
U = {'name': 'u', 'unit': 'N*m', 'topic': 'commands', 'type': TRAJECTORY,
     'path': 'points[0].effort[elbow]', 'min': -1.0, 'max': 1.0, 'rate_limit': 100.0,
     'safe_value': 0.0}
ARM = [U, U | {'name': 'v', 'path': 'points[0].effort[wrist]'}]


def test_a_twist_is_filled_and_may_be_stamped():
    commands = CommandBuilder(load_robot('base')).build([0.5, -1.0])
    message = commands['diff_drive_controller/cmd_vel']
    assert has_stamp(message)
    assert (message.twist.linear.x, message.twist.angular.z) == (0.5, -1.0)
    assert (message.twist.linear.y, message.twist.angular.x) == (0.0, 0.0)


def test_a_message_without_header_needs_no_stamp():
    plain = U | {'type': 'geometry_msgs/msg/Twist', 'path': 'linear.x'}
    robot = tiny_robot(action=[plain, plain | {'name': 'v', 'path': 'angular.z'}])
    message = CommandBuilder(robot).build([0.25, -0.5])['commands']
    assert not has_stamp(message)
    assert (message.linear.x, message.angular.z) == (0.25, -0.5)
    inbox = CommandInbox(robot.action)
    assert inbox.parse('commands', message).tolist() == [0.25, -0.5]


def test_arrays_are_filled_by_index_whatever_the_order_of_the_spec():
    numbers = U | {'type': 'std_msgs/msg/Float64MultiArray', 'path': 'data[1]'}
    robot = tiny_robot(action=[numbers, numbers | {'name': 'v', 'path': 'data[0]'}])
    assert CommandBuilder(robot).build([1.0, 2.0])['commands'].data.tolist() == [2.0, 1.0]


def test_a_trajectory_carries_the_whole_plan():
    robot = tiny_robot(action=ARM)
    plan = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    message = CommandBuilder(robot).build(plan[0], following=plan[1:])['commands']
    assert has_stamp(message)
    assert list(message.joint_names) == ['elbow', 'wrist']
    np.testing.assert_array_equal([p.effort for p in message.points], plan)
    # At 10 Hz the first point is due after 0.1 s.
    assert [p.time_from_start.nanosec for p in message.points] == [10**8, 2 * 10**8, 3 * 10**8]
    assert {len(p.positions) for p in message.points} == {0}
    # The simulated robot obeys the first point, and finds the joints by name.
    inbox = CommandInbox(robot.action)
    assert inbox.parse('commands', message).tolist() == [0.1, 0.2]
    message.joint_names = ['wrist', 'elbow']
    assert inbox.parse('commands', message).tolist() == [0.2, 0.1]
    message.points = []
    with pytest.raises(ObservationError, match='index 0 of an array of 0'):
        inbox.parse('commands', message)


def test_a_long_trajectory_counts_seconds():
    robot = tiny_robot(action=[U])
    message = CommandBuilder(robot).build([0.0], following=np.zeros((14, 1)))['commands']
    # 15 periods of 0.1 s.
    last = message.points[-1].time_from_start
    assert (last.sec, last.nanosec) == (1, 5 * 10**8)


def test_only_a_trajectory_has_room_for_what_follows():
    alone, with_plan = (CommandBuilder(load_robot('base')).build([0.5, -1.0], following=following)
                        for following in ((), [[9.0, 9.0]]))
    assert alone == with_plan


@pytest.mark.parametrize(('path', 'text'), [
    ('points[0].effort[0]', r'Allowed: points\[0\]\.positions\[joint\]'),
    ('points[1].effort[wrist]', r'Allowed: points\[0\]\.positions\[joint\]'),
    ('points[0].torque[wrist]', r'Allowed: points\[0\]\.positions\[joint\]'),
    ('effort[wrist]', r'Allowed: points\[0\]\.positions\[joint\]'),
    ('points[0].effort[elbow]', 'is taken by another action'),
    ('points[0].positions[wrist]', 'must name the same joints in the same order'),
])
def test_trajectories_that_could_not_be_sent_are_refused(path, text):
    with pytest.raises(ValidationError, match=text):
        tiny_robot(action=[U, U | {'name': 'v', 'path': path}])


def test_names_are_for_trajectories_only():
    array = U | {'type': 'std_msgs/msg/Float64MultiArray', 'path': 'data[elbow]'}
    with pytest.raises(ValidationError, match='by joint name only in a trajectory_msgs'):
        tiny_robot(action=[array])
    with pytest.raises(ValidationError, match='an index may only be at the end'):
        tiny_robot(action=[array | {'path': 'layout.dim[0].size'}])


def test_readings_become_messages_with_every_number_in_its_place():
    spec = load_robot('base')
    robot = MujocoRobot(spec)
    robot.reset(np.random.default_rng(0))
    robot.step(np.array([1.0, 2.0]))
    readings = robot.observe()
    messages = {topic: fill(message_class(kind)(), readings[topic])
                for topic, kind in spec.observation_topics().items()}
    pose, twist = messages['odom'].pose.pose, messages['odom'].twist.twist
    body = robot.data.body('base_link')
    np.testing.assert_array_equal([pose.position.x, pose.position.y, pose.position.z], body.xpos)
    q = pose.orientation
    np.testing.assert_array_equal([q.w, q.x, q.y, q.z], body.xquat)
    assert twist.angular.z == messages['imu'].angular_velocity.z == robot.data.qvel[2]
    assert list(messages['odom'].pose.covariance) == [0.0] * 36


def test_joint_states_become_messages():
    reading = MujocoRobot(load_robot('cartpole')).observe()['joint_states']
    message = fill(message_class('sensor_msgs/msg/JointState')(), reading)
    assert list(message.name) == ['slider', 'hinge']
    assert (len(message.position), len(message.velocity), len(message.effort)) == (2, 2, 2)
