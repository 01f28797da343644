"""`mbrl-ros bench`: what this machine makes of plans."""

from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from mbrl_ros.cli.bench_data import data
from mbrl_ros.cli.bench_pets import pets
from mbrl_ros.cli.bench_train import Rival, train
from mbrl_ros.cli.loop import loop
from mbrl_ros.cli.tune import tune
from mbrl_ros.core.errors import MbrlError

if TYPE_CHECKING:
    from rich.console import Console

OUTPUT = Path('out/bench')

app = typer.Typer(no_args_is_help=True, help='Measure plans on this machine.')


@app.command()
def plan(
    versus: Annotated[Rival | None, typer.Option(
        help='Compare with this on the same work, in place of the grid')] = None,
    provider: Annotated[list[str] | None, typer.Option(
        help='Only this execution provider; may be given again', show_default='all that run here'
        )] = None,
    quick: Annotated[bool, typer.Option(
        '--quick', help='Fewer points and plans: half a minute')] = False,
    plans: Annotated[int | None, typer.Option(
        min=1, help='Plans a row', show_default='100, quick: 20')] = None,
    json_path: Annotated[Path | None, typer.Option(
        '--json', help='File for the numbers', show_default='out/bench/plan.json')] = None,
    plot_path: Annotated[Path | None, typer.Option(
        '--plot', help='File for the picture (.png)', show_default='out/bench/plan.png')] = None,
) -> None:
    """
    Time plans against population, particles, horizon, iterations and network size.

    About three minutes on two cores. Every row says where the time went, and its share of the
    rate at which this machine multiplies matrices. The models are untrained: they take as long.

    Examples:
      mbrl-ros bench plan

      mbrl-ros bench plan --quick --provider cpu --plot quick.png

      mbrl-ros bench plan --versus mbrl-lib --json versus.json
    """
    from rich.console import Console

    console = Console()
    if versus is not None:
        if provider or quick or plans or plot_path:
            raise typer.BadParameter('--versus takes --json only')
        _compare(json_path or OUTPUT / 'versus.json', console)
        return
    _measure(provider or [], plans or (20 if quick else 100), quick,
             json_path or OUTPUT / 'plan.json', plot_path or OUTPUT / 'plan.png', console)


