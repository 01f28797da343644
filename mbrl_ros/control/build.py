"""Put a pilot together: from names and settings to what turns observations into ticks."""

from dataclasses import dataclass, field, replace
from pathlib import Path
import time
from typing import Any

import numpy as np

from mbrl_ros.control.exploitation import ExploitationCheck, ExploitationConfig
from mbrl_ros.control.exploration import make_signal
from mbrl_ros.control.gate import SafetyGate
from mbrl_ros.control.horizon import AdaptiveHorizon
from mbrl_ros.control.ladder import DEFAULT_LADDER, LadderConfig
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.mpc import Mpc
from mbrl_ros.control.supervisor import Supervisor
from mbrl_ros.control.tick import CollectPilot, Pilot, PlanPilot
from mbrl_ros.control.trust import TrustConfig, TrustGauge, TrustLimiter
from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.costs import CostFunction
from mbrl_ros.planning import ActionSpace, make_planner, Planner
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.rollout_config import RolloutConfig
from mbrl_ros.runtime.surprise import Calibration


@dataclass(frozen=True)
class PilotConfig:
    """
    Settings of a pilot.

    `signal` names an exploration signal and `source_config` is its Config; or it is empty, and
    `source_config` is that of `planner`. `deadline_s` is the time that a tick may wait for its
    plan, None: any; `chunk_steps` and `open_loop` are as `PlanPilot` has them.
    """

    model: Path
    signal: str
    planner: str
    source_config: Strict
    rollout: RolloutConfig
    provider: str
    precision: str
    delay_steps: int
    deadline_s: float | None
    max_spread: float
    seed: int
    chunk_steps: int = 1
    open_loop: bool = False
    ladder: LadderConfig = DEFAULT_LADDER
    trust: TrustConfig = field(default_factory=lambda: TrustConfig.model_validate({}))
    exploitation: ExploitationConfig = field(
        default_factory=lambda: ExploitationConfig.model_validate({}))

    def with_model(self, model: Path) -> 'PilotConfig':
        """Return the same settings for another model."""
        return replace(self, model=model)


@dataclass(frozen=True)
class Engine:
    """
    What plans: a model, loaded, verified, compiled and warmed up, and what to report of it.

    `spread_limit` is in typical steps; `plan_p50_s` and `plan_p99_s` are percentiles of the time
    of a plan, measured here.
    """

    mpc: Mpc
    rollout: Rollout
    gauge: TrustGauge
    adaptive_horizon: AdaptiveHorizon | None
    metadata: dict[str, Any]
    spread_limit: float
    plan_p50_s: float
    plan_p99_s: float
    notes: list[str]
    facts: dict[str, object]

    def close(self) -> None:
        """Stop the threads."""
        self.rollout.close()


@dataclass(frozen=True)
class Built:
    """A pilot, the engine it plans with (None when collecting), and what to log and report."""

    pilot: Pilot
    engine: Engine | None
    notes: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def close(self) -> None:
        """Stop all threads."""
        self.pilot.close()
        if self.engine is not None:
            self.engine.close()


def build_pilot(robot: RobotSpec, task: TaskSpec, config: PilotConfig, latch: Latch) -> Built:
    """
    Build a pilot, its model loaded, verified, compiled and warmed up.

    Raises
    ------
    ModelError, SpecError, ProviderError
        If the model, the task or the provider is refused.

    """
    if config.signal:
        gate = SafetyGate(robot, float('inf'), task.termination, latch)
        signal = make_signal(config.signal, config.source_config, robot,
                             np.random.default_rng(config.seed))
        return Built(CollectPilot(signal, gate), None,
                     notes=[f"collects with signal '{config.signal}', seed {config.seed}"],
                     facts={'signal': config.signal, 'seed': config.seed})
    if config.chunk_steps > task.horizon:
        raise SpecError(f"chunk_steps is {config.chunk_steps}, a plan of task '{task.name}' has "
                        f'{task.horizon} actions: allowed are 1 to {task.horizon}')
    engine = build_engine(robot, task, config)
    gate = SafetyGate(robot, engine.spread_limit, task.termination, latch)
    check = ExploitationCheck(CostFunction(task, robot), task.horizon, config.delay_steps,
                              config.exploitation)
    supervisor = Supervisor(engine.gauge, TrustLimiter(config.trust), check, config.delay_steps,
                            robot.dt_ns, engine.adaptive_horizon)
    pilot = PlanPilot(engine.mpc, gate, robot, config.delay_steps, config.deadline_s,
                      config.ladder, supervisor, config.chunk_steps,
                      open_loop=config.open_loop)
    return Built(pilot, engine, engine.notes, engine.facts)


