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


class Signal(Protocol):
    """A source of exploratory actions."""

    def next(self) -> np.ndarray:
        """Return the action of the next control period, shape (A,), inside the limits."""


def make_signal(name: str, robot: RobotSpec, generator: np.random.Generator) -> Signal:
    """Build a signal by its name; an unknown name is refused with the known ones."""
    module = plugins.find(sys.modules[__name__], name)
    return module.Signal(module.Config(), robot, generator)
