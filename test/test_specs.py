"""Robot and task YAML, message paths, plug-in names: what is read, what each refusal says."""

from types import SimpleNamespace

from fakes import cart, cart_dict, cart_task
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from pydantic import ValidationError
import pytest
import yaml

from mbrl_ros.control.exploration import config_class as signal_config
from mbrl_ros.core.errors import ObservationError, SpecError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.core.task import load_task
from mbrl_ros.costs import CostFunction
from mbrl_ros.planning import config_class, load_planning

ROBOT = """\
name: cart
control_rate_hz: 10.0
observation:
  - {name: position, unit: m, topic: joints, type: sensor_msgs/msg/JointState,
     path: 'position[rail]'}
action:
  - name: force
    unit: N
    topic: commands
    type: std_msgs/msg/Float64MultiArray
    path: 'data[0]'
    min: -2.0
    max: 2.0
    rate_limit: 10.0
    safe_value: 0.0
stale_after_s: {joints: 0.3}
"""
TASK = """\
name: reach
robot: cart
horizon: 4
episode_steps: 20
goal:
  - {name: where, value: 1.0}
cost:
  - term: squared
    weight: 2.0
    params: {signal: position, target: where}
termination:
  position: {min: -2.0, max: 2.0}
"""


def write(folder, text, old='', new=''):
    assert old in text
    path = folder / 'spec.yaml'
    path.write_text(text.replace(old, new, 1))
    return path


def refusal(call, *arguments):
    with pytest.raises(SpecError) as caught:
        call(*arguments)
    return str(caught.value)


def test_robot_is_read_from_one_file(tmp_path):
    robot = load_robot(write(tmp_path, ROBOT))
    assert (robot.state_names, robot.action_names) == (['position'], ['force'])
    assert (robot.dt_s, robot.dt_ns) == (0.1, 100_000_000)
    assert robot.observation[0].feature == 'linear'
    assert robot.observation[0].target == 'delta'
    assert robot.observation_topics() == {'joints': 'sensor_msgs/msg/JointState'}


# Line numbers are those of the text above.
@pytest.mark.parametrize(('old', 'new', 'parts'), [
    ('control_rate_hz', 'control_rate', [':2: control_rate:', "unknown key 'control_rate'",
                                         'allowed:', 'control_rate_hz', 'stale_after_s']),
    ('    rate_limit:', '    speed_limit:', [':14: action.0.speed_limit:', 'allowed:',
                                             'rate_limit']),
    ('unit: N', 'unit: lbf', [':8: action.0.unit:', "'N*m'", "found 'lbf'"]),
    ('unit: m,', 'unit: mm,', [':4: observation.0.unit:', "'m/s'", "found 'mm'"]),
    ('max: 2.0', 'max: -2.0', [':7: action.0:', 'empty range', 'min -2.0', 'max -2.0']),
    ('safe_value: 0.0', 'safe_value: 3.0', [':7: action.0:', 'safe_value 3.0', '[-2.0, 2.0]']),
    ('name: force', 'name: position', ['names used twice: position']),
    ('{joints: 0.3}', '{joint: 0.3}', ['stale_after_s', 'each observed topic: joints']),
    ('{joints: 0.3}', '{joints: 0.3, commands: 1}', ['each observed topic: joints']),
    ('{joints: 0.3}', '{joints: 0.0}', [':16: stale_after_s.joints:', 'greater than 0']),
    ("'data[0]'", "'data[0'", [':11: action.0.path:', 'not a message path', 'field.array[0]']),
    ('std_msgs/msg/Float64MultiArray', 'Float64MultiArray', [':10: action.0.type:']),
    ('control_rate_hz: 10.0', 'control_rate_hz: .inf', [':2: control_rate_hz:']),
    ('control_rate_hz: 10.0', 'control_rate_hz: fast', [':2: control_rate_hz:', "found 'fast'"]),
    ('topic: commands', 'topic: joints', ["topic 'joints' is given two types"]),
])
def test_robot_refusals_name_line_field_and_what_is_allowed(tmp_path, old, new, parts):
    path = write(tmp_path, ROBOT, old, new)
    message = refusal(load_robot, path)
    assert message.startswith(str(path))
    for part in parts:
        assert part in message


