"""
Address one number inside a ROS message: `position[slider]`, `data[0]`, `orientation.yaw`.

The same path reads an rclpy message and one deserialised by rosbags, so that what the controller
sees and what the trainer sees is the same number.
"""

from dataclasses import dataclass
from functools import cache
import math
import re
from typing import Any

from mbrl_ros.core.errors import ObservationError, SpecError

_PART = re.compile(r'([A-Za-z_]\w*)(?:\[([^\[\]]+)\])?')
_PATH = re.compile(rf'{_PART.pattern}(?:\.{_PART.pattern})*')
# Where a message that holds arrays by joint lists the names: JointState, then JointTrajectory.
NAME_LISTS = ('name', 'joint_names')
ANGLES = ('roll', 'pitch', 'yaw')

Key = int | str | None


@dataclass(frozen=True)
class MessagePath:
    """A parsed path: (attribute, key) parts; a key is the index or the name in brackets."""

    text: str
    parts: tuple[tuple[str, Key], ...]

    @classmethod
    @cache  # commands are built by paths, at control rate
    def parse(cls, text: str) -> 'MessagePath':
        """
        Parse a path.

        Raises
        ------
        SpecError
            If the text is not a path; the text shows the forms allowed.

        """
        if _PATH.fullmatch(text) is None:
            raise SpecError(f"'{text}' is not a message path. Allowed: 'field.field', "
                            "'field.array[0]', 'field.array[joint_name]', "
                            "'array[0].array[joint_name]', 'field.quaternion.yaw'")
        return cls(text, tuple(
            (match[1], int(match[2]) if match[2] and match[2].isdecimal() else match[2])
            for match in _PART.finditer(text)))

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the fields, from the message inwards."""
        return tuple(attribute for attribute, _ in self.parts)

    @property
    def key(self) -> Key:
        """Index or name at the end of the path; None where it ends in a field."""
        return self.parts[-1][1]

    @property
    def is_angle(self) -> bool:
        """Whether this is roll, pitch or yaw: an angle that a message wraps at +-pi."""
        attribute, key = self.parts[-1]
        return attribute in ANGLES and key is None

    def read(self, message: Any) -> float:
        """
        Read the number.

        A name in brackets is looked up in the message's own `name` or `joint_names`, so the order
        of joints in the message never matters. `roll`, `pitch` and `yaw` of a quaternion are its
        angles [rad] about x, then y, then z of the fixed frame (REP 103), wrapped at +-pi.

        Raises
        ------
        ObservationError
            If the message has no such attribute, index or name, or holds no number there.

        """
        value = self.find(message)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ObservationError(
                f"path '{self.text}': {type(value).__name__} is not a number") from None

    def find(self, message: Any) -> Any:
        """Return what is there, a number or not; see `read`."""
        value = message
        for attribute, key in self.parts:
            try:
                value = getattr(value, attribute)
            except AttributeError:
                if attribute in ANGLES and hasattr(value, 'w'):
                    return quaternion_angle(attribute, value)
                raise ObservationError(
                    f"path '{self.text}': {type(value).__name__} has no field '{attribute}'"
                ) from None
            if key is not None:
                value = self._item(message, value, key)
        return value

    def _item(self, message: Any, array: Any, key: int | str) -> Any:
        index = key
        if isinstance(index, str):
            lists = (getattr(message, name) for name in NAME_LISTS if hasattr(message, name))
            known = list(next(lists, ()))
            if index not in known:
                raise ObservationError(
                    f"path '{self.text}': no '{index}' in this message; it names {known}")
            index = known.index(index)
        if not hasattr(array, '__len__'):
            raise ObservationError(f"path '{self.text}': {type(array).__name__} is not an array")
        if index >= len(array):
            raise ObservationError(
                f"path '{self.text}': index {index} of an array of {len(array)}")
        return array[index]


def quaternion_angle(name: str, quaternion: Any) -> float:
    """Return roll, pitch or yaw [rad] of a quaternion; not a number if it is no rotation."""
    x, y, z, w = quaternion.x, quaternion.y, quaternion.z, quaternion.w
    square = x * x + y * y + z * z + w * w
    if not square > 0.0:  # all zero, as a driver without orientation sends it, or not a number
        return math.nan
    if name == 'roll':
        return math.atan2(2.0 * (w * x + y * z), w * w - x * x - y * y + z * z)
    if name == 'pitch':
        return math.asin(min(1.0, max(-1.0, 2.0 * (w * y - z * x) / square)))
    return math.atan2(2.0 * (w * z + x * y), w * w + x * x - y * y - z * z)
