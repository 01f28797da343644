"""Costs of action sequences under the learned model: the one seam between planner and model."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import os

import numpy as np

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.compile import compile_rollout, Propagation
from mbrl_ros.runtime.ort import open_session, Provider


@dataclass(frozen=True)
class Draw:
    """
    What all candidates of one plan share.

    Random numbers, noise (H, K, S) and permutation (H, K), and the goal (G,) as it was when the
    plan began: a goal that changes meanwhile must not split one ranking in two.
    """

    noise: np.ndarray
    permutation: np.ndarray
    goal: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """
    What the model foresees for one action sequence.

    Attributes
    ----------
    cost : float
        Weighted sum of `terms`.
    terms : array, shape (T,)
        Each term, without its weight.
    states : array, shape (H, K, S)
        Predicted states of the particles after each step.

    """

    cost: float
    terms: np.ndarray
    states: np.ndarray


class Rollout:
    """
    The compiled rollout of a model and a task.

    Parameters
    ----------
    artifact, robot, task
        Verified model and what it is for.
    particles : int
        K, a multiple of the members.
    propagation : {'ts_infinity', 'ts1'}
        Trajectory sampling scheme.
    provider : {'cpu', 'cuda'}
        Execution provider; refused where it is missing.
    threads : int
        Tiles that run at once on the CPU; by default one a core.

    """

    def __init__(self, artifact: Artifact, robot: RobotSpec, task: TaskSpec, particles: int,
                 propagation: Propagation = 'ts_infinity', provider: Provider = 'cpu',
                 threads: int = 0) -> None:
        model = compile_rollout(artifact, robot, task, particles, propagation)
        self.horizon, self.particles = task.horizon, particles
        self.propagation = propagation
        self._num_state = len(robot.observation)
        self._session = open_session(model, provider)
        self._threads = 1 if provider == 'cuda' else threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, 'rollout')
        self._goal = task.goal_values.astype(np.float32)
        self._weights = task.weights.astype(np.float32)

    def set_goal(self, goal: np.ndarray) -> None:
        """Plan towards another goal, shape (G,), from the next call on."""
        if np.shape(goal) != self._goal.shape:
            raise ValueError(f'goal of shape {np.shape(goal)}; the task has {len(self._goal)} '
                             'number(s)')
        self._goal = np.asarray(goal, np.float32)

    def draw(self, rng: np.random.Generator) -> Draw:
        """Draw the random numbers of one plan, and take down its goal."""
        shape = (self.horizon, self.particles)
        order = np.tile(np.arange(self.particles), (self.horizon, 1))
        return Draw(rng.standard_normal((*shape, self._num_state), dtype=np.float32),
                    rng.permuted(order, axis=1), self._goal)

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
            Random numbers of this plan.

        Returns
        -------
        array, shape (P,)
            Cost of each; not finite where the model diverged.

        """
        count = min(self._threads, len(actions))
        tiles = np.array_split(actions.astype(np.float32), count)
        runs = self._pool.map(lambda tile: self._run(['cost'], state, tile, draw)[0], tiles)
        return np.concatenate(list(runs))

    def predict(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> Prediction:
        """Return what the model foresees for one sequence, shape (H, A)."""
        cost, terms, states = self._run(['cost', 'terms', 'states'], state,
                                        actions[None].astype(np.float32), draw)
        return Prediction(float(cost[0]), terms[0], states[:, :, 0])

    def _run(self, outputs: list[str], state: np.ndarray, actions: np.ndarray,
             draw: Draw) -> list[np.ndarray]:
        feeds = {'state': state.astype(np.float32), 'actions': actions, 'noise': draw.noise,
                 'goal': draw.goal, 'weights': self._weights}
        if self.propagation == 'ts1':
            feeds['permutation'] = draw.permutation
        return self._session.run(outputs, feeds)

    def close(self) -> None:
        """Stop the tile threads."""
        self._pool.shutdown()
