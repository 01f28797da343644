"""A task's goal from messages: whoever publishes it moves the robot elsewhere."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from rclpy.lifecycle import LifecycleNode

from mbrl_ros.core.errors import ObservationError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.nodes.messages import message_class, RELIABLE_QOS


class GoalTopics:
    """
    Subscribes to the topics of a task's goal.

    Parameters
    ----------
    node : LifecycleNode
        Owner of the subscriptions.
    task : TaskSpec
        Its goal fields may name topics.
    on_goal : callable
        Takes the goal (G,) after each message.

    Attributes
    ----------
    goal : array, shape (G,)
        The newest one.

    """

    def __init__(self, node: LifecycleNode, task: TaskSpec,
                 on_goal: Callable[[np.ndarray], None]) -> None:
        self._node, self._task, self._on_goal = node, task, on_goal
        self.goal = task.goal_values
        topics: dict[tuple[str, str], dict[int, MessagePath]] = {}
        for index, field in enumerate(task.goal):
            if field.topic and field.type and field.path:
                topics.setdefault((field.topic, field.type), {})[index] = \
                    MessagePath.parse(field.path)
        self._subscriptions = [
            node.create_subscription(message_class(kind), topic, partial(self._take, paths),
                                     RELIABLE_QOS)
            for (topic, kind), paths in topics.items()]

    def close(self) -> None:
        """Release the topics."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _take(self, paths: Mapping[int, MessagePath], message: Any) -> None:
        goal = self.goal.copy()  # all numbers of a message at once: no plan for half a goal
        for index, path in paths.items():
            name = self._task.goal[index].name
            try:
                goal[index] = path.read(message)
            except ObservationError as error:
                self._node.get_logger().error(f'goal {name}: {error}')
                return
            if not np.isfinite(goal[index]):
                self._node.get_logger().error(f'goal {name}: {goal[index]} is refused')
                return
        self.goal = goal
        self._on_goal(goal)
