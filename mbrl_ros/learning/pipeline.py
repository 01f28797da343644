"""The whole of training: dataset in, a folder with dynamics.onnx, its scores and its card out."""

from dataclasses import dataclass, replace
from hashlib import sha256
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from mbrl_ros import __version__
from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.files import replace_file
from mbrl_ros.core.paths import MODEL_FILE
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.learning import card, export, report, unseen
from mbrl_ros.learning.calibration import calibrate
from mbrl_ros.learning.checkpoint import npz
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.learning.evaluation import evaluate, Evaluation, pairs
from mbrl_ros.learning.heads import score_heads
from mbrl_ros.learning.one_step import OneStep
from mbrl_ros.learning.open_loop import LONGEST_STEPS
from mbrl_ros.learning.recalibration import Recalibration
from mbrl_ros.learning.recipe import Recipe, WEIGHTS_FILE
from mbrl_ros.learning.region import Region
from mbrl_ros.learning.run_folder import locked, RunFolder, Say, TENSORBOARD
from mbrl_ros.learning.trainer import Progress, Training, TrainingResult
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.dynamics import Dynamics

UNFINISHED = 'unfinished'


@dataclass(frozen=True)
class TrainedModel:
    """A model on disk: its file, the file's SHA-256, its scores and how long training ran."""

    path: Path
    hash: str
    evaluation: Evaluation
    steps: int


@dataclass(frozen=True)
class Fitted:
    """
    A network that is trained and exported.

    Attributes
    ----------
    result : TrainingResult
        Weights and history.
    model : onnx.ModelProto
        The same network; what is scored is what will drive.
    metadata : dict
        What is known of the model before it is scored.

    """

    result: TrainingResult
    model: onnx.ModelProto
    metadata: dict[str, Any]

    def evaluate(self, dataset: Dataset, seed: int, recalibration: Recalibration | None = None,
                 newest: np.ndarray | None = None) -> Evaluation:
        """Score the model on held-out data; parameters: see `evaluation.evaluate`."""
        return evaluate(Dynamics(self.model, self.metadata), dataset.robot, pairs(dataset),
                        np.array(self.metadata['state_std']), LONGEST_STEPS, seed,
                        region=Region.from_dict(self.metadata['region']),
                        recalibration=recalibration, newest=newest)

    def recalibrate(self, recipe: Recipe) -> 'tuple[Fitted, Recalibration]':
        """Return the model with the std of each field fitted to the held-out data."""
        episodes = pairs(recipe.parts.tested)
        recalibration = Recalibration.fit(
            OneStep.predict(Dynamics(self.model, self.metadata), episodes), episodes, recipe.seed)
        ensemble = self.result.ensemble
        ensemble.std_factor, ensemble.std_power = (
            torch.tensor(values, dtype=torch.float32) for values in recalibration.shape)
        return replace(self, model=_export(ensemble, recipe.parts.training)), recalibration


