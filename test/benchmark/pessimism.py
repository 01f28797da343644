"""
What disagreement is worth to a planner: around what no data showed, and no further than they do.

    OMP_NUM_THREADS=1 python test/benchmark/pessimism.py --json out/bench/pessimism.json

A point in the plane, moved by velocities through a current, is to cross from side to side.
The data leave a gap between the sides, and straight on leads through it. Planners that pay for
disagreement go around it, those that do not go through. Then the cart-pole with its shipped model:
how long particles last that end in doubt, where the data are and far outside. Ten minutes on two
cores. Exit status 1 unless at least 95 % of the runs go around with the price and at most 5 %
without, and particles last at least 0.95 of the horizon inside and less than half of it outside.
"""

from collections.abc import Sequence
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from rich.console import Console
import typer

from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.bench.returns import drive, find_task, pilot_config
from mbrl_ros.control.build import build_pilot
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.mpc import Decision, Mpc
from mbrl_ros.core.paths import find_model, MODEL_FILE
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.data.resample import Episode
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.pipeline import train_model
from mbrl_ros.planning import ActionSpace, config_class, load_planning, make_planner
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.rollout_config import RolloutConfig
from mbrl_ros.sim.mujoco_robot import MujocoRobot

DT_S, STEPS, HORIZON = 0.1, 40, 20
START, GOAL = np.array([-1.15, -0.4]), np.array([1.15, -0.4])
SPEED, CURRENT, WAVES_RAD_M, PHASE_RAD = 1.5, 0.5, 3.5, 1.0
# The gap is |x| < 0.8 m, y < 0.4 m; deep inside it the next datum is 0.3 m away, or more.
GAP, DEEP = np.array([0.8, 0.4]), np.array([0.5, 0.1])
NOISE_STD = 0.003
WEIGHT = 30.0
EPISODES, EPISODE_STEPS = 400, 10
POPULATION, ELITES = 150, 15
# Members that fit the current where they have seen it: only then does what they say apart from
# each other tell where they have not.
TRAINING = TrainingConfig(
    members=5, hidden_units=(64, 64, 64), weight_decay=(1e-5, 1e-5, 1e-5, 1e-5), batch_size=128,
    learning_rate=4e-3, cycle_steps=6000, adam_betas=(0.9, 0.99), max_epochs=2000)
LEAST_AROUND, MOST_AROUND, LEAST_INSIDE, MOST_OUTSIDE = 0.95, 0.05, 0.95, 0.5
# In units of the 99th percentile on held-out data; the hinge of a strange state turns much faster.
MAX_DISAGREEMENT = 3.0
FASTER, STRANGE = np.array([1.0, 1.0, 5.0, 5.0]), np.array([0.0, 0.0, 20.0, 60.0])


def robot() -> RobotSpec:
    """Return the point: it sees where it is, and is sent velocities."""
    field = {'topic': 'joint_states', 'type': 'sensor_msgs/msg/JointState'}
    command = {'topic': 'commands', 'type': 'std_msgs/msg/Float64MultiArray', 'unit': 'm/s',
               'min': -1.0, 'max': 1.0, 'rate_limit': 1000.0, 'safe_value': 0.0}
    return RobotSpec.model_validate({
        'name': 'point', 'control_rate_hz': 1.0 / DT_S,
        'observation': [{'name': name, 'unit': 'm', 'path': f'position[{name}]', **field}
                        for name in ('x', 'y')],
        'action': [{'name': f'v{name}', 'path': f'data[{i}]', **command}
                   for i, name in enumerate(('x', 'y'))],
        'stale_after_s': {'joint_states': 1.0}})


def crossing() -> TaskSpec:
    """Return the task: be at the goal, soon."""
    return TaskSpec.model_validate({
        'name': 'cross', 'robot': 'point', 'horizon': HORIZON, 'episode_steps': STEPS,
        'goal': [{'name': 'goal_x', 'value': GOAL[0]}, {'name': 'goal_y', 'value': GOAL[1]}],
        'cost': [{'term': 'squared', 'name': name, 'params': {'signal': name,
                                                              'target': f'goal_{name}'}}
                 for name in ('x', 'y')]})


