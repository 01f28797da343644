"""A sine whose frequency sweeps up, one phase an actuator: shows delays and resonances."""

import numpy as np
from pydantic import Field

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.yaml_file import Strict


class Config(Strict):
    """Parameters of the chirp; it starts again when the sweep is over."""

    start_hz: float = Field(0.1, gt=0, description='Frequency at the start')
    end_hz: float = Field(3.0, gt=0, description='Frequency at the end')
    sweep_s: float = Field(20.0, gt=0, description='Length of one sweep')
    amplitude: float = Field(0.9, gt=0, le=1, description='Share of the room to the limits')


class Signal:
    """Exponential sweep around the safe value, with a random phase for each actuator."""

    def __init__(self, config: Config, robot: RobotSpec, generator: np.random.Generator) -> None:
        self._config, self._robot = config, robot
        self._phase = generator.uniform(0.0, 2.0 * np.pi, len(robot.action))
        self._time_s = 0.0

    def next(self) -> np.ndarray:
        """Return the action of the next control period, shape (A,)."""
        c, robot = self._config, self._robot
        growth = np.log(c.end_hz / c.start_hz) / c.sweep_s
        # Phase is the integral of 2 pi f(t), f(t) = start exp(growth t).
        cycles = (c.start_hz * (np.expm1(growth * self._time_s) / growth) if growth
                  else c.start_hz * self._time_s)
        wave = np.sin(2.0 * np.pi * cycles + self._phase)
        self._time_s = (self._time_s + robot.dt_s) % c.sweep_s
        room = np.where(wave > 0, robot.action_max - robot.safe_value,
                        robot.safe_value - robot.action_min)
        return robot.safe_value + c.amplitude * wave * room
