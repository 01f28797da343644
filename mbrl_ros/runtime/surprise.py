"""
How strange a moment looks to a model: three signals, and the scale that makes one figure of them.

Training computes the signals on held-out data, the controller on what it lives through, both with
the functions of this file.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mbrl_ros.runtime.dynamics import Dynamics

# Steps of the k-step error, and of a plan that are looked at.
MOST_STEPS = 10
SIGNALS = ('one_step', 'k_step', 'plan_spread')
# In units of a signal; and errors below this share of a typical step count as none: a model that
# is exact to the last digit must not find rounding strange.
SMALLEST = 1e-3
NUM_ANCHORS = 51
# Moments that the tail is fitted to, if that is between 1 % and 10 % of them.
TAIL_MOMENTS = 25
LIGHTEST_TAIL = 0.05


def error(mean: np.ndarray, variance: np.ndarray, observed: np.ndarray,
          step_std: np.ndarray) -> np.ndarray:
    """
    Return how far observations are from what was predicted, shape (N,), in predicted std.

    Parameters
    ----------
    mean : array, shape (E, N, S)
        Each member's prediction.
    variance : array, shape (N, S)
        What the members expect around it: mean of their variances, added up over the steps.
    observed : array, shape (N, S)
        What came.
    step_std : array, shape (S,)
        Typical change in one step.

    Notes
    -----
    Root mean square over the fields of the distance to the members' mean; the predicted variance
    includes how far the members are apart. On the cart-pole this tells a changed robot apart far
    better than errors in typical steps do: where hitting the end of the rail, or fast swinging,
    makes large errors common, the members expect them.

    """
    middle = mean.sum(axis=0) / len(mean)
    apart = mean - middle
    total = variance + (apart * apart).sum(axis=0) / len(mean) + (SMALLEST * step_std) ** 2
    return np.sqrt(((observed - middle) ** 2 / total).sum(axis=-1) / total.shape[-1])


def plan_spread(particles: np.ndarray, step_std: np.ndarray) -> np.ndarray:
    """
    Return how far a plan's particles part, shape (N,), in typical steps.

    Parameters
    ----------
    particles : array, shape (H, E, N, S)
        One particle a member, after each step.
    step_std : array, shape (S,)
        Typical change in one step.

    """
    steps, members, _, size = particles.shape
    precise = particles.astype(float)
    apart = (precise - precise.sum(axis=1, keepdims=True) / members) / step_std
    return np.sqrt((apart * apart).sum(axis=(0, 1, 3)) / (steps * max(members - 1, 1) * size))


class Trail:
    """
    Open-loop predictions of the present, memberwise, from each of the last k observations.

    One call of the dynamics a step moves all of them on. Row j started j + 1 observations ago.

    Parameters
    ----------
    dynamics : Dynamics
        The model.
    k_steps : int
        Predictions to keep, k.

    """

    def __init__(self, dynamics: Dynamics, k_steps: int) -> None:
        self._dynamics, self._k_steps = dynamics, k_steps
        self._last: np.ndarray | None = None

    def restart(self, observed: np.ndarray | None) -> None:
        """Begin at an observation (S,), or with the next one; what was predicted is dropped."""
        self._last, self._age = observed, 0
        if observed is not None:
            shape = (self._dynamics.members, self._k_steps, len(observed))
            self._starts = np.broadcast_to(observed, shape).astype(np.float32)
            self._variance = np.zeros(shape[1:])

    def advance(self, action: np.ndarray, observed: np.ndarray) -> tuple[float, float | None]:
        """
        Go on to the next observation.

        Parameters
        ----------
        action : array, shape (A,)
            What acted since the last observation.
        observed : array, shape (S,)
            What came of it, one control period later.

        Returns
        -------
        one_step, k_step : float, float or None
            `error` of the prediction from one and from k observations ago; None before there are
            so many.

        """
        assert self._last is not None, 'restart first'
        self._starts[:, 0], self._variance[0] = self._last, 0.0
        mean, std = self._dynamics(self._starts, np.broadcast_to(action, (self._k_steps,
                                                                          len(action))))
        self._variance += (std * std).sum(axis=0) / len(std)
        ends = [0, self._k_steps - 1]
        one_step, k_step = error(mean[:, ends].astype(float), self._variance[ends], observed,
                                 self._dynamics.step_std)
        self._starts[:, 1:], self._variance[1:] = mean[:, :-1], self._variance[:-1].copy()
        self._last, self._age = observed, self._age + 1
        return float(one_step), float(k_step) if self._age >= self._k_steps else None


@dataclass(frozen=True)
class Scale:
    """
    Distribution of one signal over held-out moments.

    Attributes
    ----------
    anchors : tuple of float
        Its quantiles at equal distances from 0 to 1 - `tail`.
    tail : float
        Share of the moments beyond the last of them.
    index : float
        Hill's estimate of the tail index: beyond the last anchor a the share of moments above x
        is `tail` (x / a)^(-1 / index). It is fitted to the largest held-out moments and goes on
        beyond them. Where the true tail is lighter than a power, this errs to trusting more.

    """

    anchors: tuple[float, ...]
    tail: float
    index: float

    @classmethod
    def fit(cls, values: np.ndarray) -> 'Scale':
        """Fit to the values (N,) of a signal on held-out data."""
        values = np.maximum(values, SMALLEST)
        tail = float(np.clip(TAIL_MOMENTS / len(values), 0.01, 0.1))
        anchors = np.quantile(values, np.linspace(0.0, 1.0 - tail, NUM_ANCHORS))
        above = values[values > anchors[-1]]
        index = float(np.log(above / anchors[-1]).mean()) if len(above) else 1.0
        return cls(tuple(anchors.tolist()), tail, max(index, LIGHTEST_TAIL))

    def share_below(self, value: float) -> float:
        """Return the share of held-out moments below a value; 1 for one that is not finite."""
        if not np.isfinite(value):
            return 1.0
        value, last = max(value, SMALLEST), self.anchors[-1]
        if value > last:
            return float(1.0 - self.tail * (value / last) ** (-1.0 / self.index))
        place = int(np.searchsorted(self.anchors, value))  # the first of equal ones
        if place == 0:
            return 0.0
        low, high = self.anchors[place - 1], self.anchors[place]
        return float((place - 1 + (value - low) / (high - low)) * (1.0 - self.tail)
                     / (len(self.anchors) - 1))

    def quantile(self, share: float) -> float:
        """Return the value that a share of the held-out moments stays below."""
        if share > 1.0 - self.tail:
            return self.anchors[-1] * ((1.0 - share) / self.tail) ** -self.index
        return float(np.interp(share, np.linspace(0.0, 1.0 - self.tail, len(self.anchors)),
                               self.anchors))


@dataclass(frozen=True)
class Calibration:
    """
    What is usual for a model: the scales of its signals on held-out data.

    Attributes
    ----------
    steps : int
        Steps k of the k-step error, and of a plan that are looked at.
    scales : dict of str to Scale
        One a signal, see `SIGNALS`; and 'together', of the largest of their shares.
    moments : int
        Held-out moments.
    source : str
        What data they are of.

    """

    steps: int
    scales: dict[str, Scale]
    moments: int
    source: str

    def shares(self, signals: dict[str, float]) -> dict[str, float]:
        """Return for each signal the share of held-out moments below it."""
        return {name: self.scales[name].share_below(value) for name, value in signals.items()}

    def figure(self, shares: dict[str, float]) -> float:
        """
        Return the share of held-out moments that looked less strange; 0 if nothing is known.

        The strangest signal speaks. That the largest of three is large more often than one of
        them is accounted for; while one is missing, the figure is a little too low.
        """
        return self.scales['together'].share_below(odds(shares)) if shares else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dictionaries, as JSON has them."""
        plain = asdict(self)
        for scale in plain['scales'].values():
            scale['anchors'] = list(scale['anchors'])
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> 'Calibration':
        """Read what `to_dict` gave."""
        scales = {name: Scale(tuple(scale['anchors']), scale['tail'], scale['index'])
                  for name, scale in data['scales'].items()}
        return cls(data['steps'], scales, data['moments'], data['source'])


def odds(shares: dict[str, float]) -> float:
    """Return 1 / (1 - the largest share): its tail is a power, as `Scale` assumes."""
    largest = max(shares.values())
    return 1.0 / (1.0 - largest) if largest < 1.0 else float('inf')
