"""Find the largest budget that this machine plans within its control period."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
import platform

import numpy as np
import yaml

from mbrl_ros.control.mpc import Mpc
from mbrl_ros.core.errors import PlanningError, SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.planning import ActionSpace, config_class, make_planner, PlanningConfig
from mbrl_ros.runtime import providers
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.rollout import Rollout

SMALLEST, LARGEST = 8, 10_000
FINEST = 1.1  # two populations closer than this are not told apart
PLANS, FINAL_PLANS = 100, 300
SECONDS, FINAL_SECONDS = 2.0, 6.0


@dataclass(frozen=True)
class Attempt:
    """One measured budget: its planner's Config, and the times [s] of a plan."""

    provider: str
    precision: str
    config: Strict
    p50_s: float
    p99_s: float
    num_plans: int

    @property
    def population(self) -> int:
        """Candidates an iteration."""
        return int(self.config.population)  # type: ignore[attr-defined]


def tune(robot: RobotSpec, task: TaskSpec, model: Artifact, planning: PlanningConfig,
         limit_s: float, provider: str = '', precision: str = '',
         progress: Callable[[Attempt], None] = lambda attempt: None) -> Attempt:
    """
    Measure plans of this robot, task and model, and return the largest population that fits.

    Iterations, particles and horizon stay as they are; elites keep their share of the population.

    Parameters
    ----------
    robot, task, model
        What is planned for.
    planning : PlanningConfig
        Planner and rollouts to begin from.
    limit_s : float
        What the 99th percentile of the time of a plan must not exceed.
    provider, precision : str
        What runs the model; by default each provider that is here, in its default precision.
    progress : callable
        Told each attempt.

    Raises
    ------
    PlanningError
        If even the smallest population takes longer than the limit.
    SpecError
        If the planner has no population.

    """
    kind = config_class(planning.planner)
    if 'population' not in kind.model_fields:
        raise SpecError(f"planner '{planning.planner}' has no population to tune")
    start = kind.model_validate(planning.params)
    best: Attempt | None = None
    slowest: Attempt | None = None
    for name in [provider] if provider else providers.available():
        with_provider = _Bench(robot, task, model, planning, name, precision, progress)
        try:
            for attempt in _search(with_provider, start, limit_s):
                if attempt.p99_s > limit_s:
                    slowest = attempt
                elif best is None or attempt.population > best.population:
                    best = attempt
        finally:
            with_provider.close()
    if best is None:
        assert slowest is not None
        raise PlanningError(
            f'{slowest.population} candidates take {slowest.p99_s * 1e3:.1f} ms (99th '
            f'percentile), more than {limit_s * 1e3:.1f} ms. Try fewer iterations or particles in '
            "the planner's YAML, a shorter horizon in the task's, or a smaller network.")
    return best


def write_params(path: Path, attempt: Attempt, planner: str, planning: PlanningConfig,
                 comment: str) -> None:
    """Write a ROS parameter file for the controller, in whatever namespace it runs."""
    values = {'planner': planner, 'provider': attempt.provider, 'precision': attempt.precision,
              'rollout': planning.rollout.model_dump(),
              planning.planner: attempt.config.model_dump()}
    lines = [f'# {line}' for line in comment.splitlines()]
    lines.append(f'# Written by mbrl-ros bench tune on {date.today()}, {platform.node()}.')
    text = yaml.safe_dump({'/**/mpc_controller': {'ros__parameters': values}}, sort_keys=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + f'\n{text}')


class _Bench:
    """Measures budgets on one provider."""

    def __init__(self, robot: RobotSpec, task: TaskSpec, model: Artifact,
                 planning: PlanningConfig, provider: str, precision: str,
                 progress: Callable[[Attempt], None]) -> None:
        self._robot, self._model, self._planner = robot, model, planning.planner
        self._rollout = Rollout(model, robot, task, planning.rollout, provider, precision)
        self._space = ActionSpace(task.horizon, robot.action_min, robot.action_max)
        self._progress = progress

    def measure(self, config: Strict, plans: int, seconds: float) -> Attempt:
        """Time plans with this Config."""
        planner = make_planner(self._planner, config, self._space)
        mpc = Mpc(Dynamics(self._model.model, self._model.metadata), self._rollout, planner,
                  self._robot, np.random.default_rng(0))
        mpc.calibrate()
        times_s = mpc.warm_up(plans, seconds)
        p50_s, p99_s = np.quantile(times_s, [0.5, 0.99])
        attempt = Attempt(self._rollout.provider, self._rollout.precision, config, float(p50_s),
                          float(p99_s), len(times_s))
        self._progress(attempt)
        return attempt

    def close(self) -> None:
        """Stop the threads."""
        self._rollout.close()


def _search(bench: _Bench, start: Strict, limit_s: float) -> Iterator[Attempt]:
    """Double or halve the population past the limit, then close in on it, then make sure."""
    low, high = 0, 0  # the largest that fits, the smallest that does not
    population = int(start.population)  # type: ignore[attr-defined]
    while not high or not low or high > FINEST * low:
        attempt = bench.measure(_with_population(start, population), PLANS, SECONDS)
        if attempt.p99_s <= limit_s:
            low = population
        else:
            high = population
            if population == SMALLEST:
                yield attempt
                return
        if low == LARGEST:
            break
        population = round((low * high) ** 0.5) if low and high \
            else min(2 * low, LARGEST) if low else max(high // 2, SMALLEST)
        if population in (low, high):
            break
    # A 99th percentile of few plans is luck: the choice has to hold over more of them.
    while low >= SMALLEST:
        attempt = bench.measure(_with_population(start, low), FINAL_PLANS, FINAL_SECONDS)
        if attempt.p99_s <= limit_s or low == SMALLEST:
            yield attempt
            return
        low = max(SMALLEST, int(low / FINEST))


def _with_population(start: Strict, population: int) -> Strict:
    """Return the planner's Config with another population, its elites in proportion."""
    values = start.model_dump()
    scale = population / values['population']
    for name, least in (('num_elites', 2), ('keep_elites', 1)):  # one elite has no std
        if values.get(name):
            values[name] = max(least, round(values[name] * scale))
    return type(start).model_validate({**values, 'population': population})
