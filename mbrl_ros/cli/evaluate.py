"""`mbrl-ros evaluate`: score a model on bags it has not seen."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(
        help='A dynamics.onnx, its folder, or a shipped name', show_default=False)],
    bags: Annotated[list[Path] | None, typer.Argument(
        help='rosbag2 folders', show_default=False)] = None,
    robot: Annotated[str, typer.Option(help='Robot spec: a name or a .yaml path')] = 'cartpole',
    namespace: Annotated[str, typer.Option(
        help='ROS namespace under which the bags were recorded')] = '',
    ood: Annotated[list[Path] | None, typer.Option(
        help='A bag of what the model should not know, to see whether its members disagree '
             'there; more with --ood again', show_default=False)] = None,
    report: Annotated[Path | None, typer.Option(
        help='HTML file to write pictures of the scores to', show_default=False)] = None,
    card: Annotated[bool, typer.Option('--card', help="Print the model's card and stop")] = False,
    json_output: Annotated[bool, typer.Option('--json', help='Print JSON')] = False,
) -> None:
    """
    Score a model on bags: R2, NLL, calibration and k-step error, field by field.

    Examples:
      mbrl-ros evaluate models/mine bags/new_run --robot cartpole

      mbrl-ros evaluate models/mine bags/new_run --report out/new_run.html

      mbrl-ros evaluate cartpole bags/new_run --json
    """
    import json

    from rich.console import Console
    from rich.markup import escape

    from mbrl_ros.cli import show
    from mbrl_ros.core.files import replace_file
    from mbrl_ros.core.paths import find_model
    from mbrl_ros.core.robot import load_robot
    from mbrl_ros.data.dataset import load_dataset
    from mbrl_ros.learning.evaluation import evaluate_model, pairs
    from mbrl_ros.learning.report import render
    from mbrl_ros.learning.unseen import trained_on
    from mbrl_ros.runtime import artifact
    from mbrl_ros.runtime.dynamics import Dynamics

    console = Console(stderr=json_output)
    spec = load_robot(robot)
    loaded = artifact.load(find_model(model), spec)
    if card:
        typer.echo(loaded.metadata.get('card', f'{loaded.path}: written before models carried '
                                               'their card; see card.md beside it'))
        return
    if not bags:
        raise typer.BadParameter('name a bag to score the model on, or ask for its --card')
    with show.reading(console) as progress:
        dataset = load_dataset(bags, spec, namespace, progress)
        outside = load_dataset(ood, spec, namespace, progress) if ood else None
    lost = dataset.describe_losses()
    for line in lost:
        console.print(f'[yellow]lost[/] {escape(line)}')
    scored = dataset.provenance()['bags']
    seen = sorted(bag['bag'] for bag in scored
                  if trained_on(loaded.metadata['data'], bag['bag'], bag['hash']))
    if seen:
        console.print(f'[yellow]trained on[/] {escape(", ".join(seen))}: these scores flatter')
    with console.status('score the model'):
        scores = evaluate_model(loaded, spec, dataset, seed=0, outside=outside)
    if report is not None:
        with console.status('draw the report'):
            names = ', '.join(bag['bag'] for bag in scored)
            html = render(Dynamics(loaded.model, loaded.metadata), spec, pairs(dataset), scores,
                          loaded.metadata, data=f'Scored on {names}', seed=0, lost=lost)
        report.parent.mkdir(parents=True, exist_ok=True)
        replace_file(report, html)
        console.print(f'wrote {report}')
    if json_output:
        typer.echo(json.dumps(scores.to_dict(), indent=2))
    else:
        show.scores(console, spec, scores, 'scores on these bags')
