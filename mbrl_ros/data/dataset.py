"""The dataset: episodes of one robot at a fixed dt, their hash, and the holdout."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.bag_cache import bag_files, cache_key, hash_bag, load_episodes, save_episodes
from mbrl_ros.data.bag_reader import check_bag, Progress
from mbrl_ros.data.episodes import read_episodes
from mbrl_ros.data.holdout import HOLDOUT_BLOCK_STEPS, split_episodes
from mbrl_ros.data.losses import Losses
from mbrl_ros.data.resample import Episode


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


class SourceBag(NamedTuple):
    """A bag that episodes came from: the path it was given by, the SHA-256 of its files."""

    path: str
    hash: str


@dataclass(frozen=True)
class Dataset:
    """Episodes of one robot, what their bags lost, and the bags if they came from bags."""

    episodes: tuple[Episode, ...]
    robot: RobotSpec
    losses: tuple[Losses, ...] = ()
    bags: tuple[SourceBag, ...] = ()

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
            Share that is held out, in (0, 1).
        seed : int
            Of the choice.

        Returns
        -------
        training, holdout : Dataset
            Whole episodes each, or blocks where there are too few: see `holdout.split_episodes`.

        Raises
        ------
        BagError
            If there is only one block.

        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f'fraction must be in (0, 1), found {fraction}')
        sides = split_episodes(self.episodes, fraction, seed, self.robot.dt_s)
        if sides is None:
            raise BagError(f'only {self.num_transitions} transitions ({self.seconds:.1f} s), too '
                           f'few to hold some out: more than {HOLDOUT_BLOCK_STEPS} are needed. '
                           'Record for longer.')
        training, holdout = sides
        return (replace(self, episodes=tuple(training)), replace(self, episodes=tuple(holdout)))

    def provenance(self, training: 'Dataset | None' = None, holdout: 'Dataset | None' = None
                   ) -> dict[str, Any]:
        """
        Return where the data came from, as it goes into a model's metadata.

        Parameters
        ----------
        training, holdout : Dataset, optional
            The part of this dataset that a model learns from, and the one that is held out.

        Returns
        -------
        dict
            `hash`, `losses` (lines) and `bags`: of each its name `bag`, `path`, `hash`,
            `start_ns` and `end_ns` (first and last state), `transitions`, `seconds`,
            `trained` and `held_out`, lists of [start_ns, end_ns].

        """
        # Data that came from no bag are named by their sources.
        bags = self.bags or [SourceBag(source, '') for source
                             in dict.fromkeys(episode.source for episode in self.episodes)]
        paths = [bag.path for bag in bags]
        episodes = _by_bag(self.episodes, paths)
        trained, held = (_by_bag(part.episodes if part is not None else (), paths)
                         for part in (training, holdout))
        return {'hash': self.hash, 'losses': self.describe_losses(), 'bags': [
            _describe(bag, episodes[bag.path], trained[bag.path], held[bag.path], self.robot.dt_s)
            for bag in bags if episodes[bag.path]]}

    def describe_losses(self) -> list[str]:
        """Return one line for each thing that a bag lost."""
        return [line for losses in self.losses for line in losses.describe()]


def load_dataset(bags: Sequence[Path | str], robot: RobotSpec, namespace: str = '',
                 progress: Progress | None = None, *, use_cache: bool = True) -> Dataset:
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
    use_cache : bool
        Whether a bag that was read before, for the same robot spec, is not read again.

    Raises
    ------
    BagError
        If a bag cannot be read or is given twice, or if no transition is left.

    """
    episodes: list[Episode] = []
    losses: list[Losses] = []
    read: dict[str, SourceBag] = {}
    for bag in map(Path, bags):
        check_bag(bag)
        before = _stats(bag)
        bag_hash = hash_bag(bag)
        if bag_hash in read:
            raise BagError(f'{bag}: given twice, also as {read[bag_hash].path}. The copy would '
                           'end up in training and holdout.')
        read[bag_hash] = SourceBag(str(bag), bag_hash)
        key = cache_key(bag_hash, robot, namespace)
        saved = load_episodes(key, str(bag)) if use_cache else None
        if saved is not None and progress is not None:
            progress(str(bag), 1, 1)
        found, lost = saved or read_episodes(bag, robot, namespace, progress)
        if _stats(bag) != before:
            raise BagError(f'{bag}: changed while it was read. Stop what writes it, then try '
                           'again.')
        if use_cache and saved is None:
            save_episodes(key, str(bag), found, lost)
        episodes += found
        losses.append(lost)
    dataset = Dataset(tuple(episodes), robot, tuple(losses), tuple(read.values()))
    if not dataset.num_transitions:
        raise BagError('\n'.join([
            f'no transition in {", ".join(map(str, bags)) or "no bag"}: a transition '
            'needs two observations one control period apart and a command before them.',
            *dataset.describe_losses()]))
    return dataset


def _stats(bag: Path) -> list[tuple[int, int]]:
    return [(stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, bag_files(bag))]


def _by_bag(episodes: Iterable[Episode], bags: Sequence[str]) -> dict[str, list[Episode]]:
    """Group episodes by the path of their bag, with which their source begins."""
    grouped: dict[str, list[Episode]] = {bag: [] for bag in bags}
    for episode in episodes:
        grouped[max((bag for bag in bags if f'{episode.source}: '.startswith(f'{bag}: ')),
                    key=len)].append(episode)
    return grouped


def _describe(bag: SourceBag, episodes: Sequence[Episode], trained: Sequence[Episode],
              held: Sequence[Episode], dt_s: float) -> dict[str, Any]:
    def spans_of(some: Sequence[Episode]) -> list[list[int]]:
        return sorted([episode.start_ns,
                       episode.start_ns + round(episode.num_steps * dt_s * 1e9)]
                      for episode in some)

    spans = spans_of(episodes)
    transitions = sum(episode.num_steps for episode in episodes)
    path = Path(bag.path).resolve() if bag.hash else None
    return {'bag': path.name if path else bag.path, 'path': str(path or ''), 'hash': bag.hash,
            'start_ns': min(start_ns for start_ns, _ in spans),
            'end_ns': max(end_ns for _, end_ns in spans),
            'transitions': transitions, 'seconds': transitions * dt_s,
            'trained': spans_of(trained), 'held_out': spans_of(held)}
