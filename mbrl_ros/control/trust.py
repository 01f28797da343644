"""The trust gauge: how usual the present looks to the model, and what is done where it is not."""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.surprise import Calibration, plan_spread, Trail

UNITS = {'one_step': 'predicted std', 'k_step': 'predicted std', 'plan_spread': 'typical steps'}


class TrustConfig(Strict):
    """When the gauge slows the robot down, holds it or stops it; 1 is never."""

    slow_above: float = Field(0.99, ge=0.0, le=1.0,
                              description='Figure above which commands come closer to the safe '
                                          'value')
    hold_above: float = Field(0.999, ge=0.0, le=1.0,
                              description='Figure above which the last command is held')
    stop_above: float = Field(0.9999, ge=0.0, le=1.0,
                              description='Figure above which the safe value is sent')
    min_scale: float = Field(0.8, ge=0.0, le=1.0,
                             description='Share of the distance from the safe value that is left '
                                         'of a command at hold_above')
    trust_ticks: int = Field(5, ge=1, le=1000,
                             description='Ticks in a row that must agree before anything changes')
    hold_ticks: int = Field(5, ge=0, le=1000,
                            description='Ticks in a row that may hold; then the safe value is '
                                        'sent')

    @model_validator(mode='after')
    def _check_order(self) -> 'TrustConfig':
        if not self.slow_above <= self.hold_above <= self.stop_above:
            raise ValueError(f'slow_above {self.slow_above:g}, hold_above {self.hold_above:g} and '
                             f'stop_above {self.stop_above:g} must not decrease')
        return self


@dataclass(frozen=True)
class Trust:
    """
    A reading of the gauge.

    Attributes
    ----------
    figure : float
        In [0, 1]: share of the held-out moments that looked less strange than now; 0 while
        nothing is known.
    signals : dict of str to float
        What is known of 'one_step' and 'k_step' [predicted std] and 'plan_spread' [typical
        steps].
    shares : dict of str to float
        Of each, the share of held-out moments below it.

    """

    figure: float = 0.0
    signals: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """Say what looks strangest."""
        if not self.signals:
            return 'nothing known yet'
        name = max(self.shares, key=lambda name: self.shares[name])
        return (f'{name} of {self.signals[name]:.3g} {UNITS[name]} is above '
                f'{self.shares[name]:.2%} of the held-out moments')


class TrustGauge:
    """
    Compares what happens with what the model foresaw, and how far its members part.

    Parameters
    ----------
    dynamics : Dynamics
        The model that plans.
    calibration : Calibration
        Of the same model file.

    Notes
    -----
    On data like the held-out ones the figure is uniform, so it is above t in a share 1 - t of the
    ticks: at 100 Hz, 0.999 is crossed every ten seconds on average. Those ticks come in runs (a
    strange moment stays in the k-step error for k ticks) with long pauses between them. Beyond
    the largest held-out moments the figure is an extrapolation, see `Scale`.

    """

    def __init__(self, dynamics: Dynamics, calibration: Calibration) -> None:
        self._calibration, self._dynamics = calibration, dynamics
        self._trail = Trail(dynamics, calibration.steps)
        self._signals: dict[str, float] = {}
        self._known = False

    def observe(self, state: np.ndarray | None, acted: np.ndarray, *,
                is_consecutive: bool) -> None:
        """
        Take the observation of a tick.

        Parameters
        ----------
        state : array, shape (S,), or None
            A fresh observation; None if there is none.
        acted : array, shape (A,)
            Command that acted since the observation before: the one sent `delay_steps` ticks
            before that observation's.
        is_consecutive : bool
            True if it is one control period younger than the one before. If not, the errors are
            unknown until enough of them are.

        """
        if state is None or not is_consecutive or not self._known:
            self._signals.pop('one_step', None)
            self._signals.pop('k_step', None)
            self._trail.restart(state)
            self._known = state is not None
            return
        self._signals['one_step'], k_step = self._trail.advance(acted, state)
        if k_step is not None:
            self._signals['k_step'] = k_step

    def planned(self, states: np.ndarray, lengths: np.ndarray | None = None) -> None:
        """
        Take the chosen plan, from `Decision.prediction`.

        It counts from now on, so after the command is out is early enough. One particle a member
        is looked at: their number must not change the figure; of fewer particles than members
        nothing is said. Where a particle has no member of its own, as with 'ts1', its spread is
        compared with that of particles that have.

        Parameters
        ----------
        states : array, shape (h, K, S)
            Its particles, after each step that counts.
        lengths : array, shape (K,), optional
            Steps of each particle until it ends; all by default. What comes after is not looked
            at, and a step that fewer than two members reach says nothing.

        """
        share = states.shape[1] // self._dynamics.members
        if not share:
            return
        one_each = states[:self._calibration.steps, ::share, None]
        if lengths is None:
            lengths = np.full(states.shape[1], len(states))
        spread = _spread_of_going(one_each, lengths[::share], self._dynamics.step_std)
        if spread is None:
            self._signals.pop('plan_spread', None)
        else:
            self._signals['plan_spread'] = spread

    def read(self) -> Trust:
        """Return the present reading."""
        shares = self._calibration.shares(self._signals)
        return Trust(self._calibration.figure(shares), dict(self._signals), shares)

    def forget(self) -> None:
        """Begin anew, as after a pause."""
        self._known = False
        self._signals.clear()


