"""The checks behind `mbrl-ros doctor`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
import os
import platform

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
    from mbrl_ros.runtime import providers
    from mbrl_ros.runtime.ort import versions

    checks = [Check('onnxruntime', versions()[0], True)]
    for name in providers.names():
        provider = providers.load(name)
        problem = provider.problem()
        checks.append(Check(f'provider {name}', 'missing' if problem else
                            ', '.join(provider.PRECISIONS), not problem, needed=name == 'cpu',
                            advice=problem))
    return checks


def _ros() -> list[Check]:
    from mbrl_ros.nodes.loopback import hear_yourself

    middleware, heard = hear_yourself()
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    return [
        Check('rclpy', middleware, True),
        Check('DDS', f'a message came back on domain {domain}' if heard else 'silence for 5 s',
              heard, advice='check ROS_DOMAIN_ID, discovery range and firewall')]
