"""The main job, end to end: the command a newcomer runs, over real DDS, in lock-step."""

import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mbrl_ros.cli.main import app
from mbrl_ros.core.robot import load_robot
from mbrl_ros.data.dataset import load_dataset

TRIAL_KEYS = {'trial', 'robot_seconds', 'return', 'holdout_r2', 'plan_ms_p50', 'plan_ms_p99',
              'ticks', 'missed_ticks'}
METRICS_KEYS = {'trials', 'best_return', 'gate', 'passed', 'seed', 'wall_seconds'}
SMALL = """members: 2
hidden_units: [16]
weight_decay: [0.0, 0.0]
max_epochs: 20
min_steps: 0
"""


def mbrl(*words):
    """Run the command as a newcomer does, in a process of its own."""
    return subprocess.run([sys.executable, '-m', 'mbrl_ros.cli.main', *map(str, words)],
                          capture_output=True, text=True, timeout=400, check=False)


def call(*words):
    """Run the command in this process, which has imported torch already."""
    return CliRunner().invoke(app, [*map(str, words)])


def read_metrics(folder):
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert set(metrics) >= METRICS_KEYS
    assert all(set(trial) >= TRIAL_KEYS for trial in metrics['trials'])
    return metrics


@pytest.fixture(scope='module')
def driven(tmp_path_factory):
    """Return the folder of one lock-step trial with the shipped model."""
    folder = tmp_path_factory.mktemp('demo')
    result = mbrl('demo', '--pretrained', '--lockstep', '--output', folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_shipped_model_swings_up_and_balances(driven):
    metrics = read_metrics(driven)
    assert metrics['passed']
    assert metrics['gate'] == 165
    # 200 steps of at most 1 each; with MuJoCo itself as the model 181 is the ceiling.
    assert 165 <= metrics['best_return'] <= 182
    [trial] = metrics['trials']
    # 201 observations are answered: s_0 to s_200.
    assert (trial['ticks'], trial['missed_ticks']) == (201, 0)
    assert trial['robot_seconds'] == pytest.approx(200 * 0.04)


def test_the_report_needs_no_other_file(driven):
    html = (driven / 'report.html').read_text()
    assert html.count('src="data:image/') == html.count('<img ') >= 6
    assert 'data:image/gif' in html
    assert 'http' not in html


def test_train_evaluate_and_warm_start_from_the_bag_of_a_trial(driven, tmp_path):
    [bag] = (driven / 'bags').iterdir()
    config = tmp_path / 'small.yaml'
    config.write_text(SMALL)
    first = mbrl('train', bag, '--config', config, '--output', tmp_path / 'a')
    assert first.returncode == 0, first.stderr
    assert '200 transitions' in first.stdout
    assert {path.name for path in (tmp_path / 'a').iterdir()} >= {
        'dynamics.onnx', 'card.md', 'metrics.json', 'report.html', 'training.csv'}
    call('train', bag, '--config', config, '--output', tmp_path / 'b')
    assert (tmp_path / 'a/dynamics.onnx').read_bytes() == \
        (tmp_path / 'b/dynamics.onnx').read_bytes()
    warm = call('train', bag, '--config', config, '--output', tmp_path / 'c',
                '--warm-start', tmp_path / 'a')
    assert warm.exit_code == 0, warm.output
    assert (tmp_path / 'c/dynamics.onnx').read_bytes() != \
        (tmp_path / 'a/dynamics.onnx').read_bytes()
    result = call('evaluate', tmp_path / 'a', bag, '--json', '--report', tmp_path / 'new.html')
    assert 'trained on' in result.stderr
    scores = json.loads(result.stdout)
    html = (tmp_path / 'new.html').read_text()
    assert html.count('src="data:image/') == html.count('<img ') == 7
    assert f'Scored on {bag.name}' in html
    assert scores['transitions'] == 200
    assert set(scores['r2']) == {'slider_position', 'hinge_position', 'slider_velocity',
                                 'hinge_velocity'}


def test_train_refuses_a_cut_bag_then_says_what_the_recovered_one_lost(driven, tmp_path):
    [bag] = (driven / 'bags').iterdir()
    cut = tmp_path / 'cut'
    shutil.copytree(bag, cut)
    [file] = cut.glob('*.mcap')
    # The summary at the end and the last of the data are gone, as after kill -9.
    os.truncate(file, file.stat().st_size // 2)
    config = tmp_path / 'small.yaml'
    config.write_text(SMALL)
    words = ('train', cut, '--config', config, '--output', tmp_path / 'model')
    refused = call(*words)
    assert refused.exit_code == 1
    assert 'mbrl-ros bag recover' in str(refused.exception)
    assert call('bag', 'recover', cut).exit_code == 0
    trained = call(*words)
    assert trained.exit_code == 0, trained.output
    assert 'recovered from a truncated recording' in ' '.join(trained.stdout.split())


def test_train_refuses_what_is_not_there(tmp_path):
    missing = call('train', tmp_path / 'no_bag', '--output', tmp_path)
    assert (missing.exit_code, 'no_bag' in str(missing.exception)) == (1, True)
    robot = call('train', tmp_path, '--robot', 'no_robot', '--output', tmp_path)
    assert robot.exit_code == 1
    assert 'Known names: arm, base, cartpole' in str(robot.exception)


def test_a_refusal_is_told_on_standard_error(tmp_path):
    result = mbrl('bag', 'info', tmp_path / 'no_bag')
    assert (result.returncode, result.stdout) == (1, '')
    assert result.stderr.strip().startswith(f'error: no bag at {tmp_path}')


def test_a_demo_that_is_terminated_takes_its_nodes_along(tmp_path, eventually):
    demo = subprocess.Popen([sys.executable, '-m', 'mbrl_ros.cli.main', 'demo', '--lockstep',
                             '--output', str(tmp_path)], stdout=subprocess.DEVNULL)
    logs = {name: tmp_path / f'logs/{name}.log'
            for name in ('sim_robot', 'data_logger', 'mpc_controller')}
    assert eventually(logs['data_logger'].exists, 60.0)
    assert eventually(lambda: 'recording' in logs['data_logger'].read_text(), 60.0)
    demo.terminate()
    assert demo.wait(60.0) == 128 + signal.SIGTERM
    assert all('the node ends: SIGINT' in log.read_text() for log in logs.values())


def test_it_learns_to_swing_up_from_nothing(tmp_path):
    result = mbrl('demo', '--lockstep', '--seed', '1', '--output', tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    metrics = read_metrics(tmp_path)
    assert metrics['passed']
    assert metrics['gate'] == 160
    trials = metrics['trials']
    assert trials[0]['plan_ms_p50'] is None
    assert trials[0]['return'] < 60  # random motion does not balance
    assert trials[-1]['return'] == metrics['best_return'] >= 160
    # What was recorded: 200 steps of 0.04 s a trial, unless the logger is held up for seconds.
    bags = sorted((tmp_path / 'bags').iterdir())
    recorded_s = load_dataset(bags, load_robot('cartpole')).seconds
    assert trials[-1]['robot_seconds'] == pytest.approx(recorded_s)
    assert 6.0 * len(trials) < recorded_s <= 8.0 * len(trials) + 1e-6
    assert len(list(Path(tmp_path / 'models').iterdir())) == len(trials) - 1
