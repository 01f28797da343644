"""`mbrl-ros evaluate`: score a model on bags it has not seen."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(
        help='A dynamics.onnx, its folder, or a shipped name', show_default=False)],
    bags: Annotated[list[Path], typer.Argument(help='rosbag2 folders', show_default=False)],
    robot: Annotated[str, typer.Option(help='Robot spec: a name or a .yaml path')] = 'cartpole',
    namespace: Annotated[str, typer.Option(
        help='ROS namespace under which the bags were recorded')] = '',
    json_output: Annotated[bool, typer.Option('--json', help='Print JSON')] = False,
) -> None:
    """
    Score a model on bags: R2, NLL, coverage and k-step error, field by field.

    Examples:
      mbrl-ros evaluate models/mine bags/new_run --robot cartpole

      mbrl-ros evaluate cartpole bags/new_run --json
    """
    import json

    from rich.console import Console
    from rich.markup import escape

    from mbrl_ros.cli import show
    from mbrl_ros.core.paths import find_model
    from mbrl_ros.core.robot import load_robot
    from mbrl_ros.data.dataset import load_dataset
    from mbrl_ros.learning.evaluation import evaluate_model
    from mbrl_ros.runtime import artifact

    console = Console(stderr=json_output)
    spec = load_robot(robot)
    loaded = artifact.load(find_model(model), spec)
    with show.reading(console) as progress:
        dataset = load_dataset(bags, spec, namespace, progress)
    for line in dataset.describe_losses():
        console.print(f'[yellow]lost[/] {escape(line)}')
    known = {item['bag'].split(':')[0] for item in loaded.metadata['data']['bags']}
    seen = sorted(known & {bag.resolve().name for bag in bags})
    if seen:
        console.print(f'[yellow]trained on[/] {escape(", ".join(seen))}: these scores flatter')
    scores = evaluate_model(loaded, spec, dataset, seed=0)
    if json_output:
        typer.echo(json.dumps(scores.to_dict(), indent=2))
    else:
        show.scores(console, spec, scores, 'scores on these bags')
