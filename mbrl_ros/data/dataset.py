"""The dataset: episodes of one robot at a fixed dt, their hash, and the holdout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.bag_reader import Progress, read_bag
from mbrl_ros.data.losses import Losses
from mbrl_ros.data.resample import Episode, resample

HOLDOUT_BLOCK_STEPS = 25


class Windows(NamedTuple):
    """
    Stretches of k steps in a row, N of them: what a model is trained on. k = 1: transitions.

    Attributes
    ----------
    states : ndarray of shape (N, k + 1, S)
        In the units of the robot spec.
    actions : ndarray of shape (N, k, A)
        Action t was in effect between states t and t + 1.
    rewards, terminations : ndarray of shape (N, k), optional
        See `Episode`.

    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray | None = None
    terminations: np.ndarray | None = None


@dataclass(frozen=True)
class Dataset:
    """Episodes of one robot, and what their bags lost."""

    episodes: tuple[Episode, ...]
    robot: RobotSpec
    losses: tuple[Losses, ...] = ()

    @property
    def num_transitions(self) -> int:
        """Number of transitions N."""
        return sum(episode.num_steps for episode in self.episodes)

    @property
    def seconds(self) -> float:
        """Robot time [s]."""
        return self.num_transitions * self.robot.dt_s

    @property
    def hash(self) -> str:
        """
        SHA-256 over the arrays of all episodes and the names of their columns.

        It depends on the order of the bags, as a training run does, and on no path or stamp.
        """
        digest = sha256(repr((self.robot.control_rate_hz, self.robot.state_names,
                              self.robot.action_names)).encode())
        for episode in self.episodes:
            arrays = (episode.states, episode.actions, episode.rewards, episode.terminations)
            for array in (array for array in arrays if array is not None):
                digest.update(repr(array.shape).encode())
                digest.update(np.ascontiguousarray(array, '<f8').tobytes())
        return digest.hexdigest()

    def transitions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return states (N, S), actions (N, A) and next states (N, S)."""
        num_states, num_actions = len(self.robot.observation), len(self.robot.action)
        return (
            np.concatenate([np.empty((0, num_states)), *(e.states[:-1] for e in self.episodes)]),
            np.concatenate([np.empty((0, num_actions)), *(e.actions for e in self.episodes)]),
            np.concatenate([np.empty((0, num_states)), *(e.states[1:] for e in self.episodes)]))

    def windows(self, steps: int) -> Windows:
        """Return every stretch of `steps` steps; they overlap by all but one step."""
        long = [episode for episode in self.episodes if episode.num_steps >= steps]

        def cut(arrays: Sequence[np.ndarray | None], length: int) -> np.ndarray | None:
            if not arrays or any(array is None for array in arrays):
                return None
            pieces = [np.moveaxis(sliding_window_view(array, length, axis=0), -1, 1)
                      for array in arrays if array is not None]
            return np.concatenate(pieces)

        states = cut([episode.states for episode in long], steps + 1)
        actions = cut([episode.actions for episode in long], steps)
        if states is None or actions is None:
            states = np.empty((0, steps + 1, len(self.robot.observation)))
            actions = np.empty((0, steps, len(self.robot.action)))
        return Windows(states, actions, cut([episode.rewards for episode in long], steps),
                       cut([episode.terminations for episode in long], steps))

    def split_holdout(self, fraction: float, seed: int) -> tuple['Dataset', 'Dataset']:
        """
        Split into training and holdout data that share no state.

        Parameters
        ----------
        fraction : float
            Share of the blocks that is held out, in (0, 1); at least one block is, and one is not.
        seed : int
            Of the choice.

        Returns
        -------
        training, holdout : Dataset
            Neighbouring blocks of one side are one episode again.

        Raises
        ------
        BagError
            If there is only one block.

        Notes
        -----
        Episodes are first cut into blocks of at most 25 steps: a bag of one long episode must
        still have a holdout, and one drawn from all over it. Single transitions would not do:
        a neighbour 40 ms away is nearly the same, and the holdout would only measure memory.
        Where a training block touches a holdout block, the training side gives up the
        transition that would share the state between them.

        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f'fraction must be in (0, 1), found {fraction}')
        blocks = [_block_edges(episode.num_steps) for episode in self.episodes]
        num_blocks = sum(len(edges) - 1 for edges in blocks)
        if num_blocks < 2:
            raise BagError(f'only {self.num_transitions} transitions ({self.seconds:.1f} s), too '
                           f'few to hold some out: more than {HOLDOUT_BLOCK_STEPS} are needed. '
                           'Record for longer.')
        num_held = min(max(round(fraction * num_blocks), 1), num_blocks - 1)
        held = np.zeros(num_blocks, bool)
        held[np.random.default_rng(seed).choice(num_blocks, num_held, replace=False)] = True
        sides: dict[bool, list[Episode]] = {False: [], True: []}
        position = 0
        for episode, edges in zip(self.episodes, blocks, strict=True):
            flags = held[position:position + len(edges) - 1]
            position += len(edges) - 1
            for is_held, first, end in _merge(edges, flags):
                start = first + (not is_held and first > 0)
                stop = end - (not is_held and end < episode.num_steps)
                if start < stop:
                    sides[is_held].append(episode.cut(start, stop, self.robot.dt_s))
        return (replace(self, episodes=tuple(sides[False])),
                replace(self, episodes=tuple(sides[True])))

    def describe_losses(self) -> list[str]:
        """Return one line for each thing that a bag lost."""
        return [line for losses in self.losses for line in losses.describe()]


def load_dataset(bags: Sequence[Path | str], robot: RobotSpec, namespace: str = '',
                 progress: Progress | None = None) -> Dataset:
    """
    Read bags into one dataset.

    Parameters
    ----------
    bags : sequence of Path
        rosbag2 folders; their order is that of the episodes.
    robot : RobotSpec
        Says what to read, and the fixed dt.
    namespace : str
        ROS namespace under which the robot was recorded.
    progress : callable, optional
        Called now and then with the path of a bag, the messages read and their number.

    Raises
    ------
    BagError
        If a bag cannot be read or is given twice, or if no transition is left.

    """
    episodes: list[Episode] = []
    losses: list[Losses] = []
    seen: set[Path] = set()
    for bag in bags:
        if Path(bag).resolve() in seen:
            raise BagError(f'{bag}: given twice. The copy would end up in training and holdout.')
        seen.add(Path(bag).resolve())
        segments, lost = read_bag(bag, robot, namespace, progress)
        for segment in segments:
            episodes += resample(segment, robot, lost)
        losses.append(lost)
    dataset = Dataset(tuple(episodes), robot, tuple(losses))
    if not dataset.num_transitions:
        raise BagError('\n'.join([
            f'no transition in {", ".join(str(bag) for bag in bags) or "no bag"}: a transition '
            'needs two observations one control period apart and a command before them.',
            *dataset.describe_losses()]))
    return dataset


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
