"""
Faults around the controller: what the robot gets, who is told, and what goes on.

Each row of README's fault table, and the tests that show it:

kill -9 of the controller: test_fault_processes.py::test_the_controller_ends
SIGINT, SIGTERM of the controller: test_fault_processes.py::test_the_controller_ends,
    test_mpc_controller_node.py::test_a_signal_leaves_the_safe_value_as_last_command
kill -9, SIGINT, SIGTERM of the simulator: test_fault_processes.py::test_the_simulator_ends
kill -9, SIGINT, SIGTERM of the logger: test_fault_processes.py::test_the_logger_ends,
    test_data_logger_node.py::test_kill_9_of_the_logger_loses_nothing_before_the_last_flush,
    test_data_logger_node.py::test_a_signal_closes_the_bag
exception in the planner: test_faults.py::test_a_planner_that_raises
exception in the control loop:
    test_mpc_controller_node.py::test_an_error_in_the_loop_leaves_the_safe_value_and_says_so
state topic silent: test_faults.py::test_silence
state topic late: test_faults.py::test_late_messages,
    test_inbox.py::test_what_is_too_old_is_stale
state topic out of order, duplicated: test_faults.py::test_messages_out_of_order_and_twice
state topic NaN, joints missing:
    test_mpc_controller_node.py::test_an_observation_that_cannot_be_used_gives_the_safe_value,
    test_faults.py::test_a_fault_between_two_reports_is_told
joints permuted: test_mpc_controller_node.py::test_joints_in_another_order_drive_the_same
clock jumps back: test_faults.py::test_the_clock_of_the_robot_jumps_back,
    test_faults.py::test_the_clock_of_the_robot_is_set_back_a_little,
    test_faults.py::test_everybody_s_clock_jumps_back
message loss 10, 30, 50 %: test_faults.py::test_message_loss
command subscriber gone: test_faults.py::test_the_command_subscriber_is_gone
model file replaced by garbage during reload:
    test_model_reload.py::test_a_bad_model_is_refused_and_the_old_one_drives_on,
    test_faults.py::test_a_bad_model_after_a_good_one
disk full under the logger: test_fault_processes.py::test_the_disk_is_full_under_the_logger,
    test_bag_writer.py::test_a_failing_disk_is_reported_and_everything_unsaved_is_counted_lost
"""

from itertools import pairwise
from pathlib import Path
import re
import time

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy')

from controller_files import DT_S, edit, FORCE_GAIN, SAFE
from controller_robot import COMMANDS, DT_NS, STATE, tick_values
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from test_model_reload import write_model

ERROR, WARN = DiagnosticStatus.ERROR, DiagnosticStatus.WARN
# A robot falls silent: ticks come 1.5, 2.5, 3.5... control periods after its last message. That is
# stale after 0.12 s, 3 periods, so the third of them sends the safe value: 3.5 periods after the
# message, within its staleness limit and one period. Before that there are, at the most, the
# answer to the message and two ticks of its plan. A machine that stalls only makes them fewer.
MOST_UNSAFE = 3


@pytest.fixture
def history(robot):
    """Return all that /diagnostics says, as (concern, level, message)."""
    told = []

    def note(message):
        told.extend((status.name.removeprefix('mpc_controller: '), status.level, status.message)
                    for status in message.status)
    robot.create_subscription(DiagnosticArray, '/diagnostics', note, 100)
    return told


def has(history, concern, level, text):
    return any((c, lv) == (concern, level) and text in message for c, lv, message in history)


def publish(robot, age_ns=0, **changes):
    """Publish one observation stamped with the time of the day, and wait for a period."""
    robot.observe(stamp_ns=time.time_ns() - age_ns, **changes)
    time.sleep(DT_S)


def is_driving(tick):
    return tick_values(tick)['rung'] == 'plan' and tick.level != ERROR


@pytest.fixture
def drive(start, robot, history, eventually):
    """Return a function that starts a controller in real time, and drives until it plans."""
    def begin(**changes):
        controller = start(lockstep=False, actuation_delay_steps=1, allow_slow=True, **changes)
        go_on(robot, eventually)
        return controller
    return begin


