"""
The cross-entropy method: refit a Gaussian over action sequences to the best of its samples.

With `noise_exponent: 0` and `keep_elites: 0` it is the optimiser of PETS; with colored noise and
kept elites it has the main ideas of iCEM, which need far fewer candidates.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mbrl_ros.core.errors import PlanningError
from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.planning import ActionSpace, Noise
from mbrl_ros.planning._noise import GaussianNoise

Array = Any


class Config(Strict):
    """Parameters of the cross-entropy method."""

    population: int = Field(400, ge=2, le=10000, description='Candidates an iteration')
    num_elites: int = Field(40, ge=1, le=10000, description='Candidates the Gaussian is fitted to')
    iterations: int = Field(5, ge=1, le=50, description='Refits a plan')
    smoothing: float = Field(0.1, ge=0.0, le=0.99,
                             description='Share of the old mean and std kept at a refit')
    noise_exponent: float = Field(0.0, ge=0.0, le=4.0,
                                  description='Noise power goes as f^-exponent; 0 is white')
    keep_elites: int = Field(0, ge=0, le=1000,
                             description='Elites that join the next population, shifted in time')
    initial_std: float = Field(0.25, gt=0.0, le=1.0,
                               description='Std at the start of a plan, as a share of the range')
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
    Sources: Chua et al. 2018 (PETS), arXiv:1805.12114, for truncation, variance cap, smoothing and
    warm start with a tail of zeros; Pinneri et al. 2020 (iCEM), arXiv:2008.06389, for colored
    noise and kept elites.

    """

    def __init__(self, config: Config, space: ActionSpace) -> None:
        self.config, self.space = config, space
        self.asks: Literal['costs'] = 'costs'
        self.num_iterations = config.iterations
        low, high = space.low, space.high
        # Never a limit itself: the cap of the std would leave no room to search from there.
        middle = np.where((low < 0.0) & (high > 0.0), 0.0, (low + high) / 2)
        shape = (space.horizon, len(low))  # read-only views: every state that begins shares them
        self._zero = np.broadcast_to(middle, shape)
        self._initial_std = np.broadcast_to(config.initial_std * (high - low), shape)

    def noise(self, generator: np.random.Generator) -> GaussianNoise:
        """Return truncated white or colored noise, as configured."""
        return GaussianNoise(generator, self.space.horizon, len(self.space.low),
                             self.config.noise_exponent)

    def init(self) -> State:
        """Return a Gaussian around zero, or the middle of a range that zero is not inside of."""
        return State(self._zero, self._initial_std, np.empty((0, *self._zero.shape)), self._zero)

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
        # Not clip, which takes twice as long on small arrays.
        fresh = xp.maximum(state.mean + std * draws, self.space.low)
        fresh = xp.minimum(fresh, self.space.high)
        return xp.concat([fresh, state.elites], axis=0)

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
        usable = xp.isfinite(cost)
        order = xp.argsort(xp.where(usable, cost, xp.inf), stable=True)
        order = order[:self.config.num_elites]
        if order.shape[0] < self.config.num_elites or not usable[order[-1]]:
            finite = int(xp.sum(xp.astype(usable, xp.int64)))
            raise PlanningError(
                f'only {finite} of {cost.shape[0]} candidates have a finite cost, fewer than '
                f'num_elites {self.config.num_elites}: the model diverges from here. '
                'Retrain with data from this region, or shorten the horizon.')
        elites = xp.take(actions, order, axis=0)
        # Not mean and std, which take twice as long on small arrays.
        mean = xp.sum(elites, axis=0) / elites.shape[0]
        apart = elites - mean
        std = xp.sqrt(xp.sum(apart * apart, axis=0) / elites.shape[0])
        old = self.config.smoothing
        return State(
            mean=old * state.mean + (1.0 - old) * mean,
            std=old * state.std + (1.0 - old) * std,
            elites=elites[:self.config.keep_elites],
            best=elites[0])

    def is_settled(self, state: State) -> bool:
        """Return False: every refit is made."""
        return False

    def solution(self, state: State) -> Array:
        """Return the final mean or the best candidate, shape (H, A)."""
        return state.best if self.config.execute == 'best' else state.mean

    def shift(self, state: State, steps: int) -> State:
        """Return the warm start: everything moved `steps` towards now, its tail zeros."""
        if not self.config.warm_start:
            return self.init()
        xp = state.mean.__array_namespace__()
        together = xp.concat([state.mean[None], state.best[None], state.elites], axis=0)
        tail = xp.broadcast_to(self._zero[:steps], (together.shape[0], steps, len(self.space.low)))
        mean, best, *_ = moved = xp.concat([together[:, steps:], tail], axis=1)
        return State(mean, self._initial_std, moved[2:], best)
