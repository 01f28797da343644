"""
The control loop in real time: robot and controller as processes over DDS, and what is on the wire.

The cart-pole at any rate: its physics step is made to fit, and a small model is trained for it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
import json
import math
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Any
import xml.etree.ElementTree as ET

import yaml

from mbrl_ros.bench.loop_figures import judge, verdicts
from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.bench.process import BenchError
from mbrl_ros.bench.trained import CONFIG, random_motion
from mbrl_ros.core.paths import share_dir
from mbrl_ros.core.robot import load_robot
from mbrl_ros.learning.pipeline import train_model
from mbrl_ros.nodes.processes import end, own_domain
from mbrl_ros.nodes.table import GROUPS, NodeOptions

# Plans of one round, from where the last one ended: 2 ms on a quiet machine, and inside the period
# of 100 Hz on one that is three times slower for a while.
NETWORK = CONFIG.model_copy(update={
    'hidden_units': (64, 64), 'weight_decay': (1e-4, 2.5e-4, 5e-4), 'max_epochs': 30,
    'min_steps': 500, 'patience_steps': 400})
PLANNING = {'planner': 'cem', 'rollout': {'particles': 5},
            'params': {'population': 40, 'num_elites': 6, 'iterations': 1, 'noise_exponent': 2.0,
                       'keep_elites': 3}}
HORIZON = 20
EPISODES, EPISODE_S, FEWEST_STEPS = 16, 1.0, 50
PHYSICS_STEP_S = 0.02  # of the shipped cart-pole
SEED = 0
# Words of the logs: the observer is there; its first tick came.
OBSERVING, TICKING = 'observing', 'ticking'
START_TIMEOUT_S = 60.0
SETTLE_S, POLL_S = 2.0, 0.1
ROBOT_PRIORITY = 60  # SCHED_FIFO
LOG_TAIL = 2000
TRUST_LIMITS = ('trust.slow_above', 'trust.hold_above', 'trust.stop_above')

# Told what is done now.
Report = Callable[[str], None]


def bench(rate_hz: float, seconds: float, parameters: Mapping[str, Any],
          report: Report = lambda what: None) -> dict[str, Any]:
    """
    Drive the simulated robot in real time, on the machine as it is and then with busy cores.

    Parameters
    ----------
    rate_hz : float
        Control rate.
    seconds : float
        Time to measure, each of the two.
    parameters : mapping
        ROS parameters of the controller, beside those that this sets.
    report : callable
        Told what is done now.

    Returns
    -------
    dict
        What `judge` returns, and the same of the busy machine under keys that start with 'busy_';
        `verdicts` of both; what was measured, and on what.

    Raises
    ------
    BenchError
        If a process does not start, or ends; the text ends with its log.

    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix='mbrl_ros_') as name:
        folder = Path(name)
        report('train a small model')
        options = write_files(rate_hz, folder)
        with Crew(folder, options, parameters) as crew:
            report('start robot and controller')
            crew.start()
            time.sleep(SETTLE_S)
            report(f'{seconds:g} s on the machine as it is')
            idle = crew.measure(seconds)
            report(f'{seconds:g} s with all cores busy')
            with busy_cores():
                time.sleep(SETTLE_S)
                busy = crew.measure(seconds)
            found, loaded = crew.finish(1.0 / rate_hz, idle, busy)
            is_robot_steady = crew.is_robot_steady
    period_s = 1.0 / rate_hz
    return {**found, **{f'busy_{key}': value for key, value in loaded.items()},
            'verdicts': {'idle': verdicts(found, period_s), 'busy': verdicts(loaded, period_s)},
            'rate_hz': rate_hz, 'seconds': seconds, 'load_average': load,
            'robot_has_priority': is_robot_steady, 'controller': dict(parameters),
            'planning': PLANNING, 'horizon': HORIZON, 'network': {
                'members': NETWORK.members, 'hidden_units': list(NETWORK.hidden_units)},
            'machine': describe_machine()}


