"""Plans on a thread of their own, one at a time."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
import traceback
from typing import Any

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
        # Queues in C: a Future is more Python, twice in each plan, while the robot waits.
        self._orders: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._answers: SimpleQueue[Decision | BaseException] = SimpleQueue()
        self._thread = Thread(target=self._run, name='plan', daemon=True)
        self._thread.start()
        self._is_running = False
        self._finished: list[Decision] = []
        self._failure = ''

    @property
    def is_running(self) -> bool:
        """Whether a plan was begun and is not collected."""
        return self._is_running

    @property
    def is_done(self) -> bool:
        """Whether the plan that was begun only waits to be collected."""
        return not self._answers.empty()

    def begin(self, mpc: Mpc, tick: int, state: np.ndarray, in_flight: Sequence[np.ndarray],
              horizon: int | None) -> None:
        """Begin a plan for a tick; parameters as `Mpc.plan`."""
        self.due, self._is_running = tick, True
        self._orders.put(partial(self._plan, mpc, tick, state, tuple(in_flight), horizon))

    def collect(self, timeout_s: float | None) -> str:
        """Wait for the running plan, None: for ever; return what went wrong, if anything."""
        try:
            answer = self._answers.get(timeout=timeout_s)
        except Empty:
            return ''
        if isinstance(answer, Decision):
            self._end(answer)
            self._finished.append(answer)
            return ''
        # A planner may be the user's own file: whatever it raises, the next observation gets
        # another try.
        self._end(None)
        if isinstance(answer, PlanningError):
            return str(answer)
        self._failure = ''.join(traceback.format_exception(answer))
        return f'the planner failed: {type(answer).__name__}: {answer}'

    def foresee(self) -> None:
        """
        Compute what the newest plan foresees, in the thread that plans while that has no plan.

        Whoever asks the plan for its `prediction` meanwhile waits for it, or computes it too.
        """
        if self.last is not None and not self._is_running:
            self._orders.put(partial(_foresee, self.last))

    def take_news(self) -> tuple[tuple[Decision, ...], str]:
        """Return plans collected since the last call, and the traceback of one that crashed."""
        news = tuple(self._finished), self._failure
        self._finished, self._failure = [], ''
        return news

    def forget(self) -> None:
        """Let the running plan finish, and drop it and all others."""
        if self._is_running:
            self._answers.get()
        self._end(None)
        self._finished.clear()

    def close(self) -> None:
        """Let the running plan finish and stop the thread."""
        self._orders.put(None)
        self._thread.join()

    def _end(self, last: Decision | None) -> None:
        self._is_running, self.due, self.last = False, 0, last

    # In the thread.

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()

    def _plan(self, mpc: Mpc, *inputs: Any) -> None:
        try:
            self._answers.put(mpc.plan(*inputs))
        except BaseException as error:  # the thread goes on, whatever a planner does
            self._answers.put(error)


def _foresee(decision: Decision) -> None:
    # Whatever it raises, it raises again where it is needed.
    with suppress(Exception):
        _ = decision.prediction
