"""When to send a command: plans take now more, now less time, the robot wants a steady rate."""

from collections import deque
import math

import numpy as np

# A tick that is out of step by more than this share of a period starts a new rhythm.
OUT_OF_STEP = 0.25
# Share of an error that a tick corrects: the rhythm follows the sensor's clock, not its jitter.
GAIN = 1.0 / 16.0
# After a silence of this many periods the rhythm begins anew.
LONGEST_SILENCE = 200
# A command is held until this share of all commands would be ready. The others leave as soon as
# they are, most of them less than a millisecond later: were all to wait until those are ready, the
# slowest commands of a minute would come another half of a millisecond later.
READY_SHARE = 0.98
# What follows a command is over before the next observation comes, this share of all times.
REST_SHARE = 0.9
# Commands that are looked at together, and how many such blocks are remembered. The hold is what
# their middle one needs: seconds in which all is slow do not delay the commands of the next.
BLOCK, NUM_BLOCKS = 100, 9


class Metronome:
    """
    Holds commands that are ready early, so that all leave at the same phase of the period.

    It follows the rhythm of the observations' arrivals, smoothed, and measures how long after its
    own arrival each command is ready. The hold is what most of them need; the others leave late,
    as soon as they are ready. It is cut where it would make the next tick begin late: on a machine
    that is too slow, that lateness would make the next hold longer, and so on. All times are
    steady times [s].

    Parameters
    ----------
    period_s : float
        Control period.
    longest_s : float
        No command is held longer than this after its observation arrived.

    """

    def __init__(self, period_s: float, longest_s: float) -> None:
        self._period_s, self._longest_s = period_s, longest_s
        self._beat_s = -math.inf
        self._ready_s: list[float] = []
        self._rest_s: list[float] = []
        self._blocks: deque[tuple[float, float]] = deque(maxlen=NUM_BLOCKS)
        self.hold_s = 0.0

    def arrive(self, arrived_s: float) -> None:
        """Take the time at which an observation arrived."""
        elapsed_s = arrived_s - self._beat_s
        if not elapsed_s < LONGEST_SILENCE * self._period_s:
            self._beat_s = arrived_s
            return
        beat_s = self._beat_s + self._period_s * max(1, round(elapsed_s / self._period_s))
        error_s = arrived_s - beat_s
        is_out = abs(error_s) > OUT_OF_STEP * self._period_s
        self._beat_s = arrived_s if is_out else beat_s + GAIN * error_s

    def next_s(self) -> float:
        """Return when the next observation is to arrive, after the one that was taken last."""
        return self._beat_s + self._period_s

    def leave_s(self, arrived_s: float, now_s: float) -> float:
        """
        Return when to send the command that is ready now.

        Parameters
        ----------
        arrived_s : float
            When the observation arrived that it answers; `arrive` was told.
        now_s : float
            The time now.

        """
        self._ready_s.append(now_s - arrived_s)
        return max(now_s, min(self._beat_s + self.hold_s, arrived_s + self._longest_s))

    def adapt(self, rest_s: float) -> None:
        """
        Set the hold anew after each block; takes a quarter of a millisecond then.

        Parameters
        ----------
        rest_s : float
            How long what followed the command took.

        """
        self._rest_s.append(rest_s)
        if len(self._rest_s) < BLOCK:
            return
        self._blocks.append((float(np.quantile(self._ready_s, READY_SHARE)),
                             float(np.quantile(self._rest_s, REST_SHARE))))
        self._ready_s.clear()
        self._rest_s.clear()
        ready_s, usual_rest_s = np.median(self._blocks, axis=0)
        self.hold_s = float(max(0.0, min(ready_s, self._period_s - usual_rest_s)))
