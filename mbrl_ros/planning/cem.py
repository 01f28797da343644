"""
The cross-entropy method: refit a Gaussian over action sequences to the best of its samples.

With `noise_exponent: 0` and `keep_elites: 0` it is the optimiser of PETS. Colored noise and kept
elites, two of the ideas of iCEM, let it do with far fewer candidates; `icem` has all of them.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.planning import ActionSpace, Noise
from mbrl_ros.planning._candidates import advance, clip, fit, middle, mix, rank
from mbrl_ros.planning._noise import ColoredNoise, TruncatedNoise

Array = Any


class Config(Strict):
    """Parameters of the cross-entropy method."""

    population: int = Field(400, ge=2, le=10000, description='Candidates an iteration')
    num_elites: int = Field(40, ge=1, le=10000, description='Candidates the Gaussian is fitted to')
    iterations: int = Field(5, ge=1, le=50, description='Refits a plan')
    smoothing: float = Field(0.1, ge=0.0, le=0.99,
                             description='Share of the old mean and variance kept at a refit')
    noise_exponent: float = Field(0.0, ge=0.0, le=4.0,
                                  description='Noise power goes as f^-exponent; 0 is white')
    keep_elites: int = Field(0, ge=0, le=1000,
                             description='Elites that join the next population, shifted in time')
    initial_std: float = Field(0.25, gt=0.0, le=1.0,
                               description='Std at the start of a plan, as a share of the range')
    stop_std: float = Field(0.0, ge=0.0, le=1.0,
                            description='Largest std, as a share of the range, below which no '
                                        'further refit is made; 0 makes them all')
    warm_start: bool = Field(True, description='Start from the last plan, shifted in time')
    execute: str = Field('mean', pattern='^(mean|best)$',
                         description='What is executed: the final mean, or the best candidate')

    @model_validator(mode='after')
    def _check_counts(self) -> 'Config':
        if self.num_elites > self.population:
            raise ValueError(f'num_elites {self.num_elites} exceeds population {self.population}')
        if self.keep_elites > self.num_elites:
            raise ValueError(f'keep_elites {self.keep_elites} exceeds num_elites '
                             f'{self.num_elites}')
        return self


@dataclass(frozen=True)
class State:
    """
    Sampling Gaussian and what the last refit left.

    Attributes
    ----------
    mean, std : array, shape (H, A)
        In action units.
    elites : array, shape (keep_elites or 0, H, A)
        Candidates that join the next population.
    best : array, shape (H, A)
        Cheapest candidate of the last refit.

    """

    mean: Array
    std: Array
    elites: Array
    best: Array


class Planner:
    """
    Cross-entropy method over action sequences.

    Notes
    -----
    Sources: Chua et al. 2018 (PETS), arXiv:1805.12114, for truncation, variance cap, smoothing,
    early stop and warm start with a tail of zeros; Pinneri et al. 2020 (iCEM), arXiv:2008.06389,
    for colored noise and kept elites.

    """

    asks: Literal['costs'] = 'costs'

    def __init__(self, config: Config, space: ActionSpace) -> None:
        self.config, self.space = config, space
        self.num_iterations = config.iterations
        self._middle = middle(space)
        self._range = space.high - space.low
        self._initial_std = np.broadcast_to(config.initial_std * self._range, self._middle.shape)

    def noise(self, generator: np.random.Generator) -> Noise:
        """Return truncated white or colored noise, as configured."""
        horizon, size = self._middle.shape
        if self.config.noise_exponent == 0.0:
            return TruncatedNoise(generator, horizon, size)
        return ColoredNoise(generator, horizon, size, self.config.noise_exponent)

    def init(self) -> State:
        """Return a Gaussian around zero, or the middle of a range that zero is not inside of."""
        return State(self._middle, self._initial_std, np.empty((0, *self._middle.shape)),
                     self._middle)

    def sample(self, state: State, noise: Noise) -> Array:
        """
        Draw candidates.

        The std is capped so that two of it reach no further than the nearer limit, which keeps
        truncated samples inside; colored samples are clipped.
        """
        draws = noise.draw(self.config.population - state.elites.shape[0])
        xp = draws.__array_namespace__()
        std = state.std
        if self.config.noise_exponent == 0.0:
            room = xp.minimum(state.mean - self.space.low, self.space.high - state.mean)
            std = xp.minimum(std, xp.maximum(room, 0.0 * room) / 2.0)
        return xp.concat([clip(state.mean + std * draws, self.space), state.elites], axis=0)

    def update(self, state: State, actions: Array, cost: Array) -> State:
        """
        Refit the Gaussian to the elites.

        Parameters
        ----------
        state : State
            Current state; not modified.
        actions : array, shape (P, H, A)
            Candidates.
        cost : array, shape (P,)
            Lower is better; not finite means rejected.

        Returns
        -------
        State
            Refitted.

        Raises
        ------
        PlanningError
            If fewer than `num_elites` costs are finite.

        """
        xp = actions.__array_namespace__()
        num_elites = self.config.num_elites
        elites = xp.take(actions, rank(cost, num_elites)[:num_elites], axis=0)
        mean, variance = fit(elites)
        variance = mix(state.std * state.std, variance, self.config.smoothing)
        return State(mix(state.mean, mean, self.config.smoothing), xp.sqrt(variance),
                     elites[:self.config.keep_elites], elites[0])

    def is_settled(self, state: State) -> bool:
        """Return whether the Gaussian is narrower than `stop_std` everywhere."""
        xp = state.std.__array_namespace__()
        return bool(xp.max(state.std / self._range) < self.config.stop_std)

    def solution(self, state: State) -> Array:
        """Return the final mean or the best candidate, shape (H, A)."""
        return state.best if self.config.execute == 'best' else state.mean

    def shift(self, state: State, steps: int) -> State:
        """Return the warm start: everything moved `steps` towards now, its tail zeros."""
        if not self.config.warm_start:
            return self.init()
        xp = state.mean.__array_namespace__()
        together = xp.concat([state.mean[None], state.best[None], state.elites], axis=0)
        mean, best, *_ = moved = advance(together, steps, self._middle[:steps])
        return State(mean, self._initial_std, moved[2:], best)
