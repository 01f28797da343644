"""A node of a graph that is being differentiated, as the rules see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mbrl_ros.core.errors import SpecError
from mbrl_ros.runtime.autodiff.tape import INT64, Tape, Value

BOOL = onnx.TensorProto.BOOL

Parts = Sequence[Value | None]  # what a node adds to the derivatives by its inputs


@dataclass(frozen=True)
class Call:
    """A node, and the derivatives that are known by now: all of those by its outputs."""

    tape: Tape
    node: onnx.NodeProto
    found: Mapping[str, Value]

    @property
    def x(self) -> list[Any]:
        """Inputs; None for one that is left out."""
        return [self.tape.value(name) if name else None for name in self.node.input]

    @property
    def y(self) -> Value:
        """First output."""
        return self.tape.value(self.node.output[0])

    @property
    def d(self) -> Value:
        """Derivative by the first output."""
        return self.found[self.node.output[0]]

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or its default."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def sizes(self, value: Value) -> tuple[int | None, ...]:
        """Return the sizes of a value of which at least the number of axes is known."""
        if value.dims is None:
            self.refuse(f'its value {value.name} has no known number of axes')
        return value.dims or ()

    def size(self, value: Value, axis: int) -> int:
        """Return a size that must be known."""
        size = self.sizes(value)[axis]
        if size is None:
            self.refuse(f'axis {axis} of {value.name} has no known size')
        return size or 0

    def ints(self, index: int, name: str = '') -> list[int] | None:
        """Return an input, or in older operator sets the attribute, that says axes or sizes."""
        if len(self.x) > index and self.x[index] is not None:
            found = self.x[index].constant
            if found is None:
                self.refuse(f'its input {index} is not constant')
            return [int(number) for number in np.ravel(found)]
        return self.attribute(name)

    def axis(self, default: int = 0) -> int:
        """Return the attribute `axis`, counted from the front."""
        return int(self.attribute('axis', default)) % len(self.sizes(self.x[0]))

    def refuse(self, why: str) -> None:
        """Raise SpecError."""
        raise SpecError(f"no derivative of ONNX operator '{self.node.op_type}' "
                        f'({self.node.output[0]}): {why}; or plan without gradients.')

    def unbroadcast(self, part: Value, x: Value) -> Value:
        """Sum over the axes along which an input was repeated to the sizes of the output."""
        whole, own = self.sizes(self.y), self.sizes(x)
        missing = len(whole) - len(own)
        if any(size is None and whole[missing + axis] is not None
               for axis, size in enumerate(own)):
            # Whether it is repeated is not known before it runs.
            shape = x.op('Shape', kind=INT64)
            single = shape.op('Equal', self.tape.ints(1), kind=BOOL).op('NonZero', kind=INT64)
            axes = single.op('Reshape', self.tape.ints(-1)) + self.tape.ints(missing)
            part = part.op('ReduceSum', axes, keepdims=1, noop_with_empty_axes=1)
            return part.sum(range(missing), False).op('Reshape', shape)
        repeated = [missing + axis for axis, size in enumerate(own)
                    if size == 1 != whole[missing + axis]]
        return part.sum(repeated, True).sum(range(missing), False)
