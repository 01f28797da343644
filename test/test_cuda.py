"""The CUDA provider: its binding logic on the CPU, and on a GPU that it computes the same."""

from concurrent.futures import ThreadPoolExecutor
from threading import current_thread

from fakes import artifact_of, cart, cart_model, cart_task, rolls, WAYS
import numpy as np
import pytest

from mbrl_ros.runtime.compile import compile_rollout
from mbrl_ros.runtime.ort import open_ort
from mbrl_ros.runtime.providers import cuda
from mbrl_ros.runtime.rollout import Rollout

HAS_CUDA = not cuda.problem()


def feeds_of(rollout, rng, population):
    actions = rng.uniform(-2, 2, (population, 4, 1)).astype(np.float32)
    return rollout._feeds(rng.normal(size=2), actions, rollout.draw(rng))


def on_cpu(precision='float32', propagation='ts_infinity'):
    """Return the graph for a GPU in a session on the CPU, and a rollout to draw numbers with."""
    robot, task = cart(), cart_task()
    model = artifact_of(cart_model(std=0.5), robot, 2)
    graph = compile_rollout(model, robot, task, rolls(4, propagation), cuda.form(precision))
    return (open_ort(graph.SerializeToString(), 'CPUExecutionProvider'),
            Rollout(model, robot, task, rolls(4, propagation)))


@pytest.mark.parametrize(('propagation', 'settings'), WAYS, ids=str)
def test_what_a_gpu_is_given_can_be_bound(propagation, settings):
    robot, task, config = cart(), cart_task(), rolls(4, propagation, **settings)
    model = artifact_of(cart_model(std=0.5, disagreement=0.6), robot, 2)
    graph = compile_rollout(model, robot, task, config, cuda.form('float32'))
    assert {node.op_type for node in graph.graph.node} & {'If', 'Loop', 'Scan', 'Shape'} == set()
    session = open_ort(graph.SerializeToString(), 'CPUExecutionProvider')
    rollout = Rollout(model, robot, task, config)
    bound, rng = cuda.BoundSession(lambda: session, 'cpu'), np.random.default_rng(0)
    names = [output.name for output in session.get_outputs()]
    for population in (7, 1, 7):
        feeds = feeds_of(rollout, rng, population)
        for found, expected in zip(bound.run(names, feeds), session.run(names, feeds),
                                   strict=True):
            np.testing.assert_array_equal(found, expected)
    rollout.close()


@pytest.mark.parametrize('propagation', ['ts_infinity', 'ts1'])
@pytest.mark.parametrize('precision', cuda.PRECISIONS)
def test_bound_tensors_hold_what_was_given_last(precision, propagation):
    session, rollout = on_cpu(precision, propagation)
    bound, rng = cuda.BoundSession(lambda: session, 'cpu'), np.random.default_rng(0)
    # The populations of a plan and of its prediction in turns, each with new numbers.
    for population in (7, 1, 7, 1, 3, 7):
        feeds = feeds_of(rollout, rng, population)
        outputs = ['states', 'cost', 'terms']
        for found, expected in zip(bound.run(outputs, feeds), session.run(outputs, feeds),
                                   strict=True):
            np.testing.assert_array_equal(found, expected)
    rollout.close()


def test_results_are_the_callers_to_keep():
    session, rollout = on_cpu()
    bound, rng = cuda.BoundSession(lambda: session, 'cpu'), np.random.default_rng(0)
    first = bound.run(['cost'], feeds_of(rollout, rng, 7))[0]
    kept = first.copy()
    second = bound.run(['cost'], feeds_of(rollout, rng, 7))[0]
    assert (first != second).any()
    np.testing.assert_array_equal(first, kept)
    rollout.close()


def test_all_threads_share_one_that_runs():
    session, rollout = on_cpu()
    threads = set()

    class Watched:
        def __getattr__(self, name):
            threads.add(current_thread().name)
            return getattr(session, name)
    bound = cuda.BoundSession(Watched, 'cpu')
    feeds = [feeds_of(rollout, np.random.default_rng(seed), 7) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda given: bound.run(['cost'], given)[0], feeds))
    for cost, given in zip(found, feeds, strict=True):
        np.testing.assert_array_equal(cost, session.run(['cost'], given)[0])
    assert threads == {'cuda_0'}
    rollout.close()


def test_a_driver_without_a_gpu_is_a_problem(monkeypatch):
    monkeypatch.setattr(cuda, 'versions', lambda: ('1.31', [cuda.NAME]))

    def no_driver(name):
        raise OSError(f'{name}: cannot open shared object file')
    monkeypatch.setattr(cuda.ctypes, 'CDLL', no_driver)
    assert 'no NVIDIA driver (libcuda.so.1: cannot open' in cuda.problem()

    class Driver:
        @staticmethod
        def cuInit(flags):
            return 100
    monkeypatch.setattr(cuda.ctypes, 'CDLL', lambda name: Driver)
    assert 'finds no GPU (CUDA error 100)' in cuda.problem()


@pytest.mark.skipif(not HAS_CUDA, reason='no CUDA in this ONNX Runtime')
@pytest.mark.parametrize(('propagation', 'settings'), [('ts_infinity', {}), ('ts1', {}), *WAYS],
                         ids=str)
@pytest.mark.parametrize(('precision', 'tolerance'), [
    ('float32', 1e-4), ('tf32', 2e-2), ('float16', 2e-2)])
def test_a_gpu_computes_what_the_cpu_does(precision, tolerance, propagation, settings):
    if precision != 'float32' and 'max_disagreement' in settings:
        pytest.skip('a particle at its limit may end here and go on there')
    robot, task = cart(), cart_task()
    model = artifact_of(cart_model(std=0.5, disagreement=0.6 if settings else 0.0), robot, 2)
    config = rolls(4, propagation, **settings)
    ours = Rollout(model, robot, task, config)
    other = Rollout(model, robot, task, config, 'cuda', precision)
    rng = np.random.default_rng(0)
    for population in (40, 1, 40):
        actions, draw = rng.uniform(-2, 2, (population, 4, 1)), ours.draw(rng)
        state = rng.normal(size=2)
        np.testing.assert_allclose(other.costs(state, actions, draw),
                                   ours.costs(state, actions, draw),
                                   rtol=tolerance, atol=tolerance)
    ours.close()
    other.close()
