"""Bags made of numbers, for tests that need one."""

import json

import numpy as np

from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.data.bag_metadata import typestore
from mbrl_ros.data.bag_writer import BagWriter

JOINT_STATE, ARRAY, STRING = ('sensor_msgs/msg/JointState', 'std_msgs/msg/Float64MultiArray',
                              'std_msgs/msg/String')
MS = 1_000_000
RELIABLE = {
    'history': 'keep_last', 'depth': 10, 'reliability': 'reliable', 'durability': 'volatile',
    'deadline': {'sec': 9223372036, 'nsec': 854775807},
    'lifespan': {'sec': 9223372036, 'nsec': 854775807}, 'liveliness': 'automatic',
    'liveliness_lease_duration': {'sec': 9223372036, 'nsec': 854775807},
    'avoid_ros_namespace_conventions': False}


def cdr(message):
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def joint_state(stamp_ns, position, velocity, names=('slider', 'hinge')):
    types = typestore().types
    stamp = types['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9)
    return types[JOINT_STATE](types['std_msgs/msg/Header'](stamp, ''), list(names),
                              np.array(position, float), np.array(velocity, float), np.empty(0))


def array(*values):
    types = typestore().types
    layout = types['std_msgs/msg/MultiArrayLayout']([], 0)
    return types[ARRAY](layout, np.array(values, float))


def string(text):
    return typestore().types[STRING](text)


def mark(event, episode=0):
    return string(json.dumps({'event': event, 'episode': episode}))


def write_bag(folder, messages, prefix='/'):
    """Write (topic, time_ns, message) in this order; topics without a slash."""
    with BagWriter(folder) as writer:
        for topic, time_ns, message in messages:
            writer.add_topic(prefix + topic, message.__msgtype__, [RELIABLE])
            writer.write(prefix + topic, cdr(message), time_ns, time_ns)
    assert writer.error == ''
    return folder


def tiny_robot(**changes):
    """Return a robot of one joint at 10 Hz: state [x], action [u], stale after 0.25 s."""
    spec = {
        'name': 'tiny', 'control_rate_hz': 10.0, 'stale_after_s': {'joint_states': 0.25},
        'observation': [{'name': 'x', 'unit': 'm', 'topic': 'joint_states', 'type': JOINT_STATE,
                         'path': 'position[slider]'}],
        'action': [{'name': 'u', 'unit': 'N', 'topic': 'commands', 'type': ARRAY,
                    'path': 'data[0]', 'min': -1.0, 'max': 1.0, 'rate_limit': 100.0,
                    'safe_value': 0.0}]}
    return RobotSpec.model_validate(spec | changes)


def cartpole():
    return load_robot('cartpole')
