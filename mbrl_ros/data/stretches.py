"""Where an observed topic reported without a hole, found while its samples come in."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from mbrl_ros.core.robot import MessageField
from mbrl_ros.data.losses import Losses
from mbrl_ros.data.samples import Samples

# From these many first samples, or those of the first seconds, a topic's own period is taken.
SETTLING_SAMPLES = 1000
SETTLING_NS = 10 * 10**9


@dataclass
class Stretch:
    """Stamps [ns] of the first and the last sample; an open one may go on."""

    start_ns: int
    end_ns: int
    is_open: bool


class ObservedTopic:
    """
    Samples of an observed topic and the stretches in which it was neither silent nor not finite.

    Parameters
    ----------
    topic : str
        Name in the robot spec.
    fields : sequence of MessageField, length F
        Columns of its samples.
    dt_ns : int
        Control period.
    stale_after_s : float
        Age [s] at which an observation is stale.
    losses : Losses
        Gaps and samples that are not finite are added to it.

    """

    def __init__(self, topic: str, fields: list[MessageField], dt_ns: int, stale_after_s: float,
                 losses: Losses) -> None:
        self.topic, self.fields, self._losses = topic, fields, losses
        self._dt_ns, self._stale_ns = dt_ns, stale_after_s * 1e9
        self.samples = Samples.none(len(fields))
        self.stretches: deque[Stretch] = deque()
        self._gap_ns: float | None = None
        self._closed_ns = 0
        self._open: Stretch | None = None
        self._num_cut = 0  # samples that have been cut into stretches

    def extend(self, samples: Samples, closed_ns: int) -> None:
        """Take the samples stamped before `closed_ns`; all later ones are stamped from then on."""
        self._losses.count_samples(self.topic, self.fields, samples)
        self.samples += samples
        self._closed_ns = closed_ns
        if self._gap_ns is None:
            stamps = self.samples.stamps_ns
            if not len(stamps) or (len(stamps) < SETTLING_SAMPLES
                                   and closed_ns < stamps[0] + SETTLING_NS):
                return
            first = stamps[:SETTLING_SAMPLES]
            self._gap_ns = longest_gap_ns(first[first < stamps[0] + SETTLING_NS], self._dt_ns,
                                          self._stale_ns)
        self._cut(self._gap_ns)

    def head(self) -> Stretch | None:
        """Return the first stretch, none where it is not known yet."""
        if self._open is not None and self._gap_ns is not None \
                and self._closed_ns - self._open.end_ns > self._gap_ns:
            self._open.is_open = False
        return self.stretches[0] if self.stretches else None

    @property
    def earliest_ns(self) -> int:
        """Time before which no stretch of the future begins."""
        if self.stretches:
            return self.stretches[0].start_ns
        waiting = self.samples.stamps_ns[self._num_cut:]
        return int(waiting[0]) if len(waiting) else self._closed_ns

    def trim(self, needed_ns: int) -> None:
        """Forget what is not needed for times from `needed_ns` on."""
        while self.stretches and not self.stretches[0].is_open \
                and self.stretches[0].end_ns < needed_ns:
            self.stretches.popleft()
        if self._gap_ns is not None:
            self.samples = self.samples.since(needed_ns)
            self._num_cut = len(self.samples)

    def _cut(self, gap_ns: float) -> None:
        """Cut the new samples into stretches; the last one before them may go on."""
        is_first = self._num_cut == 0
        stamps = self.samples.stamps_ns[max(self._num_cut - 1, 0):]
        finite = np.isfinite(self.samples.values[max(self._num_cut - 1, 0):]).all(axis=1)
        self._num_cut = len(self.samples)
        silences = np.diff(stamps)
        breaks = finite[:-1] & finite[1:] & (silences > gap_ns)
        self._losses.count_gaps(self.topic, stamps[:-1][breaks], silences[breaks])
        begins = finite[1:] & (~finite[:-1] | breaks)
        ends = stamps[:-1][finite[:-1] & (~finite[1:] | breaks)]
        new = [Stretch(int(start), int(start), True) for start in np.append(
            stamps[:1][finite[:1] & is_first], stamps[1:][begins])]
        self.stretches.extend(new)
        known = ([self._open] if self._open else []) + new
        for stretch, end in zip(known, ends.tolist(), strict=False):
            stretch.end_ns, stretch.is_open = end, False
        self._open = known[-1] if len(known) > len(ends) else None
        if self._open:
            self._open.end_ns = int(stamps[-1])


def longest_gap_ns(stamps_ns: np.ndarray, dt_ns: int, stale_ns: float) -> float:
    """
    Return the silence [ns] after which a topic's episode is split.

    One and a half control periods, or of the topic's own if that is slower: where an observation
    is missing, a line between its neighbours would hide what the robot did in between, and a robot
    that stumbled may have shifted its whole grid. Never more than the topic's staleness limit.
    """
    usual = float(np.median(np.diff(stamps_ns))) if len(stamps_ns) > 1 else 0.0
    return min(1.5 * max(dt_ns, usual), stale_ns)
