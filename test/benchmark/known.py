"""
MuJoCo itself as the model: how fast it is, and what the shipped planners make of it.

    OMP_NUM_THREADS=1 python test/benchmark/known.py --json test/benchmark/results/known.json

Sequences a second on each robot, on one thread and on two, then episodes in lock-step without ROS
by the planner that each task names: the ceiling of what a learned model can reach with it. Exit
status 1 if the cart-pole stays below its gate. Six minutes on two idle cores.
"""

import json
from pathlib import Path
import time
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
import typer

from mbrl_ros.bench.known import drive_known_episode
from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.control.tick import Tick
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.core.task import load_task, TaskSpec
from mbrl_ros.planning import load_planning
from mbrl_ros.sim.known_model import KnownRollout
from mbrl_ros.sim.mujoco_robot import MujocoRobot

# Robot, task, and steps of an episode where the task's own are too many.
ROBOTS = (('cartpole', 'cartpole_swingup', None), ('arm', 'arm_reach', None),
          ('base', 'base_goal', 100), ('pusher', 'pusher_push', None),
          ('half_cheetah', 'half_cheetah_run', 200))
POPULATION, TIMED_S, THREADS = 200, 3.0, (1, 2)
CARTPOLE_GATE = 175.0


def load(name: str, task_name: str, steps: int | None) -> tuple[RobotSpec, TaskSpec]:
    """Return a robot, and its task of so many steps."""
    robot = load_robot(name)
    task = load_task(task_name, robot)
    return robot, task if steps is None else task.model_copy(update={'episode_steps': steps})


def rollouts_per_s(robot: RobotSpec, task: TaskSpec, threads: int) -> float:
    """Return how many random sequences of the task's horizon a second are costed."""
    body, generator = MujocoRobot(robot), np.random.default_rng(0)
    body.reset(generator)
    rollout = KnownRollout(body, task, threads)
    actions = generator.uniform(robot.action_min, robot.action_max,
                                (POPULATION, task.horizon, len(robot.action)))
    state, draw = body.state(), rollout.draw(generator)
    fastest_s, end = np.inf, time.perf_counter() + TIMED_S
    while time.perf_counter() < end:
        began = time.perf_counter()
        rollout.costs(state, actions, draw)
        fastest_s = min(fastest_s, time.perf_counter() - began)
    rollout.close()
    return POPULATION / fastest_s


def measure(robot: RobotSpec, task: TaskSpec, seeds: int) -> dict[str, Any]:
    """Return the figures of one robot."""
    decisions = []

    def watch(tick: Tick, body: MujocoRobot) -> None:
        decisions.append(tick.decision)
    planning = load_planning(task.planner)
    returns = [drive_known_episode(robot, task, seed, planning, watch=watch)
               for seed in range(seeds)]
    return {'robot': robot.name, 'task': task.name, 'planner': task.planner,
            'horizon': task.horizon, 'steps': task.episode_steps,
            'rollouts_per_s': [rollouts_per_s(robot, task, threads) for threads in THREADS],
            'evaluations_per_plan': max(decision.candidates for decision in decisions),
            'plan_ms_p50': float(np.median([each.plan_s for each in decisions])) * 1e3,
            'returns': returns, 'mean_return': float(np.mean(returns))}


def main(seeds: Annotated[int, typer.Option(help='Episodes a robot', min=1)] = 3,
         json_file: Annotated[Path | None, typer.Option('--json')] = None) -> None:
    """Print, and write, speed and returns of each robot."""
    console = Console()
    rows = [measure(*load(*names), seeds)
            for names in track(ROBOTS, 'robots', console=console, transient=True)]
    passed = min(rows[0]['returns']) >= CARTPOLE_GATE
    table = Table('robot', 'horizon', *(f'rollouts/s, {n} thread(s)' for n in THREADS), 'planner',
                  'rollouts a plan', 'plan p50 [ms]', 'steps', 'returns',
                  caption=f'cart-pole: every return at least {CARTPOLE_GATE:g}: '
                          f'{"holds" if passed else "does not hold"}')
    for row in rows:
        table.add_row(row['robot'], str(row['horizon']),
                      *(f'{rate:.0f}' for rate in row['rollouts_per_s']), row['planner'],
                      str(row['evaluations_per_plan']), f'{row["plan_ms_p50"]:.1f}',
                      str(row['steps']), ' '.join(f'{value:.1f}' for value in row['returns']))
    console.print(table)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({
            'machine': describe_machine(), 'seeds': seeds, 'threads': THREADS, 'passed': passed,
            'rows': rows}, indent=2) + '\n')
    raise typer.Exit(not passed)


if __name__ == '__main__':
    typer.run(main)
