"""The control tick: plan in time or climb down the fallback ladder, then through the gate."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mbrl_ros.control.exploration import Signal
from mbrl_ros.control.gate import SafetyGate, Verdict
from mbrl_ros.control.horizon import AdaptiveHorizon
from mbrl_ros.control.ladder import climb_down, DEFAULT_LADDER, LadderConfig, Rung
from mbrl_ros.control.mpc import Decision, Mpc
from mbrl_ros.control.open_loop import OpenLoop
from mbrl_ros.control.plan_thread import PlanThread
from mbrl_ros.control.supervisor import Supervisor
from mbrl_ros.control.trust import TrustGauge
from mbrl_ros.core.robot import RobotSpec


@dataclass(frozen=True)
class Observation:
    """
    What is known of the robot when a tick is due.

    Attributes
    ----------
    state : array, shape (S,), or None
        Latest observation; None before the first.
    problem : str
        What is wrong with it; empty if nothing.
    fresh : bool
        False if it was acted upon before: no plan is made from it twice.
    stamp_ns : int
        When it was measured, by the message that sets the pace.

    """

    state: np.ndarray | None
    problem: str = ''
    fresh: bool = True
    stamp_ns: int = 0


@dataclass(frozen=True)
class Tick:
    """
    Outcome of one control tick.

    Attributes
    ----------
    index : int
        Number of the tick, from one.
    verdict : Verdict
        The command and why it is not the action, if it is not.
    decision : Decision or None
        The plan acted upon; None in collect mode and before the first plan.
    missed : bool
        True if a plan was due and is not there.
    rung : {'plan', 'shifted', 'held', 'safe'}
        Step of the fallback ladder that the command stands on; a signal's action counts as 'plan'.
    finished : tuple of Decision
        Plans that came in during this tick, late ones too: what a meter of plan times counts.
    failure : str
        Traceback of a planner that raised what no planner should; empty otherwise.
    is_restrained : bool
        True if surprise keeps the command from being the plan's.

    """

    index: int
    verdict: Verdict
    decision: Decision | None
    missed: bool
    rung: Rung
    finished: tuple[Decision, ...] = ()
    failure: str = ''
    is_restrained: bool = False

    @property
    def following(self) -> np.ndarray:
        """
        Planned actions after this tick's command, shape (n, A).

        None where the command is no plan's, or the model is not trusted with the plan as it is.
        """
        if self.decision is None or self.verdict.safe or self.is_restrained \
                or self.rung not in ('plan', 'shifted'):
            return np.empty((0, len(self.verdict.command)))
        return self.decision.counted[self.index - self.decision.tick + 1:]


class Pilot(Protocol):
    """Turns observations into ticks."""

    def tick(self, observation: Observation) -> Tick:
        """Do one tick."""

    def prepare_review(self) -> None:
        """Begin on another thread what `review` is going to need; takes no time here."""

    def review(self, observation: Observation, tick: Tick) -> None:
        """Learn from a tick; its command is already on its way."""

    def forget(self) -> None:
        """Forget plans and commands: what comes next begins from the safe value."""

    def close(self) -> None:
        """Stop all threads."""


class CollectPilot:
    """Sends an exploration signal: the collect mode."""

    def __init__(self, signal: Signal, gate: SafetyGate) -> None:
        self._signal, self._gate, self._index = signal, gate, 0

    def tick(self, observation: Observation) -> Tick:
        """Send the next action of the signal."""
        self._index += 1
        verdict = self._gate.check(self._signal.next(), observation.state, observation.problem,
                                   spread=0.0)
        return Tick(self._index, verdict, None, missed=False,
                    rung='safe' if verdict.safe else 'plan')

    def prepare_review(self) -> None:
        """Nothing was foreseen."""

    def review(self, observation: Observation, tick: Tick) -> None:
        """Nothing was foreseen."""

    def forget(self) -> None:
        """Begin from the safe value; the signal goes on."""
        self._gate.forget()

    def close(self) -> None:
        """Nothing runs beside a signal."""


class PlanPilot:
    """
    Plans on a thread of its own, and never waits beyond the deadline.

    Parameters
    ----------
    mpc : Mpc
        The planner.
    gate : SafetyGate
        Judges every command.
    robot : RobotSpec
        Safe value, limits.
    delay_steps : int
        Control periods from an observation to the moment its command acts.
    deadline_s : float or None
        Time a tick may wait for its plan; None waits for ever (lock-step).
    ladder : LadderConfig
        What ticks without a plan may do, and how long.
    supervisor : Supervisor, optional
        Restrains commands where the model does not foresee what happens.
    chunk_steps : int
        Actions k of a plan that are acted upon. With one, every tick plans for itself and waits.
        With more, the tick that takes up a plan begins the next one, for k ticks later: carried
        there through the actions it is about to take, that plan has k periods to be made.
    open_loop : bool
        Whether plans see only the first observation and then what the model made of it; the gate
        and the supervisor see what is observed.

    Attributes
    ----------
    supervisor : Supervisor or None
        As given.

    Notes
    -----
    With k > 1 nothing is planned for the first k ticks: they send the safe value, which the first
    plan counts on. In lock-step, where a plan may take its time, the first tick has a plan of its
    own. A plan that comes j ticks late makes j ticks miss; the next one is begun when it comes,
    and has k periods again. Meanwhile the ladder has the older plan go on.

    """

    def __init__(self, mpc: Mpc, gate: SafetyGate, robot: RobotSpec, delay_steps: int,
                 deadline_s: float | None, ladder: LadderConfig = DEFAULT_LADDER,
                 supervisor: Supervisor | None = None, chunk_steps: int = 1, *,
                 open_loop: bool = False) -> None:
        self._mpc, self._gate, self._robot = mpc, gate, robot
        self._deadline_s, self._ladder, self.supervisor = deadline_s, ladder, supervisor
        self._chunk_steps, self._open_loop = chunk_steps, OpenLoop() if open_loop else None
        # The oldest acts from this tick's observation to the next; the others are in flight.
        self._sent = deque([robot.safe_value] * (delay_steps + 1), maxlen=delay_steps + 1)
        self._plans = PlanThread()
        self._next: tuple[Mpc, float, TrustGauge, AdaptiveHorizon | None] | None = None
        self._index = 0

    def tick(self, observation: Observation) -> Tick:
        """Begin and collect plans as they are due, and act on the newest one there is."""
        self._index += 1
        state, problem = observation.state, observation.problem
        usable = state is not None and not problem
        if state is not None and usable:
            seen = self._open_loop.look(state) if self._open_loop is not None else state
            problem = self._plan_ahead(seen, state, fresh=observation.fresh) \
                if self._chunk_steps > 1 else self._plan_now(seen, fresh=observation.fresh)
        failed, last = bool(problem), self._plans.last
        verdict, decision, rung, is_restrained = self._act(self._index, state, problem,
                                                           self._gate.last)
        self._gate.last = verdict.command
        self._sent.append(verdict.command)
        is_covered = last is not None and self._index - last.tick < self._chunk_steps
        missed = (usable and not failed and observation.fresh and not is_covered
                  and self._plans.due <= self._index)
        finished, failure = self._plans.take_news()
        return Tick(self._index, verdict, decision, missed, rung, finished, failure,
                    is_restrained)

    def _act(self, index: int, state: np.ndarray | None, problem: str,
             before: np.ndarray) -> tuple[Verdict, Decision | None, Rung, bool]:
        """
        Return what a tick does, now or ahead, as far as is known now; nothing is sent.

        That is `verdict`, `decision`, `rung` and `is_restrained` of the Tick.
        """
        last = self._plans.last
        action, rung = climb_down(self._ladder, last, index, before, self._chunk_steps)
        decision = last if action is not None else None
        if last is not None and decision is None:
            problem = problem or f'the last plan is {index - last.tick} ticks old'
        spread = decision.spread if decision is not None else 0.0
        doubt = ''
        if action is not None and self.supervisor is not None:
            restraint = self.supervisor.restraint
            action = restraint.apply(action, before, self._robot.safe_value)
            doubt = self.supervisor.doubt()
            if restraint.level == 'stop':
                problem = problem or doubt
            elif restraint.level == 'hold':
                rung = 'held'
        verdict = self._gate.judge(action, state, problem, spread, before)
        if doubt and not verdict.reason:
            verdict = replace(verdict, reason=doubt)
        return verdict, decision, 'safe' if verdict.safe else rung, bool(doubt)

    def _plan_now(self, state: np.ndarray, *, fresh: bool) -> str:
        """Plan for this tick; return what went wrong, if anything."""
        problem = ''
        if self._plans.is_done:
            problem = self._plans.collect(0.0)  # a late one of an earlier tick: better than none
        if not self._plans.is_running and fresh:
            self._begin(self._index, state, ())
        if self._plans.is_running:
            late = self._plans.collect(self._deadline_s)
            problem = late or (problem if self._plans.is_running else '')
        return problem

    def _plan_ahead(self, seen: np.ndarray, observed: np.ndarray, *, fresh: bool) -> str:
        """Take up the plan that is due, and begin the next; return what went wrong."""
        problem = ''
        if self._plans.is_running and self._plans.due <= self._index:
            problem = self._plans.collect(self._deadline_s)
        if not self._plans.is_running and fresh:
            self._take_next_model()
            if self._plans.last is None and self._deadline_s is None:
                self._begin(self._index, seen, ())
                problem = self._plans.collect(None)
            self._begin(self._index + self._chunk_steps, seen, self._foreseen(observed, problem))
        return problem

    def _begin(self, tick: int, state: np.ndarray, foreseen: Sequence[np.ndarray]) -> None:
        horizon = self.supervisor.horizon if self.supervisor is not None else None
        self._plans.begin(self._mpc, tick, state, [*list(self._sent)[1:], *foreseen], horizon)

    def _foreseen(self, state: np.ndarray, problem: str) -> list[np.ndarray]:
        """Return the k commands (A,) until the next plan, if what intervenes now goes on."""
        commands = [self._gate.last]
        for index in range(self._index, self._index + self._chunk_steps):
            verdict, *_ = self._act(index, state, problem, commands[-1])
            commands.append(verdict.command)
        return commands[1:]

    def prepare_review(self) -> None:
        """Have the plan thread compute what the newest plan foresees."""
        self._plans.foresee()

    def review(self, observation: Observation, tick: Tick) -> None:
        """Compare what was foreseen with what was observed."""
        if self._open_loop is not None:
            self._open_loop.advance(self._mpc, self._sent[0])
        if self.supervisor is None:
            return
        usable = observation.fresh and not observation.problem
        newest = tick.finished[-1] if tick.finished else None
        if newest is not None and newest.rollout is not self._mpc.rollout:
            newest = None  # made by a model that has been replaced
        self.supervisor.review(tick.index, observation.state if usable else None,
                               observation.stamp_ns, tick.verdict.command, newest)

    def forget(self) -> None:
        """
        Forget plans, warm start and commands in flight.

        What was planned before a pause must not move the robot after it.
        """
        self._plans.forget()
        self._next = None
        self._sent.extend([self._robot.safe_value] * len(self._sent))
        self._mpc.forget()
        self._gate.forget()
        if self._open_loop is not None:
            self._open_loop.forget()
        if self.supervisor is not None:
            self.supervisor.forget()

    def replace_model(self, mpc: Mpc, max_spread: float, gauge: TrustGauge,
                      horizon: AdaptiveHorizon | None) -> bool:
        """
        Plan with another model from the next plan on; return whether that is so already.

        While a plan runs it waits for the end of that: ask again. The warm start, the random
        numbers and the commands in flight go over to it, and a plan that was made and is not due
        yet.
        """
        if mpc is not self._mpc:
            self._next = mpc, max_spread, gauge, horizon
            if not self._plans.is_running or self._plans.is_done:
                self._take_next_model()
        return mpc is self._mpc

    def _take_next_model(self) -> None:
        if self._next is None:
            return
        mpc, self._gate.max_spread, gauge, horizon = self._next
        mpc.adopt(self._mpc)
        self._mpc, self._next = mpc, None
        if self.supervisor is not None:
            self.supervisor.replace_model(gauge, horizon)

    def close(self) -> None:
        """Let the running plan finish and stop the thread."""
        self._plans.close()