def build_planner(robot: RobotSpec, task: TaskSpec, name: str, config: Strict) -> Planner:
    """Build a planner for a robot's actions and a task's horizon."""
    return make_planner(name, config,
                        ActionSpace(task.horizon, robot.action_min, robot.action_max))


def build_engine(robot: RobotSpec, task: TaskSpec, config: PilotConfig,
                 num_tiles: int | None = None) -> Engine:
    """
    Load, verify, compile and warm up what plans.

    Parameters
    ----------
    robot, task, config
        What to build.
    num_tiles : int, optional
        Tiles of a population, as another engine found them or a log says: nothing is measured
        then, and only a few plans warm up. Without it they are measured if plans have a deadline.

    Raises
    ------
    ModelError, SpecError, ProviderError
        If the model, the task or the provider is refused.

    """
    model = artifact.load(config.model, robot)
    began = time.perf_counter()
    rollout = Rollout(model, robot, task, config.rollout, config.provider, config.precision)
    compile_s = time.perf_counter() - began
    planner = build_planner(robot, task, config.planner, config.source_config)
    dynamics = Dynamics(model.model, model.metadata)
    mpc = Mpc(dynamics, rollout, planner, robot, np.random.default_rng(config.seed))
    try:
        if num_tiles is not None:
            rollout.num_tiles = num_tiles
            times_s = mpc.warm_up(most_plans=0)
        else:
            if config.deadline_s is not None:  # lock-step must give the same bits every time
                mpc.calibrate()
            times_s = mpc.warm_up()
    except Exception:
        rollout.close()
        raise
    p50_ms, p99_ms = np.quantile(times_s, [0.5, 0.99]) * 1e3
    unit = model.spread_unit
    limit = config.max_spread * unit
    notes = [
        f'model {config.model}, hash {model.hash[:16]}, provider {rollout.provider} in '
        f'{rollout.precision}, {rollout.num_tiles} tiles',
        f'{"from the cache" if rollout.was_cached else "compiled"} in {compile_s:.2f} s; plans '
        f'take {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms of {len(times_s)}; the period is '
        f'{robot.dt_s * 1e3:g} ms',
        f'seed {config.seed}, spread limit {limit:.3g} typical steps']
    if task.horizon > model.metadata['horizon']:
        notes.append(f"the task plans {task.horizon} steps; the model's own recommended horizon "
                     f"is {model.metadata['horizon']}")
    facts = {'provider': rollout.provider, 'precision': rollout.precision,
             'configured_p99_ms': float(p99_ms), 'hash': model.hash, 'path': str(config.model),
             'seed': config.seed, 'spread_limit': limit}
    calibration = Calibration.from_dict(model.metadata['trust'])
    horizon = AdaptiveHorizon(
        dynamics, calibration, unit, config.rollout.horizon_disagreement,
        # What is acted upon must have been weighed.
        max(config.rollout.min_horizon, config.chunk_steps), task.horizon) \
        if config.rollout.adaptive_horizon else None
    return Engine(mpc, rollout, TrustGauge(dynamics, calibration), horizon, model.metadata, limit,
                  float(p50_ms) * 1e-3, float(p99_ms) * 1e-3, notes, facts)
