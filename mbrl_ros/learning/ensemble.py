"""The ensemble: E networks, probabilistic or not, evaluated as one batched network."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import nn, Tensor

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.learning.config import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    'silu': nn.functional.silu, 'tanh': torch.tanh, 'relu': torch.relu,
    'leaky_relu': nn.functional.leaky_relu}


class Outputs(NamedTuple):
    """
    What the networks give for normalised inputs (E, N, F).

    Attributes
    ----------
    mean, logvar : Tensor, each of shape (E, N, O)
        Of the normalised targets: the fields of the state, and the reward if it is learned.
    logit : Tensor, shape (E, N), optional
        Of the probability that the episode ends, if that is learned.

    """

    mean: Tensor
    logvar: Tensor
    logit: Tensor | None


class Ensemble(nn.Module):
    """
    Ensemble of Gaussian networks that predict the change of the state.

    Parameters
    ----------
    robot : RobotSpec
        Says which fields enter the network, and how (linear, angle), and what is predicted
        (delta, absolute).
    members : int
        Number of networks, E.
    hidden_units : sequence of int
        Width of each hidden layer.
    logvar_bounds : (float, float)
        Where the learned soft bounds of the log-variance start, in normalised units.
    generator : torch.Generator
        Source of the initial weights: truncated normal, std 1 / (2 sqrt(inputs)).
    activation : {'silu', 'tanh', 'relu', 'leaky_relu'}
        After each hidden layer.
    probabilistic : bool
        Whether the log-variance is an output. If not, it is a constant of each member and target,
        zero until `Training` fits it.
    reward, termination : bool
        Whether the reward of the step, and the probability that it ends the episode, are outputs.

    Notes
    -----
    Source: Chua et al. 2018 (PETS), arXiv:1805.12114. Unlike there, targets are normalised too:
    with raw targets the smallest std the bounds allow, exp(-5), is larger than most joint steps
    at 50 Hz and above.

    """

    is_delta: Tensor
    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    constant_logvar: Tensor

    def __init__(self, robot: RobotSpec, members: int, hidden_units: Sequence[int],
                 logvar_bounds: tuple[float, float], generator: torch.Generator,
                 activation: Activation = 'silu', *, probabilistic: bool = True,
                 reward: bool = False, termination: bool = False) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.probabilistic, self.reward, self.termination = probabilistic, reward, termination
        kinds = [field.feature for field in robot.observation]
        self.linear_index = [i for i, kind in enumerate(kinds) if kind == 'linear']
        self.angle_index = [i for i, kind in enumerate(kinds) if kind == 'angle']
        state_size, action_size = len(kinds), len(robot.action)
        num_targets = state_size + reward
        num_features = len(self.linear_index) + 2 * len(self.angle_index) + action_size
        is_delta = [float(field.target == 'delta') for field in robot.observation]
        self.register_buffer('is_delta', torch.tensor(is_delta))
        self.register_buffer('input_mean', torch.zeros(num_features))
        self.register_buffer('input_std', torch.ones(num_features))
        self.register_buffer('target_mean', torch.zeros(num_targets))
        self.register_buffer('target_std', torch.ones(num_targets))
        # Fitted after training, to held-out data: no part of the weights that a warm start needs.
        self.std_factor, self.std_power = torch.ones(2, state_size)
        # The columns of the last layer: means, log-variances, the logit.
        self._columns = [num_targets, num_targets * probabilistic, int(termination)]
        sizes = [num_features, *hidden_units, sum(self._columns)]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            weight = torch.empty(members, inputs, outputs)
            std = 1.0 / (2.0 * inputs**0.5)
            nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(members, 1, outputs)))
        shape = members, 1, num_targets
        if probabilistic:
            low, high = logvar_bounds
            self.min_logvar = nn.Parameter(torch.full(shape, low))
            self.max_logvar = nn.Parameter(torch.full(shape, high))
        else:
            self.register_buffer('constant_logvar', torch.zeros(shape))

    @property
    def members(self) -> int:
        """Number of networks, E."""
        return self.weights[0].shape[0]

    @property
    def state_size(self) -> int:
        """Number of fields of the state, S."""
        return len(self.is_delta)

    @property
    def step_std(self) -> np.ndarray:
        """Typical change of the state in one step, shape (S,), in physical units."""
        return self.target_std[:self.state_size].cpu().numpy().copy()

    def features(self, state: Tensor, action: Tensor) -> Tensor:
        """
        Build the normalised network input.

        Order: linear fields, sines of the angles, cosines of the angles, actions.
        """
        angles = state[..., self.angle_index]
        raw = torch.cat([state[..., self.linear_index], angles.sin(), angles.cos(), action], -1)
        return (raw - self.input_mean) / self.input_std

    def target(self, state: Tensor, next_state: Tensor, reward: Tensor | None = None) -> Tensor:
        """Return the normalised target, shape (..., O): the state's, and the reward's if given."""
        raw = next_state - self.is_delta * state
        if reward is not None:
            raw = torch.cat([raw, reward[..., None]], dim=-1)
        return (raw - self.target_mean) / self.target_std

    def fit_normaliser(self, state: Tensor, action: Tensor, next_state: Tensor,
                       reward: Tensor | None = None) -> None:
        """Set input and target statistics from the training transitions, shapes (N, .)."""
        self.input_mean.zero_()
        self.input_std.fill_(1.0)
        self.target_mean.zero_()
        self.target_std.fill_(1.0)
        for values, mean, std in (
                (self.features(state, action), self.input_mean, self.input_std),
                (self.target(state, next_state, reward), self.target_mean, self.target_std)):
            mean.copy_(values.mean(0))
            spread = values.std(0)
            # A field that never moved in the data keeps its unit: it must not be blown up.
            std.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def normalised(self, features: Tensor) -> Outputs:
        """
        Run the networks.

        Parameters
        ----------
        features : Tensor, shape (E, N, F)
            Normalised inputs, one batch a member.

        """
        hidden, activate = features, ACTIVATIONS[self.activation]
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if index != last:
                hidden = activate(hidden)
        mean, logvar, logit = hidden.split(self._columns, dim=-1)
        if self.probabilistic:
            logvar = self.max_logvar - nn.functional.softplus(self.max_logvar - logvar)
            logvar = self.min_logvar + nn.functional.softplus(logvar - self.min_logvar)
        else:
            logvar = self.constant_logvar.expand_as(mean)
        return Outputs(mean, logvar, logit[..., 0] if self.termination else None)

    def predict(self, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
        """
        Return all outputs in physical units, under the names they have in dynamics.onnx.

        Parameters
        ----------
        observation, action : Tensor, shapes (E, N, S) and (E, N, A)
            One batch a member.

        Returns
        -------
        dict
            `mean` and `std` (E, N, S) of the next state; `reward` (E, N), its mean, and
            `termination` (E, N), a probability, where they are learned.

        """
        mean, logvar, logit = self.normalised(self.features(observation, action))
        mean = mean * self.target_std + self.target_mean
        size = self.state_size
        scale = self.target_std[:size] * self.std_factor.to(mean.device)
        std = torch.exp(0.5 * logvar[..., :size] * self.std_power.to(mean.device)) * scale
        found = {'mean': mean[..., :size] + self.is_delta * observation,
                 'std': std}
        if self.reward:
            found['reward'] = mean[..., size]
        if logit is not None:
            found['termination'] = logit.sigmoid()
        return found

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std of the next state: see `predict`."""
        found = self.predict(observation, action)
        return found['mean'], found['std']

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all weights and statistics as NumPy arrays: what a warm start needs."""
        return {name: value.detach().cpu().numpy().copy()
                for name, value in self.state_dict().items()}
