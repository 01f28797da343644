"""Returns of a model in simulation: episodes in lock-step, without ROS, in this process."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_ros.control.build import build_pilot, Built, PilotConfig
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.tick import Observation, Tick
from mbrl_ros.core.paths import share_dir
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import load_task, TaskSpec
from mbrl_ros.core.yaml_file import load
from mbrl_ros.costs import CostFunction
from mbrl_ros.planning import config_class, load_planning, PlanningConfig
from mbrl_ros.sim.command_delay import CommandDelay
from mbrl_ros.sim.mujoco_robot import MujocoRobot

MAX_SPREAD = 20.0  # the controller's default

Report = Callable[[int, int, str], None]  # done, of how many, what
Watch = Callable[[Tick, MujocoRobot], None]


def find_task(robot: RobotSpec, name: str = '') -> TaskSpec | None:
    """Return a task by its name, or the shipped one of a robot; None unless it has just one."""
    if name:
        return load_task(name, robot)
    shipped = [path for path in sorted((share_dir() / 'config' / 'tasks').glob('*.yaml'))
               if load(path, TaskSpec).robot == robot.name]
    return load_task(shipped[0].stem, robot) if len(shipped) == 1 else None


def measure_returns(models: Sequence[tuple[str, Path]], robot: RobotSpec, task: TaskSpec,
                    seeds: Sequence[int], report: Report) -> list[list[float]]:
    """
    Drive the same episodes with each model, in turns.

    Parameters
    ----------
    models : sequence of (str, Path)
        What to call a model, and its dynamics.onnx.
    robot, task : RobotSpec, TaskSpec
        What to drive, and what for. The task names the planner.
    seeds : sequence of int
        Of the episodes: the same seed begins from the same state, towards the same goal.
    report : callable
        Told of progress.

    Returns
    -------
    list of list of float
        For each model, the return of each episode.

    """
    total = len(models) * len(seeds)
    found: list[list[float]] = [[] for _ in models]
    for seed in seeds:
        for (name, path), returns in zip(models, found, strict=True):
            report(sum(map(len, found)), total, f'{name}, seed {seed}')
            returns.append(drive_episode(path, robot, task, seed, robot.actuation_delay_steps))
    report(total, total, 'done')
    return found


def drive_episode(model: Path, robot: RobotSpec, task: TaskSpec, seed: int, injected_steps: int,
                  compensated_steps: int | None = None, planning: PlanningConfig | None = None,
                  **settings: Any) -> float:
    """
    Drive one episode in lock-step, without ROS, by what drives the controller node.

    Parameters
    ----------
    model : Path
        A dynamics.onnx.
    robot, task : RobotSpec, TaskSpec
        What to drive, and what for.
    seed : int
        Of the initial state, of the goal where the task draws it, and of the plans.
    injected_steps : int
        Control periods that the simulated robot holds each command back.
    compensated_steps : int, optional
        Control periods that the controller believes in: by default the same.
    planning : PlanningConfig, optional
        Planner and rollouts: by default those that the task names.
    settings
        Replace fields of the controller's `PilotConfig`.

    Returns
    -------
    float
        Return of the episode: minus the task's cost of the commands that acted.

    """
    delay_steps = injected_steps if compensated_steps is None else compensated_steps
    config = pilot_config(model, task, seed, delay_steps, planning, **settings)
    built = build_pilot(robot, task, config, Latch())
    try:
        return drive(built, MujocoRobot(robot), task, seed, injected_steps)
    finally:
        built.close()


def pilot_config(model: Path, task: TaskSpec, seed: int, delay_steps: int = 0,
                 planning: PlanningConfig | None = None, **settings: Any) -> PilotConfig:
    """Return the settings of a pilot in lock-step on the CPU; parameters as `drive_episode`."""
    planning = planning or load_planning(task.planner)
    config = PilotConfig(
        model=model, signal='', planner=planning.planner,
        source_config=config_class(planning.planner).model_validate(planning.params),
        rollout=planning.rollout, provider='cpu', precision='', delay_steps=delay_steps,
        deadline_s=None, max_spread=MAX_SPREAD, seed=seed)
    return replace(config, **settings)


def drive(built: Built, body: MujocoRobot, task: TaskSpec, seed: int, injected_steps: int = 0,
          watch: Watch = lambda tick, body: None) -> float:
    """
    Drive a robot with a pilot for one episode of a task.

    Parameters
    ----------
    built : Built
        What drives; it is not closed.
    body : MujocoRobot
        What is driven.
    task : TaskSpec
        What for.
    seed : int
        Of the initial state, and of the goal where the task draws it.
    injected_steps : int
        Control periods that the simulated robot holds each command back.
    watch : callable
        Takes each tick and the robot after it; it may push the robot.

    Returns
    -------
    float
        Return of the episode: minus the task's cost of the commands that acted.

    """
    robot = body.spec
    line, cost, total = CommandDelay(injected_steps, robot.safe_value), \
        CostFunction(task, robot), 0.0
    body.reset(np.random.default_rng(1000 + seed))
    goal = task.draw_goal(np.random.default_rng(2000 + seed))
    if built.engine is not None:
        built.engine.rollout.set_goal(goal)
    for index in range(task.episode_steps):
        observation = Observation(body.state(), stamp_ns=index * robot.dt_ns)
        tick = built.pilot.tick(observation)
        acting = line.push(tick.verdict.command)
        body.step(acting)
        total -= float(task.weights @ cost.terms(body.state(), acting, goal))
        built.pilot.review(observation, tick)
        watch(tick, body)
    return total
