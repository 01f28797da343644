"""
One run of PETS's loop: a random episode, then train on all there is and drive, in turns.

Run by `bench.pets` as `python -m mbrl_ros.bench.pets_run SETTINGS TRIALS FOLDER`; it ends when its
standard input does.
"""

from dataclasses import asdict, dataclass, replace
import json
import os
from pathlib import Path
import sys
from threading import Thread

import numpy as np
from pydantic import Field

from mbrl_ros.bench.published import TASKS
from mbrl_ros.bench.returns import drive, pilot_config
from mbrl_ros.control.build import build_pilot
from mbrl_ros.control.exploration import config_class
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.tick import Tick
from mbrl_ros.control.trust import TrustConfig
from mbrl_ros.core.errors import BagError, SpecError
from mbrl_ros.core.files import locked_folder, replace_file
from mbrl_ros.core.paths import find_config, MODEL_FILE
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.core.task import load_task, TaskSpec
from mbrl_ros.core.yaml_file import load, Strict
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.data.resample import Episode
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.pipeline import train_model
from mbrl_ros.planning import load_planning, PlanningConfig
from mbrl_ros.sim.mujoco_robot import MujocoRobot

SETTINGS_FILE, TRIAL_FILE, EPISODE_FILE = 'settings.json', 'trial.json', 'episode.npz'
# A policy that is still learning must go where no model can be trusted yet; 1 is never.
LEARNING_TRUST = TrustConfig.model_validate(
    {'slow_above': 1.0, 'hold_above': 1.0, 'stop_above': 1.0})
LEARNING_SPREAD = 1e6
SIGNAL = 'uniform'


class Settings(Strict):
    """All that a run is a function of beside the code: the same settings, the same returns."""

    seed: int = Field(ge=0)
    physics: str = Field(description='SHA-256 of what MuJoCo made of the MJCF')
    robot: RobotSpec
    task: TaskSpec
    planning: PlanningConfig
    training: TrainingConfig

    @classmethod
    def of(cls, task: str, seed: int, planner: str, training: str) -> 'Settings':
        """Read them from the names of a PETS task, a planner and a training ('': the task's)."""
        robot_name, task_name, usual = TASKS[task]
        robot = load_robot(robot_name)
        spec = load_task(task_name, robot)
        return cls(seed=seed, physics=MujocoRobot(robot).physics_hash, robot=robot, task=spec,
                   planning=load_planning(planner or spec.planner),
                   training=load(find_config('training', training or usual), TrainingConfig))


@dataclass(frozen=True)
class Trial:
    """
    What is known of a finished trial.

    Attributes
    ----------
    number : int
        Zero is the random episode.
    total_return : float
        Minus the cost of the real transitions.
    candidates : int
        Action sequences that a plan evaluates; zero where nothing was planned.

    """

    number: int
    total_return: float
    candidates: int


def finished(folder: Path) -> list[Trial]:
    """Return the trials that a run has in its folder, in order, up to the first that is not."""
    found: list[Trial] = []
    while (path := _trial_folder(folder, len(found)) / TRIAL_FILE).is_file():
        found.append(Trial(**json.loads(path.read_text())))
    return found


def run(settings: Settings, trials: int, folder: Path) -> None:
    """
    Go on with a run until it has so many trials.

    Parameters
    ----------
    settings : Settings
        As the run began with.
    trials : int
        Beside the random episode.
    folder : Path
        Holds what was done before: a run that was killed loses the trial it was in.

    Raises
    ------
    SpecError
        If the run in the folder was begun with other settings, or still goes on.

    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked_folder(folder):
            _check(settings, folder)
            episodes = [_read(_trial_folder(folder, trial.number)) for trial in finished(folder)]
            for number in range(len(episodes), trials + 1):
                episodes.append(_run_trial(settings, number, episodes, folder))
    except BlockingIOError as error:
        raise SpecError(f'{folder}: another process runs trials here. Wait for it, or choose '
                        'another --output') from error


def _check(settings: Settings, folder: Path) -> None:
    path, text = folder / SETTINGS_FILE, settings.model_dump_json(indent=2)
    if not path.is_file():
        replace_file(path, text)
    elif path.read_text() != text:
        raise SpecError(f'{folder}: begun with other settings than are asked for now ({path}). '
                        'Choose another --output, or remove the folder')


def _run_trial(settings: Settings, number: int, episodes: list[Episode],
               folder: Path) -> Episode:
    place, seed = _trial_folder(folder, number), 1000 * settings.seed + number
    place.mkdir(exist_ok=True)
    if number > 0:
        before = _trial_folder(folder, number - 1)
        train_model(Dataset(tuple(episodes), settings.robot), settings.training, seed, place,
                    before if (before / MODEL_FILE).is_file() else None)
    _drive(settings, number, seed, place)
    return _read(place)


def _drive(settings: Settings, number: int, seed: int, place: Path) -> None:
    """Drive an episode, by the model in its folder or at random, and write what came of it."""
    robot, task = settings.robot, settings.task
    config = pilot_config(place / MODEL_FILE, task, seed, planning=settings.planning,
                          max_spread=LEARNING_SPREAD, trust=LEARNING_TRUST)
    if number == 0:
        config = replace(config, signal=SIGNAL, source_config=config_class(SIGNAL)())
    body, built = MujocoRobot(robot), build_pilot(robot, task, config, Latch())
    states, actions, candidates = [], [], [0]

    def watch(tick: Tick, body: MujocoRobot) -> None:
        states.append(body.state())
        actions.append(tick.verdict.command)
        if tick.decision is not None:
            candidates.append(tick.decision.candidates)
    try:
        total = drive(built, body, task, seed, watch=watch)
    finally:
        built.close()
    body.reset(np.random.default_rng(1000 + seed))  # where the episode began
    np.savez(place / EPISODE_FILE, states=np.array([body.state(), *states]),
             actions=np.array(actions))
    replace_file(place / TRIAL_FILE, json.dumps(asdict(Trial(number, total, max(candidates)))))


def _read(place: Path) -> Episode:
    path = place / EPISODE_FILE
    try:
        with np.load(path) as arrays:
            return Episode(arrays['states'], arrays['actions'], 0, place.name)
    except (OSError, ValueError, KeyError) as error:
        raise BagError(f'{path}: cannot be read: {error}. Remove {place} and run again') from error


def _trial_folder(folder: Path, number: int) -> Path:
    return folder / f'trial_{number:03d}'


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == '__main__':
    os.nice(5)  # hours of work beside which a person may want to use the machine
    Thread(target=_end_with_input, daemon=True).start()
    run(Settings.model_validate_json(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
