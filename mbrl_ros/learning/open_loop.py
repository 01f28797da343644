"""Many steps ahead: how the error of open-loop prediction grows, and how sure that is."""

from collections.abc import Iterator, Sequence

import numpy as np

from mbrl_ros.learning.one_step import BLOCK_STEPS, Episodes
from mbrl_ros.runtime.dynamics import Dynamics

PARTICLES_A_MEMBER = 10
LONGEST_STEPS = 25
MOST_ERROR = 0.3
MOST_STARTS = 4000
STARTS_AT_ONCE = 100
RESAMPLES = 1000


def predict_fan(dynamics: Dynamics, start: np.ndarray, actions: np.ndarray,
                seed: int | Sequence[int]) -> np.ndarray:
    """
    Predict open loop with trajectory sampling (TS-infinity).

    Parameters
    ----------
    dynamics : Dynamics
        The exported model: what is scored is what will drive.
    start : array, shape (N, S)
        First states.
    actions : array, shape (N, H, A)
        Actions that were really taken.
    seed : int
        Of the particles.

    Returns
    -------
    array, shape (H, K, N, S)
        Particles after each step, K = 10 a member.

    """
    generator = np.random.default_rng(seed)
    count, horizon, _ = actions.shape
    current = np.repeat(start, PARTICLES_A_MEMBER, axis=0)
    commands = np.repeat(actions, PARTICLES_A_MEMBER, axis=0)
    path = []
    for step in range(horizon):
        mean, std = dynamics(current, commands[:, step])
        current = mean + std * generator.standard_normal(mean.shape, dtype=np.float32)
        by_start = current.reshape(dynamics.members, count, PARTICLES_A_MEMBER, -1)
        path.append(by_start.transpose(0, 2, 1, 3).reshape(-1, count, start.shape[1]))
    return np.stack(path)


def k_step_errors(dynamics: Dynamics, episodes: Episodes, state_std: np.ndarray, longest: int,
                  seed: int) -> list[dict[str, float]]:
    """
    Measure the open-loop error with the real actions, from every state of held-out episodes.

    Parameters
    ----------
    dynamics : Dynamics
        The exported model.
    episodes : sequence of (states (T+1, S), actions (T, A))
        Held-out data. Beyond 4,000 states to start from, as many are drawn.
    state_std : array, shape (S,)
        Spread of the training states: the unit of the errors.
    longest : int
        Largest k.
    seed : int
        Of draws, particles and resamples.

    Returns
    -------
    list of dict
        For k = 1, 2, ...: root mean square `error` of the mean prediction over fields and
        starts, the 95 % band of that figure (`low`, `high`), the root mean `predicted` variance,
        and the number of `starts` that have k steps left.

    Notes
    -----
    The band is a bootstrap over blocks of 25 starts of one episode: errors of neighbouring starts
    are nearly the same, so single starts would make it far too narrow. It says how far other
    data of this kind could score, not how far other training could.

    """
    horizon = min(longest, max(len(actions) for _, actions in episodes))
    starts = _draw_starts(episodes, seed)
    blocks = {block: number for number, block in enumerate(
        sorted({(episode, first // BLOCK_STEPS) for episode, first in starts}))}
    # Sums over the starts of a block: squared error, predicted variance, starts with k steps.
    sums = np.zeros((3, len(blocks), horizon))
    for number, piece in enumerate(_pieces(starts)):
        true, actions, exists = _cut(episodes, piece, horizon)
        fan = predict_fan(dynamics, true[:, 0], actions, [seed, number])
        future = true[:, 1:].transpose(1, 0, 2)
        square = (((fan.mean(axis=1) - future) / state_std) ** 2).mean(axis=-1).T
        variance = (fan.var(axis=1) / state_std**2).mean(axis=-1).T
        index = [blocks[episode, first // BLOCK_STEPS] for episode, first in piece]
        for total, values in zip(sums, (square, variance, np.ones_like(square)), strict=True):
            np.add.at(total, index, np.where(exists, values, 0.0))
    square, variance, count = sums
    drawn = np.random.default_rng(seed).multinomial(
        len(blocks), np.full(len(blocks), 1.0 / len(blocks)), RESAMPLES)
    with np.errstate(invalid='ignore'):  # a resample without any start of k steps counts for none
        resampled = np.sqrt((drawn @ square) / (drawn @ count))
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    total = count.sum(axis=0)
    error, predicted = (np.sqrt(part.sum(axis=0) / total) for part in (square, variance))
    return [{'k': k + 1, 'error': float(error[k]), 'low': float(low[k]), 'high': float(high[k]),
             'predicted': float(predicted[k]), 'starts': int(total[k])} for k in range(horizon)]


def recommended_horizon(k_step: Sequence[dict[str, float]]) -> int:
    """
    Return the largest k up to which the error stays within 0.3 state deviations, at least 1.

    One more good k after a bad one is luck: a plan passes through every step before its last.
    """
    bad = [int(row['k']) for row in k_step if not row['error'] <= MOST_ERROR]
    return max(1, min(bad, default=len(k_step) + 1) - 1)


def _draw_starts(episodes: Episodes, seed: int) -> list[tuple[int, int]]:
    """Return (episode, first step) of each start, in order."""
    starts = [(number, first) for number, (_, actions) in enumerate(episodes)
              for first in range(len(actions))]
    if len(starts) > MOST_STARTS:
        chosen = np.random.default_rng(seed).choice(len(starts), MOST_STARTS, replace=False)
        starts = [starts[index] for index in np.sort(chosen)]
    return starts


def _pieces(starts: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    for first in range(0, len(starts), STARTS_AT_ONCE):
        yield starts[first:first + STARTS_AT_ONCE]


def _cut(episodes: Episodes, starts: Sequence[tuple[int, int]],
         horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return true states (N, H + 1, S), actions (N, H, A), and which of the H steps exist.

    Beyond the end of an episode its last state and action stand in; nothing is made of them.
    """
    true, commands, exists = [], [], []
    for episode, first in starts:
        states, actions = episodes[episode]
        step = first + np.arange(horizon + 1)
        true.append(states[np.minimum(step, len(actions))])
        commands.append(actions[np.minimum(step[:-1], len(actions) - 1)])
        exists.append(step[:-1] < len(actions))
    return np.array(true), np.array(commands), np.array(exists)
