"""
What the simulated robot reports, by message type: readings with the structure of the message.

A reading has the attribute names of its ROS message, so that a path of the robot spec reads
either, and the node can copy one into the other without knowing the type.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import mujoco
import numpy as np

from mbrl_ros.core.robot import JOINT_STATE
from mbrl_ros.sim.moments import Moments

_SCALAR_JOINTS = (int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE))
_FRAME = mujoco.mjtObj.mjOBJ_XBODY

# Draws noise of a shape, in the unit of whatever it is added to.
Noise = Callable[[tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class JointReading:
    """Of sensor_msgs/JointState; each array (J,)."""

    name: tuple[str, ...]
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray


@dataclass(frozen=True)
class Vector:
    """Of geometry_msgs/Vector3 and Point."""

    x: float
    y: float
    z: float


@dataclass(frozen=True)
class Quaternion:
    """Of geometry_msgs/Quaternion."""

    x: float
    y: float
    z: float
    w: float


@dataclass(frozen=True)
class Pose:
    """Of geometry_msgs/Pose."""

    position: Vector
    orientation: Quaternion


@dataclass(frozen=True)
class Twist:
    """Of geometry_msgs/Twist."""

    linear: Vector
    angular: Vector


@dataclass(frozen=True)
class PoseEstimate:
    """Of geometry_msgs/PoseWithCovariance; a covariance of zeros means 'unknown'."""

    pose: Pose


@dataclass(frozen=True)
class TwistEstimate:
    """Of geometry_msgs/TwistWithCovariance."""

    twist: Twist


@dataclass(frozen=True)
class PoseReading:
    """Of geometry_msgs/PoseStamped: pose in the world [m]."""

    pose: Pose


@dataclass(frozen=True)
class TwistReading:
    """Of geometry_msgs/TwistStamped: twist along the axes of the world [m/s, rad/s]."""

    twist: Twist


@dataclass(frozen=True)
class OdometryReading:
    """Of nav_msgs/Odometry: pose in the world [m], twist in the body's own frame [m/s, rad/s]."""

    pose: PoseEstimate
    twist: TwistEstimate


@dataclass(frozen=True)
class ImuReading:
    """Of sensor_msgs/Imu, in the body's frame [rad/s, m/s^2]; at rest it reads +9.81 upwards."""

    orientation: Quaternion
    angular_velocity: Vector
    linear_acceleration: Vector


class Sensor(Protocol):
    """
    Reads the robot; each call draws new noise.

    No reading touches what the next step starts from.
    """

    def begin(self, data: mujoco.MjData) -> None:
        """Learn that a control period begins with the positions and velocities in `data`."""

    def read(self, data: mujoco.MjData, noise: Noise) -> Any:
        """Return the reading that belongs to the positions and velocities in `data`."""

    def read_many(self, before: Moments, after: Moments) -> Any:
        """
        Return the readings of many moments at once, without noise, or None: one by one, please.

        A reading of arrays: `read` would find their elements in `after`, had each control period
        begun as in `before`. The joints are the first axis.
        """
        return None


class JointSensor(Sensor):
    """All named slides and hinges."""

    def __init__(self, model: mujoco.MjModel, body: int) -> None:
        del body  # joints go by their own names
        joints = [i for i in range(model.njnt) if model.joint(i).name
                  and int(model.jnt_type[i]) in _SCALAR_JOINTS]
        self.names = tuple(model.joint(i).name for i in joints)
        self._qpos, self._dof = model.jnt_qposadr[joints], model.jnt_dofadr[joints]

    def read(self, data: mujoco.MjData, noise: Noise) -> JointReading:
        """Return positions, velocities and the actuators' forces; noise on the first two."""
        error = noise((2, len(self.names)))
        return JointReading(self.names, data.qpos[self._qpos] + error[0],
                            data.qvel[self._dof] + error[1], data.qfrc_actuator[self._dof])

    def read_many(self, before: Moments, after: Moments) -> JointReading:
        """Return positions and velocities; no state of the physics has the forces."""
        del before
        return JointReading(self.names, np.moveaxis(after.qpos[..., self._qpos], -1, 0),
                            np.moveaxis(after.qvel[..., self._dof], -1, 0), np.empty(0))


class OdometrySensor(Sensor):
    """
    Pose and twist of one body, as a perfect odometry would find them.

    A step leaves frames, velocities and accelerations of bodies behind those of the joints: they
    are brought up to date first, which does not touch what the next step starts from.
    """

    def __init__(self, model: mujoco.MjModel, body: int) -> None:
        self._model, self._body = model, body

    def read(self, data: mujoco.MjData, noise: Noise) -> OdometryReading:
        """Return pose and twist; noise on position, orientation and both velocities."""
        mujoco.mj_forward(self._model, data)
        error = noise((4, 3))
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(self._model, data, _FRAME, self._body, velocity, 1)
        angular, linear = velocity.reshape(2, 3)
        return OdometryReading(
            PoseEstimate(Pose(_vector(data.xpos[self._body] + error[0]),
                              _turned(data.xquat[self._body], error[1]))),
            TwistEstimate(Twist(_vector(linear + error[2]), _vector(angular + error[3]))))


