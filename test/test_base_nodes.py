"""The base on real DDS: a faster topic, plain twists, and a goal that changes mid-run."""

import time

import numpy as np
import pytest

pytest.importorskip('rclpy')

from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Imu
import yaml

from mbrl_ros.core.robot import load_robot
from mbrl_ros.nodes.mpc_controller import MpcController
from mbrl_ros.nodes.sim_robot import SimRobot
from mbrl_ros.sim.mujoco_robot import MujocoRobot

SPEC = load_robot('base')
COMMANDS = 'diff_drive_controller/cmd_vel'
MS = 1_000_000


@pytest.fixture
def start(ros, spin):
    """Return a function that configures a node, spins and activates it."""
    def make(node, **parameters):
        for name, value in parameters.items():
            result, = node.set_parameters([Parameter(name, value=value)])
            assert result.successful, result.reason
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS, node.refusal
        spin(node)
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS, node.refusal
        return node
    return make


@pytest.fixture
def listen(ros, spin):
    """Return a function that records (topic, stamp, message) of the base, in order of arrival."""
    def make(on_odometry):
        node, heard = ros.create_node('peer'), []

        def note(topic, message):
            stamp = message.header.stamp
            heard.append((topic, stamp.sec * 10**9 + stamp.nanosec, message))
            if topic == 'odom':
                on_odometry(message)
        for topic, kind in (('imu', Imu), ('odom', Odometry)):
            node.create_subscription(kind, topic, lambda m, topic=topic: note(topic, m), 1000)
        return node, heard
    return make


def stamps(heard, topic):
    return np.array([stamp for name, stamp, _ in heard if name == topic])


def test_lockstep_with_a_faster_topic_and_a_plain_twist(start, listen, spin, tmp_path, eventually):
    plain = SPEC.model_dump(mode='json')
    for field, path in zip(plain['action'], ('linear.x', 'angular.z'), strict=True):
        field |= {'type': 'geometry_msgs/msg/Twist', 'path': path, 'topic': 'cmd_vel'}
    (tmp_path / 'robot.yaml').write_text(yaml.safe_dump(plain))
    script = np.random.default_rng(0).uniform(SPEC.action_min, SPEC.action_max, (20, 2))

    def answer(_message):
        number = len(stamps(heard, 'odom')) - 1
        if number < 20:
            twist = Twist()
            twist.linear.x, twist.angular.z = script[number].tolist()
            commands.publish(twist)
    peer, heard = listen(answer)
    commands = peer.create_publisher(Twist, 'cmd_vel', 10)
    spin(peer)
    start(SimRobot(), robot=str(tmp_path / 'robot.yaml'), lockstep=True, seed=5)
    assert eventually(lambda: len(stamps(heard, 'odom')) == 21)
    assert eventually(lambda: len(stamps(heard, 'imu')) == 101)
    # From one control period after zero; the gyroscope five times in each.
    np.testing.assert_array_equal(stamps(heard, 'odom'), 50 * MS * np.arange(1, 22))
    np.testing.assert_array_equal(stamps(heard, 'imu'), 50 * MS + 10 * MS * np.arange(101))
    # The same commands without ROS: the same numbers, bit for bit.
    twin = MujocoRobot(SPEC)
    twin.reset(np.random.default_rng(5))
    odometry = [message for topic, _, message in heard if topic == 'odom']
    gyro = [message.angular_velocity.z for topic, _, message in heard if topic == 'imu']
    expected = []
    for number, message in enumerate(odometry):
        state, pose = twin.state(), message.pose.pose.position
        assert [pose.x, pose.y] == state[:2].tolist()
        assert message.twist.twist.linear.x == state[3]
        expected.append(state[5])
        if number < 20:
            expected += [r['imu'].angular_velocity.z for _, r in twin.step(script[number])]
    assert gyro == expected


def test_in_real_time_the_faster_topic_keeps_its_own_pace(start, listen, spin, eventually):
    peer, heard = listen(lambda _message: None)
    peer.create_publisher(TwistStamped, COMMANDS, 10)
    spin(peer)
    start(SimRobot(), robot='base')
    began_ns = time.time_ns()
    assert eventually(lambda: len(stamps(heard, 'odom')) >= 12)
    took_ns = time.time_ns() - began_ns
    odom, imu = stamps(heard, 'odom'), stamps(heard, 'imu')
    # Only a machine that stalls shifts the grid, and then both topics.
    assert np.diff(odom).min() == 50 * MS
    assert np.diff(imu).min() == 10 * MS
    inside = imu[(imu >= odom[0]) & (imu < odom[-1])]
    assert len(inside) == 5 * (len(odom) - 1)
    # It is no recording played at once: 11 periods take at least their time, less the first.
    assert took_ns > 10 * 50 * MS


@pytest.mark.any_pace
def test_drives_to_a_goal_from_its_topic_and_to_another_one_mid_run(start, listen, spin,
                                                                  eventually):
    goals = np.array([[1.0, 0.6], [-0.4, 0.9]])
    # Two control periods at full speed, 2 x 0.05 s x 1 m/s: nearer, one command decides.
    arrived_m = 0.1
    # From rest: at most 1.6 m, 1 m/s, and half a turn at 2 rad/s, each started and ended within
    # half a second: 1.6 + 1.6 + 1.0 s = 84 periods. Left room for a model that is not perfect.
    steps = 2 * 120
    changes, distances = [], []

    def publish(goal):
        message = PoseStamped()
        message.pose.position.x, message.pose.position.y = goal.tolist()
        goal_topic.publish(message)

    def watch(message):
        here = np.array([message.pose.pose.position.x, message.pose.pose.position.y])
        distances.append(np.linalg.norm(goals - here, axis=1))
        if not changes and distances[-1][0] < arrived_m:
            changes.append(len(distances))
            publish(goals[1])
    peer, _heard = listen(watch)
    goal_topic = peer.create_publisher(PoseStamped, 'goal_pose', 10)
    spin(peer)
    controller = start(MpcController(), robot='base', task='base_goal', lockstep=True,
                       use_sim_time=True, actuation_delay_steps=0)
    assert eventually(lambda: 0 < goal_topic.get_subscription_count()
                      == peer.count_subscribers('goal_pose'))
    publish(goals[0])
    robot = start(SimRobot(), robot='base', lockstep=True, seed=2, pause_after_steps=steps)
    assert eventually(lambda: len(distances) == steps + 1, 60.0)
    assert 10 < changes[0] <= steps // 2
    ahead = np.array(distances[changes[0]:])
    assert ahead[0, 1] > 1.0  # the second goal is far from the first
    assert ahead[:, 1].min() < arrived_m
    # And it stays there.
    assert ahead[-20:, 1].max() < arrived_m
    for node in (controller, robot):
        node.trigger_deactivate()
