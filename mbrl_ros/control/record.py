"""
A decision as text, with everything that is needed to make it again, bit for bit.

The text is JSON. Numbers are readable; arrays are {dtype, shape, base64} of their bytes, whole
numbers beyond 2^53, which other readers of JSON would round, are {int}, and floats that JSON does
not have are {float}.
"""

from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from mbrl_ros import __version__
from mbrl_ros.control.build import build_planner, PilotConfig
from mbrl_ros.control.model import Rollout
from mbrl_ros.control.mpc import Decision, Inputs
from mbrl_ros.control.tick import Tick
from mbrl_ros.core.errors import BagError, SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.core.yaml_file import describe, Strict
from mbrl_ros.planning import config_class
from mbrl_ros.runtime import companions
from mbrl_ros.runtime.ort import versions
from mbrl_ros.runtime.rollout_config import RolloutConfig

LARGEST_EXACT_INT = 2**53
# A plan may come in this many ticks late and still be told of.
KEPT_STAMPS = 256


def tools() -> dict[str, str]:
    """Return what the last bits depend on beside the settings: versions, and the processor's."""
    simd = np.show_config(mode='dicts').get('SIMD Extensions', {})
    return {'mbrl_ros': __version__, 'onnxruntime': versions()[0], 'numpy': np.__version__,
            'simd': ' '.join([*simd.get('baseline', []), *simd.get('found', [])])}


class Setup(Strict):
    """
    What a decision was made with; the same for all decisions until a model is reloaded.

    Robot and task are in it, whole: a record can be replayed when their files have changed.
    """

    format: Literal[2] = 2
    model: str = Field(description='Path of the model file')
    model_hash: str
    planner: str
    planner_config: dict[str, Any]
    rollout: RolloutConfig
    companions: dict[str, str] = Field(description='SHA-256 of value and policy files, by path')
    provider: str
    precision: str
    num_tiles: int
    delay_steps: int
    deadline_s: float | None
    max_spread: float
    seed: int
    tools: dict[str, str]
    robot: RobotSpec
    task: TaskSpec

    @classmethod
    def of(cls, robot: RobotSpec, task: TaskSpec, config: PilotConfig,
           rollout: Rollout) -> 'Setup':
        """Take down a controller's settings, and what its rollout made of them."""
        return cls(
            model=str(rollout.model_path.resolve()), model_hash=rollout.model_hash,
            planner=config.planner, planner_config=config.source_config.model_dump(mode='json'),
            rollout=config.rollout, companions={
                path: companions.digest(path)
                for path in (config.rollout.value, config.rollout.policy) if path},
            provider=rollout.provider, precision=rollout.precision,
            num_tiles=rollout.num_tiles, delay_steps=config.delay_steps,
            deadline_s=config.deadline_s, max_spread=config.max_spread, seed=config.seed,
            tools=tools(), robot=robot, task=task)

    @property
    def source_config(self) -> Strict:
        """Config of the planner."""
        return config_class(self.planner).model_validate(self.planner_config)

    def config(self, model: Path) -> PilotConfig:
        """Return the settings to make the decision again: on the CPU, however long it takes."""
        return PilotConfig(
            model=model, signal='', planner=self.planner, source_config=self.source_config,
            rollout=self.rollout, provider='cpu', precision='', delay_steps=self.delay_steps,
            deadline_s=None, max_spread=self.max_spread, seed=self.seed)


@dataclass(frozen=True)
class Outcome:
    """What was decided: fields of a Decision."""

    actions: np.ndarray
    start: np.ndarray
    spread: float
    rejected: int
    plan_s: float

    @classmethod
    def of(cls, decision: Decision) -> 'Outcome':
        """Take it from a decision."""
        return cls(**{f.name: getattr(decision, f.name) for f in fields(cls)})


@dataclass(frozen=True)
class Record:
    """
    One recorded decision.

    Attributes
    ----------
    setup : Setup
        What it was made with.
    stamp_ns : int
        Stamp of the observation it answers [ns].
    inputs : Inputs
        What it was made from.
    outcome : Outcome
        What was decided.

    """

    setup: Setup
    stamp_ns: int
    inputs: Inputs
    outcome: Outcome