def train_model(dataset: Dataset, config: TrainingConfig, seed: int, output: Path,
                warm_start: Path | None = None, progress: Progress | None = None, *,
                device: str = 'cpu', tensorboard: bool = False,
                selection: dict[str, Any] | None = None,
                say: Say = lambda _: None) -> TrainedModel:
    """
    Train, evaluate, export, check and write a model.

    Parameters
    ----------
    dataset, config, seed, warm_start, device
        See `Recipe`.
    output : Path
        Folder for dynamics.onnx, ensemble.npz (for a warm start), metrics.json, card.md,
        training.csv, run.json and report.html. A run that is killed leaves what it had in
        unfinished/ there, and goes on when it is called again.
    progress : callable, optional
        Called with (step, most steps, mean of the members' best holdout loss).
    tensorboard : bool
        Write event files to tensorboard/ in the folder too.
    selection : dict, optional
        How the config was chosen by its score on the holdout, for the metadata. The scores then
        come from data that were held out from that too.
    say : callable, optional
        Called with a line that a person should read.

    Raises
    ------
    BagError, ModelError
        If the data are too few, training diverges, or the export differs from torch.

    Notes
    -----
    dynamics.onnx comes last, each file at once: where it is new, all that tells of it is there,
    and metrics.json names the hash of the file that it belongs to.

    """
    if warm_start is not None and warm_start.resolve() == output.resolve():
        raise ModelError(f'warm start: {output} is the output too: a run that is cut short could '
                         'not go on from a start that it has begun to replace. Choose another '
                         '--output.')
    recipe = Recipe(dataset, config, seed, warm_start, device, selection is not None)
    ancestors = recipe.ancestors()
    with locked(output):
        run = RunFolder(output / UNFINISHED, recipe.identity(), describe_data(dataset),
                        output / TENSORBOARD if tensorboard else None)
        fitted, recalibration = fit(recipe, run, progress, say).recalibrate(recipe)
        tested = recipe.parts.tested
        dynamics, held_out = Dynamics(fitted.model, fitted.metadata), pairs(tested)
        data = dataset.provenance(recipe.parts.used, tested) | {'ancestors': ancestors}
        flattered = unseen.seen_before(data['bags'], ancestors)
        if flattered:
            say(f'the warm start was trained on held-out data of {", ".join(flattered)}: the '
                'scores flatter. Score the model on a new bag: mbrl-ros evaluate')
        scores = fitted.evaluate(tested, seed, recalibration, dataset.episodes[-1].actions)
        trust = calibrate(dynamics, held_out, 'the held-out data', seed)
        metadata = fitted.metadata | {
            'holdout': scores.to_dict(), 'spread_p99': scores.spread_p99,
            'heads': score_heads(dynamics, tested.windows(1)),
            'horizon': scores.horizon, 'trust': trust.to_dict(), 'selection': selection,
            'data': data}
        metrics, metadata['card'] = metadata.copy(), card.render(metadata)
        model = artifact.serialise(fitted.model, metadata)
        sha, result = sha256(model).hexdigest(), fitted.result
        files: dict[str, str | bytes] = {
            WEIGHTS_FILE: npz({'activation': np.array(config.activation),
                               **result.ensemble.arrays()}),
            'metrics.json': json.dumps(metrics | {'hash': sha}, indent=2) + '\n',
            'card.md': metadata['card'],
            'report.html': report.render(
                dynamics, dataset.robot, held_out, scores, metadata, data='Held-out data',
                seed=seed, history=result.history),
            **run.finish(result.history, epochs=result.epochs, steps=result.steps, model=sha)}
        for name, content in [*files.items(), (MODEL_FILE, model)]:
            replace_file(output / name, content)
        run.remove()
    return TrainedModel(output / MODEL_FILE, sha, scores, result.steps)


def fit(recipe: Recipe, run: RunFolder, progress: Progress | None, say: Say) -> Fitted:
    """
    Train and export, and keep each epoch in a run folder.

    Raises
    ------
    BagError, ModelError
        If the data are too few, training diverges, or the export differs from torch.

    """
    torch.use_deterministic_algorithms(True)
    config, robot, parts = recipe.config, recipe.dataset.robot, recipe.parts
    steps = config.loss_steps
    training = Training(robot, parts.training.windows(steps), parts.holdout.windows(steps),
                        config, recipe.seed, recipe.weights(), recipe.device)
    run.resume(training, say)

    def keep(row: dict[str, float]) -> None:
        run.log(training)
        if progress is not None:
            progress(int(row['step']), training.most_steps, row['best_loss'])
    result = training.run(keep)
    state, action, _ = parts.training.transitions()
    return Fitted(result, _export(result.ensemble, parts.training), {
        'robot': robot.name, 'signature': robot.signature(),
        'signature_hash': robot.signature_hash(), 'robot_spec_hash': robot.spec_hash(),
        'members': config.members, 'hidden_units': list(config.hidden_units),
        'activation': config.activation, 'probabilistic': config.probabilistic,
        'loss_steps': steps, 'seed': recipe.seed, 'producer_version': __version__,
        'state_std': np.maximum(state.std(axis=0), 1e-6).tolist(),
        'step_std': result.ensemble.step_std.tolist(),
        'region': Region.of(robot, state, action).to_dict()})


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Return what a run is trained on, in words and numbers that a person will look for."""
    return {'robot': dataset.robot.name, 'transitions': dataset.num_transitions,
            'episodes': len(dataset.episodes), 'robot_seconds': dataset.seconds,
            'sources': list(dict.fromkeys(episode.source for episode in dataset.episodes))}


def _export(ensemble: Ensemble, dataset: Dataset) -> onnx.ModelProto:
    """Write the ensemble as a graph, checked on real transitions."""
    state, action, _ = dataset.transitions()
    model = export.to_onnx(ensemble, state.shape[1], action.shape[1])
    export.check(model, ensemble, state, action)
    return model
