"""Nodes in processes of their own that tests may end, and one who hears all that they say."""

import json
import os
from pathlib import Path
import subprocess
import sys

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

REPO = Path(__file__).parents[1]
COMMANDS = 'forward_command_controller/commands'
ALL = QoSProfile(depth=10_000)


class NodeProcess:
    """A node that brings itself up in a process of its own; its log goes to a file."""

    def __init__(self, name, folder, **parameters):
        arguments = [text for key, value in ({'autostart': True} | parameters).items()
                     for text in ('-p', f'{key}:={json.dumps(value)}')]
        self.log_path = folder / f'{name}_{len(list(folder.glob("*.log")))}.log'
        with self.log_path.open('wb') as log:
            self.process = subprocess.Popen(
                [sys.executable, '-m', f'mbrl_ros.nodes.{name}', '--ros-args', *arguments],
                cwd=REPO, env=dict(os.environ), stdout=log, stderr=log)

    def end(self, number):
        """Send a signal, wait for the end and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(15.0)

    @property
    def log(self):
        return self.log_path.read_text(errors='replace')


class Witness(Node):
    """Keeps states (stamp, effort), commands (sent, value), ticks and all of /diagnostics."""

    def __init__(self):
        super().__init__('witness')
        self.states, self.commands, self.ticks, self.told = [], [], [], []
        self.create_subscription(JointState, 'joint_states', self._on_state, ALL)
        self.create_subscription(
            Float64MultiArray, COMMANDS,
            lambda m, info: self.commands.append((info['source_timestamp'], m.data[0])), ALL)
        self.create_subscription(DiagnosticStatus, 'mpc_controller/tick', self._on_tick, ALL)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, ALL)

    def _on_state(self, message):
        stamp = message.header.stamp
        self.states.append((stamp.sec * 10**9 + stamp.nanosec, message.effort[0]))

    def _on_tick(self, message):
        self.ticks.append({v.key: v.value for v in message.values} | {'reason': message.message})

    def _on_diagnostics(self, message):
        self.told.extend((s.name, s.level, s.message) for s in message.status)

    def speaks(self, name, first=0):
        return any(n == name for n, _, _ in self.told[first:])

    def was_told(self, name, level, text, first=0):
        return any((n, lv) == (name, level) and text in m for n, lv, m in self.told[first:])
