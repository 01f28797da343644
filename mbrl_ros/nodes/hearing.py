"""From the robot's messages to observations; and the same in rehearsal, so that it is quick."""

from collections.abc import Callable
from functools import partial
import time
from typing import Any

from rclpy.serialization import deserialize_message, serialize_message

from mbrl_ros.control.inbox import ObservationInbox
from mbrl_ros.core.errors import ObservationError
from mbrl_ros.core.field_reader import FieldReader
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.nodes.messages import stamp_ns

# Of a subscription: the message and its info.
Callback = Callable[[Any, Any], None]


class Hearing:
    """
    Reads the messages of each observation topic into an inbox.

    Parameters
    ----------
    robot : RobotSpec
        Topics and fields.
    inbox : ObservationInbox
        Where the numbers go.
    report : callable
        Takes what is wrong with a message.
    now_ns : callable, optional
        Simulated time; system time by default, because a node's clock takes a while to ask, in
        which the robot waits.

    Attributes
    ----------
    callbacks : dict of str to callable
        What takes the messages of each topic.
    last : tuple or None
        Message and info that were heard last on the topic that sets the pace.

    """

    def __init__(self, robot: RobotSpec, inbox: ObservationInbox, report: Callable[[str], object],
                 now_ns: Callable[[], int] | None = None) -> None:
        self._inbox, self._report, self._now_ns = inbox, report, now_ns
        self._pacer = robot.observation[0].topic
        self.callbacks: dict[str, Callback] = {
            topic: partial(self._hear, topic,
                           FieldReader([f for f in robot.observation if f.topic == topic],
                                       robot.stale_after_s[topic]))
            for topic in robot.observation_topics()}
        self.last: tuple[Any, Any] | None = None

    def _hear(self, topic: str, reader: FieldReader, message: Any, info: Any) -> None:
        heard_ns = time.time_ns()
        waited_s = (heard_ns - (info['received_timestamp'] or heard_ns)) * 1e-9
        now_ns = heard_ns if self._now_ns is None else self._now_ns()
        stamp = stamp_ns(message, now_ns)
        try:
            values = reader.read(message, stamp)
        except ObservationError as error:
            self._report(f'{topic}: {error}')
            self._inbox.refuse(topic, str(error), stamp, waited_s)
            return
        self._inbox.put(topic, values, stamp, (now_ns - stamp) * 1e-9, waited_s)
        if topic == self._pacer:
            self.last = message, info


class Rehearsal:
    """
    Hears the last message once more, into an inbox that nobody listens to.

    What has not run for some milliseconds is out of the processor's caches, and takes several
    times as long when it does: from its arrival to the plan a message took 0.5 ms, and takes 0.25
    where this ran a millisecond before (two virtual cores, 100 Hz).

    Parameters
    ----------
    robot : RobotSpec
        Topics and fields.
    hearing : Hearing
        Whose last message it is.

    """

    def __init__(self, robot: RobotSpec, hearing: Hearing) -> None:
        self._hearing, self._inbox = hearing, ObservationInbox(robot, lockstep=False)
        spare = Hearing(robot, self._inbox, lambda problem: None)
        self._hear = spare.callbacks[robot.observation[0].topic]

    def __call__(self) -> None:
        """Rehearse once; takes as long as the first of a while does."""
        if self._hearing.last is None:
            return
        message, info = self._hearing.last
        self._hear(deserialize_message(serialize_message(message), type(message)), info)
        self._inbox.due_in_s()
        self._inbox.take()
