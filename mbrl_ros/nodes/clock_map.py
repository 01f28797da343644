"""When a message was published, on the clock that /clock drives."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable

MAX_HISTORY = 4096


class ClockMap:
    """
    Gives each message the /clock value that was current when it was sent, not when it arrived.

    A message and the next /clock may arrive together, in any order; the source timestamps of both
    are of one system clock and tell which was sent first. So a message waits until a later /clock
    has come, then takes the value of the last one sent before it.
    """

    def __init__(self) -> None:
        self._sent_ns: deque[int] = deque(maxlen=MAX_HISTORY)
        self._clock_ns: deque[int] = deque(maxlen=MAX_HISTORY)
        self._waiting: deque[tuple[int, float, Callable[[int], None]]] = deque()

    @property
    def now_ns(self) -> int:
        """Latest /clock value [ns], zero before the first."""
        return self._clock_ns[-1] if self._clock_ns else 0

    def tick(self, sent_ns: int, clock_ns: int) -> None:
        """Take one /clock message: its source timestamp and its value, both in ns."""
        self._sent_ns.append(sent_ns)
        self._clock_ns.append(clock_ns)
        while self._waiting and self._waiting[0][0] < sent_ns:
            self._release()

    def put(self, sent_ns: int, arrived_s: float, use: Callable[[int], None]) -> None:
        """Call `use` with the time [ns] of a message, as soon as that is certain."""
        self._waiting.append((sent_ns, arrived_s, use))
        if self._sent_ns and sent_ns < self._sent_ns[-1] and len(self._waiting) == 1:
            self._release()

    def flush(self, arrived_before_s: float = float('inf')) -> None:
        """Release what arrived before a steady time [s]: no later /clock is to be expected."""
        while self._waiting and self._waiting[0][1] < arrived_before_s:
            self._release()

    def _release(self) -> None:
        sent_ns, _, use = self._waiting.popleft()
        index = bisect_right(self._sent_ns, sent_ns) - 1
        use(self._clock_ns[max(index, 0)] if self._clock_ns else 0)
