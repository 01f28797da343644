"""Actuation delay of the simulated cart-pole: what compensation saves, what the estimate finds."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.bench.returns import drive_episode, Report
from mbrl_ros.control import exploration
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import JOINT_STATE, load_robot, RobotSpec
from mbrl_ros.core.task import load_task
from mbrl_ros.data.bag_metadata import typestore
from mbrl_ros.data.bag_writer import BagWriter
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.delay import DelayEstimate, estimate_delay
from mbrl_ros.sim.command_delay import CommandDelay
from mbrl_ros.sim.mujoco_robot import MujocoRobot

ROBOT, TASK = 'cartpole', 'cartpole_swingup'
DELAYS = (0, 1, 2, 3)
SEEDS, QUICK_SEEDS = 5, 1
RECORD_SECONDS = 60.0
LEAST_SHARE, MOST_ERROR = 0.9, 0.5
ARRAY = 'std_msgs/msg/Float64MultiArray'


def bench(quick: bool, report: Report) -> dict[str, Any]:
    """
    Measure returns and estimates for each injected delay.

    Parameters
    ----------
    quick : bool
        One seed a row in place of five.
    report : callable
        Told of progress.

    Returns
    -------
    dict
        `returns`: by injected delay in steps, the mean return over the seeds with compensation
        and without; `returns_by_seed` likewise, each seed's; `share`: return with compensation
        over that of the robot without delay; `estimated_delay_steps` and `estimates`: by injected
        delay, from a bag of 60 s of random motion; `is_met`: whether every share is at least 0.9
        and every estimate within half a step. Ready for JSON.

    """
    seeds = range(QUICK_SEEDS if quick else SEEDS)
    total = 2 * len(DELAYS) * len(seeds) + len(DELAYS)
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        report(done, total, what)
        done += 1
    returns: dict[str, dict[str, list[float]]] = {}
    for delay in DELAYS:
        row: dict[str, list[float]] = {'with': [], 'without': []}
        for seed in seeds:
            tell(f'delay {delay}, compensated')
            row['with'].append(drive(seed, delay, delay))
            tell(f'delay {delay}, not compensated')
            # Without delay the two are one and the same run.
            row['without'].append(drive(seed, delay, 0) if delay else row['with'][-1])
        returns[str(delay)] = row
    estimates = {}
    for delay in DELAYS:
        tell(f'delay {delay}, estimate')
        with TemporaryDirectory() as folder:
            bag = record(Path(folder) / 'bag', seed=0, delay_steps=delay)
            estimates[str(delay)] = estimate(bag)
    report(total, total, 'done')
    means = {key: {name: float(np.mean(values)) for name, values in row.items()}
             for key, row in returns.items()}
    share = {key: row['with'] / means['0']['with'] for key, row in means.items()}
    steps = {key: found.steps for key, found in estimates.items()}
    is_met = all(value >= LEAST_SHARE for value in share.values()) and all(
        found is not None and abs(found - int(key)) <= MOST_ERROR for key, found in steps.items())
    return {'machine': describe_machine(), 'seeds': len(seeds), 'returns': means,
            'returns_by_seed': returns, 'share': share, 'estimated_delay_steps': steps,
            'estimates': {key: asdict(found) for key, found in estimates.items()},
            'is_met': is_met}


def drive(seed: int, injected_steps: int, compensated_steps: int) -> float:
    """
    Drive one episode of the cart-pole with the shipped model; see `returns.drive_episode`.

    Parameters
    ----------
    seed : int
        Of the initial state and of the plans.
    injected_steps : int
        Control periods that the simulated robot holds each command back.
    compensated_steps : int
        Control periods that the controller believes in.

    Returns
    -------
    float
        Return of the episode: minus the task's cost of the commands that acted.

    """
    robot = load_robot(ROBOT)
    return drive_episode(find_model(ROBOT), robot, load_task(TASK, robot), seed, injected_steps,
                         compensated_steps)


def record(bag: Path, seed: int, delay_steps: int, seconds: float = RECORD_SECONDS) -> Path:
    """
    Write a bag of the uniform exploration signal moving the simulated robot, as in lock-step.

    Parameters
    ----------
    bag : Path
        Folder to create.
    seed : int
        Of the initial state and of the commands.
    delay_steps : int
        Control periods that the robot holds each command back.
    seconds : float
        Robot time.

    """
    robot = load_robot(ROBOT)
    generator = np.random.default_rng(seed)
    settings = exploration.config_class('uniform')()
    signal = exploration.make_signal('uniform', settings, robot, generator)
    body, line = MujocoRobot(robot), CommandDelay(delay_steps, robot.safe_value)
    body.reset(generator)
    with BagWriter(bag) as writer:
        for topic, kind in (robot.observation_topics() | robot.action_topics()).items():
            writer.add_topic(f'/{topic}', kind)
        for tick in range(1, 1 + round(seconds * robot.control_rate_hz)):
            command, stamp_ns = signal.next(), tick * robot.dt_ns
            for topic in robot.observation_topics():
                writer.write(f'/{topic}', _joint_state(robot, body.state(), stamp_ns),
                             stamp_ns, stamp_ns)
            for topic in robot.action_topics():
                writer.write(f'/{topic}', _array(command), stamp_ns, stamp_ns)
            body.step(line.push(command))
    return bag


def estimate(bag: Path) -> DelayEstimate:
    """Estimate the actuation delay from a bag of the cart-pole."""
    robot = load_robot(ROBOT)
    return estimate_delay(load_dataset([bag], robot).episodes, robot)


def _joint_state(robot: RobotSpec, state: np.ndarray, stamp_ns: int) -> bytes:
    """Return a JointState in CDR: of every joint, position and velocity in one order."""
    types = typestore().types
    header = types['std_msgs/msg/Header'](
        types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9)), '')
    columns: dict[str, dict[str, float]] = {'position': {}, 'velocity': {}}
    for field, value in zip(robot.observation, state, strict=True):
        path = MessagePath.parse(field.path)
        columns[path.attributes[0]][str(path.key)] = float(value)
    joints = list(columns['position'])
    position, velocity = (np.array([columns[name][joint] for joint in joints])
                          for name in ('position', 'velocity'))
    return bytes(typestore().serialize_cdr(types[JOINT_STATE](
        header, joints, position, velocity, np.empty(0)), JOINT_STATE))


def _array(command: np.ndarray) -> bytes:
    types = typestore().types
    layout = types['std_msgs/msg/MultiArrayLayout']([], 0)
    return bytes(typestore().serialize_cdr(types[ARRAY](layout, command), ARRAY))
