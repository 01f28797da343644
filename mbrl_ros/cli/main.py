"""Entry point of `mbrl-ros`: verbs, and refusals shown without a traceback."""

import signal
import sys
from typing import Annotated

import typer

from mbrl_ros import __version__
from mbrl_ros.cli import bag, bench, demo, doctor, evaluate, promote, replay, train
from mbrl_ros.core.errors import MbrlError

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode='rich', pretty_exceptions_enable=False,
    help="""Learned-model predictive control for ROS 2: record, train, drive, retrain.

    Examples:

      mbrl-ros demo                        record, train and drive a simulated cart-pole

      mbrl-ros train bags/run1 --robot cartpole --output models/mine

      mbrl-ros doctor                      what this machine has

    Exit status: 0 done, 1 refused or gate not met, 2 wrong usage.
    """)


def _version(value: bool) -> None:
    if value:
        typer.echo(f'mbrl_ros {__version__}')
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option(
        '--version', callback=_version, is_eager=True, help='Print the version.')] = False
          ) -> None:
    pass


app.command('demo')(demo.demo)
app.command('train')(train.train)
app.command('evaluate')(evaluate.evaluate)
app.command('promote')(promote.promote)
app.command('rollback')(promote.rollback)
app.command('replay')(replay.replay)
app.command('doctor')(doctor.doctor)
app.add_typer(bag.app, name='bag')
app.add_typer(bench.app, name='bench')


def _stop(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Run the command line."""
    # As Ctrl-C does, so that the nodes and workers of a command end with it.
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except MbrlError as error:
        typer.secho(f'error: {error}', fg='red', err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.secho('stopped', err=True)
        sys.exit(130)


if __name__ == '__main__':
    main()