def move(states: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return where points (..., 2) are a step later: a current that swirls, and a little noise."""
    current = CURRENT * np.sin(WAVES_RAD_M * states[..., ::-1] + PHASE_RAD)
    return states + DT_S * (SPEED * actions + current) \
        + NOISE_STD * rng.standard_normal(states.shape)


def is_within(states: np.ndarray, half_width: float, top: float) -> np.ndarray:
    """Return which points (..., 2) are between the sides and below the top."""
    return (np.abs(states[..., 0]) < half_width) & (states[..., 1] < top)


def record(rng: np.random.Generator) -> Dataset:
    """Return random motion everywhere but in the gap."""
    episodes = []
    while len(episodes) < EPISODES:
        states, actions = [rng.uniform([-1.7, -0.6], [1.7, 1.1])], []
        for _ in range(EPISODE_STEPS):
            actions.append(rng.uniform(-1.0, 1.0, 2))
            states.append(move(states[-1], actions[-1], rng))
        if not is_within(np.array(states), *GAP).any():
            episodes.append(Episode(np.array(states), np.array(actions), 0, f'{len(episodes)}'))
    return Dataset(tuple(episodes), robot())


def cross(model: artifact.Artifact, seed: int, weight: float) -> tuple[bool, float]:
    """Drive once; return whether the point kept out of the deep, and how far [m] it ended away."""
    spec, task = robot(), crossing()
    config = config_class('cem').model_validate({
        'population': POPULATION, 'num_elites': ELITES, 'iterations': 3, 'noise_exponent': 2.0,
        'keep_elites': 3, 'initial_std': 0.5})
    rollout = Rollout(model, spec, task, RolloutConfig.model_validate(
        {'disagreement_weight': weight}), threads=1)
    planner = make_planner('cem', config, ActionSpace(HORIZON, spec.action_min, spec.action_max))
    mpc = Mpc(Dynamics(model.model, model.metadata), rollout, planner, spec,
              np.random.default_rng(seed))
    rng = np.random.default_rng([seed, 1])
    state, passed = START + rng.normal(0.0, 0.05, 2), False
    try:
        for tick in range(1, STEPS + 1):
            state = move(state, mpc.plan(tick, state, ()).actions[0], rng)
            passed |= bool(is_within(state, *DEEP))
    finally:
        rollout.close()
    return not passed, float(np.linalg.norm(state - GOAL))


def survey_gap(models: int, runs: int, console: Console) -> dict[str, Any]:
    """Cross with several models, with the price and without, in turns."""
    kept: dict[str, list[bool]] = {'with': [], 'without': []}
    away: dict[str, list[float]] = {'with': [], 'without': []}
    with TemporaryDirectory(prefix='mbrl_ros_') as folder:
        for number in range(models):
            output = Path(folder) / str(number)
            train_model(record(np.random.default_rng(number)), TRAINING, number, output)
            model = artifact.load(output / MODEL_FILE, robot())
            for run in range(runs):
                for name, weight in (('with', WEIGHT), ('without', 0.0)):
                    outcome = cross(model, 1000 * number + run, weight)
                    kept[name].append(outcome[0])
                    away[name].append(outcome[1])
            console.print(f'model {number + 1} of {models}: ' + ', '.join(
                f'{name} a price {sum(found)} of {len(found)} kept out'
                for name, found in kept.items()))
    return {'runs': models * runs, 'disagreement_weight': WEIGHT,
            **{f'kept_out_{name}': sum(found) / len(found) for name, found in kept.items()},
            **{f'final_distance_{name}_m': float(np.mean(found)) for name, found in away.items()}}


def survey_ends(seeds: Sequence[int]) -> dict[str, Any]:
    """Plan along episodes of the cart-pole, from where it is and from far outside the data."""
    spec, model = load_robot('cartpole'), find_model('cartpole')
    task = find_task(spec)
    assert task is not None
    rolled = load_planning(task.planner).rollout.model_copy(
        update={'max_disagreement': MAX_DISAGREEMENT, 'doubt_cost': 2.0})
    shares: dict[str, list[float]] = {'inside': [], 'outside': []}
    for seed in seeds:
        built = build_pilot(spec, task, pilot_config(model, task, seed, rollout=rolled), Latch())
        decisions: list[Decision] = []
        try:
            drive(built, MujocoRobot(spec), task, seed,
                  watch=lambda tick, _, found=decisions: found.append(tick.decision))
            assert built.engine is not None
            for decision in decisions:
                strange = FASTER * decision.start + STRANGE
                for name, found in (
                        ('inside', decision.prediction),
                        ('outside', built.engine.rollout.predict(strange, decision.actions,
                                                                 decision.draw))):
                    assert found.lengths is not None
                    shares[name].append(float(found.lengths.mean()) / task.horizon)
        finally:
            built.close()
    return {'max_disagreement': MAX_DISAGREEMENT, 'plans': len(shares['inside']),
            'length_share_inside': float(np.mean(shares['inside'])),
            'length_share_outside': float(np.mean(shares['outside']))}


def main(models: Annotated[int, typer.Option(min=1, help='Ensembles')] = 5,
         runs: Annotated[int, typer.Option(min=1, help='Crossings of each')] = 20,
         json_path: Annotated[Path | None, typer.Option('--json', help='File for the figures')
                              ] = None) -> None:
    """See the top of the file."""
    console = Console()
    gap, ends = survey_gap(models, runs, console), survey_ends(range(3))
    is_met = (gap['kept_out_with'] >= LEAST_AROUND and gap['kept_out_without'] <= MOST_AROUND
              and ends['length_share_inside'] >= LEAST_INSIDE
              and ends['length_share_outside'] < MOST_OUTSIDE)
    console.print(gap, ends)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps({'machine': describe_machine(), 'gap': gap,
                                         'ends': ends, 'is_met': is_met}, indent=2) + '\n')
    raise typer.Exit(int(not is_met))


if __name__ == '__main__':
    typer.run(main)
