"""`mbrl-ros doctor`: whether this machine is enough, and what a bag is worth."""

from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mbrl_ros.data.health import Health


def doctor(
    bag: Annotated[Path | None, typer.Argument(
        help='rosbag2 folder to examine; without it, this machine is', show_default=False)] = None,
    robot: Annotated[str, typer.Option(
        help='Robot spec of the bag: a name or a .yaml path')] = 'cartpole',
    namespace: Annotated[str, typer.Option(
        help='ROS namespace under which the bag was recorded')] = '',
    json_output: Annotated[bool, typer.Option('--json', help='Print JSON')] = False,
) -> None:
    """
    Check this machine, or a bag: whether it can train, and how late the robot's commands act.

    Of the machine: packages, execution providers, DDS, cores. Of a bag: topics and rates, joints,
    clocks, gaps, NaN, commands and their saturation, where the state was, actuation delay. Exit
    status 1 if something that the demo needs is missing, or training on the bag is impossible.

    Examples:
      mbrl-ros doctor

      mbrl-ros doctor bags/run1 --robot cartpole

      mbrl-ros doctor bags/run1 --json
    """
    if bag is None:
        _examine_machine(json_output)
    else:
        _examine_bag(bag, robot, namespace, json_output)


def _examine_machine(json_output: bool) -> None:
    import json

    from rich.console import Console
    from rich.table import Table

    from mbrl_ros.cli.checks import run_checks

    checks = run_checks()
    if json_output:
        typer.echo(json.dumps([vars(check) for check in checks], indent=2))
    else:
        table = Table('', 'what', 'found', 'if missing')
        for check in checks:
            mark = '[green]ok[/]' if check.ok else '[red]no[/]' if check.needed else '[yellow]-[/]'
            table.add_row(mark, check.name, check.found, '' if check.ok else check.advice)
        Console().print(table)
    raise typer.Exit(int(any(check.needed and not check.ok for check in checks)))


def _examine_bag(bag: Path, robot: str, namespace: str, json_output: bool) -> None:
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mbrl_ros.cli import show
    from mbrl_ros.core.robot import load_robot
    from mbrl_ros.data.health import examine

    spec = load_robot(robot)
    with show.reading(Console(stderr=True)) as progress:
        health = examine(bag, spec, namespace, progress)
    if json_output:
        typer.echo(json.dumps(_to_dict(bag, spec.name, health), indent=2))
    else:
        colours = {'ok': 'green', 'warn': 'yellow', 'bad': 'red'}
        table = Table('', 'what', 'found', 'what to do', title=f"{bag} for robot '{spec.name}'")
        for row in health.findings:
            table.add_row(f'[{colours[row.level]}]{row.level}[/]', escape(row.name),
                          escape(row.found), escape(row.advice))
        console = Console()
        console.print(table)
        following = f'mbrl-ros train {bag} --robot {robot} --output models/{spec.name}_new' \
            if health.is_trainable else 'mend what is bad: this bag cannot train the robot'
        console.print(f'next: {following}', soft_wrap=True)
    raise typer.Exit(int(not health.is_trainable))


def _to_dict(bag: Path, robot: str, health: 'Health') -> dict[str, Any]:
    return {'bag': str(bag), 'robot': robot, 'is_trainable': health.is_trainable,
            'findings': [vars(finding) for finding in health.findings],
            'delay': vars(health.delay) if health.delay is not None else None,
            'coverage': {name: vars(cover) for name, cover in (health.coverage or {}).items()}}
