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

Array = Any  # whatever implements the Python array API standard


class RolloutConfig(Strict):
    """How candidates are rolled out."""

    particles: int = Field(5, ge=1, le=1000,
                           description='Particles a candidate; a multiple of the members')
    propagation: Literal['ts_infinity', 'ts1'] = Field(
        'ts_infinity', description='Trajectory sampling: a particle keeps or changes its member')


class PlanningConfig(Strict):
    """A planner and its rollouts, as read from config/planners/<name>.yaml."""

    planner: str = Field(description='Name of a file in mbrl_ros/planning')
    rollout: RolloutConfig = RolloutConfig(particles=5, propagation='ts_infinity')
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
    """What a planner does; `S` below is its own immutable state."""

    num_iterations: int

    def noise(self, generator: np.random.Generator) -> Noise:
        """Return the noise this planner wants, drawn from `generator`."""

    def init(self) -> Any:
        """Return the state of a planner that knows nothing yet."""

    def sample(self, state: Any, noise: Noise) -> Array:
        """Return candidates, shape (P, H, A), inside the limits."""

    def update(self, state: Any, actions: Array, cost: Array) -> Any:
        """Return the state after the candidates' costs (P,) are known; not finite is rejected."""

    def solution(self, state: Any) -> Array:
        """Return the sequence to act upon, shape (H, A)."""

    def shift(self, state: Any, steps: int) -> Any:
        """Return the warm start for a plan that begins `steps` later."""


@dataclass(frozen=True)
class Plan:
    """A computed plan: sequence (H, A), the planner's state, number of rejected candidates."""

    actions: np.ndarray
    state: Any
    rejected: int


def optimise(planner: Planner, state: Any, noise: Noise,
             costs: Callable[[np.ndarray], np.ndarray]) -> Plan:
    """
    Run a planner to the end of its iterations.

    Parameters
    ----------
    planner, state
        A planner and where it starts.
    noise : Noise
        Random numbers.
    costs : callable
        Candidates (P, H, A) to costs (P,).

    Raises
    ------
    PlanningError
        If too few costs are finite.

    """
    found = []
    for _ in range(planner.num_iterations):
        actions = planner.sample(state, noise)
        found.append(costs(actions))
        state = planner.update(state, actions, found[-1])
    rejected = int(np.count_nonzero(~np.isfinite(np.concatenate(found))))
    return Plan(planner.solution(state), state, rejected)


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


def make_planner(name: str, config: Strict, space: ActionSpace) -> Planner:
    """Build a planner from its name, its Config and the action space."""
    return plugins.find(sys.modules[__name__], name).Planner(config, space)
