"""A workload: every size that decides what a plan costs, and an untrained model of those sizes."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.learning.export import to_onnx
from mbrl_ros.planning import ActionSpace, make_planner, Planner
from mbrl_ros.planning.cem import Config
from mbrl_ros.runtime.artifact import Artifact

CONTROL_RATE_HZ = 25.0
KEPT_ELITES = 3
LOGVAR_BOUNDS = (-10.0, 0.5)
WIRE = {'topic': 'joint_states', 'type': 'sensor_msgs/msg/JointState'}
COMMAND = {'topic': 'commands', 'type': 'std_msgs/msg/Float64MultiArray'}


@dataclass(frozen=True)
class Workload:
    """
    The sizes of a plan.

    The defaults are those of a small robot on two cores: iCEM's population, a 5 x (3 x 128)
    ensemble, a cart-pole's state. The weights are random: products and activations take the same
    time whatever they multiply, so a trained model of these sizes plans as fast.

    Attributes
    ----------
    members, hidden
        E, and the width of each hidden layer.
    num_state, num_action
        S and A; all fields are linear, so the networks have S + A inputs.
    population, particles, horizon, iterations
        P, K (a multiple of E), H, and refits a plan.
    noise_exponent
        Of the planner's noise: 0 is white (PETS), 2 is smooth (iCEM).

    """

    members: int = 5
    hidden: tuple[int, ...] = (128, 128, 128)
    num_state: int = 4
    num_action: int = 1
    population: int = 40
    particles: int = 5
    horizon: int = 25
    iterations: int = 3
    noise_exponent: float = 2.0

    def flop(self) -> int:
        """
        Return the floating-point operations of one plan's matrix products as they are executed.

        A product (M, K) x (K, N) counts 2 M K N. At the first step the particles of a member
        are still alike, and the graph evaluates them once. Activations, cost and planner are not
        counted: they are what a plan spends beyond the ceiling.
        """
        sizes = [self.num_state + self.num_action, *self.hidden, 2 * self.num_state]
        evaluation = sum(2 * inputs * outputs for inputs, outputs in pairwise(sizes))
        per_candidate = self.members + (self.horizon - 1) * self.particles
        return self.iterations * self.population * per_candidate * evaluation

    def robot(self) -> RobotSpec:
        """Return a robot of S joint positions and A commands in [-1, 1]."""
        observation = [{'name': f's{i}', 'unit': 'rad', 'path': f'position[joint{i}]', **WIRE}
                       for i in range(self.num_state)]
        action = [{'name': f'a{i}', 'unit': 'N*m', 'path': f'data[{i}]', **COMMAND, 'min': -1.0,
                   'max': 1.0, 'rate_limit': 1000.0, 'safe_value': 0.0}
                  for i in range(self.num_action)]
        return RobotSpec.model_validate({
            'name': 'bench', 'control_rate_hz': CONTROL_RATE_HZ, 'observation': observation,
            'action': action, 'stale_after_s': {'joint_states': 1.0}})

    def task(self) -> TaskSpec:
        """Return a task with the cost (s0 - 1)^2 + 0.1 a0^2."""
        return TaskSpec.model_validate({
            'name': 'bench', 'robot': 'bench', 'horizon': self.horizon, 'episode_steps': 1,
            'goal': [{'name': 'where', 'value': 1.0}],
            'cost': [{'term': 'squared', 'name': 'distance',
                      'params': {'signal': 's0', 'target': 'where'}},
                     {'term': 'squared', 'name': 'effort', 'weight': 0.1,
                      'params': {'signal': 'a0'}}]})

    def artifact(self) -> Artifact:
        """Return an untrained ensemble, exported as a trained one is."""
        robot = self.robot()
        ensemble = Ensemble(robot, self.members, self.hidden, LOGVAR_BOUNDS,
                            torch.Generator().manual_seed(0))
        metadata: dict[str, Any] = {
            'robot': robot.name, 'signature': robot.signature(),
            'signature_hash': robot.signature_hash(), 'members': self.members,
            'step_std': [1.0] * self.num_state, 'state_std': [1.0] * self.num_state,
            'spread_p99': 1.0, 'horizon': self.horizon}
        model = to_onnx(ensemble, self.num_state, self.num_action)
        return Artifact(model, metadata, 'untrained', Path('untrained.onnx'))

    def planner(self) -> Planner:
        """Return the cross-entropy method with this population, a tenth of it elites."""
        num_elites = min(self.population, max(KEPT_ELITES, self.population // 10))
        config = Config.model_validate({
            'population': self.population, 'num_elites': num_elites,
            'iterations': self.iterations, 'noise_exponent': self.noise_exponent,
            'keep_elites': min(KEPT_ELITES, num_elites) if self.noise_exponent else 0})
        robot = self.robot()
        space = ActionSpace(self.horizon, robot.action_min, robot.action_max)
        return make_planner('cem', config, space)