def go_on(robot, eventually, **changes):
    """Publish until the controller drives, and return the stamp of the last observation."""
    count = len(robot.ticks)
    assert eventually(lambda: publish(robot, **changes) or any(
        is_driving(tick) for tick in robot.ticks[count + 5:]), 20.0)
    return robot.stamp_ns


def since(robot, stamp_ns):
    """Return the ticks that answer an observation of this stamp, or come after it."""
    stamps = [int(tick_values(tick)['stamp_ns']) for tick in robot.ticks]
    return robot.ticks[stamps.index(stamp_ns):] if stamp_ns in stamps else []


def assert_safe_in_time(ticks, reason):
    """After at most MOST_UNSAFE commands all are safe, for this reason; return the safe ones."""
    safe = [tick_values(tick)['safe'] == 'True' for tick in ticks]
    num_unsafe = safe.index(True)
    assert num_unsafe <= MOST_UNSAFE
    assert all(safe[num_unsafe:])
    for tick in ticks[num_unsafe:]:
        assert reason in tick.message
        assert float(tick_values(tick)['command']) == SAFE
    return ticks[num_unsafe:]


def test_the_table_names_tests_that_exist():
    named = re.findall(r'(test_\w+\.py)::(test_\w+)', __doc__)
    assert len(named) > 20
    for file, test in named:
        assert f'\ndef {test}(' in (Path(__file__).parent / file).read_text()


# The state topic


def test_silence(drive, robot, history, eventually, logged):
    drive()
    last_ns = go_on(robot, eventually)
    assert eventually(lambda: len(since(robot, last_ns)) > MOST_UNSAFE + 3)
    assert_safe_in_time(since(robot, last_ns), 'joint_states is stale')
    assert eventually(lambda: robot.sent[-3:] == [SAFE] * 3)
    assert logged('safe value sent: joint_states is stale')
    for concern in ('safety', 'observation'):
        assert eventually(lambda c=concern: has(history, c, ERROR, 'joint_states is stale'))
    go_on(robot, eventually)


def test_late_messages(drive, robot, history, eventually, logged):
    drive()
    last_ns = go_on(robot, eventually)
    # 4 periods under way, the limit is 3. The first ones are older than what is known already.
    late_ns = 4 * DT_NS
    for _ in range(12):
        publish(robot, late_ns)
    ticks = since(robot, last_ns)
    assert_safe_in_time(ticks, 'joint_states is stale')
    assert len({tick_values(tick)['stamp_ns'] for tick in ticks}) > 2  # they are looked at
    assert logged('safe value sent: joint_states is stale')
    assert eventually(lambda: publish(robot, late_ns) or has(
        history, 'safety', ERROR, 'joint_states is stale'))
    go_on(robot, eventually)


