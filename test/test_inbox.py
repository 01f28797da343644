"""The observation inbox: the pace of the control loop, and what is refused."""

from threading import Thread

from fakes import cart, cart_dict
import numpy as np
import pytest

from mbrl_ros.control.inbox import ObservationInbox
from mbrl_ros.core.robot import RobotSpec

MS = 1_000_000
PERIOD = 100 * MS  # the cart's control period


@pytest.fixture
def inbox():
    return ObservationInbox(cart(), lockstep=False)


def put(inbox, stamp_ns, position=0.0, age_s=0.0):
    inbox.put('joint_states', [position, 0.0], int(stamp_ns), age_s)


def ticks(inbox, stamps_ns):
    """Return the stamps at which a tick was due."""
    due = []
    for stamp in stamps_ns:
        put(inbox, stamp)
        if inbox.wait(0.0).fresh:
            due.append(int(stamp))
            assert inbox.stamp_ns == int(stamp)
    return due


START = 1_700_000_000_000 * MS


@pytest.mark.parametrize('jitter', [0.0, 0.04])
def test_every_message_at_the_control_rate_is_a_tick(inbox, jitter):
    rng = np.random.default_rng(0)
    stamps = [START + i * PERIOD + int(rng.uniform(-jitter, jitter) * PERIOD) for i in range(200)]
    assert ticks(inbox, stamps) == stamps


@pytest.mark.parametrize('rate', [0.99, 0.999, 1.001, 1.02])
def test_a_clock_that_is_a_little_off_loses_no_tick(inbox, rate):
    stamps = [START + int(i * PERIOD / rate) for i in range(300)]
    assert ticks(inbox, stamps) == stamps


@pytest.mark.parametrize('faster', [2, 3, 20])
def test_a_faster_publisher_is_thinned_to_the_control_rate(inbox, faster):
    rng = np.random.default_rng(0)
    stamps = [START + (i * PERIOD) // faster + int(rng.uniform(0, 0.02) * PERIOD / faster)
              for i in range(faster * 100)]
    due = np.array(ticks(inbox, stamps))
    # 100 periods: one tick each, at the first message up to a tenth early.
    assert len(due) in (100, 101)
    assert np.abs(np.diff(due[1:]) - PERIOD).max() <= 0.06 * PERIOD


def test_a_slower_publisher_ticks_at_each_message(inbox):
    stamps = [START + 3 * i * PERIOD for i in range(10)]
    assert ticks(inbox, stamps) == stamps


def test_stamps_that_jump_back_go_on_at_once(inbox):
    before = [START + i * PERIOD for i in range(5)]
    after = [i * PERIOD for i in range(1, 6)]
    assert ticks(inbox, before + after) == before + after


def test_silence_is_a_tick_without_a_fresh_state(inbox):
    put(inbox, START, position=3.0)
    assert inbox.wait(0.0).fresh
    again = inbox.wait(0.01)
    assert (again.fresh, again.problem, again.state.tolist()) == (False, '', [3.0, 0.0])


def test_nothing_yet(inbox):
    nothing = inbox.wait(0.0)
    assert (nothing.state, nothing.fresh) == (None, False)
    assert nothing.problem == 'no message on joint_states yet'
    assert inbox.age_s() == float('inf')


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_number_that_is_none_is_refused_and_still_a_tick(inbox, value):
    put(inbox, START, position=1.0)
    inbox.wait(0.0)
    put(inbox, START + PERIOD, position=value)
    bad = inbox.wait(0.0)
    assert bad.fresh
    assert bad.problem == 'position on joint_states is not finite'
    assert inbox.num_refused == 1
    assert bad.state.tolist() == [1.0, 0.0]  # never the bad number
    put(inbox, START + 2 * PERIOD, position=2.0)
    good = inbox.wait(0.0)
    assert (good.problem, good.state.tolist()) == ('', [2.0, 0.0])


def test_a_refused_message_says_why_until_a_good_one(inbox):
    inbox.refuse('joint_states', "no 'rail' in this message", START)
    assert inbox.wait(0.0).problem == "no 'rail' in this message"
    assert inbox.wait(0.0).problem == "no 'rail' in this message"
    put(inbox, START + PERIOD)
    assert inbox.wait(0.0).problem == ''


def test_what_is_too_old_is_stale(inbox):
    put(inbox, START, age_s=0.2)  # the cart allows 0.25 s: not yet
    assert inbox.wait(0.0).problem == ''
    put(inbox, START + PERIOD, age_s=0.3)
    problem = inbox.wait(0.0).problem
    assert problem.startswith('joint_states is stale: 0.3')
    assert problem.endswith('limit 0.25 s')
    assert 0.3 <= inbox.age_s() < 5.0


def test_a_state_becomes_stale_while_one_waits(inbox):
    put(inbox, START, age_s=0.2)
    assert inbox.wait(0.0).problem == ''
    assert 'stale' in inbox.wait(0.1).problem  # 0.2 + 0.1 > 0.25


def test_lockstep_waits_and_nothing_is_stale():
    inbox = ObservationInbox(cart(), lockstep=True)
    assert inbox.wait(0.01) is None
    put(inbox, START, age_s=1e6)
    assert inbox.wait(0.0).problem == ''
    assert inbox.wait(0.01) is None


def two_topics():
    spec = cart_dict()
    spec['observation'][1] |= {'topic': 'speed', 'path': 'velocity[cart]'}
    spec['stale_after_s']['speed'] = 0.25
    return RobotSpec.model_validate(spec)


def test_the_topic_of_the_first_field_sets_the_pace():
    inbox = ObservationInbox(two_topics(), lockstep=False)
    inbox.put('speed', [7.0], START, 0.0)
    early = inbox.wait(0.0)
    assert (early.fresh, early.state) == (False, None)
    assert early.problem == 'no message on joint_states yet'
    inbox.put('joint_states', [1.0], START, 0.0)
    both = inbox.wait(0.0)
    assert (both.fresh, both.problem, both.state.tolist()) == (True, '', [1.0, 7.0])
    # One of them stale is enough, and it is named.
    inbox.put('speed', [7.0], START + PERIOD, 0.5)
    inbox.put('joint_states', [1.0], START + PERIOD, 0.0)
    assert inbox.wait(0.0).problem.startswith('speed is stale')


def test_forget_empties_the_slots(inbox):
    put(inbox, START)
    inbox.forget()
    nothing = inbox.wait(0.0)
    assert (nothing.state, nothing.fresh) == (None, False)
    assert ticks(inbox, [START + PERIOD // 10]) == [START + PERIOD // 10]


def test_a_message_wakes_the_loop(inbox):
    found = []
    thread = Thread(target=lambda: found.append(inbox.wait(30.0)))
    thread.start()
    put(inbox, START, position=4.0)
    thread.join(10.0)
    assert found[0].fresh
    assert found[0].state.tolist() == [4.0, 0.0]


def test_the_state_handed_out_is_a_copy(inbox):
    put(inbox, START, position=1.0)
    first = inbox.wait(0.0)
    put(inbox, START + PERIOD, position=2.0)
    assert first.state[0] == 1.0
