"""Search for training settings: many trainings, the best one's model, and a score of its own."""

from collections.abc import Callable
import csv
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import BytesIO, StringIO
import json
from pathlib import Path
import shutil
from typing import Any

from matplotlib.figure import Figure
import numpy as np
from pydantic import Field, model_validator, RootModel, TypeAdapter, ValidationError

from mbrl_ros.core.errors import ModelError, SpecError
from mbrl_ros.core.files import replace_file
from mbrl_ros.core.yaml_file import load, Strict
from mbrl_ros.learning import checkpoint
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.evaluation import pairs
from mbrl_ros.learning.open_loop import k_step_errors, LONGEST_STEPS
from mbrl_ros.learning.pipeline import describe_data, fit, train_model, TrainedModel, UNFINISHED
from mbrl_ros.learning.recipe import Recipe
from mbrl_ros.learning.run_folder import locked, RunFolder, Say
from mbrl_ros.learning.trainer import Progress
from mbrl_ros.runtime.dynamics import Dynamics

FOLDER, TRIALS_FILE, TABLE_FILE, PLOT_FILE = 'sweep', 'trials.json', 'sweep.csv', 'sweep.png'
# Another split would make scores of trials that do not compare.
FIXED = ('holdout_fraction',)


class Range(Strict):
    """
    Values to try for one setting: from low to high, or one of the choices.

    Attributes
    ----------
    low, high : int or float, optional
        Both ends are tried; whole numbers between whole numbers.
    log : bool
        Spread over orders of magnitude.
    choices : tuple, optional
        Any values that the setting takes.

    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = Field(None, min_length=1)

    @model_validator(mode='after')
    def _check(self) -> 'Range':
        if self.choices is not None:
            if (self.low, self.high, self.log) != (None, None, False):
                raise ValueError('give choices, or low and high, not both')
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError('give low < high, or choices')
        elif self.log and self.low <= 0:
            raise ValueError('log: true needs low > 0')
        return self

    @property
    def corners(self) -> tuple[Any, ...]:
        """Values that must be allowed for all of them to be."""
        return (self.low, self.high) if self.choices is None else self.choices


class Space(RootModel[dict[str, Range]]):
    """The settings to search over, by name."""


@dataclass(frozen=True)
class Trial:
    """
    One training of a sweep.

    Attributes
    ----------
    number : int
        From zero.
    values : dict
        The settings that were tried.
    error : float or None
        Open-loop error on the holdout [state deviations]; None if it was refused.
    epochs : int
        That it ran.
    refusal : str
        Why it was refused.

    """

    number: int
    values: dict[str, Any]
    error: float | None
    epochs: int = 0
    refusal: str = ''

    def describe(self) -> str:
        """Return one line."""
        found = self.refusal if self.error is None else f'error {self.error:.4f}'
        return f'trial {self.number}: {found}; ' + ', '.join(
            f'{name} {value}' for name, value in self.values.items())


_TRIALS = TypeAdapter(list[Trial])


def load_space(path: Path, config: TrainingConfig) -> Space:
    """
    Read a search space, and check that the settings allow all of it.

    Raises
    ------
    SpecError
        If a name is not a setting, or a value is not allowed beside the other settings.

    """
    space = load(path, Space)
    allowed = [name for name in TrainingConfig.model_fields if name not in FIXED]
    if not space.root:
        raise SpecError(f'{path}: no setting to search over. Allowed: {", ".join(allowed)}.')
    for name, values in space.root.items():
        if name not in allowed:
            raise SpecError(f"{path}: '{name}' cannot be searched over. Allowed: "
                            f'{", ".join(allowed)}.')
        for value in values.corners:
            try:
                _with(config, {name: value})
            except ValidationError as error:
                raise SpecError(f'{path}: {name}: {value} is not allowed: '
                                f'{error.errors()[0]["msg"]}.') from error
    return space


def sweep(recipe: Recipe, space: Space, num_trials: int, output: Path,
          progress: Progress | None = None, report: Callable[[Trial], None] = lambda _: None,
          say: Say = lambda _: None) -> tuple[TrainedModel, list[Trial]]:
    """
    Try settings, and write the model of the best.

    Parameters
    ----------
    recipe : Recipe
        Its config holds the settings that are not searched over.
    space : Space
        See `load_space`.
    num_trials : int
        In all: a sweep that was killed, or had fewer, goes on to this number.
    output : Path
        As of `train_model`; sweep.csv and sweep.png tell of all trials.
    progress, say : callable, optional
        See `train_model`.
    report : callable, optional
        Called with each trial that is done, earlier ones too.

    Raises
    ------
    BagError, ModelError
        If optuna is not installed, the data are too few to hold some out twice, or no trial
        succeeds.

    Notes
    -----
    The objective is the open-loop error after as many steps as the held-out episodes have, at
    most 25: one-step scores do not foretell control. The best of many such scores flatters, so
    the final ones come from data that no trial was trained, stopped or chosen on.

    trials.json is the sweep's memory, and every trial a run folder of its own. The sampler (TPE)
    is seeded anew for each trial and sees only the trials before: a killed sweep asks again for
    the same settings, and that training goes on where it was.

    """
    if find_spec('optuna') is None:
        raise ModelError("optuna is not installed. Try: pip install 'mbrl_ros[sweep]', or train "
                         'without --sweep.')
    recipe = replace(recipe, is_selected=True)
    folder = output / FOLDER
    identity = {**recipe.identity(), 'space': space.model_dump(mode='json')}
    with locked(folder):
        trials = _read(folder / TRIALS_FILE, identity, say)
        for trial in trials:
            report(trial)
        for number in range(len(trials), num_trials):
            values = _ask(space, trials, recipe.seed)
            trial = _run(replace(recipe, config=_with(recipe.config, values)), number, values,
                         folder / f'trial_{number:03d}', progress, say)
            trials.append(trial)
            replace_file(folder / TRIALS_FILE, json.dumps(
                {'identity': identity, 'trials': _TRIALS.dump_python(trials)}, indent=2) + '\n')
            report(trial)
        good = [trial for trial in trials if trial.error is not None]
        if not good:
            raise ModelError('no trial of the sweep succeeded; the last one: '
                             f'{trials[-1].refusal}')
        best = min(good, key=lambda trial: trial.error or 0.0)
        with locked(output):  # only here: train_model takes the lock itself
            replace_file(output / TABLE_FILE, _table(trials))
            replace_file(output / PLOT_FILE, _plot(trials))
            # The training itself is done: its checkpoint, at the last epoch, is all it needs.
            (output / UNFINISHED).mkdir(exist_ok=True)
            for name in checkpoint.SLOTS:
                if (source := folder / f'trial_{best.number:03d}' / name).exists():
                    replace_file(output / UNFINISHED / name, source.read_bytes())
        model = train_model(
            recipe.dataset, _with(recipe.config, best.values), recipe.seed, output,
            recipe.warm_start, progress, device=recipe.device, say=say, selection={
                'trials': len(trials), 'best_trial': best.number, 'values': best.values,
                'holdout_error': best.error, 'space': space.model_dump(mode='json')})
        for trial_folder in folder.glob('trial_*'):
            for name in checkpoint.SLOTS:
                (trial_folder / name).unlink(missing_ok=True)
    return model, trials


def _with(config: TrainingConfig, values: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig.model_validate(config.model_dump() | values)


def _ask(space: Space, trials: list[Trial], seed: int) -> dict[str, Any]:
    """Return the settings to try next: they depend on the trials so far and the seed alone."""
    import optuna  # noqa: PLC0415 (an extra)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed + len(trials)))
    distributions = {name: _distribution(values) for name, values in space.root.items()}
    for trial in trials:
        if trial.error is not None:
            study.add_trial(optuna.trial.create_trial(
                params={name: _encode(space.root[name], value)
                        for name, value in trial.values.items()},
                distributions=distributions, value=trial.error))
    asked = study.ask(distributions).params
    return {name: json.loads(asked[name]) if space.root[name].choices else asked[name]
            for name in space.root}


def _distribution(values: Range) -> Any:
    from optuna import distributions  # noqa: PLC0415 (an extra)

    if values.low is None or values.high is None:
        return distributions.CategoricalDistribution(
            [_encode(values, choice) for choice in values.corners])
    if isinstance(values.low, int) and isinstance(values.high, int):
        return distributions.IntDistribution(values.low, values.high, log=values.log)
    return distributions.FloatDistribution(values.low, values.high, log=values.log)


def _encode(values: Range, value: Any) -> Any:
    # Optuna's choices are plain values; lists go through as text.
    return json.dumps(value) if values.choices else value


def _run(recipe: Recipe, number: int, values: dict[str, Any], folder: Path,
         progress: Progress | None, say: Say) -> Trial:
    run = RunFolder(folder, recipe.identity(), describe_data(recipe.dataset))
    try:
        fitted = fit(recipe, run, progress, say)
    except ModelError as error:  # such as a learning rate that diverges
        return Trial(number, values, None, refusal=str(error))
    score = k_step_errors(
        Dynamics(fitted.model, fitted.metadata), pairs(recipe.parts.holdout),
        np.array(fitted.metadata['state_std']), LONGEST_STEPS, recipe.seed)[-1]['error']
    if not np.isfinite(score):
        return Trial(number, values, None, fitted.result.epochs,
                     'the open-loop prediction diverges')
    return Trial(number, values, score, fitted.result.epochs)


def _read(path: Path, identity: dict[str, Any], say: Say) -> list[Trial]:
    """Return the trials of a sweep that was begun, if it is this one."""
    try:
        content = json.loads(path.read_text())
        differences = checkpoint.differing(content['identity'], json.loads(json.dumps(identity)))
        if not differences:
            return _TRIALS.validate_python(content['trials'])
        say(f'{path}: of another sweep: {"; ".join(differences)}. Starting anew.')
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError) as error:
        say(f'{path}: damaged: {error}. Starting anew.')
    for old in path.parent.glob('trial_*'):
        shutil.rmtree(old)
    return []


def _table(trials: list[Trial]) -> str:
    text = StringIO()
    names = list(trials[0].values)
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['trial', 'error', 'epochs', *names, 'refusal'])
    for trial in trials:
        writer.writerow([trial.number, trial.error, trial.epochs,
                         *(json.dumps(trial.values[name]) for name in names), trial.refusal])
    return text.getvalue()


def _plot(trials: list[Trial]) -> bytes:
    """Draw the error of each trial, and the best so far."""
    good = [(trial.number, trial.error) for trial in trials if trial.error is not None]
    numbers, errors = zip(*good, strict=True)
    figure = Figure(figsize=(6, 3.8), layout='constrained')
    axes = figure.subplots()
    axes.plot(numbers, errors, 'o', label='trial')
    axes.step(numbers, [min(errors[:i + 1]) for i in range(len(errors))], where='post',
              label='best so far')
    axes.set(title='Open-loop error on the holdout', xlabel='trial',
             ylabel='RMS [state deviations]', yscale='log')
    axes.legend(fontsize='small')
    picture = BytesIO()
    figure.savefig(picture, dpi=110)
    return picture.getvalue()
