"""A tiny robot, its task and models with known arithmetic, for tests of several files."""

from hashlib import sha256
import json
from pathlib import Path

import numpy as np
from spox import argument, build, Tensor
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.rollout_config import RolloutConfig
from mbrl_ros.runtime.surprise import Calibration, Scale, SIGNALS

JOINT_STATE = {'topic': 'joint_states', 'type': 'sensor_msgs/msg/JointState'}
COMMAND = {'topic': 'commands', 'type': 'std_msgs/msg/Float64MultiArray'}


def cart_dict():
    """A cart on a line at 10 Hz: position and velocity observed, force in [-2, 2] commanded."""
    return {
        'name': 'cart', 'control_rate_hz': 10.0,
        'observation': [
            {'name': 'position', 'unit': 'm', 'path': 'position[rail]', **JOINT_STATE},
            {'name': 'velocity', 'unit': 'm/s', 'path': 'velocity[rail]', **JOINT_STATE}],
        'action': [{'name': 'force', 'unit': 'N', 'path': 'data[0]', **COMMAND, 'min': -2.0,
                    'max': 2.0, 'rate_limit': 1000.0, 'safe_value': 0.0}],
        'stale_after_s': {'joint_states': 0.25}}


def cart(**changes):
    """The cart; `changes` replace keys of its spec, or of its one action where it has them."""
    spec = cart_dict()
    for key, value in changes.items():
        (spec['action'][0] if key in spec['action'][0] and key != 'name' else spec)[key] = value
    return RobotSpec.model_validate(spec)


def cart_task(**changes):
    """Cost (position - goal)^2 + 0.1 force^2 over 4 steps."""
    return TaskSpec.model_validate({
        'name': 'reach', 'robot': 'cart', 'horizon': 4, 'episode_steps': 20,
        'goal': [{'name': 'where', 'value': 1.0}],
        'cost': [{'term': 'squared', 'name': 'distance', 'weight': 1.0,
                  'params': {'signal': 'position', 'target': 'where'}},
                 {'term': 'squared', 'name': 'effort', 'weight': 0.1,
                  'params': {'signal': 'force'}}]} | changes)


def linear_model(state_gain, action_gain, offset, std):
    """
    Build dynamics: member e predicts mean = state_gain[e] s + action_gain[e] a + offset[e].

    Shapes (E, S, S), (E, S, A), (E, S); `std` (E, S) is constant.
    """
    a, b, c, d = (np.asarray(x, np.float32) for x in (state_gain, action_gain, offset, std))
    members, num_state, num_action = b.shape
    observation = argument(Tensor(np.float32, (members, 'N', num_state)))
    action = argument(Tensor(np.float32, (members, 'N', num_action)))
    mean = op.add(op.matmul(observation, op.const(a.transpose(0, 2, 1))),
                  op.matmul(action, op.const(b.transpose(0, 2, 1))))
    mean = op.add(mean, op.const(c[:, None]))
    zero = op.mul(observation, op.const(np.float32(0)))
    return build({'observation': observation, 'action': action},
                 {'mean': mean, 'std': op.add(zero, op.const(d[:, None]))})


def cart_model(members=2, std=0.0, disagreement=0.0):
    """
    Build the cart's dynamics: position += 0.1 velocity, velocity += 0.1 force.

    Member e of E adds `disagreement` * e to the velocity.
    """
    offset = [[0.0, disagreement * e] for e in range(members)]
    return linear_model([[[1.0, 0.1], [0.0, 1.0]]] * members, [[[0.0], [0.1]]] * members, offset,
                        [[std, std]] * members)


def metadata_of(robot, members, **changes):
    """The metadata that a model of `robot` must carry."""
    size = len(robot.observation)
    return {'robot': robot.name, 'signature': robot.signature(),
            'signature_hash': robot.signature_hash(), 'members': members,
            'step_std': [1.0] * size, 'state_std': [1.0] * size, 'spread_p99': 1.0,
            'horizon': 25, 'trust': trust_dict()} | changes


def trust_dict(usual_up_to=1e6, steps=3):
    """A calibration to which nothing below `usual_up_to` is strange."""
    def scale(lowest):
        return Scale((lowest, usual_up_to), tail=0.01, index=1.0)
    return Calibration(steps, {name: scale(0.0) for name in SIGNALS} | {'together': scale(1.0)},
                       100, 'nothing').to_dict()


def save_artifact(path, model, metadata):
    """Write a model with its metadata, and return the file's SHA-256."""
    data = artifact.serialise(model, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return sha256(data).hexdigest()


def artifact_of(model, robot, members, **changes):
    """A model as if it had been loaded from a file."""
    return Artifact(model, metadata_of(robot, members, **changes), 'hash', Path('dynamics.onnx'))


def train(*args, **kw):
    """Fit an ensemble; see `Training`."""
    from mbrl_ros.learning.trainer import Training  # noqa: PLC0415 (torch is optional)

    return Training(*args, **kw).run()


def save_cart_model(folder, drag=0.9, std=0.05, data=None):
    """
    Write a model folder: two equal members, velocity *= drag, += 0.1 force.

    Its metrics and its card tell of it.
    """
    robot = cart()
    model = linear_model([[[1.0, 0.1], [0.0, drag]]] * 2, [[[0.0], [0.1]]] * 2, np.zeros((2, 2)),
                         np.full((2, 2), std))
    metadata = metadata_of(robot, 2, data=data or {'bags': []}, activation='silu')
    folder.mkdir(parents=True, exist_ok=True)
    model_hash = save_artifact(folder / 'dynamics.onnx', model, metadata)
    (folder / 'metrics.json').write_text(json.dumps(metadata | {'hash': model_hash}))
    (folder / 'card.md').write_text(f'drag {drag}, std {std}')
    return artifact.load(folder / 'dynamics.onnx', robot)


def rolls(particles, propagation='ts_infinity', **settings):
    """Return how candidates are rolled out."""
    return RolloutConfig(particles=particles, propagation=propagation, **settings)


# Each scheme and each risk once, without doubt and with it.
WAYS = [('ts_infinity', {'risk': 'cvar', 'risk_level': 0.5}), ('ts1', {'risk': 'worst'}),
        ('mean', {'disagreement_weight': 1.0}),
        ('ts_infinity', {'max_disagreement': 0.5, 'doubt_cost': 2.0, 'adaptive_horizon': True}),
        ('ts1', {'disagreement_weight': 1.0, 'risk': 'mean_std'}),
        ('distribution_sampling', {'risk': 'mean_std'}),
        ('moment_matching', {'max_disagreement': 0.5, 'doubt_cost': 2.0, 'risk': 'cvar'})]


def dynamics_of(artifact):
    """Return one step of an artifact."""
    return Dynamics(artifact.model, artifact.metadata)
