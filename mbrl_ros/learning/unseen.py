"""Recorded data that neither of two models was trained on: found by their metadata, then read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

from mbrl_ros.core.errors import BagError, ModelError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.bag_cache import hash_bag
from mbrl_ros.data.bag_reader import check_bag, Progress
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.holdout import HOLDOUT_BLOCK_STEPS
from mbrl_ros.data.resample import Episode
from mbrl_ros.runtime.artifact import Artifact

ENOUGH_BLOCKS = 40
LEAST_BLOCKS = 8  # a bootstrap over fewer is too sure
LEAST_SHARE = 0.5  # of a block's length: shorter pieces have no room for the predictions
SNAP_NS = 1000  # stamps in the metadata are rounded

Range = tuple[int, int]  # stamps [ns] of the first and of the last state
ALL: Range = (0, 2**63 - 1)


@dataclass(frozen=True)
class Source:
    """Time ranges of a bag that neither model was trained on."""

    bag: str
    path: Path
    hash: str
    ranges: tuple[Range, ...]


@dataclass(frozen=True)
class Unseen:
    """
    What two models are compared on.

    Attributes
    ----------
    blocks : tuple of Episode
        Stretches of about equal length, newest bag first: the unit of the bootstrap.
    bags : tuple of str
        Names of the bags they came from.
    notes : tuple of str
        What could not be used, and why.

    """

    blocks: tuple[Episode, ...]
    bags: tuple[str, ...]
    notes: tuple[str, ...] = ()


def data_of(model: Artifact) -> dict[str, Any]:
    """
    Return what the metadata of a model say of its data.

    Raises
    ------
    ModelError
        If they say nothing.

    """
    data = model.metadata.get('data')
    if not isinstance(data, dict) or not isinstance(data.get('bags'), list):
        raise ModelError(f'{model.path}: does not say what it was trained on, so nothing is known '
                         "to be new to it. Train it anew, or give a reason: --force 'REASON'.")
    return data


def held_out_by_both(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[Source]:
    """
    Return what the new model held out and the old one was not trained on, newest bag first.

    Parameters
    ----------
    new, old : mapping
        `data` of their metadata.

    """
    found = []
    for item in sorted(new['bags'], key=lambda item: -item.get('end_ns', 0)):
        if not item.get('hash'):  # of an earlier version, or not from a bag
            continue
        ranges = subtract([(start, end) for start, end in item['held_out']],
                          [span for data in (new, old)
                           for span in trained_on(data, item['bag'], item['hash'])])
        if ranges:
            found.append(Source(item['bag'], Path(item['path']), item['hash'], tuple(ranges)))
    return found


def given_bags(bags: Sequence[Path], models: Mapping[str, Mapping[str, Any]]) -> list[Source]:
    """
    Return whole bags, in the order given, none of which a model was trained on.

    Parameters
    ----------
    bags : sequence of Path
        rosbag2 folders.
    models : mapping of str to mapping
        `data` of each model's metadata, by what to call the model.

    Raises
    ------
    BagError
        If something is no bag, or a model was trained on part of one; the text names the ranges.

    """
    found: list[Source] = []
    for bag in bags:
        path = bag.resolve()
        check_bag(path)
        bag_hash = hash_bag(path)
        if bag_hash in {source.hash for source in found}:
            raise BagError(f'{bag}: given twice. The same data cannot speak twice.')
        for model, data in models.items():
            ranges = trained_on(data, path.name, bag_hash)
            if ranges:
                raise BagError(f'{bag}: {model} was trained on {_describe(ranges)} of it: it '
                               'would be asked what it has learned by heart. Give bags recorded '
                               'since, or leave --on away: then what both held out is used.')
        found.append(Source(path.name, path, bag_hash, (ALL,)))
    return found


def trained_on(data: Mapping[str, Any], bag: str, bag_hash: str) -> list[Range]:
    """
    Return the ranges of a bag that a model, or one that it started from, was trained on.

    A model of an earlier version knows no hashes: then the name counts, and the whole bag.
    """
    found: list[Range] = []
    for item in (*data['bags'], *data.get('ancestors', ())):
        # Earlier versions named the episode behind the bag.
        is_same = item['hash'] == bag_hash if item.get('hash') \
            else item['bag'].split(':')[0] == bag
        if is_same:
            found += [(a, b) for a, b in item.get('trained', (ALL,))]
    return found


def seen_before(bags: Sequence[Mapping[str, Any]], ancestors: Sequence[Mapping[str, Any]]
                ) -> list[str]:
    """Return the names of the bags of whose held-out ranges an ancestor was trained on some."""
    found = []
    for item in bags:
        held_out = [(start, end) for start, end in item['held_out']]
        trained = trained_on({'bags': ancestors}, item['bag'], item['hash'])
        if subtract(held_out, trained) != held_out:
            found.append(item['bag'])
    return found


def subtract(ranges: Sequence[Range], taken: Sequence[Range]) -> list[Range]:
    """Return what is left of ranges without others; nothing of no length."""
    left = list(ranges)
    for first, last in taken:
        left = [piece for start, end in left
                for piece in ((start, min(end, first)), (max(start, last), end))
                if piece[0] < piece[1]]
    return left


def read_unseen(sources: Sequence[Source], robot: RobotSpec, steps: int, namespace: str = '',
                progress: Progress | None = None) -> Unseen:
    """
    Read bags, in their order, until there is enough to compare two models on.

    Parameters
    ----------
    sources : sequence of Source
        Newest first.
    robot : RobotSpec
        Says what to read.
    steps : int
        Length of the open-loop predictions to come: a block has room for one.
    namespace, progress
        See `load_dataset`.

    Raises
    ------
    BagError
        If there are too few blocks; the text says what to do.

    """
    blocks: list[Episode] = []
    bags, notes = [], []
    for source in sources:
        if len(blocks) >= ENOUGH_BLOCKS:
            break
        problem = _problem(source)
        if problem:
            notes.append(problem)
        else:
            dataset = load_dataset([source.path], robot, namespace, progress)
            found = [block for episode in dataset.episodes
                     for piece in _within(episode, source.ranges, robot)
                     for block in _blocks(piece, max(steps, HOLDOUT_BLOCK_STEPS), robot)]
            blocks += found
            bags += [source.bag] if found else []
    if len(blocks) < LEAST_BLOCKS:
        raise BagError('\n  '.join([
            f'{len(blocks)} stretches of data that neither model was trained on; at least '
            f'{LEAST_BLOCKS} of {max(steps, HOLDOUT_BLOCK_STEPS)} steps are needed to tell one '
            'model from the other.', *notes])
            + '\nRecord a new bag, and give it: mbrl-ros promote NEW --over OLD --on BAG')
    return Unseen(tuple(blocks), tuple(bags), tuple(notes))


def _problem(source: Source) -> str:
    """Say why a bag cannot be read; empty if it can."""
    if not source.path.exists():
        return f'{source.path}: is gone'
    try:
        check_bag(source.path)
        found = hash_bag(source.path)
    except BagError as error:
        return str(error)
    return '' if found == source.hash else f'{source.path}: has changed since the training'


def _within(episode: Episode, ranges: Sequence[Range], robot: RobotSpec) -> list[Episode]:
    """Cut an episode to time ranges."""
    dt_ns = robot.dt_s * 1e9
    found = []
    for start_ns, end_ns in sorted(ranges):
        first = max(0, ceil((start_ns - SNAP_NS - episode.start_ns) / dt_ns))
        last = min(episode.num_steps, floor((end_ns + SNAP_NS - episode.start_ns) / dt_ns))
        if first < last:
            found.append(episode.cut(first, last, robot.dt_s))
    return found


def _blocks(episode: Episode, steps: int, robot: RobotSpec) -> list[Episode]:
    """Cut an episode into equal blocks of about so many steps; none if it is much shorter."""
    if episode.num_steps < LEAST_SHARE * steps:
        return []
    count = max(1, round(episode.num_steps / steps))
    edges = [round(i * episode.num_steps / count) for i in range(count + 1)]
    return [episode.cut(first, last, robot.dt_s)
            for first, last in pairwise(edges)]


def _describe(ranges: Sequence[Range]) -> str:
    if ALL in ranges:
        return 'all'
    origin = min(start for start, _ in ranges)
    texts = [f'{(start - origin) * 1e-9:.1f} to {(end - origin) * 1e-9:.1f} s'
             for start, end in sorted(ranges)]
    more = f' and {len(texts) - 5} more ranges' if len(texts) > 5 else ''
    return ', '.join(texts[:5]) + more
