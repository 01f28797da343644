"""When the simulated robot ticks, and which stamp each tick carries."""

import time


class TickGrid:
    """
    An absolute grid of control periods, so that neither stamps nor deadlines jitter or drift.

    Parameters
    ----------
    dt_ns : int
        Control period [ns].
    speed_factor : float
        Simulated seconds a second.
    simulated : bool
        Stamp in simulated time, from one period after zero (a stamp of zero means 'none' in ROS);
        otherwise in system time.

    """

    def __init__(self, dt_ns: int, speed_factor: float, simulated: bool) -> None:
        self._dt_ns, self._simulated = dt_ns, simulated
        self._period_s = dt_ns * 1e-9 / speed_factor
        self.stamp_ns = dt_ns if simulated else 0
        self.deadline_s = 0.0
        self.num_shifts = 0
        self.restart()

    def restart(self) -> None:
        """Let the next tick be due now, as after a pause; simulated time stood still meanwhile."""
        self.deadline_s = time.monotonic()
        if not self._simulated:
            self.stamp_ns = max(time.time_ns(), self.stamp_ns)

    def after(self, elapsed_ns: int) -> tuple[float, int]:
        """Return the (monotonic) time [s] and the stamp [ns] of a moment after the tick."""
        share = elapsed_ns / self._dt_ns
        return self.deadline_s + share * self._period_s, self.stamp_ns + elapsed_ns

    def advance(self) -> None:
        """Go on to the next tick."""
        self.stamp_ns += self._dt_ns
        self.deadline_s += self._period_s

    def skip(self, duration_s: float) -> None:
        """Leave a gap of whole periods in simulated time; system time leaves its own."""
        if self._simulated:
            self.stamp_ns += self._dt_ns * max(1, round(duration_s * 1e9 / self._dt_ns))

    def catch_up(self) -> None:
        """Shift the grid if the tick that is due is more than one period late."""
        late_s = time.monotonic() - self.deadline_s
        if late_s > self._period_s:
            self.num_shifts += 1
            self.deadline_s += late_s
            if not self._simulated:
                self.stamp_ns += round(late_s * 1e9)
