"""`mbrl-ros doctor`: what this machine has, and whether it is enough."""

from typing import Annotated

import typer


def doctor(
    json_output: Annotated[bool, typer.Option('--json', help='Print JSON')] = False,
) -> None:
    """
    Check this machine: packages, execution providers, DDS, cores.

    Exit status 1 if something that the demo needs is missing.

    Examples:
      mbrl-ros doctor

      mbrl-ros doctor --json
    """
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
