"""Robot, logger and controller, each in a process of its own: what acted is what was recorded."""

from dataclasses import dataclass
from pathlib import Path
import signal
from threading import Timer

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy')
pytest.importorskip('torch')

from rosbags.highlevel import AnyReader

from mbrl_ros.cli.trial import count_ticks, realised_return
from mbrl_ros.core.paths import share_dir
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.data.dataset import Dataset, load_dataset
from mbrl_ros.data.resample import Episode
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.pipeline import train_model
from mbrl_ros.nodes.operator import OperationError, Operator
from mbrl_ros.nodes.table import NodeOptions
from mbrl_ros.sim.mujoco_robot import MujocoRobot

SPEC = load_robot('cartpole')
SMALL = TrainingConfig(members=2, hidden_units=(32, 32), weight_decay=(1e-4, 1e-4, 1e-4),
                       max_epochs=20, min_steps=0, patience_steps=100)
HORIZON = 8
COMMANDS = '/forward_command_controller/commands'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a model trained on 8 s of random motion, a task and a planner: small and poor."""
    path = tmp_path_factory.mktemp('closed_loop')
    rng, robot, episodes = np.random.default_rng(0), MujocoRobot(SPEC), []
    for number in range(4):
        robot.reset(rng)
        states, actions = [robot.state()], rng.uniform(-3.0, 3.0, (50, 1))
        for action in actions:
            robot.step(action)
            states.append(robot.state())
        episodes.append(Episode(np.array(states), actions, 0, f'episode {number}'))
    train_model(Dataset(tuple(episodes), SPEC), SMALL, 0, path)
    task = yaml.safe_load((share_dir() / 'config/tasks/cartpole_swingup.yaml').read_text())
    (path / 'task.yaml').write_text(yaml.safe_dump(task | {'horizon': HORIZON}))
    (path / 'planner.yaml').write_text(yaml.safe_dump({
        'planner': 'cem', 'rollout': {'particles': 2},
        'params': {'population': 16, 'num_elites': 4, 'iterations': 2}}))
    return path


@dataclass
class Run:
    """What is left of a run."""

    bag: Path
    dataset: Dataset
    ticks: list


@pytest.fixture
def operate(ros_domain, folder, tmp_path):
    """Return a function that starts the nodes; the robot pauses itself after some steps."""
    def start(steps, *, lockstep, seed=0, model=folder):
        options = NodeOptions(task=str(folder / 'task.yaml'), model=str(model),
                              use_sim_time=lockstep)
        return Operator(SPEC, options, {
            'sim_robot': {'seed': seed, 'start_paused': True, 'pause_after_steps': steps},
            'data_logger': {'output': str(tmp_path), 'record': False},
            'mpc_controller': {'autostart': False, 'max_spread': 1e6, 'seed': seed,
                               'planner': str(folder / 'planner.yaml')}}, tmp_path / 'logs')
    return start


def run(operator, steps):
    """Drive the robot for some steps, and return the run."""
    operator.prepare({})
    bag = operator.record_run(steps, 10.0)
    return Run(bag, load_dataset([bag], SPEC), operator.ticks)


def stored(bag, topic):
    with AnyReader([bag]) as reader:
        wanted = [c for c in reader.connections if c.topic == topic]
        return [reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages(wanted)]


def stamps_ns(messages):
    return np.array([m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in messages])


def assert_is_physics(dataset):
    """Every transition, replayed on its own without ROS, ends in the recorded next state."""
    robot = MujocoRobot(SPEC)
    for state, action, next_state in zip(*dataset.transitions(), strict=True):
        robot.reset()
        robot.data.qpos[:], robot.data.qvel[:] = state[:2], state[2:]
        robot.step(action)
        np.testing.assert_allclose(robot.state(), next_state, rtol=0.0, atol=1e-9)


@pytest.mark.any_pace
def test_lockstep_is_a_function_of_the_seed(operate, folder):
    with operate(50, lockstep=True, seed=3) as operator:
        first = run(operator, 50)
    with operate(50, lockstep=True, seed=3) as operator:
        again = run(operator, 50)
        other = run(operator, 50)  # from the next start that the robot draws
    episode, = first.dataset.episodes
    assert episode.num_steps == 50
    for then in (again, other):
        twin, = then.dataset.episodes
        equal = then is again
        assert np.array_equal(episode.states, twin.states) == equal
        assert np.array_equal(episode.actions, twin.actions) == equal
    assert first.dataset.hash == again.dataset.hash
    commands = [[m.data.tolist() for m in stored(then.bag, COMMANDS)] for then in (first, again)]
    assert commands[0] == commands[1]
    # The safe value at activation, one answer to each of 51 observations, the safe value at the
    # end; the last answer no longer acts.
    assert len(commands[0]) == 53
    assert commands[0][0] == commands[0][-1] == [0.0]
    assert [c[0] for c in commands[0][1:51]] == episode.actions[:, 0].tolist()
    assert len({c[0] for c in commands[0]}) > 40  # it plans
    assert_is_physics(first.dataset)
    # From the seed on: the second draw is that of reset_world, the first that of configure.
    robot, rng = MujocoRobot(SPEC), np.random.default_rng(3)
    robot.reset(rng)
    robot.reset(rng)
    for state, action in zip(episode.states, episode.actions, strict=False):
        np.testing.assert_array_equal(robot.state(), state)
        robot.step(action)
    # One tick an observation, none missed, whatever the machine does meanwhile.
    counted = count_ticks(first.ticks, 51)
    assert (counted['ticks'], counted['missed_ticks']) == (51, 0)
    assert len(counted['plan_ms']) == 51
    assert counted['safe_reasons'] == []
    np.testing.assert_array_equal(np.diff(stamps_ns(stored(first.bag, '/joint_states'))),
                                  SPEC.dt_ns)
    # PETS: reward exp(-|tip - goal|^2 / 0.6^2) - 0.01 a^2 of the state that the action leads to;
    # the pole hangs down at 0 rad and turns its tip to -x first.
    task = load_task(folder / 'task.yaml', SPEC)
    slider, hinge = episode.states[1:, 0], episode.states[1:, 1]
    square = (slider - 0.6 * np.sin(hinge))**2 + (-0.6 * np.cos(hinge) - 0.6)**2
    by_hand = np.sum(np.exp(-square / 0.36)) - 0.01 * np.sum(episode.actions**2)
    assert realised_return(first.dataset, SPEC, task) == pytest.approx(by_hand, rel=1e-6)


def test_in_real_time_what_acted_is_what_was_recorded(operate):
    with operate(25, lockstep=False, seed=5) as operator:
        recorded = run(operator, 25)
    observations = stored(recorded.bag, '/joint_states')
    assert len(observations) == 26
    assert_is_physics(recorded.dataset)
    steps = np.diff(stamps_ns(observations))
    assert steps.min() == SPEC.dt_ns  # no jitter; only a machine that stalls shifts the grid
    if (steps == SPEC.dt_ns).all():
        episode, = recorded.dataset.episodes
        assert episode.num_steps == 25
        # The answer to an observation acts from the next one on: at first the safe value does.
        assert episode.actions[0] == 0.0
        assert len(np.unique(episode.actions)) > 5
    assert count_ticks(recorded.ticks, 26)['ticks'] > 13
    commands = stored(recorded.bag, COMMANDS)
    assert commands[-1].data.tolist() == [0.0]


@pytest.mark.any_pace
def test_a_logger_that_learns_of_the_controller_late_misses_nothing(operate, eventually):
    with operate(20, lockstep=True) as operator:
        bag = Path(operator.switch('data_logger', 'record', on=True))
        logger = operator.processes['data_logger']
        # It hears of the topics of a controller that is configured now two seconds later.
        logger.send_signal(signal.SIGSTOP)
        operator.prepare({})
        Timer(2.0, logger.send_signal, [signal.SIGCONT]).start()
        operator.activate('mpc_controller')
        operator.switch('sim_robot', 'set_pause', on=False)
        assert eventually(lambda: len(operator.ticks) == 21, timeout_s=20.0)
        operator.deactivate('mpc_controller')
        operator.switch('data_logger', 'record', on=False)
    # The safe value at both ends, and an answer to each of 21 observations.
    assert len(stored(bag, COMMANDS)) == 23
    assert len(stored(bag, '/mpc_controller/tick')) == 21
    assert len(stored(bag, '/mpc_controller/decision')) == 21


@pytest.mark.any_pace
def test_the_operator_says_what_a_node_refused(operate):
    with operate(20, lockstep=True, model='nowhere') as operator:
        with pytest.raises(OperationError,
                           match=r"refused to configure(.|\n)*no model 'nowhere'"):
            operator.configure('mpc_controller')
        with pytest.raises(OperationError, match="'drive' or 'collect'"):
            operator.set_parameters('mpc_controller', {'mode': 'fly'})
        with pytest.raises(OperationError, match='new_episode refused: not recording'):
            operator.trigger('data_logger', 'new_episode')
