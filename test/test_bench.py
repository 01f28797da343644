from dataclasses import asdict, replace
import json
import os
import sys
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from mbrl_ros.bench import plan as bench_plan
from mbrl_ros.bench import subject, timing
from mbrl_ros.bench.ceiling import best_of, Ceiling, ceilings, has_bf16
from mbrl_ros.bench.grid import AXES, BASE, Case, grid, Group, PUBLISHED
from mbrl_ros.bench.subject import covered, Subject
from mbrl_ros.bench.workload import Workload
from mbrl_ros.cli.main import app
from mbrl_ros.core.errors import MbrlError, ProviderError
from mbrl_ros.core.paths import cache_dir
from mbrl_ros.runtime.providers import cuda

TINY = Workload(members=2, hidden=(8,), num_state=3, num_action=2, population=6, particles=4,
                horizon=3, iterations=2)
SHARES = ('share_rollout', 'share_copies', 'share_planner', 'share_other')
MEASURED = ('tiles', 'p50_s', 'p99_s', 'max_s', *SHARES, 'gflops', 'compile_s', 'memory_mb')


def test_flop_counts_the_products_as_executed():
    # One evaluation: (3 + 2) x 8 and 8 x (2 * 3): 2 * 5 * 8 + 2 * 8 * 6 = 176 operations.
    # One candidate: 2 evaluations at the first step, where the 4 particles share those of their
    # 2 members, and 4 at each of the 2 others: 10. Six candidates, twice: 176 * 10 * 12 = 21120.
    assert TINY.flop() == 21120
    # With a particle a member there is nothing to share: (2 + 2 * 2) * 12 * 176.
    assert replace(TINY, particles=2).flop() == 12672


def test_flop_of_the_published_budget():
    # 24 x 200, three of 200 x 200, 200 x 34: 2 * (4800 + 120000 + 6800) = 263200 operations;
    # 5 + 24 * 20 = 485 evaluations a candidate, 400 of them, 5 times.
    assert PUBLISHED.flop() == 263200 * 485 * 2000


def test_a_workload_builds_what_its_sizes_say():
    robot, task, planner = TINY.robot(), TINY.task(), TINY.planner()
    assert (len(robot.observation), len(robot.action), task.horizon) == (3, 2, 3)
    assert planner.num_iterations == 2
    assert planner.init().mean.shape == (3, 2)
    generator = np.random.default_rng(0)
    assert planner.sample(planner.init(), planner.noise(generator)).shape == (6, 3, 2)
    inputs = TINY.artifact().model.graph.input
    assert [[size.dim_value for size in value.type.tensor_type.shape.dim] for value in inputs] \
        == [[2, 0, 3], [2, 0, 2]]


@pytest.mark.parametrize('quick', [True, False])
def test_the_grid_varies_one_axis_at_a_time(quick):
    groups = grid(quick)
    assert [group.cases[0].axis for group in groups] == [*AXES, 'population growth',
                                                         'horizon growth']
    for group in groups:
        first, *others = (asdict(case.workload) for case in group.cases)
        changed = {key for other in others for key in first if other[key] != first[key]}
        field = group.cases[0].axis.removesuffix(' growth').replace('network', 'hidden')
        assert changed == {field}
    at_base = [any(case.workload == BASE for case in group.cases) for group in groups[:-2]]
    assert at_base == [not quick or axis != 'population' for axis in AXES]


def test_spans_that_overlap_count_once():
    # [0, 2] and [1, 3] cover 3, [5, 6] covers 1, [5.2, 5.5] lies inside it.
    assert covered([(5.0, 6.0), (1.0, 3.0), (0.0, 2.0), (5.2, 5.5)]) == 4.0
    assert covered([]) == 0.0


def test_growth_exponents_of_exact_data():
    sizes = [10, 20, 40, 80]
    assert timing.growth_exponent(sizes, [3e-3 * size for size in sizes]) == pytest.approx(1.0)
    assert timing.growth_exponent(sizes, [1e-5 * size**2 for size in sizes]) == pytest.approx(2.0)
    assert timing.growth_exponent(sizes, [7.0] * 4) == pytest.approx(0.0, abs=1e-12)
    assert [timing.is_linear(x) for x in (0.84, 0.86, 1.14, 1.16)] == [False, True, True, False]


