"""
What control needs of a model: one step of it, and the costs of whole sequences.

`runtime.dynamics.Dynamics` and `runtime.rollout.Rollout` are these for what was learned,
`sim.known_model` has both for MuJoCo itself.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Dynamics(Protocol):
    """One step of all members; see `runtime.dynamics.Dynamics`."""

    members: int
    step_std: np.ndarray

    def __call__(self, observation: np.ndarray,
                 action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and std of the next state, each (E, N, S)."""

    def spread(self, mean: np.ndarray) -> np.ndarray:
        """Return how much the members disagree, shape (N,), in typical steps."""


class Rollout(Protocol):
    """
    Costs of action sequences; see `runtime.rollout.Rollout`.

    It also has the method that the planner asks for. A draw is a dataclass with a goal, weights
    and a horizon, which may be replaced, and whatever else that method wants of it; a prediction
    has cost, terms and states, and for a supervisor lengths.
    """

    horizon: int
    num_tiles: int
    model_hash: str
    model_path: Path
    provider: str
    precision: str

    @property
    def goal(self) -> np.ndarray:
        """Goal (G,) of the next plan."""

    @property
    def weights(self) -> np.ndarray:
        """Weights (T,) of the next plan."""

    def set_goal(self, goal: np.ndarray) -> None:
        """Plan towards another goal, shape (G,), from the next call on."""

    def set_weights(self, weights: np.ndarray) -> None:
        """Weigh the cost terms anew, shape (T,), from the next call on."""

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw what all candidates of one plan share."""

    def proposals(self, state: np.ndarray, draw: Any) -> np.ndarray | None:
        """Return candidates of the rollout's own, shape (M, H, A), if it has any."""

    def predict(self, state: np.ndarray, actions: np.ndarray, draw: Any) -> Any:
        """Return what the model foresees for one sequence, shape (H, A)."""

    def calibrate(self, state: np.ndarray, actions: np.ndarray, draw: Any) -> dict[int, float]:
        """Find what is fastest here; return times [s]."""
