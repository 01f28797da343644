"""The reward that the model has learned, as a cost: minus the reward of the step."""

from typing import Any

from mbrl_ros.core.yaml_file import Strict


class Params(Strict):
    """None: what is rewarded is in the model."""


def cost(signal: Any, params: Params) -> Any:
    """Return minus the predicted reward of the step, in the unit of the recorded reward."""
    return -signal('reward')
