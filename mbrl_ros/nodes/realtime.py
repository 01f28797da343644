"""What a control thread does to run steadily: priority, memory, cores, no collector in the way."""

from collections.abc import Callable
import ctypes
import gc
import os
from pathlib import Path
import resource
import sys
from threading import get_native_id
import time
from types import TracebackType

from pydantic import Field

from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.nodes.awake import AwakeCores

# Other threads of this process give the interpreter away after this long, not after 5 ms.
SWITCH_INTERVAL_S = 5e-4
# sys/mman.h. What is touched once stays; what never is, such as most of each stack, takes nothing.
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
# New objects since the last collection at which one pays, and at which it is done in any case.
ENOUGH_OBJECTS, MOST_OBJECTS = 700, 200_000
# Every so many collections look at objects that outlived one, or more.
EVERY_FIRST, EVERY_SECOND = 20, 400
# Until they are measured [s], a generation each; and what must be left before the next tick.
FIRST_GUESS_S, MARGIN_S = (2e-4, 5e-4, 2e-3), 5e-4
LIMITS_FILE = '/etc/security/limits.d/realtime.conf'


class RealTimeParams(Strict):
    """What the operating system is asked for while the robot is driven."""

    fifo_priority: int = Field(0, ge=0, le=98,
                               description='SCHED_FIFO priority of the control thread; the '
                                           "process's other threads get one less; 0: off")
    lock_memory: bool = Field(False, description='Lock the memory of the process (mlockall), so '
                                                 'that none of it is paged out')
    keep_awake: bool = Field(False, description='Run a loop on each core, below the priority of '
                                                'all else (SCHED_IDLE), so that none sleeps: one '
                                                'that does is woken late. Costs power')


class RealTime:
    """
    Makes the calling thread a steady one; a context manager, entered and left in that thread.

    While it is active the collector of cyclic garbage runs in `slack` only. What is not permitted
    is left out, with a warning that names the limit.

    Parameters
    ----------
    params : RealTimeParams
        What to ask for.
    warn : callable
        Takes a warning.

    Notes
    -----
    All threads of the process get the priority, because the control thread waits for them: for
    those that plan, for those that receive, and for whoever holds the interpreter's lock. Threads
    that are started meanwhile inherit it from the thread that starts them. When it is left, all
    threads have what they had, and new ones what the control thread had.

    """

    def __init__(self, params: RealTimeParams, warn: Callable[[str], None]) -> None:
        self._params, self._warn = params, warn
        self._schedules: dict[int, tuple[int, int]] = {}
        self._is_locked = self._was_enabled = False
        self._awake: AwakeCores | None = None
        self._switch_interval_s = sys.getswitchinterval()
        self._durations_s = list(FIRST_GUESS_S)
        self.num_collections = 0

    def __enter__(self) -> 'RealTime':
        """Collect once, then keep the collector out."""
        self._was_enabled = gc.isenabled()
        gc.disable()
        gc.collect()
        # What lives now lives as long as the node: not to be looked at again.
        gc.freeze()
        self._switch_interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        if self._params.keep_awake:  # before the priority is raised, which they would inherit
            self._keep_awake()
        if self._params.lock_memory:
            self._lock_memory()
        if self._params.fifo_priority:
            self._raise_priority(self._params.fifo_priority)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Leave everything as it was found."""
        self._restore_priority()
        if self._is_locked:
            ctypes.CDLL(None).munlockall()
            self._is_locked = False
        if self._awake is not None:
            self._awake.close()
            self._awake = None
        sys.setswitchinterval(self._switch_interval_s)
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()

    def slack(self, until_s: float) -> None:
        """
        Collect garbage, if there is enough of it and it will be done before `until_s`.

        Parameters
        ----------
        until_s : float
            Steady time [s] at which the next tick is due.

        """
        num_new = gc.get_count()[0]
        if num_new < ENOUGH_OBJECTS:
            return
        count = self.num_collections + 1
        generation = 2 if count % EVERY_SECOND == 0 else 1 if count % EVERY_FIRST == 0 else 0
        began_s = time.monotonic()
        if began_s + self._durations_s[generation] + MARGIN_S > until_s \
                and num_new < MOST_OBJECTS:
            return
        gc.collect(generation)
        took_s = time.monotonic() - began_s
        # The longest, forgotten slowly: one that took long would otherwise forbid all others.
        self._durations_s[generation] = max(took_s, 0.9 * self._durations_s[generation])
        self.num_collections = count

    def _keep_awake(self) -> None:
        try:
            self._awake = AwakeCores()
        except OSError as error:
            limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
            self._warn(f'cores are not kept awake: {error.strerror}; RLIMIT_NPROC is {limit}. Set '
                       'realtime.keep_awake to false, or let the user have more processes')

    def _lock_memory(self) -> None:
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        advice = (f"Put '<user> - memlock unlimited' into {LIMITS_FILE} and log in anew, or give "
                  'the process CAP_IPC_LOCK.')
        # Below a limit the call may succeed, and some later allocation fail.
        if limit != resource.RLIM_INFINITY and os.geteuid() != 0:
            self._warn(f'memory is not locked: RLIMIT_MEMLOCK is {limit // 1024} KiB. {advice}')
            return
        library = ctypes.CDLL(None, use_errno=True)
        if library.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
            reason = os.strerror(ctypes.get_errno())
            self._warn(f'memory is not locked: {reason}; RLIMIT_MEMLOCK is {limit}. {advice}')
            return
        self._is_locked = True

    def _raise_priority(self, priority: int) -> None:
        mine = _schedule(0)
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        except OSError as error:
            limit, _ = resource.getrlimit(resource.RLIMIT_RTPRIO)
            self._warn(
                f'SCHED_FIFO {priority} is refused ({error.strerror}): RLIMIT_RTPRIO is {limit}. '
                f"Put '<user> - rtprio {priority}' into {LIMITS_FILE} and log in anew, or give "
                'the process CAP_SYS_NICE. In a container its cgroup needs a share of real time.')
            return
        self._schedules[0] = mine
        self.cover_new_threads()

    def cover_new_threads(self) -> None:
        """Give threads that were started meanwhile the priority of the others, if it was given."""
        if not self._schedules:
            return
        # 1 is the lowest there is.
        others = os.sched_param(max(1, self._params.fifo_priority - 1))
        for thread in _other_threads():
            try:
                schedule = _schedule(thread)
                # One that made itself nice wants to come after all others.
                if thread in self._schedules or os.getpriority(os.PRIO_PROCESS, thread) > 0:
                    continue
                os.sched_setscheduler(thread, os.SCHED_FIFO, others)
            except OSError:  # it has ended meanwhile
                continue
            self._schedules[thread] = schedule

    def _restore_priority(self) -> None:
        if not self._schedules:
            return
        mine = self._schedules.pop(0)
        for thread in (*_other_threads(), 0):
            policy, priority = self._schedules.get(thread, mine)
            try:
                os.sched_setscheduler(thread, policy, os.sched_param(priority))
            except OSError:
                continue
        self._schedules.clear()


def _schedule(thread: int) -> tuple[int, int]:
    return os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority


def _other_threads() -> list[int]:
    own = get_native_id()
    return [number for number in (int(task.name) for task in Path('/proc/self/task').iterdir())
            if number != own]
