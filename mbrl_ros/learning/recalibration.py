"""A factor and a power a field on the predicted std, fitted to held-out data, in the graph."""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, Self

import numpy as np

from mbrl_ros.learning.one_step import (
    calibration_error,
    Episodes,
    LEVELS,
    OneStep,
    split_in_halves,
)

POWERS = (1.0, 1.25, 1.5, 1.75, 2.0)
FACTORS = np.geomspace(0.02, 5.0, 41)
# Likelihood that a unit of power must bring: noise that varies smoothly is predicted as it is.
PRICE = 0.2
LEAST_COVERAGE_95 = 0.9
LEVEL_95 = int(np.searchsorted(LEVELS, 0.95))
# More are thinned out to this many: every shape is tried on all of them.
MOST_TRANSITIONS = 4000
# Fewer cannot tell the factors apart: the share inside an interval is known to 1 / (2 sqrt(N)).
LEAST_TRANSITIONS = 50


class Shape(NamedTuple):
    """What the std in typical steps is raised to, and then multiplied by: (S,) or (N, S) each."""

    factor: np.ndarray
    power: np.ndarray

    @classmethod
    def fit(cls, one: OneStep) -> Self:
        """Return what suits these predictions best; see `Recalibration`."""
        one = one.rows(np.arange(0, len(one.state), -(-len(one.state) // MOST_TRANSITIONS)))
        grid, size = np.array(list(product(FACTORS, POWERS))), one.state.shape[1]
        coverage, likelihood = [], []
        for factor, power in grid:
            shaped = one.reshaped(np.full(size, factor), np.full(size, power))
            coverage.append(shaped.coverage())
            likelihood.append(shaped.nll().mean(axis=0) + PRICE * power)
        error = np.stack([calibration_error(curves) for curves in coverage])
        held = np.stack([curves[LEVEL_95] for curves in coverage])
        # Where none is wide enough, the widest comes closest.
        error = np.where(held >= np.minimum(LEAST_COVERAGE_95, held.max(axis=0)), error, np.inf)
        # N transitions know a share to 1 / (2 sqrt(N)).
        alike = error <= error.min(axis=0) + 0.5 / np.sqrt(len(one.state))
        nll = np.where(alike, np.stack(likelihood), np.inf)
        return cls(*grid[nll.argmin(axis=0)].T)


@dataclass(frozen=True)
class Recalibration:
    """
    Shapes of the std of each field.

    Attributes
    ----------
    shape : Shape
        Fitted to all held-out transitions, (S,): what the graph gets.
    honest : Shape
        For each transition what was fitted to the other half of them, (N, S): what the held-out
        scores are computed with.

    Notes
    -----
    Predicted and disagreeing means stay as they are, and so does the shape of the particles:
    trajectory sampling needs a std, which rules out the isotonic map of Kuleshov et al. 2018
    (arXiv:1807.00263) that Malik et al. 2019 (arXiv:1906.08312) plan with.

    Fitted is what has the largest likelihood among all that calibrate as well as the best, and
    whose 95 % interval holds at least 90 % of the data. Likelihood alone is ruled by a few impacts
    with the end of the rail: it leaves the std of all other steps too wide by half or more. A
    factor alone has to choose between those and the others too: where a robot without noise moves
    smoothly, its std must fall to a twentieth, which makes impacts unthinkable. A power above 1
    keeps the large stds, and narrows the small ones.

    """

    shape: Shape
    honest: Shape

    @classmethod
    def fit(cls, one: OneStep, episodes: Episodes, seed: int) -> Self:
        """Fit to the one-step predictions of held-out episodes; 1 if they are too few."""
        if len(one.state) < LEAST_TRANSITIONS:
            shape = np.ones(one.state.shape)
            return cls(Shape(shape[0], shape[0]), Shape(shape, shape))
        half = split_in_halves(episodes, seed)
        sides = zip(Shape.fit(one.rows(half)), Shape.fit(one.rows(~half)), strict=True)
        return cls(Shape.fit(one), Shape(*(np.where(half[:, None], from_rest, from_half)
                                           for from_half, from_rest in sides)))

    def undo(self, one: OneStep) -> OneStep:
        """Return predictions of the recalibrated graph as they were before."""
        factor, power = self.shape
        return one.reshaped(factor ** (-1.0 / power), 1.0 / power)

    def score_honestly(self, one: OneStep) -> OneStep:
        """Give predictions of the recalibrated graph the shape of the other half."""
        return self.undo(one).reshaped(*self.honest)
