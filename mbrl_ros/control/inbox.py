"""Latest-value slots for observations, and the pace they set for the control loop."""

from collections.abc import Callable
import math
from threading import Lock
import time

import numpy as np

from mbrl_ros.control.tick import Observation
from mbrl_ros.core.robot import RobotSpec

# After a message that was due, how many periods the next may take; then the tick comes without.
PATIENCE = 1.5
# Ticks are at least this share of a period apart, however messages bunch.
CLOSEST = 0.4
# A stamp that is further back than this is not of a late message: the clock was set.
CLOCK_JUMP_NS = 1_000_000_000


class ObservationInbox:
    """
    Collects the fields of the state vector from their topics; says when the loop is to tick.

    The topic of the robot's first field sets the pace: the loop ticks at each message of it that
    is a control period (less a tenth, for jitter) after the one before. Robots that publish faster
    than the control rate are thinned out to it.

    In real time an absolute deadline bounds each tick: one and a half periods after the message
    before, then every period on that grid while the robot is silent, until a message sets the
    phase anew. Ticks that a stalled loop has slept through are skipped, not made up for. All of
    this runs on the steady clock.

    A message whose stamp is not newer than the last one of its topic is late, out of order or a
    duplicate: it is counted and not looked at. A stamp of more than a second back is of a clock
    that was set: it is counted, and what comes from then on is measured by the new time. In
    lock-step, where nothing can overtake, every step back is taken for such a clock.

    Parameters
    ----------
    robot : RobotSpec
        Fields, control period and staleness limits.
    lockstep : bool
        If true the loop waits for every observation as long as it takes, and none is stale.
    clock : callable
        Steady time [s].

    Attributes
    ----------
    due_s : float
        Steady time at which the observation that was last handed out was due: that of the
        message's arrival, or the deadline.
    num_refused, num_out_of_order, num_clock_jumps, num_skipped : int
        Messages that could not be used; that were not newer than the one before; that showed a
        clock set back; and ticks that the loop slept through.

    """

    def __init__(self, robot: RobotSpec, *, lockstep: bool,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._robot, self._lockstep, self._clock = robot, lockstep, clock
        self._pacer = robot.observation[0].topic
        self._fields = {topic: [i for i, f in enumerate(robot.observation) if f.topic == topic]
                        for topic in robot.observation_topics()}
        self._lock = Lock()
        self._state = np.full(len(robot.observation), np.nan)
        self._problems: dict[str, str] = {}
        self._measured_s: dict[str, float] = {}
        self._newest_ns: dict[str, int] = {}
        self.num_refused = self.num_out_of_order = self.num_clock_jumps = self.num_skipped = 0
        self.due_s = 0.0
        # Whether there is a message to act upon, and whether a tick is due for it.
        self._is_fresh = self._is_due = False
        self._next_ns = self._last_ns = self._pacing_ns = 0
        self._arrived_s = self._due_at_s = self._earliest_s = 0.0
        self._start_over()

    def put(self, topic: str, values: list[float], stamp_ns: int, age_s: float,
            waited_s: float = 0.0) -> None:
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
            How old it is on arrival [s], by its stamp. From a sensor whose clock is ahead it may
            be negative, and counts as nothing: such a message grows stale from its arrival on, so
            that what a clock is ahead hides as much delay, but no silence.
        waited_s : float
            Time [s] since it arrived in this process: a loop that is late hears it late.

        """
        missing = [self._robot.observation[i].name
                   for i, value in zip(self._fields[topic], values, strict=True)
                   if not math.isfinite(value)]
        if missing:
            self.refuse(topic, f'{", ".join(missing)} on {topic} is not finite', stamp_ns,
                        waited_s)
            return
        with self._lock:
            if not self._is_newer(topic, stamp_ns):
                return
            self._state[self._fields[topic]] = values
            self._problems.pop(topic, None)
            self._measured_s[topic] = self._clock() - max(0.0, age_s)
            self._pace(topic, stamp_ns)
            self._make_due(waited_s)

    def refuse(self, topic: str, problem: str, stamp_ns: int, waited_s: float = 0.0) -> None:
        """Note that a message could not be used; the loop still ticks. Parameters as `put`."""
        with self._lock:
            if not self._is_newer(topic, stamp_ns):
                return
            self.num_refused += 1
            self._problems[topic] = problem
            self._pace(topic, stamp_ns)
            self._make_due(waited_s)

    def take(self) -> Observation | None:
        """
        Return what is known if a tick is due, else None.

        In real time that is after a message or at the deadline; at the deadline the old state is
        returned, marked as not fresh.
        """
        with self._lock:
            now_s = self._clock()
            if now_s < self._due_at_s:
                return None
            fresh = self._is_due
            self._is_due = self._is_fresh = False
            self._set_deadline(now_s, fresh)
            state = None if np.isnan(self._state).any() else self._state.copy()
            return Observation(state, self._problem(), fresh, self._pacing_ns)

    def due_in_s(self) -> float:
        """Return the time [s] until a tick is due if no message comes; infinite in lock-step."""
        return self._due_at_s - self._clock()

    def problem(self) -> str:
        """Return what is wrong with the latest observation; empty if nothing."""
        with self._lock:
            return self._problem()

    def age_s(self) -> float:
        """Return the age of the oldest slot [s]; infinite before the first message of a topic."""
        with self._lock:
            if len(self._measured_s) < len(self._fields):
                return math.inf
            return self._clock() - min(self._measured_s.values())

    def forget(self) -> None:
        """Empty the slots: what was observed before an activation is not acted upon."""
        with self._lock:
            self._state[:] = np.nan
            self._problems.clear()
            self._measured_s.clear()
            self._newest_ns.clear()
            self._start_over()

    def _start_over(self) -> None:
        self._next_ns = self._last_ns = self._pacing_ns = 0
        self._is_fresh = self._is_due = False
        self._earliest_s = -math.inf
        self._arrived_s = self._clock()
        self._due_at_s = math.inf if self._lockstep else \
            self._arrived_s + PATIENCE * self._robot.dt_s

    def _is_newer(self, topic: str, stamp_ns: int) -> bool:
        newest_ns = self._newest_ns.get(topic)
        if newest_ns is not None and stamp_ns <= newest_ns:
            step_back_ns = newest_ns - stamp_ns
            if step_back_ns <= (0 if self._lockstep else CLOCK_JUMP_NS):
                self.num_out_of_order += 1
                return False
            self.num_clock_jumps += 1
            if topic == self._pacer:
                self._next_ns = self._last_ns = 0
        self._newest_ns[topic] = stamp_ns
        return True

    def _pace(self, topic: str, stamp_ns: int) -> None:
        """Take note of a message that is to be acted upon."""
        if topic != self._pacer:
            return
        period = self._robot.dt_ns
        early = period // 10
        # A publisher at the control rate ticks at each message, even if its clock is a little
        # fast and drifts through the grid; the grid thins out the faster ones.
        spaced = stamp_ns - self._last_ns >= period - early
        self._last_ns = stamp_ns
        if not spaced and stamp_ns < self._next_ns - early:
            return
        is_off = abs(stamp_ns - self._next_ns) > period // 2
        self._next_ns = (stamp_ns if is_off else self._next_ns) + period
        self._pacing_ns, self._is_fresh = stamp_ns, True

    def _make_due(self, waited_s: float) -> None:
        """Make a tick due if there is a message to act upon."""
        is_complete = not self._lockstep or all(
            self._newest_ns.get(topic, -1) >= self._pacing_ns for topic in self._fields)
        if not self._is_fresh or self._is_due or not is_complete:
            return
        # A clock that was set must not put this into another period.
        waited_s = min(max(0.0, waited_s), self._robot.dt_s)
        self._arrived_s, self._is_due = self._clock() - waited_s, True
        self._due_at_s = max(self._arrived_s, self._earliest_s)

    def _set_deadline(self, now_s: float, fresh: bool) -> None:
        period_s = self._robot.dt_s
        self.due_s = self._due_at_s
        if self._lockstep:
            self._due_at_s = math.inf
            return
        self._earliest_s = now_s + CLOSEST * period_s
        self._due_at_s = self._arrived_s + PATIENCE * period_s if fresh \
            else self._due_at_s + period_s
        if self._due_at_s <= now_s:
            num_skipped = math.floor((now_s - self._due_at_s) / period_s) + 1
            self.num_skipped += num_skipped
            self._due_at_s += num_skipped * period_s

    def _problem(self) -> str:
        if self._problems:
            return '; '.join(self._problems.values())
        silent = [topic for topic in self._fields if topic not in self._measured_s]
        if silent:
            return f'no message on {", ".join(silent)} yet'
        if self._lockstep:
            return ''
        now_s = self._clock()
        ages_s = {topic: now_s - measured_s for topic, measured_s in self._measured_s.items()}
        stale = [f'{topic} is stale: {age_s:.3f} s old, limit '
                 f'{self._robot.stale_after_s[topic]:g} s'
                 for topic, age_s in ages_s.items() if age_s > self._robot.stale_after_s[topic]]
        return '; '.join(stale)
