"""`bench pets`: what is computed of finished trials, and that runs go on where they ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from mbrl_ros.bench import pets, published
from mbrl_ros.bench.pets_plot import draw_returns
from mbrl_ros.bench.pets_run import finished, run, Settings, Trial
from mbrl_ros.bench.process import BenchError
from mbrl_ros.bench.published import Gate
from mbrl_ros.cli.main import app
from mbrl_ros.core.errors import SpecError
from mbrl_ros.learning import report
from mbrl_ros.learning.config import TrainingConfig

STEPS = 30
SHIPPED = Settings.of('cartpole', 0, '', 'default')


def small(seed=0, **changes):
    """The cart-pole with episodes, networks and training that take a second."""
    training = TrainingConfig(members=5, hidden_units=(8,), weight_decay=(1e-4, 1e-4),
                              max_epochs=3, min_steps=0)
    task = SHIPPED.task.model_copy(update={'episode_steps': STEPS, 'horizon': 5})
    return SHIPPED.model_copy(update={'seed': seed, 'training': training, 'task': task} | changes)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Leave out report.html, which takes longer than these trainings."""
    monkeypatch.setattr(report, 'render', lambda *_, **__: '')


def test_the_gates_are_those_that_were_published():
    # Chua et al.'s curves and what beats them: (trial, return), stretches apart.
    found = {task: ([(g.trial, g.threshold) for g in gates if not g.is_stretch],
                    [(g.trial, g.threshold) for g in gates if g.is_stretch])
             for task, gates in published.GATES.items()}
    assert found == {
        'cartpole': ([(5, 150.0), (8, 160.0), (9, 175.0), (15, 175.0)], [(4, 170.0)]),
        'reacher': ([(20, -60.0), (50, -45.0), (100, -45.0)], []),
        'pusher': ([(20, -85.0), (100, -75.0)], []),
        'half_cheetah': ([(50, 4000.0)], [(300, 10_000.0)])}


def trials_of(*returns):
    return [Trial(0, -5.0, 0), *(Trial(i, value, 80) for i, value in enumerate(returns, 1))]


def test_gates_judge_the_mean_of_max_so_far(monkeypatch):
    monkeypatch.setitem(published.GATES, 'cartpole', (
        Gate(1, 10.0), Gate(2, 15.0), Gate(2, 15.1, is_stretch=True), Gate(3, 99.0)))
    runs = [trials_of(8.0, 20.0), trials_of(12.0, 2.0)]
    found = pets.summarise('cartpole', small(), runs)
    # Max so far: 8, 20 and 12, 12; the random episodes do not count; trial 3 was not reached.
    assert found['max_so_far_mean'] == [10.0, 16.0]
    assert {name: (gate['value'], gate['threshold'], gate['passed'])
            for name, gate in found['gates'].items()} == {
        'trial_1': (10.0, 10.0, True), 'trial_2': (16.0, 15.0, True),
        'trial_2_stretch': (16.0, 15.1, True)}
    assert found['passed']
    assert found['returns'] == [[8.0, 20.0], [12.0, 2.0]]
    assert found['random_returns'] == [-5.0, -5.0]
    # 80 candidates of 5 particles and 5 steps; 3 episodes of 30 steps at 25 Hz.
    assert found['evaluations_per_plan'] == 2000
    assert found['robot_seconds'] == pytest.approx(3.6)
    # A missed stretch fails nothing; a missed gate does.
    assert pets.summarise('cartpole', small(), [trials_of(11.0, 15.05)])['passed']
    assert not pets.summarise('cartpole', small(), [trials_of(11.0, 14.0)])['passed']


def test_max_so_far_never_falls_and_ends_at_the_best():
    returns = np.random.default_rng(0).normal(size=(3, 40))
    best = pets.summarise('cartpole', small(), [trials_of(*row) for row in returns])[
        'max_so_far_mean']
    assert np.all(np.diff(best) >= 0.0)
    assert best[-1] == pytest.approx(returns.max(axis=1).mean())


