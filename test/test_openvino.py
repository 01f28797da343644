"""The provider openvino: the same function as the provider cpu, and what bf16 does to it."""

from concurrent.futures import ThreadPoolExecutor
import importlib.util
import subprocess
import sys

from fakes import artifact_of, cart, cart_model, cart_task, linear_model, rolls, WAYS
import numpy as np
import onnx
import pytest
from scipy.stats import spearmanr
import torch

from mbrl_ros.core.errors import ProviderError
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.learning import export
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.providers import openvino as provider
from mbrl_ros.runtime.rollout import Rollout


@pytest.fixture(scope='module')
def robot():
    return load_robot('cartpole')


@pytest.fixture
def task(robot):
    return load_task('cartpole_swingup', robot).model_copy(update={'horizon': 20})


@pytest.fixture
def core():
    if provider.problem():
        pytest.skip('OpenVINO is not installed')
    return provider._import().Core()  # as the provider does: without its telemetry


@pytest.fixture
def bf16(core):
    if 'BF16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        pytest.skip('this processor has no bf16 instructions')


def random_model(robot, centre=0.0):
    ensemble = Ensemble(robot, 5, (64, 64), (-6.0, -2.0), torch.Generator().manual_seed(0))
    ensemble.target_std.fill_(0.1)
    ensemble.input_mean[0] = centre
    return artifact_of(export.to_onnx(ensemble, 4, 1), robot, 5)


def both(model, robot, task, precision='float32', propagation='ts_infinity', particles=10):
    return [Rollout(model, robot, task, rolls(particles, propagation), name, kind)
            for name, kind in (('cpu', 'float32'), ('openvino', precision))]


def candidates(population, horizon, seed=0):
    return np.random.default_rng(seed).uniform(-3.0, 3.0, (population, horizon, 1))


START = np.array([0.5, 2.0, 1.0, -4.0])


@pytest.mark.usefixtures('core')
@pytest.mark.parametrize(('propagation', 'settings'), WAYS, ids=str)
def test_float32_is_that_function_with_every_scheme_and_doubt(propagation, settings):
    given = artifact_of(cart_model(std=0.5, disagreement=0.6), cart(), 2), cart(), cart_task()
    one, other = (Rollout(*given, rolls(6, propagation, **settings), name, threads=1)
                  for name in ('cpu', 'openvino'))
    draw = one.draw(np.random.default_rng(0))
    actions = np.random.default_rng(1).uniform(-2.0, 2.0, (9, 4, 1))
    np.testing.assert_allclose(other.costs(START[:2], actions, draw),
                               one.costs(START[:2], actions, draw), rtol=1e-5, atol=1e-4)
    one.close()
    other.close()


@pytest.mark.usefixtures('core')
@pytest.mark.parametrize('propagation', ['ts_infinity', 'ts1'])
@pytest.mark.parametrize('particles', [5, 10])
def test_float32_is_the_function_of_the_cpu_provider(robot, task, propagation, particles):
    rollouts = both(random_model(robot), robot, task, 'float32', propagation, particles)
    draw = rollouts[0].draw(np.random.default_rng(0))
    # 41 candidates are two tiles of unlike sizes; one size after the other compiles anew.
    for population in (41, 1, 8, 41):
        actions = candidates(population, 20, population)
        one, other = (rollout.costs(START, actions, draw) for rollout in rollouts)
        np.testing.assert_allclose(other, one, atol=1e-4)
    one, other = (rollout.predict(START, candidates(1, 20)[0], draw) for rollout in rollouts)
    np.testing.assert_allclose(other.states, one.states, atol=1e-4)
    np.testing.assert_allclose(other.terms, one.terms, atol=1e-4)
    for rollout in rollouts:
        rollout.close()


@pytest.mark.usefixtures('bf16')
@pytest.mark.parametrize('propagation', ['ts_infinity', 'ts1'])
def test_bf16_ranks_candidates_as_float32_does(robot, task, propagation):
    rollouts = both(artifact.load(find_model('cartpole'), robot), robot, task, 'bf16', propagation,
                    5)
    for seed, state in enumerate((np.zeros(4), START)):
        draw = rollouts[0].draw(np.random.default_rng(seed))
        actions = candidates(256, 20, seed)
        one, other = (rollout.costs(state, actions, draw) for rollout in rollouts)
        # Measured over 12 draws on one processor: at least 0.99995.
        assert spearmanr(one, other)[0] > 0.999
    for rollout in rollouts:
        rollout.close()


@pytest.mark.usefixtures('bf16')
def test_bf16_does_not_round_costs(robot, task):
    rollouts = both(random_model(robot), robot, task, 'bf16')
    draw = rollouts[0].draw(np.random.default_rng(0))
    one, other = (rollout.costs(START, candidates(64, 20), draw) for rollout in rollouts)
    # Costs of 8 to 16 in bf16 would be multiples of 1/16.
    assert len(np.unique(other)) == 64
    np.testing.assert_allclose(other, one, atol=0.01)  # measured: 0.002
    for rollout in rollouts:
        rollout.close()


@pytest.mark.usefixtures('bf16')
def test_bf16_does_not_round_a_state_far_from_zero(robot, task):
    # Near 1000 bf16 has steps of 4, the model steps of 0.1.
    far = START + np.array([1000.0, 1000.0, 0.0, 0.0])
    rollouts = both(random_model(robot, centre=1000.0), robot, task, 'bf16')
    draw = rollouts[0].draw(np.random.default_rng(0))
    one, other = (rollout.predict(far, candidates(1, 20)[0], draw).states for rollout in rollouts)
    # Measured: 0.001, as near zero; from features in bf16 0.09.
    np.testing.assert_allclose(other, one, atol=0.005)
    for rollout in rollouts:
        rollout.close()


