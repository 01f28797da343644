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
# A graph that differs does so nearly everywhere, and all of a long recording would need gigabytes.
MOST_CHECKED = 10_000
# LeakyRelu's slope is 0.01 in torch and in ONNX.
ACTIVATIONS: dict[Activation, Callable[[Var], Var]] = {
    'silu': lambda x: op.mul(x, op.sigmoid(x)), 'tanh': op.tanh, 'relu': op.relu,
    'leaky_relu': op.leaky_relu}


def to_onnx(ensemble: Ensemble, state_size: int, action_size: int) -> onnx.ModelProto:
    """
    Build the graph `observation (E, N, S), action (E, N, A) -> mean, std (E, N, S)`.

    Where they are learned, `reward (E, N)`, its mean, and `termination (E, N)`, a probability, are
    further outputs.

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
    blocks = _last_layer(ensemble, p, state_size)
    p[f'weights.{last}'], p[f'biases.{last}'] = (
        np.concatenate(side, axis=2) for side in zip(*blocks.values(), strict=True))
    for index in range(last + 1):
        product = op.matmul(hidden, _floats(p[f'weights.{index}']))
        hidden = op.add(product, _floats(p[f'biases.{index}']))
        if index != last:
            hidden = ACTIVATIONS[ensemble.activation](hidden)
    widths = [weight.shape[2] for weight, _ in blocks.values()]
    found = dict(zip(blocks, op.split(hidden, _ints(widths), axis=2), strict=True)) \
        if len(blocks) > 1 else {'mean': hidden}
    if p['is_delta'].any():
        kept = observation if p['is_delta'].all() \
            else op.mul(_floats(p['is_delta']), observation)
        found['mean'] = op.add(found['mean'], kept)
    scale, power = p['target_std'][:state_size] * ensemble.std_factor.numpy(), \
        ensemble.std_power.numpy()
    if ensemble.probabilistic:
        low, high = (_floats(np.exp(p[f'{side}_logvar'][..., :state_size]) * scale**(2 / power))
                     for side in ('min', 'max'))
        above = op.div(high, op.add(op.exp(found.pop('room')), op.const(np.float32(1))))
        variance = op.add(low, above)
        # Pow takes ten times as long as Log and Exp together.
        std = op.sqrt(variance) if (power == 1.0).all() \
            else op.exp(op.mul(op.log(variance), _floats(0.5 * power)))
    else:
        constant = np.exp(0.5 * p['constant_logvar'][..., :state_size] * power) * scale
        std = op.add(op.mul(observation, op.const(np.float32(0))), _floats(constant))
    if ensemble.reward:
        found['reward'] = op.squeeze(found['reward'], _ints([2]))
    if ensemble.termination:
        found['termination'] = op.sigmoid(op.squeeze(found['termination'], _ints([2])))
    return build({'observation': observation, 'action': action},
                 {'mean': found.pop('mean'), 'std': std, **found})


def _last_layer(ensemble: Ensemble, p: dict[str, np.ndarray],
                size: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return weights and biases of each output, scales and offsets folded in."""
    last, num_targets = len(ensemble.weights) - 1, len(p['target_std'])
    weight, bias = p[f'weights.{last}'], p[f'biases.{last}']
    weight[..., :num_targets] *= p['target_std']
    bias[..., :num_targets] = bias[..., :num_targets] * p['target_std'] + p['target_mean']
    columns = {'mean': slice(size)}
    if ensemble.probabilistic:
        room = slice(num_targets, num_targets + size)
        columns['room'] = room
        weight[..., room] *= -1.0
        bias[..., room] = p['max_logvar'][..., :size] - bias[..., room]
    if ensemble.reward:
        columns['reward'] = slice(size, size + 1)
    if ensemble.termination:
        columns['termination'] = slice(weight.shape[2] - 1, None)
    return {name: (weight[..., part], bias[..., part]) for name, part in columns.items()}


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
        Inputs in physical units; beyond 10,000, as many at most, evenly spaced, are compared.

    Returns
    -------
    float
        Largest relative difference: of the mean to the largest value of its field, of the std to
        itself or, if larger, the field's typical step, of the reward to its spread.

    Raises
    ------
    ModelError
        If it exceeds 1e-5: the model is not written.

    """
    spacing = -(-len(state) // MOST_CHECKED)  # rounded up
    observation, command = (
        np.repeat(np.asarray(a[None, ::spacing], np.float32), ensemble.members, axis=0)
        for a in (state, action))
    session = onnxruntime.InferenceSession(model.SerializeToString(),
                                           providers=['CPUExecutionProvider'])
    with torch.no_grad():
        expected = ensemble.predict(torch.from_numpy(observation), torch.from_numpy(command))
    found = session.run(list(expected), {'observation': observation, 'action': command})
    # The mean is the state plus a step: near float32's resolution the state sets its scale.
    step, reward_std = ensemble.step_std, ensemble.arrays()['target_std'][-1]
    scales = {'mean': np.maximum(step, np.abs(state).max(axis=0)),
              'std': np.maximum(step, expected['std'].numpy()),
              'reward': reward_std, 'termination': 1.0}
    error = max(float((np.abs(array - expected[name].numpy()) / scales[name]).max())
                for name, array in zip(expected, found, strict=True))
    if not error <= TOLERANCE:
        raise ModelError(f'export refused: ONNX Runtime and torch differ by {error:.2e} '
                         f'(allowed {TOLERANCE:.0e}). Please report this with the versions that '
                         '`mbrl-ros doctor` prints.')
    return error


def _floats(values: np.ndarray) -> Var:
    return op.const(values.astype(np.float32))


def _ints(values: list[int]) -> Var:
    return op.const(np.array(values, dtype=np.int64))
