"""What the control thread asks of the operating system, and that nothing of it stays."""

from contextlib import suppress
import ctypes
import gc
import os
from pathlib import Path
import resource
import subprocess
import sys
from threading import Event, get_native_id, Thread
import time
from types import SimpleNamespace

import pytest

from mbrl_ros.nodes import realtime
from mbrl_ros.nodes.realtime import RealTime, RealTimeParams

OFF = RealTimeParams()
FIFO = RealTimeParams(fifo_priority=30)
LOCK = RealTimeParams(lock_memory=True)
AWAKE = RealTimeParams(keep_awake=True)


def everything():
    """Return what a control thread may change."""
    return (gc.isenabled(), gc.get_freeze_count(), sys.getswitchinterval(),
            os.sched_getscheduler(0))


def refuse(_message):
    raise AssertionError(f'unexpected warning: {_message}')


@pytest.fixture
def scheduler(monkeypatch):
    """Replace the scheduler of the system: schedules by thread, as they were last set."""
    schedules = {}

    def key(thread):
        return get_native_id() if thread == 0 else thread
    monkeypatch.setattr(os, 'sched_setscheduler', lambda thread, policy, param:
                        schedules.__setitem__(key(thread), (policy, param.sched_priority)))
    monkeypatch.setattr(os, 'sched_getscheduler',
                        lambda thread: schedules.get(key(thread), (os.SCHED_OTHER, 0))[0])
    monkeypatch.setattr(os, 'sched_getparam', lambda thread: os.sched_param(
        schedules.get(key(thread), (os.SCHED_OTHER, 0))[1]))
    return schedules


@pytest.fixture
def other():
    """Return a thread that waits."""
    end, number = Event(), []
    thread = Thread(target=lambda: (number.append(get_native_id()), end.wait()), daemon=True)
    thread.start()
    while not number:
        time.sleep(0.001)
    yield number[0]
    end.set()
    thread.join()


def test_the_collector_is_out_of_the_way_only_while_active():
    before = everything()
    with RealTime(OFF, refuse):
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 1000
        assert sys.getswitchinterval() == pytest.approx(realtime.SWITCH_INTERVAL_S)
    assert everything() == before


def test_what_was_off_before_stays_off():
    gc.disable()
    try:
        with RealTime(OFF, refuse):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_exception_leaves_nothing_behind(scheduler):
    before = everything()
    with pytest.raises(KeyError), RealTime(FIFO, refuse):
        raise KeyError
    assert everything() == before
    assert set(scheduler.values()) == {(os.SCHED_OTHER, 0)}


def test_all_threads_get_the_priority_and_give_it_back(scheduler, other):
    scheduler[other] = (os.SCHED_RR, 7)
    with RealTime(FIFO, refuse):
        assert scheduler[get_native_id()] == (os.SCHED_FIFO, 30)
        assert scheduler[other] == (os.SCHED_FIFO, 29)
    assert scheduler[get_native_id()] == (os.SCHED_OTHER, 0)
    assert scheduler[other] == (os.SCHED_RR, 7)


def test_a_thread_that_began_meanwhile_loses_what_it_inherited(scheduler, monkeypatch):
    with RealTime(FIFO, refuse):
        end = Event()
        late = Thread(target=end.wait, daemon=True)
        late.start()
        scheduler[late.native_id] = (os.SCHED_FIFO, 30)  # as the system would do it
    end.set()
    assert scheduler[late.native_id] == (os.SCHED_OTHER, 0)


def test_the_lowest_priority_is_one(scheduler, other):
    with RealTime(RealTimeParams(fifo_priority=1), refuse):
        assert scheduler[other] == (os.SCHED_FIFO, 1)


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_RTPRIO)[0] == 0 and os.geteuid() != 0,
                    reason='no permission for real-time priorities')