def write_files(rate_hz: float, folder: Path) -> NodeOptions:
    """Write robot, MJCF, task, planner and a model for this rate; return what the nodes share."""
    share = share_dir()
    period_s = 1.0 / rate_hz
    tree = ET.parse(share / 'models/cartpole/robot.xml')
    option = tree.getroot().find('option')
    assert option is not None
    option.set('timestep', repr(period_s / math.ceil(period_s / PHYSICS_STEP_S - 1e-9)))
    mjcf = folder / 'robot.xml'
    tree.write(mjcf)
    robot = yaml.safe_load((share / 'config/robots/cartpole.yaml').read_text())
    robot['control_rate_hz'] = rate_hz
    robot['simulation']['mjcf'] = str(mjcf)
    (folder / 'robot.yaml').write_text(yaml.safe_dump(robot))
    task = yaml.safe_load((share / 'config/tasks/cartpole_swingup.yaml').read_text())
    (folder / 'task.yaml').write_text(yaml.safe_dump(task | {'horizon': HORIZON}))
    (folder / 'planner.yaml').write_text(yaml.safe_dump(PLANNING))
    spec = load_robot(folder / 'robot.yaml')
    motion = random_motion(spec, SEED, EPISODES, max(FEWEST_STEPS, round(EPISODE_S * rate_hz)))
    train_model(motion, NETWORK, SEED, folder / 'model')
    return NodeOptions(robot=str(folder / 'robot.yaml'), task=str(folder / 'task.yaml'),
                       model=str(folder / 'model'))


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep each core that this process may use busy, at the priority of any process."""
    loops = [subprocess.Popen([sys.executable, '-c', 'while True: pass'])
             for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


class Crew:
    """Observer, controller and simulated robot, a process each, in a DDS domain of their own."""

    def __init__(self, folder: Path, options: NodeOptions, parameters: Mapping[str, Any]) -> None:
        self._folder, self._record = folder, folder / 'record.json'
        self._environment = os.environ | own_domain()
        robot, _, controller = GROUPS['demo']
        # A model of seconds of random motion is trusted everywhere: the loop is measured, not it.
        settings = {'planner': str(folder / 'planner.yaml'), 'seed': SEED, 'max_spread': 1e6,
                    **dict.fromkeys(TRUST_LIMITS, 1.0), **parameters}
        self._commands = {
            'observer': [sys.executable, '-m', 'mbrl_ros.nodes.loop_observer', options.robot,
                         str(self._record)],
            'controller': controller.command(options, settings),
            'robot': robot.command(options, {'seed': SEED})}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.is_robot_steady = False

    def __enter__(self) -> 'Crew':
        """Nothing runs yet."""
        return self

    def start(self) -> None:
        """Start one after the other, and wait for the first tick."""
        for name, command in self._commands.items():
            with (self._folder / f'{name}.log').open('wb') as log:
                self._processes[name] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log,
                    start_new_session=True, env=self._environment)
            if name == 'observer':
                self._wait_for(OBSERVING)
        self._wait_for(TICKING)
        self.is_robot_steady = self._steady_robot()

    def _steady_robot(self) -> bool:
        """
        Give the robot real-time priority, where that is permitted; return whether it was.

        A robot's driver has it, or a computer of its own: the robot's jitter is not the
        controller's.
        """
        try:
            for task in Path(f'/proc/{self._processes["robot"].pid}/task').iterdir():
                os.sched_setscheduler(int(task.name), os.SCHED_FIFO,
                                      os.sched_param(ROBOT_PRIORITY))
        except PermissionError:
            return False
        return True

    def measure(self, seconds: float) -> tuple[int, int]:
        """Let them run; return begin and end [ns], system time."""
        begin_ns, end_s = time.time_ns(), time.monotonic() + seconds
        while time.monotonic() < end_s:
            time.sleep(min(1.0, max(0.0, end_s - time.monotonic())))
            self._check_alive()
        return begin_ns, time.time_ns()

    def finish(self, period_s: float, *stretches: tuple[int, int]) -> list[dict[str, Any]]:
        """Return the figures of each stretch of time, begin and end [ns]."""
        self._processes.pop('observer').communicate(timeout=START_TIMEOUT_S)
        record = json.loads(self._record.read_text())
        try:
            return [judge(record, period_s, *stretch) for stretch in stretches]
        except BenchError as error:
            raise BenchError(f"{error}\nEnd of the controller's log:\n"
                             + self._log('controller')[-LOG_TAIL:]) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """End all: the controller before the robot."""
        for name in ('observer', 'controller', 'robot'):
            process = self._processes.pop(name, None)
            if process is not None:
                end(process)

    def _wait_for(self, word: str) -> None:
        end_s = time.monotonic() + START_TIMEOUT_S
        while word not in self._log('observer'):
            self._check_alive()
            if time.monotonic() > end_s:
                raise BenchError(f"no sign of '{word}' for {START_TIMEOUT_S:g} s. End of the "
                                 f'controller\'s log:\n{self._log("controller")[-LOG_TAIL:]}')
            time.sleep(POLL_S)

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise BenchError(f'the {name} ended with status {process.returncode}.\n'
                                 + self._log(name)[-LOG_TAIL:])

    def _log(self, name: str) -> str:
        path = self._folder / f'{name}.log'
        return path.read_text(errors='replace') if path.is_file() else ''
