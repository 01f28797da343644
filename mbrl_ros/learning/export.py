"""Write the ensemble as dynamics.onnx: one step of all members, in physical units."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from spox import argument, build, Tensor, Var
import spox.opset.ai.onnx.v21 as op
import torch

from mbrl_ros.core.errors import ModelError
from mbrl_ros.learning.config import Activation
from mbrl_ros.learning.ensemble import Ensemble

TOLERANCE = 1e-5
# LeakyRelu's slope is 0.01 in torch and in ONNX.
ACTIVATIONS: dict[Activation, Callable[[Var], Var]] = {
    'silu': lambda x: op.mul(x, op.sigmoid(x)), 'tanh': op.tanh, 'relu': op.relu,
    'leaky_relu': op.leaky_relu}


def to_onnx(ensemble: Ensemble, state_size: int, action_size: int) -> onnx.ModelProto:
    """
    Build the graph `observation (E, N, S), action (E, N, A) -> mean, std (E, N, S)`.

    Feature map, normaliser, delta and log-variance bounds are inside, with as few nodes as they
    can be: the controller runs them at every step of every candidate. Scales are folded into the
    weights, and the bounds of the log-variance, which train as two softplus, are one quotient:

        exp(min + softplus(max - softplus(max - x) - min))
            = exp(min) + exp(max) / (1 + exp(max - x))

    `check` compares the result with torch.
    """
    p = {name: array.astype(np.float64) for name, array in ensemble.arrays().items()}
    members, last = ensemble.members, len(ensemble.weights) - 1
    observation = argument(Tensor(np.float32, (members, 'N', state_size)))
    action = argument(Tensor(np.float32, (members, 'N', action_size)))

    features = [op.gather(observation, _ints(ensemble.linear_index), axis=2)]
    if ensemble.angle_index:
        angles = op.gather(observation, _ints(ensemble.angle_index), axis=2)
        features += [op.sin(angles), op.cos(angles)]
    if not ensemble.linear_index:
        features = features[1:]
    # The mean stays outside: in float32, a field far from zero would lose what it varies by.
    hidden = op.sub(op.concat([*features, action], axis=2), _floats(p['input_mean']))
    p['weights.0'] /= p['input_std'][:, None]
    p[f'weights.{last}'][..., :state_size] *= p['target_std']
    bias = p[f'biases.{last}']
    bias[..., :state_size] *= p['target_std']
    bias[..., :state_size] += p['target_mean']
    p[f'weights.{last}'][..., state_size:] *= -1.0
    bias[..., state_size:] = p['max_logvar'] - bias[..., state_size:]
    for index in range(last + 1):
        product = op.matmul(hidden, _floats(p[f'weights.{index}']))
        hidden = op.add(product, _floats(p[f'biases.{index}']))
        if index != last:
            hidden = ACTIVATIONS[ensemble.activation](hidden)
    mean, room = op.split(hidden, num_outputs=2, axis=2)
    if p['is_delta'].any():
        kept = observation if p['is_delta'].all() \
            else op.mul(_floats(p['is_delta']), observation)
        mean = op.add(mean, kept)
    low, high = (_floats(np.exp(p[f'{side}_logvar']) * p['target_std'] ** 2)
                 for side in ('min', 'max'))
    above = op.div(high, op.add(op.exp(room), op.const(np.float32(1))))
    std = op.sqrt(op.add(low, above))
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


def _floats(values: np.ndarray) -> Var:
    return op.const(values.astype(np.float32))


def _ints(values: list[int]) -> Var:
    return op.const(np.array(values, dtype=np.int64))
