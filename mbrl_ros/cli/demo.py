"""`mbrl-ros demo`: the whole loop of PETS over real nodes, from random motion to a swing-up."""

from pathlib import Path
from statistics import mean
from typing import Annotated, TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mbrl_ros.cli.trial import Trial

MOST_TRIALS = 10
LAST = 5
MOST_MISSED_SHARE = 0.01


def mean_of(trials: 'list[Trial]') -> dict[str, float]:
    """Return the mean return, and the mean distance [m] from the goal at the end, of some."""
    means = {'return': mean([trial.total_return for trial in trials])}
    away = [trial.final_distance_m for trial in trials if trial.final_distance_m is not None]
    return means | ({'final_distance_m': mean(away)} if away else {})


def demo(
    robot: Annotated[str, typer.Option(help='Robot spec with a simulation section')] = 'cartpole',
    task: Annotated[str, typer.Option(help='Task spec')] = 'cartpole_swingup',
    pretrained: Annotated[bool, typer.Option(
        '--pretrained', help='Drive with the shipped model, one trial unless --trials says more; '
                             'train nothing')] = False,
    lockstep: Annotated[bool, typer.Option(
        '--lockstep', help='The robot waits for each command: same seed, same commands')] = False,
    trials: Annotated[int | None, typer.Option(
        min=1, help='Drive that many trials, whatever they return; without it: until the gate of '
                    f'the task is met, {MOST_TRIALS} at the most')] = None,
    adapt: Annotated[bool, typer.Option(
        '--adapt', help='Begin with the shipped model in place of random motion, and train it on '
                        'with what this robot does')] = False,
    params_file: Annotated[str, typer.Option(
        help='ROS parameter file for the nodes, such as mass_scale of sim_robot')] = '',
    seed: Annotated[int, typer.Option(min=0, help='Seed of everything random')] = 0,
    output: Annotated[Path, typer.Option(
        help='Folder for bags, models, metrics.json and report.html')] = Path('out/demo'),
) -> None:
    """
    Record random motion, train, drive, retrain: until a trial meets the gate of the task.

    Each node runs in a process of its own, in real time. Exit status 0 only if a trial returned
    what the task's YAML asks for: `gate` (cart-pole: 160, ten trials at the most), with
    --pretrained `pretrained_gate` (165) and at most 1 % missed ticks. A goal with a `std` is drawn
    anew for each trial.

    Examples:
      mbrl-ros demo

      mbrl-ros demo --pretrained

      mbrl-ros demo --robot arm --task arm_reach --trials 20 --lockstep --output out/arm
    """
    import json
    import os
    import time

    from rich.console import Console

    from mbrl_ros.cli.demo_loop import DemoLoop
    from mbrl_ros.cli.report import ANIMATION, write_report
    from mbrl_ros.core.robot import load_robot
    from mbrl_ros.core.task import load_task
    from mbrl_ros.nodes.processes import own_domain
    from mbrl_ros.nodes.table import NodeOptions

    if adapt and pretrained:
        raise typer.BadParameter('--adapt trains, --pretrained does not: choose one')
    began = time.monotonic()
    # A domain of our own, on this machine only, whatever the shell exports: a demo must not
    # command somebody's robot, whose commands go by the same topic names.
    os.environ.update(own_domain())
    console = Console()
    console.print(f"watch it with ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']}")
    spec = load_robot(robot)
    goal = load_task(task, spec)
    for name in ('metrics.json', 'report.html', ANIMATION):
        (output / name).unlink(missing_ok=True)  # of an earlier run: not to be taken for this one
    loop = DemoLoop(spec, goal, robot, task, seed, lockstep, params_file, output, console)
    gate = goal.gate
    if pretrained and goal.pretrained_gate is not None:
        gate = goal.pretrained_gate
    done = loop.run_pretrained(trials or 1) if pretrained else loop.run_learning(
        gate if trials is None else None, trials or MOST_TRIALS, adapt=adapt)
    driven = [trial for trial in done if trial.model is not None]
    best = max(driven, key=lambda trial: trial.total_return)
    assert best.model is not None
    passed = gate is None or best.total_return >= gate
    if pretrained:
        passed = passed and best.missed_ticks <= MOST_MISSED_SHARE * best.ticks
    last = mean_of(driven[-LAST:])
    metrics = {'trials': [trial.to_dict() for trial in done], 'robot': robot, 'task': task,
               'best_return': best.total_return, 'last': last, 'gate': gate, 'passed': passed,
               'seed': seed, 'lockstep': lockstep, 'pretrained': pretrained,
               'wall_seconds': time.monotonic() - began}
    (output / 'metrics.json').write_text(json.dumps(metrics, indent=2) + '\n')
    with console.status('draw the report'):
        report = write_report(output, spec, goal, done, best, gate, seed)
    judged = '' if gate is None else f', gate {gate:g}: ' \
        + ('[green]met[/]' if passed else '[red]not met[/]')
    console.print(f'\nbest return {best.total_return:.1f}{judged}, '
                  f'{time.monotonic() - began:.0f} s. Wrote {report}')
    if goal.is_goal_live:
        console.print(f'mean of the last {len(driven[-LAST:])}: ' + ', '.join(
            f'{name} {value:.3g}' for name, value in last.items()))
    if best.missed_ticks > MOST_MISSED_SHARE * best.ticks:
        console.print(f'[yellow]{best.missed_ticks} of {best.ticks} plans were late: is the '
                      'machine busy? Try a smaller cem.population.[/]')
    defaults = NodeOptions()
    named = ''.join(f' {word}:={value}' for word, value, default in (
        ('robot', robot, defaults.robot), ('task', task, defaults.task)) if value != default)
    console.print(
        'next: look at the report; drive with this model:\n'
        f'  ros2 launch mbrl_ros demo.launch.py{named} model:={best.model.resolve()}\n'
        'or record your own robot and train:\n'
        '  mbrl-ros train BAG --robot my_robot.yaml --output models/my_robot', soft_wrap=True)
    raise typer.Exit(0 if passed else 1)
