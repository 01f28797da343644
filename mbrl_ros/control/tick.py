"""The control tick: plan in time or climb down the fallback ladder, then through the gate."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
import traceback
from typing import Protocol

import numpy as np

from mbrl_ros.control.exploration import Signal
from mbrl_ros.control.gate import SafetyGate, Verdict
from mbrl_ros.control.ladder import climb_down, DEFAULT_LADDER, LadderConfig, Rung
from mbrl_ros.control.mpc import Decision, Mpc
from mbrl_ros.control.supervisor import Supervisor
from mbrl_ros.control.trust import TrustGauge
from mbrl_ros.core.errors import PlanningError
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
        True if this tick's plan was late.
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
        return self.decision.actions[self.index - self.decision.tick + 1:]


class Pilot(Protocol):
    """Turns observations into ticks."""

    def tick(self, observation: Observation) -> Tick:
        """Do one tick."""

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

    def review(self, observation: Observation, tick: Tick) -> None:
        """Nothing was foreseen."""

    def forget(self) -> None:
        """Begin from the safe value; the signal goes on."""
        self._gate.forget()

    def close(self) -> None:
        """Nothing runs beside a signal."""


class PlanPilot:
    """
    Plans every tick, on a thread of its own, and never waits beyond the deadline.

    Parameters
    ----------
    mpc : Mpc
        The planner.
    gate : SafetyGate
        Judges every command.
    robot : RobotSpec
        Safe value.
    delay_steps : int
        Control periods from an observation to the moment its command acts.
    deadline_s : float or None
        Time a tick may wait for its plan; None waits for ever (lock-step).
    ladder : LadderConfig
        What ticks without a plan may do, and how long.
    supervisor : Supervisor, optional
        Restrains commands where the model does not foresee what happens.

    Attributes
    ----------
    supervisor : Supervisor or None
        As given.

    """

    def __init__(self, mpc: Mpc, gate: SafetyGate, robot: RobotSpec, delay_steps: int,
                 deadline_s: float | None, ladder: LadderConfig = DEFAULT_LADDER,
                 supervisor: Supervisor | None = None) -> None:
        self._mpc, self._gate, self._robot = mpc, gate, robot
        self._deadline_s, self._ladder, self.supervisor = deadline_s, ladder, supervisor
        self._in_flight = deque([robot.safe_value] * delay_steps, maxlen=delay_steps)
        self._worker = ThreadPoolExecutor(1, 'plan')
        self._running: Future[Decision] | None = None
        self._last: Decision | None = None
        self._finished: list[Decision] = []
        self._failure = ''
        self._index = 0

    def tick(self, observation: Observation) -> Tick:
        """Start a plan if none runs, wait for it, and act on the newest one there is."""
        self._index += 1
        state, problem = observation.state, observation.problem
        usable = state is not None and not problem
        if state is not None and usable:
            if self._running is not None and self._running.done():
                problem = self._collect()  # a late plan of an earlier tick: better than none
            if self._running is None and observation.fresh:
                self._running = self._worker.submit(
                    self._mpc.plan, self._index, state, tuple(self._in_flight))
            if self._running is not None:
                problem = self._collect() or (problem if self._running is not None else '')
        failed = bool(problem)
        action, rung = climb_down(self._ladder, self._last, self._index, self._gate.last)
        decision = self._last if action is not None else None
        if self._last is not None and decision is None:
            problem = problem or f'the last plan is {self._index - self._last.tick} ticks old'
        spread = decision.spread if decision is not None else 0.0
        doubt = ''
        if action is not None and self.supervisor is not None:
            restraint = self.supervisor.restraint
            action = restraint.apply(action, self._gate.last, self._robot.safe_value)
            doubt = self.supervisor.doubt()
            if restraint.level == 'stop':
                problem = problem or doubt
            elif restraint.level == 'hold':
                rung = 'held'
        verdict = self._gate.check(action, state, problem, spread)
        if doubt and not verdict.reason:
            verdict = replace(verdict, reason=doubt)
        self._in_flight.append(verdict.command)
        late = self._last is None or self._last.tick != self._index
        missed = usable and not failed and observation.fresh and late
        finished, self._finished = tuple(self._finished), []
        failure, self._failure = self._failure, ''
        return Tick(self._index, verdict, decision, missed, 'safe' if verdict.safe else rung,
                    finished, failure, bool(doubt))

    def _collect(self) -> str:
        """Wait for the running plan until the deadline; return what went wrong, if anything."""
        assert self._running is not None
        try:
            self._last = self._running.result(self._deadline_s)
        except FutureTimeout:
            return ''
        except Exception as error:
            # The older plan led here: no further action of it is taken. A planner may be the
            # user's own file: whatever it raises, the next observation gets another try.
            self._running = self._last = None
            if not isinstance(error, PlanningError):
                self._failure = traceback.format_exc()
                return f'the planner failed: {type(error).__name__}: {error}'
            return str(error)
        self._running = None
        self._finished.append(self._last)
        return ''

    def review(self, observation: Observation, tick: Tick) -> None:
        """Compare what was foreseen with what was observed."""
        if self.supervisor is None:
            return
        usable = observation.fresh and not observation.problem
        own = tick.decision if tick.decision is not None and tick.decision.tick == tick.index \
            else None
        self.supervisor.review(tick.index, observation.state if usable else None,
                               observation.stamp_ns, tick.verdict.command, own)

    def forget(self) -> None:
        """
        Forget plans, warm start and commands in flight.

        What was planned before a pause must not move the robot after it.
        """
        if self._running is not None:
            wait([self._running])
        self._running = self._last = None
        self._finished.clear()
        self._in_flight.extend([self._robot.safe_value] * len(self._in_flight))
        self._mpc.forget()
        self._gate.forget()
        if self.supervisor is not None:
            self.supervisor.forget()

    def replace_model(self, mpc: Mpc, max_spread: float, gauge: TrustGauge) -> bool:
        """
        Plan with another model from the next tick on; return False while a plan still runs.

        The warm start, the random numbers and the commands in flight go over to it.
        """
        if self._running is not None and not self._running.done():
            return False
        if self._running is not None:
            self._collect()
        mpc.adopt(self._mpc)
        self._mpc, self._gate.max_spread = mpc, max_spread
        if self.supervisor is not None:
            self.supervisor.replace_model(gauge)
        return True

    def close(self) -> None:
        """Let the running plan finish and stop the thread."""
        self._worker.shutdown(wait=True)
