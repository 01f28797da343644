"""The simulated robot on real DDS: lock-step, real time, services, watchdog, refusals."""

import time

import numpy as np
import pytest

pytest.importorskip('rclpy')

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool, Trigger

from mbrl_ros.core.robot import load_robot
from mbrl_ros.nodes.sim_robot import SimRobot
from mbrl_ros.sim.command_delay import CommandDelay
from mbrl_ros.sim.mujoco_robot import MujocoRobot

OK = TransitionCallbackReturn.SUCCESS
DT_NS = 40_000_000


class Peer(Node):
    """Listens to the robot; answers observation k with `policy(k)`, unless that is None."""

    def __init__(self, policy=lambda k: None):
        super().__init__('peer')
        self.policy = policy
        self.observations, self.clocks, self.diagnostics = [], [], []
        self.commands = self.create_publisher(
            Float64MultiArray, 'forward_command_controller/commands', 10)
        # Lock-step waits for a listener to joint_states; what subscribed before it hears all.
        self.create_subscription(Clock, '/clock', self.on_clock, 10)
        self.create_subscription(JointState, 'joint_states', self.on_observation, 10)
        self.create_subscription(DiagnosticArray, '/diagnostics', self.on_diagnostics, 10)
        self.pause = self.create_client(SetBool, '/sim_robot/set_pause')
        self.step = self.create_client(Trigger, '/sim_robot/step')
        self.reset = self.create_client(Trigger, '/sim_robot/reset_world')

    def on_clock(self, message):
        self.clocks.append(message.clock.sec * 10**9 + message.clock.nanosec)

    def on_diagnostics(self, message):
        self.diagnostics.append({s.name: s for s in message.status})

    def on_observation(self, message):
        self.observations.append(message)
        answer = self.policy(len(self.observations) - 1)
        if answer is not None:
            self.send(*answer)

    def send(self, *values):
        self.commands.publish(Float64MultiArray(data=[float(v) for v in values]))

    def stamps(self):
        return np.array([m.header.stamp.sec * 10**9 + m.header.stamp.nanosec
                         for m in self.observations])

    def states(self):
        return np.array([[*m.position, *m.velocity] for m in self.observations])

    def efforts(self):
        return [m.effort[0] for m in self.observations]


@pytest.fixture
def call(eventually):
    def run(client, request):
        assert client.wait_for_service(5.0)
        future = client.call_async(request)
        assert eventually(future.done)
        return future.result()
    return run


@pytest.fixture
def start(ros, spin):
    def make(peer, **parameters):
        robot = SimRobot()
        for name, value in parameters.items():
            assert robot.set_parameters([Parameter(name, value=value)])[0].successful
        assert robot.trigger_configure() == OK, robot.refusal
        spin(peer)
        spin(robot)
        assert robot.trigger_activate() == OK, robot.refusal
        return robot
    return make


def script(k):
    return (2.0 * np.sin(0.3 * k),)


def test_lockstep_gives_one_observation_a_command_and_clock(start, eventually):
    peer = Peer(lambda k: script(k) if k < 20 else None)
    robot = start(peer, lockstep=True, seed=3)
    assert eventually(lambda: len(peer.observations) == 21)
    time.sleep(0.2)  # 5 control periods: nothing more may come without a command
    assert len(peer.observations) == 21
    # Stamps are one period apart, from one period after zero; /clock says each once.
    expected = DT_NS * np.arange(1, 22)
    np.testing.assert_array_equal(peer.stamps(), expected)
    np.testing.assert_array_equal(peer.clocks, expected)
    assert list(peer.observations[0].name) == ['slider', 'hinge']
    # The same commands without ROS give the same trajectory, bit for bit.
    twin = MujocoRobot(load_robot('cartpole'))
    twin.reset(np.random.default_rng(3))
    for k in range(21):
        np.testing.assert_array_equal(peer.states()[k], twin.state())
        twin.step(np.array(script(k)))
    assert robot.trigger_deactivate() == OK


def test_lockstep_is_a_function_of_the_seed_and_delays_by_whole_steps(start, eventually):
    peer = Peer(lambda k: script(k) if k < 10 else None)
    start(peer, lockstep=True, seed=4, actuation_delay_steps=2, observation_noise_std=0.01)
    assert eventually(lambda: len(peer.observations) == 11)
    twin = MujocoRobot(load_robot('cartpole'), observation_noise_std=0.01, noise_seed=4)
    twin.reset(np.random.default_rng(4))
    delay = CommandDelay(2, np.zeros(1))
    for k in range(11):
        np.testing.assert_array_equal(peer.states()[k], twin.state())
        twin.step(delay.push(np.array(script(k))))


