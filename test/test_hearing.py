"""From messages to observations, and the rehearsal of it."""

import time

import pytest

pytest.importorskip('rclpy')

from sensor_msgs.msg import JointState

from mbrl_ros.control.inbox import ObservationInbox
from mbrl_ros.core.robot import load_robot
from mbrl_ros.nodes.hearing import Hearing, Rehearsal

ROBOT = load_robot('cartpole')
TOPIC = ROBOT.observation[0].topic
MS = 1_000_000


def joint_state(stamp_ns, position=0.1):
    message = JointState(name=['slider', 'hinge'], position=[position, 0.2], velocity=[0.3, 0.4])
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return message


def received(stamp_ns):
    return {'source_timestamp': stamp_ns, 'received_timestamp': stamp_ns}


@pytest.fixture
def inbox():
    return ObservationInbox(ROBOT, lockstep=False)


def test_what_waited_to_be_heard_is_due_since_it_arrived(inbox):
    hearing = Hearing(ROBOT, inbox, pytest.fail)
    now_ns, now_s = time.time_ns(), time.monotonic()
    hearing.callbacks[TOPIC](joint_state(now_ns), received(now_ns - 20 * MS))
    # Found due at once; the time between the two readings of the clocks is the tolerance.
    assert inbox.take().state.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert inbox.due_s == pytest.approx(now_s - 0.020, abs=0.010)


def test_a_middleware_that_does_not_know_the_arrival_is_believed_to_deliver_at_once(inbox):
    hearing = Hearing(ROBOT, inbox, pytest.fail)
    now_s = time.monotonic()
    hearing.callbacks[TOPIC](joint_state(time.time_ns()), received(0))
    inbox.take()
    assert now_s <= inbox.due_s <= time.monotonic()


def test_simulated_time_tells_how_old_a_message_is(inbox):
    hearing = Hearing(ROBOT, inbox, pytest.fail, now_ns=lambda: 5_300 * MS)
    hearing.callbacks[TOPIC](joint_state(5_000 * MS), received(0))
    assert inbox.age_s() == pytest.approx(0.3, abs=0.1)


def test_what_cannot_be_read_is_reported_and_refused(inbox):
    problems = []
    hearing = Hearing(ROBOT, inbox, problems.append)
    message = joint_state(time.time_ns())
    message.name = ['slider', 'wheel']
    hearing.callbacks[TOPIC](message, received(0))
    assert len(problems) == inbox.num_refused == 1
    assert problems[0].startswith(f'{TOPIC}: ')
    assert 'hinge' in problems[0]
    assert hearing.last is None


def test_a_rehearsal_reads_the_last_message_and_leaves_no_trace(inbox, monkeypatch):
    hearing = Hearing(ROBOT, inbox, pytest.fail)
    rehearse = Rehearsal(ROBOT, hearing)
    rehearse()  # nothing was heard yet
    taken, take = [], ObservationInbox.take
    hearing.callbacks[TOPIC](joint_state(time.time_ns(), 0.7), received(0))
    monkeypatch.setattr(ObservationInbox, 'take', lambda box: taken.append(take(box)) or taken[-1])
    rehearse()
    # It went all the way, a copy of it, to an observation.
    assert [observation.state.tolist() for observation in taken] == [[0.7, 0.2, 0.3, 0.4]]
    # And the one that counts is still there, once.
    assert inbox.take().state.tolist() == [0.7, 0.2, 0.3, 0.4]
    assert inbox.take() is None
    assert (inbox.num_refused, inbox.num_out_of_order) == (0, 0)
