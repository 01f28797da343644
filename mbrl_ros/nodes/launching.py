"""A launch description from the table of nodes; only the files in launch/ import this."""

from dataclasses import fields

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import Node

from mbrl_ros.core.paths import share_dir
from mbrl_ros.nodes.table import GROUPS, NodeOptions


def launch_description(group: str) -> LaunchDescription:
    """
    Describe one group of the table, with its options as launch arguments.

    Parameters
    ----------
    group : str
        A key of table.GROUPS.

    """
    arguments = [
        DeclareLaunchArgument(option.name, description=option.metadata['help'],
                              default_value=_text(option.default))
        for option in fields(NodeOptions) if option.metadata.get('only', group) == group]

    def start(context: LaunchContext) -> list[Node]:
        options = NodeOptions.parse(context.launch_configurations)
        nodes = [
            Node(package='mbrl_ros', executable=entry.name, name=entry.name,
                 namespace=options.namespace, ros_arguments=entry.ros_arguments(options),
                 output='screen')
            for entry in GROUPS[group]]
        return [*nodes, _rviz(options)] if options.rviz else nodes

    # The arguments have values only when the launch runs, hence a function of its context.
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def _rviz(options: NodeOptions) -> Node:
    """Return RViz in the same namespace: the topics of its configuration are relative."""
    return Node(package='rviz2', executable='rviz2', name='rviz', namespace=options.namespace,
                arguments=['-d', str(share_dir() / 'config' / 'rviz' / 'mbrl_ros.rviz')],
                ros_arguments=[text for rule in options.remap.split() for text in ('-r', rule)],
                output='screen')


def _text(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
