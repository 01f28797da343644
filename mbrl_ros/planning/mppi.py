"""
Model-predictive path integral control: average all samples, the cheaper the more weight.

In the information-theoretic form: candidates are the last plan plus noise, weighted by
exp(-cost / temperature).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.planning import ActionSpace, Noise
from mbrl_ros.planning._candidates import advance, clip, middle, rank
from mbrl_ros.planning._noise import ColoredNoise

Array = Any
SMALLEST = 1e-12  # temperature of candidates that cost all the same


class Config(Strict):
    """Parameters of model-predictive path integral control."""

    population: int = Field(1000, ge=2, le=100000, description='Candidates an iteration')
    iterations: int = Field(1, ge=1, le=50, description='Updates a plan')
    temperature: float = Field(0.1, gt=0.0, le=1e9,
                               description='How much dearer a candidate is for a weight e times '
                                           'smaller, in units of temperature_unit')
    temperature_unit: Literal['median_gap', 'cost'] = Field(
        'median_gap', description='median_gap: how much dearer the median candidate is than the '
                                  'cheapest; cost: the unit of the cost, as published')
    action_cost: float = Field(0.0, ge=0.0, le=1.0,
                               description='Weight of the published cost of actions, temperature '
                                           "x mean' std^-2 deviation; for white noise only")
    noise_exponent: float = Field(0.0, ge=0.0, le=4.0,
                                  description='Noise power goes as f^-exponent; 0 is white')
    std: float = Field(0.25, gt=0.0, le=1.0, description='Std of the noise, as a share of the '
                                                         'range')

    @model_validator(mode='after')
    def _check_action_cost(self) -> 'Config':
        if self.action_cost > 0.0 and self.noise_exponent > 0.0:
            raise ValueError(f'action_cost {self.action_cost} is defined for white noise: set '
                             f'noise_exponent {self.noise_exponent} to 0, or action_cost to 0')
        return self


@dataclass(frozen=True)
class State:
    """
    The plan around which candidates are drawn.

    Attributes
    ----------
    mean : array, shape (H, A)
        In action units.

    """

    mean: Array


class Planner:
    """
    Model-predictive path integral control over action sequences.

    Notes
    -----
    Source: Williams et al. 2017, "Information theoretic MPC for model-based reinforcement
    learning" (ICRA): algorithm 2 with `temperature_unit: cost` and `action_cost: 1`. Colored noise
    is Pinneri et al. 2020's (iCEM), arXiv:2008.06389.

    """

    asks: Literal['costs'] = 'costs'

    def __init__(self, config: Config, space: ActionSpace) -> None:
        self.config, self.space = config, space
        self.num_iterations = config.iterations
        self._middle = middle(space)
        self._std = config.std * (space.high - space.low)

    def noise(self, generator: np.random.Generator) -> ColoredNoise:
        """Return white or colored noise, not truncated."""
        return ColoredNoise(generator, self.space.horizon, len(self.space.low),
                            self.config.noise_exponent)

    def init(self) -> State:
        """Return zeros, or the middle of a range that zero is not inside of."""
        return State(self._middle)

    def sample(self, state: State, noise: Noise) -> Array:
        """Draw candidates around the plan, clipped, shape (P, H, A)."""
        return clip(state.mean + self._std * noise.draw(self.config.population), self.space)

    def update(self, state: State, actions: Array, cost: Array) -> State:
        """
        Move the plan to the weighted mean of the candidates.

        Raises
        ------
        PlanningError
            If no cost is finite.

        """
        xp = actions.__array_namespace__()
        order = rank(cost)
        deviation = actions - state.mean
        cost = xp.where(xp.isfinite(cost), xp.astype(cost, deviation.dtype), xp.inf)
        temperature = self._temperature(cost, order)
        if self.config.action_cost > 0.0:
            towards = xp.sum(state.mean * deviation / self._std**2, axis=(1, 2))
            cost = cost + self.config.action_cost * temperature * towards
        weight = xp.exp(-(cost - xp.min(cost)) / temperature)
        weight = weight / xp.sum(weight)
        mean = state.mean + xp.sum(weight[:, None, None] * deviation, axis=0)
        return State(clip(mean, self.space))  # rounding may carry it past a limit

    def _temperature(self, cost: Array, order: Array) -> float:
        """Return the temperature, in units of the cost."""
        if self.config.temperature_unit == 'cost':
            return self.config.temperature
        # The median: a std would be that of the few candidates which all but diverged.
        gap = float(cost[order[order.shape[0] // 2]] - cost[order[0]])
        return max(self.config.temperature * gap, SMALLEST)

    def is_settled(self, state: State) -> bool:
        """Return False: every update is made."""
        return False

    def solution(self, state: State) -> Array:
        """Return the plan, shape (H, A)."""
        return state.mean

    def shift(self, state: State, steps: int) -> State:
        """Return the warm start: the plan moved `steps` towards now, its tail zeros."""
        return State(advance(state.mean[None], steps, self._middle[:steps])[0])