class DecisionRecorder:
    """
    Turns the decisions of a controller into records.

    Parameters
    ----------
    robot, task, config : RobotSpec, TaskSpec, PilotConfig
        As the controller was built from. Which model plans, it learns from each decision.

    Raises
    ------
    SpecError
        If the state of the planner, one of the user's own perhaps, cannot be recorded.

    """

    def __init__(self, robot: RobotSpec, task: TaskSpec, config: PilotConfig) -> None:
        if not config.signal:
            planner = build_planner(robot, task, config.planner, config.source_config)
            _check_state(config.planner, planner.init())
        self._robot, self._task, self._config = robot, task, config
        self._setup, self._setup_of = '', ('', 0)
        self._stamps: deque[tuple[int, int]] = deque(maxlen=KEPT_STAMPS)

    def encode(self, tick: Tick, stamp_ns: int) -> list[str]:
        """
        Return a record of each plan that came in during a tick.

        Parameters
        ----------
        tick : Tick
            The tick; late plans of earlier ones are among what it finished.
        stamp_ns : int
            Stamp of the observation that the tick answers [ns]. A plan from before the first tick
            that this was called for is left out: nobody knows its stamp.

        """
        self._stamps.append((tick.index, stamp_ns))
        records = []
        for decision in tick.finished:
            # A plan is begun before its tick by as many as act in between and are not sent yet.
            ahead = len(decision.inputs.in_flight) - self._config.delay_steps
            found = next((stamp for index, stamp in reversed(self._stamps)
                          if index == decision.tick - ahead), None)
            if found is not None:
                records.append(self._encode(decision, found))
        return records

    def _encode(self, decision: Decision, stamp_ns: int) -> str:
        rollout = decision.rollout
        if self._setup_of != (rollout.model_hash, rollout.num_tiles):  # first, or reloaded
            self._setup_of = (rollout.model_hash, rollout.num_tiles)
            self._setup = Setup.of(self._robot, self._task, self._config,
                                   rollout).model_dump_json()
        rest = json.dumps({'stamp_ns': stamp_ns, 'inputs': _pack(_as_dict(decision.inputs)),
                           'outcome': _pack(_as_dict(Outcome.of(decision)))},
                          allow_nan=False, separators=(',', ':'))
        return f'{{"setup":{self._setup},{rest[1:]}'


def decode(text: str) -> Record:
    """
    Read a record.

    Raises
    ------
    BagError
        If the text is none, or one that another version of this package wrote.
    SpecError
        If its planner is not known here.

    """
    try:
        content = json.loads(text)
        setup, state = _read_setup(json.dumps(content['setup']))
        inputs, outcome = _unpack(content['inputs']), _unpack(content['outcome'])
        return Record(setup, content['stamp_ns'],
                      Inputs(**inputs | {'warm': state(**inputs['warm'])}), Outcome(**outcome))
    except (KeyError, TypeError, ValueError) as error:  # pydantic's are ValueErrors
        problem = describe(error, 'setup') if isinstance(error, ValidationError) \
            else f'{type(error).__name__}: {error}'
        raise BagError(f'no record of a decision that mbrl_ros {__version__} can read: '
                       f'{problem}') from error


@lru_cache(maxsize=8)
def _read_setup(text: str) -> tuple[Setup, type]:
    """Return a setup, and the class of its planner's state; of a bag they are mostly the same."""
    setup = Setup.model_validate_json(text)
    planner = build_planner(setup.robot, setup.task, setup.planner, setup.source_config)
    return setup, type(planner.init())


def _check_state(planner: str, state: Any) -> None:
    if not is_dataclass(state) or not all(isinstance(getattr(state, f.name), np.ndarray)
                                          for f in fields(state)):
        raise SpecError(f"planner '{planner}': its state, a {type(state).__name__}, cannot be "
                        'recorded. Make it a dataclass whose fields are arrays.')


def _as_dict(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, and of those that are one; nothing is copied."""
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _pack(value: Any) -> Any:
    """Return a value as JSON can hold it, exactly."""
    if isinstance(value, np.ndarray | np.generic):
        return {'dtype': value.dtype.str, 'shape': list(value.shape),
                'base64': b64encode(value.tobytes()).decode()}
    if isinstance(value, Mapping):
        return {key: _pack(item) for key, item in value.items()}
    if is_dataclass(value):
        return _pack(_as_dict(value))
    if isinstance(value, int) and abs(value) > LARGEST_EXACT_INT:
        return {'int': str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {'float': str(value)}
    return value


def _unpack(value: Any) -> Any:
    """Undo `_pack`; what was a dataclass stays a mapping."""
    if not isinstance(value, dict):
        return value
    match tuple(value):
        case ('dtype', 'shape', 'base64'):
            # A copy, because memory of a bytes object can be neither written nor relied upon to
            # be aligned.
            return np.ndarray(value['shape'], value['dtype'], b64decode(value['base64'])).copy()
        case ('int',):
            return int(value['int'])
        case ('float',):
            return float(value['float'])
    return {key: _unpack(item) for key, item in value.items()}
