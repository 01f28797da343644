"""The outline of a robot as thick line segments, so that a report can draw it without OpenGL."""

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.sim.mujoco_robot import MujocoRobot

_SPHERE = int(mujoco.mjtGeom.mjGEOM_SPHERE)
_ROUND = (_SPHERE, int(mujoco.mjtGeom.mjGEOM_CAPSULE), int(mujoco.mjtGeom.mjGEOM_CYLINDER))


@dataclass(frozen=True)
class Sketch:
    """Segments of G capsules on the x-z plane [m]: ends (G, 2), radius (G,), colour (G, 4)."""

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray
    rgba: np.ndarray


def sketch(robot: MujocoRobot, positions: Mapping[str, float]) -> Sketch:
    """
    Project the capsules, cylinders and spheres of a robot.

    Parameters
    ----------
    robot : MujocoRobot
        Its own state is left alone.
    positions : mapping of str to float
        Joint positions by joint name; joints that are not named stay at the MJCF's zero.

    """
    model, data = robot.model, mujoco.MjData(robot.model)
    for name, value in positions.items():
        data.qpos[model.joint(name).qposadr[0]] = value
    mujoco.mj_kinematics(model, data)
    chosen = [i for i in range(model.ngeom) if int(model.geom_type[i]) in _ROUND]
    is_sphere = model.geom_type[chosen] == _SPHERE
    half_length = np.where(is_sphere, 0.0, model.geom_size[chosen, 1])
    axis = data.geom_xmat[chosen].reshape(-1, 3, 3)[:, :, 2]
    centre, reach = data.geom_xpos[chosen], half_length[:, None] * axis
    return Sketch((centre - reach)[:, [0, 2]], (centre + reach)[:, [0, 2]],
                  model.geom_size[chosen, 0].copy(), model.geom_rgba[chosen].copy())


def joint_positions(spec: RobotSpec, state: np.ndarray) -> dict[str, float]:
    """Return the joint positions by joint name that a state vector, shape (S,), holds."""
    paths = [MessagePath.parse(field.path) for field in spec.observation]
    return {path.key: float(value) for path, value in zip(paths, state, strict=True)
            if path.attributes == ('position',) and isinstance(path.key, str)}
