import ast
from itertools import pairwise
import json
from pathlib import Path
import sys
import xml.etree.ElementTree as ET

import pytest
import yaml

import mbrl_ros
from mbrl_ros.core.errors import SpecError
from mbrl_ros.nodes.table import GROUPS, NodeOptions

ROOT = Path(__file__).parents[1]
NODES = ROOT / 'mbrl_ros' / 'nodes'
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
XML = ET.parse(ROOT / 'package.xml').getroot()


def modules_of(path):
    """Return the top-level names a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition('.')[0])
    return names


def setup_arguments():
    tree = ast.parse((ROOT / 'setup.py').read_text())
    call = next(node for node in ast.walk(tree)
                if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'setup')
    return {keyword.arg: keyword.value for keyword in call.keywords}


def depends(kind):
    return {element.text for element in XML.findall(kind)}


def test_package_xml_is_format_3_for_ament_python():
    assert XML.get('format') == '3'
    assert XML.findtext('name') == 'mbrl_ros'
    assert XML.findtext('license') == 'Apache-2.0'
    assert XML.findtext('export/build_type') == 'ament_python'
    assert (ROOT / XML.find('license').get('file')).is_file()


def test_one_version_everywhere():
    in_setup = ast.literal_eval(setup_arguments()['version'])
    assert {mbrl_ros.__version__, in_setup, XML.findtext('version')} == {'0.1.0'}


def test_package_xml_names_every_ros_package_the_nodes_import():
    imported = set().union(*(modules_of(path) for path in NODES.rglob('*.py')))
    ours = {name for name in imported if name.endswith(('_msgs', '_srvs', '_interfaces'))
            or name in ('rclpy', 'launch', 'launch_ros', 'ament_index_python')}
    assert ours
    assert ours - depends('exec_depend') == set()


def test_package_xml_covers_setup_py():
    # Where a rosdep key exists it differs from the name on PyPI; the rest is named in a comment.
    keys = {'pillow': 'python3-pil', 'pyyaml': 'python3-yaml', 'rosbags': 'python3-rosbags-pip',
            'onnxruntime': 'python3-onnxruntime-pip'}
    extras = ast.literal_eval(setup_arguments()['extras_require'])
    required = ast.literal_eval(setup_arguments()['install_requires']) \
        + extras['cpu'] + extras['train']
    names = {text.split('>')[0] for text in required}
    without_key = {'annotated-types', 'backports.zstd', 'mcap', 'mujoco-core', 'ndonnx', 'onnx',
                   'spox'}
    text = (ROOT / 'package.xml').read_text()
    comment = text[text.index('<!--'):text.index('-->')]
    assert {name for name in without_key if name not in comment} == set()
    expected = {keys.get(name, f'python3-{name}') for name in names - without_key}
    assert expected - depends('exec_depend') == set()


def test_the_two_onnx_runtimes_are_never_asked_for_together():
    arguments = setup_arguments()
    extras = ast.literal_eval(arguments['extras_require'])
    everywhere = [*ast.literal_eval(arguments['install_requires']), *extras['ros'],
                  *extras['train'], *extras['test']]
    assert not [text for text in everywhere if text.startswith('onnxruntime')]
    assert [text for text in extras['cpu'] + extras['gpu'] if text.startswith('onnxruntime')]


def test_the_resource_marker_is_empty():
    assert (ROOT / 'resource' / 'mbrl_ros').read_bytes() == b''


def test_every_node_of_the_table_has_a_console_script_and_a_main():
    scripts = ast.literal_eval(setup_arguments()['entry_points'])['console_scripts']
    targets = dict(text.split(' = ') for text in scripts)
    for entry in GROUPS['demo']:
        assert targets[entry.name] == f'{entry.module}:main'
        tree = ast.parse((ROOT / (entry.module.replace('.', '/') + '.py')).read_text())
        assert 'main' in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_is_a_launch_file_for_every_group():
    assert {path.name.partition('.')[0] for path in LAUNCH_FILES} == set(GROUPS)


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_files_are_thin(path):
    group = path.name.partition('.')[0]
    assert modules_of(path) == {'launch', 'mbrl_ros'}
    assert f"launch_description('{group}')" in path.read_text()


def test_launching_needs_only_launch_and_the_table():
    # `dataclasses` is Python's own.
    assert modules_of(NODES / 'launching.py') == {'dataclasses', 'launch', 'launch_ros',
                                                  'mbrl_ros'}


def parameters_of(arguments):
    pairs = [text for flag, text in pairwise(arguments) if flag == '-p']
    return {name: yaml.safe_load(value) for name, _, value in
            (pair.partition(':=') for pair in pairs)}


def test_command_line_of_a_node():
    controller = GROUPS['control'][0]
    options = NodeOptions(robot='7', task='t', namespace='/left/', log_level='warn',
                          params_file=str(ROOT / 'package.xml'))
    command = controller.command(options, {'seed': 3, 'autostart': False, 'rate': 0.5})
    assert command[:3] == [sys.executable, '-m', 'mbrl_ros.nodes.mpc_controller']
    assert command[3:6] == ['--ros-args', '-r', '__ns:=/left']
    assert command[-4:] == ['--params-file', options.params_file, '--log-level', 'warn']
    # '7' stays a string.
    assert parameters_of(command) == {
        'robot': '7', 'task': 't', 'model': '', 'use_sim_time': False, 'autostart': False,
        'seed': 3, 'rate': 0.5}


def test_without_namespace_and_file_nothing_is_said_about_them():
    command = GROUPS['record'][0].command(NodeOptions())
    assert '-r' not in command
    assert '--params-file' not in command
    assert parameters_of(command)['autostart'] is True


def test_the_simulated_robot_makes_the_time_others_follow():
    options = NodeOptions(use_sim_time=True)
    sim, logger, controller = (entry.values(options) for entry in GROUPS['demo'])
    assert sim['lockstep'] is True
    assert 'use_sim_time' not in sim
    assert logger['use_sim_time'] is True
    assert (controller['use_sim_time'], controller['lockstep']) == (True, True)


def test_another_robot_on_clock_is_not_driven_in_lock_step():
    assert 'lockstep' not in GROUPS['control'][0].values(NodeOptions(use_sim_time=True))


def test_options_from_launch_texts():
    texts = {'robot': 'r', 'use_sim_time': 'True', 'ros_namespace': 'of somebody else'}
    options = NodeOptions.parse(texts)
    assert (options.robot, options.use_sim_time, options.task) == ('r', True, 'cartpole_swingup')


def test_a_real_robot_is_not_moved_by_starting_a_launch_file():
    logger, controller = (entry.values(NodeOptions()) for entry in GROUPS['real_robot'])
    assert (controller['autostart'], controller['autoconfigure']) == (False, True)
    assert logger['autostart'] is True
    assert 'lockstep' not in controller
    asked = NodeOptions.parse({'autostart': 'true'})
    assert GROUPS['real_robot'][1].values(asked)['autostart'] is True


@pytest.mark.parametrize('group', [group for group in GROUPS if group != 'real_robot'])
def test_simulated_robots_start_by_themselves(group):
    assert all(entry.values(NodeOptions())['autostart'] is True for entry in GROUPS[group])


def test_a_real_robot_takes_the_place_of_the_simulated_one():
    # The same nodes from the same table, but for the robot itself.
    names = {group: {entry.name for entry in GROUPS[group]} for group in GROUPS}
    assert names['demo'] - names['real_robot'] == {'sim_robot'}


def test_remaps_go_to_every_node_in_the_form_of_ros_arguments():
    options = NodeOptions(remap=' joint_states:=/arm/joint_states  a/b:=c ')
    for entry in GROUPS['demo']:
        arguments = entry.ros_arguments(options)
        assert arguments[:4] == ['-r', 'joint_states:=/arm/joint_states', '-r', 'a/b:=c']
        command = entry.command(options)
        assert command[command.index('--ros-args') + 1:][:4] == arguments[:4]


def test_the_rviz_configuration_shows_what_the_controller_publishes():
    text = (ROOT / 'config' / 'rviz' / 'mbrl_ros.rviz').read_text()
    config = yaml.safe_load(text)['Visualization Manager']
    displays = {display['Class'].rpartition('/')[2]: display for display in config['Displays']}
    assert set(displays) == {'Grid', 'TF', 'Odometry', 'MarkerArray'}
    assert config['Global Options']['Fixed Frame'] == 'world'
    # Relative, so that RViz finds it in any namespace.
    assert displays['MarkerArray']['Topic']['Value'] == 'mpc_controller/plan_markers'
    assert set(displays['MarkerArray']['Namespaces']) == {'candidates', 'plan', 'goal'}


def test_data_files_of_every_kind_are_installed():
    call = next(node for node in ast.walk(ast.parse((ROOT / 'setup.py').read_text()))
                if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'shared_files')
    assert [ast.literal_eval(arg) for arg in call.args] == ['launch', 'config', 'models']


@pytest.mark.parametrize(('texts', 'said'), [
    ({'rviz': 'no'}, "rviz 'no' is not one of: true, false"),
    ({'remap': 'a:=b c'}, "remap: 'c' is not 'from:=to'"),
    ({'remap': ':=b'}, "remap: ':=b' is not 'from:=to'"),
    ({'use_sim_time': 'maybe'}, "use_sim_time 'maybe' is not one of: true, false"),
    ({'log_level': 'loud'}, "log_level 'loud' is not one of: debug, info"),
    ({'params_file': '/no/such.yaml'}, "params_file '/no/such.yaml' is not a file"),
])
def test_bad_options_are_refused(texts, said):
    with pytest.raises(SpecError, match=said):
        NodeOptions.parse(texts)


def test_parameters_survive_the_way_through_json():
    # What the node gets is YAML; JSON texts must read back as the same values.
    for value in ('on', '1e3', 'a b', True, 3, 2.5, ['x', 'y']):
        assert yaml.safe_load(json.dumps(value)) == value
