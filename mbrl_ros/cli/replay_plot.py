"""The picture of a replayed decision: what was planned, by which model, and what followed."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from mbrl_ros.control.mpc import Decision
from mbrl_ros.control.record import Record
from mbrl_ros.data.resample import Episode

RECORDED, OTHER, FOLLOWED = 'tab:blue', 'tab:orange', 'black'


def what_followed(episodes: Sequence[Episode], record: Record) -> Episode | None:
    """Return what the robot did from the record's observation to its plan's end, if recorded."""
    robot, plan = record.setup.robot, record.outcome.actions
    for episode in episodes:
        first = round((record.stamp_ns - episode.start_ns) / robot.dt_ns)
        if 0 <= first < episode.num_steps:
            return episode.cut(first, min(first + len(record.inputs.in_flight) + len(plan),
                                          episode.num_steps), robot.dt_s)
    return None


def draw_decision(figure: Figure, record: Record, again: Decision | None,
                  other: Decision | None, followed: Episode | None) -> None:
    """
    Draw actions and states over the time since the observation, one panel a field.

    Parameters
    ----------
    figure : Figure
        To draw into.
    record : Record
        The recorded decision.
    again : Decision or None
        Made with the recorded model; its predictions are drawn. None: the model is gone.
    other : Decision or None
        What another model decides.
    followed : Episode or None
        What the robot really did from the observation on.

    """
    robot = record.setup.robot
    fields = [*robot.action, *robot.observation]
    columns = 2 if len(fields) <= 8 else 4
    figure.set_figheight(1.0 + 2.2 * -(-len(fields) // columns))
    grid = figure.subplots(-(-len(fields) // columns), columns, squeeze=False)
    for axes in grid.flat[len(fields):]:
        axes.axis('off')
    begin_s = len(record.inputs.in_flight) * robot.dt_s
    edges_s = begin_s + np.arange(len(record.outcome.actions) + 1) * robot.dt_s
    plans = [('recorded plan', RECORDED, record.outcome.actions)]
    plans += [('plan of the other model', OTHER, other.actions)] if other is not None else []
    for index, axes in enumerate(grid.flat[:len(robot.action)]):
        if followed is not None:
            _stairs(axes, np.arange(len(followed.states)) * robot.dt_s,
                    followed.actions[:, index], color=FOLLOWED, lw=3, alpha=0.35)
        for _, color, actions in plans:
            _stairs(axes, edges_s, actions[:, index], color=color)
    panels = grid.flat[len(robot.action):len(fields)]
    for index, axes in enumerate(panels):
        if followed is not None:
            axes.plot(np.arange(len(followed.states)) * robot.dt_s, followed.states[:, index],
                      color=FOLLOWED, lw=3, alpha=0.35)
        for color, decision in ((RECORDED, again), (OTHER, other)):
            if decision is not None:
                _fan(axes, edges_s, decision, index, color)
    for field, axes in zip(fields, grid.flat, strict=False):
        axes.axvline(begin_s, color='grey', lw=0.8, ls=':')
        axes.set(title=f'{field.name} [{field.unit}]')
        axes.set_xlabel('time since the observation [s]', fontsize='small')
    handles = [axes.plot([], color=color, label=label)[0] for label, color, _ in plans]
    if followed is not None:
        handles.append(axes.plot([], color=FOLLOWED, lw=3, alpha=0.35, label='what followed')[0])
    figure.legend(handles=handles, loc='outside lower center', ncols=len(handles),
                  fontsize='small')
    figure.suptitle(_title(record, other), fontsize='medium')


def _title(record: Record, other: Decision | None) -> str:
    text = f'tick {record.inputs.tick}, model {record.setup.model_hash[:16]}'
    if other is not None:
        text += f'; other model {other.rollout.model_hash[:16]}'
    return f'{text}. States: mean of the particles and two of their standard deviations'


def _stairs(axes: Axes, edges_s: np.ndarray, values: np.ndarray, **style: object) -> None:
    axes.step(edges_s, np.append(values, values[-1]), where='post', **style)  # type: ignore[arg-type]


def _fan(axes: Axes, edges_s: np.ndarray, decision: Decision, index: int, color: str) -> None:
    start = np.full((1, decision.prediction.states.shape[1]), decision.start[index])
    path = np.concatenate([start, decision.prediction.states[:, :, index]])
    mean, spread = path.mean(axis=1), 2.0 * path.std(axis=1)
    axes.fill_between(edges_s, mean - spread, mean + spread, color=color, alpha=0.2, lw=0)
    axes.plot(edges_s, mean, color=color, lw=1.2)
