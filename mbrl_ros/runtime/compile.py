"""
Compile dynamics and task into one graph: trajectory sampling over the horizon.

    state (S), actions (P, H, A), noise (H, K, S), goal (G), weights (T), permutation (H, K)
      -> cost (P), terms (P, T), states (H, K, P, S)

P stays symbolic. Every other size is a constant, so the graph holds no shape arithmetic; only a
Loop asks for the number of its steps.
"""

from collections.abc import Callable
from typing import Any
import warnings

import ndonnx as ndx
import numpy as np
import onnx
from onnx.utils import Extractor
from spox import argument, build, inline, Tensor, Var
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.costs import CostFunction
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.providers import Form
from mbrl_ros.runtime.rollout_config import RolloutConfig
from mbrl_ros.runtime.trunk import halve, split_members

# One step: states (E, N, S), actions (E, N, A) to mean and std of the next states (E, N, S).
Step = Callable[[Var, Var], tuple[Var, Var]]


def compile_rollout(artifact: Artifact, robot: RobotSpec, task: TaskSpec, config: RolloutConfig,
                    form: Form) -> onnx.ModelProto:
    """
    Build the rollout graph.

    Parameters
    ----------
    artifact : Artifact
        One step of all members.
    robot, task : RobotSpec, TaskSpec
        Names, cost and horizon H.
    config : RolloutConfig
        Particles K: slot k is propagated by member k // (K / E), the same member at every step.
        With 'ts1' the particles are permuted among the slots before every step, by the input
        `permutation (H, K)`; with 'ts_infinity' they stay.
    form : Form
        What the provider runs fastest; the function is the same.

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
    particles, propagation = config.particles, config.propagation
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

    # What every step takes, one row a slot and candidate: (H, E, N, .) with N = K / E x P.
    by_step = op.transpose(actions, perm=[1, 0, 2])
    zero = op.mul(op.gather(by_step, op.const(0), axis=0), op.const(np.float32(0)))
    zero = op.reduce_sum(zero, _ints(1), keepdims=1)  # (P, 1): the population's size, no Shape
    slot_actions = op.reshape(
        op.expand(op.unsqueeze(by_step, _ints(1)), _ints(1, particles, 1, 1)),
        _ints(horizon, members, -1, num_action))
    slot_noise = op.reshape(op.add(op.unsqueeze(noise, _ints(2)), zero),
                            _ints(horizon, members, -1, num_state))

    step = _step(artifact, form)
    start = op.unsqueeze(op.add(state, zero), _ints(0))  # (1, P, S)
    trajectory = []
    if share > 1:
        # All particles of a member begin alike: its first step is computed once for all of them.
        first = op.expand(op.gather(by_step, _ints(0), axis=0), _ints(members, 1, 1))
        mean, std = step(op.expand(start, _ints(members, 1, 1)), first)
        current = op.add(_each(mean, members, share),
                         op.mul(_each(std, members, share), _row(slot_noise, 0)))
        trajectory.append(op.unsqueeze(current, _ints(0)))
    else:
        current = op.expand(start, _ints(members, 1, 1))

    def advance(current: Var, action: Var, noise: Var, order: Var | None) -> Var:
        if order is not None:
            by_particle = op.reshape(current, _ints(particles, -1, num_state))
            current = op.reshape(op.gather(by_particle, order, axis=0),
                                 _ints(members, -1, num_state))
        mean, std = step(current, action)
        return op.add(mean, op.mul(std, noise))

    done = len(trajectory)
    if done < horizon:
        rest = [_from(value, done, horizon) for value in (slot_actions, slot_noise, permutation)]
        if propagation != 'ts1':
            rest.pop()
        walk = _loop if form.loop else _unroll
        trajectory.append(walk(advance, current, rest, horizon - done, (members, -1, num_state)))
    states = op.reshape(op.concat(trajectory, axis=0), _ints(horizon, particles, -1, num_state))

    terms = _mean_terms(CostFunction(task, robot), states, op.unsqueeze(by_step, _ints(1)), goal)
    # Zero, or NaN where any state is not finite: a term that saturates, or that does not look at
    # that state, must not let a diverged candidate through.
    diverged = op.reduce_sum(op.mul(states, op.const(np.float32(0))), _ints(0, 1, 3), keepdims=0)
    # A sum, not a matrix product: some runtimes do those in bf16 or tf32.
    cost = op.add(op.reduce_sum(op.mul(terms, weights), _ints(1), keepdims=0), diverged)
    model = build(inputs, {'cost': cost, 'terms': terms, 'states': states})
    _merge_equal_constants(model)
    return model


def _step(artifact: Artifact, form: Form) -> Step:
    """Return the dynamics in the wanted form, as a function to build graphs with."""
    # Heads are of no use here, and would be inlined at every step.
    model = Extractor(artifact.model).extract_model(['observation', 'action'], ['mean', 'std'])
    if form.trunk == 'float16':
        model = halve(model)
    if form.split_members:
        model = split_members(model)
    function = inline(model)

    def step(state: Var, action: Var) -> tuple[Var, Var]:
        predicted = function(observation=state, action=action)
        return predicted['mean'], predicted['std']
    return step


def _loop(advance: Callable[..., Var], current: Var, rest: list[Var], steps: int,
          shape: tuple[int, ...]) -> Var:
    """Return the states of all steps, by an ONNX Loop whose body is one step."""
    def body(index: Var, keep: Var, current: Var) -> list[Var]:
        given = [op.squeeze(op.gather(value, index, axis=0), _ints(0)) for value in rest]
        after = advance(current, *given, *[None] * (3 - len(given)))
        return [keep, after, after]
    # The number of steps is asked of the arrays because spox computes what nothing outside the
    # loop uses inside of it, anew at every step. Counter and condition have shape (1,) because
    # it infers the body's arguments that way.
    count = op.min([op.shape(value, start=0, end=1) for value in rest])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the shape of the last state, unused, is not inferred
        _, states = op.loop(count, op.const(np.array([True])), [current], body=body)
    return op.reshape(states, _ints(steps, *shape))


def _unroll(advance: Callable[..., Var], current: Var, rest: list[Var], steps: int,
            shape: tuple[int, ...]) -> Var:
    """Return the states of all steps, one after the other in the graph."""
    rows = [[op.squeeze(row, _ints(0)) for row in op.split(value, num_outputs=steps, axis=0)]
            for value in rest]
    states = []
    for given in zip(*rows, strict=True):
        current = advance(current, *given, *[None] * (3 - len(given)))
        states.append(op.unsqueeze(current, _ints(0)))
    return op.concat(states, axis=0)


def _each(value: Var, members: int, share: int) -> Var:
    """Repeat (E, P, S) for each particle of a member: (E, K / E x P, S)."""
    repeated = op.expand(op.unsqueeze(value, _ints(1)), _ints(1, share, 1, 1))
    size = value.unwrap_tensor().shape[-1]  # type: ignore[index]
    return op.reshape(repeated, _ints(members, -1, int(size)))  # type: ignore[arg-type]


def _from(value: Var, start: int, end: int) -> Var:
    return op.slice(value, _ints(start), _ints(end), _ints(0)) if start else value


def _row(value: Var, index: int) -> Var:
    return op.gather(value, op.const(np.int64(index)), axis=0)


def _mean_terms(function: CostFunction, states: Var, actions: Var, goal: Var) -> Var:
    """Return each term summed over H and averaged over K, shape (P, T)."""
    columns = []
    for term in function.terms(ndx.asarray(states), ndx.asarray(actions), ndx.asarray(goal)):
        # An action term is (H, 1, P): the mean over its single particle is itself. Not ndonnx's
        # mean, which counts in float64 and asks for shapes.
        mean = op.reduce_mean(term.unwrap_spox(), _ints(1), keepdims=0)
        columns.append(op.unsqueeze(op.reduce_sum(mean, _ints(0), keepdims=0), _ints(1)))
    return op.concat(columns, axis=1)


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


def _ints(*values: int) -> Var:
    return op.const(np.array(values, dtype=np.int64))
