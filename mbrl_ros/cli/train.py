"""`mbrl-ros train`: bags to dynamics.onnx."""

from pathlib import Path
from typing import Annotated, TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mbrl_ros.learning.sweep import Trial


def train(
    bags: Annotated[list[Path], typer.Argument(help='rosbag2 folders', show_default=False)],
    output: Annotated[Path, typer.Option(help='Folder to write the model to')],
    robot: Annotated[str, typer.Option(help='Robot spec: a name or a .yaml path')] = 'cartpole',
    config: Annotated[str, typer.Option(
        help='Training settings: a name in config/training or a .yaml path')] = 'default',
    warm_start: Annotated[Path | None, typer.Option(
        help='Folder of an earlier model to start from')] = None,
    sweep: Annotated[int, typer.Option(
        min=0, help='Train so often, and keep the best settings; 0: train once')] = 0,
    space: Annotated[str, typer.Option(
        help='What a sweep tries: a name in config/sweeps or a .yaml path')] = 'default',
    device: Annotated[str, typer.Option(help='cpu, cuda, or auto: CUDA if there is one')] = 'cpu',
    tensorboard: Annotated[bool, typer.Option(
        '--tensorboard', help='Log for TensorBoard too')] = False,
    cache: Annotated[bool, typer.Option(
        help='Reuse what was read of a bag before')] = True,
    namespace: Annotated[str, typer.Option(
        help='ROS namespace under which the bags were recorded')] = '',
    seed: Annotated[int, typer.Option(min=0, help='Same bags and seed: same model')] = 0,
) -> None:
    """
    Train an ensemble from bags and export it to ONNX.

    A run that was killed goes on when the same command is given again, and ends in the same model.

    Examples:
      mbrl-ros train bags/run1 bags/run2 --robot cartpole --output models/new

      mbrl-ros train bags/* --output models/new --warm-start models/mine

      mbrl-ros train bags/* --output models/new --sweep 30
    """
    from rich.console import Console
    from rich.markup import escape

    from mbrl_ros.cli import show
    from mbrl_ros.core.paths import find_config
    from mbrl_ros.core.robot import load_robot
    from mbrl_ros.core.yaml_file import load
    from mbrl_ros.data.dataset import load_dataset
    from mbrl_ros.learning.config import TrainingConfig
    from mbrl_ros.learning.pipeline import train_model
    from mbrl_ros.learning.recipe import Recipe
    from mbrl_ros.learning.sweep import load_space
    from mbrl_ros.learning.sweep import sweep as search

    if sweep and (warm_start is not None or tensorboard):
        raise typer.BadParameter('goes with neither --warm-start nor --tensorboard: its trials '
                                 'differ in shape, and each has a training.csv of its own.',
                                 param_hint='--sweep')
    console = Console()
    spec = load_robot(robot)
    settings = load(find_config('training', config), TrainingConfig)
    tried = load_space(find_config('sweeps', space), settings) if sweep else None
    with show.reading(console) as progress:
        dataset = load_dataset(bags, spec, namespace, progress, use_cache=cache)
    for line in dataset.describe_losses():
        console.print(f'[yellow]lost[/] {escape(line)}')
    console.print(f'{dataset.num_transitions} transitions in {len(dataset.episodes)} episodes, '
                  f'{dataset.seconds:.1f} s of robot time')

    def say(line: str) -> None:
        console.print(escape(line), soft_wrap=True)
    trials: list[Trial] = []
    with show.training(console) as report:
        if tried is not None:
            model, trials = search(Recipe(dataset, settings, seed, device=device), tried, sweep,
                                   output, report, lambda trial: say(trial.describe()), say)
        else:
            model = train_model(dataset, settings, seed, output, warm_start, report,
                                device=device, tensorboard=tensorboard, say=say)
    if trials:
        _show_trials(console, trials)
    show.scores(console, spec, model.evaluation, 'held-out scores')
    if trials:
        console.print('These scores come from data that no trial was trained or chosen on. '
                      f'All trials: {output}/sweep.csv, sweep.png', soft_wrap=True)
    console.print(
        f'wrote {model.path} ({model.hash[:16]}), metrics.json, card.md, report.html, run.json\n'
        f'next: mbrl-ros promote {output} --over models/mine --robot {robot}\n'
        f'  or: ros2 launch mbrl_ros control.launch.py robot:={robot} model:={output.resolve()}',
        soft_wrap=True)


def _show_trials(console: 'Console', trials: 'list[Trial]') -> None:
    from rich.table import Table

    names = list(trials[0].values)
    table = Table('trial', 'error', 'epochs', *names, title='trials, the best first')
    for trial in sorted(trials, key=lambda trial: (trial.error is None, trial.error)):
        table.add_row(str(trial.number), '-' if trial.error is None else f'{trial.error:.4f}',
                      str(trial.epochs), *(_short(trial.values[name]) for name in names))
    console.print(table)


def _short(value: object) -> str:
    return f'{value:.3g}' if isinstance(value, float) else str(value)
