"""The data logger: records the topics of a robot to a bag, and says so when nothing comes."""

from datetime import datetime
from functools import partial
from itertools import count
import json
import os
from pathlib import Path
import time
from typing import Any

from pydantic import Field
from rclpy.clock import Clock, ClockType
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock as ClockMessage
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from mbrl_ros.core.errors import BagError, SpecError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.data.bag_metadata import EPISODE_TOPIC
from mbrl_ros.data.bag_writer import BagWriter, TopicCounts
from mbrl_ros.nodes.clock_map import ClockMap
from mbrl_ros.nodes.diagnostics import Diagnostics, ERROR, OK, Report, REPORT_PERIOD_S, WARN
from mbrl_ros.nodes.lifecycle import ManagedNode, NodeParams, run
from mbrl_ros.nodes.messages import message_class, RELIABLE_QOS
from mbrl_ros.nodes.topic_tap import TopicTap

SILENT_AFTER_S = 2.0
WATCH_PERIOD_S = 0.1
# Longest wait for a /clock later than a message; while the simulation stands still none comes.
CLOCK_WAIT_S = 0.5


class LoggerParams(NodeParams):
    """Parameters of the data logger."""

    output: str = Field('bags', description='Folder that bags are created in')
    bag_name: str = Field('', description='Name of the bag; empty: date and time')
    record: bool = Field(False, description='Start to record when activated, without the service')
    topics: tuple[str, ...] = Field(
        ('mpc_controller/tick diagnostic_msgs/msg/DiagnosticStatus',
         'mpc_controller/plan trajectory_msgs/msg/JointTrajectory',
         'mpc_controller/decision std_msgs/msg/String'),
        description="Topics recorded beside those of the robot, each 'topic type'")


