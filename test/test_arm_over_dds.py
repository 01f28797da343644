"""The arm through the real nodes, with its shipped model: each trial has a goal, on a topic."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('torch')

from rosbags.highlevel import AnyReader

from mbrl_ros.cli import pictures
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.costs import CostFunction
from mbrl_ros.data.dataset import load_dataset

ROBOT = load_robot('arm')
TASK = load_task('arm_reach', ROBOT)


@pytest.fixture(scope='module')
def driven(tmp_path_factory):
    """Return the folder of one lock-step trial with the shipped model."""
    folder = tmp_path_factory.mktemp('arm')
    result = subprocess.run(
        [sys.executable, '-m', 'mbrl_ros.cli.main', 'demo', '--robot', 'arm', '--task',
         'arm_reach', '--pretrained', '--lockstep', '--seed', '1', '--output', str(folder)],
        capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_shipped_model_reaches_for_the_goal_of_its_trial(driven):
    metrics = json.loads((driven / 'metrics.json').read_text())
    assert (metrics['gate'], metrics['passed']) == (-60.0, True)
    [trial] = metrics['trials']
    assert (trial['ticks'], trial['missed_ticks'], trial['safe_reasons']) == (151, 0, [])
    goal = np.array(trial['goal'])
    np.testing.assert_array_equal(goal, TASK.draw_goal(np.random.default_rng([1, 0])))
    assert not np.array_equal(goal, TASK.goal_values)
    # What the robot did, from the bag, scored by hand.
    [bag] = (driven / 'bags').iterdir()
    _, action, next_state = load_dataset([bag], ROBOT).transitions()
    assert len(action) == 150
    point = CostFunction(TASK, ROBOT).position(next_state, action, goal)
    away = np.linalg.norm(point - goal, axis=1)
    by_hand = -np.sum(away**2) - 0.01 * np.sum(action**2)
    assert trial['return'] == metrics['best_return'] == pytest.approx(by_hand, rel=1e-9)
    assert trial['final_distance_m'] == pytest.approx(away[-1], rel=1e-9)
    # Doing nothing leaves it where it begins and costs 150 squares of that distance.
    assert trial['return'] > -0.5 * 150 * away[0]**2
    assert away[-1] < 0.5 * away[0]


def test_the_bag_holds_the_goal(driven):
    [bag] = (driven / 'bags').iterdir()
    goal = json.loads((driven / 'metrics.json').read_text())['trials'][0]['goal']
    with AnyReader([bag]) as reader:
        wanted = [c for c in reader.connections if c.topic == '/goal']
        points = [reader.deserialize(raw, c.msgtype).point
                  for c, _, raw in reader.messages(wanted)]
    assert [[p.x, p.y, p.z] for p in points] == [goal]


def test_the_report_is_that_of_an_arm(driven):
    html = (driven / 'report.html').read_text()
    assert '<h1>arm_reach on arm</h1>' in html
    assert html.count('src="data:image/') == html.count('<img ') >= 6
    assert (driven / 'best_trial.gif').stat().st_size > 10_000
    metrics = json.loads((driven / 'metrics.json').read_text())
    distance = metrics['trials'][0]['final_distance_m']
    assert f'<td>{distance:.3f}</td>' in html
    assert metrics['last']['final_distance_m'] == distance  # the mean of one


def test_a_robot_without_joint_positions_is_not_drawn():
    base = load_robot('base')
    assert pictures.animate(base, np.zeros((3, len(base.observation)))) is None