def test_calls_are_timed_in_turns():
    order, progress = [], []
    times_s = timing.in_turns([lambda: order.append('a'), lambda: order.append('b')], turns=3,
                              warm_ups=1, progress=lambda: progress.append(1))
    assert order == ['a', 'b'] * 4  # the first two are the warm-up
    assert times_s.shape == (2, 3)
    assert len(progress) == 8


def test_summary_and_ratio():
    # 101 times 0..100: the median is the 51st, the 99th percentile the 100th.
    summary = timing.Summary.of(np.arange(101.0))
    assert summary == timing.Summary(50.0, 99.0, 100.0)
    assert timing.ratio(np.array([6.0, 8.0, 100.0]), np.array([1.0, 2.0, 2.0])) == 4.0


def test_ceilings_are_positive_or_none():
    found = ceilings(size=64, cuda_size=64)
    assert [(limit.device, limit.precision) for limit in found[:2]] \
        == [('cpu', 'float32'), ('cpu', 'bf16')]
    assert found[0].gflops is not None
    assert all(limit.gflops is None or limit.gflops > 0 for limit in found)
    low, high = Ceiling('cpu', 'float32', 1.0), Ceiling('cpu', 'float32', 2.0)
    none = Ceiling('cpu', 'bf16', None)
    assert best_of([low, none], [high, none]) == best_of([high, none], [low, none]) == [high, none]


@pytest.mark.parametrize(('line', 'expected'), [
    ('flags\t\t: fpu avx512f avx512_bf16', True), ('flags\t\t: fpu amx_bf16 amx_tile', True),
    ('flags\t\t: fpu avx2 avx512f', False), ('Features\t: fp asimd bf16', True),
    ('bugs\t\t: bf16', False), ('', False)])
def test_bf16_is_read_from_the_flags(line, expected):
    assert has_bf16(f'processor\t: 0\n{line}\n') is expected


