"""How far ahead plans may count on the model: fewer steps where it cannot know, or is wrong."""

from collections import deque
from collections.abc import Mapping

import numpy as np

from mbrl_ros.control.mpc import Decision
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.surprise import Calibration

USUAL = 0.99  # share of held-out moments below one unit of doubt
ERRORS = ('one_step', 'k_step')


def disagreement(dynamics: Dynamics, decision: Decision) -> np.ndarray:
    """
    Return how far the members part about each step of a plan, shape (H,), in typical steps.

    All of them are asked about the same points: the mean of the plan's predicted particles.
    """
    middle = decision.prediction.states.mean(axis=1)
    points = np.vstack([decision.start, middle[:-1]])
    mean, _ = dynamics(points, decision.actions)
    return dynamics.spread(mean)


def count_trusted(doubt: np.ndarray, limit: float) -> int:
    """Return how many steps come before the first whose doubt (H,) is above a limit."""
    beyond = ~(doubt <= limit)  # what is not a number is beyond
    return int(np.argmax(beyond)) if beyond.any() else len(doubt)


class AdaptiveHorizon:
    """
    Number of steps that the next plan counts.

    Two things shorten it, each in units of its own 99th percentile on held-out data, against one
    limit:

    - disagreement: at each step of the last plan, how far the members part about the mean
      trajectory. It speaks of places that no data showed.
    - mismatch: by how much the robot was missed lately, one step and k steps ahead, each error
      averaged over the last k moments; the larger of the two. It is charged to step h in the
      proportion h / k, because errors add up. It speaks of a robot that is not the one that the
      data showed: a payload leaves the members agreeing, all of them wrong.

    Parameters
    ----------
    dynamics : Dynamics
        The model that plans.
    calibration : Calibration
        Of the same model file: the steps k, and what errors are usual.
    unit : float
        99th percentile of the one-step disagreement on held-out data, in typical steps.
    limit : float
        Doubt that a step may bear; 1 is what one held-out moment in a hundred exceeds.
    min_steps : int
        Steps that always count.
    horizon : int
        Steps of a plan, H: at most these.

    Attributes
    ----------
    steps : int
        What counts now.

    Notes
    -----
    Its limits: that errors grow in proportion to the steps is an assumption, too mild where the
    robot is unstable. The mismatch says how wrong the model was where the robot has just been,
    not where the plan leads: a robot at rest shows no payload. Noise that the held-out data did
    not have looks like one. And a shorter horizon is no safer by itself: `TrustLimiter` slows
    and stops.

    """

    def __init__(self, dynamics: Dynamics, calibration: Calibration, unit: float, limit: float,
                 min_steps: int, horizon: int) -> None:
        self._dynamics, self._unit, self._limit = dynamics, unit, limit
        self._min_steps, self._horizon = min_steps, horizon
        self._k_steps = calibration.steps
        self._usual = {name: calibration.scales[name].quantile(USUAL) for name in ERRORS}
        self._errors: dict[str, deque[float]] = {
            name: deque(maxlen=calibration.steps) for name in ERRORS}
        self.forget()

    def forget(self) -> None:
        """Begin anew, with all steps."""
        for errors in self._errors.values():
            errors.clear()
        self._mismatch = dict.fromkeys(ERRORS, 0.0)
        self._disagreement = np.zeros(self._horizon)
        self.steps = self._horizon

    def planned(self, decision: Decision) -> None:
        """Take the newest plan."""
        self._disagreement = disagreement(self._dynamics, decision) / self._unit

    def update(self, signals: Mapping[str, float]) -> None:
        """
        Take the errors [predicted std] that a tick is known by, see `Trust`; set `steps`.

        Of an error that is not known the last mismatch stays: an observation that was lost gives
        no trust back. What comes after it is averaged anew.
        """
        for name, errors in self._errors.items():
            if name in signals:
                errors.append(signals[name])
                self._mismatch[name] = sum(errors) / len(errors) / self._usual[name]
            else:  # not one period after the tick before: what was averaged is no longer new
                errors.clear()
        depth = np.arange(1, self._horizon + 1) / self._k_steps
        doubt = np.maximum(self._disagreement, max(self._mismatch.values()) * depth)
        self.steps = max(min(self._min_steps, self._horizon), count_trusted(doubt, self._limit))
