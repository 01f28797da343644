"""
The true model: MuJoCo itself where a learned one would be, so that plans show what it is worth.

`KnownDynamics` and `KnownRollout` have the methods of `runtime.dynamics.Dynamics` and
`runtime.rollout.Rollout` that control needs, so they drive, plan and predict in their place.
What only a learned model has is not there: no particles, no members that disagree, no gradients.
"""

from copy import copy
from dataclasses import dataclass
import os
from pathlib import Path

import mujoco
from mujoco.rollout import Rollout as Threads
import numpy as np

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.costs import CostFunction
from mbrl_ros.sim.known_dynamics import KnownDynamics
from mbrl_ros.sim.mujoco_robot import MujocoRobot


@dataclass(frozen=True)
class Draw:
    """What all candidates of one plan share: goal (G,), weights (T,), steps that count."""

    goal: np.ndarray
    weights: np.ndarray
    horizon: int


@dataclass(frozen=True)
class Prediction:
    """Cost of one sequence, its terms (T,) without weights, its states (H, 1, S)."""

    cost: float
    terms: np.ndarray
    states: np.ndarray


class KnownRollout:
    """
    Costs of action sequences under the true model, rolled out by MuJoCo on several threads.

    Parameters
    ----------
    body : MujocoRobot
        The robot that is planned for; see `KnownDynamics`.
    task : TaskSpec
        Cost, goal and horizon.
    threads : int
        Rollouts that run at once; 0: as many as this process may use cores. They change no bit.

    Attributes
    ----------
    dynamics : KnownDynamics
        One step of the same model: the two belong together.
    horizon : int
        Steps H of a sequence.
    goal, weights : array, shapes (G,) and (T,)
        Of the next plan.
    num_tiles : int
        Rollouts that run at once.
    model_hash, model_path : str, Path
        SHA-256 of the physics, and the MJCF it was read from.
    provider, precision : str
        What runs it, and in which precision.

    Raises
    ------
    SpecError
        If the task charges for what only a learned model foresees, or the robot observes what no
        state of the physics has.

    Notes
    -----
    There is no `RolloutConfig`: particles, propagation and risk tell how to sample what a model
    is not sure of, and doubt what to do about it. One that is sure has nothing to sample.

    """

    provider, precision = 'mujoco', 'float64'

    def __init__(self, body: MujocoRobot, task: TaskSpec, threads: int = 0) -> None:
        assert body.spec.simulation is not None
        self.model_hash = body.physics_hash
        self.model_path = Path(body.spec.simulation.mjcf)
        self.dynamics, self.horizon = KnownDynamics(body), task.horizon
        self.goal, self.weights = task.goal_values, task.weights
        self._task, self._cost = task, CostFunction(task, body.spec)
        if self._cost.heads:
            raise SpecError(f"task '{task.name}' charges for {', '.join(self._cost.heads)}, which "
                            'only a learned model foresees. MuJoCo as the model needs a task with '
                            'terms that are computed from states and actions')
        self.num_tiles = threads or len(os.sched_getaffinity(0))
        self._threads = Threads(nthread=self.num_tiles if self.num_tiles > 1 else 0)
        self._scratch = [copy(body.data) for _ in range(self.num_tiles)]

    def set_goal(self, goal: np.ndarray) -> None:
        """Plan towards another goal, shape (G,), from the next call on."""
        self.goal = np.array(goal, float).reshape(self.goal.shape)

    def set_weights(self, weights: np.ndarray) -> None:
        """Weigh the cost terms anew, shape (T,), from the next call on."""
        self.weights = np.array(weights, float).reshape(self.weights.shape)

    def draw(self, rng: np.random.Generator) -> Draw:
        """Take down goal and weights; no random number is needed."""
        del rng
        return Draw(self.goal, self.weights, self.horizon)

    def costs(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> np.ndarray:
        """
        Evaluate candidates.

        Parameters
        ----------
        state : array, shape (S,)
            Where they start.
        actions : array, shape (P, H, A)
            Candidates.
        draw : Draw
            Goal, weights and steps that count.

        Returns
        -------
        array, shape (P,)
            Cost of each; not finite where the physics diverges.

        """
        used = np.asarray(actions, float)[:, :draw.horizon]
        return self._charge(self._foresee(state, used), used, draw)[0]

    def proposals(self, state: np.ndarray, draw: Draw) -> None:
        """Return None: it has no policy to ask."""

    def predict(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> Prediction:
        """Return what the model foresees for one sequence, shape (H, A)."""
        candidates, used = np.asarray(actions, float)[None], slice(draw.horizon)
        states = self._foresee(state, candidates)
        cost, terms = self._charge(states[:, used], candidates[:, used], draw)
        return Prediction(float(cost[0]), terms[0], states[0, :, None])

    def calibrate(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> dict[int, float]:
        """Return no times: MuJoCo itself shares the rollouts out among the threads."""
        del state, actions, draw
        return {}

    def close(self) -> None:
        """Stop the threads."""
        self._threads.close()

    def _charge(self, states: np.ndarray, actions: np.ndarray,
                draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Return what sequences cost, shape (P,), and their terms, (P, T), without weights."""
        counted = self._counted(states)
        terms = np.stack([np.where(counted, term, 0.0).sum(axis=1)
                          for term in self._cost.terms(states, actions, draw.goal)], axis=1)
        # Not a matrix product, whose last bits depend on how many candidates there are.
        cost = (terms * draw.weights).sum(axis=1)
        if self._task.termination_cost is not None:
            cost += self._task.termination_cost * np.count_nonzero(~counted, axis=1)
        # Terms that do not look at a state must not let a diverged candidate through.
        return cost + 0.0 * states.sum(axis=(1, 2)), terms

    def _counted(self, states: np.ndarray) -> np.ndarray:
        """Return which steps count, shape (P, H): those up to the first out of the bounds."""
        outside = np.zeros(states.shape[:2], bool)
        if self._task.termination_cost is not None:
            for name, bounds in self._task.termination.items():
                field = states[..., self.dynamics.body.spec.state_names.index(name)]
                outside |= ~((field >= bounds.min) & (field <= bounds.max))
        ended_before = np.cumsum(outside, axis=1) - outside
        counted: np.ndarray = ended_before == 0
        return counted

    def _foresee(self, observation: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the states (P, H, S) after each step; not a number where the physics diverges."""
        full, controls = self._roll_out(observation, actions)
        whole = self._is_whole(full)
        states = np.full((*actions.shape[:2], len(observation)), np.nan)
        if whole.any():
            states[whole] = self.dynamics.observe(full[whole], controls[whole], observation)
        return states

    def _roll_out(self, observation: np.ndarray,
                  actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return full states (P, H + 1, F), the first included, and controls (P, H, nu)."""
        body, start = self.dynamics.body, self.dynamics.start(observation)
        controls = self.dynamics.controls(actions)
        found, _ = self._threads.rollout(
            body.model, self._scratch, start.full[None],
            np.repeat(controls, body.num_substeps, axis=1),
            initial_warmstart=start.warmstart[None])
        first = np.broadcast_to(start.full, (len(actions), 1, len(start.full)))
        ends = found[:, body.num_substeps - 1::body.num_substeps]
        return np.concatenate([first, ends], axis=1), controls

    def _is_whole(self, full: np.ndarray) -> np.ndarray:
        """Return which rollouts came to their end, shape (P,): a diverged one's clock stops."""
        period_s = self.dynamics.body.spec.dt_s
        late_s = full[:, 0, 0] + period_s * (full.shape[1] - 1) - full[:, -1, 0]
        sane = (np.abs(full) < mujoco.mjMAXVAL).all(axis=(1, 2))
        whole: np.ndarray = sane & (np.abs(late_s) < 0.1 * period_s)
        return whole
