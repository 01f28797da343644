"""A training run on disk after every epoch: a kill costs no more than the epoch it fell into."""

from collections.abc import Mapping
from io import BytesIO
import json
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mbrl_ros.core.errors import ModelError

SLOTS = ('checkpoint_0.npz', 'checkpoint_1.npz')
_IDENTITY, _EPOCH = 'identity', 'epoch'

Identity = Mapping[str, Any]
State = dict[str, np.ndarray]


def save(folder: Path, identity: Identity, epoch: int, state: State) -> None:
    """
    Keep an epoch in a folder, and the one before it.

    Parameters
    ----------
    folder : Path
        That exists.
    identity : mapping
        What the run is made from, as JSON values: a checkpoint goes on only where all is equal.
    epoch : int
        Counted from one.
    state : dict of arrays
        `Training.state()`.

    Notes
    -----
    Two files take turns, each written over in place. A kill leaves one of them whole, and the
    checksums of the other give it away. Replacing one file would be as safe, but a file system
    that sends a replaced file to the disk at once (ext4) takes six times as long for that.

    """
    data = npz(state | {_IDENTITY: np.array(json.dumps(identity)), _EPOCH: np.array(epoch)})
    descriptor = os.open(folder / SLOTS[epoch % 2], os.O_WRONLY | os.O_CREAT, 0o666)
    with os.fdopen(descriptor, 'wb') as stream:
        stream.write(data)
        stream.truncate()


def load(folder: Path, identity: Identity) -> State | None:
    """
    Return the state after the last epoch that a folder holds, None if it holds nothing.

    Raises
    ------
    ModelError
        If all there is belongs to another run, or is damaged; the text says which and why.

    """
    wanted = json.loads(json.dumps(identity))
    states: list[State] = []
    problems: list[str] = []
    for path in (folder / name for name in SLOTS):
        try:
            with np.load(path, allow_pickle=False) as file:
                state = dict(file)
            differences = differing(json.loads(str(state.pop(_IDENTITY))), wanted)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            problems.append(f'{path}: cut short: {error}')
            continue
        if differences:
            problems.append(f'{path}: of another run: {"; ".join(differences)}')
        else:
            states.append(state)
    if problems and not states:
        raise ModelError(problems[0])
    latest = max(states, key=lambda state: int(state[_EPOCH]), default=None)
    return None if latest is None else {name: array for name, array in latest.items()
                                        if name != _EPOCH}


def differing(found: Any, wanted: Any, name: str = '') -> list[str]:
    """Name each value in which two runs differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [line for key in sorted(found.keys() | wanted.keys())
                for line in differing(found.get(key), wanted.get(key), f'{name} {key}'.strip())]
    return [] if found == wanted else [f'{name} was {_short(found)}, is {_short(wanted)}']


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as the bytes of an .npz file; equal arrays give equal bytes."""
    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _short(value: Any) -> str:
    text = 'none' if value is None else str(value)
    return text if len(text) <= 40 else f'{text[:16]}...'
