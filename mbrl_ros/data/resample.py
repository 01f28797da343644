"""From stamped samples to states and actions at the fixed dt of a robot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mbrl_ros.core.robot import MessageField, RobotSpec
from mbrl_ros.data.bag_reader import fields_by_topic, Samples, Segment
from mbrl_ros.data.losses import Losses

SNAP_NS = 1000  # a sample this close to a grid time is taken as it is
COMMAND_LIFE_STEPS = 5

Interval = tuple[int, int]


@dataclass(frozen=True)
class Episode:
    """
    States and the actions between them, at a fixed dt, without a hole.

    Attributes
    ----------
    states : ndarray of shape (T + 1, S)
        In the units of the robot spec.
    actions : ndarray of shape (T, A)
        Action t was in effect between states t and t + 1.
    start_ns : int
        Stamp of the first state [ns].
    source : str
        Bag and episode.
    rewards, terminations : ndarray of shape (T,), optional
        What was reported of step t at its end; None where the robot spec names no topic for it.

    """

    states: np.ndarray
    actions: np.ndarray
    start_ns: int
    source: str
    rewards: np.ndarray | None = None
    terminations: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.states) != len(self.actions) + 1:
            raise ValueError(f'{len(self.actions)} actions need {len(self.actions) + 1} states, '
                             f'found {len(self.states)}')
        for labels in (self.rewards, self.terminations):
            if labels is not None and labels.shape != (len(self.actions),):
                raise ValueError(f'{len(self.actions)} actions need as many labels, found '
                                 f'{labels.shape}')
        for array in (self.states, self.actions, self.rewards, self.terminations):
            if array is not None:
                array.setflags(write=False)

    @property
    def num_steps(self) -> int:
        """Number of transitions T."""
        return len(self.actions)

    def cut(self, start: int, stop: int, dt_s: float) -> 'Episode':
        """Return the transitions from `start` up to, not including, `stop`."""
        rewards, terminations = (None if labels is None else labels[start:stop]
                                 for labels in (self.rewards, self.terminations))
        return Episode(self.states[start:stop + 1], self.actions[start:stop],
                       self.start_ns + round(start * dt_s * 1e9), self.source,
                       rewards, terminations)


def resample(segment: Segment, robot: RobotSpec, losses: Losses) -> list[Episode]:
    """
    Cut a segment into episodes on the grid of the robot's control period.

    Parameters
    ----------
    segment : Segment
        Samples as recorded.
    robot : RobotSpec
        Gives rate, fields, staleness limits and actuation delay.
    losses : Losses
        Gaps and dropped transitions are added to it.

    Returns
    -------
    list of Episode
        None shorter than one transition.

    Notes
    -----
    The grid starts at the first observation of each stretch. States are interpolated linearly
    between the two neighbouring samples (angles do not jump: the robot reports them unwrapped, and
    FieldReader unwraps those of a quaternion), taken exactly where a sample falls on the grid.
    The action of a step is the last command stamped no later than the step's start, less the
    robot's actuation delay: the one that acts. A later one would teach the model that effects
    precede their cause.

    """
    common: list[Interval] | None = None
    for topic, samples in segment.observations.items():
        stretches = list(find_stretches(samples, longest_gap_ns(
            samples, robot.dt_ns, robot.stale_after_s[topic]), losses))
        common = stretches if common is None else _intersect(common, stretches)
    episodes = []
    for start, end in common or ():
        num_steps = (end - start + SNAP_NS) // robot.dt_ns
        # Whole nanoseconds a step, as stamps of the simulated robot are: a command that answers
        # an observation in lock-step carries its very stamp, and must not come a rounding late.
        grid = start + robot.dt_ns * np.arange(num_steps + 1)
        sent = grid[:-1] - robot.actuation_delay_steps * robot.dt_ns
        states = _columns(robot.observation, {
            topic: interpolate(samples, grid) for topic, samples in segment.observations.items()})
        actions = _columns(robot.action, {
            topic: hold(samples, sent) for topic, samples in segment.commands.items()})
        known = np.all([is_commanded(samples, sent, robot.dt_ns)
                        for samples in segment.commands.values()], axis=0)
        good = known & np.isfinite(actions).all(axis=1)
        losses.without_command += int((~known).sum())
        losses.bad_command += int((known & ~good).sum())
        episodes += [Episode(states[a:b + 1], actions[a:b], int(grid[a]), segment.source)
                     for a, b in _true_runs(good)]
    return episodes


def longest_gap_ns(samples: Samples, dt_ns: int, stale_after_s: float) -> float:
    """
    Return the silence [ns] after which a topic's episode is split.

    One and a half control periods, or of the topic's own if that is slower: where an observation
    is missing, a line between its neighbours would hide what the robot did in between, and a robot
    that stumbled may have shifted its whole grid. Never more than the topic's staleness limit.
    """
    usual = float(np.median(np.diff(samples.stamps_ns))) if len(samples.stamps_ns) > 1 else 0.0
    return min(1.5 * max(dt_ns, usual), stale_after_s * 1e9)


def find_stretches(samples: Samples, gap_ns: float, losses: Losses) -> Iterator[Interval]:
    """Yield the intervals [ns] in which a topic was neither silent nor reported non-finite."""
    for first, stop in _true_runs(np.isfinite(samples.values).all(axis=1)):
        stamps = samples.stamps_ns[first:stop]
        breaks = np.flatnonzero(np.diff(stamps) > gap_ns) + 1
        losses.gaps += len(breaks)
        for run in np.split(stamps, breaks):
            yield int(run[0]), int(run[-1])


def interpolate(samples: Samples, grid_ns: np.ndarray) -> np.ndarray:
    """Return values (T, F) at grid times inside the samples, linear between neighbours."""
    # Relative to the grid's start: float64 cannot tell nanoseconds since 1970 apart.
    origin = grid_ns[0]
    times = (samples.stamps_ns - origin).astype(np.float64)
    wanted = (grid_ns - origin).astype(np.float64)
    values = np.stack([np.interp(wanted, times, column) for column in samples.values.T], axis=1)
    right = np.clip(np.searchsorted(samples.stamps_ns, grid_ns), 0, len(times) - 1)
    left = np.maximum(right - 1, 0)
    for index in (left, right):
        exact = np.abs(samples.stamps_ns[index] - grid_ns) <= SNAP_NS
        values[exact] = samples.values[index[exact]]
    return values


def is_commanded(samples: Samples, grid_ns: np.ndarray, dt_ns: int) -> np.ndarray:
    """
    Return whether it is known which command was the last at each time, shape (T,).

    There must be one, and it must be younger than five control periods: robots let go of a command
    that is not repeated, so what acted later is not known.
    """
    index = np.searchsorted(samples.stamps_ns, grid_ns, side='right') - 1
    age_ns = grid_ns - samples.stamps_ns[np.maximum(index, 0)] if len(samples.stamps_ns) else 0
    return (index >= 0) & (age_ns < COMMAND_LIFE_STEPS * dt_ns)


def hold(samples: Samples, grid_ns: np.ndarray) -> np.ndarray:
    """Return values (T, F) of the last sample stamped at or before each grid time, else NaN."""
    index = np.searchsorted(samples.stamps_ns, grid_ns, side='right') - 1
    values = np.full((len(grid_ns), samples.values.shape[1]), np.nan)
    values[index >= 0] = samples.values[index[index >= 0]]
    return values


def _columns(fields: Sequence[MessageField], by_topic: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put the columns of each topic into the order of the robot spec."""
    rows = {field.name: by_topic[topic][:, column]
            for topic, group in fields_by_topic(fields).items()
            for column, field in enumerate(group)}
    return np.stack([rows[field.name] for field in fields], axis=1)


def _intersect(left: list[Interval], right: list[Interval]) -> list[Interval]:
    overlaps = [(max(a, c), min(b, d)) for a, b in left for c, d in right]
    return [(start, end) for start, end in overlaps if start <= end]


def _true_runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, one past the last) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
