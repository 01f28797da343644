"""Model-predictive control: carry the state forward to when the command acts, then plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
import time
from typing import Any

import numpy as np

from mbrl_ros.control.model import Dynamics, Rollout
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.planning import optimise, Planner
from mbrl_ros.runtime.rollout import Prediction


@dataclass(frozen=True)
class Inputs:
    """
    Whatever a decision depends on, beside the model and the settings.

    Attributes
    ----------
    tick : int
        Tick at which the plan's first action is to be sent.
    observation : array, shape (S,)
        Latest observation when the plan was begun, or what stood for it.
    in_flight : array, shape (D, A)
        Commands that act between the observation and the plan's first action.
    warm : dataclass of arrays
        The planner's state, shifted to this tick.
    generator : mapping
        State of the random generator's bits.
    goal, weights : array, shapes (G,) and (T,), float32
        Of the task.
    horizon : int
        Steps that count, at most H.

    """

    tick: int
    observation: np.ndarray
    in_flight: np.ndarray
    warm: Any
    generator: Mapping[str, Any]
    goal: np.ndarray
    weights: np.ndarray
    horizon: int


@dataclass(frozen=True)
class Decision:
    """
    One plan and what it was made from.

    Attributes
    ----------
    inputs : Inputs
        `Mpc.decide` makes the same plan from them again, bit for bit.
    actions : array, shape (H, A)
        Planned actions; `actions[i]` belongs to `tick` + i.
    start : array, shape (S,)
        State the plan starts from: the observation carried through the commands in flight.
    spread : float
        Disagreement of the members about the first step, in typical steps.
    candidates, rejected : int
        Candidates that were evaluated, and those of them whose cost was not finite.
    plan_s : float
        Time it took.
    rollout, draw
        What evaluated the candidates, under which random numbers.

    """

    inputs: Inputs
    actions: np.ndarray
    start: np.ndarray
    spread: float
    candidates: int
    rejected: int
    plan_s: float
    rollout: Rollout
    draw: Any

    @property
    def tick(self) -> int:
        """Tick at which `actions[0]` is to be sent."""
        return self.inputs.tick

    @property
    def counted(self) -> np.ndarray:
        """Planned actions of the steps that count; nothing was asked of those after them."""
        return self.actions[:self.inputs.horizon]

    @cached_property
    def prediction(self) -> Prediction:
        """What the model foresees; computed when first asked for: the command does not wait."""
        return self.rollout.predict(self.start, self.actions, self.draw)


class Mpc:
    """
    Plans from observations; keeps the warm start from one plan to the next.

    Parameters
    ----------
    dynamics, rollout, planner
        One step of the model, its compiled rollout and the planner.
    robot : RobotSpec
        Sizes and limits.
    generator : numpy Generator
        Source of every random number.

    Attributes
    ----------
    dynamics : Dynamics
        As given.

    """

    def __init__(self, dynamics: Dynamics, rollout: Rollout, planner: Planner, robot: RobotSpec,
                 generator: np.random.Generator) -> None:
        self.dynamics, self._rollout, self._planner, self._robot = (
            dynamics, rollout, planner, robot)
        self._generator = generator
        self._noise = planner.noise(generator)
        self._state: Any = planner.init()
        self._tick = 0

    @property
    def rollout(self) -> Rollout:
        """What evaluates candidates."""
        return self._rollout

    def plan(self, tick: int, observation: np.ndarray, in_flight: Sequence[np.ndarray],
             horizon: int | None = None) -> Decision:
        """
        Plan once.

        Parameters
        ----------
        tick : int
            Control tick that the plan's first action is for; the warm start is shifted by the
            ticks since that of the last plan.
        observation : array, shape (S,)
            Latest observation, or what stands for it.
        in_flight : sequence of array, shape (A,)
            Commands, sent or about to be, that act between the observation and this plan's first
            action.
        horizon : int, optional
            Steps that count; all by default.

        Raises
        ------
        PlanningError
            If too few candidates have a finite cost.

        """
        began = time.perf_counter()
        shift = min(tick - self._tick, self._rollout.horizon) if self._tick else 0
        return self._decide(began, Inputs(
            tick, observation, np.reshape(in_flight, (-1, len(self._robot.action))),
            self._planner.shift(self._state, shift) if shift else self._state,
            self._generator.bit_generator.state, self._rollout.goal, self._rollout.weights,
            horizon or self._rollout.horizon))

    def decide(self, inputs: Inputs) -> Decision:
        """
        Plan from given inputs, now or when a log is replayed; the next plan starts from this one.

        Raises
        ------
        PlanningError
            If too few candidates have a finite cost.

        """
        return self._decide(time.perf_counter(), inputs)

    def _decide(self, began: float, inputs: Inputs) -> Decision:
        self._generator.bit_generator.state = inputs.generator
        start = inputs.observation
        for command in inputs.in_flight:
            start = self.advance(start, command)
        # Not the rollout's own goal, which a message may have changed since.
        draw = replace(self._rollout.draw(self._generator), goal=inputs.goal,
                       weights=inputs.weights, horizon=inputs.horizon)
        evaluate = getattr(self._rollout, self._planner.asks)
        plan = optimise(self._planner, inputs.warm, self._noise,
                        lambda actions: evaluate(start, actions, draw),
                        self._rollout.proposals(start, draw))
        self._state, self._tick = plan.state, inputs.tick
        spread = float(self.dynamics.spread(self._step(start, plan.actions[0]))[0])
        return Decision(inputs, plan.actions, start, spread, plan.candidates, plan.rejected,
                        time.perf_counter() - began, self._rollout, draw)

    def advance(self, state: np.ndarray, command: np.ndarray) -> np.ndarray:
        """Return the state (S,) one control period on, in the mean of the members."""
        return np.asarray(self._step(state, command)[:, 0].mean(axis=0))

    def forget(self) -> None:
        """Drop the warm start."""
        self._state, self._tick = self._planner.init(), 0

    def adopt(self, other: 'Mpc') -> None:
        """Go on where another one is: its warm start, its random numbers, its goal and weights."""
        self._state, self._tick = other._state, other._tick
        self._generator.bit_generator.state = other._generator.bit_generator.state
        self._rollout.set_goal(other._rollout.goal)
        self._rollout.set_weights(other._rollout.weights)

    def calibrate(self) -> None:
        """
        Cut the population into the tiles that are fastest on this machine.

        Nothing is measured for planners that ask for more than costs: those come in one piece.
        """
        if self._planner.asks != 'costs':
            return
        generator = np.random.default_rng(0)  # the plans' own numbers are not used up
        candidates = self._planner.sample(self._planner.init(), self._planner.noise(generator))
        self._rollout.calibrate(self._rest(), np.asarray(candidates),
                                self._rollout.draw(generator))

    def warm_up(self, most_plans: int = 100, most_s: float = 2.0) -> np.ndarray:
        """
        Plan from rest again and again, all rounds of each plan, and forget it all.

        At rest a planner may be settled soon; the times are to hold where it is not.

        Parameters
        ----------
        most_plans : int
            Plans after which to stop.
        most_s : float
            Seconds after which to stop; five plans are made at least.

        Returns
        -------
        array, shape (N,)
            Time [s] of each plan but the first two, in which buffers are made.

        """
        state, tick, bits = self._state, self._tick, self._generator.bit_generator.state
        planner, self._planner = self._planner, _NeverSettled(self._planner)
        times: list[float] = []
        end = time.perf_counter() + most_s
        while len(times) < 5 or (len(times) < most_plans + 2 and time.perf_counter() < end):
            decision = self.plan(1 + len(times), self._rest(), [self._robot.safe_value])
            times.append(decision.plan_s)
        _ = decision.prediction  # its shapes are warmed up too
        self._planner, self._state, self._tick = planner, state, tick
        self._generator.bit_generator.state = bits
        return np.array(times[2:])

    def _rest(self) -> np.ndarray:
        return np.zeros(len(self._robot.observation))

    def _step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Return each member's mean of the next state, shape (E, 1, S)."""
        return self.dynamics(state[None], action[None])[0]


class _NeverSettled:
    """A planner that takes all of its rounds."""

    def __init__(self, planner: Planner) -> None:
        self.asks, self.num_iterations = planner.asks, planner.num_iterations
        self.noise, self.init, self.sample = planner.noise, planner.init, planner.sample
        self.update, self.solution, self.shift = planner.update, planner.solution, planner.shift

    def is_settled(self, _: Any) -> bool:
        return False
