"""The picture of `bench plan`: time along each axis, its growth, and the share of the ceiling."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mbrl_ros.bench.grid import AXES, GROWTH_SUFFIX

PANELS = (*AXES, f'population{GROWTH_SUFFIX}', f'horizon{GROWTH_SUFFIX}')


def draw_plans(path: Path, result: dict[str, Any]) -> None:
    """Write the picture of what `plan.bench` returned."""
    figure = Figure(figsize=(18, 8), layout='constrained')
    axes = figure.subplots(2, 4).ravel()
    for panel, axis in zip(axes, PANELS, strict=False):
        _draw_axis(panel, axis, _lines(result['rows'], axis))
        if axis.endswith(GROWTH_SUFFIX):
            _name_exponents(panel, axis, result['growth'])
        else:
            panel.set_ylim(bottom=0.0)
    _draw_ceilings(axes[len(PANELS)], result['rows'])
    machine = result['machine']
    figure.suptitle(f"Time of a plan on {machine['processor']}, {machine['cores']} cores, "
                    f"{machine['date'][:10]} (solid: p50, dashed: p99)")
    figure.savefig(path, dpi=100)


def _name_exponents(axes: Axes, axis: str, growth: Sequence[dict[str, Any]]) -> None:
    """Make both scales logarithmic, and say in the legend which power of the axis time follows."""
    axes.set(xscale='log', yscale='log')
    handles, labels = axes.get_legend_handles_labels()
    exponents = {f"{item['provider']} {item['precision']}": item['exponent'] for item in growth
                 if item['axis'] + GROWTH_SUFFIX == axis}
    if handles:
        axes.legend(handles, [f'{label}: power {exponents[label]:.2f}' for label in labels],
                    fontsize='small')


def _lines(rows: Sequence[dict[str, Any]], axis: str) -> dict[str, list[dict[str, Any]]]:
    """Return the measured rows of an axis, by provider and precision."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row['axis'] == axis and row['p50_s'] is not None:
            lines.setdefault(f"{row['provider']} {row['precision']}", []).append(row)
    return lines


def _draw_axis(axes: Axes, axis: str, lines: dict[str, list[dict[str, Any]]]) -> None:
    for label, line in lines.items():
        values = [row['value'] for row in line]
        drawn, = axes.plot(values, [row['p50_s'] * 1e3 for row in line], marker='o', label=label)
        axes.plot(values, [row['p99_s'] * 1e3 for row in line], ls='--', color=drawn.get_color())
    axes.set(title=axis, ylabel='plan [ms]')
    if lines:
        axes.legend(fontsize='small')


def _draw_ceilings(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the share of the ceiling of each network, and of the largest population P."""
    networks, populations = (_lines(rows, axis) for axis in
                             ('network', f'population{GROWTH_SUFFIX}'))
    bars = {label: [*line, *populations[label][-1:]] for label, line in networks.items()}
    known = {label: line for label, line in bars.items()
             if all(row['ceiling_share'] is not None for row in line)}
    width = 0.8 / max(1, len(known))
    for index, (label, line) in enumerate(known.items()):
        places = [place + index * width for place in range(len(line))]
        axes.bar(places, [row['ceiling_share'] for row in line], width, label=label)
        names = [f"{len(row['hidden'])} x {row['hidden'][0]}\nP = {row['population']}"
                 for row in line]
        axes.set_xticks(range(len(line)), names, fontsize='small')
    axes.axhline(1.0, color='black', lw=0.8)
    axes.set(title='share of the matrix-product ceiling')
    if known:
        axes.legend(fontsize='small')
