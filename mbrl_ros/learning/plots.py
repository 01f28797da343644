"""Pictures of a model's quality, for the folder it is written to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mbrl_ros.learning.evaluation import Evaluation


def draw_k_step(axes: Axes, k_step: Sequence[dict[str, float]]) -> None:
    """Draw the open-loop error and what the model itself expected of it."""
    steps = [row['k'] for row in k_step]
    axes.plot(steps, [row['error'] for row in k_step], marker='.', label='error')
    axes.plot(steps, [row['predicted'] for row in k_step], ls='--', label='predicted std')
    axes.axhline(0.3, color='grey', lw=0.8, label='limit of the recommended horizon')
    axes.set(title='k-step open-loop error on the holdout', xlabel='k [steps]',
             ylabel='RMS [state deviations]', yscale='log')
    axes.legend(fontsize='small')


def draw_quality(path: Path, scores: Evaluation, history: Sequence[dict[str, Any]]) -> None:
    """Write one picture: training curve, k-step error, coverage a field."""
    figure = Figure(figsize=(13, 3.8), layout='constrained')
    loss, error, coverage = figure.subplots(1, 3)
    steps = [row['step'] for row in history]
    loss.plot(steps, [row['train_loss'] for row in history], label='training')
    loss.plot(steps, [row['holdout_loss'] for row in history], label='holdout')
    loss.set(title='Loss (2 NLL, mean over members)', xlabel='gradient step')
    loss.legend(fontsize='small')
    draw_k_step(error, scores.k_step)
    coverage.bar(list(scores.coverage_95), list(scores.coverage_95.values()))
    coverage.axhline(0.95, color='black', lw=0.8)
    coverage.set(title='Share inside the 95 % interval', ylim=(0, 1.05))
    coverage.tick_params(axis='x', rotation=20, labelsize='small')
    figure.savefig(path, dpi=110)
