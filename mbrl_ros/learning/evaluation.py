"""How good a model is on episodes it has not seen: one step, many steps, and its own doubt."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.dynamics import Dynamics

COVERAGE_95 = 1.959964  # a standard normal is inside +- this with probability 0.95
PARTICLES_A_MEMBER = 10
LONGEST_STEPS = 25


@dataclass(frozen=True)
class Evaluation:
    """
    Scores on held-out episodes.

    Attributes
    ----------
    r2 : dict of str to float
        One-step R2 of the change of each field.
    nll : dict of str to float
        Negative log-likelihood of the standardised change under the mixture of all members;
        1.419 is what N(0, 1) scores.
    coverage_95 : dict of str to float
        Share of transitions inside the 95 % interval of the mixture.
    k_step : list of dict
        For k = 1, 2, ...: root mean square error of the mean open-loop prediction with the real
        actions, in standard deviations of the state (`error`), and the mean predicted std in the
        same unit (`predicted`).
    spread_p99 : float
        99th percentile of the members' one-step disagreement, in typical steps: the scale of the
        safety gate's trust limit.
    horizon : int
        Largest k up to which the error stays below 0.3 state deviations, at least 1.
    transitions : int
        Held-out transitions.

    """

    r2: dict[str, float]
    nll: dict[str, float]
    coverage_95: dict[str, float]
    k_step: list[dict[str, float]]
    spread_p99: float
    horizon: int
    transitions: int

    def to_dict(self) -> dict[str, object]:
        """Return plain numbers, lists and dictionaries."""
        return asdict(self)


def evaluate(dynamics: Dynamics, robot: RobotSpec, episodes: Sequence[tuple[np.ndarray,
             np.ndarray]], state_std: np.ndarray, longest: int, seed: int) -> Evaluation:
    """
    Score a model on held-out episodes.

    Parameters
    ----------
    dynamics : Dynamics
        The exported model: what is scored is what will drive.
    robot : RobotSpec
        Field names.
    episodes : sequence of (states (T+1, S), actions (T, A))
        Held-out data.
    state_std : array, shape (S,)
        Spread of the training states: the unit of the k-step error.
    longest : int
        Largest k of the open-loop error.
    seed : int
        Of the particles.

    """
    state = np.concatenate([s[:-1] for s, _ in episodes])
    next_state = np.concatenate([s[1:] for s, _ in episodes])
    action = np.concatenate([a for _, a in episodes])
    mean, std = (array.astype(float) for array in dynamics(state, action))
    mixture = mean.mean(axis=0)
    variance = np.mean(std**2 + mean**2, axis=0) - mixture**2
    error = next_state - mixture
    change = next_state - state
    still = change.var(axis=0) < 1e-12
    square = np.mean(error**2, axis=0)
    # A field that never changed has nothing to explain: 1 if that was foreseen, else 0.
    r2 = np.where(still, (square < 1e-12).astype(float),
                  1.0 - square / np.where(still, 1.0, change.var(axis=0)))
    # The mixture's density, in the unit of a typical step so that fields compare.
    log_density = (-0.5 * ((next_state - mean) / std) ** 2 - np.log(std / dynamics.step_std)
                   - 0.5 * np.log(2 * np.pi))
    nll = -(np.logaddexp.reduce(log_density, axis=0) - np.log(dynamics.members)).mean(axis=0)
    inside = np.abs(error) <= COVERAGE_95 * np.sqrt(np.maximum(variance, 0.0))
    k_step = _open_loop(dynamics, episodes, state_std, longest, seed)
    # One more good k after a bad one is luck: a plan passes through every step before its last.
    bad = [int(row['k']) for row in k_step if not row['error'] <= 0.3]
    return Evaluation(
        r2=_named(robot, r2), nll=_named(robot, nll),
        coverage_95=_named(robot, inside.mean(axis=0)), k_step=k_step,
        spread_p99=float(np.quantile(dynamics.spread(mean), 0.99)),
        horizon=max(1, min(bad, default=len(k_step) + 1) - 1), transitions=len(state))


def evaluate_model(model: Artifact, robot: RobotSpec, dataset: Dataset,
                   seed: int) -> Evaluation:
    """Score a model file on all episodes of a dataset it should not have seen."""
    return evaluate(Dynamics(model.model, model.metadata), robot,
                    [(e.states, e.actions) for e in dataset.episodes],
                    np.array(model.metadata['state_std']), LONGEST_STEPS, seed)


def predict_fan(dynamics: Dynamics, start: np.ndarray, actions: np.ndarray,
                seed: int) -> np.ndarray:
    """
    Predict open loop with trajectory sampling (TS-infinity).

    Parameters
    ----------
    dynamics : Dynamics
        The exported model: what is scored is what will drive.
    start : array, shape (N, S)
        First states.
    actions : array, shape (N, H, A)
        Actions that were really taken.
    seed : int
        Of the particles.

    Returns
    -------
    array, shape (H, K, N, S)
        Particles after each step, K = 10 a member.

    """
    generator = np.random.default_rng(seed)
    count, horizon, _ = actions.shape
    current = np.repeat(start, PARTICLES_A_MEMBER, axis=0)
    commands = np.repeat(actions, PARTICLES_A_MEMBER, axis=0)
    path = []
    for step in range(horizon):
        mean, std = dynamics(current, commands[:, step])
        current = mean + std * generator.standard_normal(mean.shape, dtype=np.float32)
        by_start = current.reshape(dynamics.members, count, PARTICLES_A_MEMBER, -1)
        path.append(by_start.transpose(0, 2, 1, 3).reshape(-1, count, start.shape[1]))
    return np.stack(path)


def _open_loop(dynamics: Dynamics, episodes: Sequence[tuple[np.ndarray, np.ndarray]],
               state_std: np.ndarray, longest: int, seed: int) -> list[dict[str, float]]:
    horizon = min(longest, max(len(actions) for _, actions in episodes))
    starts, futures, commands = [], [], []
    for states, actions in episodes:
        for first in range(len(actions) - horizon + 1):
            starts.append(states[first])
            futures.append(states[first + 1:first + horizon + 1])
            commands.append(actions[first:first + horizon])
    fan = predict_fan(dynamics, np.array(starts), np.array(commands), seed)
    truth = np.array(futures).transpose(1, 0, 2)
    error = np.sqrt((((fan.mean(axis=1) - truth) / state_std) ** 2).mean(axis=(1, 2)))
    predicted = np.sqrt((fan.var(axis=1) / state_std**2).mean(axis=(1, 2)))
    return [{'k': k + 1, 'error': float(error[k]), 'predicted': float(predicted[k])}
            for k in range(horizon)]


def _named(robot: RobotSpec, values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(robot.state_names, values, strict=True)}
