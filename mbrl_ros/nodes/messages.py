"""Between ROS messages and the numbers of the robot spec."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from rclpy.qos import QoSProfile, ReliabilityPolicy

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import ActionField

SENSOR_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE_QOS = QoSProfile(depth=10)
COMMAND_QOS = QoSProfile(depth=1)


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


def build_commands(fields: Sequence[ActionField], values: Sequence[float]) -> dict[str, Any]:
    """
    Build one message a command topic.

    Parameters
    ----------
    fields : sequence of ActionField, length A
        From the robot spec.
    values : sequence of float, length A
        Command, in each field's unit.

    """
    commands: dict[str, Any] = {}
    arrays: dict[tuple[str, tuple[str, ...]], dict[int, float]] = {}
    for field, value in zip(fields, values, strict=True):
        message = commands.setdefault(field.topic, message_class(field.type)())
        path = MessagePath.parse(field.path)
        if path.key is None:
            target = message
            for attribute in path.attributes[:-1]:
                target = getattr(target, attribute)
            setattr(target, path.attributes[-1], float(value))
        else:
            arrays.setdefault((field.topic, path.attributes), {})[int(path.key)] = float(value)
    for (topic, attributes), numbers in arrays.items():
        target = commands[topic]
        for attribute in attributes[:-1]:
            target = getattr(target, attribute)
        setattr(target, attributes[-1], [numbers[i] for i in range(len(numbers))])
    return commands
