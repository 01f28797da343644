"""What a node does now and then, on a thread of its own."""

from collections.abc import Callable
from threading import Event, Thread
import traceback

# A loop that makes no pause is not waited for any longer.
PAUSE_TIMEOUT_S = 0.2


class Chore:
    """
    Does one thing again and again, in the pauses of a loop.

    A timer of rclpy wakes its executor, which looks at all that a node has, in Python: a
    millisecond or two in which no other thread has the interpreter. At a period of so many ticks
    that meets the control loop at the same moment of its tick each time.

    Parameters
    ----------
    period_s : float
        Time between two of them.
    work : callable
        What is done.
    fail : callable
        Takes the traceback if `work` raises; the next one comes all the same.
    pause : Event, optional
        Set by the loop as each of its pauses begins; without it nothing is waited for.

    """

    def __init__(self, period_s: float, work: Callable[[], object],
                 fail: Callable[[str], object],
                 pause: Event | None = None) -> None:
        self._period_s, self._work, self._fail, self._pause = period_s, work, fail, pause
        self._stop = Event()
        self._thread = Thread(target=self._run, name='chore', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let the work at hand finish and end the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                if self._pause is not None:
                    self._pause.clear()
                    self._pause.wait(PAUSE_TIMEOUT_S)
                self._work()
            except Exception:
                self._fail(traceback.format_exc())
