"""The comparison of trainers, without mbrl-lib."""

from contextlib import contextmanager
import json
from types import SimpleNamespace

from fakes import train
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mbrl_ros.bench import train as train_module
from mbrl_ros.bench.own_training import OwnTraining
from mbrl_ros.bench.train import compare_rates, first_as_good
from mbrl_ros.bench.trained import random_motion
from mbrl_ros.cli.main import app
from mbrl_ros.core.robot import load_robot
from mbrl_ros.learning.config import TrainingConfig

FIXED_NAMES = {
    'ours_samples_per_s', 'mbrl_lib_samples_per_s', 'ratio', 'ours_holdout_nll',
    'mbrl_lib_holdout_nll', 'mbrl_lib_seconds', 'ours_seconds_to_same_nll', 'time_ratio'}
NETWORK = {'members': 2, 'hidden_units': (8,), 'weight_decay': (0.0, 0.0), 'cycle_steps': 20}


@pytest.fixture(autouse=True)
def threads():
    """Undo what a comparison sets for the whole process."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])


@pytest.fixture
def sides():
    return random_motion(load_robot('cartpole'), 0, 8, 25).split_holdout(0.25, 0)


class FakeLib:
    """Takes a fixed time an epoch, and foresees every change exactly, give or take `std`."""

    def __init__(self, epoch_s, std=1.0):
        self._epoch_s, self._std, self.capped = epoch_s, std, []

    def info(self):
        return {'versions': {'mbrl': '0.2.0'}}

    def data(self, arrays, members, seed):
        change = arrays['holdout_next_states'] - arrays['holdout_states']
        self._mean = np.stack([change] * members)
        return {'batch_size': 256}

    def epochs(self, number):
        return np.full(number - 1, self._epoch_s)

    def fit(self, capped):
        self.capped.append(capped)
        return 10.0, 25, self._mean, np.full_like(self._mean, self._std)


def test_the_first_time_that_is_as_good():
    history = [(1.0, 0.5), (2.0, -1.0), (3.0, -0.5), (4.0, -2.0)]
    assert first_as_good(history, -1.0) == 2.0
    assert first_as_good(history, -1.5) == 4.0
    assert first_as_good(history, -2.5) is None


def test_a_score_is_in_units_of_a_typical_step(sides):
    training, holdout = sides
    ours = OwnTraining(training, holdout, 1)
    states, _, next_states = training.transitions()
    step_std = (next_states - states).std(axis=0)
    before, _, after = holdout.transitions()
    # Two members that foresee every change exactly, give or take a typical step: the density of
    # N(0, 1) at zero, whatever the units of the fields.
    mean = np.stack([after - before] * 2)
    exact = ours.nll(mean, np.broadcast_to(step_std, mean.shape))
    assert exact == pytest.approx(0.5 * np.log(2 * np.pi))
    # Of both members one std off, in opposite directions: 1/2 more.
    off = mean + np.array([1.0, -1.0])[:, None, None] * step_std
    assert ours.nll(off, np.broadcast_to(step_std, mean.shape)) == pytest.approx(exact + 0.5)


def test_scores_are_those_of_the_model_that_training_gives(sides):
    training, holdout = sides
    config = TrainingConfig(**NETWORK, batch_size=64)
    ours = OwnTraining(training, holdout, 1)
    epochs = list(ours.fit(config, 3))
    # 150 transitions of which blocks that touch none of the holdout lose none: 3 batches, so 20
    # steps are 7 epochs.
    assert [epoch.steps for epoch in epochs] == [3 * (i + 1) for i in range(7)]
    assert all(epoch.most_steps == 21 for epoch in epochs)
    seconds = [epoch.seconds for epoch in epochs]
    assert seconds == sorted(seconds)
    ensemble = train(training.robot, training.windows(1), holdout.windows(1), config, 3).ensemble
    states, actions, _ = holdout.transitions()
    with torch.no_grad():
        found = ensemble.predict(torch.tensor(states, dtype=torch.float32).expand(2, -1, -1),
                                 torch.tensor(actions, dtype=torch.float32).expand(2, -1, -1))
    expected = ours.nll(found['mean'].numpy() - states, found['std'].numpy())
    assert epochs[-1].nll == pytest.approx(expected, abs=1e-6)


def test_rates_are_of_medians(sides, monkeypatch):
    monkeypatch.setattr(train_module, 'NETWORK', NETWORK)
    ours, told = OwnTraining(*sides, 1), []
    found = compare_rates(ours, FakeLib(0.5), 150, 2, lambda *args: told.append(args))
    assert found['mbrl_lib_samples_per_s'] == pytest.approx(300.0)
    times = found['epoch_times_s']
    assert [len(times[name]) for name in ('float32', 'bf16', 'mbrl_lib')] == [6, 6, 6]
    assert found['ratio'] == pytest.approx(0.5 / np.median(times['float32']))
    assert found['ratio_bf16'] == pytest.approx(0.5 / np.median(times['bf16']))
    assert found['ours_samples_per_s'] == pytest.approx(300.0 * found['ratio'])
    assert len(told) == 6


@pytest.mark.parametrize(('epoch_s', 'std', 'quick', 'status'), [
    # A minute an epoch, and so unsure of itself that our first epoch is better.
    (60.0, 1e3, False, 0),
    (1e-9, 1e3, True, 1),  # faster than we can be
    (60.0, 1e-9, True, 1)])  # better than we can be
def test_the_verb(tmp_path, monkeypatch, epoch_s, std, quick, status):
    lib = FakeLib(epoch_s, std)

    @contextmanager
    def start(python, weights, threads):
        assert weights is None
        yield lib
    patch = {'NETWORK': NETWORK, 'MEMBERS': 2, 'EPISODES': 8,
             'load_client': lambda: SimpleNamespace(MbrlLib=start),
             'environment': lambda client, console: tmp_path}
    for name, value in patch.items():
        monkeypatch.setattr(train_module, name, value)
    monkeypatch.setattr(train_module.os, 'sched_getaffinity', lambda pid: {0})  # one thread
    path = tmp_path / 'made' / 'train.json'
    found = CliRunner().invoke(app, ['bench', 'train', '--versus', 'mbrl-lib', '--json', str(path),
                                     *(['--quick'] if quick else [])])
    assert found.exit_code == status, found.output
    assert ('missed' in found.output) == bool(status)
    results = json.loads(path.read_text())
    assert FIXED_NAMES - set(results) == set()
    assert lib.capped == ([True] if quick else [True, True, True, False])
    assert ('patient_time_ratio' in results) == (not quick)
    if std < 1.0:
        assert results['time_ratio'] is results['ours_seconds_to_same_nll'] is None
    else:
        assert results['time_ratio'] == pytest.approx(results['ours_seconds_to_same_nll'] / 10.0)
