"""Derivatives of the ONNX operators that move numbers, repeat them, or multiply matrices."""

from collections.abc import Callable

import numpy as np

from mbrl_ros.runtime.autodiff.call import Call, Parts
from mbrl_ros.runtime.autodiff.tape import INT64, Value

END = np.iinfo(np.int64).max  # of an axis, whatever its size


def _matmul(call: Call) -> Parts:
    a, b = call.x
    ranks = [len(call.sizes(value)) for value in (a, b)]
    # A vector is a matrix of one row on the left, of one column on the right.
    row = a.unsqueeze(0) if ranks[0] == 1 else a
    column = b.unsqueeze(1) if ranks[1] == 1 else b
    d = call.d.unsqueeze(-1) if ranks[1] == 1 else call.d
    d = d.unsqueeze(-2) if ranks[0] == 1 else d
    whole = [*call.sizes(call.y), *[1] * ranks.count(1)]
    found = []
    for value, rank, part in ((a, ranks[0], d.op('MatMul', _turned(column, max(2, ranks[1])))),
                              (b, ranks[1], _turned(row, max(2, ranks[0])).op('MatMul', d))):
        batch = len(whole) - max(2, rank)  # axes that this input lacks
        repeated = [batch + axis for axis, size in enumerate(call.sizes(value)[:-2])
                    if size == 1 != whole[batch + axis]]
        found.append(part.sum(repeated, True).sum(range(batch), False).reshape_like(value))
    return found


def _turned(value: Value, rank: int) -> Value:
    if value.constant is not None:  # weights: turned once, not in every run
        return value.tape.array(np.ascontiguousarray(np.swapaxes(value.constant, -1, -2)))
    return value.op('Transpose', perm=[*range(rank - 2), rank - 1, rank - 2])


def _transpose(call: Call) -> Parts:
    rank = len(call.sizes(call.x[0]))
    perm = call.attribute('perm', list(reversed(range(rank))))
    return [call.d.op('Transpose', perm=[int(axis) for axis in np.argsort(perm)])]


def _expand(call: Call) -> Parts:
    return [call.unbroadcast(call.d, call.x[0])]


def _concat(call: Call) -> Parts:
    axis = call.axis()
    known = [call.sizes(x)[axis] for x in call.x]
    if None in known:
        parts = [x.op('Shape', start=axis, end=axis + 1, kind=INT64) for x in call.x]
        sizes = call.tape.make('Concat', parts, axis=0)[0]
    else:
        sizes = call.tape.ints(*(size or 0 for size in known))
    return call.tape.make('Split', [call.d, sizes], len(call.x), axis=axis)


def _split(call: Call) -> Parts:
    pieces = [call.found[name] if name in call.found else call.tape.value(name).zeros()
              for name in call.node.output]
    return [call.tape.make('Concat', pieces, axis=call.axis())[0]]


def _slice(call: Call) -> Parts:
    x, d = call.x[0], call.d
    starts, ends = call.ints(1, 'starts') or [], call.ints(2, 'ends') or []
    axes = call.ints(3, 'axes') or range(len(starts))
    steps = call.ints(4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if (start, step) != (0, 1) or end < END:
            size = call.size(x, axis)
            d = _put(d, list(range(size)[start:end:step]), axis % len(call.sizes(x)), size)
    return [d]


def _put(d: Value, positions: list[int], axis: int, size: int) -> Value:
    """Return zeros of `size` along an axis, but for `d` added at constant positions."""
    if positions == list(range(positions[0], positions[0] + len(positions))):
        return d.pad(positions[0], size - 1 - positions[-1], axis)
    padded, total = d.pad(0, 1, axis), None
    while any(place is not None for place in positions):
        source = [positions.index(place) if place in positions else len(positions)
                  for place in range(size)]
        part = padded.op('Gather', d.tape.ints(*source), axis=axis)
        total = total + part if total else part
        positions = [None if index in source else place  # type: ignore[misc]
                     for index, place in enumerate(positions)]
    return total or d


def _pad(call: Call) -> Parts:
    pads = call.ints(1) or []
    axes = call.ints(3) or list(range(len(pads) // 2))
    if min(pads) < 0 or call.attribute('mode', b'constant') != b'constant':
        call.refuse('it crops, or pads by what is not constant')
    ends = [-after if after else END for after in pads[len(axes):]]
    ints = call.tape.ints
    return [call.d.op('Slice', ints(*pads[:len(axes)]), ints(*ends), ints(*axes))]


def _gather(call: Call) -> Parts:
    x, index = call.x
    axis, rank = call.axis(), len(call.sizes(index))
    if rank > 1:
        call.refuse('its index has more than one axis')
    d = call.d if rank else call.d.unsqueeze(axis)
    if index.constant is not None:
        size = call.size(x, axis)
        return [_put(d, [int(place) % size for place in np.ravel(index.constant)], axis, size)]
    behind = len(call.sizes(x)) - 1 - axis
    places = index.op('Reshape', call.tape.ints(-1, *[1] * behind))
    return [_scatter(x.zeros(), places.op('Expand', d.op('Shape', kind=index.kind)), d, axis)]


def _scatter(onto: Value, places: Value, updates: Value, axis: int) -> Value:
    return onto.op('ScatterElements', places, updates, axis=axis, reduction='add')


def _gather_elements(call: Call) -> Parts:
    return [_scatter(call.x[0].zeros(), call.x[1], call.d, call.axis())]


def _scatter_elements(call: Call) -> Parts:
    if call.attribute('reduction', b'none') != b'add':
        call.refuse("it has a reduction other than 'add'")
    return [call.d, None, call.d.op('GatherElements', call.x[1], axis=call.axis())]


def _top_k(call: Call) -> Parts:
    places = call.tape.value(call.node.output[1])
    return [_scatter(call.x[0].zeros(), places, call.d, call.axis(-1))]


def _cumsum(call: Call) -> Parts:
    return [call.d.op('CumSum', call.x[1], exclusive=call.attribute('exclusive', 0),
                      reverse=1 - call.attribute('reverse', 0))]


_SHAPES: dict[str, Callable[[Call], Parts]] = dict.fromkeys(
    ('Reshape', 'Squeeze', 'Unsqueeze'), lambda call: [call.d.reshape_like(call.x[0])])

MOVES: dict[str, Callable[[Call], Parts]] = _SHAPES | {
    'MatMul': _matmul, 'Transpose': _transpose, 'Expand': _expand, 'Concat': _concat,
    'Split': _split, 'Slice': _slice, 'Pad': _pad, 'Gather': _gather,
    'GatherElements': _gather_elements, 'ScatterElements': _scatter_elements, 'TopK': _top_k,
    'CumSum': _cumsum,
}
