"""The whole of training: dataset in, a folder with dynamics.onnx, its scores and its card out."""

from collections import Counter
import csv
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from mbrl_ros import __version__
from mbrl_ros.core.errors import ModelError
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.learning import card, export
from mbrl_ros.learning.calibration import calibrate
from mbrl_ros.learning.config import Activation, TrainingConfig
from mbrl_ros.learning.evaluation import evaluate, Evaluation, LONGEST_STEPS
from mbrl_ros.learning.plots import draw_quality
from mbrl_ros.learning.trainer import Progress, train, TrainingResult
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.dynamics import Dynamics

MODEL_FILE = 'dynamics.onnx'
WEIGHTS_FILE = 'ensemble.npz'


@dataclass(frozen=True)
class TrainedModel:
    """A model on disk: its file, the file's SHA-256, its scores and how long training ran."""

    path: Path
    hash: str
    evaluation: Evaluation
    steps: int


def train_model(dataset: Dataset, config: TrainingConfig, seed: int, output: Path,
                warm_start: Path | None = None, progress: Progress | None = None) -> TrainedModel:
    """
    Train, evaluate, export, check and write a model.

    Parameters
    ----------
    dataset : Dataset
        Episodes of one robot.
    config : TrainingConfig
        Network and optimiser.
    seed : int
        The same dataset, config and seed give the same dynamics.onnx, byte for byte.
    output : Path
        Folder for dynamics.onnx, ensemble.npz (for a warm start), metrics.json, card.md,
        training.csv and quality.png.
    warm_start : Path, optional
        Folder of an earlier model of the same robot, shape and activation.
    progress : callable, optional
        See `trainer.train`.

    Raises
    ------
    BagError, ModelError
        If the data are too few, training diverges, or the export differs from torch.

    """
    try:
        output.mkdir(parents=True, exist_ok=True)  # now, not after minutes of training
    except OSError as error:
        raise ModelError(f'{output}: cannot be a folder: {error.strerror}. Choose another '
                         '--output.') from error
    torch.use_deterministic_algorithms(True)
    robot = dataset.robot
    training, holdout = dataset.split_holdout(config.holdout_fraction, seed)
    result = train(robot, training.windows(1), holdout.windows(1), config, seed,
                   _load_weights(warm_start, config.activation), progress)
    state, action, _ = training.transitions()
    model = export.to_onnx(result.ensemble, len(robot.observation), len(robot.action))
    export.check(model, result.ensemble, state, action)
    state_std = np.maximum(state.std(axis=0), 1e-6)
    metadata: dict[str, Any] = {
        'robot': robot.name, 'signature': robot.signature(),
        'signature_hash': robot.signature_hash(), 'members': config.members,
        'hidden_units': list(config.hidden_units), 'activation': config.activation,
        'seed': seed, 'producer_version': __version__, 'state_std': state_std.tolist(),
        'step_std': result.ensemble.arrays()['target_std'].tolist(),
        'data': _provenance(dataset)}
    dynamics = Dynamics(model, metadata)
    held_out = [(e.states, e.actions) for e in holdout.episodes]
    scores = evaluate(dynamics, robot, held_out, state_std, LONGEST_STEPS, seed)
    metadata |= {'holdout': scores.to_dict(), 'spread_p99': scores.spread_p99,
                 'horizon': scores.horizon,
                 'trust': calibrate(dynamics, held_out, 'the held-out data', seed).to_dict()}
    sha = artifact.save(output / MODEL_FILE, model, metadata)
    arrays: dict[str, Any] = result.ensemble.arrays()
    np.savez(output / WEIGHTS_FILE, activation=config.activation, **arrays)
    (output / 'metrics.json').write_text(json.dumps(metadata | {'hash': sha}, indent=2) + '\n')
    (output / 'card.md').write_text(card.render(metadata))
    _write_history(output / 'training.csv', result)
    draw_quality(output / 'quality.png', scores, result.history)
    return TrainedModel(output / MODEL_FILE, sha, scores, result.steps)


def _provenance(dataset: Dataset) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for episode in dataset.episodes:
        counts[Path(episode.source).name] += episode.num_steps
    return {'hash': dataset.hash, 'losses': dataset.describe_losses(),
            'bags': [{'bag': bag, 'transitions': count, 'seconds': count * dataset.robot.dt_s}
                     for bag, count in counts.items()]}


def _load_weights(folder: Path | None,
                  activation: Activation) -> dict[str, np.ndarray] | None:
    if folder is None:
        return None
    path = folder / WEIGHTS_FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, BadZipFile) as error:
        raise ModelError(f'warm start: {path}: {error}. Give the folder that an earlier '
                         '`mbrl-ros train --output` wrote.') from error
    earlier = str(arrays.pop('activation', 'silu'))  # the only one, before it was written
    if earlier != activation:
        raise ModelError(f"warm start: {path}: trained with activation '{earlier}', not "
                         f"'{activation}'. Train with activation: {earlier}, or without a warm "
                         'start.')
    return arrays


def _write_history(path: Path, result: TrainingResult) -> None:
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, fieldnames=list(result.history[0]))
        writer.writeheader()
        writer.writerows(result.history)
