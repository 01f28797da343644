"""The control tick: plan in time or fall back, then through the safety gate."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mbrl_ros.control.exploration import Signal
from mbrl_ros.control.gate import SafetyGate, Verdict
from mbrl_ros.control.mpc import Decision, Mpc
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

    """

    state: np.ndarray | None
    problem: str = ''
    fresh: bool = True


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
        True if this tick's plan was late, and the command is the next action of an older plan.
    finished : tuple of Decision
        Plans that came in during this tick, late ones too: what a meter of plan times counts.

    """

    index: int
    verdict: Verdict
    decision: Decision | None
    missed: bool
    finished: tuple[Decision, ...] = ()


class Pilot(Protocol):
    """Turns observations into ticks."""

    def tick(self, observation: Observation) -> Tick:
        """Do one tick."""

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
        return Tick(self._index, verdict, None, missed=False)

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

    """

    def __init__(self, mpc: Mpc, gate: SafetyGate, robot: RobotSpec, delay_steps: int,
                 deadline_s: float | None) -> None:
        self._mpc, self._gate, self._robot = mpc, gate, robot
        self._deadline_s = deadline_s
        self._in_flight = deque([robot.safe_value] * delay_steps, maxlen=delay_steps)
        self._worker = ThreadPoolExecutor(1, 'plan')
        self._running: Future[Decision] | None = None
        self._last: Decision | None = None
        self._finished: list[Decision] = []
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
        age = self._index - self._last.tick if self._last is not None else 0
        decision = self._last
        if decision is not None and age >= len(decision.actions):
            decision = None
        action = decision.actions[age] if decision is not None else None
        spread = decision.spread if decision is not None else 0.0
        verdict = self._gate.check(action, state, problem, spread)
        self._in_flight.append(verdict.command)
        late = self._last is None or self._last.tick != self._index
        missed = usable and not problem and observation.fresh and late
        finished, self._finished = tuple(self._finished), []
        return Tick(self._index, verdict, decision, missed, finished)

    def _collect(self) -> str:
        """Wait for the running plan until the deadline; return what went wrong, if anything."""
        assert self._running is not None
        try:
            self._last = self._running.result(self._deadline_s)
        except FutureTimeout:
            return ''
        except PlanningError as error:
            # The older plan led here: no further action of it is taken.
            self._running = self._last = None
            return str(error)
        self._running = None
        self._finished.append(self._last)
        return ''

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

    def close(self) -> None:
        """Let the running plan finish and stop the thread."""
        self._worker.shutdown(wait=True)
