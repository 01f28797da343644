"""The episodes of each bag on disk, so that a retraining reads only the bags that are new."""

from contextlib import suppress
from hashlib import sha256
import json
import os
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydantic import TypeAdapter

from mbrl_ros import __version__
from mbrl_ros.core.errors import BagError
from mbrl_ros.core.paths import cache_dir
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.bag_metadata import read_metadata, storage_files
from mbrl_ros.data.bag_reader import Progress
from mbrl_ros.data.losses import Losses
from mbrl_ros.data.resample import Episode

FORMAT = 1  # raise it when the same bag yields other episodes than before
SUFFIX = '.episodes.npz'
KEPT_BYTES = 4 * 1024**3
BLOCK_BYTES = 4 * 1024**2

_LOSSES = TypeAdapter(Losses)


def hash_bag(bag: Path, progress: Progress | None = None) -> str:
    """
    Return the SHA-256 over the metadata.yaml and the storage files of a bag.

    Parameters
    ----------
    bag : Path
        Folder with a metadata.yaml.
    progress : callable, optional
        Called now and then with the path, the bytes read and their number.

    Raises
    ------
    BagError
        If a file is missing or cannot be read.

    """
    files = bag_files(bag)
    digest, done, total = sha256(), 0, sum(file.stat().st_size for file in files)
    try:
        for file in files:
            content = sha256()
            with file.open('rb') as stream:
                while block := stream.read(BLOCK_BYTES):
                    content.update(block)
                    done += len(block)
                    if progress is not None:
                        progress(str(bag), done, total)
            digest.update(file.name.encode() + content.digest())
    except OSError as error:
        raise BagError(f'{bag}: cannot be read: {error.strerror or error}') from error
    return digest.hexdigest()


def bag_files(bag: Path) -> list[Path]:
    """Return the files of a bag: its metadata.yaml and the storage files that this names."""
    return [bag / 'metadata.yaml', *storage_files(
        bag, read_metadata(bag) or {'relative_file_paths': ()})]


def cache_key(bag_hash: str, robot: RobotSpec, namespace: str) -> str:
    """Return what the episodes of a bag depend on, as a hash."""
    key = json.dumps([FORMAT, __version__, bag_hash, robot.spec_hash(), namespace])
    return sha256(key.encode()).hexdigest()


def load_episodes(key: str, bag: str) -> tuple[list[Episode], Losses] | None:
    """
    Return what was saved of a bag, None if nothing was or the file is damaged.

    Parameters
    ----------
    key : str
        See `cache_key`.
    bag : str
        Where the bag lies now: it may have moved.

    """
    try:
        path = _path(key)
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)  # a zip file: each array is checked against its CRC
        saved = json.loads(arrays.pop('about').tobytes())
        losses = _LOSSES.validate_python(saved['losses'] | {'bag': bag})
        episodes = [
            Episode(start_ns=entry['start_ns'], source=bag + entry['source'],
                    **{name: arrays[f'{number}.{name}'] for name in entry['arrays']})
            for number, entry in enumerate(saved['episodes'])]
    except (OSError, RuntimeError, EOFError, BadZipFile, KeyError, TypeError, ValueError):
        return None
    with suppress(OSError):  # a cache that can only be read
        os.utime(path)  # those used last are kept
    return episodes, losses


def save_episodes(key: str, bag: str, episodes: list[Episode], losses: Losses) -> None:
    """Save what was read of a bag, whole or not at all; a cache that cannot be written is none."""
    arrays: dict[str, np.ndarray] = {}
    entries = []
    for number, episode in enumerate(episodes):
        named = {name: array for name, array in vars(episode).items()
                 if isinstance(array, np.ndarray)}
        arrays |= {f'{number}.{name}': array for name, array in named.items()}
        entries.append({'start_ns': episode.start_ns, 'source': episode.source.removeprefix(bag),
                        'arrays': list(named)})
    about = json.dumps({'losses': _LOSSES.dump_python(losses, mode='json'), 'episodes': entries})
    arrays['about'] = np.frombuffer(about.encode(), np.uint8)
    with suppress(OSError, RuntimeError):
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'{path.name}.{os.getpid()}.part')
        try:
            with part.open('wb') as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        _delete_oldest(path.parent)


def _path(key: str) -> Path:
    return cache_dir() / f'{key}{SUFFIX}'


def _delete_oldest(folder: Path) -> None:
    # Parts that a killed process left are files to delete, too.
    files = sorted(folder.glob(f'*{SUFFIX}*'), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    for file in files[:-1]:
        if total > KEPT_BYTES:
            total -= file.stat().st_size
            file.unlink(missing_ok=True)
