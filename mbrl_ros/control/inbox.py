"""Latest-value slots for observations, and the pace they set for the control loop."""

from threading import Condition
import time

import numpy as np

from mbrl_ros.control.tick import Observation
from mbrl_ros.core.robot import RobotSpec


class ObservationInbox:
    """
    Collects the fields of the state vector from their topics; wakes the control loop.

    The topic of the robot's first field sets the pace: the loop ticks at each message of it that
    is a control period (less a tenth, for jitter) after the one before. Robots that publish faster
    than the control rate are thinned out to it; one that falls silent gets ticks without a fresh
    state.

    Parameters
    ----------
    robot : RobotSpec
        Fields, control period and staleness limits.
    lockstep : bool
        If true the loop waits for every observation as long as it takes, and none is stale.

    """

    def __init__(self, robot: RobotSpec, *, lockstep: bool) -> None:
        self._robot, self._lockstep = robot, lockstep
        self._pacer = robot.observation[0].topic
        self._fields = {topic: [i for i, f in enumerate(robot.observation) if f.topic == topic]
                        for topic in robot.observation_topics()}
        self._condition = Condition()
        self._state = np.full(len(robot.observation), np.nan)
        self._problems: dict[str, str] = {}
        self._fresh_until_s: dict[str, float] = {}
        self._arrived_s: dict[str, float] = {}
        self._due_ns = self._last_ns = 0
        self._is_due = False
        self.stamp_ns = 0
        self.num_refused = 0

    def put(self, topic: str, values: list[float], stamp_ns: int, age_s: float) -> None:
        """
        Take the numbers of one message.

        Parameters
        ----------
        topic : str
            Topic as the robot spec spells it.
        values : list of float
            One a field of this topic, in the order of the robot spec.
        stamp_ns : int
            When it was measured.
        age_s : float
            How old it is on arrival [s].

        """
        missing = [self._robot.observation[i].name
                   for i, value in zip(self._fields[topic], values, strict=True)
                   if not np.isfinite(value)]
        if missing:
            self.refuse(topic, f'{", ".join(missing)} on {topic} is not finite', stamp_ns)
            return
        with self._condition:
            self._state[self._fields[topic]] = values
            self._problems.pop(topic, None)
            now = time.monotonic()
            self._arrived_s[topic] = now - age_s
            self._fresh_until_s[topic] = now - age_s + self._robot.stale_after_s[topic]
            self._pace(topic, stamp_ns)

    def refuse(self, topic: str, problem: str, stamp_ns: int) -> None:
        """Note that a message of this topic could not be used; the loop still ticks."""
        with self._condition:
            self.num_refused += 1
            self._problems[topic] = problem
            self._pace(topic, stamp_ns)

    def wait(self, timeout_s: float) -> Observation | None:
        """
        Wait until the next tick is due, and return what is known then.

        After `timeout_s` without a message that is due, return the old state marked as not fresh,
        or what is wrong with it; in lock-step return None.
        """
        with self._condition:
            fresh = self._condition.wait_for(lambda: self._is_due, timeout_s)
            self._is_due = False
            if not fresh and self._lockstep:
                return None
            state = None if np.isnan(self._state).any() else self._state.copy()
            return Observation(state, self._problem(), fresh)

    def problem(self) -> str:
        """Return what is wrong with the latest observation; empty if nothing."""
        with self._condition:
            return self._problem()

    def age_s(self) -> float:
        """Return the age of the oldest slot [s]; infinite before the first message of a topic."""
        with self._condition:
            if len(self._arrived_s) < len(self._fields):
                return float('inf')
            return time.monotonic() - min(self._arrived_s.values())

    def forget(self) -> None:
        """Empty the slots: what was observed before an activation is not acted upon."""
        with self._condition:
            self._state[:] = np.nan
            self._problems.clear()
            self._fresh_until_s.clear()
            self._arrived_s.clear()
            self._due_ns = self._last_ns = 0
            self._is_due = False

    def _pace(self, topic: str, stamp_ns: int) -> None:
        if topic != self._pacer:
            return
        period = self._robot.dt_ns
        early = period // 10
        # A publisher at the control rate ticks at each message, even if its clock is a little
        # fast and drifts through the grid; the grid thins out the faster ones.
        spaced = stamp_ns - self._last_ns >= period - early
        if spaced or stamp_ns >= self._due_ns - early or stamp_ns < self._last_ns:
            late = abs(stamp_ns - self._due_ns) > period // 2
            self._due_ns = (stamp_ns if late else self._due_ns) + period
            self.stamp_ns = stamp_ns
            self._is_due = True
            self._condition.notify_all()
        self._last_ns = stamp_ns

    def _problem(self) -> str:
        if self._problems:
            return '; '.join(self._problems.values())
        silent = [topic for topic in self._fields if topic not in self._arrived_s]
        if silent:
            return f'no message on {", ".join(silent)} yet'
        if self._lockstep:
            return ''
        now = time.monotonic()
        stale = [f'{topic} is stale: {now - self._arrived_s[topic]:.3f} s old, limit '
                 f'{self._robot.stale_after_s[topic]:g} s'
                 for topic, until in self._fresh_until_s.items() if now > until]
        return '; '.join(stale)
