"""The actuation delay of a robot: commands act a fixed number of control periods late."""

from collections import deque

import numpy as np


class CommandDelay:
    """
    First-in first-out line of the commands in flight.

    Parameters
    ----------
    steps : int
        Control periods between a command and its effect; 0 lets each command act at once.
    safe_value : array, shape (A,)
        What acts before the first command has come through.

    """

    def __init__(self, steps: int, safe_value: np.ndarray) -> None:
        self._steps, self._safe_value = steps, np.array(safe_value, dtype=float)
        self._in_flight: deque[np.ndarray] = deque()
        self.clear()

    def push(self, command: np.ndarray) -> np.ndarray:
        """Put in the command of this control period, take out the one that acts, shape (A,)."""
        self._in_flight.append(np.array(command, dtype=float))
        return self._in_flight.popleft()

    def clear(self) -> None:
        """Forget the commands in flight; the safe value acts in their place."""
        self._in_flight = deque(self._safe_value.copy() for _ in range(self._steps))
