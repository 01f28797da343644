"""The pieces of the comparison with mbrl-lib, without mbrl-lib."""

from contextlib import contextmanager
from io import StringIO
import json
from pathlib import Path
from types import SimpleNamespace

from fakes import metadata_of, save_artifact
import numpy as np
import pytest
from rich.console import Console
import torch

from mbrl_ros.bench import versus as versus_module
from mbrl_ros.bench import versus_gpu
from mbrl_ros.bench.ceiling import Ceiling
from mbrl_ros.bench.contestant import Contestant, plan_flop
from mbrl_ros.bench.footprint import controller_footprint, Footprint
from mbrl_ros.bench.loading import loading_times
from mbrl_ros.bench.overhead import tick_overhead_s
from mbrl_ros.bench.trained import CONFIG, random_motion
from mbrl_ros.bench.versus import compare_costs, ComparisonError, load_client, shares, speeds
from mbrl_ros.bench.versus_table import ROWS, verdict, versus_table
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.learning import export
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.runtime.providers import cuda

BUDGET = {'population': 20, 'particles': 5, 'horizon': 4, 'iterations': 2}
FIXED_NAMES = {
    'mbrl_lib_s', 'float32_s', 'bf16_s', 'ratio_float32', 'ratio_bf16', 'cost_difference_max',
    'ceiling_share_float32', 'tick_overhead_ms', 'compile_s', 'cached_load_s',
    'controller_rss_mb'}


def write_model(folder):
    """Write an untrained ensemble of 5 x 8 as training does; return its two files."""
    robot = load_robot('cartpole')
    ensemble = Ensemble(robot, 5, (8,), (-4.0, -1.0), torch.Generator().manual_seed(0))
    model, weights = folder / 'dynamics.onnx', folder / 'ensemble.npz'
    save_artifact(model, export.to_onnx(ensemble, 4, 1), metadata_of(robot, 5))
    np.savez(weights, **ensemble.arrays())
    return model, weights


class FakeLib:
    """Costs half a unit more than ours."""

    def __init__(self, model):
        self._ours = Contestant(model, BUDGET, 'cpu', 'float32')

    def info(self):
        return {'budget': BUDGET, 'versions': {'mbrl': '0.2.0'}}

    def plan(self, state, seed):
        return 0.1, np.zeros((BUDGET['horizon'], 1))

    def costs(self, state, actions, noise):
        return self._ours.costs(state, actions, noise) + 0.5


def test_flop_of_a_plan(tmp_path):
    path = tmp_path / 'weights.npz'
    np.savez(path, **{'weights.0': np.zeros((2, 3, 4)), 'weights.1': np.zeros((2, 4, 6)),
                      'biases.0': np.zeros((2, 1, 4))})
    # One evaluation: 2 x (3 x 4 + 4 x 6) = 72. A candidate: one evaluation a member at the first
    # step, 2, then 2 steps of 4 particles, 8. Times 10 candidates, 2 iterations.
    budget = {'population': 10, 'particles': 4, 'horizon': 3, 'iterations': 2}
    assert plan_flop(path, budget) == 72 * (2 + 8) * 10 * 2


def test_random_motion_is_a_function_of_its_seed():
    robot = load_robot('cartpole')
    one, same, other = (random_motion(robot, seed, 3, 10) for seed in (1, 1, 2))
    assert one.hash == same.hash != other.hash
    assert one.num_transitions == 30
    assert np.abs(one.transitions()[1]).max() <= robot.action_max[0]
    # Each episode starts again from hanging, where the std of positions and velocities is 0.1.
    assert max(np.abs(episode.states[0]).max() for episode in one.episodes) < 0.5


def test_the_network_is_that_of_mbrl_lib():
    assert (CONFIG.members, CONFIG.hidden_units, CONFIG.activation) == (5, (200,) * 4, 'silu')


