"""`mbrl-ros bench loop`: the figures, what they are held against, and the processes."""

import json
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip('torch')

from mbrl_ros.bench import loop
from mbrl_ros.bench.loop_figures import judge, verdicts
from mbrl_ros.bench.process import BenchError
from mbrl_ros.cli.main import app
from mbrl_ros.core.robot import load_robot
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.nodes.table import NodeOptions
from mbrl_ros.sim.mujoco_robot import MujocoRobot

MS = 1_000_000
PERIOD_S = 0.01
START = 1_700_000_000_000 * MS


def record_of(commands_ms, stamps_ms, missed=(), plan_ms=2.0):
    """Each command answers a stamp; word of its tick is sent 0.5 ms later."""
    ticks = [{'stamp_ns': str(START + round(stamp * MS)), 'sent_ns': START + round(
        (command + 0.5) * MS), 'missed': str(index in missed), 'safe': 'False', 'reason': '',
        'plan_ms': f'{plan_ms + index:.6g}'}
        for index, (command, stamp) in enumerate(zip(commands_ms, stamps_ms, strict=True))]
    return {'commands_ns': [START + round(command * MS) for command in commands_ms],
            'ticks': ticks}


def figures_of(*arguments, end_ms=1000.0, **named):
    return judge(record_of(*arguments, **named), PERIOD_S, START, START + round(end_ms * MS))


def test_a_steady_loop():
    stamps = [10.0 * i for i in range(5)]
    figures = figures_of([stamp + 3.0 for stamp in stamps], stamps)
    assert (figures['ticks'], figures['missed_ticks']) == (5, 0)
    assert figures['period_error_ms_max'] == pytest.approx(0.0)
    assert figures['latency_ms_p50'] == figures['latency_ms_max'] == pytest.approx(3.0)
    # Plans of 2, 3, 4, 5 and 6 ms.
    assert (figures['plan_ms_p50'], figures['plan_ms_max']) == (4.0, 6.0)


def test_period_errors_have_no_sign():
    # Distances 10, 12, 8, 10.5: errors 0, 2, 2, 0.5.
    figures = figures_of([3.0, 13.0, 25.0, 33.0, 43.5], [0.0, 10.0, 20.0, 30.0, 40.0])
    assert figures['period_error_ms_p50'] == pytest.approx(1.25)
    assert figures['period_error_ms_max'] == pytest.approx(2.0)
    assert figures['period_error_ms_p99'] == pytest.approx(np.quantile([0, 2, 2, 0.5], 0.99))
    # From stamp to command: 3, 3, 5, 3, 3.5.
    assert figures['latency_ms_max'] == pytest.approx(5.0)


def test_what_is_missed_is_counted_once():
    # The second plan is late, the fourth tick has no new observation (and no plan), and two
    # ticks are left out before the last.
    figures = figures_of([3.0, 13.0, 23.0, 35.0, 63.0], [0.0, 10.0, 20.0, 20.0, 60.0],
                         missed={1})
    assert {key: figures[key] for key in ('late_plans', 'silent_ticks', 'skipped_ticks')} \
        == {'late_plans': 1, 'silent_ticks': 1, 'skipped_ticks': 2}
    # Five ticks were there, seven should have been.
    assert (figures['ticks'], figures['missed_ticks']) == (7, 4)
    # No latency of the late and of the silent one: 3, 3 and 3 ms, not 15.
    assert figures['latency_ms_max'] == pytest.approx(3.0)


def test_only_the_stretch_counts():
    stamps = [10.0 * i for i in range(10)]
    figures = figures_of([stamp + 3.0 for stamp in stamps], stamps, end_ms=50.0)
    assert figures['ticks'] == 5


def test_a_command_that_was_lost_on_the_way_is_a_skipped_tick():
    stamps = [10.0 * i for i in range(5)]
    record = record_of([stamp + 3.0 for stamp in stamps], stamps)
    del record['commands_ns'][2]
    figures = judge(record, PERIOD_S, START, START + 100 * MS)
    assert figures['skipped_ticks'] == 1


def test_a_loop_that_does_not_run_is_an_error():
    with pytest.raises(BenchError, match=r'1 commands and 1 ticks in 1\.0 s'):
        figures_of([3.0], [0.0])


