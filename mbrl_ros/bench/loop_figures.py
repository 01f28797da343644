"""Figures of a control loop from what was seen on its topics, and whether they are good."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mbrl_ros.bench.process import BenchError

# What is aimed at. A plan has to come within the controller's default deadline.
MOST_MISSED_SHARE, MOST_ERROR_MS, MOST_OVERHEAD_MS, DEADLINE = 1e-3, 1.0, 1.0, 0.8


def judge(record: Mapping[str, Any], period_s: float, begin_ns: int, end_ns: int
          ) -> dict[str, Any]:
    """
    Return the figures of one stretch of time.

    Parameters
    ----------
    record : mapping
        `commands_ns`, the times at which commands were written, and `ticks`, the values of
        ~/tick with their own time `sent_ns`; the tick follows its command.
    period_s : float
        Control period.
    begin_ns, end_ns : int
        The stretch.

    Returns
    -------
    dict
        `ticks`: control periods that the stretch should have had. `missed_ticks`: those without a
        command of their own plan from their own observation, which are `late_plans` (the plan
        came after its deadline), `silent_ticks` (no new observation) and `skipped_ticks` (no
        command at all). `period_error_ms_*`: distance of two commands in a row, less the period,
        without its sign. `latency_ms_*`: from the stamp of an observation to the write of the
        command that answers it. `plan_ms_*`: time of plans.

    Raises
    ------
    BenchError
        If there are not even two commands and two ticks.

    """
    commands = np.array([ns for ns in record['commands_ns'] if begin_ns <= ns < end_ns], np.int64)
    ticks = [tick for tick in record['ticks'] if begin_ns <= tick['sent_ns'] < end_ns]
    if len(commands) < 2 or len(ticks) < 2:
        raise BenchError(f'{len(commands)} commands and {len(ticks)} ticks in '
                         f'{(end_ns - begin_ns) * 1e-9:.1f} s: the loop does not run. Measure '
                         'longer, or at another rate.')
    distances_s = np.diff(commands) * 1e-9
    skipped = int(np.maximum(np.round(distances_s / period_s) - 1, 0).sum())
    stamps = [int(tick['stamp_ns']) for tick in ticks]
    is_fresh = np.diff(stamps, prepend=-1) != 0
    is_late = np.array([tick['missed'] == 'True' for tick in ticks])
    late, silent = int((is_late & is_fresh).sum()), int((~is_fresh).sum())
    plans_ms = [float(text) for tick in ticks for text in tick.get('plan_ms', '').split()]
    return {
        'ticks': len(ticks) + skipped, 'missed_ticks': late + silent + skipped,
        'late_plans': late, 'silent_ticks': silent, 'skipped_ticks': skipped,
        'safe_ticks': sum(tick['safe'] == 'True' for tick in ticks),
        **_quantiles('period_error_ms', np.abs(distances_s - period_s) * 1e3),
        **_quantiles('latency_ms', _latencies_ms(commands, ticks, stamps, is_fresh & ~is_late)),
        **_quantiles('plan_ms', plans_ms)}


def _latencies_ms(commands: np.ndarray, ticks: Sequence[Mapping[str, Any]],
                  stamps: Sequence[int], chosen: np.ndarray) -> np.ndarray:
    """Return the time from stamp to command of the chosen ticks; each follows its command."""
    sent = np.array([tick['sent_ns'] for tick in ticks], np.int64)
    answers = np.searchsorted(commands, sent, side='right') - 1
    chosen = chosen & (answers >= 0)
    return (commands[answers[chosen]] - np.array(stamps, np.int64)[chosen]) * 1e-6


def _quantiles(name: str, values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return {f'{name}_{part}': None for part in ('p50', 'p99', 'max')}
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {f'{name}_p50': float(p50), f'{name}_p99': float(p99),
            f'{name}_max': float(np.max(values))}


def verdicts(figures: Mapping[str, Any], period_s: float) -> list[dict[str, Any]]:
    """Hold the figures of `judge` against what is aimed at: `what`, `value`, `bound`, `is_met`."""
    plan_ms = figures['plan_ms_p99']
    rows = [('missed ticks', figures['missed_ticks'], MOST_MISSED_SHARE * figures['ticks']),
            ('period error, p99 (ms)', figures['period_error_ms_p99'], MOST_ERROR_MS),
            ('plan, p99 (ms)', plan_ms, DEADLINE * period_s * 1e3),
            ('stamp to command, p99 (ms)', figures['latency_ms_p99'],
             None if plan_ms is None else plan_ms + MOST_OVERHEAD_MS)]
    return [{'what': what, 'value': value, 'bound': bound,
             'is_met': value is not None and bound is not None and value <= bound}
            for what, value, bound in rows]
