"""Start the data logger: the services of /data_logger start and stop a bag."""

from launch import LaunchDescription

from mbrl_ros.nodes.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    """Build the description of the 'record' group of mbrl_ros/nodes/table.py."""
    return launch_description('record')
