"""What a tick acts upon that has no plan of its own: an older plan, the last command, nothing."""

from typing import Literal

import numpy as np
from pydantic import Field

from mbrl_ros.control.mpc import Decision
from mbrl_ros.core.yaml_file import Strict

Rung = Literal['plan', 'shifted', 'held', 'safe']


class LadderConfig(Strict):
    """How long each rung of the fallback ladder bears."""

    shift_steps: int = Field(10, ge=0, le=200,
                             description='Ticks in a row that may take the next action of an '
                                         'older plan, as far as it reaches')
    hold_steps: int = Field(3, ge=0, le=200,
                            description='Ticks after those that may repeat the last command; then '
                                        'the safe value is sent')


DEFAULT_LADDER = LadderConfig.model_validate({})


def climb_down(config: LadderConfig, decision: Decision | None, tick: int, last: np.ndarray,
               chunk_steps: int = 1) -> tuple[np.ndarray | None, Rung]:
    """
    Return the action of a tick, and the rung of the ladder it stands on.

    Parameters
    ----------
    config : LadderConfig
        How long each rung bears.
    decision : Decision or None
        The newest plan there is.
    tick : int
        Number of this tick.
    last : array, shape (A,)
        Last command that was let out.
    chunk_steps : int
        Actions of a plan that are its own; the next plan is due after them.

    Returns
    -------
    action : array, shape (A,), or None
        None on the last rung, 'safe'.
    rung : {'plan', 'shifted', 'held', 'safe'}
        'plan' is one of the plan's own actions.

    """
    if decision is None:
        return None, 'safe'
    age, most = tick - decision.tick, len(decision.counted) - 1
    if age < min(chunk_steps, most + 1):
        return decision.actions[age], 'plan'
    shifted = min(chunk_steps - 1 + config.shift_steps, most)
    if age <= shifted:
        return decision.actions[age], 'shifted'
    if age <= shifted + config.hold_steps:
        return last, 'held'
    return None, 'safe'