class ImuSensor(Sensor):
    """Gyroscope, accelerometer and orientation at the origin of one body."""

    def __init__(self, model: mujoco.MjModel, body: int) -> None:
        self._model, self._body = model, body

    def read(self, data: mujoco.MjData, noise: Noise) -> ImuReading:
        """Return what the body feels; the same noise on all, each in its unit."""
        mujoco.mj_forward(self._model, data)
        mujoco.mj_rnePostConstraint(self._model, data)
        error = noise((3, 3))
        velocity, acceleration = np.zeros(6), np.zeros(6)
        mujoco.mj_objectVelocity(self._model, data, _FRAME, self._body, velocity, 1)
        mujoco.mj_objectAcceleration(self._model, data, _FRAME, self._body, acceleration, 1)
        return ImuReading(_turned(data.xquat[self._body], error[0]),
                          _vector(velocity[:3] + error[1]), _vector(acceleration[3:] + error[2]))


class PoseSensor(Sensor):
    """Pose of one body, as motion capture would find it."""

    def __init__(self, model: mujoco.MjModel, body: int) -> None:
        self._model, self._body = model, body

    def read(self, data: mujoco.MjData, noise: Noise) -> PoseReading:
        """Return the pose; noise on position and orientation."""
        mujoco.mj_kinematics(self._model, data)
        error = noise((2, 3))
        return PoseReading(Pose(_vector(data.xpos[self._body] + error[0]),
                                _turned(data.xquat[self._body], error[1])))

    def read_many(self, before: Moments, after: Moments) -> PoseReading:
        """Return the poses."""
        del before
        w, x, y, z = np.moveaxis(after.orientation(self._body), -1, 0)
        return PoseReading(Pose(_vectors(after.position(self._body)), Quaternion(x, y, z, w)))


class MeanTwistSensor(Sensor):
    """
    Mean twist of one body since the control period began, as wheels that count steps find it.

    Its sum over the periods is the way gone, which the velocity at each of their ends is not: who
    is paid for that one learns to be fast at the right moments. At the start of an episode, before
    the first period, it is zero.
    """

    def __init__(self, model: mujoco.MjModel, body: int) -> None:
        self._model, self._body = model, body

    def begin(self, data: mujoco.MjData) -> None:
        """Remember the pose that the mean counts from."""
        mujoco.mj_kinematics(self._model, data)
        self._time_s = data.time
        self._position = data.xpos[self._body].copy()
        self._orientation = data.xquat[self._body].copy()

    def read(self, data: mujoco.MjData, noise: Noise) -> TwistReading:
        """Return the way and the turn since `begin`, each a second; noise on both."""
        mujoco.mj_kinematics(self._model, data)
        turn, error = np.zeros(3), noise((2, 3))
        mujoco.mju_subQuat(turn, data.xquat[self._body], self._orientation)
        mujoco.mju_rotVecQuat(turn, turn.copy(), self._orientation)
        elapsed_s = data.time - self._time_s
        rate_hz = 1.0 / elapsed_s if elapsed_s > 0.0 else 0.0
        way = data.xpos[self._body] - self._position
        return TwistReading(Twist(_vector(way * rate_hz + error[0]),
                                  _vector(turn * rate_hz + error[1])))

    def read_many(self, before: Moments, after: Moments) -> TwistReading:
        """Return the ways and turns between the moments, each a second."""
        # Here, because it loads slower than MuJoCo, and a robot that only moves never asks.
        from scipy.spatial.transform import Rotation  # noqa: PLC0415

        first, last = (Rotation.from_quat(moments.orientation(self._body), scalar_first=True)
                       for moments in (before, after))
        elapsed_s = (after.time_s - before.time_s)[..., None]
        way = after.position(self._body) - before.position(self._body)
        return TwistReading(Twist(_vectors(way / elapsed_s),
                                  _vectors((last * first.inv()).as_rotvec() / elapsed_s)))


SENSORS: dict[str, Callable[[mujoco.MjModel, int], Sensor]] = {
    JOINT_STATE: JointSensor,
    'nav_msgs/msg/Odometry': OdometrySensor,
    'sensor_msgs/msg/Imu': ImuSensor,
    'geometry_msgs/msg/PoseStamped': PoseSensor,
    'geometry_msgs/msg/TwistStamped': MeanTwistSensor,
}


def _vector(values: np.ndarray) -> Vector:
    return Vector(*values.tolist())


def _vectors(values: np.ndarray) -> Vector:
    """Return a vector of arrays from an array of vectors, shape (..., 3)."""
    return Vector(*np.moveaxis(values, -1, 0))


def _turned(quaternion: np.ndarray, rotation: np.ndarray) -> Quaternion:
    """Return a MuJoCo quaternion (w first), turned by a rotation vector [rad]."""
    result = quaternion.copy()
    mujoco.mju_quatIntegrate(result, rotation, 1.0)
    w, x, y, z = result.tolist()
    return Quaternion(x, y, z, w)
