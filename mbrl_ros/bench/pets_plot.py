"""The picture of `bench pets`: returns by trial, beside what others published."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from mbrl_ros.bench.published import CURVES


def draw_returns(path: Path, result: dict[str, Any]) -> None:
    """Write the picture of what `pets.bench` returned."""
    figure = Figure(figsize=(9, 5.5), layout='constrained')
    axes = figure.subplots()
    returns = np.array(result['returns'])
    trials = np.arange(1, returns.shape[1] + 1)
    best = np.maximum.accumulate(returns, axis=1)
    for row in returns:
        axes.plot(trials, row, '.', color='tab:blue', alpha=0.35, ms=5,
                  label='return of a trial' if row is returns[0] else None)
    axes.fill_between(trials, best.min(axis=0), best.max(axis=0), color='tab:blue', alpha=0.15)
    axes.plot(trials, best.mean(axis=0), color='tab:blue', lw=2,
              label=f"max so far, mean of {result['seeds']} seeds (band: all seeds)")
    for name, points in CURVES[result['task']].items():
        shown = [point for point in points if point[0] <= len(trials)]
        if shown:
            axes.plot(*zip(*shown, strict=True), 'o--', ms=4, lw=1, label=name)
    for gate in result['gates'].values():
        axes.scatter([gate['trial']], [gate['threshold']], s=80, color='black',
                     marker='x' if gate['is_stretch'] else '_')
    if result.get('known_model_returns'):
        axes.axhline(float(np.mean(result['known_model_returns'])), color='black', ls=':', lw=1,
                     label='the same planner with MuJoCo as its model')
    axes.set(xlabel='trial', ylabel='return', title=(
        f"{result['task']}: {result['evaluations_per_plan']:,} network evaluations a plan, "
        f"{result['robot_seconds']:.0f} s of robot time"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small', loc='lower right')
    figure.savefig(path, dpi=110)
