"""What the controller refuses, with which words, and what its process must not import."""

from dataclasses import replace
import os
from pathlib import Path
import subprocess
import sys

import onnx
import pytest
import yaml

pytest.importorskip('rclpy')

from controller_files import edit, make_controller, parameters_of
from fakes import metadata_of, save_artifact
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.nodes.mpc_controller import MpcController

pytestmark = pytest.mark.any_pace

OK = TransitionCallbackReturn.SUCCESS
REPO = Path(__file__).parents[1]
COMMANDS = 'forward_command_controller/commands'


def label(controller):
    return controller._state_machine.current_state[1]


def model_of_another_robot(folder):
    data = yaml.safe_load((folder / 'robots.yaml').read_text())
    data['observation'][1]['feature'] = 'linear'
    data['action'][0]['max'] = 2.0
    data['control_rate_hz'] = 50.0
    save_artifact(folder / 'dynamics.onnx', onnx.load(folder / 'dynamics.onnx'),
                  metadata_of(RobotSpec.model_validate(data), 2))


def other_command_type(folder):
    data = yaml.safe_load((folder / 'robots.yaml').read_text())
    data['action'][0]['type'] = 'some_msgs/msg/Command'
    edit(folder / 'robots.yaml', **data)


def truncated_model(folder):
    path = folder / 'dynamics.onnx'
    path.write_bytes(path.read_bytes()[:-200])


REFUSALS = {
    'another robot': (model_of_another_robot, {}, [
        "trained for another robot than 'cartpole'", 'action[0].max: model 2.0, robot 3.0',
        'control_rate_hz: model 50.0, robot 25.0',
        "observation[1].feature: model 'linear', robot 'angle'"]),
    'corrupt model': (truncated_model, {}, ['dynamics.onnx: not a valid ONNX model']),
    'empty model': (lambda folder: (folder / 'dynamics.onnx').write_bytes(b''), {}, [
        'dynamics.onnx: ', 'rain']),
    'missing model': (None, {'model': 'nowhere'}, [
        "no model 'nowhere': expected a dynamics.onnx file"]),
    'robot key': (lambda folder: edit(folder / 'robots.yaml', rate=3), {}, [
        'robots.yaml:', "unknown key 'rate'; allowed: name, description, control_rate_hz"]),
    'task key': (lambda folder: edit(folder / 'tasks.yaml', reward=3), {}, [
        'tasks.yaml:', "unknown key 'reward'; allowed: name, "]),
    'planner key': (lambda folder: edit(folder / 'planners.yaml', params={'elites': 3}), {}, [
        'planners.yaml: params', "unknown key 'elites'; allowed: population, num_elites"]),
    'planner value': (lambda folder: edit(folder / 'planners.yaml', params={'population': 1}),
                      {}, ['planners.yaml: params', 'population', 'greater than or equal to 2']),
    'particles': (lambda folder: edit(folder / 'planners.yaml', rollout={'particles': 3}), {}, [
        'particles: 3 cannot be shared out among 2 members', 'multiples of 2']),
    'task of another robot': (lambda folder: edit(folder / 'tasks.yaml', robot='walker'), {}, [
        "the task is for 'walker', not 'cartpole'"]),
    'signal': (None, {'mode': 'collect', 'signal': 'noise'}, ["'noise'", 'chirp, ou, uniform']),
    'planner': (None, {'planner': 'cme'}, ["no planners file 'cme'", 'Known names: cem']),
    'message type': (other_command_type, {}, ['some_msgs/msg/Command', 'not installed']),
    'provider': (None, {'provider': 'tpu'}, ["unknown name 'tpu'", 'Known: cpu, cuda']),
    'precision': (None, {'precision': 'int8'}, ["precision 'int8'", 'allowed: float32']),
    'cuda': (None, {'provider': 'cuda'}, ["provider 'cuda'", "set provider to 'cpu'"]),
}


