"""Chores: what is done now and then, in the pauses of a loop."""

from threading import Event, Thread
import time

from mbrl_ros.nodes.chore import Chore, PAUSE_TIMEOUT_S

PERIOD_S = 0.01


def test_the_work_begins_with_a_pause(eventually):
    pause, stop, pauses, works = Event(), Event(), [], []

    def loop():
        while not stop.is_set():
            pauses.append(time.monotonic())
            pause.set()
            time.sleep(0.05)
    thread = Thread(target=loop)
    thread.start()
    chore = Chore(PERIOD_S, lambda: works.append(time.monotonic()), no_failure, pause)
    assert eventually(lambda: len(works) == 10)
    stop.set()
    thread.join()
    chore.close()
    # After the beginning of a pause, of 50 ms each; were pauses not looked at, five times as many
    # would have been done, at any moment of them. Half of the pause is for a slow machine.
    after = [work - max(p for p in pauses if p <= work) for work in works[:10]]
    assert sorted(after)[5] < 0.025
    assert works[9] - works[0] > 9 * 0.045


def test_a_loop_that_makes_no_pause_is_not_waited_for(eventually):
    works = []
    began_s = time.monotonic()
    chore = Chore(PERIOD_S, lambda: works.append(time.monotonic()), no_failure, Event())
    assert eventually(lambda: works)
    chore.close()
    assert works[0] - began_s > PAUSE_TIMEOUT_S


def test_a_failure_is_told_and_the_next_one_comes_all_the_same(eventually):
    problems = []

    def work():
        raise ZeroDivisionError('cosmic ray')
    chore = Chore(PERIOD_S, work, problems.append)
    assert eventually(lambda: len(problems) > 2)
    chore.close()
    assert 'ZeroDivisionError: cosmic ray' in problems[0]


def test_nothing_is_done_after_the_close():
    works = []
    chore = Chore(PERIOD_S, lambda: works.append(1), no_failure)
    time.sleep(5 * PERIOD_S)
    chore.close()
    num_works = len(works)
    time.sleep(5 * PERIOD_S)
    assert len(works) == num_works > 0


def no_failure(text):
    raise AssertionError(text)
