"""Another model for a controller that runs: built beside the loop, swapped between two ticks."""

from collections.abc import Callable
import os
from threading import Event, Thread

from mbrl_ros.control.build import Engine
from mbrl_ros.core.errors import MbrlError

SWAP_TIMEOUT_S = 5.0
OnDone = Callable[[bool, str], None]


class ModelReload:
    """
    One attempt to replace the model.

    Parameters
    ----------
    build : callable
        Returns the new engine, or raises what is wrong with the model.
    hand_over : callable
        Gives the engine to the control loop.
    deadline_s : float or None
        Time a tick may wait for its plan: a model whose plans take longer is refused.
    on_done : callable
        Takes success and what to tell; called in this attempt's thread.

    """

    def __init__(self, build: Callable[[], Engine], hand_over: Callable[[Engine], None],
                 deadline_s: float | None, on_done: OnDone) -> None:
        self._build, self._hand_over = build, hand_over
        self._deadline_s, self._on_done = deadline_s, on_done
        self._wake = Event()
        self._is_swapped = self._is_cancelled = False
        Thread(target=self._run, name='reload', daemon=True).start()

    def swapped(self) -> None:
        """Tell that the control loop plans with the new engine."""
        self._is_swapped = True
        self._wake.set()

    def cancel(self) -> None:
        """Tell that the control loop has ended; does not wait."""
        self._is_cancelled = True
        self._wake.set()

    def _run(self) -> None:
        try:
            # Whoever started this thread may have a real-time priority, which it would inherit.
            # It is not niced: the threads that the engine keeps would be, for good.
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            done, text = self._attempt()
        except Exception as error:
            kind = '' if isinstance(error, MbrlError) else f'{type(error).__name__}: '
            done, text = False, f'the old model stays: {kind}{error}'
        self._on_done(done, text)

    def _attempt(self) -> tuple[bool, str]:
        engine = self._build()
        problem = self._too_slow(engine)
        if not problem and not self._is_cancelled:
            self._hand_over(engine)
            if not self._wake.wait(SWAP_TIMEOUT_S):
                return False, (f'no plan ended for {SWAP_TIMEOUT_S:g} s; the next plan after that '
                               'one takes the model over')
        if self._is_swapped:
            return True, f'model {engine.rollout.model_hash}'
        engine.close()
        return False, f'the old model stays: {problem or "the node was deactivated"}'

    def _too_slow(self, engine: Engine) -> str:
        if self._deadline_s is None or engine.plan_p50_s <= self._deadline_s:
            return ''
        return (f'plans with it take {engine.plan_p50_s * 1e3:.1f} ms, the deadline is '
                f'{self._deadline_s * 1e3:g} ms. `mbrl-ros bench tune` finds a budget that fits')
