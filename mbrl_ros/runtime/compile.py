"""
Compile dynamics and task into one graph: trajectory sampling, unrolled over the horizon.

    state (S), actions (P, H, A), noise (H, K, S), goal (G), weights (T), permutation (H, K)
      -> cost (P), terms (P, T), states (H, K, P, S)

P stays symbolic. Every other size is a constant, so the graph holds no shape arithmetic and no
Loop (CUDA graphs allow none).
"""

from typing import Any, Literal

import ndonnx as ndx
import numpy as np
import onnx
from spox import argument, build, inline, Tensor, Var
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.costs import CostFunction
from mbrl_ros.runtime.artifact import Artifact

Propagation = Literal['ts_infinity', 'ts1']


def compile_rollout(artifact: Artifact, robot: RobotSpec, task: TaskSpec, particles: int,
                    propagation: Propagation) -> onnx.ModelProto:
    """
    Build the rollout graph.

    Parameters
    ----------
    artifact : Artifact
        One step of all members.
    robot, task : RobotSpec, TaskSpec
        Names, cost and horizon H.
    particles : int
        K; slot k is propagated by member k // (K / E), the same member at every step.
    propagation : {'ts_infinity', 'ts1'}
        With 'ts1' the particles are permuted among the slots before every step, by the input
        `permutation (H, K)`; with 'ts_infinity' they stay.

    Raises
    ------
    SpecError
        If the particles cannot be shared out evenly among the members.

    Notes
    -----
    Source: Chua et al. 2018 (PETS), arXiv:1805.12114, section 5. Cost is that of the predicted
    next state and the action that led to it, undiscounted, averaged over the particles. It is
    not finite if any predicted state is not.

    """
    members, horizon = artifact.members, task.horizon
    if particles % members:
        raise SpecError(f'particles: {particles} cannot be shared out among {members} members; '
                        f'allowed: multiples of {members}.')
    share = particles // members
    num_state, num_action = len(robot.observation), len(robot.action)

    state = argument(Tensor(np.float32, (num_state,)))
    actions = argument(Tensor(np.float32, ('P', horizon, num_action)))
    noise = argument(Tensor(np.float32, (horizon, particles, num_state)))
    goal = argument(Tensor(np.float32, (len(task.goal),)))
    weights = argument(Tensor(np.float32, (len(task.cost),)))
    permutation = argument(Tensor(np.int64, (horizon, particles)))
    inputs = {'state': state, 'actions': actions, 'noise': noise, 'goal': goal,
              'weights': weights}
    if propagation == 'ts1':
        inputs['permutation'] = permutation

    # (P, H, A) -> H arrays (1, P, A), and the same repeated for the share of each member.
    by_step = op.transpose(actions, perm=[1, 0, 2])
    by_slot = op.expand(op.unsqueeze(by_step, _ints(1, 2)), _ints(1, members, share, 1, 1))
    batch_actions = _unstack(op.reshape(by_slot, _ints(horizon, members, -1, num_action)), horizon)
    noises = _unstack(op.unsqueeze(noise, _ints(2)), horizon)
    orders = _unstack(permutation, horizon) if propagation == 'ts1' else []

    # Every particle of every candidate starts at the same state: (K, P, S).
    zeros = op.mul(op.gather(by_step, op.const(0), axis=0), op.const(np.float32(0)))
    zeros = op.reduce_sum(zeros, _ints(1), keepdims=1)
    current = op.expand(op.add(state, zeros), _ints(particles, 1, num_state))
    step = inline(artifact.model)
    trajectory = []
    for index in range(horizon):
        if propagation == 'ts1':
            current = op.gather(current, orders[index], axis=0)
        batch = op.reshape(current, _ints(members, -1, num_state))
        predicted = step(observation=batch, action=batch_actions[index])
        mean, std = (op.reshape(predicted[name], _ints(particles, -1, num_state))
                     for name in ('mean', 'std'))
        current = op.add(mean, op.mul(std, noises[index]))
        trajectory.append(op.unsqueeze(current, _ints(0)))
    states = op.concat(trajectory, axis=0)

    terms = _mean_terms(CostFunction(task, robot), states, op.unsqueeze(by_step, _ints(1)), goal)
    # Zero, or NaN where any state is not finite: a term that saturates, or that does not look at
    # that state, must not let a diverged candidate through.
    diverged = op.reduce_sum(op.mul(states, op.const(np.float32(0))), _ints(0, 1, 3), keepdims=0)
    cost = op.add(op.matmul(terms, weights), diverged)
    model = build(inputs, {'cost': cost, 'terms': terms, 'states': states})
    _merge_equal_constants(model)
    return model


def _mean_terms(function: CostFunction, states: Var, actions: Var, goal: Var) -> Var:
    """Return each term summed over H and averaged over K, shape (P, T)."""
    columns = []
    for term in function.terms(ndx.asarray(states), ndx.asarray(actions), ndx.asarray(goal)):
        # An action term is (H, 1, P): the mean over its single particle is itself.
        columns.append(ndx.sum(ndx.mean(term, axis=1), axis=0)[:, None])
    return ndx.concat(columns, axis=1).unwrap_spox()


def _merge_equal_constants(model: onnx.ModelProto) -> None:
    """
    Keep one copy of equal constants: inlining copies the weights once a step.

    42 MB become 1.8 MB at 25 steps of a 5 x (3 x 200) ensemble, and the caches hold them.
    """
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    kept: list[Any] = []
    for node in model.graph.node:
        if node.op_type == 'Constant':
            key = node.attribute[0].SerializeToString()
            if key in first:
                renamed[node.output[0]] = first[key]
                continue
            first[key] = node.output[0]
        kept.append(node)
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _unstack(value: Var, count: int) -> list[Var]:
    """Split (count, ...) into `count` arrays (...)."""
    pieces = op.split(value, num_outputs=count, axis=0)
    return [op.squeeze(piece, _ints(0)) for piece in pieces]


def _ints(*values: int) -> Var:
    return op.const(np.array(values, dtype=np.int64))
