"""Fixtures that several test files share: a DDS domain of the test's own, nodes that spin."""

from itertools import count
import os
from pathlib import Path
import shutil
from threading import Event, Thread
import time

from endpoints import have_matched, shared_topics
import pytest

from mbrl_ros.nodes.processes import own_domain

_COUNTER = count()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items):
    """Mark what has a DDS domain: its nodes keep time, and want the cores for themselves."""
    for item in items:
        if 'ros_domain' in item.fixturenames and not item.get_closest_marker('any_pace'):
            item.add_marker('ros')


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
    """Keep compiled graphs of the tests, and of processes they start, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture
def ros_domain(monkeypatch):
    """Return an unused ROS_DOMAIN_ID in 1..100, set for this process and its children."""
    environment = own_domain(1 + (os.getpid() * 7 + next(_COUNTER)) % 100)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return int(environment['ROS_DOMAIN_ID'])


@pytest.fixture
def ros(ros_domain):
    """Initialise rclpy in a domain of the test's own; nodes made after it land there."""
    rclpy = pytest.importorskip('rclpy')
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture
def spin(ros):
    """Return a function that spins nodes in a background thread until the test ends."""
    from rclpy.executors import SingleThreadedExecutor  # noqa: PLC0415 (rclpy is optional)
    running = []

    def start(*nodes):
        executor, stop = SingleThreadedExecutor(), Event()
        for node in nodes:
            executor.add_node(node)

        def work():
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.02)
        thread = Thread(target=work, daemon=True)
        thread.start()
        running.append((nodes, executor, stop, thread))

    yield start
    for nodes, executor, stop, thread in reversed(running):
        stop.set()
        thread.join(5.0)
        for node in nodes:
            if hasattr(node, 'leave'):
                node.leave()
            node.destroy_node()
        executor.shutdown()


@pytest.fixture
def eventually():
    """Return a function that waits until a condition holds, and returns whether it came to."""
    def wait(condition, timeout_s=5.0):
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.005)
        return bool(condition())
    return wait


@pytest.fixture
def logged(capfd, eventually):
    """Return a function that tells whether a text comes to be logged."""
    # rcutils logs on standard error, below sys.stderr: for now that is a file of capfd's. capfd
    # itself empties it after reading, and what another thread writes in between is lost.
    file = Path('/proc/self/fd/2')
    return lambda text: eventually(lambda: text in file.read_text(errors='replace'))


@pytest.fixture(scope='session')
def written_files(tmp_path_factory):
    """Write what `files` copies, once."""
    from controller_files import write_files  # noqa: PLC0415 (rclpy is optional)

    folder = tmp_path_factory.mktemp('files')
    write_files(folder)
    return folder


@pytest.fixture
def files(written_files, tmp_path):
    """Return a folder with a robot, its task, a small planner and a linear model; no torch."""
    return shutil.copytree(written_files, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def robot(ros):
    """Return the robot's side of a controller: what it says, and what it hears."""
    from controller_robot import Robot  # noqa: PLC0415 (rclpy is optional)

    return Robot()


@pytest.fixture
def matched(robot, eventually):
    """Return a function that waits until robot and controller hear each other."""
    def wait(controller):
        # The state, the command, its tick, its plan, and /diagnostics.
        assert len(shared_topics(robot, controller)) >= 5
        assert eventually(lambda: have_matched(robot, controller))
    return wait


@pytest.fixture
def start(files, robot, spin, matched, eventually):
    """Return a function that starts an active controller beside the robot."""
    from controller_files import make_controller  # noqa: PLC0415 (rclpy is optional)
    from rclpy.lifecycle import TransitionCallbackReturn  # noqa: PLC0415

    def begin(**changes):
        controller = make_controller(files, **changes)
        done = TransitionCallbackReturn.SUCCESS
        assert controller.trigger_configure() == done, controller.refusal
        spin(robot)
        spin(controller)
        matched(controller)
        assert controller.trigger_activate() == done, controller.refusal
        assert eventually(lambda: robot.sent)
        return controller
    return begin


@pytest.fixture
def answer(robot, eventually):
    """Return a function that publishes one observation and returns the command and tick."""
    def ask(*args, **changes):
        commands, ticks = len(robot.sent), len(robot.ticks)
        robot.observe(*args, **changes)
        assert eventually(lambda: len(robot.sent) == commands + 1
                          and len(robot.ticks) == ticks + 1)
        return robot.sent[-1], robot.ticks[-1]
    return ask