def test_every_problem_of_a_file_has_its_line(tmp_path):
    text = ROBOT.replace('unit: N', 'unit: lbf').replace('rate_limit: 10.0', 'rate_limit: -1')
    lines = refusal(load_robot, write(tmp_path, text)).splitlines()
    assert len(lines) == 2
    assert ':8: action.0.unit' in lines[0]
    assert ':14: action.0.rate_limit' in lines[1]


@pytest.mark.parametrize(('paths', 'part'), [
    (['data[1]'], 'must be 0 to 0'), (['data[0]', 'data[0]'], 'taken by another action'),
    (['data[0]', 'data[2]'], 'must be 0 to 1'), (['data[elbow]'], 'by index'),
])
def test_commands_that_could_not_be_sent(paths, part):
    spec = cart().model_dump()
    spec['action'] = [spec['action'][0] | {'name': f'force_{i}', 'path': path}
                      for i, path in enumerate(paths)]
    with pytest.raises(ValidationError, match=part):
        RobotSpec.model_validate(spec)


def test_a_joint_by_its_place_is_refused():
    spec = cart_dict()
    spec['observation'][0] |= {'path': 'position[0]'}
    with pytest.raises(ValidationError, match='a joint goes by its name'):
        RobotSpec.model_validate(spec)


@pytest.mark.parametrize(('data', 'part'), [
    (b'name: [', 'not valid YAML'), (b'- 1\n', 'valid dictionary'), (b'', 'Field required'),
    (b'name: \xff\xfe', 'not valid YAML'), (b'name: a\nname: b\n', "'name' is given twice"),
])
def test_what_is_no_robot_at_all(tmp_path, data, part):
    path = tmp_path / 'spec.yaml'
    path.write_bytes(data)
    message = refusal(load_robot, path)
    assert str(path) in message
    assert part in message


def test_unknown_robot_answers_with_the_known():
    message = refusal(load_robot, 'cartpol')
    assert "'cartpol'" in message
    assert 'cartpole' in message.split('Known names:')[1]


def test_values_are_frozen():
    with pytest.raises(ValueError, match='frozen'):
        cart().control_rate_hz = 20.0


def test_signature_is_what_the_model_depends_on():
    robot, spec = cart(), cart_dict()
    for field in spec['observation']:
        field['topic'] = 'other/joint_states'
    spec |= {'name': 'real_cart', 'stale_after_s': {'other/joint_states': 1.0}}
    spec['action'][0] |= {'topic': 'other/commands', 'rate_limit': 1.0, 'safe_value': 1.0}
    assert RobotSpec.model_validate(spec).signature_hash() == robot.signature_hash()
    spec['action'][0]['max'] = 2.5
    assert RobotSpec.model_validate(spec).signature_hash() != robot.signature_hash()


def test_task_is_read_from_one_file(tmp_path):
    task = load_task(write(tmp_path, TASK), cart())
    assert task.goal_names == ['where']
    np.testing.assert_array_equal(task.goal_values, [1.0])
    np.testing.assert_array_equal(task.weights, [2.0])


@pytest.mark.parametrize(('old', 'new', 'parts'), [
    ('horizon', 'horizn', [':3: horizn:', "unknown key 'horizn'", 'horizon']),
    ('horizon: 4', 'horizon: 0', [':3: horizon:', 'greater than or equal to 1', 'found 0']),
    ('robot: cart', 'robot: cartpole', ["for 'cartpole', not 'cart'", '--robot cartpole']),
    ('weight: 2.0', 'weight: -1', [':9: cost.0.weight:']),
    ('value: 1.0}', 'value: 1.0, topic: goal}', [':6: goal.0:', 'topic, type and path']),
    ('  position: {min', '  positin: {min', ['termination', 'positin', 'position, velocity']),
    ('max: 2.0', 'max: -2.0', [':12: termination.position:', 'empty range']),
    ('name: where', 'name: velocity', ['velocity', 'names used twice']),
    ('- {name: where, value: 1.0}',
     '- {name: where, value: 1.0}\n  - {name: where, value: 2.0}', ['names used twice: where']),
    ('  - term: squared\n', '  - {term: squared, params: {signal: position}}\n  - term: squared\n',
     ['same name: squared', "'name'"]),
])
def test_task_refusals(tmp_path, old, new, parts):
    path = write(tmp_path, TASK, old, new)
    message = refusal(load_task, path, cart())
    assert message.startswith(str(path))
    for part in parts:
        assert part in message


def test_unknown_task_answers_with_the_known():
    assert 'cartpole_swingup' in refusal(load_task, 'swingup', cart())


