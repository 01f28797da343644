"""Between ROS messages and the numbers of the robot spec."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from typing import Any

from builtin_interfaces.msg import Duration
import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from trajectory_msgs.msg import JointTrajectoryPoint

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import JOINT_TRAJECTORY, RobotSpec

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


def build_commands(robot: RobotSpec, values: Sequence[float], *,
                   following: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
    """
    Build one message a command topic.

    Parameters
    ----------
    robot : RobotSpec
        Its action fields say which topics, and where in their messages.
    values : sequence of float, length A
        Command, in each field's unit.
    following : sequence of sequence of float, shape (H - 1, A)
        What the plan does after the command, one control period apart. Only a JointTrajectory has
        room for it: its points are the command and these, point i due (i + 1) control periods
        after the stamp.

    """
    commands: dict[str, Any] = {}
    rows = [list(values)]
    if any(field.type == JOINT_TRAJECTORY for field in robot.action):
        rows += [list(row) for row in following]
    arrays: dict[tuple[str, tuple[str, ...]], dict[int, float]] = {}
    for index, (field, value) in enumerate(zip(robot.action, values, strict=True)):
        if field.topic not in commands:
            commands[field.topic] = message_class(field.type)()
        message, path = commands[field.topic], MessagePath.parse(field.path)
        if field.type == JOINT_TRAJECTORY:
            _add_to_trajectory(message, path, [row[index] for row in rows], robot.dt_ns)
        elif isinstance(path.key, int):
            arrays.setdefault((field.topic, path.attributes), {})[path.key] = float(value)
        else:
            setattr(_owner(message, path.attributes), path.attributes[-1], float(value))
    for (topic, attributes), numbers in arrays.items():
        setattr(_owner(commands[topic], attributes), attributes[-1],
                [numbers[i] for i in range(len(numbers))])
    return commands


def has_stamp(message: Any) -> bool:
    """Return whether a message has a header; one without a stamp means 'now' to ros2_control."""
    return hasattr(message, 'header')


def _owner(message: Any, attributes: Sequence[str]) -> Any:
    """Return the part of a message that has the last attribute."""
    for attribute in attributes[:-1]:
        message = getattr(message, attribute)
    return message


def _add_to_trajectory(message: Any, path: MessagePath, column: Sequence[float],
                       dt_ns: int) -> None:
    """Append one joint's number to each point of a JointTrajectory."""
    if path.key not in message.joint_names:
        message.joint_names = [*message.joint_names, path.key]
    for number in range(len(message.points), len(column)):
        due_ns = (number + 1) * dt_ns
        message.points.append(JointTrajectoryPoint(time_from_start=Duration(
            sec=due_ns // 1_000_000_000, nanosec=due_ns % 1_000_000_000)))
    for point, value in zip(message.points, column, strict=True):
        getattr(point, path.attributes[-1]).append(float(value))


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
