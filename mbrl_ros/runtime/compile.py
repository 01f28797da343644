"""
Compile dynamics and task into one graph: particles through the members over the horizon.

    state (S), actions (P, H, A), noise (H, K, S), goal (G), weights (T), and where the settings
    want them: permutation (H, K), inverse (H, K), horizon (1)
      -> cost (P), terms (P, T), states (H, K, P, S), and where the settings make them:
         lengths (K, P), disagreement (H, K, P)

P stays symbolic. Every other size is a constant, so the graph holds no shape arithmetic; only a
Loop asks for the number of its steps.
"""

import numpy as np
import onnx
from spox import argument, build, inline, Tensor, Var
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.costs import CostFunction
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.charge import Charges
from mbrl_ros.runtime.companions import load_policy, load_value
from mbrl_ros.runtime.graph import ints, make_step, merge_equal_constants, number, walk
from mbrl_ros.runtime.propagation import Propagation
from mbrl_ros.runtime.providers import Form
from mbrl_ros.runtime.rollout_config import RolloutConfig


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
        Particles K and how they go on (see `Propagation`), what they cost (see `Charges`).
    form : Form
        What the provider runs fastest; the function is the same.

    Raises
    ------
    SpecError
        If the particles cannot be shared out evenly among the members.
    ModelError
        If the task asks for a head that the model has not, or value.onnx is refused.

    Notes
    -----
    Source: Chua et al. 2018 (PETS), arXiv:1805.12114, section 5. Cost is that of the predicted
    next state and the action that led to it, undiscounted; the particles' costs become one by the
    risk that is set, by default their mean. It is not finite if any predicted state that counts is
    not.

    """
    function = CostFunction(task, robot)
    _check_heads(artifact, task, function)
    num_state, horizon, particles = len(robot.observation), task.horizon, config.num_particles
    inputs = {
        'state': argument(Tensor(np.float32, (num_state,))),
        'actions': argument(Tensor(np.float32, ('P', horizon, len(robot.action)))),
        'goal': argument(Tensor(np.float32, (len(task.goal),))),
        'weights': argument(Tensor(np.float32, (len(task.cost),)))}
    if config.propagation != 'mean':
        inputs['noise'] = argument(Tensor(np.float32, (horizon, *config.noise_shape, num_state)))
    if config.propagation == 'ts1':
        for name in ('permutation', 'inverse'):
            inputs[name] = argument(Tensor(np.int64, (horizon, particles)))
    if config.adaptive_horizon:
        inputs['horizon'] = argument(Tensor(np.int64, (1,)))

    by_step = op.transpose(inputs['actions'], perm=[1, 0, 2])  # (H, P, A)
    zero = op.mul(op.gather(by_step, op.const(0), axis=0), number(0.0))
    zero = op.reduce_sum(zero, ints(1), keepdims=1)  # (P, 1): the population's size, no Shape
    unit = np.asarray(artifact.metadata['step_std']) * artifact.spread_unit
    propagation = Propagation(
        make_step(artifact, form, function.heads), config, artifact.members, horizon, num_state,
        len(robot.action), function.heads, unit if config.has_doubt else None, form.loop)
    foreseen = propagation.foresee(inputs, by_step, zero)
    value = load_value(config.value, robot, task) if config.value else None
    found = Charges(robot, task, config, function, value).charge(foreseen, by_step, inputs)
    model = build(inputs, found | {name: foreseen[name] for name in ('states', 'disagreement')
                                   if name in foreseen})
    merge_equal_constants(model)
    return model


def compile_proposals(artifact: Artifact, robot: RobotSpec, task: TaskSpec, policy: str,
                      form: Form) -> onnx.ModelProto:
    """
    Build the graph `state (S), goal (G) -> actions (E, H, A)` of what a policy would do.

    Each member's mean is followed, without noise; actions are clipped to the robot's limits.

    Raises
    ------
    ModelError
        If policy.onnx is refused.

    """
    members, num_state, num_action = artifact.members, len(robot.observation), len(robot.action)
    network = load_policy(policy, robot, task)
    act, step = inline(network), make_step(artifact, form)
    state = argument(Tensor(np.float32, (num_state,)))
    goal = argument(Tensor(np.float32, (len(task.goal),)))
    low, high = (op.const(limit.astype(np.float32))
                 for limit in (robot.action_min, robot.action_max))

    def advance(current: Var) -> list[Var]:
        given = {'state': op.reshape(current, ints(members, num_state)), 'goal': goal}
        wanted = {each.name: given[each.name] for each in network.graph.input}
        action = op.min([op.max([act(**wanted)['action'], low]), high])
        after = step(current, op.reshape(action, ints(members, 1, num_action)))['mean']
        return [after, action]
    start = op.expand(op.unsqueeze(state, ints(0, 1)), ints(members, 1, 1))
    _, actions = walk(advance, start, [], task.horizon, (members, 1, num_state), loop=False)
    model = build({'state': state, 'goal': goal}, {
        'actions': op.transpose(op.reshape(actions, ints(task.horizon, members, num_action)),
                                perm=[1, 0, 2])})
    merge_equal_constants(model)
    return model


def _check_heads(artifact: Artifact, task: TaskSpec, function: CostFunction) -> None:
    known = {output.name for output in artifact.model.graph.output}
    missing = [name for name in function.heads if name not in known]
    if missing:
        raise ModelError(f"{artifact.path}: the model has no head {', '.join(missing)}, which the "
                         f"cost of task '{task.name}' asks for. Name the topic of it in the robot "
                         "spec and train anew, with the head switched on in the training "
                         'configuration.')
