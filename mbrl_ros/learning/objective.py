"""What training minimises: one or more steps of the networks against what was recorded."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mbrl_ros.data.dataset import Windows
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.ensemble import Ensemble

# Of the residual variance of a deterministic member, in normalised units.
SMALLEST_VARIANCE = 1e-8


@dataclass(frozen=True)
class Samples:
    """
    Windows on the device, N of k steps, and what the networks take and should give for them.

    Attributes
    ----------
    inputs : Tensor, shape (N, F)
        Normalised inputs of the first step.
    targets : Tensor, shape (N, k, O)
        Normalised targets of each step from the recorded state before it.
    states, actions : Tensor, shapes (N, k + 1, S) and (N, k, A)
        In physical units.
    terminations : Tensor, shape (N, k)
        1 where the episode ended, else 0; zeros unless that is learned.

    """

    inputs: Tensor
    targets: Tensor
    states: Tensor
    actions: Tensor
    terminations: Tensor

    def __len__(self) -> int:
        """Return the number of windows, N."""
        return len(self.inputs)

    @property
    def steps(self) -> int:
        """Steps of a window, k."""
        return self.targets.shape[1]


class Objective:
    """
    The loss of an ensemble.

    Parameters
    ----------
    ensemble : Ensemble
        On the device it stays on.
    config : TrainingConfig
        Weights of reward and termination.

    """

    def __init__(self, ensemble: Ensemble, config: TrainingConfig) -> None:
        self._ensemble, self._size = ensemble, ensemble.state_size
        # Each target's: a mean over the fields of the state, and the reward beside them.
        self._weights = torch.full_like(ensemble.target_std, 1.0 / self._size)
        self._weights[self._size:] *= config.reward_weight
        # Twice the cross-entropy goes with twice the negative log-likelihood.
        self._ending_weight = 2.0 * config.termination_weight / self._size
        self._variance_exponent = config.variance_exponent

    def fit_normaliser(self, windows: Windows) -> None:
        """Fit the ensemble's statistics to the first transition of each window."""
        states, actions, rewards, _ = self._on_device(windows)
        self._ensemble.fit_normaliser(states[:, 0], actions[:, 0], states[:, 1],
                                      None if rewards is None else rewards[:, 0])

    def samples(self, windows: Windows) -> Samples:
        """Put windows on the ensemble's device, with inputs and targets worked out."""
        states, actions, rewards, terminations = self._on_device(windows)
        return Samples(self._ensemble.features(states[:, 0], actions[:, 0]),
                       self._ensemble.target(states[:, :-1], states[:, 1:], rewards),
                       states, actions, terminations)

    def training_loss(self, samples: Samples, batch: Tensor) -> Tensor:
        """
        Return the loss of each member on its batch, shape (E,).

        Parameters
        ----------
        samples : Samples
            Of the training data.
        batch : Tensor, shape (E, B), int
            Which samples each member sees.

        Notes
        -----
        Twice the negative log-likelihood without its constant, a mean over the steps, the batch
        and the fields of the state; of a deterministic network that is the mean squared error.
        With a `variance_exponent` each error is weighed by its variance to that power, taken as a
        constant: without, what is rarely moved, such as a thing to be pushed, is soon said to be
        unsure when it moves, and the gradient of its mean, divided by that variance, is lost.
        Source: Seitzer et al. 2022 (beta-NLL), arXiv:2203.09168.

        Source of the loss over several steps, with gradients through all of them: Benechehab et
        al. 2024, arXiv:2402.03146. Each member is rolled out through its own mean, not through a
        sample: that is the path whose error counts, and its gradient is free of a sample's noise.
        The std learns from the first step alone: later errors hold what the steps before have
        added, and would make it too wide for one step. There, each step and field has the std of
        its errors in the batch, so that all of them have a say: weighed by the std of one step,
        where the motion is smooth, drift would drown the first step (measured on the cart-pole).

        """
        losses = [self._loss(error, logvar, logit, samples.terminations[batch, step],
                             self._variance_exponent)
                  for step, (error, logvar, logit) in enumerate(self._roll_out(samples, batch))]
        return sum(losses[1:], start=losses[0]) / len(losses)

    def holdout_losses(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """
        Return losses of each member on all samples, both of shape (E,).

        The first is that of one step, whatever `loss_steps`; the second that of all steps, by
        which weights are chosen: the best ones for one step are not the best for many. Both give
        a deterministic member the constant variances that suit these samples best, so the figures
        of all kinds of networks compare.
        """
        everything = torch.arange(len(samples), device=samples.inputs.device)
        with torch.no_grad():
            losses = [
                self._loss(error, logvar if self._ensemble.probabilistic
                           else _residual_logvar(error), logit, samples.terminations[:, step])
                for step, (error, logvar, logit) in enumerate(
                    self._roll_out(samples, everything.expand(self._ensemble.members, -1)))]
        return losses[0], torch.stack(losses).mean(dim=0)

    def residual_logvar(self, samples: Samples) -> Tensor:
        """Return the log of each member's mean squared error one step ahead, shape (E, 1, O)."""
        with torch.no_grad():
            mean = self._ensemble.normalised(
                samples.inputs.expand(self._ensemble.members, -1, -1)).mean
            return _residual_logvar(mean - samples.targets[:, 0])

    def _roll_out(self, samples: Samples, batch: Tensor
                  ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield normalised error, logvar and logit after each step of windows (E, B)."""
        ensemble, size = self._ensemble, self._size
        mean, logvar, logit = ensemble.normalised(samples.inputs[batch])
        error = mean - samples.targets[batch, 0]
        yield error, logvar, logit
        for step in range(1, samples.steps):
            # From where the member has come to, not from the recorded state.
            drift = error[..., :size]
            state = samples.states[batch, step] + drift * ensemble.target_std[:size]
            mean, logvar, logit = ensemble.normalised(
                ensemble.features(state, samples.actions[batch, step]))
            error = mean - samples.targets[batch, step]
            error = torch.cat([error[..., :size] + ensemble.is_delta * drift,
                               error[..., size:]], dim=-1)
            if ensemble.probabilistic:
                logvar = _residual_logvar(error.detach())
            yield error, logvar, logit

    def _loss(self, error: Tensor, logvar: Tensor, logit: Tensor | None, ended: Tensor,
              exponent: float = 0.0) -> Tensor:
        columns = error.square() * torch.exp(-logvar) + logvar
        if exponent:
            columns = columns * torch.exp(exponent * logvar.detach())
        loss: Tensor = (columns.mean(dim=1) * self._weights).sum(dim=-1)
        if logit is not None:
            entropy = binary_cross_entropy_with_logits(logit, ended.expand_as(logit),
                                                       reduction='none')
            loss = loss + self._ending_weight * entropy.mean(dim=1)
        return loss

    def _on_device(self, windows: Windows) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        device = self._ensemble.is_delta.device

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.asarray(array, dtype=np.float32)).to(device)

        rewards = tensor(windows.rewards) \
            if self._ensemble.reward and windows.rewards is not None else None
        terminations = tensor(windows.terminations != 0) \
            if self._ensemble.termination and windows.terminations is not None \
            else torch.zeros(windows.actions.shape[:2], device=device)
        return tensor(windows.states), tensor(windows.actions), rewards, terminations


def _residual_logvar(error: Tensor) -> Tensor:
    return error.square().mean(dim=1, keepdim=True).clamp_min(SMALLEST_VARIANCE).log()
