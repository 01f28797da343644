"""The safety gate: the last thing before the command topic. It cannot be switched off."""

from dataclasses import dataclass
from math import isfinite

import numpy as np

from mbrl_ros.control.latch import Latch
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import Bounds

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Verdict:
    """
    What the gate lets out.

    Attributes
    ----------
    command : array, shape (A,)
        The action, slowed to the rate limit if need be, or the safe value.
    reason : str
        Empty if the action passed unchanged; else why it did not.
    safe : bool
        True if the command is the safe value in place of the action.

    """

    command: np.ndarray
    reason: str
    safe: bool


class SafetyGate:
    """
    Lets an action out only if it is finite, allowed, and made from a fresh and trusted state.

    Parameters
    ----------
    robot : RobotSpec
        Limits, rate limits, safe value.
    max_spread : float
        Largest one-step disagreement of the members, in typical steps, that is still trusted.
    termination : dict of str to Bounds
        Ranges of state fields outside which the task does not act.
    latch : Latch, optional
        Emergency stop: while it is tripped nothing but the safe value passes.

    Attributes
    ----------
    max_spread : float
        As given; a model that takes over brings its own.
    last : array, shape (A,)
        The last command that was let out.

    Notes
    -----
    An action beyond the rate limit is slowed down to it, since its direction is still right. The
    safe value itself is not slowed: it must be reached at once.

    """

    def __init__(self, robot: RobotSpec, max_spread: float, termination: dict[str, Bounds],
                 latch: Latch | None = None) -> None:
        self.max_spread, self._names = max_spread, robot.action_names
        self._latch = latch or Latch()
        self._safe_value = robot.safe_value
        self._termination = [(robot.state_names.index(name), name, bounds)
                             for name, bounds in termination.items()]
        # Of each action; lists, because few numbers are judged sooner than arrays, and the robot
        # waits meanwhile.
        self._low, self._high = robot.action_min.tolist(), robot.action_max.tolist()
        self._step = (robot.action_rate_limit * robot.dt_s).tolist()
        self.last = self._safe_value

    def forget(self) -> None:
        """Start from the safe value again, as the robot does after a pause."""
        self.last = self._safe_value

    def check(self, action: np.ndarray | None, state: np.ndarray | None, problem: str,
              spread: float) -> Verdict:
        """Judge one action and let out what is left of it; parameters as `judge`."""
        verdict = self.judge(action, state, problem, spread, self.last)
        self.last = verdict.command
        return verdict

    def judge(self, action: np.ndarray | None, state: np.ndarray | None, problem: str,
              spread: float, last: np.ndarray) -> Verdict:
        """
        Judge one action, now or ahead of its time; nothing is let out.

        Parameters
        ----------
        action : array, shape (A,), or None
            None if there is no plan to act on.
        state : array, shape (S,), or None
            Latest observation; None if there is none.
        problem : str
            What is wrong with the observation (stale, NaN, missing); empty if nothing.
        spread : float
            Disagreement of the members here, in typical steps; 0 where no model is used.
        last : array, shape (A,)
            The command before it.

        """
        reason = self._latch.reason or problem or self._refusal(action, state, spread)
        if reason or action is None:
            return Verdict(self._safe_value, reason or 'no plan yet', safe=True)
        command, limited = [], []
        for name, wanted, before, low, high, step in zip(
                self._names, action.tolist(), last.tolist(), self._low, self._high, self._step,
                strict=True):
            slowed = min(max(wanted, before - step), before + step)
            if abs(slowed - wanted) > TOLERANCE:
                limited.append(name)
            # What rounding put beyond a limit is brought back to it.
            command.append(min(max(slowed, low), high))
        reason = f'slowed to the rate limit: {", ".join(limited)}' if limited else ''
        return Verdict(np.array(command), reason, safe=False)

    def _refusal(self, action: np.ndarray | None, state: np.ndarray | None,
                 spread: float) -> str:
        if state is None:
            return 'no observation yet'
        for index, name, bounds in self._termination:
            if not bounds.min <= state[index] <= bounds.max:
                return (f'{name} = {state[index]:.4g} outside the task range '
                        f'[{bounds.min:g}, {bounds.max:g}]')
        if action is None:
            return 'no plan yet'
        values = action.tolist()
        if not all(map(isfinite, values)):
            return f'action is not finite: {action}'
        if not all(low - TOLERANCE <= value <= high + TOLERANCE
                   for value, low, high in zip(values, self._low, self._high, strict=True)):
            return f'action {action} outside the limits [{self._low}, {self._high}]'
        if not spread <= self.max_spread:
            return (f'model not trusted here: members disagree by {spread:.3g} typical steps, '
                    f'limit {self.max_spread:.3g}')
        return ''


def limit_following(robot: RobotSpec, command: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """
    Bring what a plan does after a command inside the limits and the rate limits.

    Parameters
    ----------
    robot : RobotSpec
        Limits, rate limits.
    command : array, shape (A,)
        What the gate let out.
    actions : array, shape (n, A)
        Planned after it, one a control period.

    Returns
    -------
    array, shape (m, A)
        All of them, or those before the first that is not finite.

    """
    low, high, step = robot.action_min, robot.action_max, robot.action_rate_limit * robot.dt_s
    limited: list[np.ndarray] = []
    last = command
    for action in actions:
        if not np.isfinite(action).all():
            break
        slowed = np.minimum(np.maximum(action, last - step), last + step)
        last = np.minimum(np.maximum(slowed, low), high)
        limited.append(last)
    return np.reshape(limited, (-1, len(command)))
