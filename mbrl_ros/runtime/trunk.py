"""
Passes over dynamics.onnx that change how its hidden layers are computed, not what.

The trunk is made of the matrix products with constant weights (E, I, O) and the element-wise nodes
between and after them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

ELEMENTWISE = {'Add', 'Sub', 'Mul', 'Div', 'Sigmoid', 'Relu', 'Tanh', 'Softplus', 'HardSigmoid',
               'HardSwish', 'LeakyRelu', 'Max', 'Min', 'Elu', 'Gelu', 'Neg', 'Exp'}


def split_members(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute each member's trunk by plain products (N, I) x (I, O), weights packed once."""
    return _SplitMembers(model).result()


def halve(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute the products in float16, but for the first and the last of them."""
    return _Halve(model).result()


class _Pass(ABC):
    """Walks a graph in order, hands the trunk's nodes to `convert`, keeps the others."""

    num_ends = 0  # products at either end that are none of this pass's

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = onnx.ModelProto.FromString(model.SerializeToString())
        graph = self._model.graph
        self._constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        for node in graph.node:
            if node.op_type == 'Constant' and node.attribute[0].name == 'value':
                self._constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        products = [node.output[0] for node in graph.node if self._has_weights(node)]
        self._products = set(products[self.num_ends:len(products) - self.num_ends])
        self._inside: dict[str, int] = {}  # values of the trunk, and their width
        self._plain: set[str] = set()  # those that exist in their plain form, too
        self._nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.output[0] in self._products:
                source, (_, inputs, outputs) = node.input[0], self._constants[node.input[1]].shape
                if source not in self._inside:
                    self._plain.add(source)
                    self._inside[source] = inputs
                    self._enter(source)
                self._inside[node.output[0]] = outputs
                self._convert(node)
            elif self._is_between(node):
                self._inside[node.output[0]] = max(self._width(name) for name in node.input)
                self._convert(node)
            else:
                self._need_plain(node.input)
                self._nodes.append(node)
        self._need_plain([output.name for output in graph.output])

    def result(self) -> onnx.ModelProto:
        """Return the model with the nodes that were made, constants that none uses left out."""
        graph = self._model.graph
        used = {name for node in self._nodes for name in node.input}
        del graph.node[:]
        graph.node.extend(node for node in self._nodes
                          if node.op_type != 'Constant' or node.output[0] in used)
        return self._model

    def _need_plain(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._inside and name not in self._plain:
                self._plain.add(name)
                self._leave(name)

    def _has_weights(self, node: onnx.NodeProto) -> bool:
        weights = self._constants.get(node.input[1]) if node.op_type == 'MatMul' else None
        return weights is not None and weights.ndim == 3

    def _width(self, name: str) -> int:
        if name in self._inside:
            return self._inside[name]
        shape = self._constants[name].shape
        return int(shape[-1]) if shape else 1

    def _is_between(self, node: onnx.NodeProto) -> bool:
        return (node.op_type in ELEMENTWISE and any(name in self._inside for name in node.input)
                and all(name in self._inside or name in self._constants for name in node.input))

    def _add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any
             ) -> None:
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    def _constant(self, name: str, array: np.ndarray) -> str:
        self._nodes.append(helper.make_node(
            'Constant', [], [name], value=numpy_helper.from_array(np.ascontiguousarray(array))))
        return name

    @abstractmethod
    def _enter(self, name: str) -> None:
        """Make the trunk's form of a value from outside."""

    @abstractmethod
    def _convert(self, node: onnx.NodeProto) -> None:
        """Do a node of the trunk."""

    @abstractmethod
    def _leave(self, name: str) -> None:
        """Make the plain form of a value of the trunk."""


class _SplitMembers(_Pass):
    """A value x (E, N, C) of the trunk is x/0, x/1, ..., each (N, C)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._members = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        super().__init__(model)

    def _parts(self, name: str) -> list[str]:
        return [f'{name}/{member}' for member in range(self._members)]

    def _enter(self, name: str) -> None:
        shape = self._constant(f'{name}/shape', np.array([-1, self._inside[name]]))
        self._add('Reshape', [name, shape], [f'{name}/flat'])
        self._add('Split', [f'{name}/flat'], self._parts(name), axis=0,
                  num_outputs=self._members)

    def _convert(self, node: onnx.NodeProto) -> None:
        for member, output in enumerate(self._parts(node.output[0])):
            inputs = []
            for name in node.input:
                if name in self._inside:
                    inputs.append(self._parts(name)[member])
                    continue
                array = self._constants[name]
                if array.ndim == 3:
                    array = array[member % len(array)]
                    array = array[0] if node.op_type != 'MatMul' and len(array) == 1 else array
                inputs.append(self._constant(f'{output}/input{len(inputs)}', array))
            copy = helper.make_node(node.op_type, inputs, [output])
            copy.attribute.extend(node.attribute)
            self._nodes.append(copy)

    def _leave(self, name: str) -> None:
        shape = self._constant(f'{name}/shape', np.array([self._members, -1, self._inside[name]]))
        self._add('Concat', self._parts(name), [f'{name}/flat'], axis=0)
        self._add('Reshape', [f'{name}/flat', shape], [name])


class _Halve(_Pass):
    """
    A value x of the trunk is x/half, in float16.

    Not the first and the last product: the first takes fields in their own units, the last gives
    steps in theirs, and neither 1e5 Pa nor 1e-5 m is at home in float16.
    """

    num_ends = 1

    def _enter(self, name: str) -> None:
        self._add('Cast', [name], [f'{name}/half'], to=onnx.TensorProto.FLOAT16)

    def _convert(self, node: onnx.NodeProto) -> None:
        output = f'{node.output[0]}/half'
        inputs = [f'{name}/half' if name in self._inside else
                  self._constant(f'{output}/input{i}', self._constants[name].astype(np.float16))
                  for i, name in enumerate(node.input)]
        copy = helper.make_node(node.op_type, inputs, [output])
        copy.attribute.extend(node.attribute)
        self._nodes.append(copy)

    def _leave(self, name: str) -> None:
        self._add('Cast', [f'{name}/half'], [name], to=onnx.TensorProto.FLOAT)