def test_messages_out_of_order_and_twice(drive, robot, history, eventually, logged, monkeypatch):
    controller = drive()
    seen, tick = [], controller._built.pilot.tick

    def look(observation):
        seen.append(observation)
        return tick(observation)
    monkeypatch.setattr(controller._built.pilot, 'tick', look)
    wrong = (1.9, *STATE[1:])
    first_ns, stamps = robot.stamp_ns + 1, []

    def disturb():
        publish(robot)
        stamps.append(robot.stamp_ns)
        robot.observe(wrong, stamp_ns=stamps[-1])  # twice
        robot.observe(wrong, stamp_ns=stamps[-1] - DT_NS // 2)  # overtaken
    text = 'late, out of order or sent twice'
    assert eventually(lambda: disturb() or (
        len(stamps) > 20 and has(history, 'observation', WARN, text)), 20.0)
    assert logged('observation: messages since the last report')
    told = [observation.stamp_ns for observation in seen if observation.stamp_ns >= first_ns]
    assert set(told) <= set(stamps)
    assert told == sorted(told)
    assert len(set(told)) > 10
    assert all(observation.state[0] == STATE[0] for observation in seen)
    robot.statuses.clear()
    assert eventually(lambda: 'observation' in robot.statuses
                      and robot.values('observation')['out_of_order'] == str(2 * len(stamps)))
    assert all('is stale' in tick.message for tick in robot.ticks if tick.level == ERROR)
    go_on(robot, eventually)


def test_a_fault_between_two_reports_is_told(start, robot, history, answer, eventually, logged):
    start()
    bad = (np.nan, *STATE[1:])
    text = 'safe values since the last report: slider_position on joint_states is not finite'

    def blink():
        answer()  # a report comes in the pause after a tick: after this one all is well again
        answer(bad)
        answer()
        time.sleep(0.1)
        return has(history, 'safety', WARN, text)
    assert eventually(blink)
    assert logged(text)


# The clock


def test_the_clock_of_the_robot_jumps_back(drive, robot, history, eventually, logged):
    drive()
    hour_ns = 3600 * 10**9
    publish(robot, hour_ns)
    first_ns = robot.stamp_ns
    for _ in range(6):
        publish(robot, hour_ns)
    assert eventually(lambda: since(robot, first_ns))
    # By its stamp the very first of them is an hour old.
    assert len(assert_safe_in_time(since(robot, first_ns), 'joint_states is stale: 36')) == len(
        since(robot, first_ns))
    assert logged('safe value sent: joint_states is stale: 36')
    assert eventually(lambda: publish(robot, hour_ns) or has(
        history, 'safety', ERROR, 'joint_states is stale: 36'))
    assert robot.values('observation')['clock_jumps'] == '1'
    go_on(robot, eventually)


def test_the_clock_of_the_robot_is_set_back_a_little(drive, robot, history, eventually):
    # By less than a second: taken for messages that were overtaken, until it has made up for it.
    drive()
    last_ns, back_ns = go_on(robot, eventually), 10 * DT_NS
    while time.time_ns() - back_ns < last_ns:
        publish(robot, back_ns)
    assert_safe_in_time(since(robot, last_ns), 'joint_states is stale')
    # Then by its stamps every message is 10 periods old: drive on when the clock is right again.
    publish(robot, back_ns)
    go_on(robot, eventually)
    assert eventually(lambda: int(robot.values('observation')['out_of_order']) > 5)


def test_everybody_s_clock_jumps_back(start, robot, history, eventually, logged):
    clock = robot.create_publisher(Clock, '/clock', 1)
    now_ns = 100 * 10**9

    def advance(by_ns=DT_NS):
        nonlocal now_ns
        now_ns += by_ns
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(now_ns, 10**9)
        clock.publish(message)
        time.sleep(DT_S / 2)  # it has arrived
        robot.observe(stamp_ns=now_ns)
        time.sleep(DT_S / 2)
    start(lockstep=False, allow_slow=True, use_sim_time=True)

    def drives(count):
        return any(is_driving(tick) for tick in robot.ticks[count + 5:])
    assert eventually(lambda: advance() or drives(0), 20.0)
    count = len(robot.ticks)
    advance(-10 * 10**9)
    jumped_ns = now_ns
    assert eventually(lambda: advance() or drives(count), 20.0)
    # Nothing is stale by the new time, and the first message by it is answered with a plan.
    assert [tick.message for tick in since(robot, jumped_ns) if 'stale: 9' in tick.message] == []
    assert is_driving(since(robot, jumped_ns)[0])
    text = 'messages since the last report: 1 from a clock that was set back'
    assert eventually(lambda: advance() or has(history, 'observation', WARN, text))
    assert logged(f'observation: {text}')


# The network


PERIODS = 50


@pytest.mark.parametrize('loss', [0.1, 0.3, 0.5])
def test_message_loss(drive, files, robot, eventually, loss):
    spec = yaml.safe_load((files / 'robots.yaml').read_text())
    spec['action'][0]['rate_limit'] = 50.0  # 2 a period, of a range of 6
    edit(files / 'robots.yaml', **spec)
    drive()
    rng, first, sent = np.random.default_rng(0), len(robot.ticks), []
    for _ in range(PERIODS):
        if rng.random() < loss:
            time.sleep(DT_S)
        else:
            publish(robot)
            sent.append(robot.stamp_ns)
    go_on(robot, eventually)
    ticks = [tick_values(tick) | {'reason': tick.message} for tick in robot.ticks[first:]]
    ticks = [tick for tick in ticks if int(tick['stamp_ns']) <= sent[-1]]
    stamps = [int(tick['stamp_ns']) for tick in ticks]
    # A message that came is acted upon, a tick without one has no plan of its own.
    assert len(set(stamps) & set(sent)) > 0.8 * len(sent)
    repeated = [tick for tick, (before, now) in zip(ticks[1:], pairwise(stamps), strict=True)
                if now == before]
    assert len(repeated) > 0.5 * loss * PERIODS
    assert {tick['rung'] for tick in repeated} <= {'shifted', 'safe'}
    for tick in ticks:
        assert tick['safe'] == 'False' or 'joint_states is stale' in tick['reason']
    # The ladder's rungs add up to the ticks, and that can be read.
    robot.statuses.clear()
    assert eventually(lambda: {'planning latency', 'safety'} <= robot.statuses.keys())
    counts = robot.values('planning latency')
    rungs = [int(counts[name]) for name in ('plan', 'shifted', 'held')]
    assert sum(rungs) + int(robot.values('safety')['safe']) == int(counts['ticks'])
    assert int(counts['shifted']) >= sum(tick['rung'] == 'shifted' for tick in repeated)
    # Limits and rate limit hold all the time; only the safe value may be reached at once.
    assert np.all(np.abs(robot.sent) <= 3.0)
    commands = np.array([float(tick_values(tick)['command']) for tick in robot.ticks])
    steps = np.abs(np.diff(commands))[commands[1:] != SAFE]
    assert np.all(steps <= 2.0 + 1e-6)
    assert steps.max() > 1.0


def test_the_command_subscriber_is_gone(start, robot, history, answer, eventually, logged):
    start()
    answer()
    topic, = (s for s in robot.subscriptions if s.topic_name == f'/{COMMANDS}')
    robot.destroy_subscription(topic)
    count = len(robot.ticks)
    text = f'nobody listens to {COMMANDS}'

    def alone():
        robot.observe()
        time.sleep(DT_S)
        return has(history, 'safety', ERROR, text)
    assert eventually(alone, 10.0)
    assert logged(f'safety: {text}')
    assert eventually(lambda: len(robot.ticks) > count + 5)
    assert {tick.level for tick in robot.ticks} == {DiagnosticStatus.OK}  # it plans on
    robot.create_subscription(
        Float64MultiArray, COMMANDS, lambda m: robot.sent.append(m.data[0]), 100)
    count = len(robot.sent)
    assert eventually(lambda: robot.observe() or time.sleep(DT_S) or len(robot.sent) > count)
    assert SAFE not in robot.sent[count:]
    robot.statuses.clear()
    assert eventually(lambda: 'safety' in robot.statuses
                      and robot.statuses['safety'].message == 'acting')


# What the controller is made of


def test_a_planner_that_raises(start, robot, history, answer, eventually, logged, monkeypatch):
    controller = start()
    assert answer()[0] != SAFE

    def fail(*_):
        raise ZeroDivisionError('cosmic ray')
    monkeypatch.setattr(controller._built.pilot._mpc, 'plan', fail)
    text = 'the planner failed: ZeroDivisionError: cosmic ray'
    for _ in range(2):
        command, tick = answer()
        assert command == SAFE
        assert (tick.level, tick.message) == (ERROR, text)
        assert tick_values(tick)['rung'] == 'safe'
    assert logged('Traceback')
    assert logged(f'safe value sent: {text}')
    assert eventually(lambda: has(history, 'safety', ERROR, text))
    monkeypatch.undo()
    command, tick = answer()
    assert command != SAFE
    assert is_driving(tick)


def test_a_bad_model_after_a_good_one(start, files, robot, answer, eventually, logged):
    # One after the other in one life of the node: rclpy refuses a line of code that logs first
    # with one severity, then with another, and that error ended the controller.
    start()
    client = robot.create_client(Trigger, 'mpc_controller/reload_model')
    assert client.wait_for_service(5.0)
    good = write_model(files, 2 * FORCE_GAIN, files / 'good.onnx')
    for content in ((files / 'good.onnx').read_bytes(), b'garbage'):
        (files / 'dynamics.onnx').write_bytes(content)
        future = client.call_async(Trigger.Request())
        while not future.done():
            answer()
        assert future.result().success == (content != b'garbage')
        assert tick_values(answer()[1])['model'] == good[:16]
    assert logged('~/reload_model: the old model stays')
    assert SAFE not in robot.sent[1:]
