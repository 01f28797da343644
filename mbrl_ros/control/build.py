"""Put a pilot together: from names and settings to what turns observations into ticks."""

from dataclasses import dataclass, field
from pathlib import Path
import time

import numpy as np

from mbrl_ros.control.exploration import make_signal
from mbrl_ros.control.gate import SafetyGate
from mbrl_ros.control.mpc import Mpc
from mbrl_ros.control.tick import CollectPilot, Pilot, PlanPilot
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.planning import ActionSpace, make_planner, RolloutConfig
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.rollout import Rollout

SMALLEST_SPREAD = 1e-3


@dataclass(frozen=True)
class PilotConfig:
    """
    Settings of a pilot.

    `signal` names an exploration signal and `source_config` is its Config; or it is empty, and
    `source_config` is that of `planner`.
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


@dataclass(frozen=True)
class Built:
    """
    A pilot, its rollout (None when collecting), and what to log and report of them.

    `plan_p99_s` is the 99th percentile of the time of a plan, measured here; 0 without plans.
    """

    pilot: Pilot
    rollout: Rollout | None = None
    plan_p99_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)


def build_pilot(robot: RobotSpec, task: TaskSpec, config: PilotConfig) -> Built:
    """
    Build a pilot, the model loaded, verified, compiled and warmed up.

    Raises
    ------
    ModelError, SpecError, ProviderError
        If the model, the task or the provider is refused.

    """
    generator = np.random.default_rng(config.seed)
    if config.signal:
        gate = SafetyGate(robot, float('inf'), task.termination)
        return Built(CollectPilot(
            make_signal(config.signal, config.source_config, robot, generator), gate),
                     notes=[f"collects with signal '{config.signal}', seed {config.seed}"],
                     facts={'signal': config.signal, 'seed': config.seed})
    model = artifact.load(config.model, robot)
    began = time.perf_counter()
    rollout = Rollout(model, robot, task, config.rollout.particles, config.rollout.propagation,
                      config.provider, config.precision)
    compile_s = time.perf_counter() - began
    space = ActionSpace(task.horizon, robot.action_min, robot.action_max)
    planner = make_planner(config.planner, config.source_config, space)
    mpc = Mpc(model, rollout, planner, robot, generator)
    try:
        if config.deadline_s is not None:  # lock-step must give the same bits every time
            mpc.calibrate()
        times_s = mpc.warm_up()
    except Exception:
        rollout.close()
        raise
    p50_ms, p99_ms = np.quantile(times_s, [0.5, 0.99]) * 1e3
    # Members that agree to the last digit on the holdout must not forbid every other place.
    limit = config.max_spread * max(model.metadata['spread_p99'], SMALLEST_SPREAD)
    gate = SafetyGate(robot, limit, task.termination)
    pilot = PlanPilot(mpc, gate, robot, config.delay_steps, config.deadline_s)
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
    return Built(pilot, rollout, float(p99_ms) * 1e-3, notes, facts)
