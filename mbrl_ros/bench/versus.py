"""Side by side with mbrl-lib: the same trained weights, the same work, in turns, in one run."""

from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import module_from_spec, spec_from_file_location
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
import time
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console
from scipy.stats import spearmanr

import mbrl_ros
from mbrl_ros.bench.ceiling import Ceiling, ceilings
from mbrl_ros.bench.contestant import Contestant, KINDS, plan_flop, ROBOT, TASK
from mbrl_ros.bench.footprint import controller_footprint, Footprint
from mbrl_ros.bench.loading import loading_times
from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.bench.overhead import tick_overhead_s
from mbrl_ros.bench.process import BenchError
from mbrl_ros.bench.subject import own_cache
from mbrl_ros.bench.timing import in_turns, ratio
from mbrl_ros.bench.trained import train_on_random_motion
from mbrl_ros.bench.versus_gpu import versus_on_gpu
from mbrl_ros.bench.versus_table import versus_table
from mbrl_ros.core.errors import MbrlError, ProviderError, SpecError

SEED = 0
TURNS, WARM_UPS = 7, 1
# Where plans and costs start: hanging, in the swing, nearly upright; position [m], angle [rad],
# velocities [m/s] and [rad/s] of cart and pole.
STATES = np.array([[0.0, 0.0, 0.0, 0.0], [0.3, 1.5, -0.5, 3.0], [-0.2, 3.0, 0.4, -0.5]])
FORCE = 3.0  # the cart-pole's limit, in units of its gear

Results = dict[str, Any]


class ComparisonError(MbrlError):
    """The comparison cannot be made here."""


def versus(json_path: Path | None, console: Console) -> Results:
    """
    Compare plans with mbrl-lib's, and measure what else the controller promises.

    Parameters
    ----------
    json_path : Path, optional
        File for the numbers.
    console : Console
        Where to print progress and the table.

    Returns
    -------
    dict
        Numbers; None where this machine cannot give one, and a note that says why.

    Raises
    ------
    ComparisonError
        Without a checkout, or if mbrl-lib cannot be installed or fails.

    """
    began = time.perf_counter()
    client = load_client()
    python = environment(client, console)
    results: Results = {'machine': describe_machine()}
    with TemporaryDirectory(prefix='mbrl_ros_') as folder, own_cache():
        with console.status('train 5 x (4 x 200) SiLU on 64 s of random motion'):
            model, weights = train_on_random_motion(ROBOT, SEED, Path(folder))
        try:
            with client.MbrlLib(python, weights, len(os.sched_getaffinity(0))) as lib:
                results |= _compare(lib, model, weights, console)
            with console.status('compare on the GPU'):
                results |= versus_on_gpu(client, python, model, weights)
        except RuntimeError as error:
            raise ComparisonError(str(error)) from error
        budget = results['budget']
        with console.status('load the model in fresh processes'):
            results |= loading_times(model, ROBOT, TASK, budget['horizon'], budget['particles'])
        with console.status('time ticks of the controller'):
            results['tick_overhead_ms'] = float(np.median(tick_overhead_s()) * 1e3)
    with console.status('start the controller'):
        results |= _footprint()
    results['total_s'] = time.perf_counter() - began
    if json_path is not None:
        json_path.write_text(json.dumps(results, indent=2) + '\n')
        console.print(f'wrote {json_path}', soft_wrap=True)
    console.print(versus_table(results))
    return results


