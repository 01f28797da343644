"""Start the controller: it drives the robot towards the task with a learned model."""

from launch import LaunchDescription

from mbrl_ros.nodes.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    """Build the description of the 'control' group of mbrl_ros/nodes/table.py."""
    return launch_description('control')
