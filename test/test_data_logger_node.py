"""The logger on real DDS: what it records, what it refuses, and what it says."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip('rclpy')

from diagnostic_msgs.msg import DiagnosticStatus
from logged_robot import Robot
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.data.bag_info import read_info
from mbrl_ros.data.bag_metadata import read_metadata
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.mcap_file import messages
from mbrl_ros.data.recover import recover
from mbrl_ros.nodes.data_logger import DataLogger
from mbrl_ros.nodes.sim_robot import SimRobot

OK = TransitionCallbackReturn.SUCCESS
FORCE_PER_ACTION = 100.0  # the gear of the motor
DT_NS = 40_000_000
COMMANDS = '/forward_command_controller/commands'
BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def call(eventually):
    def run(client, request):
        assert client.wait_for_service(30.0)  # a process may have to start first
        future = client.call_async(request)
        assert eventually(future.done, 20.0)
        return future.result()
    return run


@pytest.fixture
def record(call):
    return lambda robot, on: call(robot.record_client, SetBool.Request(data=on))


@pytest.fixture
def start(ros, spin, tmp_path):
    """Return a function that starts an active logger beside a robot."""
    def make(robot, **parameters):
        logger = DataLogger()
        for name, value in {'output': str(tmp_path), 'bag_name': 'bag', **parameters}.items():
            assert logger.set_parameters([Parameter(name, value=value)])[0].successful
        assert logger.trigger_configure() == OK, logger.refusal
        spin(robot)
        spin(logger)
        assert logger.trigger_activate() == OK, logger.refusal
        return logger
    return make


def wait_matched(eventually, logger, robot):
    assert eventually(lambda: robot.states.get_subscription_count() == 1
                      and robot.commands.get_subscription_count() == 1
                      and all(tap.num_publishers for tap in logger._taps if tap.is_required))


def has_received(logger, number):
    """Return whether the logger has that many states, and as many commands."""
    counts = logger.writer.counts()
    return all(counts[topic].received == number for topic in ('/joint_states', COMMANDS))


def stored(bag, topic):
    with AnyReader([bag]) as reader:
        wanted = [c for c in reader.connections if c.topic == topic]
        return [reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages(wanted)]


@pytest.mark.parametrize('qos', [QoSProfile(depth=10), BEST_EFFORT], ids=['reliable', 'best'])
def test_two_episodes_are_recorded_and_train(start, record, call, eventually, tmp_path, qos):
    robot = Robot(qos)
    logger = start(robot)
    wait_matched(eventually, logger, robot)
    response = record(robot, True)
    assert (response.success, response.message) == (True, str(tmp_path / 'bag'))
    for episode in (0, 1):
        origin_ns = time.time_ns()
        for step in range(5):
            robot.command(0.25)
            robot.observe(origin_ns + 10**8 + step * DT_NS, float(10 * episode + step))
            time.sleep(0.01)
        assert eventually(lambda number=5 * (episode + 1): has_received(logger, number))
        if episode == 0:
            response = call(robot.episode_client, Trigger.Request())
            assert (response.success, response.message) == (True, 'episode 1')
    assert record(robot, False).success
    dataset = load_dataset([tmp_path / 'bag'], load_robot('cartpole'))
    # Slider counts 0..4, then 10..14; hinge and velocities are constant.
    assert [e.states[:, 0].tolist() for e in dataset.episodes] == [
        [0.0, 1.0, 2.0, 3.0, 4.0], [10.0, 11.0, 12.0, 13.0, 14.0]]
    assert dataset.episodes[0].states[0].tolist() == [0.0, 2.0, 3.0, 4.0]
    assert {float(a) for e in dataset.episodes for a in e.actions[:, 0]} == {0.25}
    assert dataset.describe_losses() == []
    marks = [json.loads(m.data) for m in stored(tmp_path / 'bag', '/episode')]
    assert [(m['episode'], m['event']) for m in marks] == [
        (0, 'start'), (0, 'end'), (1, 'start'), (1, 'end')]
    assert eventually(lambda: len(robot.marks) == 4)
    info = read_info(tmp_path / 'bag')
    assert info.episodes == 2
    assert {t.name: t.messages for t in info.topics}['/joint_states'] == 10
    offered = {t['topic_metadata']['name']: t['topic_metadata']['offered_qos_profiles']
               for t in read_metadata(tmp_path / 'bag')['topics_with_message_count']}
    assert offered['/joint_states'][0]['reliability'] == qos.reliability.name.lower()


def test_commands_without_a_header_carry_the_time_they_were_sent(start, record, eventually,
                                                                 tmp_path):
    robot = Robot()
    wait_matched(eventually, start(robot), robot)
    record(robot, True)
    before_ns = time.time_ns()
    robot.command(1.0)
    after_ns = time.time_ns()
    time.sleep(0.2)
    record(robot, False)
    command = next(m for m in messages(tmp_path / 'bag' / 'bag_0.mcap') if m.topic == COMMANDS)
    # DDS may stamp with a clock as coarse as 1 us.
    assert before_ns - 1000 <= command.publish_time_ns <= after_ns
    assert command.publish_time_ns <= command.log_time_ns


def test_simulated_time_is_that_of_the_clock_before_the_command(start, record, eventually,
                                                                tmp_path):
    # Lock-step: /clock t, observation t, command, and at once /clock t + dt. Every command must
    # be stamped t: one step late would shift every action of the dataset.
    robot = Robot()
    logger = start(robot, use_sim_time=True)
    wait_matched(eventually, logger, robot)
    assert eventually(lambda: robot.clock.get_subscription_count() >= 1
                      and logger._clock_taps[0].num_publishers)
    assert record(robot, True).success
    for step in range(100):
        robot.tick((step + 1) * DT_NS)
        robot.observe((step + 1) * DT_NS, float(step))
        robot.command(step / 100)
    robot.tick(101 * DT_NS)  # until then the last command has no certain time
    assert eventually(lambda: has_received(logger, 100))
    record(robot, False)
    episode, = load_dataset([tmp_path / 'bag'], load_robot('cartpole')).episodes
    assert episode.states[:, 0].tolist() == [float(step) for step in range(100)]
    assert episode.actions[:, 0].tolist() == [step / 100 for step in range(99)]
    assert episode.start_ns == DT_NS


@pytest.mark.parametrize('lockstep', [True, False], ids=['lockstep', 'real_time'])
def test_recorded_actions_are_those_that_acted(start, record, call, spin, eventually, tmp_path,
                                               lockstep):
    # The simulated robot reports the effort that acted in the period before an observation.
    # Action k of the dataset must be the effort reported with state k + 1: in lock-step always. In
    # real time a command that the logger has before a tick may reach the robot after it, where a
    # machine stalls for a moment.
    sim = SimRobot()
    for name, value in {'lockstep': lockstep, 'start_paused': True,
                        'pause_after_steps': 30}.items():
        assert sim.set_parameters([Parameter(name, value=value)])[0].successful
    assert sim.trigger_configure() == OK, sim.refusal
    spin(sim)
    robot = Node('controller')
    robot.record_client = robot.create_client(SetBool, '/data_logger/record')
    episode_client = robot.create_client(Trigger, '/data_logger/new_episode')
    reset_client = robot.create_client(Trigger, '/sim_robot/reset_world')
    pause_client = robot.create_client(SetBool, '/sim_robot/set_pause')
    commands = robot.create_publisher(Float64MultiArray, COMMANDS, 10)
    efforts, acted = [], {}

    def answer(message):
        efforts.append(message.effort[0])
        acted[tuple(message.position)] = message.effort[0] / FORCE_PER_ACTION
        commands.publish(Float64MultiArray(data=[0.01 * len(efforts)]))
    robot.create_subscription(JointState, 'joint_states', answer, 10)
    logger = start(robot, use_sim_time=lockstep)
    assert sim.trigger_activate() == OK, sim.refusal
    assert eventually(lambda: commands.get_subscription_count() == 2
                      and all(tap.num_publishers
                              for tap in (*logger._clock_taps, *logger._taps) if tap.is_required))
    assert record(robot, True).success
    for episode in (0, 1):
        assert call(pause_client, SetBool.Request(data=False)).success
        assert eventually(lambda count=31 * (episode + 1): len(efforts) == count)
        time.sleep(0.1)
        if episode == 0:
            assert call(reset_client, Trigger.Request()).success
            assert call(episode_client, Trigger.Request()).success
    assert record(robot, False).success
    episodes = load_dataset([tmp_path / 'bag'], load_robot('cartpole')).episodes
    steps = [episode.num_steps for episode in episodes]
    # In real time nothing was commanded before the first answer: those steps are dropped. A busy
    # machine may also shift the robot's grid, where the dataset splits.
    assert steps == [30, 30] if lockstep else 40 <= sum(steps) <= 60
    same = np.concatenate([np.isclose(episode.actions[:, 0], [
        acted[tuple(state[:2])] for state in episode.states[1:]]) for episode in episodes])
    assert same.mean() >= (1.0 if lockstep else 0.9)


def test_silence_is_an_error_in_log_and_diagnostics(start, record, eventually, logged):
    robot = Robot()
    wait_matched(eventually, start(robot), robot)
    record(robot, True)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:  # commands go on, observations do not
        robot.command(0.0)
        time.sleep(0.05)
    assert logged('no data on /joint_states for 2 s (1 publisher(s))')
    name = 'data_logger: /joint_states'
    assert eventually(lambda: robot.statuses[name].level == DiagnosticStatus.ERROR)
    assert robot.statuses['data_logger: recorder'].level == DiagnosticStatus.ERROR
    robot.command(0.0)
    values = {v.key: v.value for v in robot.statuses[f'data_logger: {COMMANDS}'].values}
    assert int(values['received']) > 0
    assert values['lost'] == '0'
    robot.observe(time.time_ns(), 0.0)
    assert logged('/joint_states: data again')


def test_a_publisher_with_another_qos_later_is_recorded(start, record, eventually, logged,
                                                        tmp_path):
    robot = Robot()
    logger = start(robot)
    wait_matched(eventually, logger, robot)
    record(robot, True)
    second = robot.create_publisher(JointState, 'joint_states', BEST_EFFORT)
    # DDS's own word of it may come too, or be overtaken by the look at the graph.
    assert logged('/joint_states: the publishers offer another QoS now; subscribing anew')
    assert eventually(lambda: second.get_subscription_count() == 1)
    second.publish(JointState(name=['late']))
    time.sleep(0.2)
    record(robot, False)
    assert [m.name for m in stored(tmp_path / 'bag', '/joint_states')] == [['late']]


def test_latched_messages_from_before_the_logger_are_taken(ros, start, record, eventually,
                                                           tmp_path):
    robot = Robot()
    latched = robot.create_publisher(String, 'note', LATCHED)
    latched.publish(String(data='hello'))
    logger = start(robot, topics=['note std_msgs/msg/String'])
    tap = next(tap for tap in logger._taps if tap.topic == '/note')
    assert eventually(lambda: tap.last_message_s > 0)


def test_services_refuse_with_a_reason(start, record, call, tmp_path):
    robot = Robot()
    logger = start(robot)
    response = call(robot.episode_client, Trigger.Request())
    assert (response.success, response.message) == (False, 'not recording: call ~/record first')
    response = record(robot, False)
    assert (response.success, response.message) == (False, 'not recording')
    assert record(robot, True).success
    response = record(robot, True)
    assert not response.success
    assert response.message == f'already recording to {tmp_path / "bag"}'
    assert record(robot, False).success
    response = record(robot, True)
    assert not response.success
    assert 'exists already' in response.message
    assert logger.trigger_deactivate() == OK
    response = record(robot, True)
    assert (response.success, response.message) == (
        False, 'the node is not active: activate it first')


def test_a_path_that_cannot_be_written_is_refused(start, record, tmp_path):
    (tmp_path / 'file').write_text('')
    robot = Robot()
    start(robot, output=str(tmp_path / 'file'))
    response = record(robot, True)
    assert not response.success
    assert 'cannot write a bag at' in response.message


def test_deactivating_closes_the_bag(start, record, tmp_path):
    robot = Robot()
    logger = start(robot)
    record(robot, True)
    assert logger.trigger_deactivate() == OK
    assert read_info(tmp_path / 'bag').episodes == 1


@pytest.mark.parametrize(('topics', 'reason'), [
    (['imu'], "'imu' is not 'topic type'"),
    (['imu sensor_msgs/msg/Imo'], "message type 'sensor_msgs/msg/Imo' is not installed")])
def test_bad_topics_are_refused(ros, topics, reason):
    logger = DataLogger()
    logger.set_parameters([Parameter('topics', value=topics)])
    assert logger.trigger_configure() != OK
    assert reason in logger.refusal
    logger.destroy_node()


@pytest.fixture
def process(ros_domain, tmp_path):
    """Return a logger in a process of its own, as it is deployed."""
    with subprocess.Popen(
            [sys.executable, '-m', 'mbrl_ros.nodes.data_logger', '--ros-args',
             '-p', 'autostart:=true', '-p', f'output:={tmp_path}', '-p', 'bag_name:=bag'],
            cwd=Path(__file__).parents[1], env=dict(os.environ)) as logger:
        yield logger
        logger.kill()


def publish_until(robot, condition, timeout_s=10.0):
    """Publish at 200 Hz until the condition holds; return the number of observations."""
    end, number = time.monotonic() + timeout_s, 0
    while not condition() and time.monotonic() < end:
        robot.command(0.5)
        robot.observe(time.time_ns(), float(number))
        number += 1
        time.sleep(0.005)
    assert condition()
    return number


@pytest.mark.any_pace
def test_kill_9_of_the_logger_loses_nothing_before_the_last_flush(
        process, ros, spin, record, eventually, tmp_path):
    robot = Robot()
    spin(robot)
    assert record(robot, True).success
    assert eventually(lambda: robot.states.get_subscription_count() == 1
                      and robot.commands.get_subscription_count() == 1)
    bag = tmp_path / 'bag'
    publish_until(robot, lambda: read_metadata(bag)['message_count'] > 300)
    process.send_signal(signal.SIGKILL)
    process.wait()
    flushed = {t['topic_metadata']['name']: t['message_count']
               for t in read_metadata(bag)['topics_with_message_count']}
    spec = load_robot('cartpole')
    with pytest.raises(BagError, match='Try: mbrl-ros bag recover'):
        load_dataset([bag], spec)
    result = recover(bag)
    assert result.missing == {}
    sliders = [m.position[1] for m in stored(bag, '/joint_states')]
    assert len(sliders) >= flushed['/joint_states'] > 100
    assert sliders == [sliders[0] + i for i in range(len(sliders))]
    dataset = load_dataset([bag], spec)
    assert dataset.num_transitions > 10
    assert 'recovered from a truncated recording' in dataset.describe_losses()[0]


@pytest.mark.any_pace
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_the_bag(process, ros, spin, record, eventually, tmp_path, number):
    robot = Robot()
    spin(robot)
    assert record(robot, True).success
    assert eventually(lambda: robot.states.get_subscription_count() == 1)
    end = time.monotonic() + 0.3
    sent = publish_until(robot, lambda: time.monotonic() > end)
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(10.0) == 0
    info = read_info(tmp_path / 'bag')
    assert {t.name: t.messages for t in info.topics}['/joint_states'] == sent
    assert info.recovered == ''
