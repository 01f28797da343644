"""
What a changed robot costs, and what a few trials of new data give back, over DDS in lock-step.

    OMP_NUM_THREADS=1 python test/benchmark/adapt.py --json test/benchmark/results/adapt.json

The cart-pole with mass and friction 20 % off, each way: the shipped model drives one trial, is
trained on with what was recorded, drives again, and so on. A minute a corner on two cores.
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
import yaml

from mbrl_ros.bench.machine import describe_machine

CORNERS = [(1.0, 1.0), (0.8, 0.8), (0.8, 1.2), (1.2, 0.8), (1.2, 1.2)]
GATE_SHARE, MOST_NEW_DATA_S = 0.8, 300.0


def run(mass: float, friction: float, seed: int, trials: int, folder: Path) -> dict[str, Any]:
    """Run one corner, unless it has been, and summarise it."""
    metrics = folder / 'metrics.json'
    if not metrics.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        params = folder / 'params.yaml'
        params.write_text(yaml.safe_dump({'/**': {'ros__parameters': {
            'mass_scale': mass, 'friction_scale': friction}}}))
        # Exit status 1 is a missed gate, which the table will show.
        subprocess.run([sys.executable, '-m', 'mbrl_ros.cli.main', 'demo', '--adapt', '--lockstep',
                        '--trials', str(trials), '--params-file', str(params), '--seed', str(seed),
                        '--output', str(folder)], check=False)
    found = json.loads(metrics.read_text())['trials']
    return {'mass_scale': mass, 'friction_scale': friction, 'seed': seed,
            'returns': [trial['return'] for trial in found],
            'new_data_s': [0.0, *(trial['robot_seconds'] for trial in found[:-1])]}


def main(
    json_path: Annotated[Path | None, typer.Option('--json', help='File for the figures')] = None,
    seeds: Annotated[int, typer.Option(min=1, help='Runs of each corner')] = 2,
    trials: Annotated[int, typer.Option(min=1, help='Trials after the first')] = 3,
    output: Annotated[Path, typer.Option(help='Folder for the runs')] = Path('out/adapt'),
) -> None:
    """Run all corners; exit status 1 if one stays below 80 % of the robot that was not changed."""
    runs = [run(mass, friction, seed, trials, output / f'{mass:g}_{friction:g}_{seed}')
            for mass, friction in CORNERS for seed in range(seeds)]
    nominal = float(np.mean([one['returns'][0] for one in runs[:seeds]]))
    table = Table('mass', 'friction', 'seed', 'return by seconds of new data', 'share of nominal')
    shares = []
    for one in runs:
        usable = [value for value, seconds in zip(one['returns'], one['new_data_s'], strict=True)
                  if seconds <= MOST_NEW_DATA_S]
        shares.append(usable[-1] / nominal)
        table.add_row(f'{one["mass_scale"]:g}', f'{one["friction_scale"]:g}', str(one['seed']),
                      ', '.join(f'{value:.1f} at {seconds:.0f} s' for value, seconds in zip(
                          one['returns'], one['new_data_s'], strict=True)),
                      f'{shares[-1]:.0%}')
    Console().print(table)
    passed = min(shares) >= GATE_SHARE
    if json_path is not None:
        json_path.write_text(json.dumps({
            'machine': describe_machine(), 'nominal_return': nominal, 'runs': runs,
            'shares_after_new_data': shares, 'passed': passed}, indent=2) + '\n')
    raise typer.Exit(0 if passed else 1)


if __name__ == '__main__':
    typer.run(main)
