"""
Derivatives of an ONNX graph, as an ONNX graph: reverse-mode differentiation, without torch.

What it appends is made of operators that it has rules for, so its result can be differentiated
again.
"""

from collections.abc import Sequence

import onnx
from onnx import helper
from onnx.utils import Extractor

from mbrl_ros.runtime.autodiff.call import Call
from mbrl_ros.runtime.autodiff.rules import parts
from mbrl_ros.runtime.autodiff.tape import Tape, Value

SMOOTH = {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE,
          onnx.TensorProto.UNDEFINED}


def derivative(of: str, by: str) -> str:
    """Return what `differentiate` calls a derivative."""
    return f'd({of})/d({by})'


def differentiate(model: onnx.ModelProto, of: str, by: Sequence[str],
                  seed: str = '') -> onnx.ModelProto:
    """
    Append to a graph the derivatives of one of its outputs by some of its inputs.

    Parameters
    ----------
    model : ModelProto
        Not modified. Sizes may be symbolic where they are not needed.
    of : str
        Output; what is differentiated is its sum, or its product with `seed`.
    by : sequence of str
        Inputs.
    seed : str
        Name of a new input of the shape of `of`, each element's weight in the sum; '' for ones.

    Returns
    -------
    ModelProto
        With further outputs, named by `derivative`, each of the shape of its input.

    Raises
    ------
    SpecError
        If an operator between them has no rule, or needs a size that is not known.

    Notes
    -----
    Where a function has no derivative (a corner, a tie) it is that of one side, or the mean of
    both.

    """
    result = onnx.ModelProto.FromString(model.SerializeToString())
    graph = result.graph
    _drop_guards(graph)
    tape = Tape(result, f'{derivative(of, "")}{len(graph.node)}/')
    output = tape.value(of)
    if seed:
        graph.input.append(next(info for info in graph.output if info.name == of))
        graph.input[-1].name = seed
        start = Value(tape, seed, output.kind)
    else:
        start = output.zeros() + 1.0
    found = _pull_back(tape, graph, {of: start}, set(by))
    types = {info.name: info for info in graph.input}
    for name in by:
        gradient = found[name] if name in found else tape.value(name).zeros()
        named = derivative(of, name)
        tape.nodes.append(helper.make_node('Identity', [gradient.name], [named]))
        graph.output.append(types[name])
        graph.output[-1].name = named
    graph.node.extend(tape.nodes)
    # Without the nodes that no output needs: rules give the derivatives by all of their inputs.
    return Extractor(result).extract_model([info.name for info in graph.input],
                                           [info.name for info in graph.output])


def _pull_back(tape: Tape, graph: onnx.GraphProto, found: dict[str, Value],
               by: set[str]) -> dict[str, Value]:
    """Return the derivatives by all values between, given those by the outputs."""
    active = set(by)  # what depends on them, smoothly
    for node in graph.node:
        if not active.isdisjoint(_reads(node)):
            # Of a type that is not known too, or its derivative would quietly be none.
            active.update(name for name in node.output if tape.value(name).kind in SMOOTH)
    for node in reversed(graph.node):
        if active.isdisjoint(_reads(node)) or found.keys().isdisjoint(node.output):
            continue
        for name, part in zip(node.input, parts(Call(tape, node, found)), strict=False):
            if name in active and part is not None:
                found[name] = found[name] + part if name in found else part
    return found


def _reads(node: onnx.NodeProto) -> set[str]:
    """Return what a node depends on: its inputs, and what its subgraphs take from outside."""
    return set(node.input).union(*(_reads(inner) for attribute in node.attribute
                                   for inner in attribute.g.node))


def _drop_guards(graph: onnx.GraphProto) -> None:
    """
    Put the inside of `If` nodes that ask whether an array is empty in their place.

    The array API's max, min and matmul are traced so, and no batch is empty.
    """
    made = {name: node for node in graph.node for name in node.output}

    def counts(name: str) -> bool:
        node = made.get(name)
        return node is not None and (node.op_type == 'Size' or (
            node.op_type == 'Mul' and all(map(counts, node.input))))

    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        question = made.get(node.input[0]) if node.op_type == 'If' else None
        if question is None or question.op_type != 'Equal' or not counts(question.input[0]):
            nodes.append(node)
            continue
        inside = next(item.g for item in node.attribute if item.name == 'else_branch')
        nodes.extend(inside.node)
        nodes.extend(helper.make_node('Identity', [inner.name], [outer])
                     for inner, outer in zip(inside.output, node.output, strict=True))
    del graph.node[:]
    graph.node.extend(nodes)
