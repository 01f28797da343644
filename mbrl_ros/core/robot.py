"""The robot spec: what is observed, what is commanded, at which rate and inside which limits."""

from hashlib import sha256
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.paths import find_config
from mbrl_ros.core.yaml_file import load, Strict

Unit = Literal['m', 'rad', 'm/s', 'rad/s', 'm/s^2', 'rad/s^2', 'N', 'N*m', 'V', 'A', 's', 'Hz',
               'K', 'Pa', 'W', '1']
Feature = Literal['linear', 'angle', 'ignored']
Target = Literal['delta', 'absolute']
JOINT_STATE = 'sensor_msgs/msg/JointState'
JOINT_TRAJECTORY = 'trajectory_msgs/msg/JointTrajectory'
_TRAJECTORY_ARRAYS = ('positions', 'velocities', 'accelerations', 'effort')
Name = Annotated[str, Field(pattern=r'^[a-z][a-z0-9_]*$')]
Std = Annotated[float, Field(ge=0.0)]


def _check_path(text: str) -> str:
    try:
        MessagePath.parse(text)
    except SpecError as error:
        raise ValueError(str(error)) from None
    return text


class MessageField(Strict):
    """One named number on a topic."""

    name: Name
    unit: Unit
    topic: str = Field(min_length=1)
    type: str = Field(pattern=r'^\w+/msg/\w+$')
    path: Annotated[str, AfterValidator(_check_path)]


class ObservationField(MessageField):
    """A number the robot reports, how the model sees it and what the model predicts of it."""

    feature: Feature = 'linear'
    target: Target = 'delta'
    # A driver may leave a velocity out, or send NaN: take the slope of the joint's position.
    when_missing: Literal['refuse', 'derive'] = 'refuse'

    @model_validator(mode='after')
    def _check_joint(self) -> 'ObservationField':
        path = MessagePath.parse(self.path)
        if self.type == JOINT_STATE and not isinstance(path.key, str):
            raise ValueError(f"path '{self.path}': a joint goes by its name, such as "
                             "'position[shoulder]': its place in the message may change")
        if path.is_angle and self.unit != 'rad':
            raise ValueError(f"path '{self.path}': an angle in 'rad', not in '{self.unit}'")
        return self


class ActionField(MessageField):
    """
    A number the robot obeys: limits and safe value in `unit`, rate limit in `unit` a second.

    `joint` is what the robot's own controller calls it: where that can be asked, at configure,
    another order of joints is refused.
    """

    min: float
    max: float
    rate_limit: float = Field(gt=0)
    safe_value: float
    joint: str = ''

    @model_validator(mode='after')
    def _check_range(self) -> 'ActionField':
        if self.min >= self.max:
            raise ValueError(f'empty range: min {self.min} must be below max {self.max}')
        if not self.min <= self.safe_value <= self.max:
            raise ValueError(f'safe_value {self.safe_value} outside [{self.min}, {self.max}]')
        return self


class SimulationSpec(Strict):
    """
    How the simulated robot starts, and what reports it.

    Attributes
    ----------
    mjcf : str
        A file below models/, a path, or `package:path`: a file of an installed Python package.
    keyframe : str
        Where it starts; empty: all joints as the MJCF has them.
    body : str, or dict of topic to str
        Whose motion the topics report that are not about joints, by its name in the MJCF: one for
        all, or by topic; empty, or not given: the first body of the world.
    initial_std : float, or dict of joint to float
        Noise at the start: of every position and velocity, or of the positions of these joints.
    topic_rates_hz : dict of topic to float
        A multiple of the control rate, which is that of all other topics.

    """

    mjcf: str
    keyframe: str = ''
    body: str | dict[str, str] = ''
    initial_std: Std | dict[str, Std] = 0.0
    topic_rates_hz: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)


