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


def cost(signal: Any, params: Params) -> Any:
    """Return -exp(-d^2/scale^2), d the distance [m] of the tip; hinge 0 rad hangs down."""
    slider, hinge = signal(params.slider), signal(params.hinge)
    xp = hinge.__array_namespace__()
    x = slider - params.length * xp.sin(hinge) - signal(params.goal[0])
    z = -params.length * xp.cos(hinge) - signal(params.goal[1])
    return -xp.exp(-(x * x + z * z) / params.scale**2)
