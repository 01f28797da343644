"""
Cores that do not sleep: one that does is woken late, by itself and more so by a virtual machine.

Run as a program, with the number of a core, this is the loop that keeps that one awake.
"""

from contextlib import suppress
import os
import select
import subprocess
import sys

# Rounds between looks at whether the parent is still there: some 50 ms.
ROUNDS = 1_000_000
# Others may leave a loop no time to end in, up to a second: it ends all the same.
END_TIMEOUT_S = 0.05


class AwakeCores:
    """
    Runs a loop on each core that this process may use, at a priority below that of all others.

    What the system calls SCHED_IDLE gets what nobody else wants, and gives way at once. The loops
    are processes of their own, since threads of this one would take turns with it at the
    interpreter; they end with this one, however that ends.

    Raises
    ------
    OSError
        If a process cannot be started; none runs then.

    """

    def __init__(self) -> None:
        self._loops: list[subprocess.Popen[bytes]] = []
        try:
            for core in sorted(os.sched_getaffinity(0)):
                # A session of its own: Ctrl-C is for the parent. Its input ends with the parent.
                self._loops.append(subprocess.Popen(
                    [sys.executable, '-IS', __file__, str(core)], stdin=subprocess.PIPE,
                    start_new_session=True))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """End the loops."""
        for loop in self._loops:
            loop.kill()
        for loop in self._loops:
            with suppress(subprocess.TimeoutExpired):
                loop.wait(END_TIMEOUT_S)
            if loop.stdin is not None:
                loop.stdin.close()
        self._loops.clear()


def main(core: int) -> None:
    """Keep a core awake until standard input ends."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.sched_setaffinity(0, {core})
    while not select.select([sys.stdin], [], [], 0.0)[0]:
        for _ in range(ROUNDS):
            pass


if __name__ == '__main__':
    main(int(sys.argv[1]))
