"""
Networks of the user's own beside a model: a value at the end of the horizon, a policy to propose.

    value.onnx:  state (N, S)[, goal (G)] -> cost_to_go (N), in units of the task's cost
    policy.onnx: state (N, S)[, goal (G)] -> action (N, A)

All float32, N free. Both are refused unless they keep to that.
"""

from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx

from mbrl_ros.core.errors import MbrlError, ModelError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.runtime.ort import open_ort

NUM_PROBES = 16
Shapes = dict[str, tuple[int | str, ...]]  # a free size is 'N'


def load_value(path: str, robot: RobotSpec, task: TaskSpec) -> onnx.ModelProto:
    """Read and verify a value.onnx; ModelError says what is wrong with it."""
    return _load(path, robot, task, {'cost_to_go': ('N',)})


def load_policy(path: str, robot: RobotSpec, task: TaskSpec) -> onnx.ModelProto:
    """Read and verify a policy.onnx; ModelError says what is wrong with it."""
    return _load(path, robot, task, {'action': ('N', len(robot.action))})


def read(path: str) -> bytes:
    """Return a file's content; ModelError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f'{path}: {error.strerror}. Name an existing file, or none.') from error


def digest(path: str) -> str:
    """Return the SHA-256 of a file; ModelError if it cannot be read."""
    return sha256(read(path)).hexdigest()


def _load(path: str, robot: RobotSpec, task: TaskSpec, outputs: Shapes) -> onnx.ModelProto:
    data = read(path)
    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx and protobuf raise many kinds for the one cause
        raise ModelError(f'{path}: not a valid ONNX model ({type(error).__name__}: {error}). '
                         'Export it again.') from error
    state: Shapes = {'state': ('N', len(robot.observation))}
    with_goal = state | {'goal': (len(task.goal),)}
    found = _shapes(path, model.graph.input), _shapes(path, model.graph.output)
    if found[0] not in (state, with_goal) or found[1] != outputs:
        raise ModelError(f'{path}: inputs {found[0]} and outputs {found[1]}; expected inputs '
                         f'{state} or {with_goal} and outputs {outputs}, N free.')
    _probe(path, model, found[0], outputs)
    return model


def _shapes(path: str, values: list[onnx.ValueInfoProto]) -> Shapes:
    """Return sizes by name, a free one as 'N'; refuse what is not float32."""
    for value in values:
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise ModelError(f'{path}: {value.name} is not a tensor of float32, which it must be.')
    return {value.name: tuple(d.dim_value or 'N' for d in value.type.tensor_type.shape.dim)
            for value in values}


def _probe(path: str, model: onnx.ModelProto, inputs: Shapes, outputs: Shapes) -> None:
    """Run it on a few finite states, of the goal's and of unit size."""
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(_sized(shape), dtype=np.float32)
             for name, shape in inputs.items()}
    try:
        found = dict(zip(outputs, open_ort(model.SerializeToString(), 'CPUExecutionProvider').run(
            list(outputs), feeds), strict=True))
    except Exception as error:  # ONNX Runtime has errors of its own kinds
        if isinstance(error, MbrlError):
            raise
        raise ModelError(f'{path}: does not run ({error}). Export it again.') from error
    for name, shape in outputs.items():
        if found[name].shape != _sized(shape):
            raise ModelError(f'{path}: {name} has the shape {found[name].shape} for {NUM_PROBES} '
                             f'states; it must be {_sized(shape)}.')
        if not np.isfinite(found[name]).all():
            raise ModelError(f'{path}: {name} is not finite for finite states. Train it again, '
                             'or clip what it takes.')


def _sized(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(NUM_PROBES if isinstance(size, str) else size for size in shape)
