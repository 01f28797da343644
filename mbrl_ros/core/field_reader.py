"""The fields of one topic, message by message: what no single message says by itself."""

from collections.abc import Sequence
import math
from typing import Any

from mbrl_ros.core.errors import ObservationError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import MessageField, ObservationField

_TURN = 2.0 * math.pi


class FieldReader:
    """
    Reads the fields of one topic from its messages, in the order they arrive.

    Angles of quaternions are unwrapped: each is the one nearest to that of the message before, so
    that neighbours can be interpolated and subtracted. A velocity with `when_missing: derive` that
    a message leaves out, or reports as not a number, is the slope of its joint's position since
    the message before. Training and control read through this, and see the same numbers.

    Parameters
    ----------
    fields : sequence of MessageField, length F
        Fields of one topic, in the order of the robot spec.
    longest_gap_s : float
        Silence [s] over which no slope is taken: the joint may have moved there and back.

    """

    def __init__(self, fields: Sequence[MessageField], longest_gap_s: float = math.inf) -> None:
        self._paths = [MessagePath.parse(field.path) for field in fields]
        self._positions = {
            index: MessagePath.parse(f'position[{path.key}]')
            for index, (field, path) in enumerate(zip(fields, self._paths, strict=True))
            if isinstance(field, ObservationField) and field.when_missing == 'derive'}
        self._longest_gap_s = longest_gap_s
        self._angles: dict[int, float] = {}
        # Of each derived field: stamp, position, and the slope that was found there.
        self._last: dict[int, tuple[int, float, float]] = {}

    def forget(self) -> None:
        """Begin anew, as at the start of an episode."""
        self._angles.clear()
        self._last.clear()

    def read(self, message: Any, stamp_ns: int) -> list[float]:
        """
        Read the numbers of one message.

        Parameters
        ----------
        message : object
            A message of rclpy or rosbags.
        stamp_ns : int
            When it was measured.

        Returns
        -------
        list of float, length F
            Not a number where the message says so, and for a slope that is not known yet.

        Raises
        ------
        ObservationError
            If the message lacks a field, an index or a joint.

        """
        return [self._read(index, path, message, stamp_ns)
                for index, path in enumerate(self._paths)]

    def _read(self, index: int, path: MessagePath, message: Any, stamp_ns: int) -> float:
        if index in self._positions:
            return self._velocity(index, path, message, stamp_ns)
        value = path.read(message)
        if path.is_angle and math.isfinite(value):
            value += _TURN * round((self._angles.get(index, value) - value) / _TURN)
            self._angles[index] = value
        return value

    def _velocity(self, index: int, path: MessagePath, message: Any, stamp_ns: int) -> float:
        position = self._positions[index].read(message)
        last_ns, last, slope = self._last.get(index, (stamp_ns, math.nan, math.nan))
        elapsed_s = (stamp_ns - last_ns) * 1e-9
        # A message that comes twice says nothing new; one from before the last, or after too
        # long, nothing at all.
        if elapsed_s != 0.0:
            is_near = 0.0 < elapsed_s <= self._longest_gap_s
            slope = (position - last) / elapsed_s if is_near else math.nan
        self._last[index] = (stamp_ns, position, slope)
        try:
            reported = path.read(message)
        except ObservationError:
            if len(getattr(message, path.attributes[0], (0.0,))):
                raise  # there are velocities, but not this one
            reported = math.nan
        return reported if math.isfinite(reported) else slope
