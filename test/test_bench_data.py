"""`mbrl-ros bench data`: its numbers, and the way it ends, on a small bag."""

import json

import pytest
from typer.testing import CliRunner

from mbrl_ros.bench import data
from mbrl_ros.bench.process import BenchError
from mbrl_ros.cli.main import app


def test_the_numbers_of_a_small_bag(monkeypatch, tmp_path):
    monkeypatch.setattr(data, 'QUICK_STATES', 4000)
    monkeypatch.setattr(data, 'QUICK_MB', 8.0)
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    path = tmp_path / 'new' / 'data.json'
    done = CliRunner().invoke(app, ['bench', 'data', '--quick', '--json', str(path)])
    result = json.loads(path.read_text())
    assert done.exit_code == (0 if result['is_met'] else 1), done.output
    # 4 s at 1 kHz and 100 Hz; 4 s at 50 Hz are 200 states, 199 steps.
    assert (result['messages'], result['transitions']) == (4400, 199)
    assert result['bag_mb'] == pytest.approx(8.0, rel=0.1)
    assert sum(result['topics_mb'].values()) == pytest.approx(8.0, rel=0.1)
    assert result['ratio'] == pytest.approx(
        result['messages_per_s'] / result['rosbags_messages_per_s'])
    assert 10.0 < result['rss_mb'] < 500.0
    # The bag is gone.
    assert [entry.name for entry in tmp_path.iterdir()] == ['new']


def test_a_bag_that_was_not_read_whole_is_no_result(monkeypatch, tmp_path):
    monkeypatch.setattr(data, 'QUICK_STATES', 1000)
    monkeypatch.setattr(data, 'QUICK_MB', 2.0)
    monkeypatch.setattr(data, 'run_module', lambda *arguments: '{}')
    monkeypatch.setattr(data, '_read_ours', lambda bag: 48)
    with pytest.raises(BenchError, match='ours read 48 of 49'):
        data.bench(True, lambda *progress: None, tmp_path)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(data, 'QUICK_MB', 1e12)
    with pytest.raises(BenchError, match='TMPDIR'):
        data.bench(True, lambda *progress: None, tmp_path)
    assert list(tmp_path.iterdir()) == []
