"""Which transitions are held out: whole episodes where there are enough, blocks of them else."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from mbrl_ros.data.resample import Episode

# With fewer, one episode is more than the usual tenth, and the holdout would be one motion.
MIN_EPISODES_TO_HOLD_OUT = 10
HOLDOUT_BLOCK_STEPS = 25

Sides = tuple[list[Episode], list[Episode]]


def split_episodes(episodes: Sequence[Episode], fraction: float, seed: int,
                   dt_s: float) -> Sides | None:
    """
    Split into training and holdout episodes that share no state.

    Parameters
    ----------
    episodes : sequence of Episode
        In any order; the sides keep it.
    fraction : float
        Share of the transitions to hold out, in (0, 1).
    seed : int
        Of the choice.
    dt_s : float
        Control period [s].

    Returns
    -------
    training, holdout : list of Episode
        None if there is too little to split: no more than one block.

    Notes
    -----
    Single transitions would not do: a neighbour 40 ms away is nearly the same, and the holdout
    would only measure memory. Whole episodes are best: nothing in training led to a state of the
    holdout. Where there are too few, or one is so long that no choice of them comes within half
    of the wanted share, episodes are cut into blocks of at most 25 steps: a bag of one long
    episode must still have a holdout, and one drawn from all over it. Where a training block
    touches a holdout block, the training side gives up the transition that would share the state
    between them.

    """
    rng = np.random.default_rng(seed)
    if len(episodes) >= MIN_EPISODES_TO_HOLD_OUT:
        lengths = np.array([episode.num_steps for episode in episodes])
        held = _choose(lengths, fraction, rng)
        wanted = fraction * lengths.sum()
        if abs(lengths[held].sum() - wanted) <= 0.5 * min(wanted, lengths.sum() - wanted):
            return ([episode for episode, is_held in zip(episodes, held, strict=True)
                     if not is_held],
                    [episode for episode, is_held in zip(episodes, held, strict=True) if is_held])
    return _split_blocks(episodes, fraction, rng, dt_s)


def _choose(lengths: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Hold out, in random order, each episode that brings the share nearer; shape (E,), bool."""
    held = np.zeros(len(lengths), bool)
    missing = fraction * lengths.sum()
    for index in rng.permutation(len(lengths)):
        if abs(missing - lengths[index]) < abs(missing):
            held[index] = True
            missing -= lengths[index]
    if held.all() or not held.any():
        held[np.argmin(lengths)] ^= True
    return held


def _split_blocks(episodes: Sequence[Episode], fraction: float, rng: np.random.Generator,
                  dt_s: float) -> Sides | None:
    blocks = [_block_edges(episode.num_steps) for episode in episodes]
    num_blocks = sum(len(edges) - 1 for edges in blocks)
    if num_blocks < 2:
        return None
    num_held = min(max(round(fraction * num_blocks), 1), num_blocks - 1)
    held = np.zeros(num_blocks, bool)
    held[rng.choice(num_blocks, num_held, replace=False)] = True
    training: list[Episode] = []
    holdout: list[Episode] = []
    position = 0
    for episode, edges in zip(episodes, blocks, strict=True):
        flags = held[position:position + len(edges) - 1]
        position += len(edges) - 1
        for is_held, first, end in _merge(edges, flags):
            start = first + (not is_held and first > 0)
            stop = end - (not is_held and end < episode.num_steps)
            if start < stop:
                (holdout if is_held else training).append(episode.cut(start, stop, dt_s))
    return training, holdout


def _block_edges(num_steps: int) -> list[int]:
    """Cut a number of steps into equal blocks of at most HOLDOUT_BLOCK_STEPS."""
    num_blocks = -(-num_steps // HOLDOUT_BLOCK_STEPS)
    return [round(i * num_steps / num_blocks) for i in range(num_blocks + 1)]


def _merge(edges: Sequence[int], flags: np.ndarray) -> list[tuple[bool, int, int]]:
    """Join neighbouring blocks with the same flag into (flag, first step, one past the last)."""
    merged = []
    for flag, group in groupby(range(len(flags)), key=lambda block: bool(flags[block])):
        members = list(group)
        merged.append((flag, edges[members[0]], edges[members[-1] + 1]))
    return merged
