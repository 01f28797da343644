"""How good a model is on episodes it has not seen: one step, many steps, and its own doubt."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.learning.bound import bound_terms, model_error, policy_shift
from mbrl_ros.learning.doubt import auroc, rank_correlation
from mbrl_ros.learning.one_step import calibration_error, Episodes, LEVELS, OneStep
from mbrl_ros.learning.open_loop import k_step_errors, LONGEST_STEPS, recommended_horizon
from mbrl_ros.learning.recalibration import LEVEL_95, Recalibration
from mbrl_ros.learning.region import action_shares, Region
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.dynamics import Dynamics

SHOWN_LEVELS = slice(4, None, 5)  # 0.05, 0.10, ... 0.95


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
        Share of transitions inside the central 95 % interval of the mixture.
    calibration_error : dict of str to float
        Mean over the levels 0.01 to 0.99 of how far the share inside the mixture's central
        interval of that level is from it.
    overall : dict of str to float
        Means over the fields: `nll`, `coverage_95`, `calibration_error`. In a mean, a field that
        is too sure and one that is not sure enough do not cancel.
    calibration : dict
        The curve: `level` and, by field, the `observed` shares.
    recalibration : dict, optional
        `factor` on the std of each field and `power` of it that the graph holds, and the `overall`
        scores without them. Where present, the scores above of a transition are those with what
        was fitted to the other half of the data.
    k_step : list of dict
        For k = 1, 2, ...: error of the mean open-loop prediction with the real actions, in
        standard deviations of the state; see `open_loop.k_step_errors`.
    doubt : dict
        `spearman` of the members' disagreement and the error, one step ahead; `auroc` of the
        disagreement telling held-out inputs from others, and what those were (`outside`).
    bound : dict
        Terms of MBPO's bound, see `bound.bound_terms`.
    spread_p99 : float
        99th percentile of the members' one-step disagreement, in typical steps: the scale of the
        safety gate's trust limit.
    horizon : int
        Largest k up to which the error stays within 0.3 state deviations, at least 1.
    transitions : int
        Held-out transitions.

    """

    r2: dict[str, float]
    nll: dict[str, float]
    coverage_95: dict[str, float]
    calibration_error: dict[str, float]
    overall: dict[str, float]
    calibration: dict[str, Any]
    recalibration: dict[str, Any] | None
    k_step: list[dict[str, float]]
    doubt: dict[str, Any]
    bound: dict[str, Any]
    spread_p99: float
    horizon: int
    transitions: int

    def to_dict(self) -> dict[str, object]:
        """Return plain numbers, lists and dictionaries."""
        return asdict(self)


def evaluate(dynamics: Dynamics, robot: RobotSpec, episodes: Episodes, state_std: np.ndarray,
             longest: int, seed: int, *, region: Region | None = None,
             recalibration: Recalibration | None = None, newest: np.ndarray | None = None,
             outside: Episodes = ()) -> Evaluation:
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
        Of particles, resamples and directions.
    region : Region, optional
        Where the training data lie; of a model that does not say, where these do.
    recalibration : Recalibration, optional
        What was fitted to these episodes and is in the graph.
    newest : array, shape (N, A), optional
        Actions of the newest policy, for epsilon_pi; else those of these episodes.
    outside : sequence of (states, actions), optional
        Real data that the model should not know; else states are made, see `Region.push_out`.

    """
    one = OneStep.predict(dynamics, episodes)
    region = region or Region.of(robot, one.state, one.action)
    honest = one if recalibration is None else recalibration.score_honestly(one)
    nll, coverage = honest.nll().mean(axis=0), honest.coverage()
    curve = {name: np.round(observed, 4).tolist()
             for name, observed in zip(robot.state_names, coverage[SHOWN_LEVELS].T, strict=True)}
    k_step = k_step_errors(dynamics, episodes, state_std, longest, seed)
    spread = dynamics.spread(one.mean)
    error = np.sqrt(((one.error() / dynamics.step_std) ** 2).mean(axis=1))
    epsilon_pi = policy_shift(region.actions,
                              action_shares(robot, one.action if newest is None else newest))
    return Evaluation(
        r2=_named(robot, one.r2()), nll=_named(robot, nll),
        coverage_95=_named(robot, coverage[LEVEL_95]),
        calibration_error=_named(robot, calibration_error(coverage)), overall=_overall(honest),
        calibration={'level': LEVELS[SHOWN_LEVELS].tolist(), 'observed': curve},
        recalibration=None if recalibration is None else {
            'factor': _named(robot, recalibration.shape.factor),
            'power': _named(robot, recalibration.shape.power),
            'without': _overall(recalibration.undo(one))},
        k_step=k_step,
        doubt={'spearman': rank_correlation(spread, error),
               **_tell_apart(dynamics, robot, one, region, outside, seed)},
        bound=bound_terms(model_error(one.error(), state_std), epsilon_pi, len(k_step)),
        spread_p99=float(np.quantile(spread, 0.99)), horizon=recommended_horizon(k_step),
        transitions=len(one.state))


def evaluate_model(model: Artifact, robot: RobotSpec, dataset: Dataset, seed: int,
                   outside: Dataset | None = None) -> Evaluation:
    """
    Score a model file on all episodes of a dataset it should not have seen.

    `outside`: data that it should not know, to see whether its members disagree there.
    """
    region = model.metadata.get('region')
    return evaluate(Dynamics(model.model, model.metadata), robot, pairs(dataset),
                    np.array(model.metadata['state_std']), LONGEST_STEPS, seed,
                    region=None if region is None else Region.from_dict(region),
                    outside=() if outside is None else pairs(outside))


def pairs(dataset: Dataset) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Return states and actions of each episode."""
    return [(episode.states, episode.actions) for episode in dataset.episodes]


def _tell_apart(dynamics: Dynamics, robot: RobotSpec, one: OneStep, region: Region,
                outside: Episodes, seed: int) -> dict[str, Any]:
    inside = dynamics.spread(one.mean)
    if outside:
        strange = dynamics.spread(OneStep.predict(dynamics, outside).mean)
        return {'auroc': auroc(inside, strange), 'outside': 'the data given'}
    pushed = region.push_out(robot, one.state, seed)
    if pushed is None:
        return {'auroc': None, 'outside': 'no field to push: all are angles or ignored'}
    strange = dynamics.spread(dynamics(pushed, one.action)[0].astype(float))
    return {'auroc': auroc(inside, strange),
            'outside': 'states pushed half the range of the training data beyond it'}


def _overall(one: OneStep) -> dict[str, float]:
    coverage = one.coverage()
    return {'nll': float(one.nll().mean()), 'coverage_95': float(coverage[LEVEL_95].mean()),
            'calibration_error': float(calibration_error(coverage).mean())}


def _named(robot: RobotSpec, values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(robot.state_names, values, strict=True)}
