"""What comes in of a robot's topics between two marks or jumps of the clock."""

from collections.abc import Sequence
import math

from mbrl_ros.core.field_reader import FieldReader
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.losses import Losses
from mbrl_ros.data.resample import Episode, fields_by_topic, FOREVER_NS, Resampler
from mbrl_ros.data.samples import SampleBuffer

# Messages of several topics may be recorded this much out of the order of their stamps.
LATE_NS = 1_000_000_000
FLUSH_MESSAGES = 10_000


def field_readers(robot: RobotSpec) -> tuple[dict[str, FieldReader], ...]:
    """Return new readers of the topics of observations, commands and labels."""
    return tuple({topic: FieldReader(fields, robot.stale_after_s.get(topic, math.inf))
                  for topic, fields in fields_by_topic(role).items()}
                 for role in (robot.observation, robot.action, robot.labels))


class Intake:
    """
    Puts the messages of one segment of a bag into the order of their stamps.

    Within a topic, stamps may be out of order by up to a control period: by more, the clock was
    set back, and another segment begins. A message stamped more than a second before another that
    was recorded earlier is dropped and counted, so that no topic has to be waited for.

    Parameters
    ----------
    robot : RobotSpec
        Says which topics, and where in their messages.
    source : str
        Bag and, where marked, episode.
    losses : Losses
        What is dropped is added to it.
    flush_messages : int
        Messages that are buffered; it changes no number.
    before : Intake, optional
        The segment whose clock was set back.

    """

    def __init__(self, robot: RobotSpec, source: str, losses: Losses,
                 flush_messages: int = FLUSH_MESSAGES, before: 'Intake | None' = None) -> None:
        self.source = source
        self._dt_ns, self._losses, self._flush_messages = robot.dt_ns, losses, flush_messages
        self._roles = tuple({topic: SampleBuffer(reader) for topic, reader in role.items()}
                            for role in field_readers(robot))
        self._buffers = {topic: [role[topic] for role in self._roles if topic in role]
                         for role in self._roles for topic in role}
        self._resampler = Resampler(robot, source, losses)
        self._num_buffered = 0
        self._newest_ns = -FOREVER_NS
        self._newest_of: dict[str, int] = {}
        self._set_back_ns = None if before is None else before._newest_ns
        self._first_topic = ''

    def jumps_back(self, topic: str, stamp_ns: int) -> bool:
        """Return whether the clock must have been set back before this message."""
        return stamp_ns < self._newest_of.get(topic, stamp_ns) - self._dt_ns

    def add(self, topic: str, stamp_ns: int, row: Sequence[float]) -> None:
        """Take what the next message of a topic says: the rows of its readers, joined."""
        self._first_topic = self._first_topic or topic
        if stamp_ns < self._newest_ns - LATE_NS or self._is_left_over(topic, stamp_ns):
            self._losses.late[topic] = self._losses.late.get(topic, 0) + 1
            return
        self._newest_of[topic] = max(stamp_ns, self._newest_of.get(topic, stamp_ns))
        self._newest_ns = max(stamp_ns, self._newest_ns)
        for buffer in self._buffers[topic]:
            buffer.add(stamp_ns, row[:buffer.reader.num_columns])
            row = row[buffer.reader.num_columns:]
        self._num_buffered += 1
        if self._num_buffered >= self._flush_messages:
            self._flush(self._newest_ns - LATE_NS)

    def finish(self) -> list[Episode]:
        """Return the episodes; nothing more can come in."""
        self._flush(FOREVER_NS)
        return self._resampler.episodes

    def _is_left_over(self, topic: str, stamp_ns: int) -> bool:
        """Whether a message was stamped before the clock was set back, and came after that."""
        return self._set_back_ns is not None and topic != self._first_topic \
            and self._newest_ns < self._set_back_ns - 2 * LATE_NS \
            and abs(stamp_ns - self._set_back_ns) <= LATE_NS

    def _flush(self, closed_ns: int) -> None:
        observed, commands, labels = ({topic: buffer.take(closed_ns)
                                       for topic, buffer in role.items()} for role in self._roles)
        self._resampler.extend(observed, commands, labels, closed_ns)
        self._num_buffered = 0
