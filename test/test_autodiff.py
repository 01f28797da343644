"""Derivatives of ONNX graphs against central differences in float64, and against torch."""

from hypothesis import given, settings
from hypothesis import strategies as st
import ndonnx as ndx
import numpy as np
from onnx.reference import ReferenceEvaluator
import pytest
from spox import argument, build, Tensor
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.core.errors import ProviderError, SpecError
from mbrl_ros.runtime.autodiff import derivative, differentiate
from mbrl_ros.runtime.autodiff.rules import ELEMENTWISE, RULES
from mbrl_ros.runtime.ort import open_ort

STEP = 1e-6


def ints(*values):
    return op.const(np.array(values, np.int64))


def opened(model):
    try:
        return open_ort(model.SerializeToString(), 'CPUExecutionProvider')
    except ProviderError:  # it has some functions in float32 only
        return ReferenceEvaluator(model)


def run(model, outputs, feeds):
    return opened(model).run(outputs, feeds)


def build_graph(function, shapes):
    """Return y = function(x0, x1, ...) in float64; sizes may be names."""
    inputs = {f'x{i}': argument(Tensor(np.float64, shape)) for i, shape in enumerate(shapes)}
    return build(inputs, {'y': function(*inputs.values())})


def central_differences(model, of, seed, feeds, by):
    """Return the derivative of sum(seed * of) by one input, one number at a time."""
    session = opened(model)
    slope = np.zeros_like(feeds[by])
    for index in np.ndindex(slope.shape):
        sums = []
        for sign in (1.0, -1.0):
            moved = feeds[by].copy()
            moved[index] += sign * STEP
            sums.append(np.sum(seed * session.run([of], feeds | {by: moved})[0]))
        slope[index] = (sums[0] - sums[1]) / (2 * STEP)
    return slope


def check(model, feeds, of='y', order=2):
    """Compare derivatives, and the derivatives of those, each weighted with random numbers."""
    seed, names = f'seed{order}', [name for name in feeds if name.startswith('x')]
    weight = np.random.default_rng(0).normal(size=run(model, [of], feeds)[0].shape)
    slopes = differentiate(model, of, names, seed=seed)
    found = run(slopes, [derivative(of, by) for by in names], feeds | {seed: weight})
    for by, gradient in zip(names, found, strict=True):
        expected = central_differences(model, of, weight, feeds, by)
        assert gradient.shape == expected.shape
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6, err_msg=by)
        if order > 1:
            check(slopes, feeds | {seed: weight}, derivative(of, by), order - 1)


UNARY = {  # and where the function is smooth
    'identity': (-2, 2), 'neg': (-2, 2), 'abs': (0.1, 2), 'sqrt': (0.3, 3),
    'reciprocal': (0.3, 3), 'exp': (-2, 2), 'log': (0.3, 3), 'sin': (-3, 3),
    'cos': (-3, 3), 'tan': (-1.2, 1.2), 'asin': (-0.8, 0.8), 'acos': (-0.8, 0.8),
    'atan': (-3, 3), 'sinh': (-2, 2), 'cosh': (-2, 2), 'asinh': (-2, 2), 'acosh': (1.3, 3),
    'atanh': (-0.8, 0.8), 'tanh': (-2, 2), 'sigmoid': (-3, 3), 'softplus': (-3, 3),
    'relu': (0.1, 2), 'leaky_relu': (-2, -0.1), 'sign': (0.1, 2),
    'floor': (0.1, 0.9), 'ceil': (0.1, 0.9), 'round': (0.6, 1.4)}


@pytest.mark.parametrize('name', UNARY)
def test_functions_of_one_number(name):
    model = build_graph(getattr(op, name), [(3, 2)])
    check(model, {'x0': np.random.default_rng(0).uniform(*UNARY[name], (3, 2))})


BINARY = {'add': op.add, 'sub': op.sub, 'mul': op.mul, 'div': op.div, 'pow': op.pow,
          'max': lambda a, b: op.max([a, b]), 'min': lambda a, b: op.min([a, b]),
          'mod': lambda a, b: op.mod(a, b, fmod=1),
          'where': lambda a, b: op.where(op.less(a, b), a, b),
          'matmul': op.matmul}
