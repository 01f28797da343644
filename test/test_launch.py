import importlib.util
from pathlib import Path

import pytest

from mbrl_ros.nodes.table import GROUPS

LAUNCH = Path(__file__).parents[1] / 'launch'


def has_launch():
    # Our folder launch/ is no module, but Python finds it as a namespace: hence the loader check.
    spec = importlib.util.find_spec('launch')
    return spec is not None and spec.origin is not None \
        and importlib.util.find_spec('launch_ros') is not None


pytestmark = pytest.mark.skipif(
    not has_launch(), reason='launch and launch_ros come with a ROS distribution, not from PyPI')


def load(group):
    spec = importlib.util.spec_from_file_location(f'{group}_launch',
                                                  LAUNCH / f'{group}.launch.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


def expand(description, texts):
    """Return the actions of a description once its arguments have values."""
    from launch import LaunchContext  # noqa: PLC0415 (may be absent)
    context = LaunchContext()
    context.launch_configurations.update(texts)
    actions = []
    for entity in description.entities:
        actions += entity.visit(context) or []
    return actions


@pytest.mark.parametrize('group', GROUPS)
def test_arguments_are_the_options(group):
    arguments = {argument.name for argument in load(group).get_launch_arguments()}
    assert arguments - {'autostart'} == {
        'robot', 'task', 'model', 'params_file', 'use_sim_time', 'namespace', 'log_level',
        'remap', 'rviz'}
    assert ('autostart' in arguments) == (group == 'real_robot')
    assert all(argument.description for argument in load(group).get_launch_arguments())


@pytest.mark.parametrize('group', GROUPS)
def test_nodes_are_those_of_the_table(group):
    nodes = expand(load(group), {})
    assert [node.node_executable for node in nodes] == [entry.name for entry in GROUPS[group]]
    assert {node.node_package for node in nodes} == {'mbrl_ros'}


@pytest.mark.parametrize('group', GROUPS)
def test_rviz_comes_only_when_asked(group):
    *nodes, rviz = expand(load(group), {'rviz': 'true'})
    assert [node.node_executable for node in nodes] == [entry.name for entry in GROUPS[group]]
    assert (rviz.node_package, rviz.node_executable) == ('rviz2', 'rviz2')


def test_a_bad_argument_is_refused():
    with pytest.raises(Exception, match="use_sim_time 'maybe'"):
        expand(load('sim'), {'use_sim_time': 'maybe'})