@app.command()
def delay(
    quick: Annotated[bool, typer.Option(
        '--quick', help='One seed in place of five: twenty seconds')] = False,
    json_path: Annotated[Path, typer.Option('--json', help='File for the numbers')
                         ] = OUTPUT / 'delay.json',
) -> None:
    """
    Delay the commands of the simulated cart-pole: returns with and without compensation.

    About a minute and a half on two cores. In lock-step, with the shipped model, by 0 to 3
    control periods; then estimates each delay from a bag of 60 s of random motion. Exit status 1
    if a return with compensation is below 90 % of the undelayed one, or an estimate is more than
    half a period off.

    Examples:
      mbrl-ros bench delay

      mbrl-ros bench delay --quick --json delay.json
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from mbrl_ros.bench.delay import bench
    from mbrl_ros.cli import show

    console = Console()
    json_path.parent.mkdir(parents=True, exist_ok=True)
    with show.measuring(console) as report:
        result = bench(quick, report)
    json_path.write_text(json.dumps(result, indent=2) + '\n')
    table = Table('delay [steps]', 'return', 'of undelayed', 'not compensated', 'estimate [steps]',
                  title=f"actuation delay, cart-pole; returns of {result['seeds']} seeds")
    for key, row in result['returns'].items():
        found = result['estimates'][key]
        estimate = 'cannot tell' if found['steps'] is None else \
            f"{found['steps']:.1f} ({found['low']:.1f} to {found['high']:.1f})"
        table.add_row(key, f"{row['with']:.1f}", f"{result['share'][key]:.1%}",
                      f"{row['without']:.1f}", estimate)
    console.print(table)
    console.print(f'wrote {json_path}', soft_wrap=True)
    raise typer.Exit(int(not result['is_met']))


app.command('data')(data)
app.command('loop')(loop)
app.command('pets')(pets)
app.command('train')(train)
app.command('tune')(tune)


def _compare(json_path: Path, console: 'Console') -> None:
    try:
        from mbrl_ros.bench.versus import versus
    except ModuleNotFoundError as error:
        raise _explained(error) from error
    json_path.parent.mkdir(parents=True, exist_ok=True)
    versus(json_path, console)


def _measure(wanted: list[str], plans: int, quick: bool, json_path: Path, plot_path: Path,
             console: 'Console') -> None:
    import json

    try:
        from mbrl_ros.bench.plan import bench
    except ModuleNotFoundError as error:
        raise _explained(error) from error
    from mbrl_ros.bench.plots import draw_plans
    from mbrl_ros.cli import show

    for path in (json_path, plot_path):  # before minutes of measuring
        path.parent.mkdir(parents=True, exist_ok=True)
    with show.measuring(console) as report:
        result = bench(wanted, plans, quick, report)
    json_path.write_text(json.dumps(result, indent=2) + '\n')
    draw_plans(plot_path, result)
    _print(result, console)
    console.print(f'wrote {json_path}, {plot_path}', soft_wrap=True)


def _explained(error: ModuleNotFoundError) -> Exception:
    if error.name != 'torch':
        return error
    return MbrlError('bench builds untrained ensembles and measures this machine with torch, '
                     "which is not installed. Try: pip install '.[train]'")


def _print(result: dict[str, Any], console: 'Console') -> None:
    from rich.markup import escape

    machine, rows = result['machine'], result['rows']
    title = f"{machine['processor']}, {machine['cores']} cores, {machine['date'][:10]}"
    _table(console, f'plans on {title}', rows, {
        'p50 ms': ('p50_s', 1e3, '.2f'), 'p99 ms': ('p99_s', 1e3, '.2f'),
        'max ms': ('max_s', 1e3, '.2f'), 'GFLOP/s': ('gflops', 1, '.0f'),
        'of ceiling': ('ceiling_share', 1, '.0%')})
    _table(console, 'where the time goes; memory, build and load from cache in s',
           [row for row in rows if not row['missing']], {
               'rollout': ('share_rollout', 1, '.0%'), 'copies': ('share_copies', 1, '.0%'),
               'planner': ('share_planner', 1, '.0%'), 'other': ('share_other', 1, '.0%'),
               'MB': ('memory_mb', 1, '.0f'), 'build': ('compile_s', 1, '.2f'),
               'load': ('cached_load_s', 1, '.2f')})
    for reason in sorted({row['missing'] for row in rows} - {''}):
        console.print(f'[yellow]blank[/] {escape(reason)}', soft_wrap=True)
    for limit in result['ceilings']:
        rate = 'not on this processor' if limit['gflops'] is None \
            else f"{limit['gflops']:.0f} GFLOP/s"
        console.print(f"ceiling {limit['device']} {limit['precision']}: {rate}")
    for item in result['growth']:
        verdict = 'linear' if item['linear'] else '[yellow]not linear[/]'
        console.print(f"{item['provider']} {item['precision']}: time grows as {item['axis']}"
                      f"^{item['exponent']:.2f}: {verdict}")


def _table(console: 'Console', title: str, rows: list[dict[str, Any]],
           columns: dict[str, tuple[str, float, str]]) -> None:
    """Print rows under their axes; `columns` are heading to key, scale and format."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column('', no_wrap=True)
    table.add_column('runs on')
    for heading in columns:
        table.add_column(heading, justify='right', no_wrap=True)
    axis = ''
    for row in rows:
        if row['axis'] != axis:
            axis = row['axis']
            table.add_row(f'[bold]{axis}[/]')
        cells = ['' if row[key] is None else format(row[key] * scale, layout)
                 for key, scale, layout in columns.values()]
        table.add_row(f"  {row['value']}", f"{row['provider']} {row['precision']}", *cells)
    console.print(table, '')
