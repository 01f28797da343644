"""Topics to and from a robot: their QoS may be overridden, and a mismatch is said aloud."""

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import qos_policy_name_from_kind, QoSPolicyKind, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from mbrl_ros.nodes.messages import message_class

_POLICIES = (QoSPolicyKind.DEPTH, QoSPolicyKind.DURABILITY, QoSPolicyKind.HISTORY,
             QoSPolicyKind.RELIABILITY)


def subscribe(node: Node, type_name: str, topic: str, callback: Callable[..., None],
              qos: QoSProfile, group: CallbackGroup | None = None) -> Subscription:
    """
    Subscribe to a topic of the robot.

    Parameters
    ----------
    node : Node
        Owner; it gets the parameters `qos_overrides.<topic>.subscription.<policy>`.
    type_name, topic : str
        As in the robot spec.
    callback : callable
        Takes each message; from a `Receiver` also its info.
    qos : QoSProfile
        Unless overridden.
    group : CallbackGroup, optional
        The node's default one by default.

    """
    events = SubscriptionEventCallbacks(incompatible_qos=_reporter(
        node, topic, 'subscription', 'a publisher offers less than is asked for; nothing that it '
        'sends arrives'))
    return node.create_subscription(message_class(type_name), topic, callback, _copy(qos),
                                    callback_group=group, event_callbacks=events,
                                    qos_overriding_options=_options())


def advertise(node: Node, type_name: str, topic: str, qos: QoSProfile) -> Publisher:
    """Publish on a topic of the robot; parameters `qos_overrides.<topic>.publisher.<policy>`."""
    events = PublisherEventCallbacks(incompatible_qos=_reporter(
        node, topic, 'publisher', 'a subscriber asks for more than is offered; it hears nothing'))
    return node.create_publisher(message_class(type_name), topic, _copy(qos),
                                 event_callbacks=events, qos_overriding_options=_options())


def _reporter(node: Node, topic: str, kind: str, problem: str) -> Callable[[Any], None]:
    name = node.resolve_topic_name(topic)

    def report(event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        parameter = f'qos_overrides.{name}.{kind}.{str(policy).lower()}'
        node.get_logger().error(f'{name}: incompatible QoS, {policy}: {problem}. Set it there, or '
                                f"here by the parameter '{parameter}', before the node configures")
    return report


def _options() -> QoSOverridingOptions:
    return QoSOverridingOptions(_POLICIES)


def _copy(qos: QoSProfile) -> QoSProfile:
    """Return a profile that rclpy may write the overrides into."""
    return QoSProfile(depth=qos.depth, history=qos.history, reliability=qos.reliability,
                      durability=qos.durability)
