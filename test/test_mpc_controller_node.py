"""The controller on real DDS: commands, safe values, and what it reports."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy')

from controller_files import (
    DT_S,
    edit,
    FORCE_GAIN,
    HORIZON,
    make_controller,
    parameters_of,
    SAFE,
)
from controller_robot import COMMANDS, DT_NS, STATE, tick_values
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.lifecycle import TransitionCallbackReturn
from std_msgs.msg import Float64

from mbrl_ros.nodes.hearing import Rehearsal
from mbrl_ros.runtime import artifact

OK = TransitionCallbackReturn.SUCCESS
REPO = Path(__file__).parents[1]


@pytest.fixture
def change(robot, eventually):
    """Return a function that asks for a transition by service; it returns the state's label."""
    def call(client, request):
        assert client.wait_for_service(5.0)
        future = client.call_async(request)
        assert eventually(future.done, 20.0)
        return future.result()

    def transition(number):
        request = ChangeState.Request(transition=Transition(id=number))
        assert call(robot.change_client, request).success
        return call(robot.state_client, GetState.Request()).current_state.id
    return transition


@pytest.mark.parametrize(('lockstep', 'of_robot', 'given', 'expected'), [
    # At once in lock-step, a period late in real time, and what the robot adds; or as given.
    (True, 0, -1, 0), (False, 0, -1, 1), (True, 2, -1, 2), (False, 2, -1, 3), (False, 2, 0, 0)])
def test_delay_is_that_of_the_robot_and_of_time(files, ros, lockstep, of_robot, given, expected):
    edit(files / 'robots.yaml', actuation_delay_steps=of_robot)
    controller = make_controller(files, lockstep=lockstep, actuation_delay_steps=given)
    assert controller.trigger_configure() == OK, controller.refusal
    assert controller._config.delay_steps == expected
    controller.leave()
    controller.destroy_node()


# The life of the node


def test_one_command_an_observation_and_the_safe_value_on_every_way_out(
        files, robot, spin, matched, change, answer, eventually):
    controller = make_controller(files)
    spin(robot)
    spin(controller)
    expected = 0
    for ending in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVE_SHUTDOWN):
        assert change(Transition.TRANSITION_CONFIGURE) == State.PRIMARY_STATE_INACTIVE
        matched(controller)
        robot.observe()  # not active: no answer
        time.sleep(0.2)
        assert len(robot.sent) == expected
        assert change(Transition.TRANSITION_ACTIVATE) == State.PRIMARY_STATE_ACTIVE
        assert eventually(lambda count=expected + 1: len(robot.sent) == count)
        assert robot.sent[-1] == SAFE
        commands = [answer()[0] for _ in range(4)]
        assert SAFE not in commands
        assert all(-3.0 <= command <= 3.0 for command in commands)
        time.sleep(0.2)  # five periods: nothing unasked comes in lock-step
        assert len(robot.sent) == expected + 5
        left = change(ending)
        assert eventually(lambda count=expected + 6: len(robot.sent) == count)
        assert robot.sent[-1] == SAFE
        expected += 6
        if ending == Transition.TRANSITION_DEACTIVATE:
            assert left == State.PRIMARY_STATE_INACTIVE
            assert change(Transition.TRANSITION_CLEANUP) == State.PRIMARY_STATE_UNCONFIGURED
            assert robot.count_publishers(f'/{COMMANDS}') == 0
    assert left == State.PRIMARY_STATE_FINALIZED
    assert len(robot.sent) == expected


def test_what_was_seen_before_an_activation_is_not_acted_upon(start, robot, answer, eventually):
    controller = start()
    first = [answer()[0] for _ in range(3)]
    assert controller.trigger_deactivate() == OK
    assert controller.trigger_activate() == OK
    assert eventually(lambda: len(robot.sent) == 6)  # two safe values since
    assert robot.sent[-2:] == [SAFE, SAFE]
    assert [answer()[0] for _ in range(3)] != first  # the generator goes on


