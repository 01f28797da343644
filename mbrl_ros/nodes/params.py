"""ROS parameters generated from a pydantic model: one source for type, default, range and help."""

import math
from typing import Any, get_args, TypeVar

from annotated_types import Ge, Gt, Le
from pydantic import ValidationError
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.yaml_file import describe, Strict

T = TypeVar('T', bound=Strict)
MOST_INT = 2**62  # a float, on the way, would round 2**63 - 1 up


def declare(node: Node, model: type[Strict], prefix: str = '',
            defaults: dict[str, Any] | None = None) -> None:
    """
    Declare every field of `model` as a ROS parameter `prefix + field`.

    Parameters
    ----------
    node : Node
        Where the parameters live.
    model : type of Strict
        Fields must have a default and a description; bounds (ge, le) become parameter ranges.
    prefix : str
        Such as 'cem.' for the parameters of a planner.
    defaults : dict, optional
        Values that replace the defaults of the model, such as those of a YAML file.

    Raises
    ------
    SpecError
        If the process was given a value of another type, or outside the range.

    """
    for name, field in model.model_fields.items():
        if node.has_parameter(prefix + name):
            continue
        value = (defaults or {}).get(name, field.default)
        low, high = _bounds(field.metadata)
        descriptor = ParameterDescriptor(description=field.description or '')
        choices = [arg for arg in get_args(field.annotation) if isinstance(arg, str)]
        if choices:
            descriptor.additional_constraints = 'one of: ' + ', '.join(choices)
        is_bounded = low > -math.inf or high < math.inf
        if is_bounded and isinstance(value, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        elif is_bounded and isinstance(value, int):
            descriptor.integer_range = [IntegerRange(
                from_value=int(max(low, -MOST_INT)), to_value=int(min(high, MOST_INT)))]
        try:
            node.declare_parameter(prefix + name, value, descriptor)
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            # A value from the command line or a parameter file.
            raise SpecError(f'{node.get_name()} parameter {prefix + name}: {error}') from error


def _bounds(metadata: list[Any]) -> tuple[float, float]:
    """Return the smallest and largest value that the metadata of a field allow."""
    low, high = -math.inf, math.inf
    for bound in metadata:
        if isinstance(bound, Ge):
            low = float(bound.ge)  # type: ignore[arg-type]
        elif isinstance(bound, Gt):
            low = float(bound.gt)  # type: ignore[arg-type]  # pydantic refuses the bound itself
        elif isinstance(bound, Le):
            high = float(bound.le)  # type: ignore[arg-type]
    return low, high


def read(node: Node, model: type[T], prefix: str = '',
         override: dict[str, Any] | None = None) -> T:
    """
    Return the parameters of `node` as a value of `model`.

    Raises
    ------
    SpecError
        If a value is refused; the text names the parameter and what is allowed.

    """
    values = {name: node.get_parameter(prefix + name).value for name in model.model_fields}
    values |= {name.removeprefix(prefix): value for name, value in (override or {}).items()
               if name.removeprefix(prefix) in values and name.startswith(prefix)}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SpecError(describe(error, f'{node.get_name()} parameter')) from error
