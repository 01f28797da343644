"""A small /diagnostics updater: one status a concern."""

from collections.abc import Callable, Mapping
import re

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.duration import Duration
from rclpy.node import Node

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
Report = tuple[bytes, str, Mapping[str, object]]
ACK_TIMEOUT_S = 0.5
REPORT_PERIOD_S = 1.0  # from one report to the next


def status(name: str, hardware_id: str, report: Report) -> DiagnosticStatus:
    """Build a DiagnosticStatus from (level, message, values)."""
    level, message, values = report
    return DiagnosticStatus(
        level=level, name=name, message=message, hardware_id=hardware_id,
        values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()])


class Diagnostics:
    """
    Publishes the reports of a node on /diagnostics, and logs each problem as it begins.

    Parameters
    ----------
    node : Node
        Owner; its name starts each status name.
    hardware_id : str
        Name of the robot.
    reports : mapping of str to callable
        Concern to a function that returns (level, message, values).

    """

    def __init__(self, node: Node, hardware_id: str,
                 reports: Mapping[str, Callable[[], Report]]) -> None:
        self._node, self._hardware_id, self._reports = node, hardware_id, dict(reports)
        self._problems: dict[str, str] = {}
        # Node.create_publisher of a lifecycle node is a plain publisher: it reports in any state.
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)

    def publish(self) -> None:
        """Publish all reports; to be called every `REPORT_PERIOD_S`."""
        reports = {concern: report() for concern, report in self._reports.items()}
        self._send(reports)
        log = self._node.get_logger()
        for concern, (level, message, _) in reports.items():
            # The numbers change with every report; the problem is the same.
            problem = re.sub(r'[\d.]+', '', message) if level != OK else ''
            if problem and problem != self._problems.get(concern):
                if level == ERROR:
                    log.error(f'{concern}: {message}')
                else:  # rclpy takes one severity a line of code
                    log.warning(f'{concern}: {message}')
            self._problems[concern] = problem

    def close(self, reason: str) -> None:
        """Say a last time, of every concern, why nothing more is reported."""
        self._send(dict.fromkeys(self._reports, (DiagnosticStatus.STALE, reason, {})))
        self._publisher.wait_for_all_acked(Duration(seconds=ACK_TIMEOUT_S))
        self._node.destroy_publisher(self._publisher)

    def _send(self, reports: Mapping[str, Report]) -> None:
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        array.status = [status(f'{self._node.get_name()}: {concern}', self._hardware_id, report)
                        for concern, report in reports.items()]
        self._publisher.publish(array)


def _text(value: object) -> str:
    return f'{value:.6g}' if isinstance(value, float) else str(value)
