"""The process of a node: what wakes it, and what ends it."""

import os
import signal
from subprocess import Popen, STDOUT
import sys

import pytest

pytestmark = pytest.mark.ros

# A node that says on standard output how often its executor went round by then.
PROGRAM = """
import sys, time
import rclpy.executors
from threading import Thread
import mbrl_ros.nodes.lifecycle as lifecycle
from mbrl_ros.nodes.lifecycle import ManagedNode, NodeParams, run

rounds = []

class Counting(rclpy.executors.SingleThreadedExecutor):
    def wait_for_ready_callbacks(self, *args, **kwargs):
        rounds.append(1)
        return super().wait_for_ready_callbacks(*args, **kwargs)

lifecycle.SingleThreadedExecutor = Counting

class Idle(ManagedNode):
    def __init__(self):
        super().__init__('idle', NodeParams)
        if 'raise' in sys.argv:
            self.create_timer(0.5, self.fail)
        else:
            Thread(target=self.tell, daemon=True).start()

    def fail(self):
        raise ZeroDivisionError('cosmic ray')

    def tell(self):
        time.sleep(1.0)
        begin = len(rounds)
        time.sleep(2.0)
        print('rounds', len(rounds) - begin, flush=True)

    def leave(self):
        print('left', flush=True)
        super().leave()

raise SystemExit(run(Idle))
"""


@pytest.fixture
def start(ros_domain, tmp_path):
    """Return a function that starts the node, and its output."""
    processes = []

    def begin(*arguments):
        file = tmp_path / 'output'
        with file.open('wb') as output:
            processes.append(Popen([sys.executable, '-c', PROGRAM, *arguments], stdout=output,
                                   stderr=STDOUT,
                                   env=os.environ | {'ROS_DOMAIN_ID': str(ros_domain)}))
        return processes[-1], file.read_text
    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_an_executor_with_nothing_to_do_sleeps_and_a_signal_ends_it(start, eventually):
    process, output = start()
    assert eventually(lambda: 'rounds' in output(), 20.0)
    # Once for each thing that comes; it looked for signals ten times a second before.
    assert 'rounds 0' in output()
    process.send_signal(signal.SIGTERM)
    assert process.wait(5.0) == 0
    assert output().count('left') == 1
    assert 'the node ends: SIGTERM' in output()


def test_what_a_callback_raises_ends_the_process_after_it_has_left(start):
    process, output = start('raise')
    assert process.wait(20.0) == 1
    assert 'ZeroDivisionError: cosmic ray' in output()
    assert output().count('left') == 1
