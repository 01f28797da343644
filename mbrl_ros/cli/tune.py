"""`mbrl-ros bench tune`: the largest budget within the control period, as parameters."""

from pathlib import Path
from typing import Annotated, Any

import typer


def tune(
    robot: Annotated[str, typer.Option(help='Robot spec: a shipped name or a .yaml path'
                                       )] = 'cartpole',
    task: Annotated[str, typer.Option(help='Task spec: a shipped name or a .yaml path'
                                      )] = 'cartpole_swingup',
    model: Annotated[str, typer.Option(help='A dynamics.onnx, a folder holding one, or a shipped '
                                            'name; empty: the model shipped for the robot')] = '',
    planner: Annotated[str, typer.Option(help='Planner to begin from: a name in config/planners '
                                              'or a .yaml path')] = 'cem',
    provider: Annotated[str, typer.Option(help='What runs the model; empty: each that is here'
                                          )] = '',
    precision: Annotated[str, typer.Option(help='Of the provider; empty: its default')] = '',
    share: Annotated[float, typer.Option(min=0.05, max=1.0, help='Largest share of the control '
                                         "period for a plan's 99th percentile")] = 0.6,
    output: Annotated[Path, typer.Option(help='ROS parameter file to write')
                      ] = Path('out/tuned.yaml'),
    json_output: Annotated[bool, typer.Option('--json', help='Print JSON')] = False,
) -> None:
    """
    Find the largest population this machine plans with in time, and write it as parameters.

    Measures real plans of this robot, task and model, half a minute a provider: leave the machine
    as it will be when the robot runs. Reduced precisions such as bf16 are tried where asked for.
    Exit status 1 if even the smallest population is too slow.

    Examples:
      mbrl-ros bench tune

      mbrl-ros bench tune --robot my_robot.yaml --task my_task.yaml --model models/my_robot

      ros2 launch mbrl_ros control.launch.py params_file:=out/tuned.yaml
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from mbrl_ros.bench.tune import Attempt, tune, write_params
    from mbrl_ros.core.paths import find_model
    from mbrl_ros.core.robot import load_robot
    from mbrl_ros.core.task import load_task
    from mbrl_ros.planning import load_planning
    from mbrl_ros.runtime import artifact

    spec = load_robot(robot)
    goal, planning = load_task(task, spec), load_planning(planner)
    path = find_model(model or spec.name)
    limit_s = share * spec.dt_s
    console = Console(stderr=True)
    table = Table('provider', 'population', 'p50 [ms]', 'p99 [ms]', 'plans', 'fits')
    attempts: list[Attempt] = []

    def row(attempt: Attempt) -> dict[str, Any]:
        return {'provider': attempt.provider, 'precision': attempt.precision,
                'population': attempt.population, 'p50_ms': attempt.p50_s * 1e3,
                'p99_ms': attempt.p99_s * 1e3, 'plans': attempt.num_plans}

    with console.status('') as status:
        def progress(attempt: Attempt) -> None:
            attempts.append(attempt)
            fits = '[green]yes[/]' if attempt.p99_s <= limit_s else '[red]no[/]'
            table.add_row(f'{attempt.provider} {attempt.precision}', str(attempt.population),
                          f'{attempt.p50_s * 1e3:.1f}', f'{attempt.p99_s * 1e3:.1f}',
                          str(attempt.num_plans), fits)
            status.update(f'{attempt.provider}: {attempt.population} candidates take '
                          f'{attempt.p99_s * 1e3:.1f} ms of {limit_s * 1e3:.1f} ms')
        status.update('first plans')
        best = tune(spec, goal, artifact.load(path, spec), planning, limit_s, provider, precision,
                    progress)
    note = (f'{spec.name}, {goal.name}: {best.population} candidates plan in '
            f'{best.p50_s * 1e3:.1f} ms, p99 {best.p99_s * 1e3:.1f} ms of {best.num_plans} '
            f'plans;\nthe control period is '
            f'{spec.dt_s * 1e3:g} ms, and {share:.0%} of it was allowed.')
    # A file is found from wherever the controller is launched.
    source = str(Path(planner).resolve()) if Path(planner).is_file() else planner
    write_params(output, best, source, planning, note)
    if json_output:
        typer.echo(json.dumps({'best': row(best), 'limit_ms': limit_s * 1e3,
                               'attempts': [row(attempt) for attempt in attempts],
                               'params_file': str(output)}, indent=2))
        return
    console.print(table)
    console.print(f'{note}\nParameters are in {output}. Use them:\n  ros2 launch mbrl_ros '
                  f'control.launch.py robot:={robot} task:={task} model:={path} '
                  f'params_file:={output}', soft_wrap=True)
