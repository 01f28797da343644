"""The command topics: the one place from which the controller commands the robot."""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from builtin_interfaces.msg import Time
import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher

from mbrl_ros.control.gate import limit_following
from mbrl_ros.control.latch import Latch
from mbrl_ros.core.robot import JOINT_TRAJECTORY, RobotSpec
from mbrl_ros.nodes.command_builder import CommandBuilder
from mbrl_ros.nodes.messages import COMMAND_QOS, has_stamp
from mbrl_ros.nodes.qos import advertise

ACK_TIMEOUT_S = 0.5
# DDS repeats what it tells of a new publisher after three seconds, should that be lost.
FIRST_ACK_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Outgoing:
    """
    A command that is ready to be sent.

    Attributes
    ----------
    messages : mapping
        One a command topic, not stamped yet.
    observed_ns, num_trips
        As `CommandOutlet.prepare` has them.

    """

    messages: Mapping[str, Any]
    observed_ns: int
    num_trips: int | None


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
        self._builder = CommandBuilder(robot)
        self._publishers: dict[str, Publisher] = {
            topic: advertise(node, kind, topic, COMMAND_QOS)
            for topic, kind in robot.action_topics().items()}
        self._takes_trajectories = JOINT_TRAJECTORY in robot.action_topics().values()
        self._is_simulated = bool(node.get_parameter('use_sim_time').value)
        self._is_open = False

    def open(self) -> None:
        """
        Let commands out from now on; return when the first, the safe value, has arrived.

        DDS tells a listener of a publisher a while after it tells the publisher of the listener,
        who ignores all that is sent until then. Whoever has acknowledged a command misses no
        later one; nobody is waited for longer than five seconds.
        """
        self._is_open = True
        self.send_safe()
        for topic in self._unheard(FIRST_ACK_TIMEOUT_S):
            self._node.get_logger().warning(
                f'{topic}: somebody who listens has not acknowledged the first command in '
                f'{FIRST_ACK_TIMEOUT_S:g} s; nobody waits for it any longer')

    def shut(self) -> None:
        """Publish the safe value, and from now on nothing else, whoever sends."""
        self._is_open = False
        self.send_safe()

    def prepare(self, command: np.ndarray, observed_ns: int = 0,
                following: np.ndarray | None = None, num_trips: int | None = None) -> Outgoing:
        """
        Build the messages of a command, so that sending it takes as little time as it can.

        Parameters
        ----------
        command : array, shape (A,)
            What the gate let out.
        observed_ns : int
            Stamp of the observation it answers. In simulated time, which may still be on its way
            here, the command is not stamped earlier.
        following : array, shape (n, A), optional
            What is planned after it, for a robot that takes trajectories: brought inside the
            limits, and the safe value after it all, so that a robot that hears no more of us
            ends there.
        num_trips : int, optional
            Trips of the latch when the command was begun: had there been one since, even if it
            was released again, the safe value is sent.

        """
        points: list[list[float]] = []
        if self._takes_trajectories and (command != self._robot.safe_value).any():
            if following is not None and len(following):
                points = limit_following(self._robot, command, following).tolist()
            points.append(self._robot.safe_value.tolist())
        return Outgoing(self._builder.build(command.tolist(), following=points), observed_ns,
                        num_trips)

    def send(self, outgoing: Outgoing) -> None:
        """Publish a command, or in its place the safe value."""
        with self._lock:
            if not self._is_open or self._latch.reason \
                    or outgoing.num_trips not in (None, self._latch.num_trips):
                outgoing = self.prepare(self._robot.safe_value, outgoing.observed_ns)
            for message in filter(has_stamp, outgoing.messages.values()):
                message.header.stamp = self._now(outgoing.observed_ns)
            for topic, message in outgoing.messages.items():
                self._publishers[topic].publish(message)

    def send_safe(self) -> None:
        """Publish the safe value."""
        self.send(self.prepare(self._robot.safe_value))

    def _now(self, observed_ns: int) -> Time:
        now_ns = self._node.get_clock().now().nanoseconds
        if self._is_simulated:
            now_ns = max(now_ns, observed_ns)
        return Time(sec=now_ns // 1_000_000_000, nanosec=now_ns % 1_000_000_000)

    def silent_topics(self) -> list[str]:
        """Return the command topics that nobody listens to."""
        return [topic for topic, publisher in self._publishers.items()
                if not publisher.get_subscription_count()]

    def flush(self) -> None:
        """Wait until what was sent has arrived, half a second at the most."""
        self._unheard(ACK_TIMEOUT_S)

    def _unheard(self, timeout_s: float) -> list[str]:
        """Wait until what was sent has arrived; return the topics where it has not in time."""
        timeout = Duration(seconds=timeout_s)
        return [topic for topic, publisher in self._publishers.items()
                if not publisher.wait_for_all_acked(timeout)]

    def close(self) -> None:
        """Release the topics."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