def test_the_real_scheduler_is_restored():
    found = []

    def work():  # a thread of its own: whatever goes wrong ends with it
        try:
            with RealTime(FIFO, found.append):
                found.append(os.sched_getscheduler(0))
            found.append(os.sched_getscheduler(0))
        finally:
            found.append('end')
    *before, schedules = everything()
    thread = Thread(target=work)
    thread.start()
    thread.join(10.0)
    if isinstance(found[0], str):
        pytest.skip(found[0])  # a container may refuse even root
    assert found == [os.SCHED_FIFO, os.SCHED_OTHER, 'end']
    *after, found_schedules = everything()
    assert after == before
    # The thread that ended may still be listed.
    assert found_schedules | schedules == found_schedules


def test_a_refused_priority_names_the_limit(monkeypatch, other):
    def refused(*_arguments):
        raise PermissionError(1, 'Operation not permitted')
    monkeypatch.setattr(os, 'sched_setscheduler', refused)
    before, warnings = everything(), []
    with RealTime(FIFO, warnings.append):
        assert not gc.isenabled()  # the rest is done
    assert everything() == before
    warning, = warnings
    for text in ('SCHED_FIFO 30', 'Operation not permitted', 'RLIMIT_RTPRIO', 'CAP_SYS_NICE',
                 '/etc/security/limits.d', "'<user> - rtprio 30'"):
        assert text in warning


class Library:
    """The C library, as far as it locks memory."""

    def __init__(self, status):
        self.status, self.calls = status, []

    def mlockall(self, flags):
        self.calls.append(('lock', flags))
        return self.status

    def munlockall(self):
        self.calls.append(('unlock',))
        return 0


@pytest.fixture
def library(monkeypatch):
    """Return a function that replaces the C library by one that answers with a status."""
    def make(status):
        made = Library(status)
        monkeypatch.setattr(ctypes, 'CDLL', lambda name, use_errno=False: made)
        monkeypatch.setattr(ctypes, 'get_errno', lambda: 12)  # ENOMEM
        monkeypatch.setattr(resource, 'getrlimit', lambda which: (resource.RLIM_INFINITY,) * 2)
        return made
    return make


def test_memory_is_locked_and_unlocked(library):
    made = library(0)
    with RealTime(LOCK, refuse):
        assert made.calls == [('lock', 1 | 2 | 4)]  # now, later, once touched: <sys/mman.h>
    assert made.calls[1:] == [('unlock',)]


def test_memory_that_is_not_locked_names_the_limit(library):
    made, warnings = library(-1), []
    with RealTime(LOCK, warnings.append):
        pass
    assert len(made.calls) == 1  # nothing to unlock
    for text in ('Cannot allocate memory', 'RLIMIT_MEMLOCK', 'CAP_IPC_LOCK',
                 '/etc/security/limits.d', "'<user> - memlock unlimited'"):
        assert text in warnings[0]


def test_below_a_limit_memory_is_not_even_tried(library, monkeypatch):
    made, warnings = library(0), []
    monkeypatch.setattr(resource, 'getrlimit', lambda which: (8 * 2**20, 8 * 2**20))
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    with RealTime(LOCK, warnings.append):
        pass
    assert made.calls == []
    assert 'RLIMIT_MEMLOCK is 8192 KiB' in warnings[0]


def stat(process):
    """Return what /proc/<process>/stat says from field 3 on, see proc(5); nothing if it ended."""
    try:
        fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] in 'ZX' else fields


def idle_loops(parent):
    """Return the processes below a process of the lowest priority, each with its cores."""
    children = Path(f'/proc/{parent}/task').glob('*/children')
    loops = {}
    for number in (int(word) for file in children for word in file.read_text().split()):
        with suppress(ProcessLookupError):  # it has ended since
            if stat(number) and os.sched_getscheduler(number) == os.SCHED_IDLE:
                loops[number] = os.sched_getaffinity(number)
    return loops


def cpu_ticks(process):
    """Return the clock ticks that a process has run for in user mode, field 14."""
    return int(stat(process)[14 - 3])


def test_each_core_is_kept_awake_below_all_priorities(eventually):
    before = everything()
    own = [{core} for core in sorted(os.sched_getaffinity(0))]
    with RealTime(AWAKE, refuse):
        assert eventually(lambda: sorted(idle_loops(os.getpid()).values(), key=min) == own)
        loops = idle_loops(os.getpid())
        assert eventually(lambda: all(cpu_ticks(loop) > 5 for loop in loops), 20.0)
    assert eventually(lambda: idle_loops(os.getpid()) == {})
    assert everything() == before


