"""Where the training data lie: what is inside it, what is outside, and how it was acted there."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from mbrl_ros.core.robot import RobotSpec

STATE_BINS, ACTION_BINS = 30, 10
MARGIN = 0.5


@dataclass(frozen=True)
class Region:
    """
    Range and histogram of every field of a set of transitions.

    Attributes
    ----------
    low, high : ndarray of shape (S,)
        Range of the states.
    states : ndarray of shape (S, 30)
        Share of the states in equal bins of that range.
    actions : ndarray of shape (A, 10)
        Share of the actions in equal bins of the robot's limits; what is beyond counts to the
        outermost.

    """

    low: np.ndarray
    high: np.ndarray
    states: np.ndarray
    actions: np.ndarray

    @classmethod
    def of(cls, robot: RobotSpec, state: np.ndarray, action: np.ndarray) -> Self:
        """Describe states (N, S) and actions (N, A)."""
        low, high = state.min(axis=0), state.max(axis=0)
        return cls(low, high, _shares(state, low, high, STATE_BINS),
                   action_shares(robot, action))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, as JSON has them."""
        return {name: np.round(array, 6).tolist() for name, array in vars(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` gave."""
        return cls(**{name: np.array(values, float) for name, values in data.items()})

    def push_out(self, robot: RobotSpec, state: np.ndarray, seed: int) -> np.ndarray | None:
        """
        Make states that the training data have nothing like.

        Parameters
        ----------
        robot : RobotSpec
            Says which fields enter the network as they are (`linear`). An angle enters as sine
            and cosine, so that a turn further is the same place, and stays as it is.
        state : ndarray of shape (N, S)
            Real ones.
        seed : int
            Of the directions.

        Returns
        -------
        ndarray of shape (N, S)
            Each state, moved along a random direction in the linear fields (uniform when each is
            measured in its range) until the first of them is half its range beyond the range.
            None if the robot has no linear field.

        """
        linear = [i for i, field in enumerate(robot.observation) if field.feature == 'linear']
        if not linear:
            return None
        width = np.maximum(self.high - self.low, 1e-9)[linear]
        place = (state[:, linear] - self.low[linear]) / width  # 0 to 1 inside
        direction = np.random.default_rng(seed).standard_normal(place.shape)
        room = np.where(direction > 0, 1.0 + MARGIN - place, place + MARGIN)
        length = (np.maximum(room, 0.0) / np.abs(direction)).min(axis=1, keepdims=True)
        pushed = state.copy()
        pushed[:, linear] = self.low[linear] + (place + length * direction) * width
        return pushed


def action_shares(robot: RobotSpec, action: np.ndarray) -> np.ndarray:
    """Return the share of actions (N, A) in each of ten bins of the limits, shape (A, 10)."""
    return _shares(action, np.array([field.min for field in robot.action]),
                   np.array([field.max for field in robot.action]), ACTION_BINS)


def _shares(values: np.ndarray, low: np.ndarray, high: np.ndarray, bins: int) -> np.ndarray:
    place = (values - low) / np.maximum(high - low, 1e-9)
    number = np.clip((place * bins).astype(int), 0, bins - 1)
    return np.stack([np.bincount(column, minlength=bins) for column in number.T]) / len(values)
