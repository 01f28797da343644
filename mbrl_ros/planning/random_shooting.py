"""Random shooting: draw sequences evenly from the action space, act upon the cheapest."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.planning import ActionSpace, Noise
from mbrl_ros.planning._candidates import clip, middle, rank
from mbrl_ros.planning._noise import UniformNoise

Array = Any


class Config(Strict):
    """Parameters of random shooting."""

    population: int = Field(2000, ge=1, le=100000, description='Candidates a plan')


@dataclass(frozen=True)
class State:
    """
    What the last draw found.

    Attributes
    ----------
    best : array, shape (H, A)
        Cheapest candidate.

    """

    best: Array


class Planner:
    """
    Random shooting over action sequences.

    Notes
    -----
    Source: Chua et al. 2018 (PETS), arXiv:1805.12114: the baseline of its ablation.

    """

    asks: Literal['costs'] = 'costs'
    num_iterations = 1

    def __init__(self, config: Config, space: ActionSpace) -> None:
        self.config, self.space = config, space

    def noise(self, generator: np.random.Generator) -> UniformNoise:
        """Return noise that covers the action space evenly."""
        return UniformNoise(generator, self.space.horizon, len(self.space.low))

    def init(self) -> State:
        """Return zeros, or the middle of a range that zero is not inside of."""
        return State(middle(self.space))

    def sample(self, state: State, noise: Noise) -> Array:
        """Draw candidates, shape (P, H, A)."""
        low, high = self.space.low, self.space.high
        # Rounding may carry a draw next to 1 past the limit.
        return clip(low + (high - low) * noise.draw(self.config.population), self.space)

    def update(self, state: State, actions: Array, cost: Array) -> State:
        """
        Take the cheapest candidate.

        Raises
        ------
        PlanningError
            If no cost is finite.

        """
        return State(actions[int(rank(cost)[0])])

    def is_settled(self, state: State) -> bool:
        """Return False: there is one round."""
        return False

    def solution(self, state: State) -> Array:
        """Return the cheapest candidate, shape (H, A)."""
        return state.best

    def shift(self, state: State, steps: int) -> State:
        """Return the start anew: nothing is learnt from the last plan."""
        return self.init()
