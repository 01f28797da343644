"""The emergency stop: a latch that one call trips and only an explicit one releases."""

from threading import Lock


class Latch:
    """
    Holds the reason of an emergency stop until it is released; any thread may trip it.

    Attributes
    ----------
    reason : str
        Why the robot is stopped; empty while it is not.
    num_trips : int
        Times it was tripped, those while it was tripped already not counted.

    """

    def __init__(self) -> None:
        self._lock = Lock()
        self.reason = ''
        self.num_trips = 0

    def trip(self, reason: str) -> bool:
        """Stop; the first reason stays until the release. Return whether this was the first."""
        with self._lock:
            is_first = not self.reason
            if is_first:
                self.reason = reason
                self.num_trips += 1
        return is_first

    def release(self) -> bool:
        """Let commands out again; return whether there was a stop to end."""
        with self._lock:
            was_tripped, self.reason = bool(self.reason), ''
        return was_tripped
