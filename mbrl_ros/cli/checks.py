"""The checks behind `mbrl-ros doctor`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
import os
import platform
import time

PACKAGES = {
    'numpy': 'pip install numpy', 'onnx': 'pip install onnx', 'spox': 'pip install spox',
    'ndonnx': 'pip install ndonnx', 'mcap': 'pip install mcap', 'rosbags': 'pip install rosbags',
    'mujoco-core': "pip install 'mujoco-core>=4.0.1' (simulated robot)",
    'torch': 'pip install torch (training)'}


@dataclass(frozen=True)
class Check:
    """One finding: what, what was found, whether that is good, whether the demo needs it."""

    name: str
    found: str
    ok: bool
    needed: bool = True
    advice: str = ''


def run_checks() -> list[Check]:
    """Run all checks; none raises."""
    checks = [Check('python', platform.python_version(), True),
              Check('cores', str(len(os.sched_getaffinity(0))), True)]
    checks += [_package(name, advice) for name, advice in PACKAGES.items()]
    return [*checks, *_guard('onnxruntime', _providers), *_guard('ROS 2', _ros)]


def _package(name: str, advice: str) -> Check:
    try:
        return Check(name, version(name), True)
    except PackageNotFoundError:
        return Check(name, 'not installed', False, advice=advice)


def _guard(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    try:
        return check()
    except Exception as error:  # a broken installation can raise anything at import
        return [Check(name, f'{type(error).__name__}: {error}', False,
                      advice=f'install {name}, or source its setup file')]


def _providers() -> list[Check]:
    import onnxruntime
    available = onnxruntime.get_available_providers()
    return [
        Check('onnxruntime', onnxruntime.__version__, True),
        Check('provider cpu', 'CPUExecutionProvider', 'CPUExecutionProvider' in available),
        Check('provider cuda', ', '.join(available), 'CUDAExecutionProvider' in available,
              needed=False, advice='install onnxruntime-gpu in place of onnxruntime')]


def _ros() -> list[Check]:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.utilities import get_rmw_implementation_identifier
    from std_msgs.msg import Empty

    began = time.monotonic()
    heard: list[float] = []
    with rclpy.init():
        node = rclpy.create_node('mbrl_doctor')
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        publisher = node.create_publisher(Empty, '~/ping', 1)
        node.create_subscription(Empty, '~/ping', lambda _: heard.append(time.monotonic()), 1)
        while not heard and time.monotonic() < began + 5.0:
            publisher.publish(Empty())
            executor.spin_once(timeout_sec=0.1)
        node.destroy_node()
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    return [
        Check('rclpy', get_rmw_implementation_identifier(), True),
        Check('DDS', f'a message came back on domain {domain}' if heard else 'silence for 5 s',
              bool(heard), advice='check ROS_DOMAIN_ID, discovery range and firewall')]