def test_lockstep_ignores_what_was_sent_before_the_observation(start, eventually, call):
    peer = Peer()
    start(peer, lockstep=True, start_paused=True)
    assert eventually(lambda: peer.commands.get_subscription_count() == 1)
    peer.send(3.0)
    time.sleep(0.1)
    call(peer.pause, SetBool.Request(data=False))
    assert eventually(lambda: len(peer.observations) == 1)
    time.sleep(0.2)
    assert len(peer.observations) == 1
    peer.send(-1.0)
    assert eventually(lambda: len(peer.observations) == 2)
    assert peer.efforts()[1] == -100.0  # the answer, -1 x gear 100, not the 3 before it


def test_lockstep_waits_says_so_and_still_stops_at_once(start, eventually, logged, monkeypatch):
    monkeypatch.setattr('mbrl_ros.sim.loop.WARN_AFTER_S', 0.3)
    peer = Peer()
    robot = start(peer, lockstep=True)
    assert logged('still waiting for a command on forward_command_controller/commands')
    assert eventually(lambda: peer.diagnostics and 'waiting for a command' in
                      peer.diagnostics[-1]['sim_robot: loop'].message)
    begin = time.monotonic()
    assert robot.trigger_deactivate() == OK
    assert time.monotonic() - begin < 0.2


def test_lockstep_reset_while_waiting_begins_an_episode_later_in_time(start, eventually, call):
    peer = Peer(lambda k: (1.0,) if k < 3 else None)
    start(peer, lockstep=True, seed=5)
    assert eventually(lambda: len(peer.observations) == 4)
    assert call(peer.reset, Trigger.Request()).success
    assert eventually(lambda: len(peer.observations) == 5)
    twin, rng = MujocoRobot(load_robot('cartpole')), np.random.default_rng(5)
    for _ in range(2):
        twin.reset(rng)
    np.testing.assert_array_equal(peer.states()[4], twin.state())
    # Observation 3 was at 4 periods; a reset skips 1 s of simulated time.
    assert peer.stamps()[4] == 4 * DT_NS + 10**9


