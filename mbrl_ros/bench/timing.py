"""Times of things that are to be compared: taken in turns, told by their percentiles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import time

import numpy as np

LINEAR = (0.85, 1.15)
WARM_UPS = 3


@dataclass(frozen=True)
class Summary:
    """Percentiles and maximum of one thing's times [s]; with few turns p99 is near the max."""

    p50_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, times_s: np.ndarray) -> 'Summary':
        """Summarise times [s], shape (turns,)."""
        p50, p99 = np.quantile(times_s, [0.5, 0.99])
        return cls(float(p50), float(p99), float(times_s.max()))


def in_turns(calls: Sequence[Callable[[], object]], turns: int, warm_ups: int = WARM_UPS,
             progress: Callable[[], None] = lambda: None) -> np.ndarray:
    """
    Time callables one after the other, round after round.

    What a busy machine takes away, it takes from all of them alike, so their ratios hold even
    where their times do not.

    Parameters
    ----------
    calls : sequence of callable
        What to time.
    turns : int
        Rounds that count.
    warm_ups : int
        Rounds before, which do not.
    progress : callable
        Called after every call.

    Returns
    -------
    array, shape (len(calls), turns)
        Times [s].

    """
    times_s = np.empty((len(calls), turns))
    for turn in range(-warm_ups, turns):
        for index, call in enumerate(calls):
            began = time.perf_counter()
            call()
            spent = time.perf_counter() - began
            if turn >= 0:
                times_s[index, turn] = spent
            progress()
    return times_s


def ratio(slow_s: np.ndarray, fast_s: np.ndarray) -> float:
    """Return how many times faster the second is: the ratio of the medians."""
    return float(np.median(slow_s) / np.median(fast_s))


def growth_exponent(sizes: Sequence[float], times_s: Sequence[float]) -> float:
    """Return the least-squares slope of log time over log size: 1 is linear, 0 constant."""
    return float(np.polyfit(np.log(sizes), np.log(times_s), 1)[0])


def is_linear(exponent: float) -> bool:
    """Return whether a growth exponent counts as linear."""
    low, high = LINEAR
    return low <= exponent <= high
