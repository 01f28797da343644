"""`mbrl-ros bench pets`: the published tasks, in lock-step, judged by the published returns."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class PetsTask(StrEnum):
    """The tasks of PETS."""

    CARTPOLE = 'cartpole'
    REACHER = 'reacher'
    PUSHER = 'pusher'
    HALF_CHEETAH = 'half_cheetah'


def pets(
    task: Annotated[PetsTask, typer.Option(help='Which task')] = PetsTask.CARTPOLE,
    seeds: Annotated[int, typer.Option(min=1, help='Runs, with seeds 0, 1, ...')] = 5,
    trials: Annotated[int, typer.Option(
        min=1, help='Trials of a run, after one random episode')] = 15,
    planner: Annotated[str, typer.Option(
        help="A name in config/planners or a .yaml path; empty: the task's")] = '',
    training: Annotated[str, typer.Option(
        help="A name in config/training or a .yaml path; empty: the task's")] = '',
    jobs: Annotated[int, typer.Option(
        min=0, help='Runs at the same time; 0: one a core')] = 0,
    known_model: Annotated[bool, typer.Option(
        help='Also drive one episode a seed with MuJoCo itself as the model')] = True,
    output: Annotated[Path | None, typer.Option(
        help='Folder for the runs', show_default='out/bench/pets/<task>')] = None,
    json_path: Annotated[Path | None, typer.Option(
        '--json', help='File for the numbers', show_default='in the folder')] = None,
    plot_path: Annotated[Path | None, typer.Option(
        '--plot', help='File for the picture (.png)', show_default='in the folder')] = None,
) -> None:
    """
    Learn a task of PETS from nothing: a random episode, then train and drive, trial after trial.

    In lock-step, without ROS, each run on a core of its own: 5 cart-poles of 15 trials take about
    20 minutes on two cores. A call that was stopped goes on where it was, and one with more seeds
    or trials goes on from there. Exit status 0 only if all gates that the number of trials reaches
    are met.

    Examples:
      mbrl-ros bench pets --task cartpole --seeds 5 --trials 15 --json pets.json

      mbrl-ros bench pets --task reacher --seeds 3 --trials 20

      mbrl-ros bench pets --task pusher --seeds 2 --trials 20 --planner mine.yaml --output out/mine
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from mbrl_ros.cli import show
    from mbrl_ros.core.errors import MbrlError

    try:
        from mbrl_ros.bench.pets import bench
        from mbrl_ros.bench.pets_plot import draw_returns
    except ModuleNotFoundError as error:
        if error.name not in ('torch', 'mujoco', 'matplotlib'):
            raise
        raise MbrlError(f'bench pets needs {error.name}, which is not installed. Try: pip '
                        "install '.[cpu,train]'") from error
    console = Console()
    folder = output or Path('out/bench/pets') / task
    json_path, plot_path = json_path or folder / 'pets.json', plot_path or folder / 'pets.png'
    for path in (json_path, plot_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with show.measuring(console) as report:
        result = bench(task, seeds, trials, planner, training, jobs, folder, report, known_model)
    json_path.write_text(json.dumps(result, indent=2) + '\n')
    draw_returns(plot_path, result)
    table = Table('trial', 'mean return', 'max so far, mean', 'gate',
                  title=f"{task}, {seeds} seeds; {result['evaluations_per_plan']:,} network "
                        f"evaluations a plan, {result['robot_seconds']:.0f} s of robot time")
    verdicts = {gate['trial']: gate for gate in result['gates'].values()}
    for index, best in enumerate(result['max_so_far_mean']):
        gate = verdicts.get(index + 1)
        mean = sum(row[index] for row in result['returns']) / seeds
        table.add_row(str(index + 1), f'{mean:.1f}', f'{best:.1f}', _verdict(gate) if gate else '')
    console.print(table)
    if result['known_model_returns']:
        known = result['known_model_returns']
        console.print(f'the same planner with MuJoCo as its model: {sum(known) / len(known):.1f}')
    elif known_model:
        console.print(f"MuJoCo was not tried as the model: {result['known_model_note']}",
                      soft_wrap=True, highlight=False)
    if not result['gates']:
        console.print('no gate is reached with so few trials', style='yellow')
    console.print(f'wrote {json_path}, {plot_path}', soft_wrap=True)
    raise typer.Exit(int(not result['passed']))


def _verdict(gate: dict[str, float]) -> str:
    kind = 'stretch: ' if gate['is_stretch'] else ''
    colour, text = ('green', 'met') if gate['passed'] else ('red', 'missed')
    return f"{kind}{gate['threshold']:g} [{colour}]{text}[/]"
