"""Stamped numbers of a topic: collected, put into order, held and interpolated."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct

import numpy as np

from mbrl_ros.core.field_reader import FieldReader

SNAP_NS = 1000  # a sample this close to a grid time is taken as it is


@dataclass(frozen=True)
class Samples:
    """Numbers of one topic: stamps (N,) [ns], strictly increasing; values (N, F), as recorded."""

    stamps_ns: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def __add__(self, later: 'Samples') -> 'Samples':
        return Samples(np.concatenate([self.stamps_ns, later.stamps_ns]),
                       np.concatenate([self.values, later.values]))

    def since(self, time_ns: int) -> 'Samples':
        """Return the last sample at or before a time, and all after it."""
        first = max(int(np.searchsorted(self.stamps_ns, time_ns, side='right')) - 1, 0)
        return Samples(self.stamps_ns[first:].copy(), self.values[first:].copy())

    @classmethod
    def none(cls, num_fields: int) -> 'Samples':
        """Return no samples."""
        return cls(np.empty(0, np.int64), np.empty((0, num_fields)))


@dataclass
class SampleBuffer:
    """
    Rows of one topic in the order of the bag, until they can be put into that of their stamps.

    A row takes 8 bytes a number: bags hold millions.
    """

    reader: FieldReader
    _packed: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        columns = self.reader.num_columns
        self._pack = Struct(f'=q{columns}d').pack
        self._type = np.dtype([('stamp', np.int64), ('row', np.float64, (columns,))])

    def add(self, stamp_ns: int, row: Sequence[float]) -> None:
        """Take the row that the reader found in a message."""
        self._packed += self._pack(stamp_ns, *row)

    def take(self, before_ns: int) -> Samples:
        """Return what is stamped before a time, joined; of equal stamps the last row counts."""
        rows = np.frombuffer(self._packed, self._type)
        ready = rows['stamp'] < before_ns
        self._packed = bytearray(rows[~ready].tobytes())
        rows = rows[ready]
        rows = rows[np.argsort(rows['stamp'], kind='stable')]
        stamps = rows['stamp']
        last = np.append(stamps[1:] != stamps[:-1], np.ones(min(len(stamps), 1), bool))
        return Samples(stamps[last].copy(), self.reader.join(stamps[last], rows['row'][last]))


def interpolate(samples: Samples, grid_ns: np.ndarray) -> np.ndarray:
    """Return values (T, F) at grid times inside the samples, linear between neighbours."""
    # Relative to the grid's start: float64 cannot tell nanoseconds since 1970 apart.
    origin = grid_ns[0]
    times = (samples.stamps_ns - origin).astype(np.float64)
    wanted = (grid_ns - origin).astype(np.float64)
    values = np.stack([np.interp(wanted, times, column) for column in samples.values.T], axis=1)
    right = np.clip(np.searchsorted(samples.stamps_ns, grid_ns), 0, len(times) - 1)
    left = np.maximum(right - 1, 0)
    for index in (left, right):
        exact = np.abs(samples.stamps_ns[index] - grid_ns) <= SNAP_NS
        values[exact] = samples.values[index[exact]]
    return values


def hold(samples: Samples, grid_ns: np.ndarray) -> np.ndarray:
    """Return values (T, F) of the last sample stamped at or before each grid time, else NaN."""
    index = np.searchsorted(samples.stamps_ns, grid_ns, side='right') - 1
    values = np.full((len(grid_ns), samples.values.shape[1]), np.nan)
    values[index >= 0] = samples.values[index[index >= 0]]
    return values


def ages_ns(samples: Samples, grid_ns: np.ndarray) -> np.ndarray:
    """Return how old what is held is at each time, shape (T,), infinite without any."""
    index = np.searchsorted(samples.stamps_ns, grid_ns, side='right') - 1
    ages = np.full(len(grid_ns), np.inf)
    ages[index >= 0] = (grid_ns - np.append(samples.stamps_ns, 0)[index])[index >= 0]
    return ages
