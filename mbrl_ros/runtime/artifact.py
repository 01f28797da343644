"""dynamics.onnx: made with its metadata, and read back only if everything in it holds."""

from dataclasses import dataclass
from hashlib import sha256
import json
from pathlib import Path
from typing import Any

import onnx

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.costs import HEADS

METADATA_KEY = 'mbrl_ros'
REQUIRED = ('signature', 'signature_hash', 'members', 'step_std', 'state_std', 'spread_p99',
            'horizon', 'trust')
# Members that agree to the last digit on the holdout must not forbid every other place.
SMALLEST_SPREAD = 1e-3


@dataclass(frozen=True)
class Artifact:
    """
    A verified model file.

    Attributes
    ----------
    model : onnx.ModelProto
        Graph `observation (E, N, S), action (E, N, A) -> mean, std (E, N, S)`; further outputs are
        `reward` and `termination (E, N)`, where they were learned.
    metadata : dict
        What the trainer said of it; see the model's card.
    hash : str
        SHA-256 of the file.
    path : Path
        Where it was read.

    """

    model: onnx.ModelProto
    metadata: dict[str, Any]
    hash: str
    path: Path

    @property
    def members(self) -> int:
        """Number of networks in the ensemble, E."""
        return int(self.metadata['members'])

    @property
    def spread_unit(self) -> float:
        """Unit of disagreement: the 99th percentile of the spread on the holdout [steps]."""
        return max(float(self.metadata['spread_p99']), SMALLEST_SPREAD)


def serialise(model: onnx.ModelProto, metadata: dict[str, Any]) -> bytes:
    """
    Return the bytes of a model file.

    They depend on the arguments alone, so equal training gives equal files.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(metadata, sort_keys=True))
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def load(path: Path, robot: RobotSpec) -> Artifact:
    """
    Read and verify a model for a robot.

    Raises
    ------
    ModelError
        If the file is not a valid ONNX model, was not written by this package, has other inputs
        or outputs than the contract, or was trained for a robot with another signature; then the
        text spells out each difference.

    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f'{path}: {error.strerror}. Try: mbrl-ros train BAG --robot {robot.name} '
                         f'--output {path.parent}') from error
    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx and protobuf raise many kinds for the one cause
        raise ModelError(f'{path}: not a valid ONNX model ({type(error).__name__}: {error}). '
                         'Copy it again, or train anew.') from error
    texts = {prop.key: prop.value for prop in model.metadata_props}
    try:
        metadata = json.loads(texts[METADATA_KEY])
        if not isinstance(metadata, dict):
            raise TypeError('metadata is no JSON object')
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelError(f'{path}: an ONNX model, but without the metadata of mbrl-ros train. '
                         'Only models written by `mbrl-ros train` carry it.') from error
    missing = [key for key in REQUIRED if key not in metadata]
    if missing:
        raise ModelError(f'{path}: metadata lacks {", ".join(missing)}. Train the model anew.')
    if metadata['signature_hash'] != robot.signature_hash() \
            and metadata['signature'] == robot.signature():
        raise ModelError(f'{path}: the signature in its metadata does not match its own hash: '
                         'the file was changed. Copy it again, or train anew.')
    differences = _differences(metadata['signature'], robot.signature())
    if differences:
        raise ModelError(f"{path}: trained for another robot than '{robot.name}':\n  "
                         + '\n  '.join(differences)
                         + '\nChoose the model of this robot, or train one from its bags.')
    _check_interface(path, model, metadata, robot)
    return Artifact(model, metadata, sha256(data).hexdigest(), path)


def _check_interface(path: Path, model: onnx.ModelProto, metadata: dict[str, Any],
                     robot: RobotSpec) -> None:
    def shapes(values: Any) -> dict[str, tuple[int | str, ...]]:
        return {v.name: tuple(d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim)
                for v in values}
    members, state, action = metadata['members'], len(robot.observation), len(robot.action)
    wanted = {'observation': (members, 'N', state), 'action': (members, 'N', action)}
    results = {'mean': (members, 'N', state), 'std': (members, 'N', state)}
    inputs, outputs = shapes(model.graph.input), shapes(model.graph.output)
    heads = dict.fromkeys(HEADS, (members, 'N'))
    further = {name: outputs[name] for name in outputs.keys() - results.keys()}
    if inputs != wanted or outputs != results | further or not further.items() <= heads.items():
        raise ModelError(f'{path}: inputs {inputs} and outputs {outputs}; '
                         f'expected inputs {wanted} and outputs {results}, and none but {heads} '
                         'beside them.')


def _differences(model: Any, robot: Any, where: str = '') -> list[str]:
    """List where two signatures differ, one line each."""
    if isinstance(model, dict) and isinstance(robot, dict):
        return [line for key in sorted({*model, *robot})
                for line in _differences(model.get(key), robot.get(key), f'{where}.{key}')]
    if isinstance(model, list) and isinstance(robot, list):
        if len(model) != len(robot):
            names = [[item['name'] for item in side] for side in (model, robot)]
            return [f'{where.strip(".")}: model has {names[0]}, robot has {names[1]}']
        return [line for i, (a, b) in enumerate(zip(model, robot, strict=True))
                for line in _differences(a, b, f'{where}[{i}]')]
    return [] if model == robot else [f'{where.strip(".")}: model {model!r}, robot {robot!r}']
