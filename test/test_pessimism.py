"""A price on disagreement leads around what no data showed; without it, straight through."""

from fakes import artifact_of, COMMAND, dynamics_of, JOINT_STATE, rolls
import numpy as np
import pytest
from spox import argument, build, Tensor
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.control.mpc import Mpc
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.planning import ActionSpace
from mbrl_ros.planning.cem import Config, Planner
from mbrl_ros.runtime.rollout import Rollout

START, GOAL = np.array([-0.8, 0.0]), np.array([0.8, 0.0])
RADIUS_M = 0.4

POINT = RobotSpec.model_validate({
    'name': 'point', 'control_rate_hz': 10.0, 'stale_after_s': {'joint_states': 1.0},
    'observation': [{'name': name, 'unit': 'm', 'path': f'position[{name}]', **JOINT_STATE}
                    for name in 'xy'],
    'action': [{'name': f'v{name}', 'unit': 'm/s', 'path': f'data[{i}]', 'min': -1.0, 'max': 1.0,
                'rate_limit': 1000.0, 'safe_value': 0.0, **COMMAND}
               for i, name in enumerate('xy')]})
CROSSING = TaskSpec.model_validate({
    'name': 'cross', 'robot': 'point', 'horizon': 15, 'episode_steps': 25,
    'cost': [{'term': 'squared', 'name': name, 'params': {'signal': name, 'target': target}}
             for name, target in zip('xy', GOAL.tolist(), strict=True)]})


def two_members():
    """Position += 0.1 velocity; within the disc around 0 they differ by 0.02 m in x."""
    observation = argument(Tensor(np.float32, (2, 'N', 2)))
    action = argument(Tensor(np.float32, (2, 'N', 2)))
    square = op.reduce_sum(op.mul(observation, observation), op.const(np.array([2])), keepdims=1)
    inside = op.where(op.less(square, op.const(np.float32(RADIUS_M**2))),
                      op.const(np.float32(1)), op.const(np.float32(0)))
    apart = op.mul(inside, op.const(np.array([[[0.01, 0.0]], [[-0.01, 0.0]]], np.float32)))
    moved = op.add(observation, op.mul(action, op.const(np.float32(0.1))))
    return build({'observation': observation, 'action': action},
                 {'mean': op.add(moved, apart),
                  'std': op.mul(observation, op.const(np.float32(0)))})


# Of members 0.02 m apart in one of two fields the disagreement is 0.01 / sqrt(2), in steps of 1;
# a unit of 1 / 100 makes it 0.707. Around the disc it is 2 x (sqrt(0.8^2 - 0.4^2) + 0.4 pi / 6) =
# 1.80 m, not 1.6: two steps more at a cost of less than 2.6 each. Straight through are eight steps
# inside, which must cost more than that: 0.707 x 5 x 8 = 28.
@pytest.mark.parametrize(('weight', 'goes_around'), [(5.0, True), (0.0, False)])
@pytest.mark.parametrize('seed', range(3))
def test_only_a_price_leads_around(weight, goes_around, seed):
    model = artifact_of(two_members(), POINT, 2, spread_p99=0.01)
    rollout = Rollout(model, POINT, CROSSING, rolls(2, disagreement_weight=weight), threads=1)
    planner = Planner(Config(population=100, num_elites=10, iterations=4, noise_exponent=2.0,
                             keep_elites=3),
                      ActionSpace(CROSSING.horizon, POINT.action_min, POINT.action_max))
    mpc = Mpc(dynamics_of(model), rollout, planner, POINT, np.random.default_rng(seed))
    state, nearest = START, np.inf
    for tick in range(1, CROSSING.episode_steps + 1):
        state = state + 0.1 * mpc.plan(tick, state, ()).actions[0]
        nearest = min(nearest, float(np.linalg.norm(state)))
    rollout.close()
    assert np.linalg.norm(state - GOAL) < 0.1
    # A corner of one step may be cut: what is charged is where each step begins.
    assert (nearest > RADIUS_M - 0.05) == goes_around
