"""
Derivatives of the ONNX operators: what each adds to those by its inputs, given that by its output.

An element-wise rule takes the derivative by the output `d`, the output `y` and the inputs; sums
over broadcast axes are not its business. The other rules take a `Call`. None: no derivative.
"""

from collections.abc import Callable
from functools import partial, reduce
import math
from operator import add

from mbrl_ros.runtime.autodiff.call import BOOL, Call, Parts
from mbrl_ros.runtime.autodiff.moves import MOVES
from mbrl_ros.runtime.autodiff.tape import Value


def _when(op: str, one: Value, other: Value | float) -> Value:
    return one.op(op, other, kind=BOOL)


def _power(d: Value, y: Value, base: Value, exponent: Value) -> Parts:
    power = exponent.cast(base.kind)  # may be an integer
    by_base = d * power * base.op('Pow', power - 1.0)
    # x^0 has no slope, not even at zero, where x^-1 is infinite.
    return (by_base.where(power.cast(BOOL)), d * y * base.op('Log'))


def _extreme(d: Value, y: Value, *inputs: Value) -> Parts:
    ties = [_when('Equal', x, y).cast(d.kind) for x in inputs]
    count = reduce(add, ties)
    return [d * tie / count for tie in ties]


def _clip(d: Value, y: Value, x: Value, low: Value | None = None,
          high: Value | None = None) -> Parts:
    return (d.where(_when('Equal', x, y)), low and d.where(_when('Less', x, low)),
            high and d.where(_when('Greater', x, high)))


_FLAT: dict[str, Callable[..., Parts]] = dict.fromkeys(
    ('Sign', 'Floor', 'Ceil', 'Round'), lambda d, y, x: (None,))

ELEMENTWISE: dict[str, Callable[..., Parts]] = _FLAT | {
    'Identity': lambda d, y, x: (d,),
    'Cast': lambda d, y, x: (d.cast(x.kind),),
    'Neg': lambda d, y, x: (-d,),
    'Add': lambda d, y, a, b: (d, d),
    'Sub': lambda d, y, a, b: (d, -d),
    'Mul': lambda d, y, a, b: (d * b, d * a),
    'Div': lambda d, y, a, b: (d / b, -(d * y / b)),
    'Mod': lambda d, y, a, b: (d, d * ((y - a) / b)),
    'Pow': _power,
    'Min': _extreme,
    'Max': _extreme,
    'Clip': _clip,
    'Where': lambda d, y, c, a, b: (None, d.where(c), d.where(c.op('Not'))),
    'Abs': lambda d, y, x: (d * x.op('Sign'),),
    'Sqrt': lambda d, y, x: (d * 0.5 / y,),
    'Reciprocal': lambda d, y, x: (-(d * y * y),),
    'Exp': lambda d, y, x: (d * y,),
    'Log': lambda d, y, x: (d / x,),
    'Sin': lambda d, y, x: (d * x.op('Cos'),),
    'Cos': lambda d, y, x: (-(d * x.op('Sin')),),
    'Tan': lambda d, y, x: (d * (y * y + 1.0),),
    'Asin': lambda d, y, x: (d / (1.0 - x * x).op('Sqrt'),),
    'Acos': lambda d, y, x: (-(d / (1.0 - x * x).op('Sqrt')),),
    'Atan': lambda d, y, x: (d / (x * x + 1.0),),
    'Sinh': lambda d, y, x: (d * x.op('Cosh'),),
    'Cosh': lambda d, y, x: (d * x.op('Sinh'),),
    'Asinh': lambda d, y, x: (d / (x * x + 1.0).op('Sqrt'),),
    'Acosh': lambda d, y, x: (d / (x * x - 1.0).op('Sqrt'),),
    'Atanh': lambda d, y, x: (d / (1.0 - x * x),),
    'Tanh': lambda d, y, x: (d * (1.0 - y * y),),
    'Sigmoid': lambda d, y, x: (d * (y * (1.0 - y)),),
    'Softplus': lambda d, y, x: (d * x.op('Sigmoid'),),
    'Relu': lambda d, y, x: (d.where(_when('Greater', x, 0.0)),),
}


def _leaky_relu(call: Call) -> Parts:
    rising = _when('Greater', call.x[0], 0.0)
    slope = call.attribute('alpha', 0.01)
    return [rising.op('Where', call.d, call.d * slope, kind=call.d.kind)]


def _reduction(rule: Callable[..., Value], call: Call) -> Parts:
    x = call.x[0]
    rank = len(call.sizes(x))
    axes = [axis % rank for axis in call.ints(1, 'axes') or []]
    if not axes and not call.attribute('noop_with_empty_axes', 0):
        axes = list(range(rank))
    d, y = call.d, call.y
    if not call.attribute('keepdims', 1):
        d, y = (value.op('Unsqueeze', call.tape.ints(*axes)) for value in (d, y))
    return [rule(call, axes, d, y, x)]


def _mean(call: Call, axes: list[int], d: Value, y: Value, x: Value) -> Value:
    count = math.prod(call.size(x, axis) for axis in axes)
    return (d / float(count)).op('Expand', x.shape())


def _peak(call: Call, axes: list[int], d: Value, y: Value, x: Value) -> Value:
    ties = _when('Equal', x, y).cast(d.kind)
    return d * ties / ties.sum(axes, True)


_REDUCTIONS: dict[str, Callable[..., Value]] = {
    'ReduceSum': lambda call, axes, d, y, x: d.op('Expand', x.shape()),
    'ReduceMean': _mean,
    'ReduceMax': _peak,
    'ReduceMin': _peak,
}

RULES: dict[str, Callable[[Call], Parts]] = MOVES | {'LeakyRelu': _leaky_relu} | {
    op: partial(_reduction, rule) for op, rule in _REDUCTIONS.items()}


def parts(call: Call) -> Parts:
    """
    Return what a node adds to the derivatives by its inputs.

    Raises
    ------
    SpecError
        If there is no rule for it, or the rule needs a size that is not known.

    """
    op = call.node.op_type
    if op in ELEMENTWISE:
        found = ELEMENTWISE[op](call.d, call.y, *call.x)
        return [part and call.unbroadcast(part, x)
                for part, x in zip(found, call.x, strict=False)]
    if op in RULES:
        return RULES[op](call)
    call.refuse('compile the horizon unrolled' if op == 'Loop' else
                'there is no rule for it. Write the cost, or the model, with others; known: '
                f'{", ".join(sorted(ELEMENTWISE | RULES))}')
    return []
