"""Independent uniform actions, over the whole range as in PETS's first trial or less."""

import numpy as np
from pydantic import Field

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.yaml_file import Strict


class Config(Strict):
    """Parameters of the uniform signal."""

    hold_steps: int = Field(1, ge=1, description='Periods for which one draw is held')
    amplitude: float = Field(1.0, gt=0, le=1,
                             description='Share of the room between safe value and limits')


class Signal:
    """Uniform draws, each held for `hold_steps` periods."""

    def __init__(self, config: Config, robot: RobotSpec, generator: np.random.Generator) -> None:
        self._config, self._robot, self._generator = config, robot, generator
        self._count = 0
        self._action = robot.safe_value

    def next(self) -> np.ndarray:
        """Return the action of the next control period, shape (A,)."""
        if self._count % self._config.hold_steps == 0:
            safe, share = self._robot.safe_value, self._config.amplitude
            self._action = self._generator.uniform(
                safe + share * (self._robot.action_min - safe),
                safe + share * (self._robot.action_max - safe))
        self._count += 1
        return self._action
