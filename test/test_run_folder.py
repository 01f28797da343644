"""A training run goes on where it was, and its folder tells what it was made from."""

import csv
import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_learning import make_dataset, SMALL

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.files import replace_file
from mbrl_ros.learning import checkpoint, report, run_folder
from mbrl_ros.learning.pipeline import train_model, UNFINISHED
from mbrl_ros.learning.run_folder import locked, RunFolder

CONFIG = SMALL.model_copy(update={'max_epochs': 5, 'hidden_units': (8, 8), 'members': 2})


class CutError(Exception):
    """Ends a training as a kill would, but for the process."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Leave out what takes most of the time and has tests of its own."""
    monkeypatch.setattr(report, 'render', lambda *_arguments, **_options: 'a page')


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'render', lambda *_arguments, **_options: 'a page')
        return train_model(make_dataset(), CONFIG, 0, tmp_path_factory.mktemp('undisturbed'))


@pytest.fixture
def cut(monkeypatch, tmp_path):
    """Return a function that trains, and is cut short after an epoch."""
    def train(epoch, **options):
        def log(self, training):
            original(self, training)
            if len(training.history) == epoch:
                raise CutError
        original = RunFolder.log
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, 'log', log)
            with pytest.raises(CutError):
                train_model(make_dataset(), CONFIG, 0, tmp_path, **options)
        return tmp_path / UNFINISHED
    return train


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_it_goes_on_with_the_next_epoch_and_ends_in_the_same_model(cut, undisturbed, tmp_path):
    for epoch in (1, 3):  # cut short twice
        unfinished = cut(epoch)
        assert [row['epoch'] for row in rows(unfinished / 'training.csv')] == [
            str(number + 1) for number in range(epoch)]
        assert json.loads((unfinished / 'run.json').read_text())['status'] == 'training'
    said = []
    model = train_model(make_dataset(), CONFIG, 0, tmp_path, say=said.append)
    assert said == ['resuming at epoch 4']
    assert model.path.read_bytes() == undisturbed.path.read_bytes()
    for name in ('training.csv', 'ensemble.npz', 'metrics.json', 'card.md'):
        assert (tmp_path / name).read_bytes() == \
            (undisturbed.path.parent / name).read_bytes(), name
    assert not (tmp_path / UNFINISHED).exists()
    run = json.loads((tmp_path / 'run.json').read_text())
    assert run['status'] == 'finished'
    assert run['model'] == model.hash
    assert [attempt['from_epoch'] for attempt in run['attempts']] == [1, 2, 4]
    assert 'ended_at' in run['attempts'][-1]
    assert run['made_from']['config'] == CONFIG.model_dump(mode='json')
    assert run['made_from']['dataset'] == make_dataset().hash
    assert (run['robot'], run['transitions'], run['epochs']) == ('cart', 300, 5)


def test_a_run_cut_short_after_its_last_epoch_trains_no_more(cut, undisturbed, tmp_path):
    cut(5)
    said = []
    model = train_model(make_dataset(), CONFIG, 0, tmp_path, say=said.append)
    assert said == ['the training was done; going on with its export']
    assert model.hash == undisturbed.hash


@pytest.mark.parametrize(('changes', 'seed', 'reason'), [
    ({'learning_rate': 1e-4}, 0, 'config learning_rate was 0.003, is 0.0001'),
    ({}, 1, 'seed was 0, is 1')])
def test_a_checkpoint_of_another_run_is_not_mixed_in(cut, tmp_path, changes, seed, reason):
    cut(2)
    said = []
    config = CONFIG.model_copy(update=changes | {'max_epochs': 1})
    model = train_model(make_dataset(), config, seed, tmp_path, say=said.append)
    assert 'of another run' in said[0]
    assert reason in said[0]
    assert 'Starting anew' in said[0]
    alone = train_model(make_dataset(), config, seed, tmp_path / 'alone')
    assert model.hash == alone.hash


def test_another_warm_start_is_another_run(undisturbed, tmp_path, cut):
    cut(2, warm_start=undisturbed.path.parent)
    said = []
    train_model(make_dataset(), CONFIG, 0, tmp_path, say=said.append)
    assert 'warm_start was' in said[0]
    with pytest.raises(ModelError, match='is the output too'):
        train_model(make_dataset(), CONFIG, 0, tmp_path, tmp_path)


@pytest.mark.parametrize('torn', [[0], [1], [0, 1]])
def test_a_torn_checkpoint_costs_an_epoch_and_two_the_run(cut, undisturbed, tmp_path, torn):
    unfinished = cut(3)
    for slot in torn:  # written over in place up to the middle, as by a kill
        path = unfinished / checkpoint.SLOTS[slot]
        data = bytearray(path.read_bytes())
        data[:len(data) // 2] = np.random.default_rng(0).bytes(len(data) // 2)
        path.write_bytes(data)
    said = []
    model = train_model(make_dataset(), CONFIG, 0, tmp_path, say=said.append)
    # Epoch 3 lies in file 1, epoch 2 in file 0.
    if torn == [0, 1]:
        assert 'cut short' in said[0]
        assert 'Starting anew' in said[0]
    else:
        assert said == [f'resuming at epoch {4 if torn == [0] else 3}']
    assert model.hash == undisturbed.hash


def test_two_trainings_do_not_share_a_folder(tmp_path):
    with locked(tmp_path / 'model'), pytest.raises(ModelError, match='another training'):
        train_model(make_dataset(), CONFIG, 0, tmp_path / 'model')
    (tmp_path / 'file').write_text('')
    with pytest.raises(ModelError, match='Choose another --output'):
        train_model(make_dataset(), CONFIG, 0, tmp_path / 'file')


def test_tensorboard_holds_the_history(cut, undisturbed, tmp_path):
    cut(3, tensorboard=True)
    train_model(make_dataset(), CONFIG, 0, tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    history = rows(undisturbed.path.parent / 'training.csv')
    for name in ('train_loss', 'holdout_loss', 'best_loss'):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert list(logged) == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(list(logged.values()),
                                   [float(row[name]) for row in history], rtol=1e-6)


def test_tensorboard_that_is_missing_is_refused_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(run_folder, 'find_spec', lambda _name: None)
    with pytest.raises(ModelError, match=r"pip install 'mbrl_ros\[tensorboard\]'"):
        train_model(make_dataset(), CONFIG, 0, tmp_path, tensorboard=True)


def test_a_replaced_file_takes_text_or_bytes_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / 'file.txt'
    (tmp_path / 'file.txt.new').write_text('a longer text, left by a process that was killed')
    replace_file(path, 'dt = 40 µs')
    assert path.read_text(encoding='utf-8') == 'dt = 40 µs'
    replace_file(path, b'\x00\x01')
    assert path.read_bytes() == b'\x00\x01'
    assert list(tmp_path.iterdir()) == [path]
