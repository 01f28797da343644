"""A robot spec brought to life by MuJoCo, one control period a step, without ROS."""

from collections.abc import Sequence
from dataclasses import dataclass
import logging
from pathlib import Path

import mujoco
import numpy as np

from mbrl_ros.core.errors import MbrlError, ObservationError, SpecError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.paths import share_dir
from mbrl_ros.core.robot import RobotSpec

JOINT_STATE = 'sensor_msgs/msg/JointState'
_SCALAR_JOINTS = (int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE))
# MuJoCo would write its warnings to a file MUJOCO_LOG.TXT in whatever folder it is run from.
mujoco.set_mju_user_warning(logging.getLogger(__name__).warning)


@dataclass(frozen=True)
class JointReading:
    """What the joints report, under the attribute names of sensor_msgs/JointState; each (J,)."""

    name: tuple[str, ...]
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray


class MujocoRobot:
    """
    The simulated robot of a robot spec.

    Parameters
    ----------
    spec : RobotSpec
        Its `simulation` section names the MJCF, the keyframe and the initial noise; each action
        field drives the actuator of the same name.
    mass_scale : float
        Factor on the mass and inertia of every body.
    friction_scale : float
        Factor on joint damping, joint friction loss and contact friction.
    observation_noise_std : float
        Standard deviation of the noise on every observed position and velocity, in their units.
    noise_seed : int
        Seed of that noise.
    keyframe : str
        Replaces the keyframe of the spec; '' keeps it.

    Raises
    ------
    SpecError
        If the MJCF cannot be read or does not fit the spec; the text lists the names it has.

    """

    def __init__(self, spec: RobotSpec, *, mass_scale: float = 1.0, friction_scale: float = 1.0,
                 observation_noise_std: float = 0.0, noise_seed: int = 0,
                 keyframe: str = '') -> None:
        if spec.simulation is None:
            raise SpecError(f"robot '{spec.name}' has no 'simulation' section: it cannot be "
                            'simulated. Add mjcf and keyframe to its YAML.')
        self.spec = spec
        self.model = _load(spec.simulation.mjcf)
        self.data = mujoco.MjData(self.model)
        self.num_clipped = 0
        self._source = spec.simulation.mjcf
        self._keyframe = self._find('keyframe', mujoco.mjtObj.mjOBJ_KEY,
                                    keyframe or spec.simulation.keyframe)
        self._actuators = [self._find('actuator', mujoco.mjtObj.mjOBJ_ACTUATOR, name)
                           for name in spec.action_names]
        self._joints = [i for i in range(self.model.njnt) if self.model.joint(i).name
                        and int(self.model.jnt_type[i]) in _SCALAR_JOINTS]
        self.joint_names = tuple(self.model.joint(i).name for i in self._joints)
        self._qpos = self.model.jnt_qposadr[self._joints]
        self._dof = self.model.jnt_dofadr[self._joints]
        self._paths = self._check_observation()
        self._check_limits()
        self._num_substeps = self._count_substeps()
        self._noise_std = observation_noise_std
        self._noise_rng = np.random.default_rng([noise_seed, 1])
        # MuJoCo would reset a diverged robot to its start, silently; step() refuses instead.
        self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        self._scale(mass_scale, friction_scale)
        self.reset()

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """
        Go back to the keyframe.

        Parameters
        ----------
        rng : Generator, optional
            Adds N(0, initial_std) to every position and velocity; without it the keyframe is
            taken as it is.

        """
        mujoco.mj_resetDataKeyframe(self.model, self.data, self._keyframe)
        assert self.spec.simulation is not None
        std = self.spec.simulation.initial_std
        if rng is not None and std > 0.0:
            offset = rng.normal(0.0, std, (2, self.model.nv))
            # Adds as it is to slides and hinges, and keeps a free body's quaternion a unit one.
            mujoco.mj_integratePos(self.model, self.data.qpos, offset[0], 1.0)
            self.data.qvel += offset[1]
        self.data.ctrl[self._actuators] = self.spec.safe_value
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: np.ndarray) -> None:
        """
        Advance one control period with the action held.

        Parameters
        ----------
        action : array, shape (A,)
            In the order and units of the spec. The actuator clips what is beyond its control
            range; such steps are counted in `num_clipped`.

        Raises
        ------
        MbrlError
            If the physics diverges.

        """
        low, high = self._control_range.T
        self.num_clipped += bool(np.any((action < low) | (action > high)))
        self.data.ctrl[self._actuators] = action
        mujoco.mj_step(self.model, self.data, self._num_substeps)
        if not (np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all()):
            raise MbrlError(f'{self._source}: the physics diverged at {self.data.time:.3f} s with '
                            f'action {np.asarray(action).tolist()}. Try a smaller timestep.')

    def observe(self) -> JointReading:
        """Read all named slides and hinges; each call draws new observation noise."""
        noise = np.zeros((2, len(self._joints)))
        if self._noise_std > 0.0:
            noise = self._noise_rng.normal(0.0, self._noise_std, noise.shape)
        return JointReading(self.joint_names, self.data.qpos[self._qpos] + noise[0],
                            self.data.qvel[self._dof] + noise[1],
                            self.data.qfrc_actuator[self._dof])

    def state_of(self, reading: JointReading) -> np.ndarray:
        """Return the state vector, shape (S,), that a reading gives."""
        return np.array([path.read(reading) for path in self._paths])

    def state(self) -> np.ndarray:
        """Observe, and return the state vector, shape (S,)."""
        return self.state_of(self.observe())

    @property
    def _control_range(self) -> np.ndarray:
        limited = self.model.actuator_ctrllimited[self._actuators].astype(bool)
        return np.where(limited[:, None], self.model.actuator_ctrlrange[self._actuators],
                        (-np.inf, np.inf))

    def _find(self, kind: str, category: mujoco.mjtObj, name: str) -> int:
        index = mujoco.mj_name2id(self.model, category, name)
        if index < 0:
            counts = {mujoco.mjtObj.mjOBJ_KEY: self.model.nkey,
                      mujoco.mjtObj.mjOBJ_ACTUATOR: self.model.nu}
            known = [mujoco.mj_id2name(self.model, category, i) for i in range(counts[category])]
            raise SpecError(f"{self._source}: no {kind} '{name}'. Allowed: {_listed(known)}")
        return index

    def _check_observation(self) -> list[MessagePath]:
        foreign = sorted({f.type for f in self.spec.observation} - {JOINT_STATE})
        if foreign:
            raise SpecError(f"robot '{self.spec.name}': the simulation publishes {JOINT_STATE} "
                            f'only, but the observation asks for {", ".join(foreign)}')
        paths = [MessagePath.parse(field.path) for field in self.spec.observation]
        zeros = np.zeros(len(self.joint_names))
        for field, path in zip(self.spec.observation, paths, strict=True):
            try:
                path.read(JointReading(self.joint_names, zeros, zeros, zeros))
            except ObservationError:
                raise SpecError(
                    f"{self._source}: observation '{field.name}' reads {path.text}, which no "
                    f'joint gives. Allowed joints: {_listed(self.joint_names)}; allowed: '
                    'position, velocity, effort') from None
        return paths

    def _check_limits(self) -> None:
        for field, (low, high) in zip(self.spec.action, self._control_range, strict=True):
            if field.min < low or field.max > high:
                raise SpecError(
                    f"{self._source}: action '{field.name}' has limits [{field.min}, {field.max}] "
                    f'beyond the control range [{low:g}, {high:g}] of its actuator')

    def _count_substeps(self) -> int:
        timestep = self.model.opt.timestep
        count = round(self.spec.dt_s / timestep)
        if count < 1 or abs(count * timestep - self.spec.dt_s) > 1e-9:
            raise SpecError(
                f'{self._source}: the control period {self.spec.dt_s:g} s is no whole number of '
                f'physics time steps of {timestep:g} s. Change control_rate_hz or the timestep.')
        return count

    def _scale(self, mass: float, friction: float) -> None:
        model = self.model
        for array in (model.body_mass, model.body_inertia):
            array[:] = array * mass
        for array in (model.dof_damping, model.dof_dampingpoly, model.dof_frictionloss,
                      model.geom_friction, model.pair_friction):
            array[:] = array * friction
        mujoco.mj_setConst(model, self.data)


def _load(mjcf: str) -> mujoco.MjModel:
    shipped = share_dir() / 'models' / mjcf
    path = shipped if shipped.is_file() else Path(mjcf)
    if not path.is_file():
        raise SpecError(f"no MJCF '{mjcf}': neither {shipped} nor a file of that path")
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise SpecError(f'{path}: MuJoCo cannot read it: {error}') from error


def _listed(names: Sequence[str]) -> str:
    return ', '.join(name for name in names if name) or 'none'
