"""What sampling planners share: where a search starts, its limits, ranking, fit, warm start."""

from typing import Any

import numpy as np

from mbrl_ros.core.errors import PlanningError
from mbrl_ros.planning import ActionSpace

Array = Any


def middle(space: ActionSpace) -> np.ndarray:
    """
    Return the sequence, shape (H, A), around which a search begins: zero, where that is inside.

    Never a limit itself: samples around it, capped by the limits, would have no room. Read-only,
    because every state that begins shares it.
    """
    low, high = space.low, space.high
    inside = np.where((low < 0.0) & (high > 0.0), 0.0, (low + high) / 2)
    return np.broadcast_to(inside, (space.horizon, len(low)))


def clip(actions: Array, space: ActionSpace) -> Array:
    """Return actions, shape (..., A), moved to the nearer limit where they are beyond it."""
    xp = actions.__array_namespace__()
    # Not xp.clip, which takes twice as long on small arrays.
    return xp.minimum(xp.maximum(actions, space.low), space.high)


def rank(cost: Array, num_elites: int = 1) -> Array:
    """
    Return the indices of all candidates with a finite cost, cheapest first.

    Parameters
    ----------
    cost : array, shape (P,)
        Lower is better; not finite means rejected.
    num_elites : int
        How many the planner needs.

    Raises
    ------
    PlanningError
        If fewer than that are left.

    """
    xp = cost.__array_namespace__()
    usable = xp.isfinite(cost)
    finite = int(xp.sum(xp.astype(usable, xp.int64)))
    if finite < num_elites:
        found = (f'only {finite} of {cost.shape[0]} candidates have a finite cost, fewer than '
                 f'num_elites {num_elites}' if finite else
                 f'none of {cost.shape[0]} candidates has a finite cost')
        raise PlanningError(f'{found}: the model diverges from here. '
                            'Retrain with data from this region, or shorten the horizon.')
    return xp.argsort(xp.where(usable, cost, xp.inf), stable=True)[:finite]


def fit(elites: Array) -> tuple[Array, Array]:
    """Return mean and variance, each of shape (H, A), of the elites (N, H, A)."""
    xp = elites.__array_namespace__()
    # Not mean and var, which take twice as long on small arrays.
    mean = xp.sum(elites, axis=0) / elites.shape[0]
    apart = elites - mean
    return mean, xp.sum(apart * apart, axis=0) / elites.shape[0]


def mix(old: Array, new: Array, smoothing: float) -> Array:
    """Return old and new, `smoothing` the share of the old."""
    return smoothing * old + (1.0 - smoothing) * new


def advance(sequences: Array, steps: int, tail: Array) -> Array:
    """
    Return sequences moved towards now.

    Parameters
    ----------
    sequences : array, shape (N, H, A)
        What began `steps` ago.
    steps : int
        At most H.
    tail : array, broadcast to shape (N, steps, A)
        What they end in.

    """
    xp = sequences.__array_namespace__()
    shape = (sequences.shape[0], steps, sequences.shape[2])
    return xp.concat([sequences[:, steps:], xp.broadcast_to(tail, shape)], axis=1)