def test_cores_are_not_kept_awake_unasked():
    with RealTime(OFF, refuse):
        assert idle_loops(os.getpid()) == {}


def test_the_loops_end_with_a_process_that_is_killed(eventually):
    program = ('from mbrl_ros.nodes.realtime import RealTime, RealTimeParams\n'
               'with RealTime(RealTimeParams(keep_awake=True), print):\n'
               '    print(flush=True)\n    input()')
    with subprocess.Popen([sys.executable, '-c', program], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            assert eventually(lambda: len(idle_loops(process.pid)) == len(os.sched_getaffinity(0)))
            loops = idle_loops(process.pid)
        finally:
            process.kill()
    assert eventually(lambda: not any(stat(loop) for loop in loops), 20.0)


def test_cores_that_are_not_kept_awake_name_the_limit(monkeypatch, eventually):
    started = []

    def refused(*arguments, **options):
        if started:
            raise BlockingIOError(11, 'Resource temporarily unavailable')
        started.append(Popen(*arguments, **options))
        return started[0]
    Popen = subprocess.Popen
    monkeypatch.setattr(subprocess, 'Popen', refused)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1})
    warnings = []
    with RealTime(AWAKE, warnings.append):
        assert eventually(lambda: started[0].poll() is not None)  # not one core alone
    warning, = warnings
    for text in ('not kept awake', 'Resource temporarily unavailable', 'RLIMIT_NPROC',
                 'realtime.keep_awake'):
        assert text in warning


@pytest.fixture
def collections(monkeypatch):
    """Record collections in place of doing them; return them and what the collector says."""
    done, found = [], SimpleNamespace(num_new=10_000, took_s=0.0, now_s=100.0)

    def collect(generation=2):
        done.append(generation)
        found.now_s += found.took_s
    monkeypatch.setattr(gc, 'collect', collect)
    monkeypatch.setattr(gc, 'get_count', lambda: (found.num_new, 0, 0))
    monkeypatch.setattr(realtime.time, 'monotonic', lambda: found.now_s)
    return done, found


def test_slack_collects_if_there_is_time_and_garbage(collections):
    done, found = collections
    thread = RealTime(OFF, refuse)
    thread.slack(100.0005)  # not even the margin
    assert done == []
    found.num_new = 10
    thread.slack(101.0)
    assert done == []
    found.num_new = 10_000
    thread.slack(101.0)
    assert done == [0]


def test_slack_learns_how_long_a_collection_takes(collections):
    done, found = collections
    thread, found.took_s = RealTime(OFF, refuse), 0.005
    thread.slack(100.002)  # nobody knew
    assert done == [0]
    found.now_s = 100.0
    thread.slack(100.004)  # 5 ms and the margin of 0.5 ms do not fit into 4
    assert done == [0]
    thread.slack(100.006)
    assert done == [0, 0]


def test_slack_looks_at_older_objects_rarely(collections):
    done, found = collections
    thread = RealTime(OFF, refuse)
    for _ in range(800):
        thread.slack(found.now_s + 1.0)
    assert [index + 1 for index, generation in enumerate(done) if generation == 2] == [400, 800]
    # Every twentieth but those two.
    assert done.count(1) == 800 // 20 - 2


def test_garbage_does_not_pile_up_without_slack(collections):
    done, found = collections
    thread, found.num_new = RealTime(OFF, refuse), 300_000
    thread.slack(99.0)
    assert done == [0]


def test_slack_frees_cycles():
    class Node:
        alive = 0

        def __init__(self):
            self.me = self
            Node.alive += 1

        def __del__(self):
            Node.alive -= 1
    with RealTime(OFF, refuse) as thread:
        for _ in range(2000):
            Node()
        assert Node.alive == 2000  # the collector is off
        thread.slack(time.monotonic() + 60.0)
        assert Node.alive == 0
