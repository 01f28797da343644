"""`mbrl-ros bench data`: how fast bags are read, against rosbags, and in how much memory."""

from pathlib import Path
from typing import Annotated

import typer


def data(
    quick: Annotated[bool, typer.Option(
        '--quick', help='A bag of 40 MB in place of 2 GB: ten seconds')] = False,
    json_path: Annotated[Path, typer.Option('--json', help='File for the numbers')
                         ] = Path('out/bench/data.json'),
) -> None:
    """
    Read a bag of 2 GB for training, in turns with rosbags, and measure the memory it takes.

    About three minutes. The bag is written first, into a temporary folder (TMPDIR): 20 minutes of
    joint states at 1 kHz (0.4 GB) and commands at 100 Hz (0.02 GB), which are read; the rest is
    camera images, which are not. rosbags only deserialises the same topics. Exit status 1 below
    60 % of its rate, or if loading the dataset takes 500 MB or more.

    Examples:
      mbrl-ros bench data --json data.json

      mbrl-ros bench data --quick
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from mbrl_ros.bench.data import bench, LEAST_RATIO, MOST_MB
    from mbrl_ros.cli import show

    console = Console()
    json_path.parent.mkdir(parents=True, exist_ok=True)
    with show.measuring(console) as report:
        result = bench(quick, report)
    json_path.write_text(json.dumps(result, indent=2) + '\n')
    parts = ', '.join(f'{name} {size:.0f} MB' for name, size in result['topics_mb'].items())
    table = Table('', '', 'goal', title=f"a bag of {result['bag_mb']:.0f} MB: {parts}")
    table.add_row('messages a second', f"{result['messages_per_s']:,.0f}", '')
    table.add_row('rosbags alone', f"{result['rosbags_messages_per_s']:,.0f}", '')
    table.add_row('ratio', f"{result['ratio']:.2f}", f'>= {LEAST_RATIO:g}')
    table.add_row('memory', f"{result['rss_mb']:.0f} MB", f'< {MOST_MB:g} MB')
    console.print(table)
    console.print(f'wrote {json_path}', soft_wrap=True)
    raise typer.Exit(int(not result['is_met']))
