"""
Signals that collect first data: one file each, sent through the same safety gate as a plan.

A signal's module defines `Config` (a Strict model) and `Signal(config, robot, generator)` with
`next() -> action (A,)`, one call a control period.
"""

import sys
from typing import Protocol

import numpy as np

from mbrl_ros.core import plugins
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.yaml_file import Strict


class Signal(Protocol):
    """A source of exploratory actions."""

    def next(self) -> np.ndarray:
        """Return the action of the next control period, shape (A,), inside the limits."""


def config_class(name: str) -> type[Strict]:
    """Return the Config of a signal by its name; an unknown one is refused with the known."""
    return plugins.find(sys.modules[__name__], name).Config


def make_signal(name: str, config: Strict, robot: RobotSpec,
                generator: np.random.Generator) -> Signal:
    """Build a signal from its name, its Config and the robot whose limits it keeps to."""
    return plugins.find(sys.modules[__name__], name).Signal(config, robot, generator)
