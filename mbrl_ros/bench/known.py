"""Returns of planning with the true model: what the same planner makes of perfect foresight."""

import numpy as np

from mbrl_ros import planning as planners
from mbrl_ros.bench.returns import drive, Watch
from mbrl_ros.control.build import build_planner, Built
from mbrl_ros.control.gate import SafetyGate
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.mpc import Mpc
from mbrl_ros.control.tick import PlanPilot
from mbrl_ros.core import plugins
from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.planning import config_class, Planner, PlanningConfig
from mbrl_ros.sim.known_model import KnownRollout
from mbrl_ros.sim.mujoco_robot import MujocoRobot


def drive_known_episode(robot: RobotSpec, task: TaskSpec, seed: int, planning: PlanningConfig,
                        threads: int = 0, watch: Watch = lambda tick, body: None) -> float:
    """
    Drive one episode in lock-step, without ROS, with MuJoCo itself as the model.

    Parameters
    ----------
    robot, task : RobotSpec, TaskSpec
        What to drive, and what for; the robot's actuation delay is there, and compensated.
    seed : int
        Of the initial state, of the goal where the task draws it, and of the plans: the same
        episode as `drive_episode` drives.
    planning : PlanningConfig
        The planner. How it would sample a learned model does not matter here.
    threads : int
        Rollouts that run at once; 0: as many as there are cores. They change no bit.
    watch : callable
        Takes each tick and the robot after it.

    Returns
    -------
    float
        Return of the episode: minus the task's cost of the commands that acted.

    Raises
    ------
    SpecError
        If the planner wants more than costs or is helped by a learned value or policy; see also
        `KnownRollout`.

    """
    planner = known_planner(robot, task, planning)
    body, generator = MujocoRobot(robot), np.random.default_rng(seed)
    rollout = KnownRollout(body, task, threads)
    rollout.set_goal(task.draw_goal(np.random.default_rng(2000 + seed)))  # as `drive` does
    mpc = Mpc(rollout.dynamics, rollout, planner, robot, generator)
    gate = SafetyGate(robot, float('inf'), task.termination, Latch())
    pilot = PlanPilot(mpc, gate, robot, robot.actuation_delay_steps, deadline_s=None)
    try:
        return drive(Built(pilot, engine=None), body, task, seed, robot.actuation_delay_steps,
                     watch)
    finally:
        pilot.close()
        rollout.close()


def known_planner(robot: RobotSpec, task: TaskSpec, planning: PlanningConfig) -> Planner:
    """
    Build a planner that the true model can answer.

    Raises
    ------
    SpecError
        If it asks for more than costs, with the names of those that do not, or is helped by a
        learned value or policy.

    """
    if planning.rollout.value or planning.rollout.policy:
        raise SpecError('MuJoCo as the model takes no value.onnx and no policy.onnx: the return '
                        'would not be that of the same planner. Leave rollout.value and '
                        'rollout.policy empty')
    config = config_class(planning.planner).model_validate(planning.params)
    planner = build_planner(robot, task, planning.planner, config)
    if planner.asks != 'costs':
        able = [name for name in plugins.names(planners)
                if build_planner(robot, task, name, config_class(name)()).asks == 'costs']
        raise SpecError(f"planner '{planning.planner}' asks for {planner.asks}, and MuJoCo as the "
                        f'model has costs only. Allowed: {", ".join(able)}')
    return planner
