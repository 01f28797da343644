"""`mbrl-ros bag`: look into bags, repair them, and take their data elsewhere."""

from pathlib import Path
from typing import Annotated, TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mbrl_ros.data.bag_info import BagInfo

app = typer.Typer(no_args_is_help=True,
                  help='Look into bags, repair them, and take their data elsewhere.')

Bag = Annotated[Path, typer.Argument(help='rosbag2 folder', show_default=False)]
Bags = Annotated[list[Path], typer.Argument(help='rosbag2 folders', show_default=False)]
Robot = Annotated[str, typer.Option(help='Robot spec: a name or a .yaml path')]
Namespace = Annotated[str, typer.Option(help='ROS namespace under which they were recorded')]


@app.command()
def info(bag: Bag) -> None:
    """
    Show what a bag holds: storage, topics, rates, joints, duration, episodes, hash.

    The rate of a topic is its mean over the whole bag. The hash names the bag in the metadata of
    the models trained on it.

    Examples:
      mbrl-ros bag info bags/run1
    """
    from rich.console import Console
    from rich.table import Table

    from mbrl_ros.cli import show
    from mbrl_ros.data.bag_info import read_info

    with show.reading(Console(stderr=True)) as progress:
        content = read_info(bag, progress)
    typer.echo(f'{bag}: {content.duration_s:.1f} s, {content.episodes} marked episodes')
    for name, text in _describe(content).items():
        typer.echo(f'{name}: {text}')
    table = Table()
    for heading in ('topic', 'type', 'messages', 'Hz', 'joints'):
        table.add_column(heading, justify='right' if heading in {'messages', 'Hz'} else 'left')
    for topic in content.topics:
        table.add_row(_plain(topic.name), _plain(topic.type), str(topic.messages),
                      f'{topic.rate_hz:.4g}', _plain(', '.join(topic.joints)))
    Console().print(table)


def _describe(content: 'BagInfo') -> dict[str, str]:
    from datetime import datetime, UTC

    try:
        start = datetime.fromtimestamp(content.start_ns / 1e9, UTC).isoformat(' ', 'milliseconds')
    except (OverflowError, ValueError, OSError):  # of a clock that counts something else
        start = f'{content.start_ns} ns'
    size = f'{content.size_bytes / 1e6:.3g} MB in {len(content.files)} files: '
    lines = {'storage': f'{content.storage}, compression: {content.compression}',
             'files': size + ', '.join(content.files[:5])
             + (', ...' if len(content.files) > 5 else ''),
             'recorded': f'{start}, ROS distribution: {content.ros_distro or "not said"}',
             'hash': content.hash}
    return lines | ({'recovered': content.recovered} if content.recovered else {})


@app.command()
def check(
    bags: Bags,
    robot: Robot = 'cartpole',
    namespace: Namespace = '',
    json_output: Annotated[bool, typer.Option('--json', help='Print JSON')] = False,
) -> None:
    """
    Check whether bags can train a robot: problems, and the dataset they yield.

    Exit status 0 if each of them can, 1 if not; then it says what to do. `mbrl-ros doctor BAG`
    shows everything that was looked at, with where the state was and how late commands act.

    Examples:
      mbrl-ros bag check bags/run1 --robot cartpole

      mbrl-ros bag check bags/* --robot my_arm.yaml --json
    """
    import json

    from rich.console import Console

    from mbrl_ros.cli import show
    from mbrl_ros.core.robot import load_robot
    from mbrl_ros.data.bag_check import check_bag_for

    spec = load_robot(robot)
    with show.reading(Console(stderr=True)) as progress:
        verdicts = [check_bag_for(bag, spec, namespace, progress) for bag in bags]
    can_train = all(verdict.can_train for verdict in verdicts)
    if json_output:
        typer.echo(json.dumps({
            'robot': spec.name, 'can_train': can_train,
            'bags': [verdict.to_dict() for verdict in verdicts]}, indent=2))
        raise typer.Exit(int(not can_train))
    console = Console()
    for verdict in verdicts:
        word = '[green]can train[/]' if verdict.can_train else '[red]cannot train[/]'
        console.print(f"{_plain(verdict.bag)}: {word} '{spec.name}': {verdict.transitions} "
                      f'transitions, {verdict.seconds:.1f} s in {verdict.episodes} episodes',
                      soft_wrap=True)
        for line in verdict.losses:
            console.print(f'  [yellow]lost[/] {_plain(line)}', soft_wrap=True)
        for finding in verdict.problems:
            mark = '[red]bad[/] ' if finding.level == 'bad' else '[yellow]warn[/] '
            advice = f' -> {_plain(finding.advice)}' if finding.advice else ''
            console.print(f'  {mark}{_plain(finding.name)}: {_plain(finding.found)}{advice}',
                          soft_wrap=True)
    following = f'mbrl-ros train {" ".join(map(str, bags))} --robot {robot} ' \
        f'--output models/{spec.name}_new' if can_train \
        else 'mend what is bad, or leave the bags out that cannot train'
    console.print(f'next: {_plain(following)}', soft_wrap=True)
    raise typer.Exit(int(not can_train))


