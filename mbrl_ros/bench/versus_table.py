"""The table of the comparison with mbrl-lib: our numbers, theirs, and what was aimed at."""

from typing import Any

from rich.table import Table

# Heading, key, unit as a format, and the target: a bound from below ('>=') or above ('<=').
ROWS: tuple[tuple[str, str, str, str, float | None], ...] = (
    ('plan, float32', 'float32_s', '{:.3f} s', '', None),
    ('plan, float32, OpenVINO', 'openvino_float32_s', '{:.3f} s', '', None),
    ('plan, bf16', 'bf16_s', '{:.3f} s', '', None),
    ('times faster, float32', 'ratio_float32', '{:.1f}', '>=', 20.0),
    ('times faster, float32, OpenVINO', 'ratio_openvino_float32', '{:.1f}', '', None),
    ('times faster, bf16', 'ratio_bf16', '{:.1f}', '>=', 45.0),
    ('the same, were plans float32 products alone', 'possible_ratio_float32', '{:.1f}', '', None),
    ('the same, were plans bf16 products alone', 'possible_ratio_bf16', '{:.1f}', '', None),
    *((f'plan on a GPU, {precision}', f'cuda_{precision}_s', '{:.4f} s', '<=', 0.005)
      for precision in ('float32', 'tf32', 'float16')),
    *((f'times faster on a GPU, {precision}', f'ratio_cuda_{precision}', '{:.0f}', '>=', 50.0)
      for precision in ('float32', 'tf32', 'float16')),
    ('share of the ceiling, float32', 'ceiling_share_float32', '{:.0%}', '>=', 0.6),
    ('share of the ceiling, bf16', 'ceiling_share_bf16', '{:.0%}', '', None),
    ('largest difference of a cost', 'cost_difference_max', '{:.1e}', '', None),
    ('the same, bf16', 'cost_difference_bf16_max', '{:.1e}', '', None),
    ("rank correlation of bf16's costs", 'rank_correlation_bf16', '{:.4f}', '', None),
    ('tick outside rollouts', 'tick_overhead_ms', '{:.2f} ms', '<=', 1.0),
    ('compile and load', 'compile_s', '{:.2f} s', '<=', 3.0),
    ('load from the cache', 'cached_load_s', '{:.2f} s', '<=', 0.5),
    ('controller memory', 'controller_rss_mb', '{:.0f} MB', '<=', 400.0),
    ('controller start', 'controller_start_s', '{:.1f} s', '', None),
)
THEIRS = {'float32_s': 'mbrl_lib_s', 'cuda_float32_s': 'mbrl_lib_cuda_s'}
QUIET = 1.5  # on an idle machine the slowest turn takes no longer than this times the fastest


def versus_table(results: dict[str, Any]) -> Table:
    """Return all numbers, each with its target and whether it was met."""
    machine, budget = results['machine'], results['budget']
    limits = ' and '.join(f'{value:.0f}' for value in results['ceiling_float32_gflops'])
    work = ' x '.join(str(budget[name])
                      for name in ('population', 'particles', 'horizon', 'iterations'))
    rival = results['mbrl_lib']['versions']['mbrl']
    table = Table(title=f'Plans of {work} beside mbrl-lib {rival}: '
                        f"{machine['processor']}, {machine['cores']} cores",
                  caption=f"{results['plan_gflop']:.0f} GFLOP a plan; the float32 ceiling is "
                          f'{limits} GFLOP/s, before and after')
    for heading in ('', 'ours', 'mbrl-lib', 'target', ''):
        table.add_column(heading, justify='left' if heading == '' else 'right')
    for heading, key, form, relation, bound in ROWS:
        value = results[key]
        theirs = results[THEIRS[key]] if key in THEIRS else None
        table.add_row(heading, _text(value, form), '' if theirs is None else form.format(theirs),
                      '' if bound is None else f'{relation} {form.format(bound)}',
                      verdict(value, relation, bound))
    uneven = max(max(times_s) / min(times_s) for times_s in results['times_s'].values())
    if uneven > QUIET:
        table.caption = (f'{table.caption}\nThe machine was busy: turns differ by a factor of '
                         f'{uneven:.1f}. Run again.')
    for name, note in results.items():
        if name.endswith('_note') and note:
            table.caption = f'{table.caption}\n{name.removesuffix("_note")}: {note}'
    return table


def verdict(value: float | None, relation: str, bound: float | None) -> str:
    """Return 'met' or 'missed', or nothing where there is no target or no number."""
    if value is None or bound is None:
        return ''
    met = value >= bound if relation == '>=' else value <= bound
    return '[green]met[/]' if met else '[red]missed[/]'


def _text(value: float | None, form: str) -> str:
    return '-' if value is None else form.format(value)
