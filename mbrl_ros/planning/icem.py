"""
iCEM: the cross-entropy method for few candidates.

Its noise is correlated in time, its population shrinks from one iteration to the next, elites live
on, and the best candidate is executed.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.planning import ActionSpace, Noise
from mbrl_ros.planning._candidates import advance, clip, fit, middle, mix, rank
from mbrl_ros.planning._noise import ColoredNoise

Array = Any


class Config(Strict):
    """Parameters of iCEM."""

    population: int = Field(40, ge=2, le=10000,
                            description='Candidates of the first iteration, reused ones included')
    decay: float = Field(1.25, ge=1.0, le=4.0,
                         description='Factor by which the population shrinks an iteration, down '
                                     'to twice num_elites')
    num_elites: int = Field(10, ge=1, le=10000, description='Candidates the Gaussian is fitted to')
    iterations: int = Field(3, ge=1, le=50, description='Refits a plan')
    smoothing: float = Field(0.1, ge=0.0, le=0.99,
                             description='Share of the old mean and std kept at a refit')
    noise_exponent: float = Field(2.0, ge=0.0, le=4.0,
                                  description='Noise power goes as f^-exponent; 0 is white')
    keep_share: float = Field(0.3, ge=0.0, le=0.5,
                              description='Share of the elites that joins the next population')
    initial_std: float = Field(0.25, gt=0.0, le=1.0,
                               description='Std at the start of a plan, as a share of the range')

    @model_validator(mode='after')
    def _check_counts(self) -> 'Config':
        if self.num_elites > self.population:
            raise ValueError(f'num_elites {self.num_elites} exceeds population {self.population}')
        return self


@dataclass(frozen=True)
class State:
    """
    Sampling Gaussian, what the last refit left, and how far the plan is.

    Attributes
    ----------
    mean, std : array, shape (H, A)
        In action units.
    elites : array, shape (kept elites or 0, H, A)
        Candidates that join the next population.
    open_steps : int array, shape ()
        Steps at the end of the elites that the next sample draws anew.
    best : array, shape (H, A)
        Cheapest candidate of the last refit.
    iteration : int array, shape ()
        Refits made in this plan; 0 after the last one.

    """

    mean: Array
    std: Array
    elites: Array
    open_steps: Array
    best: Array
    iteration: Array


class Planner:
    """
    Improved cross-entropy method over action sequences.

    Notes
    -----
    Source: Pinneri et al. 2020 (iCEM), arXiv:2008.06389. Reused elites and the mean count as part
    of the population here, not on top of it, so that `population` is what is evaluated. The
    published initial std of 0.5 is a share of half the range: `initial_std: 0.25`.

    """

    asks: Literal['costs'] = 'costs'

    def __init__(self, config: Config, space: ActionSpace) -> None:
        self.config, self.space = config, space
        self.num_iterations = config.iterations
        least = min(2 * config.num_elites, config.population)
        self._populations = [max(round(config.population / config.decay**iteration), least)
                             for iteration in range(config.iterations)]
        self._num_kept = int(config.keep_share * config.num_elites)
        self._middle = middle(space)
        self._initial_std = np.broadcast_to(config.initial_std * (space.high - space.low),
                                            self._middle.shape)

    def noise(self, generator: np.random.Generator) -> ColoredNoise:
        """Return colored noise."""
        return ColoredNoise(generator, self.space.horizon, len(self.space.low),
                            self.config.noise_exponent)

    def init(self) -> State:
        """Return a Gaussian around zero, or the middle of a range that zero is not inside of."""
        return State(self._middle, self._initial_std, np.empty((0, *self._middle.shape)),
                     np.asarray(0), self._middle, np.asarray(0))

    def sample(self, state: State, noise: Noise) -> Array:
        """Draw candidates; elites join them, and in the last iteration the mean does."""
        xp = state.mean.__array_namespace__()
        iteration, open_steps = int(state.iteration), int(state.open_steps)
        is_last = iteration == self.num_iterations - 1
        reused = xp.concat([state.elites, state.mean[None]] if is_last else [state.elites], axis=0)
        num_fresh = self._populations[iteration] - reused.shape[0]
        num_tails = state.elites.shape[0] if open_steps else 0
        drawn = clip(state.mean + state.std * noise.draw(num_fresh + num_tails), self.space)
        if num_tails:
            tails = drawn[num_fresh:, -open_steps:]
            elites = xp.concat([state.elites[:, :-open_steps], tails], axis=1)
            reused = xp.concat([elites, reused[num_tails:]], axis=0)
        return xp.concat([drawn[:num_fresh], reused], axis=0)

    def update(self, state: State, actions: Array, cost: Array) -> State:
        """
        Refit the Gaussian to the elites.

        Raises
        ------
        PlanningError
            If fewer than `num_elites` costs are finite.

        """
        xp = actions.__array_namespace__()
        num_elites = self.config.num_elites
        elites = xp.take(actions, rank(cost, num_elites)[:num_elites], axis=0)
        mean, variance = fit(elites)
        # As its authors do it: the std is smoothed, where PETS smooths the variance.
        return State(mix(state.mean, mean, self.config.smoothing),
                     mix(state.std, xp.sqrt(variance), self.config.smoothing),
                     elites[:self._num_kept], xp.asarray(0), elites[0],
                     xp.asarray((int(state.iteration) + 1) % self.num_iterations))

    def is_settled(self, state: State) -> bool:
        """Return False: every refit is made."""
        return False

    def solution(self, state: State) -> Array:
        """Return the cheapest candidate of the last refit, shape (H, A)."""
        return state.best

    def shift(self, state: State, steps: int) -> State:
        """
        Return the warm start: everything moved `steps` towards now.

        The mean repeats its last action. How elites go on is drawn when they are sampled.
        """
        xp = state.mean.__array_namespace__()
        together = xp.concat([state.mean[None], state.best[None], state.elites], axis=0)
        mean, best, *_ = moved = advance(together, steps, together[:, -1:])
        open_steps = min(int(state.open_steps) + steps, self.space.horizon)
        return State(mean, self._initial_std, moved[2:], xp.asarray(open_steps), best,
                     xp.asarray(0))
