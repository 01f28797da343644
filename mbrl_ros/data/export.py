"""
The dataset in the formats of others: NumPy, Parquet, Minari.

In NumPy and Parquet a row is a state and the action that follows it. The last state of an episode
has no action, no reward and no termination: not a number there, or null in Parquet. Nothing is
rounded: what is read back has the bits of the dataset.
"""

from contextlib import suppress
from importlib.metadata import version
import json
import os
from pathlib import Path
import re
import shutil
from typing import Any

import numpy as np

from mbrl_ros import __version__
from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import MessageField
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.data.resample import Episode

FORMATS = ('npz', 'parquet', 'minari')
RESERVED = {'episode', 'step', 'time_ns', 'reward', 'termination'}


def format_of(output: Path, wanted: str | None) -> str:
    """
    Return the format of an export: the one that is wanted, else that of the file's ending.

    Raises
    ------
    BagError
        If neither names one.

    """
    name = wanted or output.suffix.removeprefix('.')
    if name not in FORMATS:
        raise BagError(f"{output}: no format '{name}'. End the file in .npz or .parquet, or give "
                       f'--format: {", ".join(FORMATS)}.')
    return name


def export(dataset: Dataset, output: Path, format_: str) -> None:
    """
    Write a dataset, whole or not at all.

    Parameters
    ----------
    dataset : Dataset
        Episodes of one robot.
    output : Path
        File; for Minari a folder that does not exist yet, with a name such as `cartpole-v0`.
    format_ : str
        One of `FORMATS`.

    Raises
    ------
    BagError
        If the output cannot be written, or the format needs a package that is not installed.

    """
    write = {'npz': _write_npz, 'parquet': _write_parquet, 'minari': _write_minari}[format_]
    part = output.with_name(f'{output.name}.part')
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        write(dataset, output, part)
        os.replace(part, output)
    except ImportError as error:
        raise BagError(f'the format {format_} needs a package that is not installed '
                       f"({error.name}). Try: pip install 'mbrl_ros[{format_}]'") from error
    except OSError as error:
        raise BagError(f'{output}: cannot be written: {error.strerror or error}. Choose another '
                       '--output.') from error
    finally:
        with suppress(OSError):
            _remove(part)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)


def columns(dataset: Dataset) -> dict[str, np.ndarray]:
    """
    Return a dataset as columns of one row a state.

    Returns
    -------
    dict of str to ndarray
        `episode` and `step` (R,) int64, `time_ns` (R,) int64, then the fields of the state, of the
        action and, where reported, `reward` and `termination`, (R,) float64; not a number where
        there is no action.

    Raises
    ------
    BagError
        If a field of the robot has the name of another column.

    """
    robot, episodes = dataset.robot, dataset.episodes
    taken = sorted({*robot.state_names, *robot.action_names} & RESERVED)
    if taken:
        raise BagError(f'a column of the export is named {taken[0]} already. Give that field of '
                       'the robot spec another name.')
    sizes = [episode.num_steps + 1 for episode in episodes]
    step = np.concatenate([np.arange(size) for size in sizes])
    starts_ns = np.repeat([episode.start_ns for episode in episodes], sizes)
    found = {'episode': np.repeat(np.arange(len(episodes)), sizes), 'step': step,
             'time_ns': starts_ns + step * robot.dt_ns}
    states = np.concatenate([episode.states for episode in episodes])
    actions = _padded([episode.actions for episode in episodes])
    found |= dict(zip(robot.state_names, states.T, strict=True))
    found |= dict(zip(robot.action_names, actions.T, strict=True))
    if robot.reward is not None:
        found['reward'] = _padded([e.rewards for e in episodes if e.rewards is not None])
    if robot.termination is not None:
        found['termination'] = _padded([e.terminations for e in episodes
                                        if e.terminations is not None])
    return found


def _padded(pieces: list[np.ndarray]) -> np.ndarray:
    """Stack what belongs to steps, each piece followed by a row that is not a number."""
    return np.concatenate([np.concatenate([piece, np.full_like(piece[:1], np.nan)])
                           for piece in pieces])


