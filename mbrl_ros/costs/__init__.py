"""
Cost terms: one file each, pure functions on the Python array API standard.

A term is a module with `Params` (a Strict model of its own parameters) and
`cost(signal, params)`, where `signal(name)` returns the array of a state, action or goal field by
its name, and the result has the broadcast shape of what was asked for. NumPy evaluates the same
function in tests and reports that is traced into the controller's graph.

A term may ask for what a model has learned beside the state, too: `reward`, the reward of the
step, and `termination`, the probability that it ends the episode. A plan has them of the model. Of
a real transition they are known where they were recorded, and nowhere else: there a return is
refused rather than told without them, and the check of kept promises leaves them out on both
sides.

A term that drives a point of the robot somewhere may also define `position(signal, params)`, the
point's x, y, z [m], and `target(signal, params)`, the x, y, z where it is driven: RViz shows them.
"""

from collections.abc import Callable, Mapping
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
HEADS = ('reward', 'termination')  # what a model may have learned beside the state


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

    Attributes
    ----------
    labels : list of str
        Names of the terms.
    learned : array, shape (T,)
        Whether a term asks for what only a model knows.
    heads : tuple of str
        What the terms ask for of that: some of `HEADS`.

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
        self._terms: list[tuple[_TermModule, Strict]] = []
        asked: list[set[str]] = []
        for term in task.cost:
            module, params, names = self._load(term, task.name)
            self._terms.append((module, params))
            asked.append(names.difference(self._index))
        self.learned = np.array([bool(names) for names in asked])
        self.heads = tuple(name for name in HEADS if any(name in names for names in asked))

    def terms(self, state: Array, action: Array, goal: Array,
              heads: Mapping[str, Array] | None = None) -> list[Array]:
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
        heads : mapping of str to array, each of shape (...), optional
            `self.heads` of the step, foreseen or recorded. A term that lacks what it needs of an
            empty one is left out: 0.

        Returns
        -------
        list of array, each of shape (...)
            Terms in the order of the task.

        Raises
        ------
        SpecError
            If a term needs heads and they are not given at all.

        """
        if heads is None and self.heads:
            labels = ', '.join(np.array(self.labels)[self.learned])
            raise SpecError(f'cost term {labels}: {", ".join(self.heads)} is known where a model '
                            'foresees it or a bag has recorded it, not here. Use a term that is '
                            'computed from states and actions.')

        def signal(name: str) -> Array:
            if name not in self._index:
                return (heads or {})[name]
            source, index = self._index[name]
            return (state, action, goal)[source][..., index]
        return [0.0 * state[..., 0] if is_learned and not heads else module.cost(signal, params)
                for (module, params), is_learned in zip(self._terms, self.learned, strict=True)]

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

    def _load(self, term: CostTerm, task_name: str) -> tuple[_TermModule, Strict, set[str]]:
        """Return a term's module, its parameters, and the names it asks for."""
        source = f"task '{task_name}': cost term '{term.label}'"
        module: Any = plugins.find(sys.modules[__name__], term.term)
        if not (hasattr(module, 'Params') and hasattr(module, 'cost')):
            raise SpecError(f"{source}: '{term.term}' is no cost term: its file must define "
                            'Params and cost(signal, params)')
        try:
            params = module.Params.model_validate(term.params)
        except ValidationError as error:
            raise SpecError(describe(error, source)) from error

        allowed, asked = [*self._index, *HEADS], set[str]()

        def check(name: str) -> Array:
            if name not in allowed:
                raise SpecError(f"{source}: unknown field '{name}'; "
                                f'allowed: {", ".join(allowed)}')
            asked.add(name)
            return np.ones(())
        for name in ('cost', 'position', 'target'):
            if hasattr(module, name):
                getattr(module, name)(check, params)
        return module, params, asked
