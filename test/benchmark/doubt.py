"""
What a planner that knows what its model does not know is worth, in simulation.

    OMP_NUM_THREADS=1 python test/benchmark/doubt.py horizon --json out/bench/horizon.json

`horizon`: the cart-pole with the adaptive horizon, first as the shipped model knows it, then with
a payload that no data showed (each mass times 1.5), then with a model that was trained anew on
64 s with the payload. Three minutes on two cores.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import tempfile
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.table import Table
import typer

from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.bench.returns import drive, find_task, pilot_config
from mbrl_ros.bench.trained import random_motion
from mbrl_ros.control.build import build_pilot
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.tick import Tick
from mbrl_ros.control.trust import TrustConfig
from mbrl_ros.core.paths import find_config, find_model, MODEL_FILE
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.yaml_file import load
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.data.resample import Episode
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.pipeline import train_model
from mbrl_ros.planning import load_planning
from mbrl_ros.sim.mujoco_robot import MujocoRobot

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)
ROBOT = load_robot('cartpole')
TASK = find_task(ROBOT)
assert TASK is not None
# Surprise stops nothing here: the horizon alone answers it.
UNRESTRAINED = {'trust': TrustConfig(slow_above=1.0, hold_above=1.0, stop_above=1.0),
                'max_spread': 1e6}
PAYLOAD = 1.5
LEAST_SHRINKING, LEAST_SHARE = 0.5, 0.9
RANDOM_EPISODES, RANDOM_STEPS = 16, 50


@app.callback()
def main() -> None:
    """Say that the parts are commands even while there is one."""


def fly(model: Path, seed: int, mass_scale: float, *,
        adaptive: bool) -> tuple[float, list[int], Episode]:
    """Drive one episode; return its return, the horizon of each plan, and what was observed."""
    rollout = load_planning(TASK.planner).rollout.model_copy(
        update={'adaptive_horizon': adaptive})
    built = build_pilot(ROBOT, TASK, pilot_config(model, TASK, seed, rollout=rollout,
                                                  **UNRESTRAINED), Latch())
    horizons: list[int] = []
    states: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    body = MujocoRobot(ROBOT, mass_scale=mass_scale)

    def watch(tick: Tick, body: MujocoRobot) -> None:
        assert tick.decision is not None
        horizons.append(tick.decision.inputs.horizon)
        states.append(tick.decision.inputs.observation)
        actions.append(tick.verdict.command)
    try:
        total = drive(built, body, TASK, seed, watch=watch)
    finally:
        built.close()
    states.append(body.state())
    return total, horizons, Episode(np.array(states), np.array(actions), 0, f'seed {seed}')


def survey(name: str, model: Path, seeds: Sequence[int], mass_scale: float) -> dict[str, Any]:
    """Drive with the adaptive horizon, and with the whole one; return the means."""
    flights = [fly(model, seed, mass_scale, adaptive=True) for seed in seeds]
    whole = [fly(model, seed, mass_scale, adaptive=False)[0] for seed in seeds]
    return {'name': name, 'mass_scale': mass_scale,
            'mean_horizon': float(np.mean([horizons for _, horizons, _ in flights])),
            'return': float(np.mean([total for total, _, _ in flights])),
            'return_whole_horizon': float(np.mean(whole))}


@app.command()
def horizon(
    json_path: Annotated[Path | None, typer.Option('--json', help='File for the figures')] = None,
    seeds: Annotated[int, typer.Option(min=1, help='Episodes of each survey')] = 3,
    rounds: Annotated[int, typer.Option(min=1, help='Times that new data are trained on')] = 1,
    episodes: Annotated[int, typer.Option(min=1, help='New episodes before each training')] = 4,
) -> None:
    """Exit status 1 unless the payload halves the horizon and training brings 90 % back."""
    config = load(find_config('training', 'default'), TrainingConfig)
    tried, console = range(seeds), Console()
    shipped = find_model(ROBOT.name)
    surveys = [survey('as the data had it', shipped, tried, 1.0),
               survey('with a payload', shipped, tried, PAYLOAD)]
    console.print(*surveys)
    gathered = list(random_motion(ROBOT, 0, RANDOM_EPISODES, RANDOM_STEPS,
                                  mass_scale=PAYLOAD).episodes)
    model = shipped
    with tempfile.TemporaryDirectory(prefix='mbrl_ros_') as folder:
        for number in range(1, rounds + 1):
            gathered += [fly(model, 100 * number + seed, PAYLOAD, adaptive=False)[2]
                         for seed in range(episodes)]
            output = Path(folder) / str(number)
            train_model(Dataset(tuple(gathered), ROBOT), config, number, output)
            model = output / MODEL_FILE
            surveys.append(survey(f'payload, training {number}', model, tried, PAYLOAD))
            surveys[-1]['payload_seconds'] = sum(e.num_steps for e in gathered) * ROBOT.dt_s
            console.print(surveys[-1])
    before, novel, after = surveys[0], surveys[1], surveys[-1]
    shrinking = 1.0 - novel['mean_horizon'] / before['mean_horizon']
    is_met = (before['mean_horizon'] >= LEAST_SHARE * TASK.horizon
              and shrinking >= LEAST_SHRINKING
              and after['mean_horizon'] >= LEAST_SHARE * TASK.horizon)
    table = Table('robot and model', 'mean horizon', 'return', 'return with the whole horizon')
    for one in surveys:
        table.add_row(one['name'], f'{one["mean_horizon"]:.1f} of {TASK.horizon}',
                      f'{one["return"]:.0f}', f'{one["return_whole_horizon"]:.0f}')
    console.print(table)
    console.print(f'The payload takes {shrinking:.0%} of the horizon; {LEAST_SHRINKING:.0%} were '
                  'asked for.')
    found = {'horizon': TASK.horizon, 'payload': PAYLOAD, 'seeds': seeds, 'surveys': surveys,
             'shrinking': shrinking, 'is_met': is_met, 'machine': describe_machine()}
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(found, indent=2) + '\n')
    raise typer.Exit(not is_met)


if __name__ == '__main__':
    app()
