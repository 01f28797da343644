"""Append nodes to an ONNX graph by writing arithmetic: what rules for derivatives are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

INT64 = onnx.TensorProto.INT64

Dims = tuple[int | None, ...]  # None where the size is not known before the graph runs


class Tape:
    """
    Nodes to append to a model, and what is known of the values it has already.

    Equal nodes are made once. A model's own values have a type and, where it can be inferred, a
    shape; those of appended nodes have a type.
    """

    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = prefix
        self._made: dict[tuple[Any, ...], list[str]] = {}
        self._constants = {item.name: item for item in inferred.initializer}
        self._types = {item.name: item.data_type for item in inferred.initializer}
        self._dims: dict[str, Dims] = {item.name: tuple(item.dims)
                                       for item in inferred.initializer}
        for node in inferred.node:
            if node.op_type == 'Constant' and node.attribute[0].name == 'value':
                self._constants[node.output[0]] = node.attribute[0].t
        for info in (*inferred.input, *inferred.value_info, *inferred.output):
            tensor = info.type.tensor_type
            self._types[info.name] = tensor.elem_type
            if tensor.HasField('shape'):
                self._dims[info.name] = tuple(
                    dim.dim_value if dim.HasField('dim_value') else None
                    for dim in tensor.shape.dim)

    def value(self, name: str) -> 'Value':
        """Return a value of the model by its name."""
        return Value(self, name, self._types.get(name, onnx.TensorProto.UNDEFINED))

    def constant(self, name: str) -> np.ndarray | None:
        """Return a value that is the same whatever the inputs, or None."""
        found = self._constants.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def dims(self, name: str) -> Dims | None:
        """Return the sizes of the model's value, None for those that differ from run to run."""
        return self._dims.get(name)

    def make(self, op: str, inputs: Sequence['Value | None'], count: int = 1, kind: int = 0,
             **attributes: Any) -> 'list[Value]':
        """Append a node and return its values, of the element type `kind` or the first input's."""
        names = ['' if value is None else value.name for value in inputs]
        kind = kind or next(value.kind for value in inputs if value is not None)
        key = (op, *names, count, *((name, str(attributes[name])) for name in sorted(attributes)))
        if key not in self._made:
            outputs = [f'{self._prefix}{len(self.nodes)}_{op}_{i}' for i in range(count)]
            self.nodes.append(helper.make_node(op, names, outputs, **attributes))
            self._made[key] = outputs
        return [Value(self, name, kind) for name in self._made[key]]

    def array(self, array: np.ndarray) -> 'Value':
        """Return a constant."""
        tensor = numpy_helper.from_array(np.asarray(array))
        key = ('Constant', array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            name = f'{self._prefix}{len(self.nodes)}_Constant_0'
            self.nodes.append(helper.make_node('Constant', [], [name], value=tensor))
            self._made[key] = [name]
        return Value(self, self._made[key][0], tensor.data_type)

    def ints(self, *values: int) -> 'Value':
        """Return a vector of integers: axes, sizes, positions."""
        return self.array(np.array(values, np.int64))


@dataclass(frozen=True)
class Value:
    """A value of a graph under construction; arithmetic on it appends nodes."""

    tape: Tape
    name: str
    kind: int  # element type

    @property
    def dims(self) -> Dims | None:
        """Sizes, if the value is one of the model's and they are known."""
        return self.tape.dims(self.name)

    @property
    def constant(self) -> np.ndarray | None:
        """Content, if it does not depend on the inputs."""
        return self.tape.constant(self.name)

    def op(self, op: str, *others: 'Value | float | None', kind: int = 0,
           **attributes: Any) -> 'Value':
        """Return a node's value, with this one as its first input."""
        inputs = [self, *(self._like(other) for other in others)]
        return self.tape.make(op, inputs, kind=kind, **attributes)[0]

    def shape(self) -> 'Value':
        """Return the sizes, as a constant where they are known."""
        if self.dims is not None and None not in self.dims:
            return self.tape.array(np.array(self.dims, np.int64))
        return self.op('Shape', kind=INT64)

    def zeros(self) -> 'Value':
        """Return zeros of the same shape."""
        return self._like(0.0).op('Expand', self.shape())

    def cast(self, kind: int) -> 'Value':
        """Return the same numbers as another element type."""
        return self if kind == self.kind else self.op('Cast', kind=kind, to=kind)

    def unsqueeze(self, axis: int) -> 'Value':
        """Return the same with a new axis of size 1."""
        return self.op('Unsqueeze', self.tape.ints(axis))

    def reshape_like(self, other: 'Value') -> 'Value':
        """Return the same numbers in the shape of one of the model's values."""
        sizes = [-1 if size is None else size for size in other.dims or (None, None)]
        shape = other.shape() if sizes.count(-1) > 1 else self.tape.ints(*sizes)
        return self.op('Reshape', shape)

    def pad(self, before: int, after: int, axis: int) -> 'Value':
        """Return the same with zeros around it, along an axis."""
        ints = self.tape.ints
        return self.op('Pad', ints(before, after), None, ints(axis)) if before or after else self

    def sum(self, axes: Sequence[int], keepdims: bool) -> 'Value':
        """Return the sum over some axes."""
        return self.op('ReduceSum', self.tape.ints(*axes), keepdims=int(keepdims)) if axes \
            else self

    def where(self, condition: 'Value') -> 'Value':
        """Return the value where a condition holds, and zero elsewhere."""
        return condition.op('Where', self, self._like(0.0), kind=self.kind)

    def _like(self, other: 'Value | float | None') -> Any:
        if other is None or isinstance(other, Value):
            return other
        return self.tape.array(np.asarray(other, helper.tensor_dtype_to_np_dtype(self.kind)))

    def __add__(self, other: 'Value | float') -> 'Value':
        return self.op('Add', other)

    def __mul__(self, other: 'Value | float') -> 'Value':
        return self.op('Mul', other)

    def __sub__(self, other: 'Value | float') -> 'Value':
        return self.op('Sub', other)

    def __truediv__(self, other: 'Value | float') -> 'Value':
        return self.op('Div', other)

    def __rsub__(self, other: float) -> 'Value':
        constant: Value = self._like(other)
        return constant.op('Sub', self)

    def __neg__(self) -> 'Value':
        return self.op('Neg')
