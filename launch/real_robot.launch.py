"""Start data logger and controller for a real robot; the controller waits to be activated."""

from launch import LaunchDescription

from mbrl_ros.nodes.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    """Build the description of the 'real_robot' group of mbrl_ros/nodes/table.py."""
    return launch_description('real_robot')
