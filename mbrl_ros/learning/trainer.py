"""Train the ensemble: bootstrap, early stopping and best weights for each member on its own."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.ensemble import Ensemble

Transitions = tuple[np.ndarray, np.ndarray, np.ndarray]
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class TrainingResult:
    """A trained ensemble (each member at its best weights) and how it got there."""

    ensemble: Ensemble
    epochs: int
    steps: int
    best_loss: np.ndarray
    history: list[dict[str, float]] = field(default_factory=list)


def train(robot: RobotSpec, training: Transitions, holdout: Transitions, config: TrainingConfig,
          seed: int, warm_start: dict[str, np.ndarray] | None = None,
          progress: Progress | None = None) -> TrainingResult:
    """
    Fit an ensemble to transitions.

    Parameters
    ----------
    robot : RobotSpec
        Defines features and targets.
    training, holdout : tuple of arrays
        State (N, S), action (N, A), next state (N, S), in physical units.
    config : TrainingConfig
        Network and optimiser.
    seed : int
        Of initial weights, bootstrap and batches; the same data and seed give the same weights.
    warm_start : dict of arrays, optional
        `Ensemble.arrays()` of an earlier model of the same shape. The normaliser is fitted anew.
    progress : callable, optional
        Called with (step, most steps, mean of the members' best holdout loss).

    Raises
    ------
    ModelError
        If the warm start has another shape, or the loss stops being finite.

    """
    generator = torch.Generator().manual_seed(seed)
    ensemble = Ensemble(robot, config.members, config.hidden_units, config.logvar_bounds,
                        generator, config.activation)
    if warm_start is not None:
        _load(ensemble, warm_start)
    state, action, next_state = (_tensor(a) for a in training)
    ensemble.fit_normaliser(state, action, next_state)
    inputs, targets = ensemble.features(state, action), ensemble.target(state, next_state)
    held = tuple(_tensor(a) for a in holdout)
    held_inputs = ensemble.features(held[0], held[1]).expand(config.members, -1, -1)
    held_targets = ensemble.target(held[0], held[2])

    optimiser = torch.optim.Adam(_groups(ensemble, config), lr=config.learning_rate, fused=True)
    count, members = len(state), config.members
    bootstrap = torch.randint(count, (members, count), generator=generator)
    batches = -(-count // config.batch_size)
    most_steps = config.max_epochs * batches
    best_loss = torch.full((members,), torch.inf)
    best_step = torch.zeros(members)
    best = {name: value.clone() for name, value in ensemble.state_dict().items()}
    history: list[dict[str, float]] = []
    step = epoch = 0
    while epoch < config.max_epochs:
        epoch += 1
        order = torch.argsort(torch.rand(members, count, generator=generator), dim=1)
        shuffled = torch.gather(bootstrap, 1, order)
        for batch in shuffled.split(config.batch_size, dim=1):
            optimiser.zero_grad(set_to_none=True)
            mean, logvar = ensemble.normalised(inputs[batch])
            loss = _loss(mean, logvar, targets[batch]).sum()
            bounds = ensemble.max_logvar.sum() - ensemble.min_logvar.sum()
            (loss + config.logvar_bound_weight * bounds).backward()
            optimiser.step()
            step += 1
        with torch.no_grad():
            held_loss = _loss(*ensemble.normalised(held_inputs), held_targets)
        if not torch.isfinite(held_loss).all():
            raise ModelError(f'training diverged in epoch {epoch}: holdout loss {held_loss}. '
                             'Check the data with `mbrl-ros bag info`, or lower learning_rate.')
        better = held_loss < best_loss - config.improvement
        best_loss = torch.where(better, held_loss, best_loss)
        best_step = torch.where(better, torch.tensor(float(step)), best_step)
        for name, value in ensemble.named_parameters():
            best[name][better] = value.detach()[better]
        history.append({'epoch': epoch, 'step': step, 'train_loss': loss.item() / members,
                        'holdout_loss': float(held_loss.mean())})
        if progress is not None:
            progress(step, most_steps, float(best_loss.mean()))
        patient = step - best_step < config.patience_steps
        if step >= config.min_steps and not patient.any():
            break
    best |= dict(ensemble.named_buffers())
    ensemble.load_state_dict(best)
    return TrainingResult(ensemble, epoch, step, best_loss.numpy(), history)


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