def test_refused_without_a_checkout(tmp_path):
    with pytest.raises(ComparisonError, match=r'client.py: .* needs a checkout'):
        load_client(tmp_path)


def test_the_client_of_this_checkout_is_found():
    assert load_client().MBRL == 'mbrl==0.2.0'


def test_speeds_are_medians_and_their_ratios():
    found = speeds({'mbrl_lib': np.array([3.0, 9.0, 4.0]), 'float32': np.array([0.5, 0.1, 7.0])})
    assert (found['mbrl_lib_s'], found['float32_s'], found['ratio_float32']) == (4.0, 0.5, 8.0)
    assert found['bf16_s'] is found['ratio_bf16'] is None


def test_shares_of_the_higher_ceiling():
    def limits(float32):
        return [Ceiling('cpu', 'float32', float32), Ceiling('cpu', 'bf16', None),
                Ceiling('cuda', 'float32', 1e5)]
    results = {'mbrl_lib_s': 4.0, 'float32_s': 2.0, 'bf16_s': None}
    found = shares(results, 150 * 10**9, limits(90.0), limits(100.0))
    # 75 GFLOP/s of 100; at the ceiling a plan would take 1.5 s.
    assert found['ceiling_share_float32'] == pytest.approx(0.75)
    assert found['possible_ratio_float32'] == pytest.approx(4.0 / 1.5)
    assert found['ceiling_float32_gflops'] == [90.0, 100.0]
    assert found['ceiling_share_bf16'] is None


def test_costs_are_compared_under_the_same_noise(tmp_path):
    model, _ = write_model(tmp_path)
    ours = {'float32': Contestant(model, BUDGET, 'cpu', 'float32')}
    found = compare_costs(FakeLib(model), ours, BUDGET)
    assert found['cost_difference_max'] == pytest.approx(0.5, abs=1e-4)
    assert found['rank_correlation_bf16'] is None
    found = compare_costs(FakeLib(model), ours | {'bf16': ours['float32']}, BUDGET)
    assert found['cost_difference_bf16_max'] == pytest.approx(0.5, abs=1e-4)
    assert found['rank_correlation_bf16'] == pytest.approx(1.0)
    ours['float32'].close()


def test_plans_are_made_from_a_cold_start(tmp_path):
    model, _ = write_model(tmp_path)
    one = Contestant(model, BUDGET, 'cpu', 'float32')
    counts = []
    costs = one.rollout.costs
    one.rollout.costs = lambda *args: counts.append(len(args[1])) or costs(*args)
    for _ in range(2):
        one.plan(np.zeros(4))
    assert counts == [20, 20, 20, 20]
    one.close()


def test_a_gpu_is_compared_at_the_published_budget(tmp_path, monkeypatch):
    # The provider cpu stands in for cuda: the same calls, on a budget that takes no time.
    monkeypatch.setattr(versus_gpu, 'BUDGET', BUDGET)
    model, weights = write_model(tmp_path)
    asked = []

    class Lib(FakeLib):
        def plan(self, state, seed, **budget):
            asked.append(budget)
            return super().plan(state, seed)

    @contextmanager
    def start(python, weights_path, threads, device):
        asked.append(device)
        yield Lib(model)
    client = SimpleNamespace(MbrlLib=start)
    found = versus_gpu.versus_on_gpu(client, Path(), model, weights, 'cpu', turns=3)
    assert asked == ['cpu', *[BUDGET] * (3 + versus_gpu.WARM_UPS)]
    assert found['cpu_note'] == ''
    assert found['ratio_cpu_float32'] == pytest.approx(
        found['mbrl_lib_cpu_s'] / found['cpu_float32_s'])


@pytest.mark.skipif(not cuda.problem(), reason='this machine has CUDA')
def test_without_a_gpu_its_numbers_are_blank():
    found = versus_gpu.versus_on_gpu(None, Path(), Path(), Path())
    assert found.pop('cuda_note') == cuda.problem()
    assert set(found.values()) == {None}
    assert {'mbrl_lib_cuda_s', 'cuda_float16_s', 'ratio_cuda_tf32'} <= set(found)


