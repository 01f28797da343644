"""How long plans take on every provider, where the time goes, and how near the ceiling that is."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mbrl_ros.bench.ceiling import best_of, Ceiling, ceilings
from mbrl_ros.bench.grid import Case, grid, Group, GROWTH_SUFFIX, published
from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.bench.subject import Subject
from mbrl_ros.bench.timing import growth_exponent, in_turns, is_linear, Summary, WARM_UPS
from mbrl_ros.core.errors import ProviderError
from mbrl_ros.runtime import providers
from mbrl_ros.runtime.providers import cuda

FEWEST_PLANS = 3

Target = tuple[str, str]  # provider and precision
Report = Callable[[int, int, str], None]  # done, of how many, what


@dataclass(frozen=True)
class Row:
    """
    One workload on one provider in one precision; numbers are None where it does not run.

    Attributes
    ----------
    axis, value
        Of the case.
    missing : str
        Why it does not run here, or empty.
    plans : int
        Plans that were timed.
    tiles : int
        Tiles that calibration cut the population into.
    p50_s, p99_s, max_s : float
        Time of a plan [s].
    share_rollout, share_copies, share_planner, share_other : float
        Shares of that time, summing to 1; see `subject.Parts`.
    gflop, gflops : float
        Matrix products of a plan, and their rate at the median [GFLOP/s].
    ceiling_share : float
        That rate as a share of the machine's own in the same precision; None where that is not
        known.
    compile_s, cached_load_s, memory_mb : float
        See `subject.Subject`.

    """

    axis: str
    value: int | str
    provider: str
    precision: str
    population: int
    particles: int
    horizon: int
    iterations: int
    members: int
    hidden: tuple[int, ...]
    num_state: int
    num_action: int
    gflop: float
    missing: str = ''
    plans: int = 0
    tiles: int | None = None
    p50_s: float | None = None
    p99_s: float | None = None
    max_s: float | None = None
    share_rollout: float | None = None
    share_copies: float | None = None
    share_planner: float | None = None
    share_other: float | None = None
    gflops: float | None = None
    ceiling_share: float | None = None
    compile_s: float | None = None
    cached_load_s: float | None = None
    memory_mb: float | None = None


def bench(wanted: Sequence[str], plans: int, quick: bool, report: Report) -> dict[str, Any]:
    """
    Measure the grid on this machine.

    Parameters
    ----------
    wanted : sequence of str
        Providers; empty: all that can run here.
    plans : int
        Plans a row.
    quick : bool
        The ends of each axis only.
    report : callable
        Told of progress.

    Returns
    -------
    dict
        Machine, ceilings, rows and growth exponents, ready for JSON.

    Raises
    ------
    ProviderError
        If a wanted provider cannot run here.

    """
    names = list(wanted) or providers.available()
    targets = [(name, precision) for name in names
               for precision in providers.find(name)[0].PRECISIONS]
    work = [(group, targets) for group in grid(quick)]
    for_gpu = [('cuda', precision) for precision in cuda.PRECISIONS]
    if 'cuda' in names:
        work.append((Group((published(),)), for_gpu))
    steps = [len(group.cases) * len(those) * (1 + WARM_UPS + _num_plans(group, plans))
             for group, those in work]
    done, total = 0, sum(steps)
    report(done, total, 'ceilings')
    before = ceilings()
    rows: list[dict[str, Any]] = []
    for (group, those), number in zip(work, steps, strict=True):
        def tell(calls: int, what: str, done: int = done) -> None:
            report(done + calls, total, what)
        rows += measure(group, those, _num_plans(group, plans), tell)
        done += number
    if 'cuda' not in names:
        rows += [asdict(_blank(published(), target, cuda.problem() or 'cuda: not asked for'))
                 for target in for_gpu]
    report(done, total, 'ceilings')
    limits = best_of(before, ceilings())
    report(total, total, 'done')
    return {'machine': describe_machine(), 'ceilings': [asdict(limit) for limit in limits],
            'rows': [_with_ceiling(row, limits) for row in rows], 'growth': growth(rows)}


def measure(group: Group, targets: Sequence[Target], plans: int,
            tell: Callable[[int, str], None] = lambda calls, what: None) -> list[dict[str, Any]]:
    """
    Measure the cases of a group on all targets, in turns.

    Returns
    -------
    list of dict
        One `Row` each, its share of the ceiling still None.

    """
    rows: list[Row] = []
    subjects: list[Subject | None] = []
    calls = 0
    for case in group.cases:
        for target in targets:
            tell(calls, f'build {case.axis} {case.value} on {" ".join(target)}')
            calls += 1
            try:
                subjects.append(Subject(case.workload, *target))
                rows.append(_blank(case, target))
            except ProviderError as error:
                subjects.append(None)
                rows.append(_blank(case, target, str(error)))

    def count() -> None:
        nonlocal calls
        calls += 1
        tell(calls, f'plan along {group.cases[0].axis}')
    built = [subject for subject in subjects if subject is not None]
    times_s = iter(in_turns([subject.plan for subject in built], plans, WARM_UPS, count))
    found = [asdict(row if subject is None else _filled(row, subject, next(times_s)))
             for row, subject in zip(rows, subjects, strict=True)]
    for subject in built:
        subject.close()
    return found


def growth(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how the median time grows along each growth axis, for each target."""
    lines: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row['axis'].endswith(GROWTH_SUFFIX) and row['p50_s'] is not None:
            lines.setdefault((row['axis'], row['provider'], row['precision']), []).append(row)
    found = []
    for (axis, provider, precision), line in lines.items():
        exponent = growth_exponent([row['value'] for row in line], [row['p50_s'] for row in line])
        found.append({'axis': axis.removesuffix(GROWTH_SUFFIX), 'provider': provider,
                      'precision': precision, 'exponent': exponent,
                      'linear': is_linear(exponent)})
    return found


def _num_plans(group: Group, plans: int) -> int:
    return max(min(plans, FEWEST_PLANS), round(plans * group.share))


def _blank(case: Case, target: Target, missing: str = '') -> Row:
    work = case.workload
    return Row(case.axis, case.value, *target, work.population, work.particles, work.horizon,
               work.iterations, work.members, work.hidden, work.num_state, work.num_action,
               work.flop() / 1e9, missing)


def _filled(row: Row, subject: Subject, times_s: np.ndarray) -> Row:
    """Return the row with what was measured; times_s of shape (plans,)."""
    summary = Summary.of(times_s)
    timed = subject.plans[-len(times_s):]  # not the warm-ups
    whole = times_s.sum()
    shares: dict[str, Any] = {
        f'share_{name}': float(sum(getattr(parts, name) for parts in timed) / whole)
        for name in ('rollout', 'copies', 'planner')}
    return replace(row, plans=len(times_s), tiles=subject.rollout.num_tiles, **asdict(summary),
                   **shares, share_other=1.0 - sum(shares.values()),
                   gflops=row.gflop / summary.p50_s, compile_s=subject.compile_s,
                   cached_load_s=subject.cached_load_s, memory_mb=subject.memory_mb)


def _with_ceiling(row: dict[str, Any], limits: Sequence[Ceiling]) -> dict[str, Any]:
    device = 'cuda' if row['provider'] == 'cuda' else 'cpu'
    limit = next((limit.gflops for limit in limits
                  if (limit.device, limit.precision) == (device, row['precision'])), None)
    share = row['gflops'] / limit if row['gflops'] and limit else None
    return row | {'ceiling_share': share}