@app.command()
def recover(bags: Bags) -> None:
    """
    Make bags readable whose recording was killed, or whose file was damaged.

    Of a recording that was cut short, everything up to the last flush, at most 0.5 s before the
    end, is saved; of a damaged MCAP file, all chunks that are whole. The original file is kept
    beside the new one as .truncated. A whole bag is left alone.

    Examples:
      mbrl-ros bag recover bags/run1

      mbrl-ros bag recover bags/*
    """
    from rich.console import Console

    from mbrl_ros.cli import show
    from mbrl_ros.core.errors import BagError
    from mbrl_ros.data.recover import recover as recover_bag

    failed = 0
    for bag in bags:
        try:
            with show.reading(Console(stderr=True)) as progress:
                result = recover_bag(bag, progress)
        except BagError as error:
            typer.secho(f'error: {error}', fg='red', err=True)
            failed += 1
            continue
        typer.echo(result.describe())
        if result.files:
            typer.echo(f'originals kept: {", ".join(str(file) for file in result.files)}\n'
                       f'next: mbrl-ros bag info {bag}')
    raise typer.Exit(int(failed > 0))


@app.command()
def export(
    bags: Bags,
    output: Annotated[Path, typer.Option(help='File to write; for Minari a folder NAME-v0')],
    robot: Robot = 'cartpole',
    namespace: Namespace = '',
    format_: Annotated[str | None, typer.Option(
        '--format', help='npz, parquet or minari; by default what the file ends in')] = None,
    cache: Annotated[bool, typer.Option(help='Reuse what was read of a bag before')] = True,
) -> None:
    """
    Write the dataset of bags as NumPy, Parquet or Minari.

    States and actions at the control rate of the robot, as they train a model, to the last bit.
    Parquet and Minari come with the extras `parquet` and `minari` of this package.

    Examples:
      mbrl-ros bag export bags/* --robot cartpole --output data.parquet

      mbrl-ros bag export bags/run1 --output cartpole-v0 --format minari
    """
    from rich.console import Console

    from mbrl_ros.cli import show
    from mbrl_ros.core.robot import load_robot
    from mbrl_ros.data.dataset import load_dataset
    from mbrl_ros.data.export import export as export_dataset
    from mbrl_ros.data.export import format_of

    name = format_of(output, format_)
    with show.reading(Console(stderr=True)) as progress:
        dataset = load_dataset(bags, load_robot(robot), namespace, progress, use_cache=cache)
    console = Console()
    for line in dataset.describe_losses():
        console.print(f'[yellow]lost[/] {_plain(line)}', soft_wrap=True)
    export_dataset(dataset, output, name)
    console.print(f'wrote {_plain(str(output))} ({name}): {dataset.num_transitions} transitions '
                  f'in {len(dataset.episodes)} episodes', soft_wrap=True)


def _plain(text: str) -> str:
    """Return a text of a bag for a console: no markup, and nothing that a terminal obeys."""
    from rich.markup import escape

    return escape(''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in text))
