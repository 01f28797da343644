"""The probability that the step ends the episode, as the model has learned it."""

from typing import Any

from mbrl_ros.core.yaml_file import Strict


class Params(Strict):
    """None: what ends an episode is in the model."""


def cost(signal: Any, params: Params) -> Any:
    """Return the predicted probability, in [0, 1]."""
    return signal('termination')
