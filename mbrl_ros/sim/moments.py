"""Many states of the physics at once: what sensors read of rollouts."""

from collections.abc import Iterator
from functools import cached_property

import mujoco
import numpy as np

# Time, positions, velocities, then whatever else the next step depends on.
FULL_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS.value


class Moments:
    """
    States of the physics, and where the bodies are in them.

    Parameters
    ----------
    model : MjModel
        Whose states they are.
    scratch : MjData
        To work in; whatever it holds is lost.
    states : array, shape (..., F)
        Full states of the physics, as MuJoCo lays them out.
    controls : array, shape (..., nu)
        What the actuators were told last.

    Attributes
    ----------
    time_s : array, shape (...)
        Simulated time.
    qpos, qvel : array, shapes (..., nq) and (..., nv)
        Positions and velocities of the joints.

    """

    def __init__(self, model: mujoco.MjModel, scratch: mujoco.MjData, states: np.ndarray,
                 controls: np.ndarray) -> None:
        self._model, self._scratch = model, scratch
        self._states, self._controls = states, controls
        self.time_s, rest = states[..., 0], states[..., 1:]
        self.qpos, self.qvel = rest[..., :model.nq], rest[..., model.nq:model.nq + model.nv]

    def each(self) -> Iterator[mujoco.MjData]:
        """Go through them in the order of the array; each is `scratch`, until the next."""
        for index in np.ndindex(self.time_s.shape):
            mujoco.mj_setState(self._model, self._scratch, self._states[index], FULL_STATE)
            self._scratch.ctrl[:] = self._controls[index]
            yield self._scratch

    def position(self, body: int) -> np.ndarray:
        """Return where a body is in the world [m], shape (..., 3)."""
        return self._frames[0][..., body, :]

    def orientation(self, body: int) -> np.ndarray:
        """Return the quaternion of a body, w first, shape (..., 4)."""
        return self._frames[1][..., body, :]

    @cached_property
    def _frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (..., nbody, 3) and quaternions (..., nbody, 4) of all bodies."""
        shape = (*self.time_s.shape, self._model.nbody)
        positions, quaternions = np.empty((*shape, 3)), np.empty((*shape, 4))
        for index, data in zip(np.ndindex(self.time_s.shape), self.each(), strict=True):
            mujoco.mj_kinematics(self._model, data)
            positions[index], quaternions[index] = data.xpos, data.xquat
        return positions, quaternions
