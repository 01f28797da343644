"""The controller's concerns in /diagnostics."""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from mbrl_ros.control.inbox import ObservationInbox
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.meter import Meter
from mbrl_ros.control.supervisor import Supervisor
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.nodes.command_outlet import CommandOutlet
from mbrl_ros.nodes.controller_topics import ControllerTopics
from mbrl_ros.nodes.diagnostics import ERROR, OK, Report, WARN

MOST_MISSED_SHARE = 0.01
BLIND_TICKS = 20
# Counters of the inbox, and what a message is that counts there.
UNUSED = {'refused': 'refused', 'out_of_order': 'late, out of order or sent twice',
          'clock_jumps': 'from a clock that was set back'}


class ControllerReports:
    """
    Turns what the controller knows of itself into reports.

    Parameters
    ----------
    robot, inbox, meter, latch, outlet, topics, supervisor
        Parts of the controller; no supervisor where no model drives.
    deadline_ms : float
        Time that a plan may take.
    is_active : callable
        Whether the controller commands the robot.

    Attributes
    ----------
    facts : mapping
        Of the model, as built.
    crash : str
        Traceback of what ended the control loop; empty while it runs.
    stalled_s : float
        How long the control loop has stood still; 0 while it goes round.

    """

    def __init__(self, robot: RobotSpec, inbox: ObservationInbox, meter: Meter, latch: Latch,
                 outlet: CommandOutlet, topics: ControllerTopics, supervisor: Supervisor | None,
                 deadline_ms: float, is_active: Callable[[], bool]) -> None:
        self._robot, self._inbox, self._meter = robot, inbox, meter
        self._supervisor = supervisor
        self._latch, self._outlet, self._topics = latch, outlet, topics
        self._deadline_ms, self._is_active = deadline_ms, is_active
        self._reported: Counter[str] = Counter()
        self.facts: Mapping[str, object] = {}
        self.crash, self.stalled_s = '', 0.0

    def concerns(self) -> dict[str, Callable[[], Report]]:
        """Return each concern and what reports on it."""
        return {'planning latency': self._latency, 'observation': self._observation,
                'model': self._model, 'trust': self._trust, 'safety': self._safety}

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
        age, inbox = self._inbox.age_s(), self._inbox
        counts = {name: getattr(inbox, f'num_{name}') for name in UNUSED}
        new = [f'{count} {text}' for name, text in UNUSED.items()
               if (count := self._since_last(name, counts[name]))]
        values = {'age_s': age, **counts,
                  **{f'{topic}.stale_after_s': limit
                     for topic, limit in self._robot.stale_after_s.items()}}
        if not np.isfinite(age) and not new:
            return (WARN if self._is_active() else OK), 'no message yet', values
        problem = inbox.problem()
        news = f'messages since the last report: {", ".join(new)}' if new else ''
        text = '; '.join(filter(None, (problem, news))) or 'received'
        return (ERROR if problem else WARN if news else OK), text, values

    def _model(self) -> Report:
        last = self._meter.last
        decision = last.decision if last is not None else None
        values: dict[str, object] = dict(self.facts)
        if decision is None:
            return OK, 'idle', values
        values |= {'spread': decision.spread, 'predicted_cost': self._topics.predicted_cost}
        return OK, f'spread {decision.spread:.3g} typical steps', values

    def _trust(self) -> Report:
        if self._supervisor is None:
            return OK, 'no model drives', {}
        trust, kept = self._supervisor.trust, self._supervisor.exploitation
        values: dict[str, object] = {
            'uncertainty': trust.figure, **trust.signals,
            'restraint': self._supervisor.restraint.level,
            **self._horizon(),
            'predicted_cost_per_step': kept.predicted, 'realised_cost_per_step': kept.realised,
            'exploitation_gap': kept.gap}
        doubt = self._supervisor.doubt()
        if doubt:
            return WARN, doubt, values
        if kept.is_exploiting:
            return WARN, (f'plans promise {kept.predicted:.3g} a step, the robot is charged '
                          f'{kept.realised:.3g}: the planner exploits an error of the model. '
                          'Record this and train again'), values
        if self._is_active() and self._supervisor.num_blind > BLIND_TICKS:
            return WARN, ('no two observations one control period apart for '
                          f'{self._supervisor.num_blind} ticks: errors of the model are not '
                          'seen'), values
        return OK, f'uncertainty {trust.figure:.3f}', values

    def _horizon(self) -> dict[str, object]:
        """Return how many steps the next plan counts, if that changes."""
        steps = self._supervisor.horizon if self._supervisor is not None else None
        return {} if steps is None else {'horizon': steps}

    def _safety(self) -> Report:
        values: dict[str, object] = {
            name: self._meter.counts[name] for name in ('safe', 'slowed')}
        values |= {'crashed': bool(self.crash), 'stops': self._latch.num_trips}
        num_safe = self._since_last('safe', self._meter.counts['safe'])
        if self.crash:
            return ERROR, 'control loop stopped; see the log', values
        if self.stalled_s:
            return ERROR, f'the control loop has stood still for {self.stalled_s:.1f} s', values
        if self._latch.reason:
            return ERROR, self._latch.reason, values
        last = self._meter.last
        if last is None or not self._is_active():
            return OK, 'not acting', values
        deaf = self._outlet.silent_topics()
        if deaf:
            return ERROR, f'nobody listens to {", ".join(deaf)}', values
        verdict = last.verdict
        if num_safe and not verdict.safe:  # over by now, but nobody was told
            return WARN, (f'{num_safe} safe values since the last report: '
                          f'{self._meter.safe_reason}'), values
        level = ERROR if verdict.safe else WARN if verdict.reason else OK
        return level, verdict.reason or 'acting', values

    def _since_last(self, name: str, count: int) -> int:
        """Return by how much a counter has grown since it was last reported."""
        grown, self._reported[name] = count - self._reported[name], count
        return grown
