"""
Takes down when a controller published its commands, and what it says of its ticks.

Run as `python -m mbrl_ros.nodes.loop_observer ROBOT OUTPUT`, a process of its own so that what it
does delays nobody. It keeps messages as bytes; only when its standard input closes does it read
them, write OUTPUT (JSON) and end.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import sys
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
import rclpy
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions

from mbrl_ros.core.robot import load_robot
from mbrl_ros.nodes.messages import message_class
from mbrl_ros.nodes.receiver import Apart, Receiver

OBSERVING_QOS = QoSProfile(depth=10_000)
TICK_TOPIC = 'mpc_controller/tick'


class LoopObserver:
    """
    Keeps the times of commands and ticks.

    The time of a message is its source timestamp: the publisher's own system clock at the write,
    so that nothing on the way to this process counts. A command of several topics is complete
    with its last one, and the times are of that.

    Parameters
    ----------
    robot : str
        Robot spec: a shipped name or a .yaml path.

    """

    def __init__(self, robot: str) -> None:
        self.node = rclpy.create_node('loop_observer')
        self._commands_ns: list[int] = []
        self._ticks: list[tuple[int, bytes]] = []
        topic, kind = list(load_robot(robot).action_topics().items())[-1]
        apart = Apart()
        self._receiver = Receiver(self.node, [
            self.node.create_subscription(kind, topic, callback, OBSERVING_QOS, raw=True,
                                          callback_group=apart)
            for kind, topic, callback in (
                (message_class(kind), topic, self._on_command),
                (DiagnosticStatus, TICK_TOPIC, self._on_tick))], sys.stderr.write)

    def close(self) -> None:
        """Observe no more."""
        self._receiver.close()
        self.node.destroy_node()

    def write(self, path: Path) -> None:
        """Write `commands_ns`, and `ticks`: the values of each and `sent_ns`."""
        ticks = []
        for sent_ns, content in self._ticks:
            message = deserialize_message(content, DiagnosticStatus)
            ticks.append({item.key: item.value for item in message.values}
                         | {'sent_ns': sent_ns, 'reason': message.message})
        path.write_text(json.dumps({'commands_ns': self._commands_ns, 'ticks': ticks}))

    def _on_command(self, _content: Any, info: Any) -> None:
        self._commands_ns.append(info['source_timestamp'])

    def _on_tick(self, content: Any, info: Any) -> None:
        if not self._ticks:
            print('ticking', flush=True)
        self._ticks.append((info['source_timestamp'], content))


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Observe until standard input closes."""
    robot, output = arguments
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    observer = LoopObserver(robot)
    print('observing', flush=True)
    sys.stdin.read()
    observer.close()
    observer.write(Path(output))
    rclpy.shutdown()


if __name__ == '__main__':
    main()
