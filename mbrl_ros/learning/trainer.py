"""Train the ensemble: bootstrap, early stopping and best weights for each member on its own."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.dataset import Windows
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.ensemble import Ensemble

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class TrainingResult:
    """A trained ensemble (each member at its best weights) and how it got there."""

    ensemble: Ensemble
    epochs: int
    steps: int
    best_loss: np.ndarray
    history: list[dict[str, float]] = field(default_factory=list)


class Training:
    """
    One training run, epoch by epoch; it can be saved after any of them and go on, bit for bit.

    Parameters
    ----------
    robot : RobotSpec
        Defines features and targets.
    training, holdout : Windows
        In physical units.
    config : TrainingConfig
        Network and optimiser.
    seed : int
        Of initial weights, bootstrap and batches; the same data and seed give the same weights.
    warm_start : dict of arrays, optional
        `Ensemble.arrays()` of an earlier model of the same shape. The normaliser is fitted anew.

    Raises
    ------
    ModelError
        If the warm start has another shape.

    """

    def __init__(self, robot: RobotSpec, training: Windows, holdout: Windows,
                 config: TrainingConfig, seed: int,
                 warm_start: dict[str, np.ndarray] | None = None) -> None:
        self._config = config
        self._generator = torch.Generator().manual_seed(seed)
        self.ensemble = Ensemble(robot, config.members, config.hidden_units,
                                 config.logvar_bounds, self._generator, config.activation)
        if warm_start is not None:
            _load(self.ensemble, warm_start)
        states, actions = _tensor(training.states), _tensor(training.actions)
        first = states[:, 0], actions[:, 0], states[:, 1]
        self.ensemble.fit_normaliser(*first)
        self._inputs = self.ensemble.features(first[0], first[1])
        self._targets = self.ensemble.target(first[0], first[2])
        held_states, held_actions = _tensor(holdout.states), _tensor(holdout.actions)
        self._held_inputs = self.ensemble.features(
            held_states[:, 0], held_actions[:, 0]).expand(config.members, -1, -1)
        self._held_targets = self.ensemble.target(held_states[:, 0], held_states[:, 1])
        self._optimiser = torch.optim.Adam(_groups(self.ensemble, config),
                                           lr=config.learning_rate, fused=True)
        count, members = len(states), config.members
        self._bootstrap = torch.randint(count, (members, count), generator=self._generator)
        self._best_loss = torch.full((members,), torch.inf)
        self._best_step = torch.zeros(members)
        self._best = {name: value.clone() for name, value in self.ensemble.state_dict().items()}
        self._step = 0
        self.history: list[dict[str, float]] = []

    @property
    def most_steps(self) -> int:
        """Gradient steps after which training ends at the latest."""
        return self._config.max_epochs * -(-len(self._inputs) // self._config.batch_size)

    @property
    def is_done(self) -> bool:
        """Whether no member gets better any more, or the epochs are used up."""
        if len(self.history) >= self._config.max_epochs:
            return True
        patient = self._step - self._best_step < self._config.patience_steps
        return self._step >= self._config.min_steps and not bool(patient.any())

    def run_epoch(self) -> dict[str, float]:
        """
        Show every member its bootstrap sample once, and score it on the holdout.

        Returns
        -------
        dict
            Epoch, gradient steps so far, and losses: a row of the history.

        Raises
        ------
        ModelError
            If the loss stops being finite.

        """
        members, count = self._bootstrap.shape
        order = torch.argsort(torch.rand(members, count, generator=self._generator), dim=1)
        shuffled = torch.gather(self._bootstrap, 1, order)
        for batch in shuffled.split(self._config.batch_size, dim=1):
            self._optimiser.zero_grad(set_to_none=True)
            mean, logvar = self.ensemble.normalised(self._inputs[batch])
            loss = _loss(mean, logvar, self._targets[batch]).sum()
            bounds = self.ensemble.max_logvar.sum() - self.ensemble.min_logvar.sum()
            (loss + self._config.logvar_bound_weight * bounds).backward()
            self._optimiser.step()
            self._step += 1
        with torch.no_grad():
            held_loss = _loss(*self.ensemble.normalised(self._held_inputs), self._held_targets)
        epoch = len(self.history) + 1
        if not torch.isfinite(held_loss).all():
            raise ModelError(f'training diverged in epoch {epoch}: holdout loss {held_loss}. '
                             'Check the data with `mbrl-ros bag info`, or lower learning_rate.')
        better = held_loss < self._best_loss - self._config.improvement
        self._best_loss = torch.where(better, held_loss, self._best_loss)
        self._best_step = torch.where(better, torch.tensor(float(self._step)), self._best_step)
        for name, value in self.ensemble.named_parameters():
            self._best[name][better] = value.detach()[better]
        self.history.append({'epoch': epoch, 'step': self._step,
                             'train_loss': loss.item() / members,
                             'holdout_loss': float(held_loss.mean()),
                             'best_loss': float(self._best_loss.mean())})
        return self.history[-1]

    def result(self) -> TrainingResult:
        """Return the ensemble, each member at its best weights."""
        self._best |= dict(self.ensemble.named_buffers())
        self.ensemble.load_state_dict(self._best)
        return TrainingResult(self.ensemble, len(self.history), self._step,
                              self._best_loss.numpy(), self.history)


def train(robot: RobotSpec, training: Windows, holdout: Windows, config: TrainingConfig,
          seed: int, warm_start: dict[str, np.ndarray] | None = None,
          progress: Progress | None = None) -> TrainingResult:
    """
    Fit an ensemble to windows.

    Parameters
    ----------
    robot, training, holdout, config, seed, warm_start
        See `Training`.
    progress : callable, optional
        Called with (step, most steps, mean of the members' best holdout loss).

    Raises
    ------
    ModelError
        If the warm start has another shape, or the loss stops being finite.

    """
    run = Training(robot, training, holdout, config, seed, warm_start)
    while not run.is_done:
        row = run.run_epoch()
        if progress is not None:
            progress(int(row['step']), run.most_steps, row['best_loss'])
    return run.result()


def _loss(mean: Tensor, logvar: Tensor, target: Tensor) -> Tensor:
    """Return twice the Gaussian NLL without its constant, per member, mean over batch and S."""
    return ((mean - target).square() * torch.exp(-logvar) + logvar).mean(dim=(1, 2))


def _groups(ensemble: Ensemble, config: TrainingConfig) -> list[dict[str, object]]:
    groups: list[dict[str, object]] = [
        {'params': [weight], 'weight_decay': decay}
        for weight, decay in zip(ensemble.weights, config.weight_decay, strict=True)]
    rest = [*ensemble.biases, ensemble.min_logvar, ensemble.max_logvar]
    return [*groups, {'params': rest, 'weight_decay': 0.0}]


def _load(ensemble: Ensemble, arrays: dict[str, np.ndarray]) -> None:
    shapes = {name: tuple(value.shape) for name, value in ensemble.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in arrays.items()}
    if shapes != found:
        different = [f'{name}: {found.get(name)} instead of {shape}'
                     for name, shape in shapes.items() if found.get(name) != shape]
        raise ModelError('warm start: the earlier model has another shape: '
                         + '; '.join(different) + '. Train without a warm start.')
    ensemble.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float32))
