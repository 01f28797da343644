"""Messages from commands: the robot spec says which topics, and where in their messages."""

from collections.abc import Sequence
from typing import Any

from builtin_interfaces.msg import Duration
from trajectory_msgs.msg import JointTrajectoryPoint

from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import JOINT_TRAJECTORY, RobotSpec
from mbrl_ros.nodes.messages import message_class


class CommandBuilder:
    """
    Builds the messages of a command.

    What does not depend on the command is found out once: the robot waits while one is built.

    Parameters
    ----------
    robot : RobotSpec
        Its action fields.

    """

    def __init__(self, robot: RobotSpec) -> None:
        self._dt_ns = robot.dt_ns
        self._classes = {field.topic: message_class(field.type) for field in robot.action}
        self._columns: list[tuple[str, MessagePath, int]] = []
        self._numbers: list[tuple[str, tuple[str, ...], int]] = []
        arrays: dict[tuple[str, tuple[str, ...]], dict[int, int]] = {}
        for index, field in enumerate(robot.action):
            path = MessagePath.parse(field.path)
            if field.type == JOINT_TRAJECTORY:
                self._columns.append((field.topic, path, index))
            elif isinstance(path.key, int):
                arrays.setdefault((field.topic, path.attributes), {})[path.key] = index
            else:
                self._numbers.append((field.topic, path.attributes, index))
        self._arrays = [(topic, attributes, [indices[key] for key in range(len(indices))])
                        for (topic, attributes), indices in arrays.items()]

    def build(self, values: Sequence[float], *,
              following: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
        """
        Build one message a command topic.

        Parameters
        ----------
        values : sequence of float, length A
            Command, in each field's unit.
        following : sequence of sequence of float, shape (H - 1, A)
            What the plan does after the command, one control period apart. Only a JointTrajectory
            has room for it: its points are the command and these, point i due (i + 1) control
            periods after the stamp.

        """
        commands = {topic: kind() for topic, kind in self._classes.items()}
        for topic, attributes, index in self._numbers:
            setattr(_owner(commands[topic], attributes), attributes[-1], float(values[index]))
        for topic, attributes, indices in self._arrays:
            setattr(_owner(commands[topic], attributes), attributes[-1],
                    [float(values[index]) for index in indices])
        for topic, path, index in self._columns:
            self._add_to_trajectory(commands[topic], path,
                                    [row[index] for row in (values, *following)])
        return commands

    def _add_to_trajectory(self, message: Any, path: MessagePath,
                           column: Sequence[float]) -> None:
        """Append one joint's number to each point of a JointTrajectory."""
        if path.key not in message.joint_names:
            message.joint_names = [*message.joint_names, path.key]
        for number in range(len(message.points), len(column)):
            due_ns = (number + 1) * self._dt_ns
            message.points.append(JointTrajectoryPoint(time_from_start=Duration(
                sec=due_ns // 1_000_000_000, nanosec=due_ns % 1_000_000_000)))
        for point, value in zip(message.points, column, strict=True):
            getattr(point, path.attributes[-1]).append(float(value))


def _owner(message: Any, attributes: Sequence[str]) -> Any:
    """Return the part of a message that has the last attribute."""
    for attribute in attributes[:-1]:
        message = getattr(message, attribute)
    return message