def test_verdicts():
    good = {'ticks': 12000, 'missed_ticks': 12, 'period_error_ms_p99': 1.0, 'plan_ms_p99': 4.0,
            'latency_ms_p99': 5.0}
    # 0.1 % of 12000 are 12; a plan has 0.8 of 10 ms; 4 ms and 1 ms are 5 ms.
    assert [(row['bound'], row['is_met']) for row in verdicts(good, PERIOD_S)] == [
        (12.0, True), (1.0, True), (pytest.approx(8.0), True), (5.0, True)]
    bad = {'ticks': 12000, 'missed_ticks': 13, 'period_error_ms_p99': 1.01, 'plan_ms_p99': 8.1,
           'latency_ms_p99': 9.2}
    assert not any(row['is_met'] for row in verdicts(bad, PERIOD_S))
    without = good | {'plan_ms_p99': None, 'latency_ms_p99': None}
    assert [row['is_met'] for row in verdicts(without, PERIOD_S)] == [True, True, False, False]


@pytest.mark.parametrize(('rate_hz', 'substeps'), [(100.0, 1), (50.0, 1), (30.0, 2), (8.0, 7)])
def test_the_physics_step_fits_the_rate(tmp_path, monkeypatch, rate_hz, substeps):
    # 1/30 s is two steps of 16.7 ms; 1/8 s is seven of 17.9 ms: none longer than 20 ms.
    monkeypatch.setattr(loop, 'train_model', lambda *_arguments: None)
    options = loop.write_files(rate_hz, tmp_path)
    spec = load_robot(options.robot)
    assert spec.control_rate_hz == rate_hz
    step_s = float(ET.parse(tmp_path / 'robot.xml').getroot().find('option').get('timestep'))
    assert step_s == pytest.approx(1 / rate_hz / substeps)
    MujocoRobot(spec).step(spec.safe_value)  # refuses what does not fit


def test_busy_cores_end(monkeypatch):
    started, real = [], subprocess.Popen

    def start(command):
        started.append(real(command))
        return started[-1]
    monkeypatch.setattr(loop.os, 'sched_getaffinity', lambda _process: {0, 1, 2})
    monkeypatch.setattr(subprocess, 'Popen', start)
    with loop.busy_cores():
        assert [process.poll() for process in started] == [None] * 3
    assert all(process.returncode is not None for process in started)


@pytest.mark.parametrize('arguments', [
    ['--rate', '0'], ['--rate', '-5'], ['--rate', '1001'], ['--rate', 'nan'], ['--rate', 'fast'],
    ['--seconds', '0'], ['--seconds', 'nan'], ['--fifo-priority', '99']])
def test_nonsense_is_refused(tmp_path, arguments):
    done = CliRunner().invoke(app, ['bench', 'loop', *arguments, '--json',
                                    str(tmp_path / 'new' / 'loop.json')])
    assert done.exit_code == 2
    assert not (tmp_path / 'new').exists()


def test_a_process_that_ends_is_told_with_its_log(tmp_path):
    pytest.importorskip('rclpy')
    options = NodeOptions(robot='nowhere')
    with pytest.raises(BenchError, match='the observer ended with status 1') as refused, \
            loop.Crew(tmp_path, options, {}) as crew:
        crew.start()
    assert "no robots file 'nowhere'" in str(refused.value)


def test_over_dds(monkeypatch, tmp_path):
    pytest.importorskip('rclpy')
    # Ten times a second, so that a busy machine keeps up, and next to no training.
    monkeypatch.setattr(loop, 'NETWORK', TrainingConfig.model_validate(
        loop.NETWORK.model_dump() | {'members': 2, 'hidden_units': (8,), 'max_epochs': 1,
                                     'weight_decay': (1e-4, 1e-4), 'min_steps': 0}))
    monkeypatch.setattr(loop, 'PLANNING', {
        'planner': 'cem', 'rollout': {'particles': 2},
        'params': {'population': 8, 'num_elites': 2, 'iterations': 1}})
    monkeypatch.setattr(loop, 'SETTLE_S', 0.2)
    path = tmp_path / 'new' / 'loop.json'
    done = CliRunner().invoke(app, ['bench', 'loop', '--rate', '10', '--seconds', '2', '--json',
                                    str(path)])
    assert done.exit_code in (0, 1), done.output
    figures = json.loads(path.read_text())
    names = ('ticks', 'missed_ticks', 'period_error_ms_p50', 'period_error_ms_p99',
             'period_error_ms_max', 'latency_ms_p99', 'plan_ms_p99')
    for prefix in ('', 'busy_'):
        assert all(figures[prefix + name] is not None for name in names)
        # 2 s at 10 Hz, more where the machine keeps this process waiting.
        assert figures[f'{prefix}ticks'] >= 15
        assert figures[f'{prefix}latency_ms_p50'] > 0.0
    is_met = all(row['is_met'] for row in figures['verdicts']['idle'])
    assert done.exit_code == (0 if is_met else 1)
    assert '10 Hz for 2 s' in done.output
