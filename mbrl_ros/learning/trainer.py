"""Train the ensemble: bootstrap, early stopping and best weights for each member on its own."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
import math
import os

import numpy as np
import torch
from torch import Tensor

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.dataset import Windows
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.learning.objective import Objective
from mbrl_ros.learning.warm_start import load_weights

# Gradient step, most steps, mean of the members' best holdout loss.
Progress = Callable[[int, int, float], None]

# Of a cycle of the learning rate: the share of its steps in which it rises, and the share of its
# peak below which it never falls.
RISE, FLOOR = 0.03, 0.02


@dataclass(frozen=True)
class TrainingResult:
    """
    A trained ensemble (each member at its best weights) and how it got there.

    `best_loss` (E,) is each member's loss one step ahead on the holdout, whatever `loss_steps`:
    twice the negative log-likelihood without its constant, a mean over the fields.
    """

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
        Of `loss_steps` steps, in physical units.
    config : TrainingConfig
        Network and optimiser.
    seed : int
        Of initial weights, bootstrap and batches; the same data and seed give the same weights.
    warm_start : dict of arrays, optional
        `Ensemble.arrays()` of an earlier model of the same kind and shape. The normaliser is
        fitted anew.
    device : {'cpu', 'cuda', 'auto'}
        Where the network is trained, see `choose_device`. All random numbers are drawn on the
        CPU: they are the same on both.

    Raises
    ------
    ModelError
        If the data hold no labels for a head, or no window so long; the warm start has another
        kind or shape; or there is no such device.

    """

    def __init__(self, robot: RobotSpec, training: Windows, holdout: Windows,
                 config: TrainingConfig, seed: int,
                 warm_start: dict[str, np.ndarray] | None = None, device: str = 'cpu') -> None:
        _check_windows(robot, training, holdout, config)
        self._config = config
        self._device = choose_device(device)
        self._generator = torch.Generator().manual_seed(seed)
        self.ensemble = Ensemble(
            robot, config.members, config.hidden_units, config.logvar_bounds, self._generator,
            config.activation, probabilistic=config.probabilistic, reward=config.reward_head,
            termination=config.termination_head)
        if warm_start is not None:
            load_weights(self.ensemble, warm_start)
        self.ensemble.to(self._device)
        self._objective = Objective(self.ensemble, config)
        self._objective.fit_normaliser(training)
        # What is scored and kept: the mean of the weights over the last steps.
        self._averaged = deepcopy(self.ensemble).requires_grad_(False) if config.averaging \
            else self.ensemble
        self._score = Objective(self._averaged, config).holdout_losses
        self._samples = self._objective.samples(training)
        self._held_out = self._objective.samples(holdout)
        self._optimiser = torch.optim.Adam(_groups(self.ensemble, config),
                                           lr=config.learning_rate, betas=config.adam_betas,
                                           fused=True)
        count, members = len(self._samples), config.members
        # A single network has nobody to differ from: it sees all data.
        self._bootstrap = torch.arange(count)[None] if members == 1 \
            else torch.randint(count, (members, count), generator=self._generator)
        # `score` chooses the weights, `loss` is that of one step at the same weights.
        self._best_score, self._best_loss = torch.full((2, members), torch.inf,
                                                       device=self._device)
        self._best_step = torch.zeros(members, device=self._device)
        self._best = {name: value.clone() for name, value in self.ensemble.state_dict().items()}
        self._step = 0
        self.history: list[dict[str, float]] = []

    @property
    def most_steps(self) -> int:
        """Gradient steps after which training ends at the latest."""
        return self._most_epochs * self._batches

    @property
    def _most_epochs(self) -> int:
        if self._config.cycle_steps is None:
            return self._config.max_epochs
        return -(-self._config.cycle_steps // self._batches)

    @property
    def _batches(self) -> int:
        """Gradient steps of an epoch."""
        return -(-len(self._samples) // self._config.batch_size)

    @property
    def is_done(self) -> bool:
        """Whether no member gets better any more, or the epochs or the cycle are used up."""
        if len(self.history) >= self._most_epochs:
            return True
        if self._config.cycle_steps is not None:
            return False  # scores stand still while the learning rate is high, and fall with it
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
        shuffled = torch.gather(self._bootstrap, 1, order).to(self._device)
        for batch in shuffled.split(self._config.batch_size, dim=1):
            loss = self._gradient_step(batch)
        held_loss, score = self._score(self._held_out)
        epoch = len(self.history) + 1
        if not torch.isfinite(score).all():
            raise ModelError(f'training diverged in epoch {epoch}: holdout loss {score}. '
                             'Check the data with `mbrl-ros bag info`, or lower learning_rate.')
        better = score < self._best_score - self._config.improvement
        if self._config.chosen_by == 'last':
            better = torch.ones_like(better)
        self._best_score = torch.where(better, score, self._best_score)
        self._best_loss = torch.where(better, held_loss, self._best_loss)
        self._best_step = torch.where(better, float(self._step), self._best_step)
        for name, value in self._averaged.named_parameters():
            self._best[name][better] = value.detach()[better]
        self.history.append({'epoch': epoch, 'step': self._step,
                             'train_loss': float(loss) / members,
                             'holdout_loss': float(held_loss.mean()),
                             'best_loss': float(self._best_loss.mean())})
        return self.history[-1]

    def _gradient_step(self, batch: Tensor) -> Tensor:
        """Train on samples (E, B), and return the sum of the members' losses."""
        ensemble = self.ensemble
        learning_rate = self._learning_rate()
        for group in self._optimiser.param_groups:
            group['lr'] = learning_rate
        self._optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self._device, torch.bfloat16,
                            enabled=self._config.precision == 'bf16'):
            loss = self._objective.training_loss(self._samples, batch).sum()
        total = loss
        if ensemble.probabilistic:
            bounds = ensemble.max_logvar.sum() - ensemble.min_logvar.sum()
            total = loss + self._config.logvar_bound_weight * bounds
        total.backward()
        self._optimiser.step()
        self._step += 1
        if self._config.averaging:
            self._average()
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        """
        Take the newest weights into the average.

        Notes
        -----
        A step's share in it fades over `averaging` of all steps so far. That takes the noise of a
        constant learning rate out of the weights. It is independent from member to member, so with
        it they disagree by more than their mean is wrong. Source: Karras et al. 2024,
        arXiv:2312.02696 (power function EMA); of averages: Polyak & Juditsky 1992.

        """
        window = max(self._config.averaging * self._step, 1.0)
        for average, weight in zip(self._averaged.parameters(), self.ensemble.parameters(),
                                   strict=True):
            average.lerp_(weight, 1.0 / window)

    def _learning_rate(self) -> float:
        """
        Return that of the next gradient step.

        Notes
        -----
        Source of the cycle: Smith & Topin 2018, arXiv:1708.07120; falling as a cosine.

        """
        if self._config.cycle_steps is None:
            return self._config.learning_rate
        part = self._step / self.most_steps
        share = part / RISE if part < RISE \
            else 0.5 + 0.5 * math.cos(math.pi * (part - RISE) / (1.0 - RISE))
        return self._config.learning_rate * max(share, FLOOR)

    def run(self, after_epoch: Callable[[dict[str, float]], None] = lambda _: None
            ) -> TrainingResult:
        """Go on to the end; `after_epoch` is called with each row of the history."""
        while not self.is_done:
            after_epoch(self.run_epoch())
        return self.result()

    def state(self) -> dict[str, np.ndarray]:
        """
        Return all that the rest of the run depends on, as plain arrays.

        A `Training` of the same arguments that `restore` gives them back to goes on bit for bit.
        """
        found = {f'ensemble.{name}': value for name, value in self.ensemble.state_dict().items()}
        found |= {f'best.{name}': value for name, value in self._best.items()}
        found |= {f'averaged.{name}': value for name, value in self._averaged.state_dict().items()}
        for number, moments in self._optimiser.state_dict()['state'].items():
            found |= {f'adam.{number}.{name}': value for name, value in moments.items()}
        found |= {'bootstrap': self._bootstrap, 'generator': self._generator.get_state(),
                  'best_score': self._best_score, 'best_loss': self._best_loss,
                  'best_step': self._best_step}
        arrays = {name: value.cpu().numpy().copy() for name, value in found.items()}
        # Integers stay integers, and the order of the columns is kept.
        columns = self.history[0] if self.history else {}
        return arrays | {'step': np.array(self._step)} | {
            f'history.{name}': np.array([row[name] for row in self.history]) for name in columns}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave, in a run of the same arguments."""
        tensors: dict[str, dict[str, Tensor]] = {'ensemble': {}, 'best': {}, 'averaged': {},
                                                 'adam': {}}
        columns: dict[str, list[float]] = {}
        for key, array in state.items():
            group, _, name = key.partition('.')
            if group == 'history':
                columns[name] = array.tolist()
            elif group in tensors:
                tensors[group][name] = self._tensor(array)
        self.ensemble.load_state_dict(tensors['ensemble'])
        self._averaged.load_state_dict(tensors['averaged'])
        self._best = tensors['best']
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors['adam'].items():
            number, name = key.split('.')
            moments.setdefault(int(number), {})[name] = value
        self._optimiser.load_state_dict(self._optimiser.state_dict() | {'state': moments})
        self._best_score, self._best_loss, self._best_step = (
            self._tensor(state[name]) for name in ('best_score', 'best_loss', 'best_step'))
        self._bootstrap = torch.from_numpy(state['bootstrap'].copy())
        self._generator.set_state(torch.from_numpy(state['generator'].copy()))
        self._step = int(state['step'])
        self.history = [dict(zip(columns, row, strict=True))
                        for row in zip(*columns.values(), strict=True)]

    def result(self) -> TrainingResult:
        """Return the ensemble, each member at its best weights, on the CPU."""
        self.ensemble.load_state_dict(self._best)
        if not self.ensemble.probabilistic:
            self.ensemble.constant_logvar.copy_(self._objective.residual_logvar(self._held_out))
        return TrainingResult(self.ensemble.cpu(), len(self.history), self._step,
                              self._best_loss.cpu().numpy(), self.history)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.copy()).to(self._device)


def choose_device(name: str) -> str:
    """
    Return the device of torch that 'cpu', 'cuda' or 'auto' (CUDA if there is one) stands for.

    Raises
    ------
    ModelError
        If there is no such device; the text says why.

    """
    if name not in ('auto', 'cpu', 'cuda'):
        raise ModelError(f"device '{name}': allowed are auto, cpu and cuda.")
    if name == 'cpu' or (name == 'auto' and not torch.cuda.is_available()):
        return 'cpu'
    if not torch.cuda.is_available():
        why = f'this torch ({torch.__version__}) was built without CUDA' \
            if torch.version.cuda is None else 'torch finds no CUDA device or driver'
        raise ModelError(f'device cuda: {why}. Train with device cpu or auto, or install a torch '
                         'with CUDA on a machine with an NVIDIA GPU.')
    # cuBLAS is deterministic only with a workspace of fixed size, asked for before its first call.
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    return 'cuda'


def _check_windows(robot: RobotSpec, training: Windows, holdout: Windows,
                   config: TrainingConfig) -> None:
    steps = config.loss_steps
    for role, windows in (('training', training), ('holdout', holdout)):
        if windows.actions.shape[1] != steps:
            raise ValueError(f'{role} windows have {windows.actions.shape[1]} steps, loss_steps '
                             f'is {steps}')
        if not len(windows.actions):
            raise ModelError(f'the {role} data hold no stretch of {steps} steps without a gap. '
                             'Record for longer, or lower loss_steps.')
    for name, wanted, values, held in (
            ('reward', config.reward_head, training.rewards, holdout.rewards),
            ('termination', config.termination_head, training.terminations,
             holdout.terminations)):
        if not wanted or (values is not None and held is not None):
            continue
        why = f"the robot spec '{robot.name}' does not say where it is reported. Add " \
            f'`{name}: {{name, unit, topic, type, path}}` to it' \
            if getattr(robot, name) is None else 'not all of the data hold it. Record its topic'
        raise ModelError(f'{name}_head: there is no {name} to learn: {why}, or set {name}_head: '
                         'false.')


def _groups(ensemble: Ensemble, config: TrainingConfig) -> list[dict[str, object]]:
    """Return the parameters by weight decay: each group costs the optimiser a call."""
    groups: dict[float, list[Tensor]] = {}
    for weight, decay in zip(ensemble.weights, config.weight_decay, strict=True):
        groups.setdefault(decay, []).append(weight)
    groups.setdefault(0.0, []).extend(ensemble.biases)
    if ensemble.probabilistic:
        groups[0.0] += [ensemble.min_logvar, ensemble.max_logvar]
    return [{'params': found, 'weight_decay': decay} for decay, found in groups.items()]
