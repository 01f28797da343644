"""
The numbers of one topic's messages, straight from their bytes wherever that is safe.

Most messages of a topic differ in nothing but the stamp and the contents of their arrays. Where
all other bytes (lengths, names, flags) are those of a message that was deserialised before, every
number is where it was in that one, and only the wanted ones are taken out.
"""

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from operator import itemgetter
from struct import Struct
from typing import Any

import numpy as np
from rosbags.typesys.store import Typestore

from mbrl_ros.core.errors import ObservationError
from mbrl_ros.core.field_reader import FieldReader
from mbrl_ros.data.bag_reader import header_stamp_ns

# Of a message: header stamp [ns], zero without one, and the rows of all readers, joined.
Reading = tuple[int, Sequence[float]]
# Of a number: its offset in the message and its format.
Place = tuple[int, str]
COST, GAIN = 200, 10  # of another layout; of a message that has the one known. A miss gains one
HEADER = 'std_msgs/msg/Header'
_CODES = {'f8': 'd', 'f4': 'f', 'i8': 'q', 'i4': 'i', 'i2': 'h', 'i1': 'b', 'u8': 'Q', 'u4': 'I',
          'u2': 'H', 'u1': 'B'}
_STAMP = Struct('<iI')
_STAMP_BYTES = slice(4, 12)  # behind the encapsulation, where a header is the first field


class TopicReader:
    """
    Reads the messages of one topic, in any order.

    Parameters
    ----------
    typestore : Typestore
        Knows the type.
    type_name : str
        Of the messages.
    readers : sequence of FieldReader
        What to read from each.

    """

    def __init__(self, typestore: Typestore, type_name: str, readers: Sequence[FieldReader]
                 ) -> None:
        self._typestore, self._type_name, self._readers = typestore, type_name, readers
        first = typestore.fielddefs[type_name][1][:1]
        self._has_header = bool(first) and first[0][0] == 'header' and first[0][1][1] == HEADER
        self._layout: _Layout | None = None
        # To find a layout takes as long as a dozen messages: it must have been worth it.
        self._credit = COST

    def read(self, raw: bytes) -> Reading:
        """
        Read one message in CDR.

        Raises
        ------
        ObservationError
            If it lacks a field, an index or a joint.
        SerdeError
            If it is no message of the type.

        """
        if self._layout is not None:
            found = self._layout.read(raw)
            if found is not None:
                if self._credit < COST:
                    self._credit += GAIN
                return found
        message: Any = self._typestore.deserialize_cdr(raw, self._type_name)
        reading = header_stamp_ns(message), self._rows(message)
        self._credit += 1
        if self._credit >= COST:
            self._credit = 0
            self._layout = self._find_layout(raw)
        return reading

    def _rows(self, message: Any) -> list[float]:
        return [number for reader in self._readers for number in reader.row(message)]

    def _find_layout(self, raw: bytes) -> '_Layout | None':
        """Find where the numbers of a message are, by marking every item of its arrays."""
        view = memoryview(raw)
        message: Any = self._typestore.deserialize_cdr(view, self._type_name)
        constants = self._rows(message)
        start = np.frombuffer(view, np.uint8).__array_interface__['data'][0]
        pieces, marks, count = [], [], 0
        for owner, name, found in list(_arrays(message)):
            offset = found.__array_interface__['data'][0] - start
            code = _CODES.get(found.dtype.str[1:])
            if code is None or not 0 <= offset <= len(raw) - found.nbytes or not found.nbytes:
                continue  # not a piece of the message: its bytes are compared like any other
            pieces.append((count, offset, found.nbytes, found.itemsize, code))
            marks.append((owner, name, np.arange(count, count + found.size, dtype=np.float64)))
            setattr(*marks[-1])
            count += found.size
        try:
            marked = self._rows(message)
        except ObservationError:
            return None
        for owner, name, mark in marks:
            setattr(owner, name, mark + count)
        places: list[Place | None] = []
        for number, moved in zip(marked, self._rows(message), strict=True):
            if number == moved or moved != number + count:  # not of an array, or not a number
                places.append(None)
                continue
            first, offset, _, size, code = pieces[bisect(pieces, number, key=itemgetter(0)) - 1]
            places.append((offset + int(number - first) * size, code))
        if not any(places):
            return None
        spans = [(offset, offset + size) for _, offset, size, _, _ in pieces]
        if self._has_header:
            spans.append((_STAMP_BYTES.start, _STAMP_BYTES.stop))
        return _Layout(raw, sorted(spans), places, constants,
                       None if self._has_header else header_stamp_ns(message))


class _Layout:
    """A message, which of its bytes are numbers in arrays, and which of these are wanted."""

    def __init__(self, raw: bytes, spans: Sequence[tuple[int, int]],
                 places: Sequence[Place | None], constants: Sequence[float],
                 stamp_ns: int | None) -> None:
        self._size, self._stamp_ns = len(raw), stamp_ns
        starts = [0, *(stop for _, stop in spans)]
        stops = [*(start for start, _ in spans), len(raw)]
        self._fixed = [(slice(start, stop), raw[start:stop])
                       for start, stop in zip(starts, stops, strict=True) if start < stop]
        wanted = sorted({place for place in places if place is not None})
        layout, position = '<', 0
        for offset, code in wanted:
            layout += f'{offset - position}x{code}'
            position = offset + Struct(f'<{code}').size
        self._unpack = Struct(layout).unpack_from
        columns = [wanted.index(place) if place is not None else None for place in places]
        self._pick: Callable[[Sequence[float]], Sequence[float]] | None = None
        if columns != list(range(len(wanted))):
            self._pick = lambda numbers: [
                constant if column is None else numbers[column]
                for column, constant in zip(columns, constants, strict=True)]

    def read(self, raw: bytes) -> Reading | None:
        """Return what a message says, None if it is of another layout."""
        if len(raw) != self._size:
            return None
        for where, same in self._fixed:
            if raw[where] != same:
                return None
        stamp_ns = self._stamp_ns
        if stamp_ns is None:
            seconds, nanoseconds = _STAMP.unpack(raw[_STAMP_BYTES])
            stamp_ns = seconds * 1_000_000_000 + nanoseconds
        numbers = self._unpack(raw)
        return stamp_ns, numbers if self._pick is None else self._pick(numbers)


def _arrays(value: Any) -> Iterator[tuple[Any, str, np.ndarray]]:
    """Yield the arrays of numbers in a message: what holds each, its field, itself."""
    if isinstance(value, list):
        for item in value:
            yield from _arrays(item)
    elif is_dataclass(value):
        for field in fields(value):
            inner = getattr(value, field.name)
            if isinstance(inner, np.ndarray):
                yield value, field.name, inner
            else:
                yield from _arrays(inner)
