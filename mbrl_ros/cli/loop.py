"""`mbrl-ros bench loop`: how steady the control loop is, over DDS and in real time."""

from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table


def loop(
    rate: Annotated[float, typer.Option(min=1.0, max=1000.0, help='Control rate [Hz]')] = 100.0,
    seconds: Annotated[float, typer.Option(
        min=2.0, max=86400.0, help='Time to measure, each of idle and busy')] = 120.0,
    fifo_priority: Annotated[int, typer.Option(
        min=0, max=98, help="The controller's realtime.fifo_priority; 0: off")] = 50,
    lock_memory: Annotated[bool, typer.Option(
        '--lock-memory/--no-lock-memory', help="The controller's realtime.lock_memory")] = True,
    keep_awake: Annotated[bool, typer.Option(
        '--keep-awake/--no-keep-awake', help="The controller's realtime.keep_awake")] = True,
    json_path: Annotated[Path, typer.Option('--json', help='File for the numbers')
                         ] = Path('out/bench/loop.json'),
) -> None:
    """
    Drive the simulated cart-pole in real time, and look at its topics from outside.

    Twice the seconds and about twenty more: on the machine as it is, then with every core kept
    busy by another process. The controller asks for what a robot's should have: real-time
    priority, locked memory and cores that do not sleep. Exit status 1 if a goal is missed on the
    machine as it is.

    Examples:
      mbrl-ros bench loop

      mbrl-ros bench loop --rate 50 --seconds 20 --json loop.json

      mbrl-ros bench loop --fifo-priority 0 --no-lock-memory --no-keep-awake
    """
    import json
    import math

    from rich.console import Console

    from mbrl_ros.bench.loop import bench
    from mbrl_ros.core.errors import MbrlError

    if not math.isfinite(rate * seconds):  # no range refuses what is not a number
        raise typer.BadParameter('--rate and --seconds must be finite')
    console = Console()
    json_path.parent.mkdir(parents=True, exist_ok=True)
    parameters = {'realtime.fifo_priority': fifo_priority, 'realtime.lock_memory': lock_memory,
                  'realtime.keep_awake': keep_awake}
    try:
        with console.status('') as status:
            result = bench(rate, seconds, parameters, status.update)
    except ModuleNotFoundError as error:
        if error.name not in ('rclpy', 'torch', 'mujoco'):
            raise
        raise MbrlError(f'bench loop needs {error.name}, which is not installed. Try: pip '
                        "install '.[cpu,ros,train]'") from error
    json_path.write_text(json.dumps(result, indent=2) + '\n')
    console.print(_table(result), '')
    if not result['robot_has_priority']:
        console.print('[yellow]real-time priority is not permitted: the controller has none, and '
                      "the simulated robot's own jitter is part of these figures[/]")
    console.print(f'wrote {json_path}', soft_wrap=True)
    raise typer.Exit(0 if all(row['is_met'] for row in result['verdicts']['idle']) else 1)


def _table(result: dict[str, Any]) -> 'Table':
    from rich.table import Table

    machine, planning = result['machine'], result['planning']
    network = 'x'.join(str(width) for width in result['network']['hidden_units'])
    table = Table(
        title=f"{result['rate_hz']:g} Hz for {result['seconds']:g} s: {machine['processor']}, "
              f"{machine['cores']} cores",
        caption=f"plans of {planning['params']['population']} candidates x "
                f"{planning['rollout']['particles']} particles x {result['horizon']} steps x "
                f"{planning['params']['iterations']} iterations, "
                f"{result['network']['members']} networks of {network}; load average before: "
                f"{result['load_average']:.1f}")
    for heading in ('', 'idle', 'bound', '', 'cores busy', 'bound', ''):
        table.add_column(heading, justify='left' if heading == '' else 'right')
    for idle, busy in zip(result['verdicts']['idle'], result['verdicts']['busy'], strict=True):
        table.add_row(idle['what'], *_cells(idle), *_cells(busy))
    for key in ('ticks', 'late_plans', 'silent_ticks', 'skipped_ticks'):
        table.add_row(key.replace('_', ' '), str(result[key]), '', '', str(result[f'busy_{key}']),
                      '', '')
    for key, what in (('period_error_ms', 'period error'), ('latency_ms', 'stamp to command'),
                      ('plan_ms', 'plan')):
        texts = ['/'.join(_text(result[f'{prefix}{key}_{part}']) for part in ('p50', 'max'))
                 for prefix in ('', 'busy_')]
        table.add_row(f'{what}, p50/max (ms)', texts[0], '', '', texts[1], '', '')
    return table


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    return (_text(row['value']), _text(row['bound']),
            '[green]met[/]' if row['is_met'] else '[red]missed[/]')


def _text(value: float | None) -> str:
    return '-' if value is None else str(value) if isinstance(value, int) else f'{value:.2f}'
