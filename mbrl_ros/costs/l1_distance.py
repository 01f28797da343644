"""
Sum of the distances along the axes between two points: |x - x'| + |y - y'| + |z - z'|.

Source: the pusher reward of Chua et al. 2018 (PETS), arXiv:1805.12114, negated, has two of them.
"""

from typing import Any

from pydantic import model_validator

from mbrl_ros.core.yaml_file import Strict

Point = tuple[str | float, str | float, str | float]


class Params(Strict):
    """Two points (x, y, z): `goal` is where `point` is driven; fields by name, or numbers [m]."""

    point: Point
    goal: Point

    @model_validator(mode='after')
    def _check_fields(self) -> 'Params':
        if not any(isinstance(part, str) for part in (*self.point, *self.goal)):
            raise ValueError('point, goal: numbers only, so nothing can be done about their '
                             'distance; give at least one field by its name')
        return self


def position(signal: Any, params: Params) -> tuple[Any, Any, Any]:
    """Return x, y, z [m] of the point."""
    return _coordinates(signal, params.point)


def target(signal: Any, params: Params) -> tuple[Any, Any, Any]:
    """Return x, y, z [m] of the goal."""
    return _coordinates(signal, params.goal)


def cost(signal: Any, params: Params) -> Any:
    """Return the L1 distance [m] of the point from its goal."""
    x, y, z = (abs(reached - wanted) for reached, wanted
               in zip(position(signal, params), target(signal, params), strict=True))
    return x + y + z


def _coordinates(signal: Any, point: Point) -> tuple[Any, Any, Any]:
    x, y, z = (signal(part) if isinstance(part, str) else part for part in point)
    return x, y, z
