"""A sweep finds the better settings, goes on after a kill, and scores on data of its own."""

import csv
import json

import numpy as np
import pytest
from test_learning import make_dataset, SMALL

from mbrl_ros.core.errors import ModelError, SpecError
from mbrl_ros.core.paths import find_config
from mbrl_ros.core.yaml_file import load
from mbrl_ros.learning import report
from mbrl_ros.learning import sweep as sweeps
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.recipe import Recipe
from mbrl_ros.learning.run_folder import locked, RunFolder
from mbrl_ros.learning.sweep import load_space, Space, sweep, Trial
from mbrl_ros.runtime import artifact

CONFIG = SMALL.model_copy(update={'max_epochs': 2, 'hidden_units': (8, 8), 'members': 2})
SPACE = Space.model_validate({'learning_rate': {'low': 1e-4, 'high': 1e-1, 'log': True},
                              'batch_size': {'low': 16, 'high': 64},
                              'hidden_units': {'choices': [[4, 4], [8, 8]]}})


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Leave out what takes most of the time and has tests of its own."""
    monkeypatch.setattr(report, 'render', lambda *_arguments, **_options: 'a page')


def recipe():
    return Recipe(make_dataset((0, 1, 2, 3)), CONFIG, 0)


def test_a_sweep_that_is_cut_short_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    model, trials = sweep(recipe(), SPACE, 4, tmp_path / 'whole')
    assert len({json.dumps(trial.values) for trial in trials}) == 4
    for trial in trials:
        assert 1e-4 <= trial.values['learning_rate'] <= 1e-1
        assert trial.values['batch_size'] in range(16, 65)
    best = min(trials, key=lambda trial: trial.error)
    metadata = artifact.load(model.path, recipe().dataset.robot).metadata
    assert metadata['hidden_units'] == best.values['hidden_units']
    assert metadata['selection']['best_trial'] == best.number
    assert metadata['selection']['holdout_error'] == best.error
    with (tmp_path / 'whole' / 'sweep.csv').open() as file:
        table = list(csv.DictReader(file))
    assert [float(row['error']) for row in table] == [trial.error for trial in trials]
    assert (tmp_path / 'whole' / 'sweep.png').read_bytes().startswith(b'\x89PNG')

    epochs = []

    def log(self, training):
        original(self, training)
        epochs.append(len(training.history))
        if len(epochs) == 3:  # the first epoch of the second trial
            raise KeyboardInterrupt
    original = RunFolder.log
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, 'log', log)
        with pytest.raises(KeyboardInterrupt):
            sweep(recipe(), SPACE, 4, tmp_path / 'cut')
        resumed, again = sweep(recipe(), SPACE, 4, tmp_path / 'cut', say=said.append)
    assert said == ['resuming at epoch 2', 'the training was done; going on with its export']
    assert len(epochs) == 4 * CONFIG.max_epochs  # none twice
    assert again == trials
    assert resumed.hash == model.hash
    # Fewer than were asked for at first, then more: the trials that are there count.
    more = sweep(recipe(), SPACE, 5, tmp_path / 'cut')[1]
    assert more[:4] == trials
    # Other settings beside those searched over make another sweep.
    other = Recipe(make_dataset((0, 1, 2, 3)), CONFIG.model_copy(update={'max_epochs': 1}), 0)
    said.clear()
    found = sweep(other, SPACE, 1, tmp_path / 'cut', say=said.append)[1]
    assert 'of another sweep: config max_epochs was 2, is 1' in said[0]
    assert len(found) == 1


def test_the_final_scores_come_from_data_of_their_own():
    chosen = Recipe(make_dataset(tuple(range(4))), CONFIG, 0, is_selected=True).parts
    plain = recipe().parts
    assert plain.tested is plain.holdout
    # What scores the model is the same as without a sweep; the rest is split once more.
    assert [e.start_ns for e in chosen.tested.episodes] == \
        [e.start_ns for e in plain.tested.episodes]
    seen = [{state.tobytes() for episode in part.episodes for state in episode.states}
            for part in chosen]
    # Each episode begins at the same state, which is no one's secret.
    start = {episode.states[0].tobytes() for episode in recipe().dataset.episodes}
    for number, one in enumerate(seen):
        assert len(one) > 20
        for other in seen[number + 1:]:
            assert one & other <= start


@pytest.mark.parametrize(('text', 'reason'), [
    ('', 'no setting to search over'),
    ('rate: {low: 1, high: 2}', "'rate' cannot be searched over. Allowed: .*learning_rate"),
    ('holdout_fraction: {low: 0.1, high: 0.2}', "'holdout_fraction' cannot be searched over"),
    ('learning_rate: {low: 0.1, high: 0.01}', 'give low < high, or choices'),
    ('learning_rate: {low: 0.0, high: 0.1, log: true}', 'log: true needs low > 0'),
    ('learning_rate: {choices: [0.1], low: 0.1}', 'not both'),
    ('learning_rate: {min: 0.1}', "unknown key 'min'"),
    ('learning_rate: {choices: []}', 'at least 1 item'),
    ('learning_rate: {low: -1.0, high: 0.1}', 'learning_rate: -1.0 is not allowed: .*greater'),
    ('hidden_units: {choices: [[8]]}', 'weight_decay needs one value a layer')])
def test_a_space_that_cannot_be_searched_is_refused(tmp_path, text, reason):
    path = tmp_path / 'space.yaml'
    path.write_text(text)
    with pytest.raises(SpecError, match=reason):
        load_space(path, CONFIG)


def test_the_shipped_space_fits_the_shipped_settings():
    settings = load(find_config('training', 'default'), TrainingConfig)
    space = load_space(find_config('sweeps', 'default'), settings)
    # The shipped settings lie inside: a sweep searches around them.
    for name, values in space.root.items():
        value = settings.model_dump(mode='json')[name]
        assert value in values.choices if values.choices else values.low < value < values.high


def test_refusals(tmp_path, monkeypatch):
    def diverge(*_arguments):
        raise ModelError('training diverged')
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, 'fit', diverge)
        with pytest.raises(ModelError, match=r'no trial of the sweep succeeded.*diverged'):
            sweep(recipe(), SPACE, 2, tmp_path)
    monkeypatch.setattr(sweeps, 'find_spec', lambda _name: None)
    with pytest.raises(ModelError, match=r"pip install 'mbrl_ros\[sweep\]'"):
        sweep(recipe(), SPACE, 2, tmp_path)


def test_a_trial_whose_prediction_diverges_does_not_end_the_sweep(tmp_path, monkeypatch):
    def diverge_once(*arguments):
        monkeypatch.setattr(sweeps, 'k_step_errors', original)
        return [row | {'error': np.nan} for row in original(*arguments)]
    original = sweeps.k_step_errors
    monkeypatch.setattr(sweeps, 'k_step_errors', diverge_once)
    model, (first, second) = sweep(recipe(), SPACE, 2, tmp_path)
    assert (first.error, first.refusal) == (None, 'the open-loop prediction diverges')
    metadata = artifact.load(model.path, recipe().dataset.robot).metadata
    assert metadata['selection']['best_trial'] == second.number


def test_a_sweep_leaves_a_folder_alone_that_another_training_writes_to(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, '_run', lambda _recipe, number, values, *_:
                        Trial(number, values, 0.5))
    with locked(tmp_path), pytest.raises(ModelError, match='another training'):
        sweep(recipe(), SPACE, 1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['sweep']