class DataLogger(ManagedNode):
    """Lifecycle node `data_logger`: taps on topics, a BagWriter while it records."""

    params: LoggerParams

    def __init__(self) -> None:
        super().__init__('data_logger', LoggerParams)
        self.writer: BagWriter | None = None

    def configure(self) -> None:
        """Tap the topics, so that discovery is over when recording starts."""
        spec = load_robot(self.params.robot)
        required = {**spec.observation_topics(), **spec.action_topics(), **spec.label_topics()}
        extra = dict(parse_topic(text) for text in self.params.topics if text.strip())
        for type_name in extra.values():
            message_class(type_name)
        self._clock_map = ClockMap()
        self._episode, self._has_failed = 0, False
        self._lost_at_start: dict[str, int] = {}
        self._recording_since_s = 0.0
        self._is_sim_time = self.get_parameter('use_sim_time').value
        # First of all subscriptions, so that the executor looks for a new /clock first.
        self._clock_taps = [TopicTap(self, '/clock', 'rosgraph_msgs/msg/Clock', self._on_clock,
                                      is_required=True)] if self._is_sim_time else []
        self._taps = [TopicTap(self, topic, type_name, self._on_message, topic in required)
                      for topic, type_name in {**extra, **required}.items()]
        self._marks = self.create_publisher(String, EPISODE_TOPIC, RELIABLE_QOS)
        self._record_services = [
            self.create_service(SetBool, '~/record', self._on_record),
            self.create_service(Trigger, '~/new_episode', self._on_new_episode)]
        self._diagnostics = Diagnostics(self, spec.name, {
            'recorder': self._report_recorder,
            **{tap.topic: partial(self._report_topic, tap) for tap in self._taps}})
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._regular = [
            self.create_timer(WATCH_PERIOD_S, self._on_watch, clock=steady),
            self.create_timer(REPORT_PERIOD_S, self._diagnostics.publish, clock=steady)]

    def activate(self) -> None:
        """Start to record, if that was asked for."""
        if self.params.record:
            self._start()

    def deactivate(self) -> None:
        """Close the bag, if one is open."""
        if self.writer is not None:
            self._stop()

    def cleanup(self) -> None:
        """Release topics and services."""
        for timer in self._regular:
            self.destroy_timer(timer)
        self._diagnostics.close(self.ending)
        for service in self._record_services:
            self.destroy_service(service)
        self.destroy_publisher(self._marks)
        for tap in (*self._clock_taps, *self._taps):
            tap.close()

    # Recording.

    def _start(self) -> Path:
        writer = BagWriter(self._new_folder(), os.environ.get('ROS_DISTRO', ''))
        try:
            for tap in self._taps:
                writer.add_topic(tap.topic, tap.type, tap.offered)
            writer.add_topic(self._marks.topic_name, 'std_msgs/msg/String')
        except BagError:
            writer.close()
            raise
        self._clock_map.flush()  # what was sent before the recording stays out of it
        self._lost_at_start = {tap.topic: tap.num_lost for tap in self._taps}
        self._recording_since_s = time.monotonic()
        self.writer, self._episode, self._has_failed = writer, 0, False
        self._mark('start')
        self.get_logger().info(f'recording to {writer.folder}')
        return writer.folder

    def _stop(self) -> BagWriter:
        assert self.writer is not None
        self._mark('end')
        self._note_lost()
        writer, self.writer = self.writer, None
        writer.close()
        written = sum(counts.written for counts in writer.counts().values())
        self.get_logger().info(f'recorded {written} messages to {writer.folder}')
        if writer.error:
            self.get_logger().error(f'{writer.folder}: the disk failed: {writer.error}')
        return writer

    def _new_folder(self) -> Path:
        parent = Path(self.params.output).expanduser()
        if self.params.bag_name:
            return parent / self.params.bag_name
        name = datetime.now().strftime('%Y%m%d-%H%M%S')
        names = (name if number == 0 else f'{name}-{number}' for number in count())
        return next(parent / name for name in names if not (parent / name).exists())

    def _mark(self, event: str) -> None:
        assert self.writer is not None
        message = String(data=json.dumps({'episode': self._episode, 'event': event}))
        # Messages sent before the mark come before it in the bag too: the mark splits there.
        self._clock_map.flush()
        now_ns = self._clock_map.now_ns if self._is_sim_time else time.time_ns()
        self.writer.write(self._marks.topic_name, serialize_message(message), now_ns, now_ns)
        self._marks.publish(message)

    def _note_lost(self) -> None:
        assert self.writer is not None
        for tap in self._taps:
            self.writer.note_lost(tap.topic, tap.num_lost - self._lost_at_start[tap.topic])
            self._lost_at_start[tap.topic] = tap.num_lost

    # Callbacks.

    def _on_clock(self, tap: TopicTap, raw: bytes, info: Any) -> None:
        clock = deserialize_message(raw, ClockMessage).clock
        self._clock_map.tick(info['source_timestamp'], clock.sec * 10**9 + clock.nanosec)

    def _on_message(self, tap: TopicTap, raw: bytes, info: Any) -> None:
        sent_ns = info['source_timestamp']
        if self.writer is None:
            return
        if not self._is_sim_time:
            self.writer.write(tap.topic, raw, info['received_timestamp'], sent_ns)
            return
        writer = self.writer
        self._clock_map.put(sent_ns, time.monotonic(), lambda clock_ns: writer.write(
            tap.topic, raw, self._clock_map.now_ns, clock_ns))

    def _on_watch(self) -> None:
        for tap in (*self._clock_taps, *self._taps):
            tap.match()
        now_s = time.monotonic()
        self._clock_map.flush(now_s - CLOCK_WAIT_S)
        if self.writer is None:
            return
        self._note_lost()
        for tap in self._taps:
            self.writer.add_topic(tap.topic, tap.type, tap.offered)
        for tap in (*self._clock_taps, *self._taps):
            silent_s = now_s - max(tap.last_message_s, self._recording_since_s)
            if tap.is_required and silent_s > SILENT_AFTER_S and not tap.is_silent:
                tap.is_silent = True
                self.get_logger().error(self._silence(tap))
            elif tap.is_silent and silent_s <= SILENT_AFTER_S:
                tap.is_silent = False
                self.get_logger().info(f'{tap.topic}: data again')
        if self.writer.error and not self._has_failed:
            self._has_failed = True
            self.get_logger().error(f'nothing more is recorded: {self.writer.error}')

    def _on_record(self, request: SetBool.Request, response: SetBool.Response
                   ) -> SetBool.Response:
        if request.data:
            if not self.is_active:
                response.message = 'the node is not active: activate it first'
            elif self.writer is not None:
                response.message = f'already recording to {self.writer.folder}'
            else:
                try:
                    response.message = str(self._start())
                    response.success = True
                except BagError as error:
                    response.message = str(error)
                    self.get_logger().error(f'cannot record: {error}')
        elif self.writer is None:
            response.message = 'not recording'
        else:
            writer = self._stop()
            response.success = not writer.error
            response.message = str(writer.folder) if not writer.error \
                else f'{writer.folder}: the disk failed: {writer.error}'
        return response

    def _on_new_episode(self, request: Trigger.Request, response: Trigger.Response
                        ) -> Trigger.Response:
        if self.writer is None:
            response.message = 'not recording: call ~/record first'
            return response
        self._mark('end')
        self._episode += 1
        self._mark('start')
        response.success, response.message = True, f'episode {self._episode}'
        return response

    # Diagnostics.

    def _silence(self, tap: TopicTap) -> str:
        why = 'no publisher' if not tap.num_publishers else f'{tap.num_publishers} publisher(s)'
        return f'no data on {tap.topic} for {SILENT_AFTER_S:g} s ({why})'

    def _report_recorder(self) -> Report:
        if self.writer is None:
            return OK, 'idle', {}
        total = TopicCounts()
        for counts in self.writer.counts().values():
            total.received += counts.received
            total.written += counts.written
            total.lost += counts.lost
        silent = [self._silence(tap) for tap in (*self._clock_taps, *self._taps) if tap.is_silent]
        level = ERROR if silent or self.writer.error else WARN if total.lost else OK
        text = self.writer.error or '; '.join(silent) or \
            (f'{total.lost} messages lost' if total.lost else 'recording')
        return level, text, {'bag': self.writer.folder, 'episode': self._episode, **vars(total)}

    def _report_topic(self, tap: TopicTap) -> Report:
        values = {'publishers': tap.num_publishers}
        if self.writer is None:
            return OK, 'idle', values
        counts = self.writer.counts()[tap.topic]
        values |= vars(counts)
        if tap.is_silent:
            return ERROR, self._silence(tap), values
        return (WARN, 'messages lost', values) if counts.lost else (OK, 'recording', values)


def parse_topic(text: str) -> tuple[str, str]:
    """
    Split an entry of the `topics` parameter.

    Raises
    ------
    SpecError
        If it is not a topic and a type.

    """
    parts = text.split()
    if len(parts) != 2 or parts[1].count('/') != 2:
        raise SpecError(f"topics: '{text}' is not 'topic type'. "
                        "Such as: 'imu sensor_msgs/msg/Imu'")
    return parts[0], parts[1]


def main() -> int:
    """Run the node as a process."""
    return run(DataLogger)


if __name__ == '__main__':
    raise SystemExit(main())
