"""The controller's concerns in /diagnostics."""

from collections.abc import Callable, Mapping

import numpy as np

from mbrl_ros.control.inbox import ObservationInbox
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.meter import Meter
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.nodes.command_outlet import CommandOutlet
from mbrl_ros.nodes.controller_topics import ControllerTopics
from mbrl_ros.nodes.diagnostics import ERROR, OK, Report, WARN

MOST_MISSED_SHARE = 0.01


class ControllerReports:
    """
    Turns what the controller knows of itself into reports.

    Parameters
    ----------
    robot, inbox, meter, latch, outlet, topics
        Parts of the controller.
    deadline_ms : float
        Time a tick may wait for its plan.
    is_active : callable
        Whether the controller commands the robot.

    Attributes
    ----------
    facts : mapping
        Of the model, as built.
    crash : str
        Traceback of what ended the control loop; empty while it runs.

    """

    def __init__(self, robot: RobotSpec, inbox: ObservationInbox, meter: Meter, latch: Latch,
                 outlet: CommandOutlet, topics: ControllerTopics, deadline_ms: float,
                 is_active: Callable[[], bool]) -> None:
        self._robot, self._inbox, self._meter = robot, inbox, meter
        self._latch, self._outlet, self._topics = latch, outlet, topics
        self._deadline_ms, self._is_active = deadline_ms, is_active
        self._reported_refused = 0
        self.facts: Mapping[str, object] = {}
        self.crash = ''

    def concerns(self) -> dict[str, Callable[[], Report]]:
        """Return each concern and what reports on it."""
        return {'planning latency': self._latency, 'observation': self._observation,
                'model': self._model, 'safety': self._safety}

    def _latency(self) -> Report:
        counts = self._meter.counts
        values: dict[str, object] = {
            'deadline_ms': self._deadline_ms,
            **{name: counts[name] for name in ('ticks', 'missed', 'rejected', 'plan', 'shifted',
                                               'held')}}
        times = self._meter.plan_ms()
        if times is None:
            return OK, 'no plan yet', values
        values |= dict(zip(('p50_ms', 'p99_ms', 'max_ms'), times, strict=True))
        share = counts['missed'] / max(1, counts['ticks'])
        message = f'{counts["missed"]} of {counts["ticks"]} plans late, p99 {times[1]:.1f} ms'
        return (WARN if share > MOST_MISSED_SHARE else OK), message, values

    def _observation(self) -> Report:
        age, refused = self._inbox.age_s(), self._inbox.num_refused
        fresh_refused, self._reported_refused = refused - self._reported_refused, refused
        values = {'age_s': age, 'refused': refused,
                  **{f'{topic}.stale_after_s': limit
                     for topic, limit in self._robot.stale_after_s.items()}}
        if fresh_refused:
            return WARN, f'{fresh_refused} messages refused since the last report', values
        if not np.isfinite(age):
            return (WARN if self._is_active() else OK), 'no message yet', values
        problem = self._inbox.problem()
        return (ERROR if problem else OK), problem or 'received', values

    def _model(self) -> Report:
        last = self._meter.last
        decision = last.decision if last is not None else None
        values: dict[str, object] = dict(self.facts)
        if decision is None:
            return OK, 'idle', values
        values |= {'spread': decision.spread, 'predicted_cost': self._topics.predicted_cost}
        return OK, f'spread {decision.spread:.3g} typical steps', values

    def _safety(self) -> Report:
        values: dict[str, object] = {
            name: self._meter.counts[name] for name in ('safe', 'slowed')}
        values |= {'crashed': bool(self.crash), 'stops': self._latch.num_trips}
        if self.crash:
            return ERROR, 'control loop stopped; see the log', values
        if self._latch.reason:
            return ERROR, self._latch.reason, values
        last = self._meter.last
        if last is None or not self._is_active():
            return OK, 'not acting', values
        deaf = self._outlet.silent_topics()
        if deaf:
            return ERROR, f'nobody listens to {", ".join(deaf)}', values
        verdict = last.verdict
        level = ERROR if verdict.safe else WARN if verdict.reason else OK
        return level, verdict.reason or 'acting', values
