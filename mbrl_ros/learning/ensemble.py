"""The ensemble: E probabilistic networks evaluated as one batched network."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn, Tensor

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.learning.config import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    'silu': nn.functional.silu, 'tanh': torch.tanh, 'relu': torch.relu,
    'leaky_relu': nn.functional.leaky_relu}


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

    def __init__(self, robot: RobotSpec, members: int, hidden_units: Sequence[int],
                 logvar_bounds: tuple[float, float], generator: torch.Generator,
                 activation: Activation = 'silu') -> None:
        super().__init__()
        self.activation: Activation = activation
        kinds = [field.feature for field in robot.observation]
        self.linear_index = [i for i, kind in enumerate(kinds) if kind == 'linear']
        self.angle_index = [i for i, kind in enumerate(kinds) if kind == 'angle']
        state_size, action_size = len(kinds), len(robot.action)
        num_features = len(self.linear_index) + 2 * len(self.angle_index) + action_size
        is_delta = [float(field.target == 'delta') for field in robot.observation]
        self.register_buffer('is_delta', torch.tensor(is_delta))
        self.register_buffer('input_mean', torch.zeros(num_features))
        self.register_buffer('input_std', torch.ones(num_features))
        self.register_buffer('target_mean', torch.zeros(state_size))
        self.register_buffer('target_std', torch.ones(state_size))
        sizes = [num_features, *hidden_units, 2 * state_size]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            weight = torch.empty(members, inputs, outputs)
            std = 1.0 / (2.0 * inputs**0.5)
            nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(members, 1, outputs)))
        low, high = logvar_bounds
        self.min_logvar = nn.Parameter(torch.full((members, 1, state_size), low))
        self.max_logvar = nn.Parameter(torch.full((members, 1, state_size), high))

    @property
    def members(self) -> int:
        """Number of networks, E."""
        return self.weights[0].shape[0]

    def features(self, state: Tensor, action: Tensor) -> Tensor:
        """
        Build the normalised network input.

        Order: linear fields, sines of the angles, cosines of the angles, actions.
        """
        angles = state[..., self.angle_index]
        raw = torch.cat([state[..., self.linear_index], angles.sin(), angles.cos(), action], -1)
        return (raw - self.input_mean) / self.input_std

    def target(self, state: Tensor, next_state: Tensor) -> Tensor:
        """Return the normalised training target, shape (..., S)."""
        return (next_state - self.is_delta * state - self.target_mean) / self.target_std

    def fit_normaliser(self, state: Tensor, action: Tensor, next_state: Tensor) -> None:
        """Set input and target statistics from the training transitions, shapes (N, .)."""
        self.input_mean.zero_()
        self.input_std.fill_(1.0)
        self.target_mean.zero_()
        self.target_std.fill_(1.0)
        for values, mean, std in (
                (self.features(state, action), self.input_mean, self.input_std),
                (self.target(state, next_state), self.target_mean, self.target_std)):
            mean.copy_(values.mean(0))
            spread = values.std(0)
            # A field that never moved in the data keeps its unit: it must not be blown up.
            std.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def normalised(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """
        Run the networks.

        Parameters
        ----------
        features : Tensor, shape (E, N, F)
            Normalised inputs, one batch a member.

        Returns
        -------
        mean, logvar : Tensor, each of shape (E, N, S)
            Of the normalised target; logvar is softly bounded.

        """
        hidden, activate = features, ACTIVATIONS[self.activation]
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if index != last:
                hidden = activate(hidden)
        mean, logvar = hidden.chunk(2, dim=-1)
        logvar = self.max_logvar - nn.functional.softplus(self.max_logvar - logvar)
        logvar = self.min_logvar + nn.functional.softplus(logvar - self.min_logvar)
        return mean, logvar

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """
        Predict the next state in physical units.

        Parameters
        ----------
        observation, action : Tensor, shapes (E, N, S) and (E, N, A)
            One batch a member.

        Returns
        -------
        mean, std : Tensor, each of shape (E, N, S)
            Of the next state.

        """
        mean, logvar = self.normalised(self.features(observation, action))
        mean = mean * self.target_std + self.target_mean + self.is_delta * observation
        return mean, torch.exp(0.5 * logvar) * self.target_std

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all weights and statistics as NumPy arrays: what a warm start needs."""
        return {name: value.detach().numpy().copy() for name, value in self.state_dict().items()}
