"""How far the model may be trusted now: what became of its predictions, and what that allows."""

from collections import deque

import numpy as np

from mbrl_ros.control.exploitation import Exploitation, ExploitationCheck
from mbrl_ros.control.horizon import AdaptiveHorizon
from mbrl_ros.control.mpc import Decision
from mbrl_ros.control.trust import Restraint, Trust, TrustGauge, TrustLimiter

# Observations this far from one control period apart, as a share of it, are not consecutive.
JITTER = 0.25


class Supervisor:
    """
    Follows the ticks of a pilot; looks when the command is out, so no command waits for it.

    Parameters
    ----------
    gauge, limiter, check
        What is asked.
    delay_steps : int
        Control periods from an observation to the moment its command acts.
    dt_ns : int
        Control period.
    adaptive_horizon : AdaptiveHorizon, optional
        How far plans may look; without it as far as they reach.

    Attributes
    ----------
    restraint : Restraint
        What the next command must bear.
    trust, exploitation : Trust, Exploitation
        Newest readings.
    num_blind : int
        Ticks in a row without two observations one period apart, which errors need.

    """

    def __init__(self, gauge: TrustGauge, limiter: TrustLimiter, check: ExploitationCheck,
                 delay_steps: int, dt_ns: int,
                 adaptive_horizon: AdaptiveHorizon | None = None) -> None:
        self._gauge, self._limiter, self._check = gauge, limiter, check
        self._dt_ns, self._adaptive_horizon = dt_ns, adaptive_horizon
        self._sent: deque[np.ndarray] = deque(maxlen=delay_steps + 2)
        self.forget()

    def forget(self) -> None:
        """Begin anew, as after a pause."""
        self._gauge.forget()
        self._limiter.forget()
        self._check.forget()
        if self._adaptive_horizon is not None:
            self._adaptive_horizon.forget()
        self._sent.clear()
        self._fresh_index = self._stamp_ns = self.num_blind = 0
        self._goal = self._weights = np.empty(0)
        self.restraint, self.trust, self.exploitation = Restraint(), Trust(), Exploitation()

    @property
    def horizon(self) -> int | None:
        """Steps that the next plan counts; None: all."""
        return None if self._adaptive_horizon is None else self._adaptive_horizon.steps

    def replace_model(self, gauge: TrustGauge, adaptive_horizon: AdaptiveHorizon | None) -> None:
        """Judge another model from now on; nothing is known of it yet."""
        self._gauge, self._adaptive_horizon = gauge, adaptive_horizon
        self._limiter.forget()
        self._check.forget()

    def doubt(self) -> str:
        """Return why commands are restrained; empty if they are not."""
        if self.restraint.level == 'full':
            return ''
        does = {'slow': f'slowed to {self.restraint.scale:.0%} of the plan',
                'hold': 'last command held', 'stop': 'stopped'}[self.restraint.level]
        return f'the model is surprised, {does}: {self.trust.describe()}'

    def review(self, index: int, state: np.ndarray | None, stamp_ns: int, command: np.ndarray,
               decision: Decision | None) -> None:
        """
        Take down one tick.

        Parameters
        ----------
        index : int
            Number of the tick.
        state : array, shape (S,), or None
            Its observation; None if it was not fresh, or wrong.
        stamp_ns : int
            Stamp of that.
        command : array, shape (A,)
            What was sent.
        decision : Decision or None
            Newest plan that came in during this tick, its own or a late one.

        """
        self._sent.append(command)
        # Acted since the observation before: the command sent `delay_steps` ticks before that.
        is_known = len(self._sent) == self._sent.maxlen
        spacing = abs(stamp_ns - self._stamp_ns - self._dt_ns)
        is_consecutive = (is_known and state is not None and self._fresh_index == index - 1
                          and spacing <= JITTER * self._dt_ns)
        self._gauge.observe(state, self._sent[0], is_consecutive=is_consecutive)
        if decision is not None:
            self._goal, self._weights = decision.inputs.goal, decision.inputs.weights
        if self._weights.size:  # a plan has come in
            self._check.observe(state, self._sent[0], self._goal, self._weights,
                                is_consecutive=is_consecutive)
        if decision is not None:
            found, steps = decision.prediction, decision.inputs.horizon
            if decision.tick == index and (found.lengths is None
                                           or (found.lengths >= steps).all()):
                # A late plan is not followed from its start; of one whose particles end, the
                # terms are of fewer steps than the robot is charged for.
                self._check.planned(self._check.promise(self._weights, found.terms), steps)
            self._gauge.planned(found.states[:steps], found.lengths)
        self.num_blind = 0 if is_consecutive else self.num_blind + 1
        if state is not None:
            self._fresh_index, self._stamp_ns = index, stamp_ns
        self.trust = self._gauge.read()
        self.exploitation = self._check.read()
        self.restraint = self._limiter.update(self.trust.figure)
        if self._adaptive_horizon is not None:
            if decision is not None:
                self._adaptive_horizon.planned(decision)
            self._adaptive_horizon.update(self.trust.signals)
