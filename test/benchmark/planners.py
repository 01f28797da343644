"""
Planners side by side at counted evaluations, with MuJoCo itself as the model.

    python test/benchmark/planners.py reach --json test/benchmark/results/planners_reach.json
    python test/benchmark/planners.py run --json test/benchmark/results/planners_run.json

`reach`: iCEM with 100 rollouts a plan returns at least what CEM with 1,000 does, at the settings
of PETS, on the arm. `run`: CEM returns more than random shooting with equal rollouts, on the
half-cheetah. Where that does not hold the exit status is 1.

iCEM's start is tuned for the arm, that of PETS is not. CEM with 1,000 rollouts and a start tuned
likewise is NOT beaten: it costs 3 to 9 % less than iCEM with a tenth of the rollouts. It has a
row, and a verdict, of its own.

Same horizon and same seeds, so the same starts and goals. No model is learned: the planner alone
is seen.
"""

from concurrent.futures import ProcessPoolExecutor
import json
import operator
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
import typer

from mbrl_ros.bench.known import drive_known_episode, known_planner
from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.planning import load_planning, optimise, PlanningConfig

CEM_1000 = {'population': 200, 'num_elites': 20, 'stop_std': 0.0}
CEM_500 = {'population': 100, 'num_elites': 10, 'stop_std': 0.0}
# Robot, task, steps; then the planners: name, YAML, what replaces its parameters.
CONTESTS: dict[str, tuple[str, str, int, list[tuple[str, str, dict[str, Any]]]]] = {
    'reach': ('arm', 'arm_reach', 150, [
        ('iCEM', 'icem_fine', {}), ('CEM, as PETS', 'pets', CEM_1000),
        ('CEM, tuned start', 'pets', CEM_1000 | {'initial_std': 0.03})]),
    'run': ('half_cheetah', 'half_cheetah_run', 200, [
        ('CEM', 'pets', CEM_500), ('random shooting', 'random_shooting', {'population': 500})]),
}
# What is claimed of the first planner's mean return: key in the JSON, comparison, with whom.
CLAIMS = {
    'reach': [('holds', '>=', 1), ('holds_against_tuned_cem', '>=', 2)],
    'run': [('holds', '>', 1)],
}
COMPARE = {'>=': operator.ge, '>': operator.gt}


def configured(planner: str, changes: dict[str, Any]) -> PlanningConfig:
    """Return a shipped planner with other parameters."""
    planning = load_planning(planner)
    return planning.model_copy(update={'params': planning.params | changes})


def episode(contest: str, number: int, steps: int, seed: int) -> float:
    """Return the return of one episode."""
    robot_name, task_name, _, planners = CONTESTS[contest]
    robot = load_robot(robot_name)
    task = load_task(task_name, robot).model_copy(update={'episode_steps': steps})
    return drive_known_episode(robot, task, seed, configured(*planners[number][1:]), threads=1)


def evaluations(contest: str, number: int) -> int:
    """Return how many rollouts a plan takes."""
    robot_name, task_name, _, planners = CONTESTS[contest]
    robot = load_robot(robot_name)
    planner = known_planner(robot, load_task(task_name, robot),
                            configured(*planners[number][1:]))
    return optimise(planner, planner.init(), planner.noise(np.random.default_rng(0)),
                    lambda actions: np.zeros(len(actions))).candidates


def main(contest: Annotated[str, typer.Argument(help=f'One of: {", ".join(CONTESTS)}')],
         seeds: Annotated[int, typer.Option(help='Episodes a planner', min=1)] = 5,
         steps: Annotated[int, typer.Option(help="Steps an episode; 0: the contest's")] = 0,
         json_file: Annotated[Path | None, typer.Option('--json')] = None) -> None:
    """Print, and write, the returns of each planner."""
    if contest not in CONTESTS:
        raise typer.BadParameter(f"'{contest}'. Allowed: {', '.join(CONTESTS)}")
    robot, task, usual_steps, planners = CONTESTS[contest]
    steps = steps or usual_steps
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [(number, pool.submit(episode, contest, number, steps, seed))
                for number in range(len(planners)) for seed in range(seeds)]
        returns: list[list[float]] = [[] for _ in planners]
        for number, job in track(jobs, contest, transient=True):
            returns[number].append(job.result())
    rows = [{'planner': name, 'yaml': yaml_name, 'changes': changes,
             'evaluations_per_plan': evaluations(contest, number), 'returns': returns[number],
             'mean_return': float(np.mean(returns[number]))}
            for number, (name, yaml_name, changes) in enumerate(planners)]
    verdicts, told = {}, []
    first = rows[0]['mean_return']
    for key, sign, number in CLAIMS[contest]:
        other = rows[number]['mean_return']
        verdicts[key] = bool(COMPARE[sign](first, other))
        told.append(f'{planners[0][0]} {sign} {planners[number][0]}: '
                    f'{"holds" if verdicts[key] else "does NOT hold"} '
                    f'({100 * (first - other) / abs(other):+.0f} %)')
    table = Table('planner', 'rollouts a plan', 'mean return', 'returns',
                  caption='\n'.join([f'{task}, {steps} steps, {seeds} seeds', *told]))
    for row in rows:
        table.add_row(row['planner'], str(row['evaluations_per_plan']),
                      f'{row["mean_return"]:.2f}',
                      ' '.join(f'{value:.1f}' for value in row['returns']))
    Console().print(table)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(
            {'machine': describe_machine(), 'robot': robot, 'task': task, 'steps': steps,
             'seeds': seeds, 'rows': rows, **verdicts}, indent=2) + '\n')
    raise typer.Exit(not verdicts['holds'])


if __name__ == '__main__':
    typer.run(main)
