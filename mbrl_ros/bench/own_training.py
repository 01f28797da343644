"""Our trainer beside another one: the real `Training`, timed an epoch at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import time
from typing import TypeVar

import numpy as np
import torch

from mbrl_ros.data.dataset import Dataset
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.one_step import OneStep
from mbrl_ros.learning.trainer import Training

T = TypeVar('T')


@dataclass(frozen=True)
class Epoch:
    """
    Where a training stands after an epoch.

    Attributes
    ----------
    seconds : float
        Wall time since it began, without that of the scores below.
    steps, most_steps : int
        Gradient steps so far, and at most.
    nll : float
        See `OwnTraining.nll`, of each member's best weights.

    """

    seconds: float
    steps: int
    most_steps: int
    nll: float


class OwnTraining:
    """
    Our trainer on given data.

    Parameters
    ----------
    training, holdout : Dataset
        Of one robot.
    threads : int
        Of torch, in the whole process.

    """

    def __init__(self, training: Dataset, holdout: Dataset, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        self._robot = training.robot
        self._training, self._holdout = training, holdout
        self._windows = training.windows(1), holdout.windows(1)
        states, _, next_states = training.transitions()
        self._step_std = (next_states - states).std(axis=0)

    def start(self, config: TrainingConfig, seed: int) -> Training:
        """Return a run that has not begun."""
        return Training(self._robot, *self._windows, config, seed)

    @staticmethod
    def time_epochs(run: Training, number: int) -> list[float]:
        """Train for epochs, after one that does not count; return their times [s]."""
        return [_timed(run.run_epoch)[1] for _ in range(number + 1)][1:]

    def fit(self, config: TrainingConfig, seed: int) -> Iterator[Epoch]:
        """Train until the end, and say after every epoch how good the model is by now."""
        run, seconds = _timed(lambda: self.start(config, seed))
        while not run.is_done:
            row, spent = _timed(run.run_epoch)
            seconds += spent
            # The best weights, as a training that ended here would give them; the run itself goes
            # on from its latest.
            copy = self.start(config, seed)
            copy.restore(run.state())
            yield Epoch(seconds, int(row['step']), run.most_steps, self._score(copy))

    def nll(self, mean: np.ndarray, std: np.ndarray) -> float:
        """
        Return the negative log-likelihood of the holdout's changes under predictions.

        Parameters
        ----------
        mean, std : array, shape (E, N, S)
            Of the changes by each member, in physical units.

        Returns
        -------
        float
            Of the mixture of all members, a mean over transitions and fields, in units of a
            typical step; N(0, 1) scores 1.419. It is the score of the model's card.

        """
        states, actions, next_states = self._holdout.transitions()
        return float(OneStep(states, actions, next_states, states + mean, std,
                             self._step_std).nll().mean())

    def _score(self, run: Training) -> float:
        ensemble = run.result().ensemble
        states, actions, _ = self._holdout.transitions()
        observation, action = (
            torch.from_numpy(array.astype(np.float32)).expand(ensemble.members, -1, -1)
            for array in (states, actions))
        with torch.no_grad():
            found = ensemble.predict(observation, action)
        return self.nll(found['mean'].numpy() - states, found['std'].numpy())


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began
