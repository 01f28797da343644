"""Whether one model is better than another, on the same data, and how sure that is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from mbrl_ros.data.resample import Episode
from mbrl_ros.learning.one_step import LEVELS, OneStep
from mbrl_ros.learning.open_loop import predict_fan
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.dynamics import Dynamics

RESAMPLES = 2000

Verdict = Literal['better', 'no worse', 'not shown', 'worse']


@dataclass(frozen=True)
class Limits:
    """
    What counts as better, and what as no worse.

    Attributes
    ----------
    error_margin : float
        Share by which the k-step error may be larger.
    calibration_margin : float
        By how much the mean absolute calibration error may be larger.
    return_margin : float
        Share of the old model's return (of its size) that may be lost in simulation.
    confidence : float
        How sure a statement about held-out data has to be, in (0.5, 1): one-sided.

    """

    error_margin: float = 0.05
    calibration_margin: float = 0.03
    return_margin: float = 0.05
    confidence: float = 0.95


@dataclass(frozen=True)
class Check:
    """
    One measure of both models.

    Attributes
    ----------
    measure : str
        What was measured.
    old, new : float
        Of each model.
    at_worst : float
        The new one's value that it is better than, as surely as is asked for.
    limit : float
        What `at_worst` must not pass.
    verdict : {'better', 'no worse', 'not shown', 'worse'}
        'not shown': the value is inside the limit, but too few data say so.

    """

    measure: str
    old: float
    new: float
    at_worst: float
    limit: float
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts."""
        return asdict(self)


def compare(old: Artifact, new: Artifact, blocks: Sequence[Episode], steps: int, limits: Limits,
            seed: int, is_fresh: bool = True) -> list[Check]:
    """
    Compare the open-loop error and the calibration of two models, block by block.

    Parameters
    ----------
    old, new : Artifact
        Models of one robot.
    blocks : sequence of Episode
        Data that neither was trained on.
    steps : int
        Length of the open-loop predictions, k.
    limits : Limits
        What counts as better.
    seed : int
        Of the particles and of the bootstrap.
    is_fresh : bool
        Whether the new model did not hold these data out: to what it held out its std was
        fitted, so that a better calibration there says nothing, and only a worse one counts.

    Returns
    -------
    list of Check
        The root mean square error of the mean prediction over steps 1 to k, in standard
        deviations of the state (the old model's: the new one does not bring its own yardstick);
        and the mean absolute calibration error of the one-step prediction.

    Notes
    -----
    Both models answer for the same blocks, and a paired bootstrap over blocks says how far the
    difference could be chance: transitions of one block are no independent draws. The likelihood
    is not asked: it is a poor guide to the return (Lambert et al. 2020, arXiv:2002.04523).

    """
    unit = np.array(old.metadata['state_std'])
    # How often each block is drawn, shape (resamples, B).
    drawn = np.random.default_rng(seed).multinomial(
        len(blocks), np.full(len(blocks), 1.0 / len(blocks)), RESAMPLES)
    models = [Dynamics(model.model, model.metadata) for model in (old, new)]
    errors = [_Pooled.of_errors(dynamics, blocks, unit, steps, seed) for dynamics in models]
    misses = [_Pooled.of_calibration(dynamics, blocks) for dynamics in models]
    ratio = np.divide(errors[1].rms(drawn), errors[0].rms(drawn))
    before, now = (float(error.rms()[0]) for error in errors)
    excess = misses[1].calibration_error(drawn) - misses[0].calibration_error(drawn)
    missed_before, missed_now = (float(miss.calibration_error()[0]) for miss in misses)
    error = judge(f'error over {steps} steps', before, now,
                  before * float(np.quantile(ratio, limits.confidence)),
                  before * (1.0 + limits.error_margin))
    calibration = judge('calibration error', missed_before, missed_now,
                        missed_before + float(np.quantile(excess, limits.confidence)),
                        missed_before + limits.calibration_margin)
    if not is_fresh and calibration.verdict == 'better':
        calibration = replace(calibration, verdict='no worse')
    return [error, calibration]


