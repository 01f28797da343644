"""
Iterative linear-quadratic regulation with limits: Newton's method along a trajectory.

Each round solves the problem whose dynamics are linear and whose cost is quadratic around the
plan, and tries steps of several lengths towards its solution.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from scipy.linalg import solve_triangular
from scipy.optimize import lsq_linear

from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.planning import ActionSpace, Noise
from mbrl_ros.planning._candidates import advance, clip, middle, rank
from mbrl_ros.planning._noise import ColoredNoise

SHORTENED = 0.5  # each step tried is this much of the one before
REGULARISED = 5.0  # factor by which the regularisation grows and shrinks
REGULARISATION_MIN, REGULARISATION_MAX = 1e-9, 1e9


class Config(Strict):
    """Parameters of iterative linear-quadratic regulation."""

    iterations: int = Field(10, ge=2, le=1000, description='Rounds a plan')
    starts: int = Field(8, ge=1, le=10000,
                        description='Sequences of the first round: that of the last plan, and '
                                    'noisy ones around it; the cheapest goes on')
    step_lengths: int = Field(8, ge=1, le=30,
                              description='Steps tried a round: the whole, its half, its quarter')
    regularisation: float = Field(1e-3, ge=REGULARISATION_MIN, le=REGULARISATION_MAX,
                                  description='Cost of moving an action by its range, at first; '
                                              'it falls where the model holds and rises where not')
    tolerance: float = Field(1e-6, ge=0.0, le=1.0,
                             description='Share of the cost to be gained below which it is done')
    noise_exponent: float = Field(2.0, ge=0.0, le=4.0,
                                  description='Noise power goes as f^-exponent; 0 is white')
    initial_std: float = Field(0.25, gt=0.0, le=1.0,
                               description='Std of the noise, as a share of the range')
    warm_start: bool = Field(True, description='Start from the last plan, shifted in time')


@dataclass(frozen=True)
class State:
    """
    The plan, the model around it, and what to try next.

    Attributes
    ----------
    actions : array, shape (H, A)
        Cheapest sequence so far, in action units.
    cost : array, shape ()
        Its cost; infinite before the first round.
    jacobian : array, shape (H, S, S + A)
        Derivatives of x[t + 1] by (x[t], u[t]).
    slope, curvature : array, shapes (H, S + A) and (H, S + A, S + A)
        First and second derivatives of the cost of a step by (x[t + 1], u[t]).
    candidates : array, shape (L, H, A)
        Sequences to try next.
    regularisation : array, shape ()
        Cost of moving an action by its range.
    settled : array, shape ()
        1 if nothing is left to be gained.

    """

    actions: np.ndarray
    cost: np.ndarray
    jacobian: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray
    candidates: np.ndarray
    regularisation: np.ndarray
    settled: np.ndarray


@dataclass(frozen=True)
class Policy:
    """
    Solution of the linear-quadratic problem: u + forward + feedback (x' - x).

    Attributes
    ----------
    forward, feedback : array, shapes (H, A) and (H, A, S)
        In action units, and those a unit of the state.
    gain : float
        By how much the cost is to fall.

    """

    forward: np.ndarray
    feedback: np.ndarray
    gain: float


def quadratic_model(expansion: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return jacobian, slope and curvature, as in `State`, in float64."""
    e = expansion
    curvature = np.concatenate([np.concatenate([e.l_xx, e.l_ux.swapaxes(1, 2)], axis=2),
                                np.concatenate([e.l_ux, e.l_uu], axis=2)], axis=1)
    jacobian = np.concatenate([e.by_state, e.by_action], axis=2)
    return (jacobian.astype(float), np.concatenate([e.l_x, e.l_u], axis=1).astype(float),
            curvature.astype(float))


def solve(jacobian: np.ndarray, slope: np.ndarray, curvature: np.ndarray, low: np.ndarray,
          high: np.ndarray, penalty: np.ndarray) -> Policy:
    """
    Solve the linear-quadratic problem around a trajectory, from its end to its start.

    Parameters
    ----------
    jacobian, slope, curvature : array
        As in `State`; where a step's cost is not convex, its concave part is left out.
    low, high : array, shape (H, A)
        Between which the change of each action is to stay.
    penalty : array, shape (A,)
        Cost of the square of an action's change; above 0.

    Returns
    -------
    Policy
        Changes of the actions, and of those with the state; an action at a limit stays there.

    """
    num_state = jacobian.shape[1]
    values, vectors = np.linalg.eigh(curvature)
    curvature = (vectors * np.maximum(values, 0.0)[:, None]) @ vectors.swapaxes(1, 2)
    steps, num_action = low.shape
    forward, feedback = np.zeros(low.shape), np.zeros((steps, num_action, num_state))
    value_slope, value_curvature, gain = np.zeros(num_state), np.zeros((num_state, num_state)), 0.0
    chosen = np.hstack([np.zeros((num_action, num_state)), np.eye(num_action)])
    for t in reversed(range(steps)):
        # From (x[t], u[t]) to (x[t + 1], u[t]), which cost and value are of.
        lead = np.vstack([jacobian[t], chosen])
        total_slope, total_curvature = slope[t].copy(), curvature[t].copy()
        total_slope[:num_state] += value_slope
        total_curvature[:num_state, :num_state] += value_curvature
        q, qq = lead.T @ total_slope, lead.T @ total_curvature @ lead
        q_x, q_u = q[:num_state], q[num_state:]
        q_xx, q_ux, q_uu = (qq[:num_state, :num_state], qq[num_state:, :num_state],
                            qq[num_state:, num_state:])
        k, free = _bounded_minimum(q_uu + np.diag(penalty), q_u, low[t], high[t])
        matrix = np.zeros((num_action, num_state))
        if free.any():
            inner = (q_uu + np.diag(penalty))[np.ix_(free, free)]
            matrix[free] = -np.linalg.solve(inner, q_ux[free])
        forward[t], feedback[t] = k, matrix
        gain -= float(q_u @ k + 0.5 * k @ q_uu @ k)
        value_slope = q_x + matrix.T @ (q_uu @ k + q_u) + q_ux.T @ k
        value_curvature = q_xx + matrix.T @ q_uu @ matrix + matrix.T @ q_ux + q_ux.T @ matrix
        value_curvature = 0.5 * (value_curvature + value_curvature.T)
    return Policy(forward, feedback, gain)


def _bounded_minimum(hessian: np.ndarray, slope: np.ndarray, low: np.ndarray,
                     high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimum of a quadratic between limits, and which of it are at none."""
    factor = np.linalg.cholesky(hessian)  # hessian = factor factor'
    residual = solve_triangular(factor, -slope, lower=True)
    whole = solve_triangular(factor.T, residual)
    if ((low < whole) & (whole < high)).all():
        return whole, np.ones(len(whole), bool)
    # A little wider, because it demands that there be room.
    found = lsq_linear(factor.T, residual, (low, np.maximum(high, low + 1e-12)), method='bvls')
    return found.x, found.active_mask == 0


class Planner:
    """
    Iterative linear-quadratic regulation of action sequences, deterministic in the mean model.

    Notes
    -----
    Sources: Li and Todorov 2004 (iLQR); Tassa et al. 2014 for the limits (control-limited
    differential dynamic programming). Candidates of the line search follow the linear model, so
    that all of them are rolled out at once.

    """

    asks: Literal['expansion'] = 'expansion'

    def __init__(self, config: Config, space: ActionSpace) -> None:
        self.config, self.space = config, space
        self.num_iterations = config.iterations
        self._middle = middle(space)
        self._range = space.high - space.low
        self._lengths = SHORTENED ** np.arange(config.step_lengths)[:, None]

    def noise(self, generator: np.random.Generator) -> ColoredNoise:
        """Return white or colored noise, not truncated."""
        return ColoredNoise(generator, self.space.horizon, len(self.space.low),
                            self.config.noise_exponent)

    def init(self) -> State:
        """Return zeros, or the middle of a range that zero is not inside of."""
        return self._begin(self._middle, np.array(self.config.regularisation))

    def sample(self, state: State, noise: Noise) -> np.ndarray:
        """Return noisy sequences at first, then steps of several lengths, shape (L, H, A)."""
        if np.isfinite(state.cost):
            return state.candidates
        draws = np.asarray(noise.draw(self.config.starts - 1)) if self.config.starts > 1 \
            else np.empty((0, *self._middle.shape))
        noisy = state.actions + self.config.initial_std * self._range * draws
        return np.concatenate([state.actions[None], clip(noisy, self.space)])

    def update(self, state: State, actions: np.ndarray, answer: Any) -> State:
        """
        Take the cheapest candidate if it is cheaper than the plan, and choose what to try next.

        Parameters
        ----------
        state : State
            Current state; not modified.
        actions : array, shape (L, H, A)
            Candidates.
        answer : Expansion
            Their costs, and the model around the cheapest of them.

        Raises
        ------
        PlanningError
            If no candidate of this plan had a finite cost.

        """
        rank(np.append(answer.cost, state.cost))
        cost = float(answer.cost[answer.best])
        if cost < state.cost:
            found = quadratic_model(answer)
            actions, factor = actions[answer.best], 1.0 / REGULARISED
        else:
            found = state.jacobian, state.slope, state.curvature
            actions, cost, factor = state.actions, float(state.cost), REGULARISED
        if not np.isfinite(state.cost):
            factor = 1.0  # nothing was tried yet
        level = float(np.clip(state.regularisation * factor, REGULARISATION_MIN,
                              REGULARISATION_MAX))
        if not all(np.isfinite(part).all() for part in found):
            return State(actions, np.array(cost), *found, actions[None], np.array(level),
                         np.array(1))
        policy = solve(*found, self.space.low - actions, self.space.high - actions,
                       level / self._range**2)
        # A penalty that keeps the step short does not mean that nothing is to be gained.
        settled = (policy.gain <= self.config.tolerance * abs(cost) and factor <= 1.0) \
            or level == REGULARISATION_MAX
        return State(actions, np.array(cost), *found, self._steps(actions, found[0], policy),
                     np.array(level), np.array(int(settled)))

    def is_settled(self, state: State) -> bool:
        """Return whether no more is to be gained than the tolerance."""
        return bool(state.settled)

    def solution(self, state: State) -> np.ndarray:
        """Return the cheapest sequence, shape (H, A)."""
        return state.actions

    def shift(self, state: State, steps: int) -> State:
        """Return the warm start: the plan moved towards now, and how far its model holds."""
        # What grew because nothing more was to be gained says nothing of the next plan.
        level = np.minimum(state.regularisation, self.config.regularisation)
        if not self.config.warm_start:
            return self.init()
        return self._begin(advance(state.actions[None], steps, self._middle[:steps])[0],
                           np.asarray(level))

    def _begin(self, actions: np.ndarray, regularisation: np.ndarray) -> State:
        none = np.zeros(0)
        return State(actions, np.array(np.inf), none, none, none, none, regularisation,
                     np.array(0))

    def _steps(self, actions: np.ndarray, jacobian: np.ndarray, policy: Policy) -> np.ndarray:
        """Follow the policy in the linear model, at each step length: shape (L, H, A)."""
        num_state = jacobian.shape[1]
        away = np.zeros((len(self._lengths), num_state))
        found = []
        for t, action in enumerate(actions):
            changed = clip(action + self._lengths * policy.forward[t]
                           + away @ policy.feedback[t].T, self.space)
            away = np.hstack([away, changed - action]) @ jacobian[t].T
            found.append(changed)
        return np.stack(found, axis=1)
