"""The demo's report: one HTML file with every picture inside."""

from pathlib import Path

from mbrl_ros.cli import pictures
from mbrl_ros.cli.trial import Trial
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.learning.html_page import embed, page, picture, table
from mbrl_ros.nodes.mpc_controller import ControllerParams
from mbrl_ros.runtime import artifact

HEADINGS = ('trial', 'robot s', 'return', 'away m', 'holdout R2', 'error at 25', 'plan p50 ms',
            'plan p99 ms', 'ticks', 'missed')
ANIMATION = 'best_trial.gif'


def write_report(output: Path, robot: RobotSpec, task: TaskSpec, trials: list[Trial], best: Trial,
                 gate: float | None, seed: int) -> Path:
    """
    Write report.html, and best_trial.gif beside it where the robot can be drawn.

    Parameters
    ----------
    output : Path
        Folder of the demo.
    robot, task : RobotSpec, TaskSpec
        What was driven, and how it was scored.
    trials : list of Trial
        All of them.
    best : Trial
        The one that the pictures show.
    gate : float or None
        Return to reach, if there is one.
    seed : int
        Of the run.

    """
    assert best.model is not None
    model = artifact.load(best.model, robot)
    episode = max(load_dataset([best.bag], robot).episodes, key=lambda e: e.num_steps)
    fans_height = 3.0 * -(-len(robot.observation) // 2)
    drawn = pictures.animate(robot, episode.states)
    sections = []
    if drawn is not None:
        animation, strip = drawn
        (output / ANIMATION).write_bytes(animation)
        sections.append(('The best trial', embed('gif', animation) + embed('png', strip)))
    sections += [
        ('Return against seconds of robot data',
         picture((8, 3.5), lambda f: pictures.draw_returns(f, trials, gate))),
        ('What the model foresaw, and what happened',
         '<p>Open loop over 25 steps with the actions really taken; the band is two standard '
         'deviations of the particles.</p>'
         + picture((10, fans_height),
                   lambda f: pictures.draw_fans(f, model, robot, episode, seed))),
        ('Error of the model against the number of steps',
         picture((8, 3.5), lambda f: pictures.draw_k_step(f, model, episode, seed))),
        ('Time of a plan',
         picture((8, 3.5), lambda f: pictures.draw_plan_times(
             f, best.plan_ms, robot, ControllerParams.model_fields['deadline'].default))),
    ]
    verdict, judged = '', ''
    if gate is not None:
        verdict = 'met' if best.total_return >= gate else 'missed'
        judged = f'; the gate of {gate:g} was {verdict}'
    intro = f'<p class="{verdict}">Best return {best.total_return:.1f}{judged}. Seed {seed}.</p>'
    path = output / 'report.html'
    path.write_text(page(f'{task.name} on {robot.name}',
                         intro + table(HEADINGS, map(_cells, trials)), sections))
    return path


def _cells(trial: Trial) -> list[str]:
    def text(value: float | None, form: str) -> str:
        return '-' if value is None else format(value, form)
    return [str(trial.trial), f'{trial.robot_seconds:.1f}', f'{trial.total_return:.1f}',
            text(trial.final_distance_m, '.3f'), text(trial.holdout_r2, '.4f'),
            text(trial.holdout_error, '.3f'), text(trial.quantile_ms(0.5), '.1f'),
            text(trial.quantile_ms(0.99), '.1f'), str(trial.ticks), str(trial.missed_ticks)]
