"""Decisions as the logger recorded them over DDS are made again, bit for bit."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner
import yaml

pytest.importorskip('rclpy')

from rosbags.highlevel import AnyReader

from mbrl_ros.cli.main import app
from mbrl_ros.core.paths import find_model, share_dir
from mbrl_ros.core.robot import load_robot
from mbrl_ros.nodes.operator import Operator
from mbrl_ros.nodes.table import NodeOptions

pytestmark = pytest.mark.any_pace
SPEC = load_robot('cartpole')
EPISODES, STEPS = 5, 200


@pytest.fixture
def options(tmp_path):
    """Return what the nodes share: a task and a planner that take 2 ms a plan."""
    task = yaml.safe_load((share_dir() / 'config/tasks/cartpole_swingup.yaml').read_text())
    (tmp_path / 'planner.yaml').write_text(yaml.safe_dump({
        'planner': 'cem', 'rollout': {'particles': 5},
        'params': {'population': 16, 'num_elites': 4, 'iterations': 2, 'keep_elites': 2}}))
    (tmp_path / 'task.yaml').write_text(yaml.safe_dump(
        task | {'horizon': 6, 'planner': str(tmp_path / 'planner.yaml')}))
    return NodeOptions(task=str(tmp_path / 'task.yaml'), use_sim_time=True)


def test_a_thousand_logged_decisions_come_out_the_same(ros_domain, options, tmp_path):
    extra = {
        'sim_robot': {'start_paused': True, 'pause_after_steps': STEPS},
        'data_logger': {'output': str(tmp_path), 'record': False},
        'mpc_controller': {'autostart': False, 'seed': 3, 'max_spread': 1e6}}
    with Operator(SPEC, options, extra, tmp_path / 'logs') as operator:
        operator.prepare({})
        bag = Path(operator.switch('data_logger', 'record', on=True))
        for episode in range(EPISODES):
            if episode:
                operator.trigger('data_logger', 'new_episode')
            operator.run(STEPS, 10.0)
        operator.switch('data_logger', 'record', on=False)
    # What was decided is in the bag alone: the task's file may change.
    (tmp_path / 'task.yaml').unlink()
    result = CliRunner().invoke(app, ['replay', str(bag), '--all'])
    assert result.exit_code == 0, result.output
    # Every observation, the last of an episode too, is answered by one decision.
    num_decisions = EPISODES * (STEPS + 1)
    assert f'{num_decisions} decisions made again on the CPU: {num_decisions} are the same, bit ' \
           'for bit' in result.output
    with AnyReader([bag]) as reader:
        wanted = [c for c in reader.connections if c.topic == '/mpc_controller/decision']
        first = next(reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages(wanted))
    setup = json.loads(first.data)['setup']
    assert (setup['model'], setup['seed']) == (str(find_model('cartpole')), 3)
