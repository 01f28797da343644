"""`mbrl-ros bench train`: our trainer beside mbrl-lib's."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Rival(StrEnum):
    """What can be compared with."""

    MBRL_LIB = 'mbrl-lib'


def train(
    versus: Annotated[Rival, typer.Option(help='What to compare with')] = Rival.MBRL_LIB,
    quick: Annotated[bool, typer.Option(
        '--quick', help='One fit in place of three, fewer epochs: half a minute')] = False,
    json_path: Annotated[Path, typer.Option('--json', help='File for the numbers')
                         ] = Path('out/bench/train.json'),
) -> None:
    """
    Train beside mbrl-lib: samples a second, and how soon the model is as good as its.

    Three to six minutes on two cores, and up to one more the first time, to install mbrl-lib. The
    same data, network and batch for the samples a second; then each by its own settings, ours
    those of config/training/fast.yaml. Exit status 1 below 1.3 times its samples a second, or if
    its holdout NLL takes ours more than a third of its time.

    Examples:
      mbrl-ros bench train --versus mbrl-lib --json train.json

      mbrl-ros bench train --quick
    """
    import json

    from rich.console import Console

    from mbrl_ros.cli import show
    from mbrl_ros.core.errors import MbrlError

    try:
        from mbrl_ros.bench.train import bench, train_table
    except ModuleNotFoundError as error:
        if error.name not in ('torch', 'mujoco'):
            raise
        raise MbrlError(f'bench train needs {error.name}, which is not installed. Try: pip '
                        "install '.[cpu,train]'") from error
    console = Console()
    json_path.parent.mkdir(parents=True, exist_ok=True)
    with show.measuring(console) as report:
        results = bench(quick, report, console)
    json_path.write_text(json.dumps(results, indent=2) + '\n')
    console.print(train_table(results))
    console.print(f'wrote {json_path}', soft_wrap=True)
    raise typer.Exit(int(not results['is_met']))