def load_client(checkout: Path = Path(mbrl_ros.__file__).parents[1]) -> ModuleType:
    """Import test/benchmark/mbrl_lib/client.py, which only a checkout has."""
    path = checkout / 'test/benchmark/mbrl_lib/client.py'
    spec = spec_from_file_location('mbrl_lib_client', path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ComparisonError(f'no {path}: the comparison with mbrl-lib needs a checkout. Clone '
                              "the repository and run it there, from 'pip install -e'.")
    client = module_from_spec(spec)
    spec.loader.exec_module(client)
    return client


def _footprint() -> Results:
    try:
        found = controller_footprint()
    except BenchError as error:  # what was measured before must not be lost with it
        found = Footprint(note=str(error))
    return {f'controller_{name}': value for name, value in vars(found).items()}


def environment(client: ModuleType, console: Console) -> Path:
    """Return the Python of mbrl-lib's environment, made first where there is none."""
    folder = Path(mbrl_ros.__file__).parents[1] / '.venv-mbrl-lib'
    try:
        python: Path = client.environment(
            folder, lambda command: console.print(command, style='dim', soft_wrap=True))
    except RuntimeError as error:
        raise ComparisonError(f"mbrl-lib's environment cannot be made: {error}") from error
    return python


def _compare(lib: Any, model: Path, weights: Path, console: Console) -> Results:
    """Plan in turns between two measurements of the ceiling, then compare costs."""
    info = lib.info()
    budget: dict[str, int] = info['budget']
    results: Results = {'budget': budget, 'mbrl_lib': info}
    with ExitStack() as stack:
        with console.status('compile and calibrate'):
            ours, notes = _contestants(model, budget)
            for contestant in ours.values():
                stack.callback(contestant.close)
        with console.status('measure matrix products'):
            before = ceilings()
        plans = [lambda: lib.plan(STATES[0], SEED),
                 *(lambda one=one: one.plan(STATES[0]) for one in ours.values())]
        names, done = ['mbrl_lib', *ours], 0
        with console.status('') as status:
            def tell() -> None:
                nonlocal done
                done += 1
                status.update(f'plan in turns: {done} of {(WARM_UPS + TURNS) * len(plans)}')
            times_s = dict(zip(names, in_turns(plans, TURNS, WARM_UPS, tell), strict=True))
        with console.status('measure matrix products again'):
            after = ceilings()
        with console.status('compare costs'):
            results |= compare_costs(lib, ours, budget)
    results |= speeds(times_s) | notes
    results['tiles'] = {name: one.rollout.num_tiles for name, one in ours.items()}
    return results | shares(results, plan_flop(weights, budget), before, after)


def _contestants(model: Path, budget: Mapping[str, int]
                 ) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Return what runs here, and notes that say why the others do not."""
    found, notes = {}, {f'{name}_note': '' for name in KINDS}
    for name, (provider, precision) in KINDS.items():
        try:
            found[name] = Contestant(model, budget, provider, precision)
        except (ProviderError, SpecError) as error:
            notes[f'{name}_note'] = str(error)
    return found, notes


def speeds(times_s: Mapping[str, np.ndarray]) -> Results:
    """Return the median of each one's times [s], and how many times slower mbrl-lib is."""
    results: Results = {'times_s': {name: list(map(float, times))
                                    for name, times in times_s.items()}}
    for name in ('mbrl_lib', *KINDS):
        here = name in times_s
        results[f'{name}_s'] = float(np.median(times_s[name])) if here else None
        if name != 'mbrl_lib':
            results[f'ratio_{name}'] = ratio(times_s['mbrl_lib'], times_s[name]) if here else None
    return results


def shares(results: Results, flop: int, before: list[Ceiling], after: list[Ceiling]) -> Results:
    """
    Return what our plans reach of the machine's matrix products.

    The ceiling is the higher of the measurements before and after. `possible_ratio_*` is the ratio
    to mbrl-lib that a plan would reach which runs at the ceiling and does nothing else.
    """
    found: Results = {'plan_gflop': flop / 1e9}
    for precision in ('float32', 'bf16'):
        gflops = [limit.gflops for limits in (before, after) for limit in limits
                  if (limit.device, limit.precision) == ('cpu', precision)]
        known = [value for value in gflops if value is not None]
        ceiling, plan_s = max(known, default=None), results[f'{precision}_s']
        found |= {f'ceiling_{precision}_gflops': known,
                  f'ceiling_share_{precision}':
                      flop / 1e9 / plan_s / ceiling if ceiling and plan_s else None,
                  f'possible_ratio_{precision}':
                      results['mbrl_lib_s'] * ceiling / (flop / 1e9) if ceiling else None}
    return found


def compare_costs(lib: Any, ours: Mapping[str, Contestant], budget: Mapping[str, int]) -> Results:
    """Let all evaluate the same candidates under the same noise, from each of `STATES`."""
    rng = np.random.default_rng(SEED)
    population, horizon, particles = (budget[name]
                                      for name in ('population', 'horizon', 'particles'))
    differences: dict[str, list[float]] = {name: [] for name in (*KINDS, 'ranks')}
    for state in STATES:
        actions = rng.uniform(-FORCE, FORCE, (population, horizon, 1)).astype(np.float32)
        noise = rng.standard_normal((horizon, particles, len(state)), dtype=np.float32)
        theirs = lib.costs(state, actions, noise)
        costs = {name: one.costs(state, actions, noise) for name, one in ours.items()}
        for name, cost in costs.items():
            differences[name].append(float(np.abs(cost - theirs).max()))
        if 'bf16' in costs:
            differences['ranks'].append(
                float(spearmanr(costs['bf16'], costs['float32']).statistic))

    def worst(name: str) -> float | None:
        return max(differences[name], default=None)
    return {'cost_difference_max': worst('float32'),
            'cost_difference_openvino_float32_max': worst('openvino_float32'),
            'cost_difference_bf16_max': worst('bf16'),
            'rank_correlation_bf16': min(differences['ranks'], default=None)}