SHAPES = [((2, 3), (2, 3)), ((2, 3), (3,)), ((), (2, 3)), ((2, 1), (4, 1, 3)), ((1, 3), (2, 1))]


@pytest.mark.parametrize('shapes', SHAPES, ids=str)
@pytest.mark.parametrize('name', sorted(BINARY.keys() - {'matmul'}))
def test_functions_of_two_numbers_and_their_broadcasting(name, shapes):
    rng = np.random.default_rng(0)
    feeds = {f'x{i}': rng.uniform(0.5, 3.0, shape) for i, shape in enumerate(shapes)}
    check(build_graph(BINARY[name], shapes), feeds)


@pytest.mark.parametrize('shapes', [
    ((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,)), ((5, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((1, 2, 3), (5, 3, 4)), ((5, 2, 3), (3,)),
    ((3,), (5, 3, 4)), ((2, 1, 2, 3), (5, 3, 1))], ids=str)
def test_matrix_products(shapes):
    rng = np.random.default_rng(0)
    check(build_graph(op.matmul, shapes), {f'x{i}': rng.normal(size=shape)
                                           for i, shape in enumerate(shapes)})


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_broadcast_of_a_symbolic_population(data):
    # P is a name in the graph and 3 when it runs; the other sizes are known.
    sizes = data.draw(st.lists(st.sampled_from(['P', 1, 2]), min_size=1, max_size=4))
    other = [data.draw(st.sampled_from([size, 1])) for size in sizes]
    other = other[data.draw(st.integers(0, len(other))):]
    model = build_graph(lambda a, b: op.mul(op.sin(a), op.add(b, a)), [tuple(sizes), tuple(other)])
    rng = np.random.default_rng(0)
    check(model, {name: rng.normal(size=[3 if size == 'P' else size for size in shape])
                  for name, shape in (('x0', sizes), ('x1', other))}, order=1)


REDUCTIONS = ['reduce_sum', 'reduce_mean', 'reduce_max', 'reduce_min']


@pytest.mark.parametrize('keepdims', [0, 1])
@pytest.mark.parametrize('axes', [None, (1,), (-1, 0)], ids=str)
@pytest.mark.parametrize('name', REDUCTIONS)
def test_reductions(name, axes, keepdims):
    model = build_graph(lambda x: getattr(op, name)(x, axes and ints(*axes), keepdims=keepdims),
                        [(2, 3, 2)])
    check(model, {'x0': np.random.default_rng(0).normal(size=(2, 3, 2))})


def split_in_three(x):
    first, _, last = op.split(x, ints(1, 2, 1), axis=1)  # the middle one is not used
    return op.mul(op.sin(first), last)


def sliced(starts, ends, axes, steps):
    return lambda x: op.sin(op.slice(x, ints(*starts), ints(*ends), ints(*axes), ints(*steps)))


MOVES = {
    'reshape': lambda x: op.sin(op.reshape(x, ints(3, -1))),
    'squeeze': lambda x: op.sin(op.squeeze(op.unsqueeze(x, ints(1, 3)), ints(3))),
    'transpose': lambda x: op.sin(op.transpose(x, perm=[1, 0])),
    'transpose of all': lambda x: op.sin(op.transpose(x)),
    'expand': lambda x: op.sin(op.expand(op.unsqueeze(x, ints(1)), ints(5, 1, 2, 1))),
    'concat': lambda x: op.sin(op.concat([x, op.mul(x, x)], axis=-1)),
    'split': split_in_three,
    'slice': sliced([1], [3], [1], [1]),
    'slice from the end': sliced([-3], [np.iinfo(np.int64).max], [-1], [1]),
    'slice in steps': sliced([0], [4], [1], [2]),
    'slice backwards': sliced([-1, 0], [-9, 2], [1, 0], [-1, 1]),
    'pad': lambda x: op.sin(op.pad(x, ints(1, 0, 2, 1))),
    'gather one': lambda x: op.sin(op.gather(x, op.const(np.int64(-1)), axis=1)),
    'gather some': lambda x: op.sin(op.gather(x, ints(3, 0), axis=1)),
    'gather again': lambda x: op.sin(op.gather(x, ints(2, 0, 2, 2), axis=-1)),
    'cumsum': lambda x: op.sin(op.cumsum(x, op.const(np.int64(1)))),
    'cumsum backwards': lambda x: op.sin(op.cumsum(x, op.const(np.int64(0)), exclusive=1,
                                                   reverse=1)),
    'gather elements': lambda x: op.sin(op.gather_elements(
        x, op.const(np.array([[0, 0, 3], [1, 2, 2], [0, 1, 3]])), axis=1)),
    'top k': lambda x: op.sin(op.top_k(x, ints(2), axis=1)[0]),
    'clip': lambda x: op.clip(op.mul(x, x), op.const(0.3), op.const(1.5)),
    'cast': lambda x: op.sin(op.cast(op.cast(x, to=np.float64), to=np.float64)),
    'power of an integer': lambda x: op.pow(x, op.const(np.int64(3))),
}


@pytest.mark.parametrize('name', MOVES)
def test_what_moves_numbers(name):
    check(build_graph(MOVES[name], [(3, 4)]), {'x0': np.random.default_rng(0).normal(size=(3, 4))})


def test_gather_by_an_input():
    model = build_graph(lambda x, i: op.sin(op.gather(x, op.cast(i, to=np.int64), axis=0)),
                        [(3, 'P'), (4,)])
    feeds = {'x0': np.random.default_rng(0).normal(size=(3, 2)), 'x1': np.array([2.0, 0, 2, 1])}
    first = differentiate(model, 'y', ['x0'])
    found, = run(first, [derivative('y', 'x0')], feeds)
    # Row 2 is taken twice.
    np.testing.assert_allclose(found, np.cos(feeds['x0']) * [[1], [1], [2]])
    second = differentiate(first, derivative('y', 'x0'), ['x0'])
    found, = run(second, [derivative(derivative('y', 'x0'), 'x0')], feeds)
    np.testing.assert_allclose(found, -np.sin(feeds['x0']) * [[1], [1], [2]])


def test_ties_share_and_corners_take_a_side():
    model = build_graph(lambda a, b: op.add(op.max([a, b]), op.relu(a)), [(2,), (2,)])
    found = run(differentiate(model, 'y', ['x0', 'x1']),
                [derivative('y', 'x0'), derivative('y', 'x1')],
                {'x0': np.array([0.0, 1.0]), 'x1': np.array([0.0, 2.0])})
    # At 0 both of max are largest, half each; relu has slope 0 there. At (1, 2) b is the largest.
    np.testing.assert_array_equal(found, [[0.5, 1.0], [0.5, 1.0]])


def test_an_input_that_is_not_used_has_derivative_zero():
    model = build_graph(lambda a, b: op.sin(a), [(2,), ('P', 3)])
    found, = run(differentiate(model, 'y', ['x1']), [derivative('y', 'x1')],
                 {'x0': np.ones(2), 'x1': np.ones((4, 3))})
    np.testing.assert_array_equal(found, np.zeros((4, 3)))


def test_what_has_no_rule_is_refused_by_its_name():
    model = build_graph(op.mish, [(2,)])
    with pytest.raises(SpecError, match=r"'Mish'.*no rule.*known: Abs, .*plan without gradients"):
        differentiate(model, 'y', ['x0'])
    indirect = build_graph(lambda x: op.gather(x, op.const(np.zeros((1, 1), np.int64))), [(2,)])
    with pytest.raises(SpecError, match=r"'Gather'.*more than one axis"):
        differentiate(indirect, 'y', ['x0'])


def test_whether_an_input_is_repeated_may_show_only_when_the_graph_runs():
    model = build_graph(lambda a, b: op.mul(op.sin(a), b), [('P', 2), (3, 3, 2)])
    for rows in (1, 3):
        rng = np.random.default_rng(rows)
        check(model, {'x0': rng.normal(size=(rows, 2)), 'x1': rng.normal(size=(3, 3, 2))},
              order=1)


COSTS = {  # as cost terms may write them, on the array API; on (P, 4) and (P, 4)
    'maximum': lambda xp, x, y: xp.maximum(x, y), 'minimum': lambda xp, x, y: xp.minimum(x, 0.2),
    'clip': lambda xp, x, y: xp.clip(x * y, -0.5, 0.5),
    'where': lambda xp, x, y: xp.where((x > y) & xp.isfinite(y), x * y, x),
    'logaddexp': lambda xp, x, y: xp.logaddexp(x, y),
    'remainder': lambda xp, x, y: xp.remainder(x, 2.0) * y,
    'powers': lambda xp, x, y: xp.abs(x)**1.5 + xp.square(y) + x**3,
    'max': lambda xp, x, y: xp.max(x * y, axis=-1), 'min': lambda xp, x, y: xp.min(x, axis=-1),
    'mean': lambda xp, x, y: xp.mean(x * y, axis=-1), 'std': lambda xp, x, y: xp.std(x, axis=-1),
    'stack': lambda xp, x, y: xp.stack([x, y], axis=0)**2,
    'take': lambda xp, x, y: xp.take(x, xp.asarray([0, 2, 2]), axis=-1)**2,
    'flip': lambda xp, x, y: xp.flip(x, axis=-1) * y,
    'differences': lambda xp, x, y: (x[..., 1:] - x[..., :-1])**2 * y[..., 2:3],
    'matmul': lambda xp, x, y: xp.matmul(x, xp.asarray(np.diag([1.0, 2.0, 3.0, 4.0]))) * y,
    'vecdot': lambda xp, x, y: xp.vecdot(x, y), 'log1p': lambda xp, x, y: xp.log1p(x * x),
    'as numbers': lambda xp, x, y: xp.astype(x > 0.0, xp.float64) * x * y,
}


@pytest.mark.parametrize('name', COSTS)
def test_costs_traced_from_the_array_api(name):
    inputs = [argument(Tensor(np.float64, ('P', 4))) for _ in range(2)]
    cost = COSTS[name](ndx, *map(ndx.asarray, inputs)).unwrap_spox()
    rng = np.random.default_rng(0)
    feeds = {'x0': rng.normal(size=(3, 4)), 'x1': rng.normal(size=(3, 4))}
    model = build(dict(zip(feeds, inputs, strict=True)), {'y': cost})
    np.testing.assert_allclose(run(model, ['y'], feeds)[0], COSTS[name](np, *feeds.values()),
                               rtol=1e-12)
    check(model, feeds, order=1)


def test_what_a_subgraph_takes_from_outside_is_not_forgotten():
    model = build_graph(lambda x: op.if_(
        op.greater(op.reduce_sum(x, keepdims=0), op.const(0.0)),
        then_branch=lambda: [op.mul(x, x)], else_branch=lambda: [op.neg(x)])[0], [(2,)])
    with pytest.raises(SpecError, match="'If'"):  # not: zero
        differentiate(model, 'y', ['x0'])


def test_every_rule_is_tested():
    seen = set()
    for function, shapes in [(getattr(op, name), [(3, 2)]) for name in UNARY] \
            + [(function, [(3, 2), (2, 2)][:2]) for function in BINARY.values()
               if function is op.matmul] \
            + [(function, [(2, 2), (2, 2)]) for function in BINARY.values()] \
            + [(getattr(op, name), [(2, 2)]) for name in REDUCTIONS] \
            + [(function, [(3, 4)]) for function in MOVES.values()]:
        seen |= {node.op_type for node in build_graph(function, shapes).graph.node}
    # What is left is made by the rules themselves: the second derivatives above differentiate it.
    assert ELEMENTWISE.keys() | RULES.keys() <= seen | {'ScatterElements'}
