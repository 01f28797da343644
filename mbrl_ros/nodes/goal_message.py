"""A task's goal as messages, as somebody publishes it who wants the robot elsewhere."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.task import GoalField
from mbrl_ros.nodes.messages import message_class


def build_goal(fields: Sequence[GoalField], values: Sequence[float]) -> dict[str, Any]:
    """
    Build one message a goal topic.

    Parameters
    ----------
    fields : sequence of GoalField
        Of the task; those without a topic are left out.
    values : sequence of float, length G
        Goal, in the order of the fields.

    Raises
    ------
    SpecError
        If a field is somewhere inside an array, whose other numbers nobody knows.

    """
    messages: dict[str, Any] = {}
    for field, value in zip(fields, values, strict=True):
        if field.topic is None or field.type is None or field.path is None:
            continue
        path = MessagePath.parse(field.path)
        if path.is_angle or any(key is not None for _, key in path.parts):
            raise SpecError(f"goal '{field.name}': path '{field.path}' cannot be published, only "
                            "plain numbers can, such as 'point.x'")
        message = messages.setdefault(field.topic, message_class(field.type)())
        owner = attrgetter('.'.join(path.attributes[:-1]))(message) \
            if len(path.attributes) > 1 else message
        setattr(owner, path.attributes[-1], float(value))
    return messages
