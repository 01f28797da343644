"""The observation inbox: the pace of the control loop, and what is refused."""

import math

from fakes import cart, cart_dict
import numpy as np
import pytest

from mbrl_ros.control.inbox import ObservationInbox
from mbrl_ros.core.robot import RobotSpec

MS = 1_000_000
PERIOD = 100 * MS  # the cart's control period


START = 1_700_000_000_000 * MS


class Clock:
    """A steady clock that stands still until it is told to move."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s

    def move(self, periods):
        self.now_s += periods * PERIOD * 1e-9


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def inbox(clock):
    return ObservationInbox(cart(), lockstep=False, clock=clock)


def put(inbox, stamp_ns, position=0.0, age_s=0.0, waited_s=0.0):
    inbox.put('joint_states', [position, 0.0], int(stamp_ns), age_s, waited_s)


def ticks(inbox, clock, stamps_ns, apart=1.0):
    """Return the stamps at which a tick was due, of messages that come some periods apart."""
    due = []
    for stamp in stamps_ns:
        put(inbox, stamp)
        observation = inbox.take()
        if observation is not None and observation.fresh:
            due.append(int(stamp))
            assert observation.stamp_ns == int(stamp)
        clock.move(apart)
    return due


@pytest.mark.parametrize('jitter', [0.0, 0.04])
def test_every_message_at_the_control_rate_is_a_tick(inbox, clock, jitter):
    rng = np.random.default_rng(0)
    stamps = [START + i * PERIOD + int(rng.uniform(-jitter, jitter) * PERIOD) for i in range(200)]
    assert ticks(inbox, clock, stamps) == stamps


@pytest.mark.parametrize('rate', [0.99, 0.999, 1.001, 1.02])
def test_a_clock_that_is_a_little_off_loses_no_tick(inbox, clock, rate):
    stamps = [START + int(i * PERIOD / rate) for i in range(300)]
    assert ticks(inbox, clock, stamps) == stamps


@pytest.mark.parametrize('faster', [2, 3, 20])
def test_a_faster_publisher_is_thinned_to_the_control_rate(inbox, clock, faster):
    rng = np.random.default_rng(0)
    stamps = [START + (i * PERIOD) // faster + int(rng.uniform(0, 0.02) * PERIOD / faster)
              for i in range(faster * 100)]
    due = np.array(ticks(inbox, clock, stamps, 1 / faster))
    # 100 periods: one tick each, at the first message up to a tenth early.
    assert len(due) in (100, 101)
    assert np.abs(np.diff(due[1:]) - PERIOD).max() <= 0.06 * PERIOD


def test_a_slower_publisher_ticks_at_each_message(inbox, clock):
    stamps = [START + 3 * i * PERIOD for i in range(10)]
    assert ticks(inbox, clock, stamps) == stamps


def test_stamps_that_jump_back_go_on_at_once(inbox, clock):
    before = [START + i * PERIOD for i in range(5)]
    after = [i * PERIOD for i in range(1, 6)]
    assert ticks(inbox, clock, before + after) == before + after
    assert (inbox.num_clock_jumps, inbox.num_out_of_order) == (1, 0)


def silent_ticks(inbox, clock, until):
    """Return the steady times, in periods from now, at which ticks were due without a message."""
    begin_s, due = clock.now_s, []
    for _ in range(round(until * 100)):
        clock.move(0.01)
        observation = inbox.take()
        if observation is not None:
            assert not observation.fresh
            due.append((inbox.due_s - begin_s) / (PERIOD * 1e-9))
    return due


def test_silence_is_a_tick_without_a_fresh_state(inbox, clock):
    put(inbox, START, position=3.0)
    assert inbox.take().fresh
    clock.move(1.4)
    assert inbox.take() is None
    clock.move(0.2)
    again = inbox.take()
    assert (again.fresh, again.problem, again.state.tolist()) == (False, '', [3.0, 0.0])
    assert again.stamp_ns == START


def test_silent_ticks_come_on_an_absolute_grid(inbox, clock):
    put(inbox, START)
    inbox.take()
    assert silent_ticks(inbox, clock, 6.0) == pytest.approx([1.5, 2.5, 3.5, 4.5, 5.5])
    # The loop that is late for a tick is not late for the next: 1.5 and 2.5, whatever happens at
    # 2.3.
    put(inbox, START + 6 * PERIOD)
    inbox.take()
    clock.move(2.3)
    inbox.take()
    assert silent_ticks(inbox, clock, 1.0) == pytest.approx([0.2])  # 2.5 - 2.3


def test_a_message_sets_the_phase_anew(inbox, clock):
    put(inbox, START)
    inbox.take()
    assert silent_ticks(inbox, clock, 3.2) == pytest.approx([1.5, 2.5])
    put(inbox, START + 3 * PERIOD)
    assert inbox.take().fresh
    assert silent_ticks(inbox, clock, 3.0) == pytest.approx([1.5, 2.5])


def test_a_lost_message_costs_no_tick_and_adds_none(inbox, clock):
    # Messages at 0, 1, 3, 6: 2, 4 and 5 are lost. One tick for each period.
    fresh = []
    for period in range(7):
        if period in (0, 1, 3, 6):
            put(inbox, START + period * PERIOD)
        for _ in range(4):
            observation = inbox.take()
            if observation is not None:
                fresh.append(observation.fresh)
            clock.move(0.25)
    assert fresh == [True, True, False, True, False, False, True]


def test_ticks_that_a_stalled_loop_slept_through_are_skipped(inbox, clock):
    put(inbox, START)
    inbox.take()
    clock.move(5.2)
    assert not inbox.take().fresh
    # Due at 1.5; those at 2.5, 3.5 and 4.5 are over, the next is at 5.5.
    assert inbox.num_skipped == 3
    assert inbox.take() is None
    assert silent_ticks(inbox, clock, 1.0) == pytest.approx([0.3])


def test_messages_that_bunch_are_not_ticks_that_bunch(inbox, clock):
    put(inbox, START)
    inbox.take()
    clock.move(1.9)
    put(inbox, START + PERIOD, position=1.0)  # 0.9 periods late
    assert inbox.take().state[0] == 1.0
    clock.move(0.1)
    put(inbox, START + 2 * PERIOD, position=2.0)  # in time
    assert inbox.take() is None
    clock.move(0.35)  # 0.45 periods after the last tick
    late = inbox.take()
    assert (late.fresh, late.state[0]) == (True, 2.0)


def test_nothing_yet(inbox, clock):
    assert inbox.take() is None
    clock.move(1.6)
    nothing = inbox.take()
    assert (nothing.state, nothing.fresh) == (None, False)
    assert nothing.problem == 'no message on joint_states yet'
    assert inbox.age_s() == float('inf')


@pytest.mark.parametrize(('stamp', 'name'), [
    (START, 'duplicated'), (START - PERIOD, 'overtaken'), (START - 1000 * MS, 'a second late')])
def test_a_stamp_that_is_not_newer_is_counted_and_not_looked_at(inbox, clock, stamp, name):
    put(inbox, START, position=1.0)
    inbox.take()
    clock.move(1.0)
    put(inbox, stamp, position=2.0)
    inbox.refuse('joint_states', 'no position', stamp)
    assert inbox.take() is None, name
    assert (inbox.num_out_of_order, inbox.num_refused, inbox.num_clock_jumps) == (2, 0, 0)
    put(inbox, START + PERIOD, position=3.0)
    observation = inbox.take()
    assert (observation.fresh, observation.problem, observation.state[0]) == (True, '', 3.0)


def test_messages_after_a_clock_was_set_back_are_in_order_again(inbox, clock):
    set_back = START - 5000 * MS
    assert ticks(inbox, clock, [START, set_back, set_back - MS, set_back + PERIOD]) == [
        START, set_back, set_back + PERIOD]
    assert (inbox.num_clock_jumps, inbox.num_out_of_order) == (1, 1)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_number_that_is_none_is_refused_and_still_a_tick(inbox, clock, value):
    put(inbox, START, position=1.0)
    inbox.take()
    clock.move(1.0)
    put(inbox, START + PERIOD, position=value)
    bad = inbox.take()
    assert bad.fresh
    assert bad.problem == 'position on joint_states is not finite'
    assert inbox.num_refused == 1
    assert bad.state.tolist() == [1.0, 0.0]  # never the bad number
    clock.move(1.0)
    put(inbox, START + 2 * PERIOD, position=2.0)
    good = inbox.take()
    assert (good.problem, good.state.tolist()) == ('', [2.0, 0.0])


def test_a_refused_message_says_why_until_a_good_one(inbox, clock):
    inbox.refuse('joint_states', "no 'rail' in this message", START)
    assert inbox.take().problem == "no 'rail' in this message"
    clock.move(1.5)
    assert inbox.take().problem == "no 'rail' in this message"
    put(inbox, START + PERIOD)
    clock.move(0.5)
    assert inbox.take().problem == ''


def test_what_is_too_old_is_stale(inbox, clock):
    put(inbox, START, age_s=0.2)  # the cart allows 0.25 s: not yet
    assert inbox.take().problem == ''
    clock.move(1.0)
    put(inbox, START + PERIOD, age_s=0.3)
    assert inbox.take().problem == 'joint_states is stale: 0.300 s old, limit 0.25 s'
    assert inbox.age_s() == pytest.approx(0.3)


def test_a_state_becomes_stale_while_one_waits(inbox, clock):
    put(inbox, START, age_s=0.2)
    assert inbox.take().problem == ''
    clock.move(1.5)
    # 0.2 s and 1.5 periods of 0.1 s.
    assert inbox.take().problem == 'joint_states is stale: 0.350 s old, limit 0.25 s'


def test_a_sensor_clock_that_is_ahead_does_not_keep_data_fresh(inbox, clock):
    put(inbox, START, age_s=-3600.0)
    assert inbox.take().problem == ''
    assert inbox.age_s() == 0.0
    clock.move(2.6)  # 0.26 s of silence
    assert inbox.take().problem == 'joint_states is stale: 0.260 s old, limit 0.25 s'


def test_lockstep_waits_and_nothing_is_stale():
    inbox = ObservationInbox(cart(), lockstep=True)
    assert inbox.take() is None
    put(inbox, START, age_s=1e6)
    assert inbox.take().problem == ''
    assert inbox.take() is None


def two_topics():
    spec = cart_dict()
    spec['observation'][1] |= {'topic': 'speed', 'path': 'velocity[cart]'}
    spec['stale_after_s']['speed'] = 0.25
    return RobotSpec.model_validate(spec)


def test_the_topic_of_the_first_field_sets_the_pace(clock):
    inbox = ObservationInbox(two_topics(), lockstep=False, clock=clock)
    inbox.put('speed', [7.0], START, 0.0)
    assert inbox.take() is None
    clock.move(1.5)
    early = inbox.take()
    assert (early.fresh, early.state) == (False, None)
    assert early.problem == 'no message on joint_states yet'
    inbox.put('joint_states', [1.0], START, 0.0)
    clock.move(0.5)
    both = inbox.take()
    assert (both.fresh, both.problem, both.state.tolist()) == (True, '', [1.0, 7.0])
    # One of them stale is enough, and it is named.
    clock.move(1.0)
    inbox.put('speed', [7.0], START + PERIOD, 0.5)
    inbox.put('joint_states', [1.0], START + PERIOD, 0.0)
    assert inbox.take().problem.startswith('speed is stale')


def test_each_topic_has_an_order_of_its_own(clock):
    inbox = ObservationInbox(two_topics(), lockstep=False, clock=clock)
    inbox.put('joint_states', [1.0], START, 0.0)
    inbox.put('speed', [7.0], START - PERIOD, 0.0)  # older, but the first of its topic
    inbox.put('speed', [8.0], START - 2 * PERIOD, 0.0)
    assert inbox.take().state.tolist() == [1.0, 7.0]
    assert inbox.num_out_of_order == 1


@pytest.mark.parametrize('order', [('joint_states', 'speed'), ('speed', 'joint_states')])
def test_lockstep_waits_for_every_topic_of_the_stamp(order):
    inbox = ObservationInbox(two_topics(), lockstep=True)
    for number in (1, 2):
        inbox.put(order[0], [float(number)], number * PERIOD, 0.0)
        assert inbox.take() is None
        inbox.put(order[1], [float(number)], number * PERIOD, 0.0)
        observation = inbox.take()
        assert (observation.fresh, observation.state.tolist()) == (True, [number, number])
        assert observation.stamp_ns == number * PERIOD


def test_lockstep_starts_anew_at_any_step_back():
    inbox = ObservationInbox(cart(), lockstep=True)
    for stamp in (3 * PERIOD, PERIOD, 2 * PERIOD):  # a simulator that was started again
        put(inbox, stamp)
        assert inbox.take().fresh
    put(inbox, 2 * PERIOD)
    assert inbox.take() is None
    assert (inbox.num_clock_jumps, inbox.num_out_of_order) == (1, 1)


def test_forget_empties_the_slots(inbox, clock):
    put(inbox, START)
    inbox.forget()
    assert inbox.take() is None
    clock.move(1.5)
    nothing = inbox.take()
    assert (nothing.state, nothing.fresh) == (None, False)
    # Nor is an older stamp out of order: it is the first.
    clock.move(1.0)
    assert ticks(inbox, clock, [START - PERIOD]) == [START - PERIOD]


def test_it_is_known_how_long_to_wait_for_a_message(inbox, clock):
    # The deadline is one and a half periods after the message before.
    put(inbox, START)
    assert inbox.due_in_s() == 0.0
    assert inbox.take().fresh
    assert inbox.due_in_s() == pytest.approx(1.5 * PERIOD * 1e-9)
    clock.move(1.5)
    assert inbox.due_in_s() == pytest.approx(0.0)
    assert not inbox.take().fresh
    lockstep = ObservationInbox(cart(), lockstep=True)
    assert lockstep.due_in_s() == math.inf


def test_the_state_handed_out_is_a_copy(inbox, clock):
    put(inbox, START, position=1.0)
    first = inbox.take()
    clock.move(1.0)
    put(inbox, START + PERIOD, position=2.0)
    assert first.state[0] == 1.0


# A message that is heard late


def test_a_message_is_due_when_it_arrived_not_when_it_was_heard(inbox, clock):
    put(inbox, START)
    assert inbox.take().fresh
    clock.move(1.3)  # a loop that was busy for 0.3 periods
    put(inbox, START + PERIOD, waited_s=0.3 * PERIOD * 1e-9)
    assert inbox.take().fresh
    assert inbox.due_s == pytest.approx(1000.0 + PERIOD * 1e-9)
    # The deadline of the next is one and a half periods after the arrival, 1.2 from now.
    assert inbox.due_in_s() == pytest.approx(1.2 * PERIOD * 1e-9)


@pytest.mark.parametrize(('waited_s', 'periods'), [(-3600.0, 0.0), (3600.0, 1.0)])
def test_a_clock_that_was_set_since_the_arrival_moves_it_by_a_period_at_most(
        inbox, clock, waited_s, periods):
    put(inbox, START)
    inbox.take()
    clock.move(3.0)
    put(inbox, START + 3 * PERIOD, waited_s=waited_s)
    assert inbox.take().fresh
    assert inbox.due_s == pytest.approx(1000.0 + (3.0 - periods) * PERIOD * 1e-9)


def test_a_message_that_was_refused_late_is_due_when_it_arrived(inbox, clock):
    put(inbox, START)
    inbox.take()
    clock.move(1.3)
    inbox.refuse('joint_states', 'no position', START + PERIOD, 0.3 * PERIOD * 1e-9)
    assert inbox.take().problem == 'no position'
    assert inbox.due_s == pytest.approx(1000.0 + PERIOD * 1e-9)
