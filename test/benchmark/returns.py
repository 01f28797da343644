"""
Return of the cart-pole by planning budget: what fewer candidates, or another runtime, cost.

    python test/benchmark/returns.py --seeds 3 --json test/benchmark/results/returns.json

Lock-step without ROS: MuJoCo answers every plan, so a run is a function of its seed. The first
row is PETS's published budget. Five minutes on two cores.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
import typer

from mbrl_ros.control.mpc import Mpc
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.costs import CostFunction
from mbrl_ros.planning import ActionSpace, config_class, load_planning, make_planner
from mbrl_ros.runtime import artifact, providers
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.sim.mujoco_robot import MujocoRobot

ICEM = {'population': 40, 'num_elites': 6, 'keep_elites': 3, 'noise_exponent': 2.0,
        'iterations': 3}
# Name, planner's YAML, horizon, what replaces its parameters.
BUDGETS = (('published', 'pets', 25, {}), ('iCEM-style', 'cem', 25, ICEM),
           ('shipped', 'cem', 20, {}))


def episode(budget: tuple, model_path: Path, provider: str, precision: str,
            seed: int) -> tuple[float, np.ndarray]:
    """Drive one episode; return its return and the time [s] of each plan."""
    _, planner_name, horizon, changes = budget
    robot = load_robot('cartpole')
    task = load_task('cartpole_swingup', robot)
    shortened = task.model_copy(update={'horizon': horizon})
    model = artifact.load(model_path, robot)
    planning = load_planning(planner_name)
    config = config_class(planning.planner).model_validate({**planning.params, **changes})
    rollout = Rollout(model, robot, shortened, planning.rollout, provider, precision)
    space = ActionSpace(horizon, robot.action_min, robot.action_max)
    mpc = Mpc(Dynamics(model.model, model.metadata), rollout,
              make_planner(planning.planner, config, space), robot, np.random.default_rng(seed))
    mpc.calibrate()
    mpc.warm_up(most_plans=10)
    cost, times_s, total = CostFunction(task, robot), [], 0.0
    simulated = MujocoRobot(robot)
    simulated.reset(np.random.default_rng(1000 + seed))
    for tick in range(1, task.episode_steps + 1):
        decision = mpc.plan(tick, simulated.state(), ())
        times_s.append(decision.plan_s)
        simulated.step(decision.actions[0])
        terms = cost.terms(simulated.state(), decision.actions[0], task.goal_values)
        total -= float(task.weights @ terms)
    rollout.close()
    return total, np.array(times_s)


def main(seeds: Annotated[int, typer.Option(help='Episodes a row')] = 3,
         model: Annotated[str, typer.Option(help='Model folder or file')] = 'cartpole',
         json_file: Annotated[Path | None, typer.Option('--json')] = None) -> None:
    """Print, and write, the mean return and plan times of each budget on each provider."""
    console, rows = Console(), []
    runtimes = [(name, precision) for name in providers.available()
                for precision in providers.find(name)[0].PRECISIONS]
    for budget in BUDGETS:
        # The published budget is what the others are held against: once, since it takes minutes.
        for provider, precision in runtimes[:1] if budget is BUDGETS[0] else runtimes:
            runs = [episode(budget, find_model(model), provider, precision, seed)
                    for seed in track(range(seeds), f'{budget[0]}, {provider} {precision}',
                                      console=console, transient=True)]
            times_ms = np.concatenate([times_s for _, times_s in runs]) * 1e3
            rows.append({'budget': budget[0], 'provider': provider, 'precision': precision,
                         'returns': [total for total, _ in runs],
                         'mean_return': float(np.mean([total for total, _ in runs])),
                         'p50_ms': float(np.quantile(times_ms, 0.5)),
                         'p99_ms': float(np.quantile(times_ms, 0.99))})
    table = Table('budget', 'runtime', 'mean return', 'of the first', 'p50 [ms]', 'p99 [ms]')
    for row in rows:
        table.add_row(row['budget'], f'{row["provider"]} {row["precision"]}',
                      f'{row["mean_return"]:.1f}',
                      f'{row["mean_return"] / rows[0]["mean_return"]:.1%}',
                      f'{row["p50_ms"]:.1f}', f'{row["p99_ms"]:.1f}')
    console.print(table)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({'seeds': seeds, 'rows': rows}, indent=2) + '\n')


if __name__ == '__main__':
    typer.run(main)
