"""Distance from a goal in the plane, rounded off at the goal: sqrt(d^2 + blur^2) - blur."""

from typing import Any

from pydantic import Field

from mbrl_ros.core.yaml_file import Strict


class Params(Strict):
    """Fields of the position, and the two goal fields (x, y)."""

    x: str
    y: str
    goal: tuple[str, str]
    blur: float = Field(gt=0, description='Distance [m] below which the cost is quadratic')


def position(signal: Any, params: Params) -> tuple[Any, Any, Any]:
    """Return x, y, z [m] of the robot, which is in the plane z = 0."""
    return signal(params.x), signal(params.y), 0.0


def target(signal: Any, params: Params) -> tuple[Any, Any, Any]:
    """Return x, y, z [m] of the goal."""
    return signal(params.goal[0]), signal(params.goal[1]), 0.0


def cost(signal: Any, params: Params) -> Any:
    """Return sqrt(d^2 + blur^2) - blur [m]: as steep from afar as from near, flat at the goal."""
    x = signal(params.x) - signal(params.goal[0])
    y = signal(params.y) - signal(params.goal[1])
    xp = x.__array_namespace__()
    return xp.sqrt(x * x + y * y + params.blur**2) - params.blur
