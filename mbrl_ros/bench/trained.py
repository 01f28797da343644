"""
An ensemble trained in seconds on random motion of the simulated robot.

Run by `train_on_random_motion` as `python -m mbrl_ros.bench.trained ROBOT SEED OUTPUT`.
"""

from pathlib import Path
import sys

import numpy as np

from mbrl_ros.bench.process import run_module
from mbrl_ros.control import exploration
from mbrl_ros.core.paths import MODEL_FILE
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.data.resample import Episode
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.pipeline import train_model
from mbrl_ros.learning.recipe import WEIGHTS_FILE
from mbrl_ros.sim.mujoco_robot import MujocoRobot

# 64 s of the cart-pole, in episodes too short for the cart to bang against the rail's ends often:
# a network that is to learn those jumps does not settle in a few seconds.
EPISODES, EPISODE_STEPS = 64, 25
# mbrl-lib's network for the cart-pole; the rest as in config/training/default.yaml, but stopped
# early: a comparison needs dynamics that make candidates differ, not the best ones.
CONFIG = TrainingConfig(
    members=5, hidden_units=(200, 200, 200, 200), activation='silu', learning_rate=1e-3,
    weight_decay=(1e-4, 2.5e-4, 2.5e-4, 2.5e-4, 5e-4), logvar_bounds=(-10.0, 0.5),
    logvar_bound_weight=0.01, batch_size=64, max_epochs=60, min_steps=1000, patience_steps=600,
    holdout_fraction=0.15, improvement=1e-3)


def random_motion(robot: RobotSpec, seed: int, episodes: int = EPISODES,
                  steps: int = EPISODE_STEPS, hold_steps: int = 1,
                  mass_scale: float = 1.0) -> Dataset:
    """
    Move the simulated robot by the uniform exploration signal, without ROS.

    Parameters
    ----------
    robot : RobotSpec
        Its `simulation` section says what moves.
    seed : int
        Of the initial states and of the actions: the same seed gives the same dataset.
    episodes, steps : int
        Number of episodes, and of control periods in each.
    hold_steps : int
        Control periods for which each random action is held.
    mass_scale : float
        Factor on all masses, as `MujocoRobot` has it.

    """
    generator = np.random.default_rng(seed)
    settings = exploration.config_class('uniform').model_validate(
        {'hold_steps': hold_steps})
    signal = exploration.make_signal('uniform', settings, robot, generator)
    body = MujocoRobot(robot, mass_scale=mass_scale)
    recorded = []
    for _ in range(episodes):
        body.reset(generator)
        states, actions = [body.state()], []
        for _step in range(steps):
            actions.append(signal.next())
            body.step(actions[-1])
            states.append(body.state())
        recorded.append(Episode(np.array(states), np.array(actions), start_ns=0,
                                source='random motion'))
    return Dataset(tuple(recorded), robot)


def train_on_random_motion(robot: str, seed: int, output: Path) -> tuple[Path, Path]:
    """
    Train in a process of its own, on one thread.

    Batches are so small that a second thread does not pay, and where another process has the
    second core, waiting for it makes a step ten times slower.

    Returns
    -------
    model, weights : Path
        dynamics.onnx, and the ensemble's arrays as an .npz file.

    Raises
    ------
    BenchError
        If training fails.

    """
    run_module('mbrl_ros.bench.trained', robot, seed, output,
               environment={'OMP_NUM_THREADS': '1'})
    return output / MODEL_FILE, output / WEIGHTS_FILE


if __name__ == '__main__':
    train_model(random_motion(load_robot(sys.argv[1]), int(sys.argv[2])), CONFIG,
                int(sys.argv[2]), Path(sys.argv[3]))
