"""A robot spec brought to life by MuJoCo, one control period a step, without ROS."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import mujoco
import numpy as np

from mbrl_ros.core.errors import MbrlError, ObservationError, SpecError
from mbrl_ros.core.field_reader import FieldReader
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.sim.mjcf import load_mjcf
from mbrl_ros.sim.sensors import JointSensor, SENSORS

# What is published at one moment: a reading by topic (see sensors.py).
Readings = dict[str, Any]


class MujocoRobot:
    """
    The simulated robot of a robot spec.

    Parameters
    ----------
    spec : RobotSpec
        Its `simulation` section says what is simulated and how it starts; each action field
        drives the actuator of the same name.
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

    Attributes
    ----------
    spec, model, data
        The robot spec, and MuJoCo's model and state.
    num_clipped : int
        Steps whose action was beyond a control range.
    num_substeps : int
        Physics time steps of a control period.
    actuators : list of int
        Actuator of each action field.
    sensors : dict of str to Sensor
        What reports on each topic.
    columns : dict of str to list of int
        Which numbers of the state vector a topic carries.

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
                            'simulated. Add one with its mjcf to its YAML.')
        self.spec = spec
        self.model = load_mjcf(spec.simulation.mjcf)
        self.data = mujoco.MjData(self.model)
        self.num_clipped = 0
        self._source = spec.simulation.mjcf
        self._keyframe = self._find_start(keyframe or spec.simulation.keyframe)
        self.actuators = [self._find('actuator', mujoco.mjtObj.mjOBJ_ACTUATOR, name)
                           for name in spec.action_names]
        self.sensors = {topic: self._sensor_class(kind)(self.model, self._find_body(topic))
                         for topic, kind in spec.observation_topics().items()}
        self._readers = {topic: FieldReader([f for f in spec.observation if f.topic == topic])
                         for topic in self.sensors}
        self.columns = {topic: [i for i, f in enumerate(spec.observation) if f.topic == topic]
                         for topic in self.sensors}
        self._check_limits()
        self.num_substeps = self._count_substeps()
        self._position_std, self._velocity_std = self._find_initial_std()
        self._parts = {topic: round(rate_hz / spec.control_rate_hz)
                       for topic, rate_hz in spec.simulation.topic_rates_hz.items()}
        self._pauses = self._find_pauses()
        self._noise_std = observation_noise_std
        self._noise_rng = np.random.default_rng([noise_seed, 1])
        # MuJoCo would reset a diverged robot to its start, silently; step() refuses instead.
        self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        self._scale(mass_scale, friction_scale)
        self.reset()
        self._check_observation()

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """
        Go back to the start.

        Parameters
        ----------
        rng : Generator, optional
            Adds the noise of `initial_std`; without it the keyframe is taken as it is.

        """
        # A keyframe of -1 stands for the joints as the MJCF has them.
        mujoco.mj_resetDataKeyframe(self.model, self.data, self._keyframe)
        if rng is not None and self._position_std.any():
            # Adds as it is to slides and hinges, and keeps a free body's quaternion a unit one.
            mujoco.mj_integratePos(self.model, self.data.qpos,
                                   rng.normal(0.0, self._position_std), 1.0)
            self.data.qvel += rng.normal(0.0, self._velocity_std)
        self.data.ctrl[self.actuators] = self.spec.safe_value
        mujoco.mj_forward(self.model, self.data)
        self._begin_period()
        for reader in self._readers.values():
            reader.forget()

    def step(self, action: np.ndarray) -> list[tuple[int, Readings]]:
        """
        Advance one control period with the action held.

        Parameters
        ----------
        action : array, shape (A,)
            In the order and units of the spec. The actuator clips what is beyond its control
            range; such steps are counted in `num_clipped`.

        Returns
        -------
        list of (int, Readings)
            What topics faster than the control rate report within the period, with the time [ns]
            since its start; empty without such topics.

        Raises
        ------
        MbrlError
            If the physics diverges.

        """
        low, high = self._control_range.T
        self.num_clipped += bool(np.any((action < low) | (action > high)))
        self.data.ctrl[self.actuators] = action
        self._begin_period()
        between: list[tuple[int, Readings]] = []
        done = 0
        for until, topics in self._pauses.items():
            self._advance(until - done)
            done = until
            between.append((round(until * self.model.opt.timestep * 1e9), self._read(topics)))
        self._advance(self.num_substeps - done)
        return between

    def observe(self) -> Readings:
        """Read all topics, in the order of the spec; each call draws new observation noise."""
        return self._read(list(self.sensors))

    def state(self) -> np.ndarray:
        """Observe, and return the state vector, shape (S,)."""
        state, stamp_ns = np.empty(len(self.spec.observation)), round(self.data.time * 1e9)
        for topic, reading in self.observe().items():
            state[self.columns[topic]] = self._readers[topic].read(reading, stamp_ns)
        return state

    @property
    def physics_hash(self) -> str:
        """SHA-256 of the physics as MuJoCo compiled it, masses and friction as they are now."""
        content = np.empty(mujoco.mj_sizeModel(self.model), np.uint8)
        mujoco.mj_saveModel(self.model, None, content)
        return sha256(content.tobytes()).hexdigest()

    def _advance(self, num_substeps: int) -> None:
        mujoco.mj_step(self.model, self.data, num_substeps)
        if not (np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all()):
            action = self.data.ctrl[self.actuators].tolist()
            raise MbrlError(f'{self._source}: the physics diverged at {self.data.time:.3f} s with '
                            f'action {action}. Try a smaller timestep.')

    def _begin_period(self) -> None:
        for sensor in self.sensors.values():
            sensor.begin(self.data)

    def _read(self, topics: Sequence[str]) -> Readings:
        return {topic: self.sensors[topic].read(self.data, self._noise) for topic in topics}

    def _noise(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._noise_rng.normal(0.0, self._noise_std, shape) if self._noise_std > 0.0 \
            else np.zeros(shape)

    @property
    def _control_range(self) -> np.ndarray:
        limited = self.model.actuator_ctrllimited[self.actuators].astype(bool)
        return np.where(limited[:, None], self.model.actuator_ctrlrange[self.actuators],
                        (-np.inf, np.inf))

    def _find(self, kind: str, category: mujoco.mjtObj, name: str) -> int:
        index = mujoco.mj_name2id(self.model, category, name)
        if index < 0:
            counts = {mujoco.mjtObj.mjOBJ_KEY: self.model.nkey,
                      mujoco.mjtObj.mjOBJ_BODY: self.model.nbody,
                      mujoco.mjtObj.mjOBJ_JOINT: self.model.njnt,
                      mujoco.mjtObj.mjOBJ_ACTUATOR: self.model.nu}
            known = [mujoco.mj_id2name(self.model, category, i) for i in range(counts[category])]
            raise SpecError(f"{self._source}: no {kind} '{name}'. Allowed: {_listed(known)}")
        return index

    def _find_start(self, keyframe: str) -> int:
        return self._find('keyframe', mujoco.mjtObj.mjOBJ_KEY, keyframe) if keyframe else -1

    def _find_body(self, topic: str) -> int:
        assert self.spec.simulation is not None
        body = self.spec.simulation.body
        name = body.get(topic, '') if isinstance(body, dict) else body
        return self._find('body', mujoco.mjtObj.mjOBJ_BODY, name) if name else 1

    def _find_initial_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the deviation of each position and of each velocity, both shape (nv,)."""
        assert self.spec.simulation is not None
        std, num_velocities = self.spec.simulation.initial_std, self.model.nv
        if not isinstance(std, dict):
            return np.full(num_velocities, std), np.full(num_velocities, std)
        positions = np.zeros(num_velocities)
        for name, value in std.items():
            joint = self._find('joint', mujoco.mjtObj.mjOBJ_JOINT, name)
            positions[self.model.dof_jntid == joint] = value
        return positions, np.zeros(num_velocities)

    def _sensor_class(self, kind: str) -> Any:
        if kind not in SENSORS:
            raise SpecError(f"robot '{self.spec.name}': the simulation cannot publish {kind}. "
                            f'Allowed: {", ".join(SENSORS)}')
        return SENSORS[kind]

    def _check_observation(self) -> None:
        readings = {topic: sensor.read(self.data, np.zeros)
                    for topic, sensor in self.sensors.items()}
        for field in self.spec.observation:
            try:
                FieldReader([field]).read(readings[field.topic], 0)
            except ObservationError as error:
                sensor = self.sensors[field.topic]
                allowed = f'. Allowed joints: {_listed(sensor.names)}; allowed: position, ' \
                    'velocity, effort' if isinstance(sensor, JointSensor) else ''
                raise SpecError(f"{self._source}: observation '{field.name}' cannot be read from "
                                f'a simulated {field.type}: {error}{allowed}') from None

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

    def _find_pauses(self) -> dict[int, list[str]]:
        """Return after how many physics time steps of a period which topics report."""
        pauses: dict[int, list[str]] = {}
        for topic, parts in self._parts.items():
            if self.num_substeps % parts:
                raise SpecError(
                    f'{self._source}: {topic} at {parts * self.spec.control_rate_hz:g} Hz asks '
                    f'for {parts} messages in the {self.num_substeps} physics time steps of a '
                    'control period. Change topic_rates_hz or the timestep.')
            for part in range(1, parts):
                pauses.setdefault(part * self.num_substeps // parts, []).append(topic)
        return dict(sorted(pauses.items()))

    def _scale(self, mass: float, friction: float) -> None:
        model = self.model
        for array in (model.body_mass, model.body_inertia):
            array[:] = array * mass
        for array in (model.dof_damping, model.dof_dampingpoly, model.dof_frictionloss,
                      model.geom_friction, model.pair_friction):
            array[:] = array * friction
        mujoco.mj_setConst(model, self.data)


def _listed(names: Sequence[str]) -> str:
    return ', '.join(name for name in names if name) or 'none'
