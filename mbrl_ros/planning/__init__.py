"""
Planners: one file each, named in config/planners/<name>.yaml.

A planner is sample and update over an immutable state. It is written against the Python array API
standard, so the same code runs in NumPy and can be traced into a graph. A planner's module defines
`Config` (a Strict model, every field with a default and a description) and `Planner`.
"""

from collections.abc import Callable
from dataclasses import dataclass
import sys
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field, ValidationError

from mbrl_ros.core import plugins
from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.paths import find_config
from mbrl_ros.core.yaml_file import describe, load, Strict
from mbrl_ros.runtime.rollout_config import RolloutConfig

Array = Any  # whatever implements the Python array API standard


class PlanningConfig(Strict):
    """A planner and its rollouts, as read from config/planners/<name>.yaml."""

    planner: str = Field(description='Name of a file in mbrl_ros/planning')
    rollout: RolloutConfig = RolloutConfig.model_validate({})
    params: dict[str, Any] = Field(default_factory=dict,
                                   description="The planner's own Config")


@dataclass(frozen=True)
class ActionSpace:
    """Horizon H and limits, each of shape (A,), inside which a planner searches."""

    horizon: int
    low: np.ndarray
    high: np.ndarray


class Noise(Protocol):
    """Source of random numbers: NumPy in the controller and in tests, a graph input in a graph."""

    def draw(self, count: int) -> Array:
        """Return `count` noise sequences in units of the std, shape (count, H, A)."""


class Planner(Protocol):
    """
    What a planner does; its state is its own, immutable, a dataclass of arrays.

    Attributes
    ----------
    asks : {'costs', 'gradients', 'expansion'}
        Which method of the rollout answers it.
    num_iterations : int
        Rounds of sample and update a plan takes at most.

    """

    asks: Literal['costs', 'gradients', 'expansion']
    num_iterations: int

    def noise(self, generator: np.random.Generator) -> Noise:
        """Return the noise this planner wants, drawn from `generator`."""

    def init(self) -> Any:
        """Return the state of a planner that knows nothing yet."""

    def sample(self, state: Any, noise: Noise) -> Array:
        """Return candidates, shape (P, H, A), inside the limits."""

    def update(self, state: Any, actions: Array, answer: Any) -> Any:
        """
        Return the state after the rollout has answered.

        The answer is the candidates' costs (P,), or has them as its `cost`; not finite is
        rejected.
        """

    def is_settled(self, state: Any) -> bool:
        """Return whether more rounds would change nothing."""

    def solution(self, state: Any) -> Array:
        """Return the sequence to act upon, shape (H, A)."""

    def shift(self, state: Any, steps: int) -> Any:
        """Return the warm start for a plan that begins `steps` later."""


@dataclass(frozen=True)
class Plan:
    """A computed plan: sequence (H, A), the planner's state, candidates evaluated and rejected."""

    actions: np.ndarray
    state: Any
    candidates: int
    rejected: int


def optimise(planner: Planner, state: Any, noise: Noise,
             evaluate: Callable[[np.ndarray], Any],
             proposals: np.ndarray | None = None) -> Plan:
    """
    Run a planner until it is settled, or to the end of its iterations.

    Parameters
    ----------
    planner, state
        A planner and where it starts.
    noise : Noise
        Random numbers.
    evaluate : callable
        Candidates (P, H, A) to what the planner asks for.
    proposals : array, shape (M, H, A), optional
        Candidates from elsewhere, such as a policy, inside the limits: they join the first
        sample. In every one they would be elites again and again, and nothing else would.

    Raises
    ------
    PlanningError
        If too few costs are finite.

    """
    candidates = rejected = 0
    for iteration in range(planner.num_iterations):
        actions = planner.sample(state, noise)
        if proposals is not None and iteration == 0:
            actions = np.concatenate([actions, proposals])
        answer = evaluate(actions)
        candidates += len(actions)
        rejected += int(np.count_nonzero(~np.isfinite(getattr(answer, 'cost', answer))))
        state = planner.update(state, actions, answer)
        if planner.is_settled(state):
            break
    return Plan(planner.solution(state), state, candidates, rejected)


def load_planning(name: str) -> PlanningConfig:
    """Load a planner's YAML by its shipped name or path, its own parameters checked."""
    path = find_config('planners', name)
    config = load(path, PlanningConfig)
    try:
        config_class(config.planner).model_validate(config.params)
    except ValidationError as error:
        raise SpecError(describe(error, f'{path}: params')) from error
    return config


def config_class(planner: str) -> type[Strict]:
    """Return the Config of a planner by its name; an unknown one is refused with the known."""
    return plugins.find(sys.modules[__name__], planner).Config


def asked_by(planner: str) -> str:
    """Return the method of a rollout that answers a planner, by its name."""
    asks: str = plugins.find(sys.modules[__name__], planner).Planner.asks
    return asks


def make_planner(name: str, config: Strict, space: ActionSpace) -> Planner:
    """Build a planner from its name, its Config and the action space."""
    return plugins.find(sys.modules[__name__], name).Planner(config, space)