def test_pause_after_steps_gives_one_more_observation_than_steps(start, eventually, call):
    peer = Peer(lambda k: (0.5,))
    start(peer, lockstep=True, start_paused=True, pause_after_steps=7)
    time.sleep(0.2)
    assert not peer.observations
    assert not peer.clocks
    for run in (1, 2):
        assert call(peer.pause, SetBool.Request(data=False)).success
        assert eventually(lambda run=run: len(peer.observations) == 8 * run)
        time.sleep(0.1)
        assert len(peer.observations) == 8 * run
        call(peer.reset, Trigger.Request())
    # 7 periods, then the gap of a reset (25 periods), then 7 periods again.
    np.testing.assert_array_equal(np.diff(peer.stamps()) // DT_NS, [1] * 7 + [25] + [1] * 7)


def test_real_time_ticks_at_the_control_rate_on_an_exact_grid(start, eventually):
    peer = Peer(lambda k: (1.0,))
    before_ns = time.time_ns()
    start(peer)
    assert eventually(lambda: len(peer.observations) > 25)
    stamps = peer.stamps()
    steps = np.diff(stamps)
    # A busy machine may shift the grid, never by less than a period.
    assert np.median(steps) == DT_NS
    assert np.all((steps == DT_NS) | (steps > 2 * DT_NS))
    assert 0 <= stamps[0] - before_ns < 10**10
    assert not peer.clocks
    # The answer to s_0 acts from t_1 (or later): it shows first in the effort of s_2.
    assert peer.efforts()[:2] == [0.0, 0.0]
    assert peer.efforts()[20] == 100.0


def test_speed_factor_stamps_in_simulated_time(start, eventually):
    peer = Peer(lambda k: (1.0,))
    begin = time.monotonic()
    start(peer, speed_factor=4.0)
    assert eventually(lambda: len(peer.observations) > 50)
    wall_s = time.monotonic() - begin
    stamps = peer.stamps()
    assert stamps[0] % DT_NS == 0
    assert np.all(np.diff(stamps) == DT_NS)
    # 50 periods are 2 s of simulated time, meant to take 0.5 s.
    assert wall_s < 1.9
    # Each tick has two: at it, and just after it, from where commands belong to the next.
    assert set(stamps[5:50]) <= set(peer.clocks)
    assert set(stamps[5:50] + 1) <= set(peer.clocks)


@pytest.mark.parametrize('speed_factor', [1.0, 2.0])
def test_what_acts_is_what_the_dates_of_the_commands_say(start, eventually, speed_factor):
    peer, sent, clock = Peer(lambda k: (np.sin(k),)), [], []

    def date(source_ns):
        # In system time as it is; in simulated time the last /clock that left before it.
        return source_ns if speed_factor == 1 else max(t for s, t in clock if s <= source_ns)
    peer.create_subscription(
        Float64MultiArray, 'forward_command_controller/commands',
        lambda m, info: sent.append((info['source_timestamp'], m.data[0])), 10)
    peer.create_subscription(
        Clock, '/clock', lambda m, info: clock.append(
            (info['source_timestamp'], m.clock.sec * 10**9 + m.clock.nanosec)), 10)
    start(peer, speed_factor=speed_factor)
    assert eventually(lambda: len(peer.observations) > 30)
    dated = [(date(source_ns), value) for source_ns, value in sent[5:]]
    for k in range(10, 30):
        # What acted from t_k to t_k+1 shows in the effort of s_k+1, in units of the gear.
        acting = [value for stamp, value in dated if stamp <= peer.stamps()[k]][-1]
        assert peer.efforts()[k + 1] == pytest.approx(100 * acting)


def test_step_moves_one_period_and_only_while_paused(start, eventually, call):
    peer = Peer()
    start(peer, start_paused=True, seed=1)
    assert call(peer.step, Trigger.Request()).success
    assert eventually(lambda: len(peer.observations) == 2)
    time.sleep(0.1)
    assert len(peer.observations) == 2
    twin = MujocoRobot(load_robot('cartpole'))
    twin.reset(np.random.default_rng(1))
    twin.step(np.zeros(1))
    np.testing.assert_array_equal(peer.states()[1], twin.state())
    call(peer.pause, SetBool.Request(data=False))
    refused = call(peer.step, Trigger.Request())
    assert not refused.success
    assert 'set_pause' in refused.message
    call(peer.pause, SetBool.Request(data=True))
    count = len(peer.observations)
    time.sleep(0.15)
    assert len(peer.observations) <= count + 1


def test_watchdog_goes_back_to_the_safe_value(start, eventually, logged):
    peer = Peer(lambda k: (2.0,) if k < 10 else None)
    start(peer, watchdog_periods=3)
    assert eventually(lambda: len(peer.observations) > 20)
    # The last command answers s_9 and acts from t_10; t_11 and t_12 hold it, t_13 is the third
    # period without: the safe value. The effort of s_k is what acted before t_k.
    assert peer.efforts()[10] == 200.0
    assert peer.efforts()[16] == 0.0
    assert logged('watchdog: no command')
    assert eventually(lambda: peer.diagnostics and any(
        kv.key == 'watchdog_trips' and int(kv.value) >= 1
        for kv in peer.diagnostics[-1]['sim_robot: commands'].values))


@pytest.mark.parametrize(('bad', 'text'), [
    ((1.0, 2.0), 'expected 1 numbers (data[0] = slider_force [1]), got 2'),
    ((), 'expected 1 numbers'),
    ((float('nan'),), 'expected finite numbers'),
])
def test_a_refused_command_brings_the_safe_value(start, eventually, logged, bad, text):
    peer = Peer(lambda k: [(1.0,), bad, (3.0,), None][k])
    start(peer, lockstep=True)
    assert eventually(lambda: len(peer.observations) == 4)
    assert peer.efforts() == [0.0, 100.0, 0.0, 300.0]
    assert logged(text)


def test_deactivated_it_is_silent_and_comes_back(start, eventually):
    peer = Peer()
    robot = start(peer)
    assert eventually(lambda: len(peer.observations) > 2)
    assert robot.trigger_deactivate() == OK
    time.sleep(0.1)
    count = len(peer.observations)
    time.sleep(0.2)
    assert len(peer.observations) == count
    assert robot.trigger_activate() == OK
    assert eventually(lambda: len(peer.observations) > count + 2)
    assert np.all(np.diff(peer.stamps()) >= DT_NS)
    assert robot.trigger_deactivate() == OK
    assert robot.trigger_cleanup() == OK
    assert robot.trigger_configure() == OK


@pytest.mark.parametrize(('parameters', 'text'), [
    ({'robot': 'nobody'}, 'Known names: '),
    ({'keyframe': 'up'}, "no keyframe 'up'. Allowed: hanging"),
    ({'lockstep': True, 'speed_factor': 2.0}, 'no meaning in lock-step'),
])
def test_refuses_to_configure(ros, parameters, text):
    robot = SimRobot()
    robot.set_parameters([Parameter(name, value=value) for name, value in parameters.items()])
    assert robot.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert text in robot.refusal
    assert not robot.set_parameters([Parameter('mass_scale', value=0.0)])[0].successful
    robot.destroy_node()