def _spread_of_going(particles: np.ndarray, lengths: np.ndarray,
                     step_std: np.ndarray) -> float | None:
    """Return the spread of particles (h, E, 1, S) up to their ends (E,); None: too few go on."""
    if (lengths >= len(particles)).all():
        return float(plan_spread(particles, step_std)[0])
    going = np.arange(len(particles))[:, None] < lengths
    found = [plan_spread(states[None, on], step_std)[0]
             for states, on in zip(particles, going, strict=True) if on.sum() > 1]
    return float(np.sqrt(np.mean(np.square(found)))) if found else None


@dataclass(frozen=True)
class Restraint:
    """
    What is left of a command.

    Attributes
    ----------
    level : {'full', 'slow', 'hold', 'stop'}
        What is done.
    scale : float
        At 'full' and 'slow': share of the command's distance from the safe value.

    """

    level: Literal['full', 'slow', 'hold', 'stop'] = 'full'
    scale: float = 1.0

    def apply(self, action: np.ndarray, last: np.ndarray,
              safe_value: np.ndarray) -> np.ndarray:
        """Return the command, shape (A,), in place of an action; `last` is the one before."""
        if self.level == 'stop':
            return safe_value
        if self.level == 'hold':
            return last
        return action if self.scale == 1.0 else safe_value + self.scale * (action - safe_value)


class TrustLimiter:
    """
    Turns figures into restraints, so that no single odd moment counts.

    The figure that counts moves up only to what all of the last `trust_ticks` figures reach, and
    down only to what all of them stay below.
    """

    def __init__(self, config: TrustConfig) -> None:
        self._config = config
        self._recent: deque[float] = deque(maxlen=config.trust_ticks)
        self.forget()

    def forget(self) -> None:
        """Begin with full trust."""
        self._recent.clear()
        self._recent.extend([0.0] * self._config.trust_ticks)
        self._figure, self._num_held = 0.0, 0

    def update(self, figure: float) -> Restraint:
        """Take the figure of a tick and return its restraint."""
        c = self._config
        self._recent.append(figure)
        self._figure = min(max(self._figure, min(self._recent)), max(self._recent))
        self._num_held = self._num_held + 1 if self._figure > c.hold_above else 0
        if self._figure > c.stop_above or self._num_held > c.hold_ticks:
            return Restraint('stop', 0.0)
        if self._num_held:
            return Restraint('hold')
        if self._figure > c.slow_above:
            way = (self._figure - c.slow_above) / (c.hold_above - c.slow_above)
            return Restraint('slow', 1.0 - way * (1.0 - c.min_scale))
        return Restraint()