def test_an_error_in_the_loop_leaves_the_safe_value_and_says_so(
        start, robot, answer, eventually, logged, monkeypatch):
    controller = start()
    answer()

    def fail(observation):
        raise ZeroDivisionError('cosmic ray')
    monkeypatch.setattr(controller._built.pilot, 'tick', fail)
    robot.observe()
    assert eventually(lambda: len(robot.sent) == 4)  # by the loop, and by the deactivation
    assert robot.sent[-2:] == [SAFE, SAFE]
    assert logged('control loop stopped')
    assert logged('ZeroDivisionError: cosmic ray')
    assert eventually(lambda: 'safety' in robot.statuses
                      and robot.statuses['safety'].level == DiagnosticStatus.ERROR)
    assert robot.statuses['safety'].message == 'control loop stopped; see the log'
    # It does not stay active with nobody at the wheel.
    assert eventually(lambda: controller._state_machine.current_state[1] == 'inactive')


def test_an_error_in_a_transition_leaves_the_node_unconfigured(files, ros, monkeypatch, logged):
    controller = make_controller(files)

    def fail(*_):
        raise ZeroDivisionError('cosmic ray')
    monkeypatch.setattr('mbrl_ros.nodes.mpc_controller.load_task', fail)
    assert controller.trigger_configure() == TransitionCallbackReturn.ERROR
    assert logged('cannot configure:\nTraceback')
    assert controller._state_machine.current_state[1] == 'unconfigured'
    monkeypatch.undo()
    assert controller.trigger_configure() == OK, controller.refusal
    controller.leave()
    controller.destroy_node()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP,
                                    signal.SIGQUIT])
def test_a_signal_leaves_the_safe_value_as_last_command(files, robot, spin, eventually, number):
    arguments = [text for name, value in parameters_of(files, autostart=True).items()
                 for text in ('-p', f'{name}:={json.dumps(value)}')]
    spin(robot)
    with subprocess.Popen([sys.executable, '-m', 'mbrl_ros.nodes.mpc_controller', '--ros-args',
                           *arguments], cwd=REPO, env=dict(os.environ)) as process:
        try:
            assert eventually(lambda: robot.states.get_subscription_count() == 1, 20.0)

            def moving():
                robot.observe()
                time.sleep(0.02)
                return any(command != SAFE for command in robot.sent)
            assert eventually(moving, 20.0)
            process.send_signal(number)
            assert eventually(lambda: (robot.observe(), process.poll() is not None)[1], 10.0)
            assert process.returncode == 0
        finally:
            process.kill()
    assert eventually(lambda: robot.sent[-1] == SAFE)
    time.sleep(0.2)
    assert robot.sent[-1] == SAFE


# What it observes


def test_joints_in_another_order_drive_the_same(start, robot, answer, matched, eventually):
    controller = start()
    states = [np.array(STATE) + 0.01 * k for k in range(6)]
    usual = [answer(state)[0] for state in states]
    assert controller.trigger_deactivate() == OK
    assert controller.trigger_cleanup() == OK
    assert controller.trigger_configure() == OK  # the generator starts anew
    matched(controller)
    assert controller.trigger_activate() == OK
    assert eventually(lambda: len(robot.sent) == 1 + len(states) + 2)  # two safe values since
    others = ('gripper', 'hinge', 'slider')
    assert [answer(state, joints=others)[0] for state in states] == usual
    assert len(set(usual)) == len(usual)


@pytest.mark.parametrize(('changes', 'reason'), [
    ({'state': (np.nan, *STATE[1:])}, 'slider_position on joint_states is not finite'),
    ({'state': (*STATE[:3], np.inf)}, 'hinge_velocity on joint_states is not finite'),
    ({'joints': ('slider',)}, "no 'hinge' in this message; it names ['slider']"),
    ({'velocity': []}, 'index 0 of an array of 0')])
def test_an_observation_that_cannot_be_used_gives_the_safe_value(
        start, robot, answer, eventually, logged, changes, reason):
    start()
    assert answer()[0] != SAFE
    command, tick = answer(**changes)
    assert command == SAFE
    assert tick.level == DiagnosticStatus.ERROR
    assert reason in tick.message
    assert tick_values(tick)['safe'] == 'True'
    assert 'plan_ms' not in tick_values(tick)
    assert logged(f'safe value sent: {tick.message}')
    robot.statuses.clear()
    assert eventually(lambda: 'safety' in robot.statuses)
    safety = robot.statuses['safety']
    assert (safety.level, safety.message) == (DiagnosticStatus.ERROR, tick.message)
    assert robot.values('observation')['refused'] == '1'
    command, tick = answer()
    assert command != SAFE
    assert (tick.level, tick.message) == (DiagnosticStatus.OK, '')
    robot.statuses.clear()
    assert eventually(lambda: 'safety' in robot.statuses)
    assert robot.statuses['safety'].level == DiagnosticStatus.OK
    assert robot.statuses['observation'].level == DiagnosticStatus.OK


