"""Derivatives of a rollout, by compiled graphs of their own: made when first asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.cache import cached
from mbrl_ros.runtime.ort import open_ort
from mbrl_ros.runtime.providers import Session
from mbrl_ros.runtime.rollout_config import RolloutConfig


@dataclass(frozen=True)
class Gradients:
    """
    Costs of candidates and how they change with the actions.

    Attributes
    ----------
    cost : array, shape (P,)
        Not finite where the model diverged.
    gradient : array, shape (P, H, A)
        Of each candidate's cost by its own actions.

    """

    cost: np.ndarray
    gradient: np.ndarray


@dataclass(frozen=True)
class Expansion:
    """
    Candidates under the mean of the members, without noise, and the model around the cheapest.

    The cost of step t is l(x[t + 1], u[t]), of the state that an action led to and the action.

    Attributes
    ----------
    cost : array, shape (P,)
        Of each candidate; not finite where the model diverged.
    best : int
        Index of the cheapest, around which all that follows is.
    states : array, shape (H + 1, S)
        x: where it starts, and the state after each of its actions.
    by_state, by_action : array, shapes (H, S, S) and (H, S, A)
        Derivatives of x[t + 1] by x[t] and u[t].
    l_x, l_u : array, shapes (H, S) and (H, A)
        Derivatives of the step's cost by x[t + 1] and u[t].
    l_xx, l_ux, l_uu : array, shapes (H, S, S), (H, A, S) and (H, A, A)
        Its second derivatives.

    """

    cost: np.ndarray
    best: int
    states: np.ndarray
    by_state: np.ndarray
    by_action: np.ndarray
    l_x: np.ndarray
    l_u: np.ndarray
    l_xx: np.ndarray
    l_ux: np.ndarray
    l_uu: np.ndarray


class Derivatives:
    """
    What gradient-based planners ask of a rollout. It runs on the CPU, in float32.

    Parameters
    ----------
    artifact, robot, task, config
        As of the rollout.
    ingredients : callable
        Returns everything the rollout's graph is made from, to find these graphs in the cache.

    """

    def __init__(self, artifact: Artifact, robot: RobotSpec, task: TaskSpec,
                 config: RolloutConfig, ingredients: Callable[[], Sequence[bytes]]) -> None:
        self._made_from = (artifact, robot, task, config)
        self._ingredients = ingredients
        self._num_state, self._num_action = len(robot.observation), len(robot.action)

    def gradients(self, feeds: Mapping[str, np.ndarray]) -> Gradients:
        """
        Return costs and gradients of candidates; `feeds` are the inputs of the rollout's graph.

        Raises
        ------
        SpecError
            If the model or a cost term has an operator without a rule for its derivative.

        """
        cost, gradient = self._gradient.run(['cost', 'gradient'], feeds)
        return Gradients(cost, gradient)

    def expansion(self, state: np.ndarray, actions: np.ndarray, goal: np.ndarray,
                  weights: np.ndarray, horizon: int) -> Expansion:
        """
        Roll out candidates by the members' mean and expand around the cheapest.

        Parameters
        ----------
        state : array, shape (S,)
            Where they start.
        actions : array, shape (P, H, A)
            Candidates.
        goal, weights : array, shapes (G,) and (T,)
            Of the task.
        horizon : int
            Steps that count: the later ones cost nothing.

        Raises
        ------
        SpecError
            If the model or a cost term has an operator without a rule for its derivative, or the
            rollout charges for more than the terms of one trajectory.

        """
        actions = np.asarray(actions, np.float32)
        states = self._walk(np.asarray(state, np.float32), actions)
        given = {'goal': goal, 'weights': weights}
        counts = np.arange(actions.shape[1]) < horizon
        # Later steps may diverge: nobody asks.
        cost = np.sum(np.where(counts, self._costs(states[:, 1:], actions, given), 0.0), axis=1)
        best = int(np.argmin(np.where(np.isfinite(cost), cost, np.inf)))
        path, chosen = states[best], actions[best]
        by_state, by_action = self._jacobians(path[:-1], chosen)
        slopes = [np.where(counts.reshape(-1, *[1] * (part.ndim - 1)), part, 0.0)
                  for part in self._slopes(path[1:], chosen, given)]
        return Expansion(cost, best, path, by_state, by_action, *slopes)

    def _walk(self, start: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the states (P, H + 1, S) of candidates (P, H, A)."""
        states = [np.broadcast_to(start, (len(actions), self._num_state))]
        for action in actions.swapaxes(0, 1):
            feeds = {'state': states[-1], 'action': action, 'seed': states[0]}  # no matter which
            states += self._step.run(['next'], feeds)
        return np.stack(states, axis=1)

    def _costs(self, states: np.ndarray, actions: np.ndarray,
               given: Mapping[str, np.ndarray]) -> np.ndarray:
        rows = {'state': states.reshape(-1, self._num_state),
                'action': actions.reshape(-1, self._num_action)}
        cost, = self._run_cost(['cost'], rows, given)
        return cost.reshape(states.shape[:-1])

    def _jacobians(self, states: np.ndarray, actions: np.ndarray) -> list[np.ndarray]:
        """Return d(next)/d(state) and d(next)/d(action): one row a step and output."""
        rows, directions = _rows(states, actions, self._num_state)
        return _unrow(self._step.run(['by_state', 'by_action'], rows | {'seed': directions}),
                      self._num_state)

    def _slopes(self, states: np.ndarray, actions: np.ndarray,
                given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return l_x, l_u, l_xx, l_ux, l_uu: for the second ones, one row a step and input."""
        found = self._run_cost(['l_x', 'l_u'], {'state': states, 'action': actions}, given)
        for seed, size, parts in (('seed_x', self._num_state, ['l_xx']),
                                  ('seed_u', self._num_action, ['l_ux', 'l_uu'])):
            rows, directions = _rows(states, actions, size)
            found += _unrow(self._run_cost(parts, rows, given, **{seed: directions}), size)
        return found

    def _run_cost(self, outputs: Sequence[str], rows: Mapping[str, np.ndarray],
                  given: Mapping[str, np.ndarray], **seeds: np.ndarray) -> list[np.ndarray]:
        # A session wants all of its inputs, whatever the outputs need.
        unused = {'seed_x': rows['state'], 'seed_u': rows['action']}
        return self._cost.run(outputs, {**rows, **given, **unused, **seeds})

    @cached_property
    def _gradient(self) -> Session:
        from mbrl_ros.runtime.compile_derivatives import compile_gradient  # noqa: PLC0415
        return self._open('gradient', lambda: compile_gradient(*self._made_from))

    @cached_property
    def _step(self) -> Session:
        from mbrl_ros.runtime.compile_derivatives import compile_step  # noqa: PLC0415
        self._check_plain()
        return self._open('step', lambda: compile_step(*self._made_from[:2]))

    @cached_property
    def _cost(self) -> Session:
        from mbrl_ros.runtime.compile_derivatives import compile_cost  # noqa: PLC0415
        return self._open('cost', lambda: compile_cost(*self._made_from[1:3]))

    def _check_plain(self) -> None:
        _, _, task, config = self._made_from
        charged = {'propagation': config.propagation != 'mean', 'value': bool(config.value),
                   'disagreement_weight': config.disagreement_weight > 0.0,
                   'max_disagreement': config.max_disagreement > 0.0,
                   'termination_cost': task.termination_cost is not None}
        unknown = [name for name, is_charged in charged.items() if is_charged]
        if unknown:
            raise SpecError(
                f'this planner expands the mean of the members and the cost terms alone, not '
                f"{', '.join(unknown)}: set rollout.propagation to 'mean' and leave the others "
                "out, or take the planner 'gradient'.")

    def _open(self, name: str, make: Callable[[], bytes]) -> Session:
        graph, _ = cached([name.encode(), *self._ingredients()], make)
        session: Session = open_ort(graph, 'CPUExecutionProvider')
        return session


def _rows(states: np.ndarray, actions: np.ndarray,
          size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Repeat each step (H, ...) `size` times, and give each copy a direction of its own."""
    return ({'state': states.repeat(size, axis=0), 'action': actions.repeat(size, axis=0)},
            np.tile(np.eye(size, dtype=np.float32), (len(states), 1)))


def _unrow(found: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    return [part.reshape(-1, size, part.shape[-1]) for part in found]