def compare_returns(old: Sequence[float], new: Sequence[float], limits: Limits) -> Check:
    """Compare the mean returns of episodes that began alike."""
    before, now = float(np.mean(old)), float(np.mean(new))
    lost = judge('', -before, -now, -now, -before + limits.return_margin * abs(before))
    return Check(f'return in simulation, {len(new)} episodes', before, now, now, -lost.limit,
                 lost.verdict)


def judge(measure: str, old: float, new: float, at_worst: float, limit: float) -> Check:
    """Judge a measure of which less is better."""
    if at_worst < old:
        verdict: Verdict = 'better'
    elif at_worst <= limit:
        verdict = 'no worse'
    else:  # what is not a number is here, too
        verdict = 'not shown' if new <= limit else 'worse'
    return Check(measure, old, new, at_worst, limit, verdict)


def refusal(held_out: Sequence[Check], simulated: Sequence[Check] = ()) -> str:
    """
    Say why the new model is not promoted; empty if it is.

    It has to be better in one measure on held-out data, and no worse in every other one.
    """
    failed = [check for check in (*held_out, *simulated)
              if check.verdict not in ('better', 'no worse')]
    if failed:
        reasons = {'worse': 'worse', 'not shown': 'not shown to be no worse: more held-out data '
                                                  'could tell'}
        return '; '.join(f'{check.measure}: {reasons[check.verdict]}' for check in failed)
    if all(check.verdict != 'better' for check in held_out):
        return 'no worse, but not shown to be better in anything either'
    return ''


class _Pooled:
    """Sums of each block, shape (B, ...), and what they are sums of, shape (B,)."""

    def __init__(self, sums: list[Any], counts: list[int]) -> None:
        self._sums, self._counts = np.array(sums, float), np.array(counts, float)

    @classmethod
    def of_errors(cls, dynamics: Dynamics, blocks: Sequence[Episode], unit: np.ndarray,
                  steps: int, seed: int) -> '_Pooled':
        """Sum the squared open-loop errors from every state with so many steps left."""
        sums, counts = [], []
        for number, block in enumerate(blocks):
            length = min(steps, block.num_steps)
            starts = range(block.num_steps - length + 1)
            actions = np.stack([block.actions[first:first + length] for first in starts])
            truth = np.stack([block.states[first + 1:first + length + 1] for first in starts])
            fan = predict_fan(dynamics, block.states[:len(starts)], actions, [seed, number])
            square = ((fan.mean(axis=1).swapaxes(0, 1) - truth) / unit) ** 2
            # The mean of a few particles is not the mean: it errs by more, the larger their std.
            particles = fan.reshape(length, dynamics.members, -1, *truth[:, 0].shape)
            chance = particles.var(axis=2, ddof=1).mean(axis=1) / fan.shape[1] / unit**2
            sums.append(square.sum() - chance.sum())
            counts.append(square.size)
        return cls(sums, counts)

    @classmethod
    def of_calibration(cls, dynamics: Dynamics, blocks: Sequence[Episode]) -> '_Pooled':
        """Count the next states inside the central intervals of each level, by field."""
        sums, counts = [], []
        for block in blocks:
            levels = OneStep.predict(dynamics, [(block.states, block.actions)]).centrality()
            sums.append((levels[..., None] <= LEVELS).sum(axis=0))
            counts.append(len(levels))
        return cls(sums, counts)

    def _mean(self, drawn: np.ndarray | None) -> np.ndarray:
        weights = np.ones((1, len(self._counts))) if drawn is None else drawn
        total = weights @ self._sums.reshape(len(self._counts), -1)
        mean = total / (weights @ self._counts)[:, None]
        return mean.reshape(len(weights), *self._sums.shape[1:])

    def rms(self, drawn: np.ndarray | None = None) -> np.ndarray:
        """Return the root mean square of each resample, or of all blocks, shape (R,)."""
        return np.sqrt(np.maximum(self._mean(drawn), 0.0))

    def calibration_error(self, drawn: np.ndarray | None = None) -> np.ndarray:
        """Return the mean distance of the shares inside from their levels, shape (R,)."""
        return np.abs(self._mean(drawn) - LEVELS).mean(axis=(1, 2))
