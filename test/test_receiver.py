"""The receiver: messages beside the executor, of several topics in a useful order."""

from threading import current_thread

import pytest

pytest.importorskip('rclpy')

from endpoints import have_matched
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Int32

from mbrl_ros.nodes.receiver import Apart, Receiver

RELIABLE, BEST_EFFORT = QoSProfile(depth=100), QoSProfile(
    depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


@pytest.fixture
def heard(ros, eventually):
    """Return a node, its publishers of 'pace' and 'other', what arrives, and what crashed."""
    node = ros.create_node('hearer')
    received, crashes = [], []

    def callback(name):
        def take(message, info):
            if message.data < 0:
                raise ValueError('negative')
            received.append((name, message.data, info['source_timestamp']))
        return take
    apart = Apart()
    receiver = Receiver(node, [
        node.create_subscription(Int32, name, callback(name), RELIABLE, callback_group=apart)
        for name in ('pace', 'other')], crashes.append)
    publishers = [node.create_publisher(Int32, name, RELIABLE) for name in ('pace', 'other')]
    assert eventually(lambda: have_matched(node))
    yield node, publishers, received, crashes
    receiver.close()
    node.destroy_node()


def test_messages_arrive_though_nobody_spins(heard, eventually):
    _, (pace, _), received, crashes = heard
    for number in range(20):
        pace.publish(Int32(data=number))
    assert eventually(lambda: len(received) == 20)
    assert [number for _, number, _ in received] == list(range(20))
    assert all(sent_ns > 0 for *_, sent_ns in received)
    assert not crashes


def test_whoever_hears_the_first_topic_knows_the_others(heard, eventually):
    _, (pace, other), received, _ = heard
    for number in range(90):
        other.publish(Int32(data=number))
        pace.publish(Int32(data=number))
    assert eventually(lambda: len(received) == 180)
    known = -1
    for name, number, _ in received:
        known = number if name == 'other' else known
        assert name == 'other' or known >= number


def test_a_callback_that_raises_is_told_and_the_next_message_arrives(heard, eventually):
    _, (pace, _), received, crashes = heard
    pace.publish(Int32(data=-1))
    assert eventually(lambda: crashes)
    assert 'ValueError: negative' in crashes[0]
    pace.publish(Int32(data=5))
    assert eventually(lambda: [number for _, number, _ in received] == [5])


def test_what_borrows_the_thread_hears_in_it(ros, eventually):
    node, heard, given_back = ros.create_node('hearer'), [], []
    subscription = node.create_subscription(
        Int32, 'pace', lambda message, info: heard.append((message.data, current_thread())),
        RELIABLE, callback_group=Apart())
    receiver = Receiver(node, [subscription], lambda text: None)
    pace = node.create_publisher(Int32, 'pace', RELIABLE)
    assert eventually(lambda: have_matched(node))

    def work(receive):
        receive(0.0)
        assert not heard  # nothing has arrived: it does not wait
        pace.publish(Int32(data=1))
        while not heard:
            receive(10.0)
        given_back.append(current_thread())
    receiver.lend(work)
    assert eventually(lambda: given_back)
    assert heard == [(1, given_back[0])]
    pace.publish(Int32(data=2))  # now it hears by itself again
    assert eventually(lambda: len(heard) == 2)
    receiver.close()
    node.destroy_node()


def test_an_executor_is_not_woken_by_what_it_does_not_take(heard, ros, eventually):
    node, (pace, _), received, _ = heard
    executor = ros.executors.SingleThreadedExecutor()
    executor.add_node(node)
    executor.spin_once(timeout_sec=0.1)
    looks, can_execute = [], executor.can_execute
    executor.can_execute = lambda entity: looks.append(entity) or can_execute(entity)
    for number in range(50):
        pace.publish(Int32(data=number))
    executor.spin_once(timeout_sec=0.3)
    # It looks at all it has once, before it waits, and is asked about each entity; a wait that a
    # message ends begins anew with another look.
    assert eventually(lambda: len(received) == 50)
    assert max(looks.count(entity) for entity in looks) == 1
    executor.shutdown()


def test_a_publisher_that_offers_too_little_is_told_of(ros, eventually):
    node, events = ros.create_node('hearer'), []
    subscription = node.create_subscription(
        Int32, 'pace', lambda message, info: None, RELIABLE, callback_group=Apart(),
        event_callbacks=SubscriptionEventCallbacks(incompatible_qos=events.append))
    receiver = Receiver(node, [subscription], lambda text: None)
    node.create_publisher(Int32, 'pace', BEST_EFFORT)
    assert eventually(lambda: events)
    receiver.close()
    node.destroy_node()
