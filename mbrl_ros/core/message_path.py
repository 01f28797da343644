"""
Address one number inside a ROS message: `position[slider]`, `pose.pose.position.x`, `data[0]`.

The same path reads an rclpy message and one deserialised by rosbags, so that what the controller
sees and what the trainer sees is the same number.
"""

from dataclasses import dataclass
import re
from typing import Any

from mbrl_ros.core.errors import ObservationError, SpecError

_PATH = re.compile(r'([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\[([^\[\]]+)\])?')


@dataclass(frozen=True)
class MessagePath:
    """A parsed path: attributes, the last of which may carry an index or a name in brackets."""

    text: str
    attributes: tuple[str, ...]
    key: int | str | None

    @classmethod
    def parse(cls, text: str) -> 'MessagePath':
        """
        Parse a path.

        Raises
        ------
        SpecError
            If the text is not a path; the text shows the three forms allowed.

        """
        match = _PATH.fullmatch(text)
        if match is None:
            raise SpecError(f"'{text}' is not a message path. Allowed: 'field.field', "
                            "'field.array[0]', 'field.array[joint_name]'")
        key = match[2]
        return cls(text, tuple(match[1].split('.')),
                   int(key) if key is not None and key.isdecimal() else key)

    def read(self, message: Any) -> float:
        """
        Read the number.

        A name in brackets is looked up in the message's own `name` list, so the order of joints
        in the message never matters.

        Raises
        ------
        ObservationError
            If the message has no such attribute, index or name, or holds no number there.

        """
        value = message
        for attribute in self.attributes:
            try:
                value = getattr(value, attribute)
            except AttributeError:
                raise ObservationError(
                    f"path '{self.text}': {type(message).__name__} has no field '{attribute}'"
                ) from None
        if self.key is None:
            return self._number(value)
        index = self.key
        if isinstance(index, str):
            known = list(getattr(message, 'name', ()))
            if index not in known:
                raise ObservationError(
                    f"path '{self.text}': no '{index}' in this message; it names {known}")
            index = known.index(index)
        if not hasattr(value, '__len__'):
            raise ObservationError(f"path '{self.text}': {type(value).__name__} is not an array")
        if index >= len(value):
            raise ObservationError(
                f"path '{self.text}': index {index} of an array of {len(value)}")
        return self._number(value[index])

    def _number(self, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ObservationError(
                f"path '{self.text}': {type(value).__name__} is not a number") from None
