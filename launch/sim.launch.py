"""Start the simulated robot."""

from launch import LaunchDescription

from mbrl_ros.nodes.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    """Build the description of the 'sim' group of mbrl_ros/nodes/table.py."""
    return launch_description('sim')