@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_tiles_of_several_threads_are_those_of_one(robot, task, precision, request):
    request.getfixturevalue('core' if precision == 'float32' else 'bf16')
    rollout = Rollout(random_model(robot), robot, task, rolls(10), provider='openvino',
                      precision=precision, threads=1)
    draw = rollout.draw(np.random.default_rng(0))
    tiles = [candidates(16, 20, seed) for seed in range(24)]
    expected = [rollout.costs(START, tile, draw) for tile in tiles]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda tile: rollout.costs(START, tile, draw), tiles))
    # What a run returned is the caller's: later runs left it alone.
    np.testing.assert_array_equal(found, expected)
    rollout.close()


# A state that leaves the range of float32 (1e30 a step, squared) or is no number from the start.
@pytest.mark.parametrize('gain', [1e30, np.nan])
@pytest.mark.parametrize('signal', ['position', 'velocity', 'force'])
@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_a_diverging_candidate_has_no_finite_cost(gain, signal, precision, request):
    request.getfixturevalue('core' if precision == 'float32' else 'bf16')
    model = linear_model([[[gain, 0.0], [0.0, 1.0]]] * 2, [[[1.0], [0.0]]] * 2, [[0.0, 0.0]] * 2,
                         [[0.0, 0.0]] * 2)
    task = cart_task(goal=[], cost=[{'term': 'squared', 'params': {'signal': signal}}])
    rollout = Rollout(artifact_of(model, cart(), 2), cart(), task, rolls(2), provider='openvino',
                      precision=precision)
    draw = rollout.draw(np.random.default_rng(0))
    cost = rollout.costs(np.zeros(2), np.full((3, 4, 1), 1.0), draw)
    assert not np.isfinite(cost).any()
    rollout.close()


def test_small_numbers_of_the_caller_stay_what_they_are(core, robot, task):
    rollout = Rollout(random_model(robot), robot, task, rolls(5), provider='openvino')
    rollout.costs(np.zeros(4), candidates(8, 20), rollout.draw(np.random.default_rng(0)))
    # 1e-40 is a subnormal of float32: flushed to zero where OpenVINO leaves its mode behind.
    assert (np.full(4, 1e-40, np.float32) * np.float32(0.5)).all()
    rollout.close()


def test_without_the_package_it_says_how_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ProviderError, match=r"'openvino': .*pip install openvino"):
        Rollout(artifact_of(cart_model(), cart(), 2), cart(), cart_task(), rolls(2),
                provider='openvino')


def test_without_the_instructions_bf16_is_refused(monkeypatch):
    openvino = pytest.importorskip('openvino')

    class Old(openvino.Core):
        def get_property(self, device, name):
            return ['FP32', 'INT8'] if name == 'OPTIMIZATION_CAPABILITIES' else 'Old 1000'
    monkeypatch.setattr(openvino, 'Core', Old)
    arguments = artifact_of(cart_model(), cart(), 2), cart(), cart_task(), rolls(2)
    with pytest.raises(ProviderError, match=r'Old 1000 has FP32, INT8.* precision to float32'):
        Rollout(*arguments, provider='openvino', precision='bf16')
    Rollout(*arguments, provider='openvino').close()


@pytest.mark.usefixtures('core')
def test_a_mean_in_float64_is_right():
    helper = onnx.helper
    nodes = [helper.make_node('ReduceSum', ['actions', 'axis'], ['sum'], keepdims=0),
             helper.make_node('Cast', ['sum'], ['wide'], to=onnx.TensorProto.DOUBLE),
             helper.make_node('Constant', [], ['count'], value=onnx.numpy_helper.from_array(
                 np.float64(5.0).reshape(()))),
             helper.make_node('Div', ['wide', 'count'], ['mean']),
             helper.make_node('Cast', ['mean'], ['cost'], to=onnx.TensorProto.FLOAT)]
    graph = helper.make_graph(
        nodes, 'mean', [helper.make_tensor_value_info('actions', 1, ['P', 5, 8])],
        [helper.make_tensor_value_info('cost', 1, ['P', 8])],
        [onnx.numpy_helper.from_array(np.array([1]), 'axis')])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 21)], ir_version=10)
    actions = np.random.default_rng(0).normal(size=(15, 5, 8)).astype(np.float32)
    session = provider.open_session(model.SerializeToString(), 'float32')
    np.testing.assert_allclose(session.run(['cost'], {'actions': actions})[0],
                               actions.mean(axis=1), atol=1e-6)


@pytest.mark.usefixtures('core')
def test_a_graph_it_cannot_read_is_refused():
    node = onnx.helper.make_node('NoSuchOperator', ['x'], ['y'])
    value = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in 'xy']
    model = onnx.helper.make_model(onnx.helper.make_graph([node], 'g', value[:1], value[1:]))
    with pytest.raises(ProviderError, match='OpenVINO did not start'):
        provider.open_session(model.SerializeToString(), 'float32')


@pytest.mark.usefixtures('core')
def test_nothing_is_imported_early_and_nothing_is_reported():
    code = """
import sys
from mbrl_ros.runtime.providers import openvino as provider
assert provider.problem() == '' and 'openvino' not in sys.modules
provider._import()
assert sys.modules['openvino_telemetry'] is None
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
