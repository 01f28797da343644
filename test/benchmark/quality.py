"""
How good the cart-pole's model gets from the bags of demos, against the gates of `learning/gates`.

    OMP_NUM_THREADS=1 python test/benchmark/quality.py --json test/benchmark/results/quality.json

Demos in lock-step from nothing, a seed each (random motion, then train and drive ten times). Then,
for each seed, `mbrl-ros train` on all of their bags together, scored on the episodes that the seed
holds out. Demos that are in the output folder already are not repeated. Three minutes a demo on
two cores, one a model.
"""

import json
from pathlib import Path
import subprocess
import sys
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
import typer

from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.core.robot import load_robot
from mbrl_ros.learning.evaluation import Evaluation
from mbrl_ros.learning.gates import gates

ROBOT = 'cartpole'
# Those that are asked of this robot; the others are in the report of each model.
ASKED = ('R2 of ', 'calibration error', '25-step error')


def drive(seed: int, trials: int, folder: Path) -> dict[str, Any]:
    """Run a demo, unless it has been, and return its metrics."""
    metrics = folder / 'metrics.json'
    if not metrics.is_file():
        # Exit status 1 is a missed return, which the results show.
        subprocess.run([sys.executable, '-m', 'mbrl_ros.cli.main', 'demo', '--lockstep',
                        '--trials', str(trials), '--seed', str(seed), '--output', str(folder)],
                       check=False)
    found: dict[str, Any] = json.loads(metrics.read_text())
    return found


def score(seed: int, demos: list[Path], config: str, folder: Path) -> dict[str, Any]:
    """Train on the bags of demos and return every gate."""
    bags = [str(bag) for demo in demos for bag in sorted((demo / 'bags').iterdir())]
    subprocess.run([sys.executable, '-m', 'mbrl_ros.cli.main', 'train', *bags, '--robot', ROBOT,
                    '--config', config, '--seed', str(seed), '--output', str(folder)], check=True)
    metrics = json.loads((folder / 'metrics.json').read_text())
    scores = Evaluation(**metrics['holdout'])
    rows = [{'gate': gate.name, 'value': gate.value, 'asked': gate.limits, 'met': gate.is_met,
             'counts': gate.name.startswith(ASKED)}
            for gate in gates(load_robot(ROBOT), scores)]
    last = scores.k_step[-1]
    return {'gates': rows, 'bags': len(bags), 'held_out_transitions': scores.transitions,
            'held_out_bags': sum(bool(bag['held_out']) for bag in metrics['data']['bags']),
            'last_error_band': [last['low'], last['high']],
            'recalibration': scores.recalibration}


def main(
    json_path: Annotated[Path, typer.Option('--json', help='File to write the results to')],
    seeds: Annotated[int, typer.Option(min=1, help='Models to train')] = 2,
    demos: Annotated[int, typer.Option(min=1, help='Demos to take the bags of')] = 3,
    trials: Annotated[int, typer.Option(min=1, help='Trials of a demo')] = 10,
    config: Annotated[str, typer.Option(help='Training settings')] = 'default',
    output: Annotated[Path, typer.Option(help='Folder for demos and models')] =
        Path('out/quality'),
) -> None:
    """Drive, train and score; exit status 0 only if every model meets what is asked."""
    folders = [output / f'demo_{number}' for number in range(demos)]
    driven = [drive(number, trials, folder) for number, folder in enumerate(folders)]
    rows = [{'seed': seed, **score(seed, folders, config, output / f'model_{seed}')}
            for seed in range(seeds)]
    table = Table('gate', 'asked', *(f'seed {row["seed"]}' for row in rows))
    for lines in zip(*(row['gates'] for row in rows), strict=True):
        table.add_row(lines[0]['gate'], lines[0]['asked'], *(
            f'[{"green" if line["met"] else "red"}]'
            + ('-' if line['value'] is None else f'{line["value"]:.4f}') + '[/]'
            for line in lines))
    Console().print(table)
    passed = all(gate['met'] for row in rows for gate in row['gates'] if gate['counts'])
    json_path.write_text(json.dumps({
        'machine': describe_machine(), 'config': config, 'trials': trials,
        'returns': [[trial['return'] for trial in demo['trials']] for demo in driven],
        'passed': passed, 'models': rows}, indent=2) + '\n')
    raise typer.Exit(0 if passed else 1)


if __name__ == '__main__':
    typer.run(main)
