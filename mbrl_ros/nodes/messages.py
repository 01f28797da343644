"""Between ROS messages and the numbers of the robot spec."""

from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from mbrl_ros.core.errors import SpecError

SENSOR_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE_QOS = QoSProfile(depth=10)
COMMAND_QOS = QoSProfile(depth=1)
LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@cache
def message_class(type_name: str) -> type:
    """
    Import a message class by its ROS name, such as 'sensor_msgs/msg/JointState'.

    Raises
    ------
    SpecError
        If there is no such class.

    """
    package, _, name = type_name.split('/')
    try:
        return getattr(import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError):
        raise SpecError(f"message type '{type_name}' is not installed. Check its spelling, or "
                        'source the workspace that has it.') from None


def stamp_ns(message: Any, received_ns: int) -> int:
    """Return the header stamp [ns]; the receive time where there is no header, or an empty one."""
    header = getattr(message, 'header', None)
    stamp = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec if header is not None else 0
    return stamp or received_ns


def has_stamp(message: Any) -> bool:
    """Return whether a message has a header; one without a stamp means 'now' to ros2_control."""
    return hasattr(message, 'header')


def fill(message: Any, reading: Any) -> Any:
    """Copy a reading, a dataclass with the structure of a message, into that; return it."""
    for field in fields(reading):
        value = getattr(reading, field.name)
        if is_dataclass(value):
            fill(getattr(message, field.name), value)
        else:
            setattr(message, field.name, value.tolist() if isinstance(value, np.ndarray)
                    else list(value) if isinstance(value, tuple) else float(value))
    return message