def test_loading_times_of_fresh_processes():
    found = loading_times(find_model('cartpole'), 'cartpole', 'cartpole_swingup', 5, 5)
    assert set(found) == {'compile_s', 'cached_load_s', 'import_s'}
    assert min(found.values()) > 0.0


def test_overhead_is_what_rollouts_leave():
    found = tick_overhead_s(ticks=5)
    assert found.shape == (5,)
    assert (found > 0.0).all()


def test_footprint_of_the_real_controller():
    pytest.importorskip('rclpy')
    found = controller_footprint()
    assert 20.0 < found.rss_mb < 400.0
    assert found.torch is False
    assert found.note == ''


def test_no_footprint_without_ros(monkeypatch):
    monkeypatch.setattr('mbrl_ros.bench.footprint.find_spec', lambda name: None)
    assert controller_footprint() == Footprint(note='rclpy is not installed')


@pytest.mark.parametrize(('value', 'relation', 'bound', 'expected'), [
    (20.0, '>=', 20.0, 'met'), (19.9, '>=', 20.0, 'missed'), (1.0, '<=', 1.0, 'met'),
    (1.1, '<=', 1.0, 'missed'), (None, '>=', 1.0, ''), (1.0, '', None, '')])
def test_verdicts(value, relation, bound, expected):
    assert expected in verdict(value, relation, bound)
    assert bool(verdict(value, relation, bound)) == bool(expected)


def test_a_busy_machine_is_named():
    keys = {key: None for _, key, *_ in ROWS} | {'mbrl_lib_s': 1.0, 'mbrl_lib_cuda_s': None}
    results = keys | {
        'machine': {'processor': 'P', 'cores': 2}, 'budget': BUDGET, 'plan_gflop': 1.0,
        'mbrl_lib': {'versions': {'mbrl': '0.2.0'}}, 'ceiling_float32_gflops': [1.0, 1.0]}
    quiet, busy = ({'times_s': {'mbrl_lib': times, 'float32': [1.0, 1.0]}}
                   for times in ([2.0, 2.9], [2.0, 6.0]))
    assert 'busy' not in versus_table(results | quiet).caption
    assert 'busy: turns differ by a factor of 3.0' in versus_table(results | busy).caption


def test_the_numbers_have_their_names(tmp_path, monkeypatch):
    files = write_model(tmp_path)

    @contextmanager
    def start(python, weights, threads, device='cpu'):
        yield FakeLib(files[0])
    patch = {'load_client': lambda: SimpleNamespace(environment=lambda folder, log: folder,
                                                    MbrlLib=start),
             'train_on_random_motion': lambda robot, seed, folder: files,
             'ceilings': lambda: [Ceiling('cpu', 'float32', 100.0), Ceiling('cpu', 'bf16', None)],
             'tick_overhead_s': lambda: np.array([2e-3]),
             'loading_times': lambda *args: {'compile_s': 1.0, 'cached_load_s': 0.1,
                                             'import_s': 0.3},
             'controller_footprint': lambda: Footprint(100.0, 2.0, False)}
    for name, value in patch.items():
        monkeypatch.setattr(versus_module, name, value)
    path, printed = tmp_path / 'versus.json', StringIO()
    results = versus_module.versus(path, Console(file=printed, width=140))
    assert json.loads(path.read_text()) == results
    assert FIXED_NAMES - set(results) == set()
    assert results['tick_overhead_ms'] == pytest.approx(2.0)
    assert (results['bf16_s'] is None) == bool(results['bf16_note'])
    assert (results['cuda_float32_s'] is None) == bool(results['cuda_note'])
    for text in ('20 x 5 x 4 x 2', '2.00 ms', 'missed', 'met'):
        assert text in printed.getvalue()