def test_a_run_is_a_function_of_its_settings_and_goes_on(tmp_path):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    run(small(), 2, whole)
    run(small(), 1, parts)
    assert [trial.number for trial in finished(parts)] == [0, 1]
    # As a kill leaves it: the trial is not whole, whatever else lies there.
    (parts / 'trial_001' / 'trial.json').unlink()
    assert [trial.number for trial in finished(parts)] == [0]
    run(small(), 2, parts)
    assert finished(parts) == finished(whole)
    assert [trial.candidates for trial in finished(whole)] == [0, 80, 80]
    for number in range(3):
        name = f'trial_{number:03d}/episode.npz'
        with np.load(whole / name) as one, np.load(parts / name) as other:
            assert one['states'].shape == (STEPS + 1, 4)
            np.testing.assert_array_equal(one['states'], other['states'])
            np.testing.assert_array_equal(one['actions'], other['actions'])
    # What is done is not done again.
    stamp = (whole / 'trial_001' / 'trial.json').stat().st_mtime_ns
    run(small(), 2, whole)
    assert (whole / 'trial_001' / 'trial.json').stat().st_mtime_ns == stamp
    with pytest.raises(SpecError, match=r'begun with other settings .*settings\.json'):
        run(small(seed=1), 2, whole)


def test_runs_beside_each_other_then_numbers_and_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(Settings, 'of', lambda task, seed, *_: small(seed))
    told = []
    result = pets.bench('cartpole', 2, 1, '', 'default', 2, tmp_path,
                        lambda *given: told.append(given), known_model=False)
    assert told[-1][:2] == (4, 4)
    assert np.shape(result['returns']) == (2, 1)
    assert result['returns'][0] != result['returns'][1]
    assert json.loads(json.dumps(result)) == result
    assert result['known_model_returns'] == []
    draw_returns(tmp_path / 'pets.png', result)
    assert (tmp_path / 'pets.png').read_bytes().startswith(b'\x89PNG')


def test_a_run_that_fails_says_what_it_said(tmp_path, monkeypatch):
    # Ten members cannot share five particles: each run is refused when it plans.
    broken = small(training=small().training.model_copy(update={'members': 10}))
    monkeypatch.setattr(Settings, 'of', lambda task, seed, *_: broken)
    with pytest.raises(BenchError, match=r'(?s)seed 0: exit status 1 .*log\.txt.*5 cannot be'):
        pets.bench('cartpole', 1, 1, '', 'default', 1, tmp_path, lambda *_: None,
                   known_model=False)


def test_a_kill_loses_no_finished_trial(tmp_path):
    settings = small()
    command = [sys.executable, '-m', 'mbrl_ros.bench.pets_run', settings.model_dump_json(), '50',
               str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE,
                               env=os.environ | {'OMP_NUM_THREADS': '1'})
    try:
        end = time.monotonic() + 60.0
        while len(finished(tmp_path)) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(SpecError, match='another process runs trials here'):
            run(settings, 3, tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = finished(tmp_path)
    assert len(done) >= 2
    run(settings, len(done), tmp_path)  # one more
    assert finished(tmp_path)[:len(done)] == done
    assert len(finished(tmp_path)) == len(done) + 1


@pytest.mark.parametrize(('value', 'status'), [(160.0, 0), (140.0, 1)])
def test_the_exit_status_is_that_of_the_gates(tmp_path, monkeypatch, value, status):
    # Five finished trials: nothing is left to run.
    folder = tmp_path / 'seed_0'
    run(small(), 0, folder)
    for number in range(1, 6):
        shutil.copytree(folder / 'trial_000', folder / f'trial_{number:03d}')
        (folder / f'trial_{number:03d}' / 'trial.json').write_text(json.dumps(
            {'number': number, 'total_return': value, 'candidates': 80}))
    monkeypatch.setattr(Settings, 'of', lambda task, seed, *_: small(seed))
    numbers = tmp_path / 'numbers.json'
    done = CliRunner().invoke(app, [
        'bench', 'pets', '--task', 'cartpole', '--seeds', '1', '--trials', '5', '--output',
        str(tmp_path), '--json', str(numbers), '--no-known-model'])
    assert done.exit_code == status, done.output
    found = json.loads(numbers.read_text())
    assert found['gates']['trial_5'] == {
        'value': value, 'threshold': 150.0, 'passed': status == 0, 'trial': 5,
        'is_stretch': False}
    assert ('met' if status == 0 else 'missed') in done.output
    assert (tmp_path / 'pets.png').is_file()
