"""Write the ensemble as dynamics.onnx: one step of all members, in physical units."""

import numpy as np
import onnx
import onnxruntime
from spox import argument, build, Tensor, Var
import spox.opset.ai.onnx.v21 as op
import torch

from mbrl_ros.core.errors import ModelError
from mbrl_ros.learning.ensemble import Ensemble

TOLERANCE = 1e-5


def to_onnx(ensemble: Ensemble, state_size: int, action_size: int) -> onnx.ModelProto:
    """
    Build the graph `observation (E, N, S), action (E, N, A) -> mean, std (E, N, S)`.

    Feature map, normaliser, delta and log-variance bounds are inside. The weights are those of
    torch, bit for bit; only the arithmetic is written anew, and `check` compares the two.
    """
    p = ensemble.arrays()
    members = ensemble.members
    observation = argument(Tensor(np.float32, (members, 'N', state_size)))
    action = argument(Tensor(np.float32, (members, 'N', action_size)))

    features = [op.gather(observation, _ints(ensemble.linear_index), axis=2)]
    if ensemble.angle_index:
        angles = op.gather(observation, _ints(ensemble.angle_index), axis=2)
        features += [op.sin(angles), op.cos(angles)]
    if not ensemble.linear_index:
        features = features[1:]
    hidden = op.concat([*features, action], axis=2)
    hidden = op.div(op.sub(hidden, op.const(p['input_mean'])), op.const(p['input_std']))
    last = len(ensemble.weights) - 1
    for index in range(last + 1):
        product = op.matmul(hidden, op.const(p[f'weights.{index}']))
        hidden = op.add(product, op.const(p[f'biases.{index}']))
        if index != last:
            hidden = op.mul(hidden, op.sigmoid(hidden))
    out, logvar = op.split(hidden, num_outputs=2, axis=2)
    low, high = op.const(p['min_logvar']), op.const(p['max_logvar'])
    logvar = op.sub(high, op.softplus(op.sub(high, logvar)))
    logvar = op.add(low, op.softplus(op.sub(logvar, low)))
    mean = op.add(op.mul(out, op.const(p['target_std'])), op.const(p['target_mean']))
    mean = op.add(mean, op.mul(op.const(p['is_delta']), observation))
    std = op.mul(op.exp(op.mul(logvar, op.const(np.float32(0.5)))), op.const(p['target_std']))
    return build({'observation': observation, 'action': action}, {'mean': mean, 'std': std})


def check(model: onnx.ModelProto, ensemble: Ensemble, state: np.ndarray,
          action: np.ndarray) -> float:
    """
    Compare ONNX Runtime with torch on real transitions.

    Parameters
    ----------
    model : ModelProto
        What `to_onnx` built.
    ensemble : Ensemble
        What it was built from.
    state, action : arrays, shapes (N, S) and (N, A)
        Inputs in physical units.

    Returns
    -------
    float
        Largest relative difference: of the mean to the largest value of its field, of the std to
        the field's typical step.

    Raises
    ------
    ModelError
        If it exceeds 1e-5: the model is not written.

    """
    observation, command = (
        np.broadcast_to(np.asarray(a, np.float32), (ensemble.members, *a.shape)).copy()
        for a in (state, action))
    session = onnxruntime.InferenceSession(model.SerializeToString(),
                                           providers=['CPUExecutionProvider'])
    found = session.run(['mean', 'std'], {'observation': observation, 'action': command})
    with torch.no_grad():
        expected = ensemble(torch.from_numpy(observation), torch.from_numpy(command))
    # The mean is the state plus a step: near float32's resolution the state sets its scale.
    step = ensemble.arrays()['target_std']
    scales = (np.maximum(step, np.abs(state).max(axis=0)), step)
    error = max(float((np.abs(a - b.numpy()) / scale).max())
                for a, b, scale in zip(found, expected, scales, strict=True))
    if not error <= TOLERANCE:
        raise ModelError(f'export refused: ONNX Runtime and torch differ by {error:.2e} '
                         f'(allowed {TOLERANCE:.0e}). Please report this with the versions that '
                         '`mbrl-ros doctor` prints.')
    return error


def _ints(values: list[int]) -> Var:
    return op.const(np.array(values, dtype=np.int64))
