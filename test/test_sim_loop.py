"""The loop, the inbox and the tick grid of the simulated robot, without ROS."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from mbrl_ros.core.robot import load_robot
from mbrl_ros.sim.command_inbox import CommandInbox
from mbrl_ros.sim.loop import SimLoop
from mbrl_ros.sim.mujoco_robot import MujocoRobot
from mbrl_ros.sim.tick_grid import TickGrid

TOPIC = 'forward_command_controller/commands'


class FakeOutlet:
    def __init__(self):
        self.published, self.failures = [], []

    def publish_clock(self, stamp_ns):
        pass

    def rehearse(self, messages):
        pass

    def build_observation(self, readings):
        return readings

    def publish_observation(self, stamp_ns, messages):
        self.published.append(messages)

    def has_peers(self):
        return True

    def warn(self, text):
        pass

    def fail(self, text):
        self.failures.append(text)


def test_diverging_physics_pauses_until_the_world_is_reset(eventually):
    outlet = FakeOutlet()
    loop = SimLoop(MujocoRobot(load_robot('cartpole')), outlet, np.random.default_rng(0),
                   lockstep=True)
    loop.robot.data.qvel[0] = np.nan
    loop.set_paused(False)
    loop.start()
    assert eventually(lambda: outlet.published)
    loop.put_command(TOPIC, time.time_ns(), np.zeros(1))
    assert eventually(lambda: loop.failure)
    assert loop.is_paused
    assert 'the physics diverged' in outlet.failures[0]
    loop.reset()
    assert not loop.failure
    loop.set_paused(False)
    assert eventually(lambda: len(outlet.published) == 2)
    assert np.isfinite(outlet.published[1]['joint_states'].velocity).all()
    loop.stop()


def test_in_real_time_no_observation_is_out_before_its_time(eventually):
    outlet, early_s = FakeOutlet(), []
    loop = SimLoop(MujocoRobot(load_robot('cartpole')), outlet, np.random.default_rng(0))
    # The loop wakes before a tick is due and must not publish then.
    outlet.publish_observation = lambda stamp_ns, messages: early_s.append(
        loop.grid.deadline_s - time.monotonic())
    loop.set_paused(False)
    loop.start()
    assert eventually(lambda: len(early_s) > 5)
    loop.stop()
    assert max(early_s) <= 0.0


@pytest.fixture
def two_topics():
    left, = load_robot('cartpole').action
    right = left.model_copy(update={'name': 'right', 'topic': 'right/commands',
                                    'path': 'data[1]', 'safe_value': 2.0})
    wide = left.model_copy(update={'name': 'wide', 'topic': 'right/commands'})
    return CommandInbox((left, right, wide))


def test_an_answer_is_one_command_from_every_topic(two_topics):
    inbox = two_topics
    assert inbox.indices('right/commands') == [1, 2]
    # data[1] is the second action, data[0] the third.
    values = inbox.parse('right/commands', SimpleNamespace(data=[5.0, 6.0]))
    np.testing.assert_array_equal(values, [6.0, 5.0])
    inbox.put(TOPIC, 90, np.array([1.0]))
    inbox.put('right/commands', 110, values)
    assert inbox.take_answer(100) is None
    inbox.put(TOPIC, 120, np.array([3.0]))
    np.testing.assert_array_equal(inbox.take_answer(100), [3.0, 6.0, 5.0])
    assert inbox.take_answer(100) is None


def test_a_refused_command_stands_for_the_safe_value(two_topics):
    two_topics.put('right/commands', 10, None)
    np.testing.assert_array_equal(two_topics.take_newest('right/commands'), [2.0, 0.0])


def test_newest_command_up_to_a_time(two_topics):
    for sent_ns in (10, 20, 30):
        two_topics.put(TOPIC, sent_ns, np.array([float(sent_ns)]))
    assert two_topics.take_newest(TOPIC, 25) == 20.0
    assert two_topics.take_newest(TOPIC, 25) is None
    assert two_topics.take_newest(TOPIC) == 30.0


@pytest.mark.parametrize('simulated', [True, False])
def test_a_late_grid_shifts_and_simulated_time_does_not_jump(simulated):
    grid = TickGrid(40_000_000, 1.0, simulated)
    first_ns = grid.stamp_ns
    grid.advance()
    grid.catch_up()
    assert (grid.stamp_ns - first_ns, grid.num_shifts) == (40_000_000, 0)
    grid.deadline_s -= 1.0
    grid.catch_up()
    assert grid.num_shifts == 1
    assert grid.deadline_s == pytest.approx(time.monotonic(), abs=0.5)
    # Late by 1 s less the 0.04 s that the tick was still ahead.
    late_ns = 0 if simulated else 960_000_000
    assert grid.stamp_ns - first_ns - 40_000_000 == pytest.approx(late_ns, abs=2e7)
