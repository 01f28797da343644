"""Small pieces that rollout graphs are built from."""

from collections.abc import Callable, Sequence
from typing import Any
import warnings

import numpy as np
import onnx
from onnx.utils import Extractor
from spox import inline, Var
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.providers import Form
from mbrl_ros.runtime.trunk import halve, split_members

# So little that float32 adds it to nothing but zeros.
SMALLEST_SQUARE = 1e-30

# One step: states (E, N, S), actions (E, N, A) to mean and std of the next states (E, N, S), and
# heads (E, N).
Step = Callable[[Var, Var], dict[str, Var]]


def make_step(artifact: Artifact, form: Form, heads: Sequence[str] = ()) -> Step:
    """Return the dynamics in the wanted form, as a function to build graphs with."""
    # Heads that are of no use would be inlined at every step.
    model = Extractor(artifact.model).extract_model(['observation', 'action'],
                                                    ['mean', 'std', *heads])
    if form.trunk == 'float16':
        model = halve(model)
    if form.split_members:
        model = split_members(model)
    function = inline(model)

    def step(state: Var, action: Var) -> dict[str, Var]:
        return dict(function(observation=state, action=action))
    return step


def walk(advance: Callable[..., list[Var]], current: Var, given: Sequence[Var], steps: int,
         shape: tuple[int, ...], *, loop: bool) -> list[Var]:
    """
    Go `steps` steps, each taking a row of what is given.

    Parameters
    ----------
    advance : callable
        A state and a row of each of `given` to the next state and whatever else there is to say.
    current : Var
        Where to start.
    given : sequence of Var, shapes (steps, ...)
        What each step takes.
    steps : int
        How many.
    shape : tuple of int
        Of the state; of whatever else, too, but for the last axis.
    loop : bool
        An ONNX Loop whose body is one step, or one step after the other in the graph.

    Returns
    -------
    list of Var, shapes (steps, ...)
        States and whatever else after each step.

    """
    if loop:
        found = _loop(advance, current, given, steps)
        shapes = [shape, *[shape[:-1]] * (len(found) - 1)]
        return [op.reshape(value, ints(steps, *sizes))
                for value, sizes in zip(found, shapes, strict=True)]
    rows = [[op.squeeze(row, ints(0)) for row in op.split(value, num_outputs=steps, axis=0)]
            for value in given]
    columns = []
    for step in range(steps):
        after = advance(current, *(row[step] for row in rows))
        current = after[0]
        columns.append([op.unsqueeze(value, ints(0)) for value in after])
    return [op.concat(column, axis=0) for column in zip(*columns, strict=True)]


def _loop(advance: Callable[..., list[Var]], current: Var, given: Sequence[Var],
          steps: int) -> list[Var]:
    def body(index: Var, keep: Var, current: Var) -> list[Var]:
        rows = [op.squeeze(op.gather(value, index, axis=0), ints(0)) for value in given]
        after = advance(current, *rows)
        return [keep, after[0], *after]
    # The number of steps is asked of the arrays because spox computes what nothing outside the
    # loop uses inside of it, anew at every step. Counter and condition have shape (1,) because
    # it infers the body's arguments that way.
    count = op.min([op.shape(value, start=0, end=1) for value in given]) if given else ints(steps)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the shape of the last state, unused, is not inferred
        _, *found = op.loop(count, op.const(np.array([True])), [current], body=body)
    return found


def merge_equal_constants(model: onnx.ModelProto) -> None:
    """
    Keep one copy of equal constants: inlining copies the weights once a step.

    42 MB become 1.8 MB at 25 steps of a 5 x (3 x 200) ensemble, and the caches hold them.
    """
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    kept: list[Any] = []
    for node in model.graph.node:
        if node.op_type == 'Constant':
            key = node.attribute[0].SerializeToString()
            if key in first:
                renamed[node.output[0]] = first[key]
                continue
            first[key] = node.output[0]
        kept.append(node)
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def ints(*values: int) -> Var:
    """Return integers, such as axes or a shape."""
    return op.const(np.array(values, dtype=np.int64))


def number(value: float) -> Var:
    """Return a number in the graph's precision."""
    return op.const(np.float32(value))


def root(square: Var) -> Var:
    """Return the square root; as a std that is 0 it has a derivative, which is 0 as well."""
    return op.sqrt(op.add(square, number(SMALLEST_SQUARE)))


def row(value: Var, index: int) -> Var:
    """Return one entry along the first axis."""
    return op.gather(value, op.const(np.int64(index)), axis=0)
