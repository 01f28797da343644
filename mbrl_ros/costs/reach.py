"""
Squared distance of an arm's end effector from a goal, by forward kinematics.

Source: the reacher reward of Chua et al. 2018 (PETS), arXiv:1805.12114, negated.
"""

from typing import Any, Literal

from pydantic import Field

from mbrl_ros.core.yaml_file import Strict


class Joint(Strict):
    """A hinge, in the zero position of its arm, and the way [m] from it to the next one."""

    joint: str
    axis: Literal['x', 'y', 'z']
    move: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Params(Strict):
    """Where the first hinge is, all that move the end effector, and the goal (x, y, z) fields."""

    base: tuple[float, float, float] = (0.0, 0.0, 0.0)
    chain: tuple[Joint, ...] = Field(min_length=1)
    goal: tuple[str, str, str]


def position(signal: Any, params: Params) -> tuple[Any, Any, Any]:
    """Return x, y, z [m] of the end effector in the frame of the goal."""
    point: list[Any] = [0.0, 0.0, 0.0]
    # From the hand to the base: a vector to turn at each hinge, and never a whole matrix.
    for hinge in reversed(params.chain):
        angle = signal(hinge.joint)
        xp = angle.__array_namespace__()
        sine, cosine = xp.sin(angle), xp.cos(angle)
        reached = [part + way for part, way in zip(point, hinge.move, strict=True)]
        turning = 'xyz'.index(hinge.axis)
        first, second = (turning + 1) % 3, (turning + 2) % 3  # first turns towards second
        point = list(reached)
        point[first] = cosine * reached[first] - sine * reached[second]
        point[second] = sine * reached[first] + cosine * reached[second]
    x, y, z = (part + start for part, start in zip(point, params.base, strict=True))
    return x, y, z


def target(signal: Any, params: Params) -> tuple[Any, Any, Any]:
    """Return x, y, z [m] of the goal."""
    x, y, z = (signal(name) for name in params.goal)
    return x, y, z


def cost(signal: Any, params: Params) -> Any:
    """Return the squared distance [m^2] of the end effector from the goal."""
    x, y, z = (reached - wanted for reached, wanted
               in zip(position(signal, params), target(signal, params), strict=True))
    return x * x + y * y + z * z
