"""A field times a factor: what there should be much of (factor below zero), or little."""

from typing import Any

from mbrl_ros.core.yaml_file import Strict


class Params(Strict):
    """The field, and the factor: -1 to reward it; the weight of a term is never negative."""

    signal: str
    factor: float = 1.0


def cost(signal: Any, params: Params) -> Any:
    """Return factor x field, in the field's unit."""
    return params.factor * signal(params.signal)
