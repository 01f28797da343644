"""
How many trials the arm takes to learn to reach, over real DDS in lock-step, a run a seed.

    OMP_NUM_THREADS=1 python test/benchmark/reach.py --json test/benchmark/results/arm.json

Each run is `mbrl-ros demo` from nothing: a trial of random torques, then train and drive 20 times.
Runs that are in the output folder already are not repeated. The last goals are driven to once more
with the simulator itself as the model, without ROS: what the same planner makes of perfect
dynamics. Six minutes a seed on two cores.
"""

import json
from pathlib import Path
import subprocess
import sys
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.table import Table
import typer

from mbrl_ros.bench.known import drive_known_episode
from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.core.paths import find_config
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.core.yaml_file import load
from mbrl_ros.costs import CostFunction
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.planning import load_planning

ROBOT, TASK = 'arm', 'arm_reach'
LAST = 5


def run(seed: int, trials: int, folder: Path) -> dict[str, Any]:
    """Run one seed, unless it has been, and summarise it."""
    metrics = folder / 'metrics.json'
    if not metrics.is_file():
        # Exit status 1 is a missed gate, which the table will show.
        subprocess.run([sys.executable, '-m', 'mbrl_ros.cli.main', 'demo', '--robot', ROBOT,
                        '--task', TASK, '--trials', str(trials), '--lockstep', '--seed',
                        str(seed), '--output', str(folder)], check=False)
    found = json.loads(metrics.read_text())
    driven = found['trials'][1:]
    returns = [trial['return'] for trial in driven]
    distances = [trial['final_distance_m'] for trial in driven]
    reached = [number for number, value in enumerate(returns, 1) if value >= found['gate']]
    return {'seed': seed, 'gate': found['gate'], 'passed': found['passed'],
            'random_return': found['trials'][0]['return'], 'returns': returns,
            'max_so_far': np.maximum.accumulate(returns).tolist(),
            'final_distances_m': distances, 'goals': [trial['goal'] for trial in driven],
            'trials_to_gate': reached[0] if reached else None,
            'mean_return_of_last': float(np.mean(returns[-LAST:])),
            'mean_final_distance_m_of_last': float(np.mean(distances[-LAST:])),
            'robot_seconds': driven[-1]['robot_seconds'], 'wall_seconds': found['wall_seconds'],
            'plan_ms_p50': float(np.median([trial['plan_ms_p50'] for trial in driven]))}


def drive_with_simulator(goal: list[float], seed: int) -> tuple[float, float]:
    """Return the return, and the final distance [m], of planning with the true dynamics."""
    robot = load_robot(ROBOT)
    task = load_task(TASK, robot)
    fixed = [field.model_copy(update={'value': value, 'std': 0.0})
             for field, value in zip(task.goal, goal, strict=True)]
    task = task.model_copy(update={'goal': tuple(fixed)})
    reached: list[np.ndarray] = []
    total = drive_known_episode(robot, task, seed, load_planning(task.planner),
                                watch=lambda tick, body: reached.append(body.state()))
    # The first term is the square of the distance.
    distance = CostFunction(task, robot).terms(reached[-1], np.zeros(len(robot.action)),
                                               task.goal_values)[0]
    return total, float(np.sqrt(distance))


def main(seeds: Annotated[int, typer.Option(help='Runs')] = 3,
         trials: Annotated[int, typer.Option(help='Trials a run')] = 20,
         output: Annotated[Path, typer.Option(help='A folder a run')] = Path('out/reach'),
         json_file: Annotated[Path | None, typer.Option('--json')] = None) -> None:
    """Print, and write, returns and distances from the goal of each trial."""
    rows = [run(seed, trials, output / f'seed_{seed}') for seed in range(seeds)]
    for row in rows:
        twins = [drive_with_simulator(goal, row['seed']) for goal in row['goals'][-LAST:]]
        row['simulator_mean_return_of_last'] = float(np.mean([total for total, _ in twins]))
        row['simulator_mean_final_distance_m_of_last'] = float(np.mean([d for _, d in twins]))
    table = Table('seed', 'trials to gate', 'best', 'mean', 'by simulator', 'away [m]',
                  'by simulator', 'plan p50 [ms]', 'min',
                  caption=f'mean and away: of the last {LAST} trials')
    for row in rows:
        table.add_row(str(row['seed']), str(row['trials_to_gate'] or 'not met'),
                      f'{max(row["returns"]):.1f}', f'{row["mean_return_of_last"]:.1f}',
                      f'{row["simulator_mean_return_of_last"]:.1f}',
                      f'{row["mean_final_distance_m_of_last"]:.3f}',
                      f'{row["simulator_mean_final_distance_m_of_last"]:.3f}',
                      f'{row["plan_ms_p50"]:.1f}', f'{row["wall_seconds"] / 60:.1f}')
    Console().print(table)
    if json_file is not None:
        task = load_task(TASK, load_robot(ROBOT))
        planning = load_planning(task.planner)
        budget = {'planner': planning.model_dump(), 'horizon': task.horizon,
                  'episode_steps': task.episode_steps, 'training': load(
                      find_config('training', 'default'), TrainingConfig).model_dump()}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({'machine': describe_machine(), 'robot': ROBOT,
                                         'task': TASK, 'budget': budget, 'runs': rows},
                                        indent=2) + '\n')


if __name__ == '__main__':
    typer.run(main)
