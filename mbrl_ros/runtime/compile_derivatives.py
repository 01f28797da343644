"""Compile the derivatives of a rollout, and of one step and its cost, into graphs."""

from collections.abc import Mapping

import ndonnx as ndx
import numpy as np
import onnx
from onnx import helper
from onnx.utils import Extractor
from spox import argument, build, Tensor, Var
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.costs import CostFunction
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.autodiff import derivative, differentiate
from mbrl_ros.runtime.compile import compile_rollout
from mbrl_ros.runtime.graph import ints, make_step, number, row
from mbrl_ros.runtime.providers import Form
from mbrl_ros.runtime.rollout_config import RolloutConfig

# One batched product and no Loop: the fewest nodes to differentiate.
FORM = Form(loop=False, split_members=False)
L_X, L_U = derivative('cost', 'state'), derivative('cost', 'action')


def compile_gradient(artifact: Artifact, robot: RobotSpec, task: TaskSpec,
                     config: RolloutConfig) -> bytes:
    """
    Build the rollout's graph with outputs `cost (P)` and `gradient (P, H, A)`.

    Raises
    ------
    SpecError
        If the model or a cost term, which is named, has an operator without a rule.

    """
    rollout = compile_rollout(artifact, robot, task, config, FORM)
    inputs = [item.name for item in rollout.graph.input]
    rollout = Extractor(rollout).extract_model(inputs, ['cost'])
    _check_terms(robot, task)
    model = differentiate(rollout, 'cost', ['actions'])
    return _named(model, {'gradient': derivative('cost', 'actions')})


def compile_step(artifact: Artifact, robot: RobotSpec) -> bytes:
    """
    Build one step of the members' mean, `state (N, S), action (N, A) -> next (N, S)`.

    With the input `seed (N, S)`, what to weigh the fields of the next state by, it has the outputs
    `by_state (N, S)` and `by_action (N, A)`, the derivatives of the weighted sum.

    Raises
    ------
    SpecError
        If the model has an operator without a rule.

    """
    state, action = _arguments(robot)
    every = [op.expand(op.unsqueeze(value, ints(0)), ints(artifact.members, 1, 1))
             for value in (state, action)]
    mean = op.reduce_mean(make_step(artifact, FORM)(*every)['mean'], ints(0), keepdims=0)
    model = differentiate(build({'state': state, 'action': action}, {'next': mean}), 'next',
                          ['state', 'action'], seed='seed')
    return _named(model, {'by_state': derivative('next', 'state'),
                          'by_action': derivative('next', 'action')})


def compile_cost(robot: RobotSpec, task: TaskSpec) -> bytes:
    """
    Build the cost of a step, `state (N, S), action (N, A), goal, weights -> cost (N)`.

    The state is that after the action. Outputs `l_x (N, S)` and `l_u (N, A)` are its derivatives;
    `l_xx (N, S)` is that of l_x times the input `seed_x (N, S)`, by the state; `l_ux (N, S)` and
    `l_uu (N, A)` are those of l_u times `seed_u (N, A)`, by state and action.

    Raises
    ------
    SpecError
        If a cost term, which is named, has an operator without a rule.

    """
    _check_terms(robot, task)
    state, action = _arguments(robot)
    goal = argument(Tensor(np.float32, (len(task.goal),)))
    weights = argument(Tensor(np.float32, (len(task.cost),)))
    terms = CostFunction(task, robot).terms(
        ndx.asarray(state), ndx.asarray(action), ndx.asarray(goal))
    # Zero, or NaN where a state is not finite, and the size of the batch for terms without one.
    cost = op.reduce_sum(op.mul(state, number(0.0)), ints(1), keepdims=0)
    for index, term in enumerate(terms):
        cost = op.add(cost, op.mul(row(weights, index), term.unwrap_spox()))
    model = build({'state': state, 'action': action, 'goal': goal, 'weights': weights},
                  {'cost': cost})
    model = differentiate(model, 'cost', ['state', 'action'])
    model = differentiate(model, L_X, ['state'], seed='seed_x')
    model = differentiate(model, L_U, ['state', 'action'], seed='seed_u')
    return _named(model, {'l_x': L_X, 'l_u': L_U, 'l_xx': derivative(L_X, 'state'),
                          'l_ux': derivative(L_U, 'state'), 'l_uu': derivative(L_U, 'action')})


def _check_terms(robot: RobotSpec, task: TaskSpec) -> None:
    """Differentiate each cost term alone, to say which one cannot be."""
    function = CostFunction(task, robot)
    state, action = _arguments(robot)
    goal = argument(Tensor(np.float32, (len(task.goal),)))
    heads = {name: argument(Tensor(np.float32, ('N',))) for name in function.heads}
    terms = function.terms(ndx.asarray(state), ndx.asarray(action), ndx.asarray(goal),
                           {name: ndx.asarray(head) for name, head in heads.items()})
    for label, term in zip(function.labels, terms, strict=True):
        model = build({'state': state, 'action': action, 'goal': goal, **heads},
                      {'cost': term.unwrap_spox()})
        try:
            differentiate(model, 'cost', ['state', 'action', *heads])
        except SpecError as error:
            raise SpecError(f"task '{task.name}': cost term '{label}': {error}") from error


def _arguments(robot: RobotSpec) -> tuple[Var, Var]:
    return (argument(Tensor(np.float32, ('N', len(robot.observation)))),
            argument(Tensor(np.float32, ('N', len(robot.action)))))


def _named(model: onnx.ModelProto, names: Mapping[str, str]) -> bytes:
    """Return a serialised graph, some of its outputs by other names."""
    for new, old in names.items():
        next(item for item in model.graph.output if item.name == old).name = new
        model.graph.node.append(helper.make_node('Identity', [old], [new]))
    content: bytes = model.SerializeToString(deterministic=True)
    return content