class RobotSpec(Strict):
    """
    A robot, as read from config/robots/<name>.yaml.

    Attributes
    ----------
    observation : tuple of ObservationField
        Defines the state vector, shape (S,), in this order.
    action : tuple of ActionField
        Defines the action vector, shape (A,), in this order.
    stale_after_s : dict of str to float
        Age [s] at which an observation of each topic may no longer be acted upon.
    actuation_delay_steps : int
        Control periods that the robot holds a command back, beyond its own control cycle.
        `mbrl-ros doctor BAG` estimates it; training and control both take it into account.
    reward, termination : MessageField, optional
        Where the robot, or whoever judges it, reports the reward of the last period and whether
        the episode ended (not zero). Recorded, and learned where the training settings ask for it.

    """

    name: Name
    description: str = ''
    control_rate_hz: float = Field(gt=0, le=1000)
    observation: tuple[ObservationField, ...] = Field(min_length=1)
    action: tuple[ActionField, ...] = Field(min_length=1)
    stale_after_s: dict[str, Annotated[float, Field(gt=0)]]
    actuation_delay_steps: int = Field(default=0, ge=0, le=20)
    reward: MessageField | None = None
    termination: MessageField | None = None
    simulation: SimulationSpec | None = None

    @model_validator(mode='after')
    def _check_names(self) -> 'RobotSpec':
        names = [*self.state_names, *self.action_names]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f'names used twice: {", ".join(double)}')
        topics = sorted({field.topic for field in self.observation})
        if sorted(self.stale_after_s) != topics:
            raise ValueError(f'stale_after_s must name each observed topic: {", ".join(topics)}')
        self._check_command_paths()
        self._check_derived()
        self._check_simulated_topics(topics)
        types: dict[str, str] = {}
        for field in (*self.observation, *self.action, *self.labels):
            if types.setdefault(field.topic, field.type) != field.type:
                raise ValueError(f"topic '{field.topic}' is given two types: "
                                 f'{types[field.topic]} and {field.type}')
        return self

    def _check_command_paths(self) -> None:
        """Refuse commands that could not be sent: doubled, by name, or an array with holes."""
        places: dict[str, list[int | str | None]] = {}
        for field in self.action:
            path = MessagePath.parse(field.path)
            if field.type == JOINT_TRAJECTORY:
                self._check_trajectory_path(field.name, path)
            elif any(isinstance(key, str) for _, key in path.parts):
                raise ValueError(f"{field.name}: path '{field.path}': a command is addressed by "
                                 "index, such as 'data[0]'; by joint name only in a "
                                 f'{JOINT_TRAJECTORY}')
            elif any(key is not None for _, key in path.parts[:-1]):
                raise ValueError(f"{field.name}: path '{field.path}': an index may only be at the "
                                 "end, such as 'data[0]'")
            keys = places.setdefault(f'{field.topic}: {".".join(path.attributes)}', [])
            if path.key in keys:
                raise ValueError(f"{field.name}: path '{field.path}' is taken by another action")
            keys.append(path.key)
        for array, keys in places.items():
            if not isinstance(keys[0], str) and keys != [None] \
                    and set(keys) != set(range(len(keys))):
                raise ValueError(f'{array}: the indices of the commands must be 0 to '
                                 f'{len(keys) - 1}, found {sorted(map(str, keys))}')
        for topic in {f.topic for f in self.action if f.type == JOINT_TRAJECTORY}:
            names = [keys for array, keys in places.items() if array.startswith(f'{topic}: ')]
            if any(keys != names[0] for keys in names):
                raise ValueError(f'{topic}: every array of a trajectory must name the same joints '
                                 f'in the same order, found {names}')

    @staticmethod
    def _check_trajectory_path(name: str, path: MessagePath) -> None:
        if path.parts[0] != ('points', 0) or len(path.parts) != 2 \
                or path.attributes[1] not in _TRAJECTORY_ARRAYS or not isinstance(path.key, str):
            allowed = ', '.join(f'points[0].{array}[joint]' for array in _TRAJECTORY_ARRAYS)
            raise ValueError(f"{name}: path '{path.text}' in a trajectory. Allowed: {allowed}")

    def _check_derived(self) -> None:
        """Refuse to derive what is no velocity, or whose position is not observed beside it."""
        observed = {(field.topic, field.path) for field in self.observation}
        for field in self.observation:
            path = MessagePath.parse(field.path)
            if field.when_missing == 'derive' and not (
                    path.attributes == ('velocity',) and isinstance(path.key, str)
                    and (field.topic, f'position[{path.key}]') in observed):
                raise ValueError(f"{field.name}: when_missing 'derive' is for a path "
                                 "'velocity[joint]' of a robot that observes 'position[joint]' on "
                                 f"the same topic, not for '{field.path}'")

    def _check_simulated_topics(self, topics: list[str]) -> None:
        if self.simulation is None:
            return
        rates, body = self.simulation.topic_rates_hz, self.simulation.body
        for key, named in (('topic_rates_hz', rates), ('body', body)):
            unknown = sorted(set(named) - set(topics)) if isinstance(named, dict) else []
            if unknown:
                raise ValueError(f'{key}: not observed: {", ".join(unknown)}; '
                                 f'allowed: {", ".join(topics)}')
        for topic, rate_hz in rates.items():
            times = rate_hz / self.control_rate_hz
            if times < 0.5 or abs(times - round(times)) > 1e-9:
                raise ValueError(f'topic_rates_hz: {topic}: {rate_hz:g} Hz is no multiple of the '
                                 f'control rate, {self.control_rate_hz:g} Hz')
            if topic == self.observation[0].topic and round(times) != 1:
                raise ValueError(f'topic_rates_hz: {topic} is the topic of the first observation, '
                                 'which sets the pace: it is published at the control rate')

    @property
    def dt_s(self) -> float:
        """Control period [s], also the time step of the model."""
        return 1.0 / self.control_rate_hz

    @property
    def dt_ns(self) -> int:
        """Control period [ns]."""
        return round(1e9 / self.control_rate_hz)

    @property
    def state_names(self) -> list[str]:
        """Names of the state vector, length S."""
        return [field.name for field in self.observation]

    @property
    def action_names(self) -> list[str]:
        """Names of the action vector, length A."""
        return [field.name for field in self.action]

    @property
    def action_min(self) -> np.ndarray:
        """Lower action limits, shape (A,), in each field's unit."""
        return np.array([field.min for field in self.action])

    @property
    def action_max(self) -> np.ndarray:
        """Upper action limits, shape (A,), in each field's unit."""
        return np.array([field.max for field in self.action])

    @property
    def action_rate_limit(self) -> np.ndarray:
        """Largest change of the command, shape (A,), in each field's unit a second."""
        return np.array([field.rate_limit for field in self.action])

    @property
    def safe_value(self) -> np.ndarray:
        """Command that is always allowed, shape (A,)."""
        return np.array([field.safe_value for field in self.action])

    @property
    def labels(self) -> tuple[MessageField, ...]:
        """The reward and the termination, as far as the robot reports them."""
        return tuple(field for field in (self.reward, self.termination) if field is not None)

    def observation_topics(self) -> dict[str, str]:
        """Return each observed topic and its message type."""
        return {field.topic: field.type for field in self.observation}

    def action_topics(self) -> dict[str, str]:
        """Return each command topic and its message type."""
        return {field.topic: field.type for field in self.action}

    def label_topics(self) -> dict[str, str]:
        """Return each topic of a label and its message type."""
        return {field.topic: field.type for field in self.labels}

    def signature(self) -> dict[str, Any]:
        """
        Return what a model depends on: rate, fields, units, limits; no topic.

        A model trained on the simulator drives the robot if both have the same signature, under
        whatever topic names.
        """
        wire = {'topic', 'type', 'path'}
        return {
            'control_rate_hz': self.control_rate_hz,
            'observation': [f.model_dump(exclude={*wire, 'when_missing'})
                            for f in self.observation],
            'action': [f.model_dump(exclude={*wire, 'safe_value', 'rate_limit', 'joint'})
                       for f in self.action],
        }

    def signature_hash(self) -> str:
        """Return the SHA-256 of the signature, as hexadecimal text."""
        return sha256(json.dumps(self.signature(), sort_keys=True).encode()).hexdigest()

    def spec_hash(self) -> str:
        """Return the SHA-256 of the whole spec, topics included, as hexadecimal text."""
        return sha256(self.model_dump_json().encode()).hexdigest()


def load_robot(name: str | Path) -> RobotSpec:
    """Load a robot spec by its shipped name or by the path of a YAML file."""
    return load(find_config('robots', str(name)), RobotSpec)
