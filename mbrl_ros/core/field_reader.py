"""The fields of one topic, message by message: what no single message says by itself."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.path_reader import PathReader
from mbrl_ros.core.robot import MessageField, ObservationField

_TURN = 2.0 * math.pi


class FieldReader:
    """
    Reads the fields of one topic from its messages.

    Angles of quaternions are unwrapped: each is the one nearest to that of the message before, so
    that neighbours can be interpolated and subtracted. A velocity with `when_missing: derive` that
    a message leaves out, or reports as not a number, is the slope of its joint's position since
    the message before.

    Control reads message by message, in the order they arrive (`read`); training takes what each
    message says (`row`) and joins many at once, in the order of their stamps (`join`). Both see
    the same numbers.

    Parameters
    ----------
    fields : sequence of MessageField, length F
        Fields of one topic, in the order of the robot spec.
    longest_gap_s : float
        Silence [s] over which no slope is taken: the joint may have moved there and back.

    """

    def __init__(self, fields: Sequence[MessageField], longest_gap_s: float = math.inf) -> None:
        paths = [MessagePath.parse(field.path) for field in fields]
        self._derived = [index for index, field in enumerate(fields)
                         if isinstance(field, ObservationField) and field.when_missing == 'derive']
        self._angles = [index for index, path in enumerate(paths) if path.is_angle]
        self._longest_gap_s = longest_gap_s
        positions = [MessagePath.parse(f'position[{paths[index].key}]') for index in self._derived]
        reported = [index for index in range(len(paths)) if index not in self._derived]
        self._always = PathReader([*(paths[index] for index in reported), *positions])
        self._maybe = PathReader([paths[index] for index in self._derived])
        # Where each column of a row is found: fields in the order of the spec, then positions.
        places = [*reported, *range(len(paths), len(paths) + len(positions)), *self._derived]
        self._places = [places.index(column) for column in range(len(places))]
        self.num_fields, self.num_columns = len(paths), len(places)
        self.forget()

    def forget(self) -> None:
        """Begin anew, as at the start of an episode."""
        # Of each angle: as last reported, and the turns that unwrap it.
        self._turns: dict[int, tuple[float, float]] = {}
        # Of the last message: stamp, positions to derive from, and the slopes found there.
        self._last: tuple[int, list[float], list[float]] | None = None

    def row(self, message: Any) -> list[float]:
        """
        Return what a message says by itself: input of `join`.

        Parameters
        ----------
        message : object
            A message of rclpy or rosbags.

        Returns
        -------
        list of float
            The fields as reported, then the positions that velocities are derived from.

        Raises
        ------
        ObservationError
            If the message lacks a field, an index or a joint.

        """
        values = self._always.read(message)
        if not self._derived:
            return values
        # An empty list leaves all velocities out; one without just this joint is an error.
        values += self._maybe.read(message) if len(getattr(message, 'velocity', (0.0,))) \
            else [math.nan] * len(self._derived)
        return [values[place] for place in self._places]

    def read(self, message: Any, stamp_ns: int) -> list[float]:
        """
        Read the numbers of the next message.

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
        row = self.row(message)
        for index in self._angles:
            value = row[index]
            if math.isfinite(value):
                before, turns = self._turns.get(index, (value, 0.0))
                turns += round((before - value) / _TURN)
                self._turns[index] = (value, turns)
                row[index] = value + _TURN * turns
        if self._derived:
            self._derive(row, stamp_ns)
        return row[:self.num_fields]

    def _derive(self, row: list[float], stamp_ns: int) -> None:
        positions = row[self.num_fields:]
        unknown = [math.nan] * len(positions)
        last_ns, before, slopes = self._last or (stamp_ns, positions, unknown)
        elapsed_s = (stamp_ns - last_ns) * 1e-9
        # A message that comes twice says nothing new; one from before the last, or after too
        # long, nothing at all.
        if elapsed_s != 0.0:
            is_near = 0.0 < elapsed_s <= self._longest_gap_s
            slopes = [(now - then) / elapsed_s for now, then in zip(positions, before, strict=True)
                      ] if is_near else unknown
        self._last = (stamp_ns, positions, slopes)
        for index, slope in zip(self._derived, slopes, strict=True):
            if not math.isfinite(row[index]):
                row[index] = slope

    def join(self, stamps_ns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """
        Return the numbers of many messages, as `read` would one after the other.

        Parameters
        ----------
        stamps_ns : ndarray of int64, shape (N,)
            Strictly increasing, and later than those of the call before.
        rows : ndarray of shape (N, num_columns)
            What `row` returned of each.

        Returns
        -------
        ndarray of shape (N, F)
            A new array.

        """
        values = rows[:, :self.num_fields].copy()
        for index in self._angles:
            known = np.isfinite(values[:, index])
            angles = values[known, index]
            if len(angles):
                before, turns = self._turns.get(index, (float(angles[0]), 0.0))
                steps = np.rint((np.append(before, angles[:-1]) - angles) / _TURN)
                all_turns = turns + np.cumsum(steps)
                self._turns[index] = (float(angles[-1]), float(all_turns[-1]))
                values[known, index] = angles + _TURN * all_turns
        if self._derived and len(rows):
            self._derive_all(stamps_ns, rows[:, self.num_fields:], values)
        return values

    def _derive_all(self, stamps_ns: np.ndarray, positions: np.ndarray, values: np.ndarray
                    ) -> None:
        last_ns, before, _ = self._last or (int(stamps_ns[0]), positions[0].tolist(), [])
        elapsed_s = np.diff(stamps_ns, prepend=last_ns) * 1e-9
        is_near = (elapsed_s > 0.0) & (elapsed_s <= self._longest_gap_s)
        slopes = np.full_like(positions, math.nan)
        changes = np.diff(positions, axis=0, prepend=[before])
        slopes[is_near] = changes[is_near] / elapsed_s[is_near, None]
        self._last = (int(stamps_ns[-1]), positions[-1].tolist(), slopes[-1].tolist())
        for column, index in enumerate(self._derived):
            missing = ~np.isfinite(values[:, index])
            values[missing, index] = slopes[missing, column]
