"""Counts and times of control ticks, for whoever watches."""

from collections import Counter, deque

import numpy as np

from mbrl_ros.control.tick import Tick

PLAN_TIMES = 1000


class Meter:
    """
    Adds up ticks.

    Attributes
    ----------
    counts : Counter
        `ticks`, `missed`, `rejected` candidates, commands `slowed` by the gate, and the ticks on
        each rung of the fallback ladder: `plan`, `shifted`, `held`, `safe`.
    last : Tick or None
        The newest one.
    safe_reason : str
        Why the last safe value was sent.

    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.last: Tick | None = None
        self.safe_reason = ''
        self._plan_ms: deque[float] = deque(maxlen=PLAN_TIMES)

    def add(self, tick: Tick) -> None:
        """Count one tick."""
        self.last = tick
        self.counts['ticks'] += 1
        self.counts['missed'] += tick.missed
        self.counts[tick.rung] += 1
        if tick.verdict.safe:
            self.safe_reason = tick.verdict.reason
        self.counts['slowed'] += bool(tick.verdict.reason) and not tick.verdict.safe
        self.counts['rejected'] += sum(plan.rejected for plan in tick.finished)
        self._plan_ms.extend(plan.plan_s * 1e3 for plan in tick.finished)

    def plan_ms(self) -> tuple[float, float, float] | None:
        """Return p50, p99 and maximum [ms] of the last thousand plans; None before the first."""
        if not self._plan_ms:
            return None
        times = np.array(self._plan_ms)
        p50, p99 = np.quantile(times, [0.5, 0.99])
        return float(p50), float(p99), float(times.max())