@pytest.mark.parametrize(('spoil', 'changes', 'texts'), REFUSALS.values(), ids=REFUSALS)
def test_configure_refuses_and_says_why(files, ros, logged, spoil, changes, texts):
    if changes.get('provider') == 'cuda' and Path('/dev/nvidiactl').exists():
        pytest.skip('this machine has CUDA')
    controller = make_controller(files, **changes)
    if spoil is not None:
        spoil(files)
    assert controller.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert label(controller) == 'unconfigured'
    for text in ('cannot configure: ', *texts):
        assert logged(text), controller.refusal
    assert controller.count_publishers(f'/{COMMANDS}') == 0
    controller.destroy_node()


def test_what_a_refused_configure_had_made_is_gone(files, ros, monkeypatch):
    controller = make_controller(files)

    def refuse(*args):
        raise SpecError('no topics today')
    monkeypatch.setattr('mbrl_ros.nodes.mpc_controller.ControllerTopics', refuse)
    assert controller.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert controller.count_publishers(f'/{COMMANDS}') == 0
    assert controller.count_subscribers('/joint_states') == 0
    monkeypatch.undo()
    assert controller.trigger_configure() == OK, controller.refusal
    assert controller.count_subscribers('/joint_states') == 1
    controller.leave()
    controller.destroy_node()


def test_safety_settings_outlive_a_change_of_mode(files, ros):
    controller = make_controller(files, mode='collect')
    assert controller.trigger_configure() == OK, controller.refusal
    assert controller.trigger_cleanup() == OK
    for name, value in (('trust.stop_above', 0.9999), ('fallback.hold_steps', 0),
                        ('mode', 'drive')):
        assert controller.set_parameters([Parameter(name, value=value)])[0].successful
    assert controller.trigger_configure() == OK, controller.refusal
    assert controller.get_parameter('fallback.hold_steps').value == 0
    controller.leave()
    controller.destroy_node()


def slow_controller(files, **changes):
    """Make a controller that has measured a p99 of 50 ms, where the period is 40 ms."""
    controller = make_controller(files, **changes)
    assert controller.trigger_configure() == OK, controller.refusal
    controller._engine = replace(controller._engine, plan_p99_s=0.05)
    return controller


def test_configure_measures_plans(files, ros, logged):
    # 20 iterations of 10,000 candidates: sampling alone takes more than the period of 40 ms.
    edit(files / 'planners.yaml', params={'population': 10000, 'num_elites': 2, 'iterations': 20})
    controller = make_controller(files)
    assert controller.trigger_configure() == OK, controller.refusal
    assert logged('the period is 40 ms')
    assert controller._engine.plan_p99_s > 0.04
    controller.leave()
    controller.destroy_node()


def test_plans_slower_than_the_period_are_not_activated(files, ros):
    controller = slow_controller(files, lockstep=False)
    assert controller.trigger_activate() == TransitionCallbackReturn.FAILURE
    assert label(controller) == 'inactive'
    for text in ('plans take 50.0 ms', 'control period of 40 ms', 'mbrl-ros bench tune',
                 "'allow_slow'"):
        assert text in controller.refusal
    controller.leave()
    controller.destroy_node()


@pytest.mark.parametrize('changes', [
    {'lockstep': True}, {'lockstep': False, 'allow_slow': True},
    {'lockstep': False, 'chunk_steps': 2}])  # 80 ms a plan
def test_slow_plans_are_activated_where_they_may_be(files, ros, changes):
    controller = slow_controller(files, **changes)
    assert controller.trigger_activate() == OK, controller.refusal
    controller.leave()
    controller.destroy_node()


def test_chunks_give_plans_so_many_periods_and_no_more(files, ros):
    controller = slow_controller(files, lockstep=False, chunk_steps=2)
    controller._engine = replace(controller._engine, plan_p99_s=0.09)
    assert controller.trigger_activate() == TransitionCallbackReturn.FAILURE
    assert 'the deadline is 80 ms of the 2 control periods of 80 ms' in controller.refusal
    controller.leave()
    controller.destroy_node()


def test_plans_beyond_the_deadline_are_warned_of(files, ros, logged):
    controller = slow_controller(files, lockstep=False)
    controller._engine = replace(controller._engine, plan_p99_s=0.035)
    assert controller.trigger_activate() == OK, controller.refusal
    assert logged('plans take 35.0 ms (99th percentile at configure); the deadline is 32 ms')
    controller.leave()
    controller.destroy_node()


