"""A subscription that takes whatever is published on a topic, under any QoS, as it came."""

from collections.abc import Callable, Sequence
import time
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, qos_policy_name_from_kind, QoSProfile, ReliabilityPolicy

from mbrl_ros.nodes.messages import message_class

DEPTH = 1000  # messages that wait while the executor is busy

# Of a tap: itself, the message in CDR, and the message info of rclpy.
TapCallback = Callable[['TopicTap', bytes, Any], None]


class TopicTap:
    """
    Subscribes to one topic with the strongest QoS that all its publishers offer.

    Parameters
    ----------
    node : Node
        Owner.
    topic : str
        As in the robot spec; resolved in the node's namespace.
    type_name : str
        Such as 'sensor_msgs/msg/JointState'.
    callback : callable
        Takes (tap, message in CDR, message info).
    is_required : bool
        Whether silence on it is an error.

    """

    def __init__(self, node: Node, topic: str, type_name: str, callback: TapCallback,
                 is_required: bool = False) -> None:
        self.topic, self.type, self.is_required = node.resolve_topic_name(topic), type_name, \
            is_required
        self.num_publishers = 0
        self.num_lost = 0
        self.offered: list[dict[str, Any]] = []
        self.last_message_s = 0.0
        self.is_silent = False
        self._node, self._callback = node, callback
        self._subscription: Any = None
        self._qos = (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
        self.match()

    def match(self) -> None:
        """Look at the publishers; subscribe anew if their QoS asks for it."""
        profiles = [end.qos_profile
                    for end in self._node.get_publishers_info_by_topic(self.topic)]
        self.num_publishers = len(profiles)
        wanted = strongest(profiles) if profiles else self._qos
        if profiles:
            self.offered = [describe_qos(profile) for profile in profiles]
        if self._subscription is not None and wanted == self._qos:
            return
        if self._subscription is not None:
            self._node.get_logger().warning(
                f'{self.topic}: the publishers offer another QoS now; subscribing anew')
        self.close()
        self._qos = wanted
        self._subscription = self._node.create_subscription(
            message_class(self.type), self.topic, self._on_message,
            QoSProfile(depth=DEPTH, reliability=wanted[0], durability=wanted[1]), raw=True,
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=self._on_incompatible, message_lost=self._on_lost))

    def close(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def _on_message(self, raw: bytes, info: Any) -> None:
        self.last_message_s = time.monotonic()
        self._callback(self, raw, info)

    def _on_incompatible(self, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        self._node.get_logger().warning(
            f'{self.topic}: a publisher offers a QoS incompatible with the subscription '
            f'({policy}); subscribing anew as soon as the graph shows it')

    def _on_lost(self, event: Any) -> None:
        self.num_lost += event.total_count_change


def strongest(profiles: Sequence[QoSProfile]) -> tuple[ReliabilityPolicy, DurabilityPolicy]:
    """Return the strongest reliability and durability that every publisher offers."""
    reliable = all(p.reliability == ReliabilityPolicy.RELIABLE for p in profiles)
    latched = all(p.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in profiles)
    return (ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


def describe_qos(profile: QoSProfile) -> dict[str, Any]:
    """Return a QoS profile as rosbag2's metadata writes it."""
    def seconds(duration: Any) -> dict[str, int]:
        return {'sec': duration.nanoseconds // 10**9, 'nsec': duration.nanoseconds % 10**9}
    return {
        'history': profile.history.name.lower(), 'depth': profile.depth,
        'reliability': profile.reliability.name.lower(),
        'durability': profile.durability.name.lower(), 'deadline': seconds(profile.deadline),
        'lifespan': seconds(profile.lifespan), 'liveliness': profile.liveliness.name.lower(),
        'liveliness_lease_duration': seconds(profile.liveliness_lease_duration),
        'avoid_ros_namespace_conventions': profile.avoid_ros_namespace_conventions}
