"""Square of a field, or of its distance from a goal field or constant."""

from typing import Any

from mbrl_ros.core.yaml_file import Strict


class Params(Strict):
    """Field to keep near `target`: the name of another field (a goal, say) or a number."""

    signal: str
    target: str | float = 0.0


def cost(signal: Any, params: Params) -> Any:
    """Return (field - target)^2 in the square of the field's unit."""
    target = params.target
    error = signal(params.signal) - (signal(target) if isinstance(target, str) else target)
    return error * error
