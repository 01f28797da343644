"""Plans on a thread of their own, one at a time."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
import traceback

import numpy as np

from mbrl_ros.control.mpc import Decision, Mpc
from mbrl_ros.core.errors import PlanningError


class PlanThread:
    """
    Runs one plan at a time and keeps the newest.

    Attributes
    ----------
    last : Decision or None
        The newest plan that was collected; None after one that failed, because the older plan led
        there: no further action of it is taken.
    due : int
        Tick that the running plan is for; 0 if none runs.

    """

    def __init__(self) -> None:
        self.last: Decision | None = None
        self.due = 0
        self._worker = ThreadPoolExecutor(1, 'plan')
        self._running: Future[Decision] | None = None
        self._finished: list[Decision] = []
        self._failure = ''

    @property
    def is_running(self) -> bool:
        """Whether a plan was begun and is not collected."""
        return self._running is not None

    @property
    def is_done(self) -> bool:
        """Whether the plan that was begun only waits to be collected."""
        return self._running is not None and self._running.done()

    def begin(self, mpc: Mpc, tick: int, state: np.ndarray, in_flight: Sequence[np.ndarray],
              horizon: int | None) -> None:
        """Begin a plan for a tick; parameters as `Mpc.plan`."""
        self.due = tick
        self._running = self._worker.submit(mpc.plan, tick, state, tuple(in_flight), horizon)

    def collect(self, timeout_s: float | None) -> str:
        """Wait for the running plan, None: for ever; return what went wrong, if anything."""
        assert self._running is not None
        try:
            self.last = self._running.result(timeout_s)
        except FutureTimeout:
            return ''
        except Exception as error:
            # A planner may be the user's own file: whatever it raises, the next observation gets
            # another try.
            self._end(None)
            if not isinstance(error, PlanningError):
                self._failure = traceback.format_exc()
                return f'the planner failed: {type(error).__name__}: {error}'
            return str(error)
        self._end(self.last)
        self._finished.append(self.last)
        return ''

    def foresee(self) -> None:
        """
        Compute what the newest plan foresees, in the thread that plans while that has no plan.

        Whoever asks the plan for its `prediction` meanwhile waits for it, or computes it too.
        """
        if self.last is not None and self._running is None:
            self._worker.submit(getattr, self.last, 'prediction')

    def take_news(self) -> tuple[tuple[Decision, ...], str]:
        """Return plans collected since the last call, and the traceback of one that crashed."""
        news = tuple(self._finished), self._failure
        self._finished, self._failure = [], ''
        return news

    def forget(self) -> None:
        """Let the running plan finish, and drop it and all others."""
        if self._running is not None:
            wait([self._running])
        self._end(None)
        self._finished.clear()

    def _end(self, last: Decision | None) -> None:
        self._running, self.due, self.last = None, 0, last

    def close(self) -> None:
        """Let the running plan finish and stop the thread."""
        self._worker.shutdown(wait=True)
