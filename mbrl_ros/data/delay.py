"""
How late commands act: the actuation delay of a robot, estimated from what it did.

For each candidate delay a regression explains the change of state by the state and by the command
that would act under this delay; the right one explains data it has not seen best.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.resample import Episode

LONGEST_STEPS = 20  # the most that a robot spec may say
FRACTIONS = 10  # candidates a control period, near the best whole number
BLOCK_STEPS = 25
FEWEST_BLOCKS = 8
FOLDS = 4
RESAMPLES = 500
RIDGE = 1e-6  # of the mean square of a feature: only against singular matrices
CONFIDENT = 0.9
FREE = 0.1  # of the variance of a command; what follows from the state proves no cause
# A field is not explained to more than this share of its variance: below, nothing but rounding
# and the regression's own shape is left, and the field would outvote all others.
FLOOR = 1e-9


@dataclass(frozen=True)
class DelayEstimate:
    """
    Actuation delay in control periods; zero is what a dataset takes for granted.

    Attributes
    ----------
    steps : float or None
        Control periods between the last command stamped no later than the start of a step and the
        command that acts in it. Between two whole numbers, the older command acts for that share
        of the step. None if the data cannot tell.
    low, high : float or None
        95 % interval, by bootstrap over blocks of 25 steps; it is made of tenths of a period.
    confidence : float
        Share of the resamples that agree with `steps` to within half a control period.
    explained : float
        Share of what the state alone leaves unexplained that commands explain, of the field
        that they explain best; on held-out blocks.
    reason : str
        Why the data cannot tell; empty if they can.

    """

    steps: float | None
    low: float | None = None
    high: float | None = None
    confidence: float = 0.0
    explained: float = 0.0
    reason: str = ''

    @property
    def spec_steps(self) -> int | None:
        """What to write into the robot spec as `actuation_delay_steps`."""
        return None if self.steps is None else round(self.steps)


def estimate_delay(episodes: Sequence[Episode], robot: RobotSpec, seed: int = 0) -> DelayEstimate:
    """
    Estimate the actuation delay from states and commands.

    Parameters
    ----------
    episodes : sequence of Episode
        Cut with `actuation_delay_steps` of zero in the robot spec.
    robot : RobotSpec
        Says which fields are angles, and which the model ignores.
    seed : int
        Of the bootstrap.

    Notes
    -----
    The regression is linear in the state (angles as sine and cosine), its products and the
    command, and bilinear in state and command. Delays are compared by the sum over the fields
    of the logarithm of the squared error (the likelihood of independent Gaussians of unknown
    variance): no field needs a weight, whatever its unit. The bootstrap resamples the blocks that
    are judged, and does not fit again.

    """
    commands = np.concatenate([np.empty((0, len(robot.action))), *(e.actions for e in episodes)])
    moving = np.ptp(commands, axis=0) > 0.0 if len(commands) else np.zeros(0, bool)
    if not moving.any():
        return DelayEstimate(None, reason='no command changes in this bag')
    longest = next((steps for steps in (LONGEST_STEPS, 10, 5)
                    if _num_blocks(episodes, steps) >= FEWEST_BLOCKS), None)
    if longest is None:
        return DelayEstimate(None, reason=f'fewer than {FEWEST_BLOCKS * BLOCK_STEPS} transitions '
                                          'in unbroken episodes')
    regression = _Regression(episodes, robot, moving, longest)
    if regression.freedom() < FREE:
        return DelayEstimate(None, reason='commands follow from the state: a controller drove. '
                                          'Random motion tells')
    without = regression.errors(None)
    if not without.shape[1]:
        return DelayEstimate(None, reason='the state never changes')
    floor = FLOOR * without.sum(axis=0)
    errors = {float(delay): regression.errors(delay) for delay in range(longest + 1)}
    best = _best(errors, floor)
    for tenth in range(-FRACTIONS + 1, FRACTIONS):
        delay = round(best + tenth / FRACTIONS, 6)
        if 0.0 <= delay <= longest and delay not in errors:
            errors[delay] = regression.errors(delay)
    return _judge(errors, without, floor, longest, seed)


def _judge(errors: dict[float, np.ndarray], without: np.ndarray, floor: np.ndarray, longest: int,
           seed: int) -> DelayEstimate:
    """Turn squared errors (blocks, F) by delay, and without commands, into an estimate."""
    delays = np.array(sorted(errors))
    by_delay = np.stack([errors[delay] for delay in delays])
    num_blocks = len(without)
    weights = np.random.default_rng(seed).multinomial(
        num_blocks, np.full(num_blocks, 1.0 / num_blocks), RESAMPLES)
    scores = np.log(np.einsum('rb,dbs->rds', weights, by_delay) + floor).sum(axis=2)
    baseline = np.log(weights @ without + floor).sum(axis=1)
    found = delays[np.argmin(scores, axis=1)]
    steps = _best(errors, floor)
    low, high = np.quantile(found, [0.025, 0.975])
    confidence = float(np.mean(np.abs(found - steps) <= 0.5 + 1e-9))
    at_best = errors[steps].sum(axis=0)
    explained = max(0.0, float(np.max(1.0 - (at_best + floor) / (without.sum(axis=0) + floor))))
    helped = float(np.mean(scores.min(axis=1) < baseline))
    reason = ''
    if helped < CONFIDENT or explained <= 0.01:
        reason = 'commands explain nothing of the motion that the state does not'
    elif confidence < CONFIDENT:
        reason = f'delays from {low:.1f} to {high:.1f} explain the motion about equally well'
    elif steps >= longest:
        reason = f'commands seem to act {longest} control periods late, or later'
    return DelayEstimate(None if reason else steps, float(low), float(high), confidence,
                         explained, reason)


class _Regression:
    """Regressions of the change of state, fitted on some blocks and judged on the others."""

    def __init__(self, episodes: Sequence[Episode], robot: RobotSpec, moving: np.ndarray,
                 longest: int) -> None:
        self._used = [e for e in episodes if e.num_steps > longest + 1]
        self._moving, self._first = moving, longest + 1
        states = np.concatenate([e.states[self._first:-1] for e in self._used])
        changes = np.concatenate([np.diff(e.states[self._first:], axis=0) for e in self._used])
        block = 0
        blocks = []
        for episode in self._used:
            steps = np.arange(episode.num_steps - self._first) // BLOCK_STEPS
            blocks.append(block + steps)
            block += int(steps[-1]) + 1
        self._blocks = np.concatenate(blocks)
        self._features = _standardised(_features(states, robot))
        self._changes = _standardised(changes[:, np.ptp(changes, axis=0) > 0.0])
        base = [np.ones((len(states), 1)), self._features]
        # Products only where ten samples a coefficient remain: overfitting would drown the delay.
        linear = (1 + self._features.shape[1]) * (1 + int(moving.sum()))
        self._with_products = len(states) >= 10 * linear
        rows, columns = np.triu_indices(self._features.shape[1])
        if len(states) >= 10 * (linear + len(rows)):
            base.append(self._features[:, rows] * self._features[:, columns])
        self._base = np.concatenate(base, axis=1)

    def errors(self, delay_steps: float | None) -> np.ndarray:
        """Return held-out squares, shape (blocks, fields that change); None: no command."""
        columns = [self._base]
        if delay_steps is not None:
            acting = _standardised(self._acting(delay_steps))
            columns.append(acting)
            if self._with_products:
                columns.append((acting[:, :, None] * self._features[:, None, :]
                                ).reshape(len(acting), -1))
        return self._held_out(np.concatenate(columns, axis=1), self._changes)

    def freedom(self) -> float:
        """Return the share of a command's variance that the state does not explain."""
        commands = _standardised(self._acting(0.0))
        return float(np.max(self._held_out(self._base, commands).sum(axis=0) / len(commands)))

    def _held_out(self, design: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Regress targets (N, F) on a design (N, D); return squared errors, shape (blocks, F)."""
        fold_of_row = self._blocks % FOLDS
        rows = [np.flatnonzero(fold_of_row == fold) for fold in range(FOLDS)]
        grams = np.stack([design[part].T @ design[part] for part in rows])
        moments = np.stack([design[part].T @ targets[part] for part in rows])
        gram, moment = grams.sum(axis=0), moments.sum(axis=0)
        gram += RIDGE * len(design) * np.eye(design.shape[1])
        squares = np.empty_like(targets)
        for part, own_gram, own_moment in zip(rows, grams, moments, strict=True):
            weights = np.linalg.solve(gram - own_gram, moment - own_moment)
            squares[part] = (design[part] @ weights - targets[part])**2
        # A collision with a stop is no matter of delays, and must not decide about them.
        limit = 25.0 * np.maximum(np.median(squares, axis=0), 1e-30)
        sums = np.zeros((int(self._blocks[-1]) + 1, targets.shape[1]))
        np.add.at(sums, self._blocks, np.minimum(squares, limit))
        return sums

    def _acting(self, delay_steps: float) -> np.ndarray:
        """Return the commands that act in each step under a delay, shape (N, moving)."""
        whole, part = int(delay_steps), delay_steps % 1.0
        newer, older = (np.concatenate([
            e.actions[self._first - lag:e.num_steps - lag, self._moving] for e in self._used])
            for lag in (whole, min(whole + 1, self._first)))
        return (1.0 - part) * newer + part * older


def _features(states: np.ndarray, robot: RobotSpec) -> np.ndarray:
    columns = []
    for field, column in zip(robot.observation, states.T, strict=True):
        if field.feature == 'angle':
            columns += [np.sin(column), np.cos(column)]
        elif field.feature == 'linear':
            columns.append(column)
    return np.stack(columns, axis=1) if columns else np.empty((len(states), 0))


def _standardised(values: np.ndarray) -> np.ndarray:
    """Return columns of mean zero and std one; constant ones become zero."""
    centred = values - values.mean(axis=0)
    std = centred.std(axis=0)
    return centred / np.where(std > 1e-12 * (1.0 + np.abs(values).max(axis=0)), std, np.inf)


def _num_blocks(episodes: Sequence[Episode], longest: int) -> int:
    return sum(max(0, e.num_steps - longest - 1) // BLOCK_STEPS for e in episodes)


def _best(errors: dict[float, np.ndarray], floor: np.ndarray) -> float:
    return min(errors, key=lambda delay: float(np.log(errors[delay].sum(axis=0) + floor).sum()))
