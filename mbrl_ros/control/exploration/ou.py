"""An Ornstein-Uhlenbeck process around the safe value: smooth, for robots that dislike jerks."""

import numpy as np
from pydantic import Field

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.yaml_file import Strict


class Config(Strict):
    """Parameters of the Ornstein-Uhlenbeck signal."""

    correlation_s: float = Field(0.3, gt=0, description='Time [s] over which it forgets')
    std: float = Field(0.25, gt=0, le=1, description='Stationary std, as a share of the range')


class Signal:
    """Exact discretisation of the process, clipped to the limits."""

    def __init__(self, config: Config, robot: RobotSpec, generator: np.random.Generator) -> None:
        self._robot, self._generator = robot, generator
        self._keep = np.exp(-robot.dt_s / config.correlation_s)
        std = config.std * (robot.action_max - robot.action_min)
        # This step variance makes the stationary std equal to `std`.
        self._step_std = std * np.sqrt(1.0 - self._keep**2)
        self._offset = np.zeros(len(robot.action))

    def next(self) -> np.ndarray:
        """Return the action of the next control period, shape (A,)."""
        self._offset = (self._keep * self._offset
                        + self._step_std * self._generator.standard_normal(len(self._offset)))
        return np.clip(self._robot.safe_value + self._offset,
                       self._robot.action_min, self._robot.action_max)
