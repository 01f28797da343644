"""
What a control tick takes beside its rollouts, measured in a process of its own.

A process that has loaded torch and run its threads is not what drives a robot: in there the same
ticks take twice as long. Run by `tick_overhead_s` as `python -m mbrl_ros.bench.overhead TICKS`.
"""

import json
import sys
import time
from typing import Any

import numpy as np

from mbrl_ros.bench.process import run_module
from mbrl_ros.control.gate import SafetyGate
from mbrl_ros.control.mpc import Mpc
from mbrl_ros.control.tick import Observation, PlanPilot
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.planning import ActionSpace, make_planner
from mbrl_ros.planning.cem import Config
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.rollout import Draw, Rollout
from mbrl_ros.runtime.rollout_config import RolloutConfig
from mbrl_ros.sim.mujoco_robot import MujocoRobot

ROBOT, TASK, HORIZON, PARTICLES = 'cartpole', 'cartpole_swingup', 25, 5
CONFIG = Config.model_validate({'population': 40, 'num_elites': 6, 'iterations': 3,
                                'noise_exponent': 2.0, 'keep_elites': 3})
TICKS, WARM_UPS = 300, 20


class _WatchedRollout(Rollout):
    """A rollout that adds up the time [s] spent in `costs`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.spent_s = 0.0

    def costs(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> np.ndarray:
        began = time.perf_counter()
        found = super().costs(state, actions, draw)
        self.spent_s += time.perf_counter() - began
        return found


def tick_overhead_s(ticks: int = TICKS) -> np.ndarray:
    """Return what `drive` measures in a fresh process, shape (ticks,)."""
    return np.array(json.loads(run_module('mbrl_ros.bench.overhead', ticks)))


def drive(ticks: int) -> np.ndarray:
    """
    Drive the simulated cart-pole with the shipped model and a small budget.

    Parameters
    ----------
    ticks : int
        Ticks that count.

    Returns
    -------
    array, shape (ticks,)
        Time [s] from an observation to its command, outside `Rollout.costs`: the state carried
        forward through the command in flight, random numbers, the planner, the members'
        disagreement, the thread that plans, the safety gate. What the node reports once the
        command is out is not in it.

    """
    robot = load_robot(ROBOT)
    task = load_task(TASK, robot).model_copy(update={'horizon': HORIZON})
    model = artifact.load(find_model(ROBOT), robot)
    rolled_out = RolloutConfig.model_validate({'particles': PARTICLES})
    rollout = _WatchedRollout(model, robot, task, rolled_out)
    space = ActionSpace(HORIZON, robot.action_min, robot.action_max)
    mpc = Mpc(Dynamics(model.model, model.metadata), rollout,
              make_planner('cem', CONFIG, space), robot, np.random.default_rng(0))
    mpc.calibrate()
    gate = SafetyGate(robot, float('inf'), task.termination)
    pilot = PlanPilot(mpc, gate, robot, delay_steps=1, deadline_s=None)
    body = MujocoRobot(robot)
    found = []
    try:
        for _ in range(WARM_UPS + ticks):
            observation = Observation(body.state())
            rollout.spent_s = 0.0
            began = time.perf_counter()
            tick = pilot.tick(observation)
            found.append(time.perf_counter() - began - rollout.spent_s)
            body.step(tick.verdict.command)
    finally:
        pilot.close()
        rollout.close()
    return np.array(found[WARM_UPS:])


if __name__ == '__main__':
    sys.stdout.write(json.dumps(drive(int(sys.argv[1])).tolist()))