def with_term(**term):
    return cart_task(cost=[term])


@pytest.mark.parametrize(('term', 'parts'), [
    ({'term': 'sqared'}, ["'sqared'", 'pole_tip, ', ', squared;', 'dotted name']),
    ({'term': 'no_such.module'}, ["cannot import 'no_such.module'"]),
    ({'term': 'os.path'}, ["'os.path'", 'Params', 'cost']),
    ({'term': 'squared', 'params': {'signal': 'speed'}},
     ["unknown field 'speed'", 'position, velocity, force, where']),
    ({'term': 'squared', 'params': {'signal': 'position', 'target': 'home'}},
     ["unknown field 'home'"]),
    ({'term': 'squared', 'params': {'signal': 'position', 'goal': 1}},
     ["unknown key 'goal'", 'signal, target']),
    ({'term': 'squared'}, ['signal: Field required']),
])
def test_cost_term_refusals_name_the_term_and_the_known(term, parts):
    message = refusal(CostFunction, with_term(**term), cart())
    for part in parts:
        assert part in message


def test_unknown_planner_and_signal_answer_with_the_known(tmp_path):
    assert 'Known: cem' in refusal(config_class, 'simplex')
    known = refusal(signal_config, 'noise')
    assert 'Known: chirp, ou, uniform' in known
    path = write(tmp_path, 'planner: cem\nparams: {popluation: 3}\n')
    message = refusal(load_planning, str(path))
    assert 'popluation' in message
    assert 'population' in message
    path = write(tmp_path, yaml.safe_dump({'planner': 'cem', 'params': {
        'population': 4, 'num_elites': 5}}))
    assert 'num_elites 5 exceeds population 4' in refusal(load_planning, str(path))


FIXED = settings(derandomize=True, deadline=None)
NAMES = st.from_regex(r'[A-Za-z_][A-Za-z0-9_]{0,8}', fullmatch=True)
KEYS = st.none() | st.integers(0, 10**6) | st.from_regex(r'[^\[\]]{1,12}', fullmatch=True).filter(
    lambda text: not text.isdecimal())


@FIXED
@given(attributes=st.lists(NAMES, min_size=1, max_size=4), key=KEYS)
def test_path_round_trip(attributes, key):
    text = '.'.join(attributes) + ('' if key is None else f'[{key}]')
    path = MessagePath.parse(text)
    assert (path.text, path.attributes, path.key) == (text, tuple(attributes), key)


@FIXED
@given(text=st.text(max_size=12))
def test_any_text_is_a_path_or_refused(text):
    try:
        assert MessagePath.parse(text).text == text
    except SpecError as error:
        assert 'field.field' in str(error)  # noqa: PT017 (either outcome is right)


@FIXED
@given(values=st.dictionaries(NAMES, st.floats(-1e6, 1e6), min_size=1), shuffle=st.randoms())
def test_a_joint_is_found_by_name_in_any_order(values, shuffle):
    names = list(values)
    shuffle.shuffle(names)
    message = SimpleNamespace(name=names, position=[values[name] for name in names])
    for name, value in values.items():
        assert MessagePath.parse(f'position[{name}]').read(message) == value


def test_paths_read_nested_fields_and_arrays():
    message = SimpleNamespace(pose=SimpleNamespace(x=1.5), data=np.array([1, 2, 3], np.float32))
    assert MessagePath.parse('pose.x').read(message) == 1.5
    assert MessagePath.parse('data[2]').read(message) == 3.0


@pytest.mark.parametrize(('path', 'parts'), [
    ('position[elbow]', ["no 'elbow'", "['rail', 'hinge']"]),
    ('velocity[hinge]', ['index 1 of an array of 1']),
    ('position[2]', ['index 2 of an array of 2']),
    ('effort[rail]', ["no field 'effort'"]),
    ('header.stamp', ["no field 'stamp'"]),
    ('header', ['not a number']),
    ('position', ['not a number']),
    ('height[0]', ['not an array']),
])
def test_what_the_message_does_not_hold_is_refused(path, parts):
    message = SimpleNamespace(name=['rail', 'hinge'], position=[1.0, 2.0], velocity=[3.0],
                              header=SimpleNamespace(), height=2.0)
    with pytest.raises(ObservationError) as caught:
        MessagePath.parse(path).read(message)
    for part in (f"'{path}'", *parts):
        assert part in str(caught.value)