def reason_of(controller, name, value):
    result, = controller.set_parameters([Parameter(name, value=value)])
    return '' if result.successful else result.reason


@pytest.mark.parametrize(('name', 'value', 'texts'), [
    ('mode', 'fly', ["'drive' or 'collect'", "'fly'"]),
    ('deadline', 1.5, ['deadline', 'Min: 0.0, Max: 1.0, value: 1.5']),
    ('deadline', 0.0, ['deadline', 'greater than 0']),
    ('actuation_delay_steps', 21, ['Min: -1, Max: 20, value: 21']),
    ('max_spread', 0.5, ['max_spread', 'Min: 1.0, Max: 1000000.0, value: 0.5']),
    ('seed', -1, ['seed', 'Min: 0, ']),
    ('lockstep', 3, ['Wrong parameter type'])])
def test_a_bad_parameter_is_refused_with_what_is_allowed(ros, name, value, texts):
    controller = MpcController()
    before = controller.get_parameter(name).value
    reason = reason_of(controller, name, value)
    assert [text for text in texts if text not in reason] == [], reason
    assert controller.get_parameter(name).value == before
    controller.destroy_node()


def test_parameters_of_the_planner_are_checked_and_held_while_configured(files, ros):
    controller = make_controller(files)
    assert controller.trigger_configure() == OK, controller.refusal
    assert controller.get_parameter('cem.population').value == 8
    for name, value in (('mode', 'collect'), ('cem.population', 16), ('rollout.particles', 4)):
        assert reason_of(controller, name, value) == (
            f'{name} is read at configure: clean up the node, then set it')
    assert controller.trigger_cleanup() == OK
    assert 'Min: 2, Max: 10000, value: 1' in reason_of(controller, 'cem.population', 1)
    assert 'num_elites 9 exceeds population 8' in reason_of(controller, 'cem.num_elites', 9)
    assert "'ts_infinity', 'ts1', 'mean'" in reason_of(controller, 'rollout.propagation', 'ts2')
    assert reason_of(controller, 'rollout.particles', 3) == ''  # the model is not known yet
    assert controller.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert 'multiples of 2' in controller.refusal
    assert reason_of(controller, 'rollout.particles', 4) == ''
    assert reason_of(controller, 'cem.population', 12) == ''
    assert controller.trigger_configure() == OK, controller.refusal
    assert controller.get_parameter('cem.population').value == 12
    assert controller.trigger_cleanup() == OK
    # Another planner file brings its own values.
    other = files / 'other.yaml'
    other.write_text((files / 'planners.yaml').read_text())
    edit(other, params={'population': 20, 'num_elites': 4, 'iterations': 1})
    assert reason_of(controller, 'planner', str(other)) == ''
    assert controller.trigger_configure() == OK, controller.refusal
    assert controller.get_parameter('cem.population').value == 20
    controller.leave()
    controller.destroy_node()


def test_torch_is_not_in_the_process_of_the_controller(files, ros_domain):
    script = f"""
import sys
import rclpy
from rclpy.parameter import Parameter
from mbrl_ros.nodes.mpc_controller import MpcController
rclpy.init()
node = MpcController()
node.set_parameters([Parameter(name, value=value)
                     for name, value in {parameters_of(files)!r}.items()])
node.trigger_configure()
assert node.is_configured, node.refusal
print(sorted({{'torch', 'mujoco', 'rosbags', 'matplotlib', 'onnxruntime'}} & set(sys.modules)))
node.leave()
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=REPO, env=dict(os.environ),
                          capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['onnxruntime']"


def test_help_imports_neither_torch_nor_ros():
    script = """
import sys
from mbrl_ros.cli.main import main
sys.argv = ['mbrl-ros', '--help']
try:
    main()
except SystemExit as end:
    assert not end.code
print(sorted({'torch', 'rclpy', 'onnxruntime', 'mujoco', 'numpy'} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=REPO, capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '[]'
