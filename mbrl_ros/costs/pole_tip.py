"""
Distance of a pole's tip from a goal, saturating: -exp(-|tip - goal|^2 / scale^2).

Source: the cart-pole reward of Chua et al. 2018 (PETS), arXiv:1805.12114, negated.
"""

from typing import Any

from pydantic import Field

from mbrl_ros.core.yaml_file import Strict


class Params(Strict):
    """Fields of the cart and the pole, and the two goal fields (x, z) of the tip."""

    slider: str
    hinge: str
    length: float = Field(gt=0, description='Pole length [m]')
    scale: float = Field(gt=0, description='Distance [m] at which the reward has fallen to 1/e')
    goal: tuple[str, str]


def position(signal: Any, params: Params) -> tuple[Any, Any, Any]:
    """Return x, y, z [m] of the tip; hinge 0 rad hangs down."""
    slider, hinge = signal(params.slider), signal(params.hinge)
    xp = hinge.__array_namespace__()
    return slider - params.length * xp.sin(hinge), 0.0, -params.length * xp.cos(hinge)


def target(signal: Any, params: Params) -> tuple[Any, Any, Any]:
    """Return x, y, z [m] of the goal."""
    return signal(params.goal[0]), 0.0, signal(params.goal[1])


def cost(signal: Any, params: Params) -> Any:
    """Return -exp(-d^2/scale^2), d the distance [m] of the tip from the goal."""
    tip_x, _, tip_z = position(signal, params)
    x, z = tip_x - signal(params.goal[0]), tip_z - signal(params.goal[1])
    xp = x.__array_namespace__()
    return -xp.exp(-(x * x + z * z) / params.scale**2)