def test_a_subject_takes_down_every_plan(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    found = Subject(TINY, 'cpu', 'float32')
    before = len(found.plans)
    found.plan()
    parts = found.plans[-1]
    assert len(found.plans) == before + 1
    assert parts.rollout > 0
    assert parts.copies > 0
    assert parts.planner > 0
    assert found.cached_load_s is not None
    assert not list(cache_dir().glob('*.rollout'))  # the user's own cache stays as it was
    found.close()


@pytest.mark.parametrize('before', ['/somewhere', None])
def test_the_users_cache_comes_back(monkeypatch, before):
    if before is None:
        monkeypatch.delenv('XDG_CACHE_HOME')
    else:
        monkeypatch.setenv('XDG_CACHE_HOME', before)
    with subject.own_cache():
        inside = os.environ['XDG_CACHE_HOME']
    assert inside != before
    assert os.environ.get('XDG_CACHE_HOME') == before


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """Run the command once on a tiny grid; return its output, its numbers and its picture."""
    files = [tmp_path_factory.mktemp('bench') / 'deep' / name for name in ('p.json', 'p.png')]
    growth = tuple(Case('population growth', value, replace(TINY, population=value))
                   for value in (6, 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_plan, 'grid', lambda quick: [
            Group((Case('network', '2 x (1 x 8)', TINY),)), Group(growth, share=0.5)])
        patch.setattr(bench_plan, 'published', lambda: Case('published', 'PETS', TINY))
        patch.setattr(bench_plan, 'ceilings', lambda: ceilings(64, 64))
        result = CliRunner().invoke(app, [
            'bench', 'plan', '--provider', 'cpu', '--plans', '12', '--json', str(files[0]),
            '--plot', str(files[1])])
    assert result.exit_code == 0, result.output
    return result.output, json.loads(files[0].read_text()), files[1]


def test_the_command_shows_and_writes(done):
    output, numbers, picture = done
    assert 'time grows as population^' in output
    assert str(picture) in output
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert set(numbers) == {'machine', 'ceilings', 'rows', 'growth'}
    assert numbers['machine']['cores'] == len(os.sched_getaffinity(0))
    assert {'python', 'numpy', 'torch'} <= set(numbers['machine']['versions'])
    (item,) = numbers['growth']
    assert (item['axis'], item['provider'], item['precision']) == ('population', 'cpu', 'float32')


def test_rows_of_a_tiny_grid(done):
    rows = [row for row in done[1]['rows'] if row['provider'] == 'cpu']
    assert [row['axis'] for row in rows] == ['network', 'population growth', 'population growth']
    assert [row['plans'] for row in rows] == [12, 6, 6]
    for row in rows:
        assert all(row[key] is not None for key in MEASURED)
        assert row['p50_s'] <= row['p99_s'] <= row['max_s']
        assert sum(row[key] for key in SHARES) == pytest.approx(1.0)
        assert all(0.0 <= row[key] <= 1.0 for key in SHARES)
        assert row['gflops'] == pytest.approx(row['gflop'] / row['p50_s'])
        assert row['ceiling_share'] > 0


def test_the_gpu_row_is_blank_without_a_gpu(done):
    rows = [row for row in done[1]['rows'] if row['axis'] == 'published']
    assert [row['precision'] for row in rows] == list(cuda.PRECISIONS)
    for row in rows:
        assert row['missing']
        assert all(row[key] is None for key in (*MEASURED, 'ceiling_share'))


def test_progress_only_rises_and_ends_at_its_total():
    told = []
    bench_plan.measure(Group((Case('network', 'tiny', TINY),)), [('cpu', 'float32')], 2,
                       lambda calls, what: told.append(calls))
    # One build, three warm-ups, two plans.
    assert told == [0, 2, 3, 4, 5, 6]


def test_a_provider_that_fails_leaves_its_rows_blank(monkeypatch):
    real = bench_plan.Subject

    def failing(workload, provider, precision):
        if workload.population == 12:
            raise ProviderError('out of memory')
        return real(workload, provider, precision)
    monkeypatch.setattr(bench_plan, 'Subject', failing)
    group = Group(tuple(Case('population', value, replace(TINY, population=value))
                        for value in (12, 6)))
    blank, row = bench_plan.measure(group, [('cpu', 'float32')], 2)
    assert (blank['missing'], blank['p50_s']) == ('out of memory', None)
    assert (row['missing'], row['plans'], row['population']) == ('', 2, 6)


def test_versus_hands_over(monkeypatch, tmp_path):
    asked = []
    module = ModuleType('mbrl_ros.bench.versus')
    module.versus = lambda path, console: asked.append(path)
    monkeypatch.setitem(sys.modules, 'mbrl_ros.bench.versus', module)
    path = tmp_path / 'new' / 'versus.json'
    result = CliRunner().invoke(
        app, ['bench', 'plan', '--versus', 'mbrl-lib', '--json', str(path)])
    assert result.exit_code == 0, result.output
    assert asked == [path]
    assert path.parent.is_dir()


def test_wrong_use_is_refused():
    runner = CliRunner()
    other = runner.invoke(app, ['bench', 'plan', '--versus', 'something'])
    assert other.exit_code == 2
    assert 'mbrl-lib' in other.output
    both = runner.invoke(app, ['bench', 'plan', '--versus', 'mbrl-lib', '--quick'])
    assert both.exit_code == 2
    assert '--json only' in both.output
    missing = runner.invoke(app, ['bench', 'plan', '--provider', 'abacus'])
    assert "unknown name 'abacus'" in str(missing.exception)


def test_without_torch_it_says_what_to_install(monkeypatch):
    for name in ('plan', 'ceiling', 'workload', 'subject'):
        monkeypatch.delitem(sys.modules, f'mbrl_ros.bench.{name}')
    monkeypatch.setitem(sys.modules, 'torch', None)
    result = CliRunner().invoke(app, ['bench', 'plan'])
    assert isinstance(result.exception, MbrlError)
    assert "pip install '.[train]'" in str(result.exception)
