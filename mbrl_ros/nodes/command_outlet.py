"""The command topics: the one place from which the controller commands the robot."""

from threading import Lock

import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher

from mbrl_ros.control.latch import Latch
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.nodes.messages import build_commands, COMMAND_QOS, message_class

ACK_TIMEOUT_S = 0.5


class CommandOutlet:
    """
    Publishes commands; once the latch is tripped, nothing but the safe value.

    Parameters
    ----------
    node : Node
        Owner of the publishers.
    robot : RobotSpec
        Command topics, their fields and safe values.
    latch : Latch
        The emergency stop. It is looked at under the lock that publishes: a command that was on
        its way when the stop came cannot follow the safe value.

    """

    def __init__(self, node: Node, robot: RobotSpec, latch: Latch) -> None:
        self._node, self._robot, self._latch, self._lock = node, robot, latch, Lock()
        self._publishers: dict[str, Publisher] = {
            topic: node.create_publisher(message_class(kind), topic, COMMAND_QOS)
            for topic, kind in robot.action_topics().items()}

    def send(self, command: np.ndarray) -> None:
        """Publish a command, shape (A,)."""
        with self._lock:
            if self._latch.reason:
                command = self._robot.safe_value
            messages = build_commands(self._robot, command.tolist())
            for topic, message in messages.items():
                self._publishers[topic].publish(message)

    def send_safe(self) -> None:
        """Publish the safe value."""
        self.send(self._robot.safe_value)

    def stop(self, reason: str) -> None:
        """Trip the latch and publish the safe value at once, whatever the control loop does."""
        self._latch.trip(reason)
        self.send_safe()

    def silent_topics(self) -> list[str]:
        """Return the command topics that nobody listens to."""
        return [topic for topic, publisher in self._publishers.items()
                if not publisher.get_subscription_count()]

    def flush(self) -> None:
        """Wait until what was sent has arrived, half a second at the most."""
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=ACK_TIMEOUT_S))

    def close(self) -> None:
        """Release the topics."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
