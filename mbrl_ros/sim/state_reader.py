"""State vectors of many states of the physics, as the robot's own topics would report them."""

from copy import copy
from typing import Any

import numpy as np

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import JOINT_STATE
from mbrl_ros.sim.moments import Moments
from mbrl_ros.sim.mujoco_robot import MujocoRobot
from mbrl_ros.sim.sensors import Sensor


class StateReader:
    """
    Reads the observation of a simulated robot from states of its physics, without noise.

    A topic whose sensor reads many moments at once is read at once. Any other, and one that
    reports an angle of a quaternion, is read moment by moment, by the sensor's own `read`: the
    same numbers, some 20 us each.

    Parameters
    ----------
    body : MujocoRobot
        Whose sensors read; its own are not touched.

    Raises
    ------
    SpecError
        If the robot observes a force, which is no function of a state.

    """

    def __init__(self, body: MujocoRobot) -> None:
        fields = body.spec.observation
        paths = [MessagePath.parse(field.path) for field in fields]
        for field, path in zip(fields, paths, strict=True):
            if field.type == JOINT_STATE and path.attributes[0] == 'effort':
                raise SpecError(
                    f"robot '{body.spec.name}': observation '{field.name}' is a force, which no "
                    'state of the physics has: MuJoCo cannot be its model. Allowed: positions '
                    'and velocities of joints, and what other topics report')
        self._size = len(fields)
        # Sensors remember the pose that a period began with: that of the robot must stay.
        self._topics = [(copy(sensor), body.columns[topic],
                         [paths[column] for column in body.columns[topic]])
                        for topic, sensor in body.sensors.items()]
        self._angles = [column for column, path in enumerate(paths) if path.is_angle]

    def read(self, before: Moments, after: Moments, observation: np.ndarray) -> np.ndarray:
        """
        Read sequences of states.

        Parameters
        ----------
        before, after : Moments, shape (P, H)
            How each control period began and ended.
        observation : array, shape (S,)
            State vector that all sequences begin with: angles go on from there, unwrapped.

        Returns
        -------
        array, shape (P, H, S)
            State vectors after each period.

        """
        states = np.empty((*after.time_s.shape, self._size))
        for sensor, columns, paths in self._topics:
            is_angular = any(path.is_angle for path in paths)
            reading = None if is_angular else sensor.read_many(before, after)
            states[..., columns] = _read_each(sensor, paths, before, after) if reading is None \
                else np.stack([path.find(reading) for path in paths], axis=-1)
        for column in self._angles:
            start = np.full((len(states), 1), observation[column])
            turned = np.unwrap(np.concatenate([start, states[..., column]], axis=1), axis=1)
            states[..., column] = turned[:, 1:]
        return states


def _read_each(sensor: Sensor, paths: list[MessagePath], before: Moments,
               after: Moments) -> np.ndarray:
    """Read the fields of a topic moment by moment, shape (P, H, F)."""
    starts, ends = before.each(), after.each()
    rows: list[Any] = []
    for _ in range(after.time_s.size):
        # Both are the same data: the first is read before the second is there.
        sensor.begin(next(starts))
        reading = sensor.read(next(ends), np.zeros)
        rows.append([path.read(reading) for path in paths])
    return np.array(rows).reshape(*after.time_s.shape, len(paths))