def test_a_silent_robot_gets_the_safe_value_until_it_speaks_again(start, robot, eventually):
    start(lockstep=False, actuation_delay_steps=1, allow_slow=True)

    def publish():
        robot.observe(stamp_ns=time.time_ns())
        time.sleep(DT_S)
        return bool(robot.ticks) and robot.ticks[-1].level != DiagnosticStatus.ERROR
    assert eventually(publish, 20.0)
    assert eventually(lambda: robot.ticks[-1].level == DiagnosticStatus.ERROR)
    assert 'joint_states is stale: ' in robot.ticks[-1].message
    assert 'limit 0.12 s' in robot.ticks[-1].message
    assert eventually(lambda: robot.sent[-1] == SAFE)
    plans = len(robot.plans)
    robot.statuses.clear()
    assert eventually(lambda: 'safety' in robot.statuses)
    assert robot.statuses['safety'].level == DiagnosticStatus.ERROR
    assert 'joint_states is stale' in robot.statuses['safety'].message
    assert float(robot.values('observation')['age_s']) > 0.12
    assert len(robot.plans) == plans  # an old plan is not told again
    # An observation that was under way for too long is as stale as none.
    robot.observe(stamp_ns=time.time_ns() - 10**9)
    time.sleep(0.1)
    assert robot.sent[-1] == SAFE
    assert eventually(publish, 20.0)
    assert eventually(lambda: publish() and robot.sent[-1] != SAFE, 20.0)


def test_before_the_first_observation_the_safe_value_is_sent(start, robot, eventually):
    start(lockstep=False, allow_slow=True)
    assert eventually(lambda: len(robot.sent) > 5)
    assert set(robot.sent) == {SAFE}
    assert eventually(lambda: 'observation' in robot.statuses)
    assert robot.statuses['observation'].level == DiagnosticStatus.WARN
    assert robot.statuses['observation'].message == 'no message yet'


# What it reports


def test_what_it_rehearses_once_a_period_comes_to_nothing(start, robot, monkeypatch):
    rehearsals, rehearse = [], Rehearsal.__call__

    def count(rehearsal):
        rehearse(rehearsal)
        rehearsals.append(time.monotonic())
    monkeypatch.setattr(Rehearsal, '__call__', count)
    # A quarter of the period ahead: without real-time priority a sleep ends a millisecond late.
    monkeypatch.setattr('mbrl_ros.nodes.control_loop.REHEARSAL_S', 0.010)
    monkeypatch.setattr('mbrl_ros.nodes.control_loop.LATEST_REHEARSAL_S', 0.008)
    controller = start(lockstep=False)
    observed, begin_s = [], time.monotonic()
    for number in range(40):
        time.sleep(max(0.0, begin_s + number * DT_S - time.monotonic()))
        observed.append(time.monotonic())
        robot.observe(stamp_ns=time.time_ns())
    # One between two observations; a machine that stalls leaves some out.
    counts, _ = np.histogram(rehearsals, observed)
    assert set(counts) <= {0, 1}
    assert counts.sum() > 20
    inbox = controller._inbox
    assert (inbox.num_refused, inbox.num_out_of_order, inbox.num_clock_jumps) == (0, 0, 0)


def test_diagnostics_once_a_second_with_the_figures(start, robot, answer, eventually, files):
    start()
    for _ in range(5):
        answer()
    robot.statuses.clear()
    count = len(robot.reports)
    assert eventually(lambda: len(robot.reports) >= count + 3, 10.0)
    assert 0.8 < np.median(np.diff(robot.reports)) < 1.5
    assert set(robot.statuses) == {'planning latency', 'observation', 'model', 'trust', 'safety'}
    assert {s.level for s in robot.statuses.values()} == {DiagnosticStatus.OK}
    assert {s.hardware_id for s in robot.statuses.values()} == {'cartpole'}
    latency = robot.values('planning latency')
    assert 0.0 < float(latency['p50_ms']) <= float(latency['p99_ms']) <= float(latency['max_ms'])
    # 0.8 of a period of 40 ms
    assert (latency['deadline_ms'], latency['ticks'], latency['missed']) == ('32', '5', '0')
    assert latency['rejected'] == '0'
    assert float(robot.values('observation')['age_s']) > 0.0
    model = robot.values('model')
    assert model['provider'] == 'cpu'
    assert model['hash'] == artifact.sha256((files / 'dynamics.onnx').read_bytes()).hexdigest()
    assert float(model['spread']) == pytest.approx(0.0, abs=1e-6)  # the members are equal
    assert float(model['spread_limit']) > 0.0
    assert robot.values('safety') == {
        'safe': '0', 'slowed': '0', 'crashed': 'False', 'stops': '0'}


