"""Our side of the comparison with mbrl-lib: its budget, our controller."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mbrl_ros.control.mpc import Mpc
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.planning import ActionSpace, make_planner
from mbrl_ros.planning.cem import Config
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.rollout_config import RolloutConfig

ROBOT, TASK = 'cartpole', 'cartpole_swingup'
ELITES_SHARE, SMOOTHING = 0.1, 0.1  # cem_elite_ratio and cem_alpha of mbrl-lib's pets_cartpole
# What runs on our side: the name of its numbers, its provider and precision.
KINDS = {'float32': ('cpu', 'float32'), 'openvino_float32': ('openvino', 'float32'),
         'bf16': ('openvino', 'bf16')}


class Contestant:
    """
    Our controller for the cart-pole on a budget of mbrl-lib's, on one provider.

    Parameters
    ----------
    model_path : Path
        dynamics.onnx.
    budget : mapping
        `population`, `particles`, `horizon` and `iterations`.
    provider, precision : str
        What runs the model.

    Raises
    ------
    ProviderError, SpecError
        If it cannot run here.

    """

    def __init__(self, model_path: Path, budget: Mapping[str, int], provider: str,
                 precision: str) -> None:
        robot = load_robot(ROBOT)
        task = load_task(TASK, robot).model_copy(update={'horizon': budget['horizon']})
        model = artifact.load(model_path, robot)
        rolled_out = RolloutConfig.model_validate({'particles': budget['particles']})
        self.rollout = Rollout(model, robot, task, rolled_out, provider, precision)
        config = Config.model_validate({
            'population': budget['population'], 'iterations': budget['iterations'],
            'num_elites': round(ELITES_SHARE * budget['population']), 'smoothing': SMOOTHING,
            'noise_exponent': 0.0, 'keep_elites': 0})
        space = ActionSpace(task.horizon, robot.action_min, robot.action_max)
        self._mpc = Mpc(Dynamics(model.model, model.metadata), self.rollout,
                        make_planner('cem', config, space), robot, np.random.default_rng(0))
        self._mpc.calibrate()

    def plan(self, state: np.ndarray) -> None:
        """Plan once from a state (S,), without a warm start: every plan is the same work."""
        self._mpc.forget()
        self._mpc.plan(1, state, ())

    def costs(self, state: np.ndarray, actions: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the costs (P,) of candidates (P, H, A) under a given noise (H, K, S)."""
        draw = self.rollout.draw(np.random.default_rng(0))
        return self.rollout.costs(state, actions, replace(draw, noise=noise))

    def close(self) -> None:
        """Stop the threads."""
        self.rollout.close()


def plan_flop(weights_path: Path, budget: Mapping[str, int]) -> int:
    """
    Return the floating-point operations of one plan's matrix products, as they are executed.

    Parameters
    ----------
    weights_path : Path
        Ensemble.arrays() as an .npz file: a product of (N, I) and (I, O) takes 2 N I O.
    budget : mapping
        See `Contestant`. A member's particles are still alike at the first step, and the graph
        evaluates it once for them all (see runtime/compile.py).

    """
    with np.load(weights_path) as arrays:
        shapes = [arrays[name].shape for name in arrays if name.startswith('weights.')]
    members = shapes[0][0]
    one = sum(2 * inputs * outputs for _, inputs, outputs in shapes)
    of_candidate = members + budget['particles'] * (budget['horizon'] - 1)
    return int(budget['iterations'] * budget['population'] * of_candidate * one)
