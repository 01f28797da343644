"""
From stamped samples to states and actions at the fixed dt of a robot, while they come in.

The grid starts at the first observation of each stretch. How each field gets onto it:

- states: linear between the two neighbouring samples, taken exactly where a sample falls on the
  grid. Angles do not jump: the robot reports them unwrapped, and FieldReader unwraps those of a
  quaternion before. A derived velocity is the slope of the position since the sample before.
- actions: held. The action of a step is the last command stamped no later than the step's start,
  less the robot's actuation delay: the one that acts. A later one would teach the model that
  effects precede their cause.
- labels: the last one stamped after a step's start and no later than its end.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mbrl_ros.core.robot import MessageField, RobotSpec
from mbrl_ros.data.losses import Losses
from mbrl_ros.data.samples import ages_ns, hold, interpolate, Samples, SNAP_NS
from mbrl_ros.data.stretches import ObservedTopic, Stretch

COMMAND_LIFE_STEPS = 5
FOREVER_NS = 2**62


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
        for column in (self.states, self.actions, self.rewards, self.terminations):
            if column is not None:
                column.setflags(write=False)

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


def fields_by_topic(fields: Sequence[MessageField]) -> dict[str, list[MessageField]]:
    """Group fields by topic, both in the order of the spec."""
    grouped: dict[str, list[MessageField]] = {}
    for field in fields:
        grouped.setdefault(field.topic, []).append(field)
    return grouped


class Resampler:
    """
    Cuts the samples of a robot's topics into episodes on the grid of its control period.

    It holds the samples that later steps need, and the episode that grows: `extend` turns into
    steps whatever no later sample can change. How often it is called changes no number.

    Parameters
    ----------
    robot : RobotSpec
        Gives rate, fields, staleness limits and actuation delay.
    source : str
        Bag and, where marked, episode.
    losses : Losses
        What is dropped is added to it.

    """

    def __init__(self, robot: RobotSpec, source: str, losses: Losses) -> None:
        self.episodes: list[Episode] = []
        self._robot, self._source, self._losses = robot, source, losses
        self._observed = {topic: ObservedTopic(topic, fields, robot.dt_ns,
                                               robot.stale_after_s[topic], losses)
                          for topic, fields in fields_by_topic(robot.observation).items()}
        self._commands, self._labels = (
            {topic: Samples.none(len(fields)) for topic, fields in fields_by_topic(role).items()}
            for role in (robot.action, robot.labels))
        # Of the stretch that all topics share: its first grid time, and the states so far.
        self._origin_ns: int | None = None
        self._num_states = 0
        self._growing = _GrowingEpisode(robot)

    def extend(self, observed: Mapping[str, Samples], commands: Mapping[str, Samples],
               labels: Mapping[str, Samples], closed_ns: int) -> None:
        """
        Take the samples of each topic stamped before a time; all later ones are not before it.

        Parameters
        ----------
        observed, commands, labels : mapping of str to Samples
            By topic, later than those of the call before.
        closed_ns : int
            The time; FOREVER_NS when nothing more comes.

        """
        for name, samples in observed.items():
            self._observed[name].extend(samples, closed_ns)
        for held, new in ((self._commands, commands), (self._labels, labels)):
            for name, samples in new.items():
                held[name] += samples
        while self._continue():
            pass
        needed_ns = max(topic.earliest_ns for topic in self._observed.values()) \
            if self._origin_ns is None else self._time_ns(self._num_states - 1)
        for topic in self._observed.values():
            topic.trim(needed_ns)
        for held, delay_ns in ((self._commands, self._delay_ns), (self._labels, 0)):
            for name, samples in held.items():
                held[name] = samples.since(needed_ns - delay_ns)

    @property
    def _delay_ns(self) -> int:
        return self._robot.actuation_delay_steps * self._robot.dt_ns

    def _time_ns(self, index: int) -> int:
        # Whole nanoseconds a step, as stamps of the simulated robot are: a command that answers
        # an observation in lock-step carries its very stamp, and must not come a rounding late.
        return (self._origin_ns or 0) + self._robot.dt_ns * index

    def _continue(self) -> bool:
        """Take one step towards the end of the stretches; return whether there may be another."""
        heads = [topic.head() for topic in self._observed.values()]
        known = [head for head in heads if head is not None]
        if len(known) < len(heads):
            return False
        start_ns = max(head.start_ns for head in known)
        end_ns = min(head.end_ns for head in known)
        if end_ns < start_ns:  # one ended before another began, or has not come so far
            return self._drop(end_ns)
        if self._origin_ns is None:
            self._origin_ns, self._num_states = start_ns, 0
        ended_ns = min((head.end_ns for head in known if not head.is_open), default=FOREVER_NS)
        reached_ns = min((head.end_ns for head in known if head.is_open), default=FOREVER_NS)
        is_over = ended_ns + SNAP_NS <= reached_ns
        last_ns = ended_ns + SNAP_NS if is_over else min(ended_ns, reached_ns)
        self._emit(1 + (last_ns - self._origin_ns) // self._robot.dt_ns, known)
        if not is_over:
            return False
        self._finish_episode()
        self._origin_ns = None
        return self._drop(ended_ns)

    def _drop(self, end_ns: int) -> bool:
        """Drop the first stretches that ended by a time; return whether there were any."""
        has_dropped = False
        for topic in self._observed.values():
            head = topic.head()
            if head is not None and not head.is_open and head.end_ns <= end_ns:
                topic.stretches.popleft()
                has_dropped = True
        return has_dropped

    def _emit(self, num_states: int, heads: Sequence[Stretch]) -> None:
        """Append the steps that end with the states up to, not including, `num_states`."""
        if num_states <= self._num_states:
            return
        robot = self._robot
        first = max(self._num_states - 1, 0)
        grid = self._time_ns(first) + robot.dt_ns * np.arange(num_states - first)
        self._num_states = num_states
        states = _columns(robot.observation, {
            name: interpolate(topic.samples, np.minimum(grid, head.end_ns))
            for (name, topic), head in zip(self._observed.items(), heads, strict=True)})
        sent = grid[:-1] - self._delay_ns
        actions = _columns(robot.action, {
            topic: hold(samples, sent) for topic, samples in self._commands.items()})
        # Robots let go of a command that is not repeated: what acted later is not known.
        known = np.all([ages_ns(samples, sent) < COMMAND_LIFE_STEPS * robot.dt_ns
                        for samples in self._commands.values()], axis=0)
        finite = np.isfinite(actions).all(axis=1)
        labels, labelled = self._label(
            grid[:-1], np.minimum(grid[1:], min(head.end_ns for head in heads)))
        self._losses.without_command += int((~known).sum())
        self._losses.bad_command += int((known & ~finite).sum())
        self._losses.without_label += int((known & finite & ~labelled).sum())
        good = known & finite & labelled
        for start, stop in _true_runs(good):
            if start > 0 or not self._growing.num_steps:
                self._finish_episode()
                self._growing = _GrowingEpisode(robot, int(grid[start]), states[start])
            self._growing.append(states[start + 1:stop + 1], actions[start:stop],
                                 labels[start:stop])
            if stop < len(good):
                self._finish_episode()
        if len(good) and not good.any():
            self._finish_episode()

    def _label(self, starts_ns: np.ndarray, ends_ns: np.ndarray
               ) -> tuple[np.ndarray, np.ndarray]:
        """Return labels (T, L) of the steps between these times, and which have all (T,)."""
        if not self._labels:
            return np.empty((len(ends_ns), 0)), np.ones(len(ends_ns), bool)
        labels = _columns(self._robot.labels, {
            topic: hold(samples, ends_ns) for topic, samples in self._labels.items()})
        fresh = np.all([ages_ns(samples, ends_ns) < ends_ns - starts_ns
                        for samples in self._labels.values()], axis=0)
        return labels, fresh & np.isfinite(labels).all(axis=1)

    def _finish_episode(self) -> None:
        if self._growing.num_steps:
            self.episodes.append(self._growing.episode(self._source))
        self._growing = _GrowingEpisode(self._robot)


class _GrowingEpisode:
    """An episode that is appended to, in place: it may be all of a long bag."""

    def __init__(self, robot: RobotSpec, start_ns: int = 0, state: np.ndarray | None = None
                 ) -> None:
        self._robot, self._start_ns, self.num_steps = robot, start_ns, 0
        self._states, self._actions, self._labels = array('d'), array('d'), array('d')
        if state is not None:
            self._states.frombytes(state.tobytes())

    def append(self, states: np.ndarray, actions: np.ndarray, labels: np.ndarray) -> None:
        """Append steps: the states (T, S) at their ends, actions (T, A), labels (T, L)."""
        self.num_steps += len(actions)
        for growing, new in ((self._states, states), (self._actions, actions),
                             (self._labels, labels)):
            growing.frombytes(new.tobytes())

    def episode(self, source: str) -> Episode:
        """Return it; nothing can be appended any more."""
        robot, steps = self._robot, self.num_steps
        labels = iter(np.frombuffer(self._labels).reshape(steps, -1).T.copy()
                      if robot.labels else ())
        return Episode(
            np.frombuffer(self._states).reshape(steps + 1, -1),
            np.frombuffer(self._actions).reshape(steps, -1), self._start_ns, source,
            next(labels) if robot.reward else None,
            (next(labels) != 0.0).astype(np.float64) if robot.termination else None)


def _columns(fields: Sequence[MessageField], by_topic: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put the columns of each topic into the order of the robot spec."""
    rows = {id(field): by_topic[topic][:, column]
            for topic, group in fields_by_topic(fields).items()
            for column, field in enumerate(group)}
    return np.stack([rows[id(field)] for field in fields], axis=1)


def _true_runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, one past the last) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
