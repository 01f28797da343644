"""
Cost terms: one file each, pure functions on the Python array API standard.

A term is a module with `Params` (a Strict model of its own parameters) and
`cost(signal, params)`, where `signal(name)` returns the array of a state, action or goal field by
its name, and the result has the broadcast shape of what was asked for. NumPy evaluates the same
function in tests and reports that is traced into the controller's graph.

A term that drives a point of the robot somewhere may also define `position(signal, params)`, the
point's x, y, z [m], and `target(signal, params)`, the x, y, z where it is driven: RViz shows them.
"""

from collections.abc import Callable
import sys
from typing import Any, Protocol

import numpy as np
from pydantic import ValidationError

from mbrl_ros.core import plugins
from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import CostTerm, TaskSpec
from mbrl_ros.core.yaml_file import describe, Strict

Array = Any  # whatever implements the Python array API standard
Signal = Callable[[str], Array]


class _TermModule(Protocol):
    """What a cost term's file defines."""

    Params: type[Strict]

    def cost(self, signal: Signal, params: Any) -> Array: ...


class CostFunction:
    """
    The cost of a task: its terms, in order, by field name.

    Parameters
    ----------
    task, robot : TaskSpec, RobotSpec
        The terms and the names they may use.

    Raises
    ------
    SpecError
        If a term, one of its parameters or a field it names is unknown.

    """

    def __init__(self, task: TaskSpec, robot: RobotSpec) -> None:
        self.labels = [term.label for term in task.cost]
        self._index = {
            **{name: (0, i) for i, name in enumerate(robot.state_names)},
            **{name: (1, i) for i, name in enumerate(robot.action_names)},
            **{name: (2, i) for i, name in enumerate(task.goal_names)},
        }
        self._num_state, self._num_action = len(robot.observation), len(robot.action)
        self._terms = [self._load(term, task.name) for term in task.cost]

    def terms(self, state: Array, action: Array, goal: Array) -> list[Array]:
        """
        Evaluate each term, without its weight.

        Parameters
        ----------
        state : array, shape (..., S)
            State that the action led to.
        action : array, shape (..., A)
            Action taken.
        goal : array, shape (G,)
            Goal of the task.

        Returns
        -------
        list of array, each of shape (...)
            Terms in the order of the task.

        """
        def signal(name: str) -> Array:
            source, index = self._index[name]
            return (state, action, goal)[source][..., index]
        return [module.cost(signal, params) for module, params in self._terms]

    def position(self, state: np.ndarray, action: np.ndarray,
                 goal: np.ndarray) -> np.ndarray | None:
        """
        Return the point that the task drives, shape (..., 3) [m]; None if no term says.

        Arguments are as in `terms`; the first term that has a `position` says.
        """
        return self._point('position', state, action, goal)

    def target(self, goal: np.ndarray) -> np.ndarray | None:
        """Return where the task drives its point, shape (3,) [m]; None if no term says."""
        return self._point('target', np.full(self._num_state, np.nan),
                           np.full(self._num_action, np.nan), goal)

    def _point(self, name: str, state: np.ndarray, action: np.ndarray,
               goal: np.ndarray) -> np.ndarray | None:
        def signal(field: str) -> np.ndarray:
            source, index = self._index[field]
            return np.asarray((state, action, goal)[source][..., index])
        for module, params in self._terms:
            if hasattr(module, name):
                point = getattr(module, name)(signal, params)
                return np.stack(np.broadcast_arrays(*point), axis=-1)
        return None

    def _load(self, term: CostTerm, task_name: str) -> tuple[_TermModule, Strict]:
        source = f"task '{task_name}': cost term '{term.label}'"
        module: Any = plugins.find(sys.modules[__name__], term.term)
        if not (hasattr(module, 'Params') and hasattr(module, 'cost')):
            raise SpecError(f"{source}: '{term.term}' is no cost term: its file must define "
                            'Params and cost(signal, params)')
        try:
            params = module.Params.model_validate(term.params)
        except ValidationError as error:
            raise SpecError(describe(error, source)) from error

        def check(name: str) -> Array:
            if name not in self._index:
                raise SpecError(f"{source}: unknown field '{name}'; "
                                f'allowed: {", ".join(self._index)}')
            return np.ones(())
        for name in ('cost', 'position', 'target'):
            if hasattr(module, name):
                getattr(module, name)(check, params)
        return module, params
