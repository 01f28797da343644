"""Pictures of a model's quality."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.learning.one_step import OneStep
from mbrl_ros.learning.open_loop import LONGEST_STEPS, MOST_ERROR, predict_fan
from mbrl_ros.learning.region import Region
from mbrl_ros.runtime.dynamics import Dynamics

COLUMNS = 2
MOST_DOTS = 2000
MOST_FANS = 12


def height(robot: RobotSpec) -> float:
    """Return the height [inch] of a picture with one panel a field."""
    return 2.8 * -(-len(robot.observation) // COLUMNS)


def draw_training(axes: Axes, history: Sequence[dict[str, Any]]) -> None:
    """Draw the losses over the gradient steps."""
    steps = [row['step'] for row in history]
    for key in ('train_loss', 'holdout_loss', 'best_loss'):
        axes.plot(steps, [row[key] for row in history], label=key.replace('_', ' '))
    axes.set(xlabel='gradient step', ylabel='2 NLL, mean over members')
    axes.legend(fontsize='small')


def draw_k_step(axes: Axes, k_step: Sequence[dict[str, float]]) -> None:
    """Draw the open-loop error with its band, and what the model itself expected of it."""
    steps = [row['k'] for row in k_step]
    axes.plot(steps, [row['error'] for row in k_step], marker='.', label='error')
    axes.fill_between(steps, [row['low'] for row in k_step], [row['high'] for row in k_step],
                      alpha=0.25, lw=0, label='95 % band')
    axes.plot(steps, [row['predicted'] for row in k_step], ls='--', label='predicted std')
    axes.axhline(MOST_ERROR, color='grey', lw=0.8, label='limit of the recommended horizon')
    axes.set(xlabel='k [steps]', ylabel='RMS [state deviations]', yscale='log')
    axes.legend(fontsize='small')


def draw_calibration(axes: Axes, calibration: dict[str, Any]) -> None:
    """Draw the share inside the central interval of each level, a line a field."""
    axes.plot([0, 1], [0, 1], color='grey', lw=0.8)
    for name, observed in calibration['observed'].items():
        axes.plot(calibration['level'], observed, marker='.', label=name)
    axes.set(xlabel='level of the interval', ylabel='share inside', xlim=(0, 1), ylim=(0, 1),
             aspect='equal')
    axes.legend(fontsize='small')


def draw_scatter(figure: Figure, robot: RobotSpec, one: OneStep) -> None:
    """Draw the predicted change over the true one, a panel a field."""
    shown = _spaced(len(one.state), MOST_DOTS)
    true = (one.next_state - one.state)[shown]
    predicted = (one.mean.mean(axis=0) - one.state)[shown]
    for index, axes in enumerate(_panels(figure, robot)):
        low, high = true[:, index].min(), true[:, index].max()
        axes.plot([low, high], [low, high], color='grey', lw=0.8)
        axes.plot(true[:, index], predicted[:, index], '.', ms=3, alpha=0.5)
        axes.set(xlabel='true change', ylabel='predicted change')


def draw_disagreement(axes: Axes, spread: np.ndarray, error: np.ndarray) -> None:
    """Draw the error over the members' disagreement, both shape (N,) in typical steps."""
    shown = _spaced(len(spread), MOST_DOTS)
    axes.plot(np.maximum(spread[shown], 1e-6), np.maximum(error[shown], 1e-6), '.', ms=3,
              alpha=0.5)
    axes.set(xscale='log', yscale='log', xlabel='disagreement [typical steps]',
             ylabel='error [typical steps]')


def draw_fans(figure: Figure, dynamics: Dynamics, robot: RobotSpec, states: np.ndarray,
              actions: np.ndarray, seed: int) -> None:
    """Draw predictions from several moments of an episode, +-2 std, against what happened."""
    steps = min(LONGEST_STEPS, len(actions))
    actions = actions[:MOST_FANS * steps]
    starts = np.arange(0, len(actions) - steps + 1, steps)
    fan = predict_fan(dynamics, states[starts],
                      np.stack([actions[start:start + steps] for start in starts]), seed)
    time_s = np.arange(len(actions) + 1) * robot.dt_s
    for index, axes in enumerate(_panels(figure, robot)):
        actual = states[:len(time_s), index]
        axes.plot(time_s, actual, color='black', lw=1, label='actual')
        for number, start in enumerate(starts):
            path = fan[:, :, number, index]
            when = time_s[start + 1:start + steps + 1]
            mean, spread = path.mean(axis=1), 2.0 * path.std(axis=1)
            axes.fill_between(when, mean - spread, mean + spread, color='tab:blue', alpha=0.3,
                              lw=0)
            axes.plot(when, mean, color='tab:blue', lw=1, label='' if number else 'foreseen')
        room = 0.3 * np.ptp(actual) + 1e-6
        axes.set(xlabel='time [s]', ylim=(actual.min() - room, actual.max() + room))
    figure.axes[0].legend(fontsize='small')


def draw_coverage(figure: Figure, robot: RobotSpec, region: Region, scored: Region) -> None:
    """Draw where the training states lie, and where those of the scored data do."""
    for index, axes in enumerate(_panels(figure, robot)):
        for which, label in ((region, 'training'), (scored, 'scored')):
            edges = np.linspace(which.low[index], which.high[index], which.states.shape[1] + 1)
            width = max(edges[1] - edges[0], 1e-9)
            axes.stairs(which.states[index] / width, edges, fill=which is region, alpha=0.6,
                        label=label)
        axes.set(ylabel='density')
    figure.axes[0].legend(fontsize='small')


def draw_bound(axes: Axes, bound: dict[str, Any]) -> None:
    """Draw the terms of MBPO's bound over the length of the rollouts."""
    steps = [row['k'] for row in bound['terms']]
    policy, model = (np.array([row[key] for row in bound['terms']]) for key in ('policy', 'model'))
    axes.plot(steps, policy, label='policy: data of another policy')
    axes.plot(steps, model, label='model: its error, k times')
    axes.plot(steps, policy + model, color='black', label='sum')
    axes.set(xlabel='k [steps]', ylabel='share of the largest return')
    axes.legend(fontsize='small')


def _panels(figure: Figure, robot: RobotSpec) -> list[Axes]:
    columns = COLUMNS if len(robot.observation) > 1 else 1
    grid = figure.subplots(-(-len(robot.observation) // columns), columns, squeeze=False)
    panels: list[Axes] = []
    for number, axes in enumerate(grid.flat):
        if number < len(robot.observation):
            field = robot.observation[number]
            axes.set(title=f'{field.name} [{field.unit}]')
            panels.append(axes)
        else:
            axes.set_visible(False)
    return panels


def _spaced(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
