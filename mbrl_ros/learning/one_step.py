"""One step ahead: what a model foresaw of held-out transitions, and how sure it was."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.special import logsumexp, ndtr

from mbrl_ros.runtime.dynamics import Dynamics

LEVELS = np.arange(1, 100) / 100
BLOCK_STEPS = 25
# The hidden layers of all members need some kilobytes a transition.
TRANSITIONS_AT_ONCE = 10_000
Episodes = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class OneStep:
    """
    Predictions of single steps, and what happened.

    Attributes
    ----------
    state, next_state : ndarray of shape (N, S)
        Before and after.
    action : ndarray of shape (N, A)
        What acted between them.
    mean, std : ndarray of shape (E, N, S)
        Of the next state, by each member.
    step_std : ndarray of shape (S,)
        Typical change in one step.

    """

    state: np.ndarray
    action: np.ndarray
    next_state: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    step_std: np.ndarray

    @classmethod
    def predict(cls, dynamics: Dynamics, episodes: Episodes) -> Self:
        """Predict every transition of episodes (states (T+1, S), actions (T, A))."""
        state = np.concatenate([states[:-1] for states, _ in episodes])
        next_state = np.concatenate([states[1:] for states, _ in episodes])
        action = np.concatenate([actions for _, actions in episodes])
        pieces = [dynamics(state[first:first + TRANSITIONS_AT_ONCE],
                           action[first:first + TRANSITIONS_AT_ONCE])
                  for first in range(0, len(state), TRANSITIONS_AT_ONCE)]
        mean, std = (np.concatenate(parts, axis=1).astype(float)
                     for parts in zip(*pieces, strict=True))
        return cls(state, action, next_state, mean, std, dynamics.step_std)

    def reshaped(self, factor: np.ndarray, power: np.ndarray) -> Self:
        """
        Return the same with the std, in typical steps, to a power and times a factor.

        `factor`, `power`: of shape (S,) or (N, S).
        """
        return replace(self, std=self.step_std * factor * (self.std / self.step_std) ** power)

    def rows(self, chosen: np.ndarray) -> Self:
        """Return some of the transitions, chosen by an index or mask of shape (N,)."""
        return replace(self, state=self.state[chosen], action=self.action[chosen],
                       next_state=self.next_state[chosen], mean=self.mean[:, chosen],
                       std=self.std[:, chosen])

    def error(self) -> np.ndarray:
        """Return what happened less the mean over the members, shape (N, S)."""
        error: np.ndarray = self.next_state - self.mean.mean(axis=0)
        return error

    def r2(self) -> np.ndarray:
        """
        Return R2 of the change of each field, shape (S,).

        A field that never changed has nothing to explain: 1 if that was foreseen, else 0.
        """
        variance, square = (self.next_state - self.state).var(axis=0), (self.error()**2).mean(0)
        still = variance < 1e-12
        return np.where(still, square < 1e-12, 1.0 - square / np.where(still, 1.0, variance))

    def nll(self) -> np.ndarray:
        """
        Return the negative log-likelihood of what happened under the mixture, shape (N, S).

        In the unit of a typical step, so that fields compare; N(0, 1) scores 1.419 on average.
        """
        log_density = (-0.5 * ((self.next_state - self.mean) / self.std) ** 2
                       - np.log(self.std / self.step_std) - 0.5 * np.log(2 * np.pi))
        return np.asarray(np.log(len(self.mean)) - logsumexp(log_density, axis=0))

    def centrality(self) -> np.ndarray:
        """
        Return the level of the smallest central interval that holds what happened, shape (N, S).

        The central interval of level p of the mixture lies between its quantiles (1 - p) / 2 and
        (1 + p) / 2. Of a calibrated model, these numbers are uniform between 0 and 1.
        """
        below = ndtr((self.next_state - self.mean) / self.std).mean(axis=0)
        return np.asarray(np.abs(2.0 * below - 1.0))

    def coverage(self) -> np.ndarray:
        """Return the share of transitions inside the central interval of each level, (L, S)."""
        centrality = np.sort(self.centrality(), axis=0)
        return np.stack([np.searchsorted(column, LEVELS, side='right') for column in centrality.T],
                        axis=1) / len(centrality)


def calibration_error(coverage: np.ndarray) -> np.ndarray:
    """
    Return the mean absolute calibration error of curves (L, S), shape (S,).

    Mean over the levels 0.01 to 0.99 of |observed - expected coverage|: as uncertainty-toolbox
    defines it for intervals, with the quantiles of the mixture in place of those of one Gaussian.
    """
    return np.abs(coverage - LEVELS[:, None]).mean(axis=0)


def split_in_halves(episodes: Episodes, seed: int) -> np.ndarray:
    """
    Choose half of the transitions, shape (N,), bool, in blocks of 25 steps of one episode.

    Neighbours in time are nearly the same: single ones would tie the two halves together.
    """
    blocks = np.concatenate([np.stack([np.full(len(actions), number),
                                       np.arange(len(actions)) // BLOCK_STEPS], axis=1)
                             for number, (_, actions) in enumerate(episodes)])
    _, block = np.unique(blocks, axis=0, return_inverse=True)
    count = int(block.max()) + 1
    chosen = np.random.default_rng(seed).permutation(count)[:count // 2]
    return np.isin(block, chosen)
