"""`mbrl-ros train`: bags to dynamics.onnx."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    bags: Annotated[list[Path], typer.Argument(help='rosbag2 folders', show_default=False)],
    output: Annotated[Path, typer.Option(help='Folder to write the model to')],
    robot: Annotated[str, typer.Option(help='Robot spec: a name or a .yaml path')] = 'cartpole',
    config: Annotated[str, typer.Option(
        help='Training settings: a name in config/training or a .yaml path')] = 'default',
    warm_start: Annotated[Path | None, typer.Option(
        help='Folder of an earlier model to start from')] = None,
    namespace: Annotated[str, typer.Option(
        help='ROS namespace under which the bags were recorded')] = '',
    seed: Annotated[int, typer.Option(min=0, help='Same bags and seed: same model')] = 0,
) -> None:
    """
    Train an ensemble from bags and export it to ONNX.

    Examples:
      mbrl-ros train bags/run1 bags/run2 --robot cartpole --output models/mine

      mbrl-ros train bags/* --output models/new --warm-start models/mine
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

    console = Console()
    spec = load_robot(robot)
    settings = load(find_config('training', config), TrainingConfig)
    with show.reading(console) as progress:
        dataset = load_dataset(bags, spec, namespace, progress)
    for line in dataset.describe_losses():
        console.print(f'[yellow]lost[/] {escape(line)}')
    console.print(f'{dataset.num_transitions} transitions in {len(dataset.episodes)} episodes, '
                  f'{dataset.seconds:.1f} s of robot time')
    with show.training(console) as report:
        model = train_model(dataset, settings, seed, output, warm_start, report)
    show.scores(console, spec, model.evaluation, 'held-out scores')
    console.print(f'wrote {model.path} ({model.hash[:16]}), metrics.json, card.md, quality.png\n'
                  f'next: ros2 launch mbrl_ros control.launch.py robot:={robot} '
                  f'model:={output.resolve()}', soft_wrap=True)
