"""Does a message come back over DDS? The question that `mbrl-ros doctor` asks first."""

import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.utilities import get_rmw_implementation_identifier
from std_msgs.msg import Empty

PATIENCE_S = 5.0


def hear_yourself() -> tuple[str, bool]:
    """Return the name of the middleware, and whether a node hears its own message."""
    deadline = time.monotonic() + PATIENCE_S
    heard: list[Empty] = []
    rclpy.init()
    try:
        node = rclpy.create_node('mbrl_doctor')
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        publisher = node.create_publisher(Empty, '~/ping', 1)
        node.create_subscription(Empty, '~/ping', heard.append, 1)
        while not heard and time.monotonic() < deadline:
            publisher.publish(Empty())
            executor.spin_once(timeout_sec=0.1)
        node.destroy_node()
    finally:
        rclpy.shutdown()
    return get_rmw_implementation_identifier(), bool(heard)
