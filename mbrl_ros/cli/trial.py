"""One trial of the demo, and what is known of it afterwards."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.costs import CostFunction
from mbrl_ros.data.dataset import Dataset


@dataclass
class Trial:
    """
    One run of an episode's length on the robot.

    Attributes
    ----------
    trial : int
        Zero is the random motion that everything begins with.
    robot_seconds : float
        Robot time recorded up to and with this trial.
    total_return : float
        Minus the cost, summed over the real transitions.
    goal : list of float
        Goal of this trial, in the order of the task.
    final_distance_m : float or None
        From what the task drives to its target, at the end. None for a task without such a point.
    holdout_r2, holdout_error : float or None
        Of the model that drove: smallest one-step R2 of a field, and the error of the longest
        open-loop prediction in state deviations. None for trial zero and a shipped model.
    plan_ms : list of float
        Time of each plan, late ones too.
    ticks, missed_ticks : int
        Control ticks, and those whose plan was late.
    bag, model : Path or None
        What was recorded, what drove.

    """

    trial: int
    robot_seconds: float
    total_return: float
    ticks: int
    missed_ticks: int
    bag: Path
    model: Path | None = None
    goal: list[float] = field(default_factory=list)
    final_distance_m: float | None = None
    holdout_r2: float | None = None
    holdout_error: float | None = None
    plan_ms: list[float] = field(default_factory=list)
    safe_reasons: list[str] = field(default_factory=list)

    def quantile_ms(self, share: float) -> float | None:
        """Return a quantile of the plan times [ms]; None where nothing was planned."""
        return float(np.quantile(self.plan_ms, share)) if self.plan_ms else None

    def to_dict(self) -> dict[str, Any]:
        """Return the row of metrics.json."""
        row = {key: value for key, value in asdict(self).items()
               if key not in {'plan_ms', 'total_return', 'bag', 'model'}}
        return row | {'return': self.total_return, 'plan_ms_p50': self.quantile_ms(0.5),
                      'plan_ms_p99': self.quantile_ms(0.99), 'bag': self.bag.name}


def realised_return(dataset: Dataset, robot: RobotSpec, task: TaskSpec,
                    goal: np.ndarray | None = None) -> float:
    """
    Return minus the task's cost over all transitions of a dataset, for a goal, shape (G,).

    A term that only a model knows is charged by what was recorded; SpecError if that was not.
    """
    _, action, next_state = dataset.transitions()
    function = CostFunction(task, robot)
    labels = _labels(dataset)
    terms = function.terms(next_state, action, task.goal_values if goal is None else goal,
                           labels if labels.keys() >= set(function.heads) else None)
    return -float(sum(weight * np.sum(term)
                      for weight, term in zip(task.weights, terms, strict=True)))


def _labels(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return what was recorded of each transition beside its states, each (N,)."""
    recorded = {'reward': [episode.rewards for episode in dataset.episodes],
                'termination': [episode.terminations for episode in dataset.episodes]}
    return {name: np.concatenate([array for array in arrays if array is not None])
            for name, arrays in recorded.items()
            if arrays and all(array is not None for array in arrays)}


def final_distance(dataset: Dataset, robot: RobotSpec, task: TaskSpec,
                   goal: np.ndarray) -> float | None:
    """Return how far [m] the last state is from a goal, shape (G,); None if no term can say."""
    function = CostFunction(task, robot)
    _, action, next_state = dataset.transitions()
    position, target = function.position(next_state[-1], action[-1], goal), function.target(goal)
    if position is None or target is None:
        return None
    return float(np.linalg.norm(position - target))


def count_ticks(ticks: list[dict[str, str]], most: int) -> dict[str, Any]:
    """
    Summarise the ticks of a trial: one an observation, the first `most` of them.

    The robot falls silent when a trial is over, and the controller then sends the safe value until
    it is deactivated; those ticks bring no new observation and do not count.
    """
    answered = list({tick['stamp_ns']: tick for tick in reversed(ticks)}.values())[::-1][:most]
    return {
        'ticks': len(answered),
        'missed_ticks': sum(tick['missed'] == 'True' for tick in answered),
        # A late plan comes in with the next tick: a tick may bring two times, or none.
        'plan_ms': [float(time_ms) for tick in answered
                    for time_ms in tick.get('plan_ms', '').split()],
        'safe_reasons': sorted({tick['reason'] for tick in answered if tick['safe'] == 'True'})}
