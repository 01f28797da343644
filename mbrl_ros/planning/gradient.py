"""Gradient shooting: Adam through the model, from several sequences at once."""

from dataclasses import dataclass
import math
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.planning import ActionSpace, Noise
from mbrl_ros.planning._candidates import advance, clip, middle, rank
from mbrl_ros.planning._noise import ColoredNoise

Array = Any
KEPT_MEAN, KEPT_SQUARE = 0.9, 0.999  # Adam's published shares of what is remembered
SMALLEST = 1e-8  # gradient


class Config(Strict):
    """Parameters of gradient shooting."""

    starts: int = Field(8, ge=1, le=10000,
                        description='Sequences: that of the last plan, and noisy ones around it')
    iterations: int = Field(10, ge=1, le=10000, description='Steps of Adam a plan')
    learning_rate: float = Field(0.1, gt=0.0, le=1.0,
                                 description='First step as a share of the action range; they '
                                             'shrink to none, as a half cosine')
    max_norm: float = Field(1.0, ge=0.0, le=1e9,
                            description='Longest gradient of a sequence, in cost a range of each '
                                        'action: longer ones are shortened to it; 0: none are')
    noise_exponent: float = Field(2.0, ge=0.0, le=4.0,
                                  description='Noise power goes as f^-exponent; 0 is white')
    initial_std: float = Field(0.25, gt=0.0, le=1.0,
                               description='Std of the noise, as a share of the range')
    warm_start: bool = Field(True, description='Start from the last plan, shifted in time')


@dataclass(frozen=True)
class State:
    """
    Where the search is.

    Attributes
    ----------
    actions : array, shape (P, H, A)
        Sequences to evaluate next, in action units; none before the first step of a plan.
    mean, square : array, shape (P, H, A)
        What Adam remembers of the gradients, in cost a range, and of their squares; none likewise.
    steps : array, shape ()
        Steps made in this plan.
    best : array, shape (H, A)
        Cheapest sequence of this plan, or the last one's.
    cost : array, shape ()
        Its cost; infinite if it is the last plan's.

    """

    actions: Array
    mean: Array
    square: Array
    steps: Array
    best: Array
    cost: Array


class Planner:
    """
    Adam on action sequences, projected onto the limits; the cheapest sequence met is executed.

    Notes
    -----
    Source: Kingma and Ba 2015 (Adam), arXiv:1412.6980. The gradient of a long rollout explodes
    where the model amplifies: each sequence's is shortened (Pascanu et al. 2013, arXiv:1211.5063),
    and a sequence whose cost or gradient is not finite continues from the cheapest one.

    """

    asks: Literal['gradients'] = 'gradients'

    def __init__(self, config: Config, space: ActionSpace) -> None:
        self.config, self.space = config, space
        self.num_iterations = config.iterations
        self._middle = middle(space)
        self._range = space.high - space.low

    def noise(self, generator: np.random.Generator) -> ColoredNoise:
        """Return white or colored noise, not truncated."""
        return ColoredNoise(generator, self.space.horizon, len(self.space.low),
                            self.config.noise_exponent)

    def init(self) -> State:
        """Return zeros, or the middle of a range that zero is not inside of."""
        return self._begin(self._middle)

    def sample(self, state: State, noise: Noise) -> Array:
        """Return the sequences to evaluate, at first noisy ones, shape (P, H, A)."""
        if state.steps > 0:
            return state.actions
        first = state.best[None]
        if self.config.starts == 1:
            return first
        xp = first.__array_namespace__()
        noisy = first + self.config.initial_std * self._range * noise.draw(self.config.starts - 1)
        return xp.concat([first, clip(noisy, self.space)], axis=0)

    def update(self, state: State, actions: Array, answer: Any) -> State:
        """
        Make a step of Adam.

        Parameters
        ----------
        state : State
            Current state; not modified.
        actions : array, shape (P, H, A)
            What was sampled. More join in the first step only: the cheapest stay.
        answer : Gradients
            Costs (P,) and their derivatives (P, H, A).

        Raises
        ------
        PlanningError
            If no sequence of this plan had a finite cost.

        """
        xp = actions.__array_namespace__()
        cost = xp.concat([xp.astype(answer.cost, actions.dtype), xp.reshape(state.cost, (1,))])
        order = rank(cost)
        known = xp.concat([actions, state.best[None]], axis=0)
        best, lowest = known[order[0]], cost[order[0]]

        slope = xp.astype(answer.gradient, actions.dtype) * self._range
        usable = xp.isfinite(answer.cost) & xp.all(xp.isfinite(slope), axis=(1, 2))
        usable = usable[:, None, None]
        slope = self._shorten(xp.where(usable, slope, 0.0))
        keep = xp.arange(self.config.starts)
        if state.steps == 0 and actions.shape[0] > self.config.starts:
            keep = xp.argsort(xp.where(xp.isfinite(answer.cost), answer.cost, xp.inf),
                              stable=True)[:self.config.starts]
        slope, usable = slope[keep], usable[keep]
        # Forgotten with the sequence, or one overflow would slow all further steps down.
        mean, square = (state.mean, state.square) if state.steps > 0 else (0.0, 0.0)
        mean = xp.where(usable, KEPT_MEAN * mean + (1.0 - KEPT_MEAN) * slope, 0.0)
        square = xp.where(usable, KEPT_SQUARE * square + (1.0 - KEPT_SQUARE) * slope**2, 0.0)
        steps = state.steps + 1
        pace = self.config.learning_rate * 0.5 * (
            1.0 + math.cos(math.pi * float(state.steps) / self.num_iterations))
        step = mean / (1.0 - KEPT_MEAN**steps) / (
            xp.sqrt(square / (1.0 - KEPT_SQUARE**steps)) + SMALLEST)
        moved = xp.where(usable, actions[keep] - pace * self._range * step, best)
        return State(clip(moved, self.space), mean, square, steps, best, lowest)

    def is_settled(self, state: State) -> bool:
        """Return False: the steps shrink to none by themselves."""
        return False

    def solution(self, state: State) -> Array:
        """Return the cheapest sequence, shape (H, A)."""
        return state.best

    def shift(self, state: State, steps: int) -> State:
        """Return the warm start: the cheapest sequence, moved towards now."""
        if not self.config.warm_start:
            return self.init()
        return self._begin(advance(state.best[None], steps, self._middle[:steps])[0])

    def _begin(self, best: Array) -> State:
        xp = best.__array_namespace__()
        none = xp.zeros((0, *best.shape))
        return State(none, none, none, xp.zeros(()), best, xp.asarray(xp.inf))

    def _shorten(self, slope: Array) -> Array:
        if self.config.max_norm == 0.0:
            return slope
        xp = slope.__array_namespace__()
        # The largest number first: squares of the others overflow.
        largest = xp.max(xp.abs(slope), axis=(1, 2), keepdims=True) + SMALLEST
        norm = largest * xp.sqrt(xp.sum((slope / largest)**2, axis=(1, 2), keepdims=True))
        return slope * xp.minimum(self.config.max_norm / (norm + SMALLEST), 1.0 + 0.0 * norm)
