"""`mbrl-ros bag`: look into a bag, and repair one whose recording was cut short."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help='Look into bags and repair them.')

Bag = Annotated[Path, typer.Argument(help='rosbag2 folder', show_default=False)]


@app.command()
def recover(bag: Bag) -> None:
    """
    Make a bag readable whose recording was killed or lost its power.

    Everything up to the last flush, at most 0.5 s before the end, is saved; the original file is
    kept beside it as .truncated. A whole bag is left alone.

    Examples:
      mbrl-ros bag recover bags/run1

      for bag in bags/*; do mbrl-ros bag recover "$bag"; done
    """
    from mbrl_ros.data.recover import recover as recover_bag

    result = recover_bag(bag)
    typer.echo(result.describe())
    if result.files:
        typer.echo(f'originals kept: {", ".join(str(file) for file in result.files)}\n'
                   f'next: mbrl-ros bag info {bag}')


@app.command()
def info(bag: Bag) -> None:
    """
    Show topics, message counts, joints, duration and episodes.

    Examples:
      mbrl-ros bag info bags/run1
    """
    from rich.console import Console
    from rich.table import Table

    from mbrl_ros.data.bag_info import read_info

    content = read_info(bag)
    typer.echo(f'{bag}: {content.duration_s:.1f} s, {content.episodes} marked episodes')
    if content.recovered:
        typer.echo(f'recovered: {content.recovered}')
    table = Table()
    for heading in ('topic', 'type', 'messages', 'joints'):
        table.add_column(heading, justify='right' if heading == 'messages' else 'left')
    for topic in content.topics:
        table.add_row(topic.name, topic.type, str(topic.messages), ', '.join(topic.joints))
    Console().print(table)
