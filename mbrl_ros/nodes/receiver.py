"""A thread that hears the robot: what it reports waits behind no other callback."""

from collections.abc import Callable, Iterator
from functools import partial
from threading import Thread
import traceback
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.subscription import Subscription

WaitSet = rclpy_implementation.WaitSet
END_TIMEOUT_S = 5.0
# A context that is shut down wakes nobody: it is looked at this often.
LOOK_S = 0.5

# Hears for so many seconds [s] at most.
Receive = Callable[[float], None]


class Apart(CallbackGroup):
    """
    A group that an executor leaves alone.

    Subscriptions with all their events: a message that nobody took yet wakes whoever waits for an
    event of its subscription, again and again.
    """

    def can_execute(self, entity: Any) -> bool:
        """Return whether an executor may wait for an entity: for none of them."""
        return False

    def beginning_execution(self, entity: Any) -> bool:
        """Return whether an executor may call back for an entity: for none of them."""
        return False

    def ending_execution(self, entity: Any) -> None:
        """Nothing was begun."""


class Receiver:
    """
    Takes messages and events as they arrive and hands them over, in a thread of its own.

    An executor of rclpy looks at all that a node has, in Python, each time that anything wakes it,
    and twice for each callback: with the controller's publishers, services and timers a message
    waits for most of a millisecond, and longer behind another callback. The wait set is the one
    that rclpy's own `wait_for_message` is made of.

    Parameters
    ----------
    node : Node
        Owner of the subscriptions.
    subscriptions : list of Subscription
        Made with an `Apart` group; each callback takes (message, message info). Messages of the
        first are handed over after those of all others that were there before them: whoever acts
        on the first knows the others.
    on_crash : callable
        Takes the traceback if a callback raises.

    """

    def __init__(self, node: Node, subscriptions: list[Subscription],
                 on_crash: Callable[[str], object]) -> None:
        self._node, self._subscriptions, self._on_crash = node, subscriptions, on_crash
        self._events = [event for subscription in subscriptions
                        for event in subscription.event_handlers]
        self._wake = node.create_guard_condition(lambda: None, callback_group=Apart())
        self._work: Callable[[Receive], None] | None = None
        self._is_stopped = False
        self._thread = Thread(target=self._run, name='receive', daemon=True)
        self._thread.start()

    def lend(self, work: Callable[[Receive], None]) -> None:
        """
        Have the thread do `work`, soon, until that returns: nobody is woken to act on a message.

        Parameters
        ----------
        work : callable
            Takes what hears, and calls it: that waits for something to arrive, so many seconds at
            the most, and hands all over that has.

        """
        self._work = work
        self._wake.trigger()

    def _run(self) -> None:
        context, handle = self._node.context, self._node.context.handle
        assert handle is not None  # a node has an open one
        with handle:
            wait_set = WaitSet(len(self._subscriptions), 1, 0, 0, 0, len(self._events), handle)
            while not self._is_stopped and context.ok():
                if self._work is not None:  # not taken unseen: what is lent meanwhile must stay
                    work, self._work = self._work, None
                    work(partial(self._hear, wait_set))
                else:
                    self._hear(wait_set, LOOK_S)

    def _hear(self, wait_set: Any, timeout_s: float) -> None:
        wait_set.clear_entities()
        wait_set.add_guard_condition(self._wake.handle)
        for subscription in self._subscriptions:
            wait_set.add_subscription(subscription.handle)
        for event in self._events:
            event.add_to_wait_set(wait_set)
        wait_set.wait(round(timeout_s * 1e9))
        try:
            for event in self._events:
                if event.is_ready(wait_set):
                    event.callback(event.take_data())
            self._receive()
        except Exception:
            self._on_crash(traceback.format_exc())

    def _receive(self) -> None:
        taken = [(subscription, list(_take_all(subscription)))
                 for subscription in self._subscriptions]
        for subscription, messages in reversed(taken):
            for message, info in messages:
                subscription.callback(message, info)

    def close(self) -> None:
        """End the thread; the subscriptions are the caller's to destroy."""
        self._is_stopped = True
        self._wake.trigger()
        self._thread.join(END_TIMEOUT_S)
        self._node.destroy_guard_condition(self._wake)


def _take_all(subscription: Subscription) -> Iterator[tuple[Any, Any]]:
    handle = subscription.handle
    while (taken := handle.take_message(subscription.msg_type, subscription.raw)) is not None:
        yield taken
