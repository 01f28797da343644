"""Several numbers of each message of a topic, faster than path by path."""

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Any

from mbrl_ros.core.message_path import ANGLES, MessagePath, NAME_LISTS, quaternion_angle

Walk = Callable[[Any], Any]
# What is looked up in the same place of a message: attributes, angles or items.
Place = tuple[tuple[str | int, ...], str]


class PathReader:
    """
    Reads the same paths from message after message of one type.

    Where a joint stands is looked up again only when the names in the message change.

    Parameters
    ----------
    paths : sequence of MessagePath, length F
        Any paths; the numbers are those that `MessagePath.read` finds.

    """

    def __init__(self, paths: Sequence[MessagePath]) -> None:
        self._paths = tuple(paths)
        self._is_named = any(isinstance(key, str) for path in paths for _, key in path.parts)
        self._names: list[str] = []
        self._names_of: Walk | None = None
        self._takes: list[tuple[Walk, Callable[[Any], Sequence[Any]]]] = []
        self._order: Callable[[Sequence[Any]], Sequence[Any]] | None = None

    def read(self, message: Any) -> list[float]:
        """
        Read the numbers of a message, length F.

        Raises
        ------
        ObservationError
            If the message lacks a field, an index or a joint; see `MessagePath.read`.

        """
        try:
            if self._order is None or (self._names_of is not None
                                       and self._names_of(message) != self._names):
                self._order = None
                self._compile(message)
            found: list[Any] = []
            for walk, take in self._takes:
                found += take(walk(message))
            return list(map(float, self._order(found)))  # type: ignore[misc]
        except (AttributeError, IndexError, TypeError, ValueError):
            # Path by path, for the number that only looked unusual or for the error in words.
            return [path.read(message) for path in self._paths]

    def _compile(self, message: Any) -> None:
        if self._is_named:
            self._names_of = attrgetter(*[n for n in NAME_LISTS if hasattr(message, n)][:1])
            self._names = list(self._names_of(message))
        places: dict[Place, list[tuple[int, Any]]] = {}
        for position, path in enumerate(self._paths):
            *steps, last = self._steps(path)
            kind = 'item' if isinstance(last, int) else 'attribute'
            if last in ANGLES and not hasattr(_walk(steps)(message), last):
                kind = 'angle'
            places.setdefault((tuple(steps), kind), []).append((position, last))
        self._takes = [(_walk(steps), _take(kind, [last for _, last in wanted]))
                       for (steps, kind), wanted in places.items()]
        found = [position for wanted in places.values() for position, _ in wanted]
        order = [found.index(position) for position in range(len(found))]
        self._order = list if order == found or len(order) == 1 else itemgetter(*order)

    def _steps(self, path: MessagePath) -> Iterator[str | int]:
        for attribute, key in path.parts:
            yield attribute
            if key is not None:
                yield self._names.index(key) if isinstance(key, str) else key


def _walk(steps: Sequence[str | int]) -> Walk:
    """Return what follows the steps, attributes and indices, from a message inwards."""
    if all(isinstance(step, str) for step in steps):
        return attrgetter('.'.join(map(str, steps))) if steps else lambda message: message

    def walk(value: Any) -> Any:
        for step in steps:
            value = getattr(value, step) if isinstance(step, str) else value[step]
        return value
    return walk


def _take(kind: str, wanted: Sequence[Any]) -> Callable[[Any], Sequence[Any]]:
    """Return what takes the wanted items, attributes or angles of one object."""
    if kind == 'angle':
        return lambda value: [quaternion_angle(name, value) for name in wanted]
    getter: Callable[[Any], Any] = itemgetter(*wanted) if kind == 'item' else attrgetter(*wanted)
    return getter if len(wanted) > 1 else lambda value: (getter(value),)
