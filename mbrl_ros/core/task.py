"""The task spec: what is minimised, towards which goal, over which planning horizon."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.paths import find_config
from mbrl_ros.core.robot import _check_path, Name, RobotSpec
from mbrl_ros.core.yaml_file import load, Strict


class GoalField(Strict):
    """
    One number of the goal: a constant, or the latest value on a topic (then `value` first).

    A series of trials draws it anew for each, from N(value, std).
    """

    name: Name
    value: float
    std: float = Field(default=0.0, ge=0.0)
    topic: str | None = None
    type: str | None = Field(default=None, pattern=r'^\w+/msg/\w+$')
    path: Annotated[str, AfterValidator(_check_path)] | None = None

    @model_validator(mode='after')
    def _check_source(self) -> 'GoalField':
        given = [part is not None for part in (self.topic, self.type, self.path)]
        if any(given) and not all(given):
            raise ValueError('a goal from a topic needs topic, type and path')
        if self.std > 0.0 and self.topic is None:
            raise ValueError('a goal that is drawn anew (std) needs topic, type and path: the '
                             'controller has to hear of it')
        return self


class CostTerm(Strict):
    """One term of the cost: a file of mbrl_ros/costs, its weight and its own parameters."""

    term: str
    name: Name | None = None
    weight: float = Field(default=1.0, ge=0.0)
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name under which the share of this term is reported."""
        return self.name or self.term


class Bounds(Strict):
    """Range of one state field inside which an episode goes on."""

    min: float
    max: float

    @model_validator(mode='after')
    def _check_range(self) -> 'Bounds':
        if self.min >= self.max:
            raise ValueError(f'empty range: min {self.min} must be below max {self.max}')
        return self


class TaskSpec(Strict):
    """
    A task, as read from config/tasks/<name>.yaml.

    `planner` is what plans for it unless a parameter says otherwise: a name in config/planners or
    the path of a .yaml file. `gate` is the return of an episode at which a robot that learns the
    task has learned it, and `pretrained_gate` what a shipped model must reach; empty: the same.

    `termination` bounds where the task acts at all. With a `termination_cost` plans know: a
    particle that leaves the bounds ends there, and each step of the horizon that is left costs so
    much; more than a step can cost, or leaving would pay.
    """

    name: Name
    robot: Name
    description: str = ''
    horizon: int = Field(ge=1, le=200)
    episode_steps: int = Field(ge=1)
    planner: str = 'cem'
    gate: float | None = None
    pretrained_gate: float | None = None
    goal: tuple[GoalField, ...] = ()
    cost: tuple[CostTerm, ...] = Field(min_length=1)
    termination: dict[str, Bounds] = Field(default_factory=dict)
    termination_cost: float | None = None

    @model_validator(mode='after')
    def _check_labels(self) -> 'TaskSpec':
        labels = [term.label for term in self.cost]
        double = sorted({label for label in labels if labels.count(label) > 1})
        if double:
            raise ValueError(f'cost terms with the same name: {", ".join(double)}; '
                             "give each a 'name'")
        return self

    @model_validator(mode='after')
    def _check_termination(self) -> 'TaskSpec':
        if self.termination_cost is not None and not self.termination:
            raise ValueError('termination_cost is charged outside of the bounds of `termination`, '
                             'and there are none: name a field and its range')
        return self

    @property
    def goal_names(self) -> list[str]:
        """Names of the goal vector, length G."""
        return [field.name for field in self.goal]

    @property
    def goal_values(self) -> np.ndarray:
        """Return the constant goal, shape (G,)."""
        return np.array([field.value for field in self.goal])

    @property
    def is_goal_live(self) -> bool:
        """Whether any of the goal comes from a topic."""
        return any(field.topic is not None for field in self.goal)

    def draw_goal(self, generator: np.random.Generator) -> np.ndarray:
        """Draw the goal of one trial, shape (G,)."""
        return generator.normal(self.goal_values, [field.std for field in self.goal])

    @property
    def weights(self) -> np.ndarray:
        """Weights of the cost terms, shape (T,)."""
        return np.array([term.weight for term in self.cost])


def load_task(name: str | Path, robot: RobotSpec) -> TaskSpec:
    """
    Load a task spec and check it against the robot it is for.

    Raises
    ------
    SpecError
        If the task is for another robot, ends episodes by a field the robot does not have, or
        gives a goal the name of something else.

    """
    path = find_config('tasks', str(name))
    task = load(path, TaskSpec)
    if task.robot != robot.name:
        raise SpecError(f"{path}: robot: the task is for '{task.robot}', not '{robot.name}'. "
                        f'Try: --robot {task.robot}')
    names = [*robot.state_names, *robot.action_names, *task.goal_names]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise SpecError(f'{path}: goal: names used twice: {", ".join(double)}. A cost term finds '
                        'state, action and goal by name: rename the goal.')
    unknown = sorted(set(task.termination) - set(robot.state_names))
    if unknown:
        raise SpecError(f'{path}: termination: unknown field {", ".join(unknown)}; '
                        f'allowed: {", ".join(robot.state_names)}')
    return task
