"""`mbrl-ros demo`: the whole loop of PETS over real nodes, from random motion to a swing-up."""

from pathlib import Path
from typing import Annotated

import typer

GATE = 160.0
PRETRAINED_GATE = 165.0
MOST_TRIALS = 10
MOST_MISSED_SHARE = 0.01


def demo(
    robot: Annotated[str, typer.Option(help='Robot spec with a simulation section')] = 'cartpole',
    task: Annotated[str, typer.Option(help='Task spec')] = 'cartpole_swingup',
    pretrained: Annotated[bool, typer.Option(
        '--pretrained', help='Drive one trial with the shipped model, train nothing')] = False,
    lockstep: Annotated[bool, typer.Option(
        '--lockstep', help='The robot waits for each command: same seed, same commands')] = False,
    seed: Annotated[int, typer.Option(min=0, help='Seed of everything random')] = 0,
    output: Annotated[Path, typer.Option(
        help='Folder for bags, models, metrics.json and report.html')] = Path('out/demo'),
) -> None:
    """
    Record random motion, train, drive, retrain: until a trial returns 160, ten at the most.

    Each node runs in a process of its own, in real time. Exit status 0 only if the gate was met
    (160; with --pretrained 165 and at most 1 % missed ticks).

    Examples:
      mbrl-ros demo

      mbrl-ros demo --pretrained

      mbrl-ros demo --seed 2 --lockstep --output out/lockstep
    """
    import json
    import os
    import time

    from rich.console import Console

    from mbrl_ros.cli.demo_loop import DemoLoop
    from mbrl_ros.cli.report import write_report
    from mbrl_ros.core.robot import load_robot
    from mbrl_ros.core.task import load_task

    began = time.monotonic()
    # A domain of our own, on this machine only, whatever the shell exports: a demo must not
    # command somebody's robot, whose commands go by the same topic names.
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    console = Console()
    console.print(f"watch it with ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']}")
    spec = load_robot(robot)
    goal = load_task(task, spec)
    for name in ('metrics.json', 'report.html', 'swing_up.gif'):
        (output / name).unlink(missing_ok=True)  # of an earlier run: not to be taken for this one
    loop = DemoLoop(spec, goal, robot, task, seed, lockstep, output, console)
    gate = PRETRAINED_GATE if pretrained else GATE
    trials = loop.run_pretrained() if pretrained else loop.run_learning(gate, MOST_TRIALS)
    driven = [trial for trial in trials if trial.model is not None]
    best = max(driven, key=lambda trial: trial.total_return)
    assert best.model is not None
    passed = best.total_return >= gate
    if pretrained:
        passed = passed and best.missed_ticks <= MOST_MISSED_SHARE * best.ticks
    metrics = {'trials': [trial.to_dict() for trial in trials], 'robot': robot, 'task': task,
               'best_return': best.total_return, 'gate': gate, 'passed': passed, 'seed': seed,
               'lockstep': lockstep, 'pretrained': pretrained,
               'wall_seconds': time.monotonic() - began}
    (output / 'metrics.json').write_text(json.dumps(metrics, indent=2) + '\n')
    with console.status('draw the report'):
        report = write_report(output, spec, goal, trials, best, gate, seed)
    console.print(f'\nbest return {best.total_return:.1f}, gate {gate:g}: '
                  + ('[green]met[/]' if passed else '[red]not met[/]')
                  + f', {time.monotonic() - began:.0f} s. Wrote {report}')
    if best.missed_ticks > MOST_MISSED_SHARE * best.ticks:
        console.print(f'[yellow]{best.missed_ticks} of {best.ticks} plans were late: is the '
                      'machine busy? Try a smaller cem.population.[/]')
    console.print(
        'next: look at the report; drive with this model:\n'
        f'  ros2 launch mbrl_ros demo.launch.py model:={best.model.resolve()}\n'
        'or record your own robot and train:\n'
        '  mbrl-ros train BAG --robot my_robot.yaml --output models/my_robot', soft_wrap=True)
    raise typer.Exit(0 if passed else 1)