def test_chunks_and_the_adaptive_horizon_are_told_of(start, robot, answer, eventually, files):
    edit(files / 'planners.yaml', rollout={'particles': 2, 'adaptive_horizon': True})
    start(chunk_steps=2)
    ticks = [tick_values(answer()[1]) for _ in range(4)]
    assert [(t['rung'], t['missed']) for t in ticks] == [('plan', 'False')] * 4
    # Plans are taken up at ticks 1 and 3; members that are equal never part.
    assert [t.get('horizon') for t in ticks] == [str(HORIZON), None, str(HORIZON), None]
    assert eventually(lambda: 'trust' in robot.statuses)
    assert 1 <= int(robot.values('trust')['horizon']) <= HORIZON


def test_tick_and_plan_tell_what_was_decided(start, robot, answer, eventually):
    start()
    for number in (1, 2):
        command, tick = answer()
        values = tick_values(tick)
        assert (tick.name, tick.hardware_id, tick.level) == ('tick', 'cartpole',
                                                             DiagnosticStatus.OK)
        assert (values['tick'], values['stamp_ns']) == (str(number), str(number * DT_NS))
        assert (values['missed'], values['safe']) == ('False', 'False')
        assert float(values['command']) == pytest.approx(command, rel=1e-8)
        assert float(values['plan_ms']) > 0.0
        assert eventually(lambda count=number: len(robot.plans) == count)
    plan = robot.plans[-1]
    assert plan.header.stamp.nanosec == 2 * DT_NS
    assert plan.joint_names == ['slider', 'hinge']
    assert len(plan.points) == HORIZON
    times = [p.time_from_start.sec * 10**9 + p.time_from_start.nanosec for p in plan.points]
    assert times == [DT_NS * (k + 1) for k in range(HORIZON)]  # no delay in lock-step
    positions = np.array([p.positions for p in plan.points])
    velocities = np.array([p.velocities for p in plan.points])
    # The linear model: positions advance by dt times the velocity before, the hinge turns on, and
    # the command pushes the slider.
    before = np.vstack([STATE[2:], velocities[:-1]])
    np.testing.assert_allclose(np.diff(positions, axis=0, prepend=[STATE[:2]]), DT_S * before,
                               atol=1e-5)
    np.testing.assert_allclose(velocities[:, 1], STATE[3], atol=1e-5)
    assert velocities[0, 0] == pytest.approx(STATE[2] + FORCE_GAIN * command, abs=1e-5)


def test_a_goal_from_a_topic_moves_the_plan_and_must_be_a_number(
        start, files, robot, answer, eventually, logged):
    data = yaml.safe_load((files / 'tasks.yaml').read_text())
    data['goal'][0] |= {'topic': 'goal', 'type': 'std_msgs/msg/Float64', 'path': 'data'}
    edit(files / 'tasks.yaml', **data)
    start()
    # Tip at x = 0.1 + 0.6 sin(3) = 0.18: 5 m away is dearer, whatever is planned.
    near = float(tick_values(answer()[1])['cost'])
    robot.goal.publish(Float64(data=float('nan')))
    assert logged('goal tip_x: nan is refused')
    robot.goal.publish(Float64(data=5.0))
    assert eventually(lambda: float(tick_values(answer()[1])['cost']) > near + 0.1)


def test_collect_mode_needs_no_model_and_stays_inside_the_limits(start, robot, answer, eventually):
    start(mode='collect', signal='uniform', model='nowhere')
    commands = [answer()[0] for _ in range(20)]
    assert len(set(commands)) == 20
    assert all(-3.0 <= command <= 3.0 for command in commands)
    assert robot.plans == []
    assert eventually(lambda: 'model' in robot.statuses)
    assert robot.values('model') == {'signal': 'uniform', 'seed': '0'}
    assert robot.statuses['planning latency'].message == 'no plan yet'
