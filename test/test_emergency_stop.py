"""The emergency stop: by service and by topic, latched, left by nothing but an explicit enable."""

from threading import Event

import numpy as np
import pytest

from mbrl_ros.control.latch import Latch

pytest.importorskip('rclpy')

from controller_files import SAFE
from controller_robot import tick_values
from diagnostic_msgs.msg import DiagnosticStatus
from endpoints import known_pairs
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

OK = TransitionCallbackReturn.SUCCESS


@pytest.fixture
def call(robot, eventually):
    """Return a function that calls a service of the controller."""
    def ask(kind, name, **request):
        client = robot.create_client(kind, f'mpc_controller/{name}')
        assert client.wait_for_service(5.0)
        future = client.call_async(kind.Request(**request))
        assert eventually(future.done, 20.0)
        robot.destroy_client(client)
        return future.result()
    return ask


def test_the_first_reason_stays_until_the_release():
    latch = Latch()
    assert (latch.reason, latch.release()) == ('', False)
    latch.trip('first')
    latch.trip('second')
    assert (latch.reason, latch.num_trips) == ('first', 1)
    assert latch.release()
    latch.trip('third')
    assert (latch.reason, latch.num_trips) == ('third', 2)


def test_the_service_stops_at_once_and_only_enable_goes_on(
        start, robot, answer, call, eventually, logged):
    start()
    assert answer()[0] != SAFE
    count = len(robot.sent)
    response = call(Trigger, 'stop')
    assert (response.success, response.message) == (True, 'emergency stop by ~/stop')
    # Without an observation: in lock-step nothing else would make the controller speak.
    assert eventually(lambda: len(robot.sent) == count + 1)
    assert robot.sent[-1] == SAFE
    assert logged('emergency stop by ~/stop; ~/enable lets commands out again')
    for _ in range(2):
        command, tick = answer()
        assert (command, tick.message) == (SAFE, 'emergency stop by ~/stop')
        assert tick_values(tick)['rung'] == 'safe'
    assert eventually(lambda: robot.statuses.get('safety') is not None
                      and robot.statuses['safety'].level == DiagnosticStatus.ERROR)
    assert robot.statuses['safety'].message == 'emergency stop by ~/stop'
    assert robot.values('safety')['stops'] == '1'
    response = call(SetBool, 'enable', data=True)
    assert (response.success, response.message) == (True, 'enabled; plans begin anew')
    assert answer()[0] != SAFE
    assert call(SetBool, 'enable', data=True).message == 'was not stopped'


def test_the_stop_outlives_deactivation_and_clean_up(start, robot, answer, call):
    controller = start()
    answer()
    call(SetBool, 'enable', data=False)
    assert controller.trigger_deactivate() == OK
    assert controller.trigger_cleanup() == OK
    assert controller.trigger_configure() == OK
    assert controller._latch.reason == 'emergency stop by ~/enable: false'


def test_a_stop_before_the_node_is_active_moves_nothing(start, robot, call, answer, eventually):
    controller = start()
    assert controller.trigger_deactivate() == OK
    assert eventually(lambda: len(robot.sent) == 2)  # one on the way in, one on the way out
    call(Trigger, 'stop')
    assert controller.trigger_activate() == OK
    assert eventually(lambda: len(robot.sent) == 3)
    assert answer()[0] == SAFE
    assert set(robot.sent) == {SAFE}


BUTTONS = {
    'reliable': QoSProfile(depth=1),
    'best effort': QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
    'latched': QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)}


@pytest.mark.parametrize(('offers', 'heard_by'), [('reliable', 2), ('best effort', 1),
                                                  ('latched', 3)])
def test_the_topic_stops_and_false_on_it_releases_nothing(
        start, robot, answer, eventually, offers, heard_by):
    controller = start()
    answer()
    button = robot.create_publisher(Bool, 'emergency_stop', BUTTONS[offers])
    assert eventually(lambda: known_pairs('/emergency_stop', robot, controller)
                      == (heard_by, heard_by))
    button.publish(Bool(data=False))
    assert answer()[0] != SAFE
    count = len(robot.sent)
    button.publish(Bool(data=True))
    assert eventually(lambda: len(robot.sent) == count + 1)
    button.publish(Bool(data=False))
    assert answer()[0] == SAFE
    assert controller._latch.reason == 'emergency stop by the topic emergency_stop'
    assert controller._latch.num_trips == 1


def test_a_latched_button_that_was_pressed_before_is_heard(robot, start, eventually):
    button = robot.create_publisher(Bool, 'emergency_stop', BUTTONS['latched'])
    button.publish(Bool(data=True))
    controller = start()
    # DDS repeats after three seconds what it tells in vain.
    assert eventually(lambda: controller._latch.reason, 10.0)
    # That of the activation and the answer; one more if it was heard in between.
    robot.observe()
    assert eventually(lambda: robot.ticks and len(robot.sent) >= 2)
    assert set(robot.sent) == {SAFE}


def test_a_stop_and_enable_within_one_tick_lets_no_older_command_out(
        start, robot, eventually, monkeypatch):
    controller = start()
    tick = controller._built.pilot.tick

    def stopped_meanwhile(observation):
        found = tick(observation)  # the gate let this one out
        assert not found.verdict.safe
        controller._latch.trip('stop')
        controller._latch.release()
        return found
    monkeypatch.setattr(controller._built.pilot, 'tick', stopped_meanwhile)
    count = len(robot.sent)
    robot.observe()
    assert eventually(lambda: len(robot.sent) == count + 1)
    assert robot.sent[-1] == SAFE


def test_a_control_loop_that_hangs_keeps_neither_robot_nor_shutdown(
        start, robot, eventually, logged, monkeypatch):
    controller = start(lockstep=False, allow_slow=True)
    hanging, free = Event(), Event()

    def hang(tick, stamp_ns):
        hanging.set()
        assert free.wait(30.0)
    monkeypatch.setattr(controller._loop, '_on_tick', hang)
    robot.observe()
    assert hanging.wait(5.0)
    count = len(robot.sent)
    # 0.5 s and three periods later somebody notices.
    assert eventually(lambda: len(robot.sent) > count)
    assert robot.sent[-1] == SAFE
    assert logged('the control loop has stood still for')
    assert eventually(lambda: 'stood still' in robot.statuses['safety'].message)
    assert controller.trigger_deactivate() == OK  # though the thread does not end
    assert robot.sent[-1] == SAFE
    free.set()


def test_a_command_on_its_way_cannot_follow_the_stop(start, robot, eventually, monkeypatch):
    controller = start()
    planning, go_on = Event(), Event()
    pilot_tick = controller._built.pilot.tick

    def held_back(observation):
        tick = pilot_tick(observation)  # the gate let this one out
        assert not tick.verdict.safe
        planning.set()
        assert go_on.wait(5.0)
        return tick
    monkeypatch.setattr(controller._built.pilot, 'tick', held_back)
    robot.observe()
    assert planning.wait(5.0)
    count = len(robot.sent)
    controller._stop_robot('now')
    go_on.set()
    assert eventually(lambda: len(robot.sent) == count + 2)
    assert robot.sent[count:] == [SAFE, SAFE]


def test_plans_from_before_the_stop_are_forgotten(start, robot, answer, call):
    controller = start(actuation_delay_steps=2)
    for _ in range(3):
        answer()
    call(Trigger, 'stop')
    call(SetBool, 'enable', data=True)
    answer()
    # What was sent before the stop is not in flight any more.
    inputs = controller._meter.last.decision.inputs
    np.testing.assert_array_equal(inputs.in_flight, [[SAFE], [SAFE]])