def _about(dataset: Dataset) -> dict[str, str]:
    robot = dataset.robot
    return {'robot': robot.model_dump_json(), 'robot_spec_hash': robot.spec_hash(),
            'dt_s': repr(robot.dt_s), 'provenance': json.dumps(dataset.provenance()),
            'producer': f'mbrl_ros {__version__}'}


def _write_npz(dataset: Dataset, _: Path, part: Path) -> None:
    robot, named = dataset.robot, columns(dataset)
    arrays = {
        'states': np.stack([named[name] for name in robot.state_names], axis=1),
        'actions': np.stack([named[name] for name in robot.action_names], axis=1),
        'episode_starts': np.flatnonzero(named['step'] == 0), 'time_ns': named['time_ns'],
        'state_names': np.array(robot.state_names), 'action_names': np.array(robot.action_names),
        'state_units': np.array([field.unit for field in robot.observation]),
        'action_units': np.array([field.unit for field in robot.action]),
        'sources': np.array([episode.source for episode in dataset.episodes]),
        'about': np.array(json.dumps(_about(dataset)))}
    arrays |= {name: named[name] for name in ('reward', 'termination') if name in named}
    with part.open('wb') as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _write_parquet(dataset: Dataset, _: Path, part: Path) -> None:
    import pyarrow  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    robot, named = dataset.robot, columns(dataset)
    fields: dict[str, MessageField | None] = {
        field.name: field for field in (*robot.observation, *robot.action)}
    fields |= {'reward': robot.reward, 'termination': robot.termination}
    units = {'time_ns': 'ns'} | {name: field.unit for name, field in fields.items() if field}
    kinds = dict.fromkeys(robot.state_names, 'state') | dict.fromkeys(robot.action_names, 'action')
    no_action = np.append(named['step'][1:] == 0, True)
    arrays, schema = [], []
    for name, values in named.items():
        is_state = name in robot.state_names or values.dtype != np.float64
        arrays.append(pyarrow.array(values, mask=None if is_state else no_action))
        about = {'unit': units.get(name, '1'), 'kind': kinds.get(name, name)}
        schema.append(pyarrow.field(name, arrays[-1].type, not is_state, about))
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(
        arrays, schema=pyarrow.schema(schema, _about(dataset))), part)


def _write_minari(dataset: Dataset, output: Path, part: Path) -> None:
    from gymnasium.spaces import Box  # noqa: PLC0415
    import h5py  # noqa: F401, PLC0415 (what Minari stores with; it asks for it late)
    from minari.data_collector import EpisodeBuffer  # noqa: PLC0415
    from minari.dataset.minari_storage import MinariStorage  # noqa: PLC0415

    if not re.fullmatch(r'[-\w]+-v\d+', output.name):
        raise BagError(f'{output}: a Minari dataset is a folder with a name and a version, such '
                       f'as {output.with_name(f"{dataset.robot.name}-v0")}')
    if output.exists():
        raise BagError(f'{output}: exists. Give the next version, or delete it.')
    robot = dataset.robot
    part.mkdir()
    storage = MinariStorage.new(
        part / 'data', Box(-np.inf, np.inf, (len(robot.observation),), np.float64),
        Box(robot.action_min, robot.action_max, dtype=np.float64))
    storage.update_metadata({'dataset_id': output.name, 'minari_version': version('minari'),
                             **_about(dataset)})

    def buffer(number: int, episode: Episode) -> Any:
        steps = episode.num_steps
        ended = np.zeros(steps, bool) if episode.terminations is None \
            else episode.terminations != 0.0
        cut = np.zeros(steps, bool)
        cut[-1] = not ended[-1]
        # No reward was recorded: not zero, which would be one.
        rewards = np.full(steps, np.nan) if episode.rewards is None else episode.rewards
        return EpisodeBuffer(id=number, observations=episode.states, actions=episode.actions,
                             rewards=rewards, terminations=ended, truncations=cut)

    storage.update_episodes(buffer(number, episode)
                            for number, episode in enumerate(dataset.episodes))
