"""The robot's end of the command topics: checks each message, keeps what has not acted yet."""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from mbrl_ros.core.errors import ObservationError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import ActionField

_DEPTH = 64


class CommandInbox:
    """
    Received commands by topic, oldest first. Not locked: the owner is.

    Parameters
    ----------
    fields : sequence of ActionField, length A
        From the robot spec.

    """

    def __init__(self, fields: Sequence[ActionField]) -> None:
        self._safe_value = np.array([field.safe_value for field in fields])
        self._fields: dict[str, list[tuple[int, ActionField, MessagePath]]] = defaultdict(list)
        for index, field in enumerate(fields):
            self._fields[field.topic].append((index, field, MessagePath.parse(field.path)))
        self._waiting: dict[str, deque[tuple[int, np.ndarray]]] = {
            topic: deque(maxlen=_DEPTH) for topic in self._fields}

    @property
    def topics(self) -> list[str]:
        """Return the command topics."""
        return list(self._fields)

    def indices(self, topic: str) -> list[int]:
        """Return which numbers of the action vector a topic carries."""
        return [index for index, _, _ in self._fields[topic]]

    def parse(self, topic: str, message: Any) -> np.ndarray:
        """
        Return the numbers of a command message, in the order of `indices(topic)`.

        Raises
        ------
        ObservationError
            If an array has another length than the spec asks for, or a number is not finite.

        """
        lengths: dict[tuple[str, ...], int] = {}
        for _, _, path in self._fields[topic]:
            if isinstance(path.key, int):
                lengths[path.attributes] = max(lengths.get(path.attributes, 0), path.key + 1)
        expected = ', '.join(f'{path.text} = {field.name} [{field.unit}]'
                             for _, field, path in self._fields[topic])
        for attributes, length in lengths.items():
            array = message
            for attribute in attributes:
                array = getattr(array, attribute)
            if len(array) != length:
                raise ObservationError(f'expected {length} numbers ({expected}), got {len(array)}')
        values = np.array([path.read(message) for _, _, path in self._fields[topic]])
        if not np.isfinite(values).all():
            raise ObservationError(f'expected finite numbers ({expected}), got {values.tolist()}')
        return values

    def put(self, topic: str, sent_ns: int, values: np.ndarray | None) -> None:
        """Keep a command; None stands for a refused one, in whose place the safe value acts."""
        self._waiting[topic].append(
            (sent_ns, self._safe_value[self.indices(topic)] if values is None else values))

    def clear(self) -> None:
        """Forget all commands."""
        for waiting in self._waiting.values():
            waiting.clear()

    def take_newest(self, topic: str, until_ns: int | None = None) -> np.ndarray | None:
        """Take the newest command sent up to a time, and drop all before it; None if none."""
        newest, waiting = None, self._waiting[topic]
        while waiting and (until_ns is None or waiting[0][0] <= until_ns):
            newest = waiting.popleft()[1]
        return newest

    def take_answer(self, since_ns: int) -> np.ndarray | None:
        """Take the first command since a time from every topic, shape (A,); None until all are."""
        for waiting in self._waiting.values():
            while waiting and waiting[0][0] < since_ns:
                waiting.popleft()
        if not all(self._waiting.values()):
            return None
        answer = self._safe_value.copy()
        for topic, waiting in self._waiting.items():
            answer[self.indices(topic)] = waiting.popleft()[1]
        return answer
