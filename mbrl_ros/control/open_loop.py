"""Open loop, for study: plans that see one observation and then only what the model made of it."""

import numpy as np

from mbrl_ros.control.mpc import Mpc


class OpenLoop:
    """
    Stands for the observations after the first.

    Notes
    -----
    It counts ticks, not time: where a stalled loop has slept through some, it falls behind.

    """

    def __init__(self) -> None:
        self._state: np.ndarray | None = None

    def look(self, observed: np.ndarray) -> np.ndarray:
        """Return what a plan may see, shape (S,), at a tick with this observation."""
        if self._state is None:
            self._state = observed
        return self._state

    def advance(self, mpc: Mpc, acted: np.ndarray) -> None:
        """Go on to the next tick; `acted` (A,) is the command that acts until then."""
        if self._state is not None:
            self._state = mpc.advance(self._state, acted)

    def forget(self) -> None:
        """Look once again."""
        self._state = None
