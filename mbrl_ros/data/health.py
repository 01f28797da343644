"""What is wrong with a bag, for one robot, and what to do about it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import MessageField, ObservationField, RobotSpec
from mbrl_ros.data.bag_reader import Progress
from mbrl_ros.data.bag_scan import scan_bag
from mbrl_ros.data.delay import DelayEstimate, estimate_delay
from mbrl_ros.data.episodes import read_episodes
from mbrl_ros.data.holdout import HOLDOUT_BLOCK_STEPS
from mbrl_ros.data.losses import Losses
from mbrl_ros.data.message_checks import check_clock, check_fields, check_topics, Finding
from mbrl_ros.data.resample import Episode

FEW_SECONDS = 30.0  # the shipped cart-pole model saw twice as much
MANY_AT_LIMIT = 0.25
MANY_UNCOMMANDED = 0.05
NUM_BINS = 12
FEW_BINS = 0.6


@dataclass(frozen=True)
class Coverage:
    """
    Where one field of the state was, in its unit.

    Attributes
    ----------
    min, q05, q50, q95, max : float
        Extremes and quantiles; an angle that went around is taken into one turn first.
    filled : float
        Share of twelve equal parts of the range from min to max that hold a sample.
    empty : tuple of (float, float)
        The stretches of that range that hold none.

    """

    min: float
    q05: float
    q50: float
    q95: float
    max: float
    filled: float
    empty: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Health:
    """Findings about one bag; `delay` and `coverage` only where it could be cut into steps."""

    findings: tuple[Finding, ...]
    delay: DelayEstimate | None = None
    coverage: Mapping[str, Coverage] | None = None

    @property
    def is_trainable(self) -> bool:
        """Whether nothing makes training on this bag impossible."""
        return all(finding.level != 'bad' for finding in self.findings)


def examine(path: Path | str, robot: RobotSpec, namespace: str = '',
            progress: Progress | None = None) -> Health:
    """
    Examine a bag.

    Parameters
    ----------
    path, robot, namespace, progress
        See `read_episodes`. The bag is read twice, and once more for a robot that delays.

    Raises
    ------
    BagError
        If it is not a bag that can be read at all; everything else is a finding.

    """
    def halves(first: bool) -> Progress | None:
        if progress is None:
            return None
        return lambda bag, done, total: progress(bag, done + (0 if first else total), 2 * total)
    path = Path(path)
    scans = scan_bag(path, robot, namespace, halves(True))
    findings = [*check_topics(scans.values(), robot), *check_fields(scans.values(), robot)]
    findings += [check_clock(scan, robot) for scan in scans.values() if any(scan.header_ns)]
    try:
        episodes, losses = read_episodes(path, robot, namespace, halves(False))
    except BagError as error:
        # Not twice what a row says already.
        if all(finding.level != 'bad' for finding in findings):
            findings.append(Finding('training', 'bad', str(error)))
        return Health(tuple(findings))
    undelayed = robot.model_copy(update={'actuation_delay_steps': 0})
    delay = estimate_delay(read_episodes(path, undelayed, namespace)[0]
                           if robot.actuation_delay_steps else episodes, robot)
    states = np.concatenate([np.empty((0, len(robot.observation))), *(e.states for e in episodes)])
    coverage = {field.name: _coverage(field, column) for field, column
                in zip(robot.observation, states.T, strict=True) if len(states)}
    findings += [_recorder(losses), _gaps(losses), _late(losses),
                 _nan(losses), *_commands(episodes, robot),
                 *(_covered(field, coverage[field.name]) for field in robot.observation
                   if field.name in coverage),
                 _delay(delay, robot), _transitions(episodes, robot, losses)]
    return Health(tuple(findings), delay, coverage)


def _recorder(losses: Losses) -> Finding:
    lost = ', '.join(f'{count} on {topic}' for topic, count in losses.recorder_lost.items())
    found = '; '.join(filter(None, [lost and f'lost {lost}',
                                    losses.recovered and f'recovered: {losses.recovered}']))
    return Finding('recorder', 'warn' if found else 'ok', found or 'counts no loss',
                   'record on a faster disk, or with less load' if lost else '')


def _gaps(losses: Losses) -> Finding:
    found = f'{losses.gaps}, {losses.clock_jumps} jumps of the clock'
    topic, length_ns, start_ns = losses.longest_gap
    if topic:
        found += f'; longest {length_ns * 1e-6:.4g} ms on {topic} at {start_ns * 1e-9:.3f} s'
    bad = losses.gaps or losses.clock_jumps
    return Finding('gaps', 'warn' if bad else 'ok', found,
                   'episodes are split there: look at network and load if there are many'
                   if bad else '')


def _nan(losses: Losses) -> Finding:
    found = ', '.join(f'{name}: {count} samples, first at {first_ns * 1e-9:.3f} s'
                      for name, (count, first_ns) in losses.nan_samples.items())
    if losses.bad_command:
        found += f'{", " if found else ""}{losses.bad_command} transitions by their command'
    return Finding('not finite', 'warn' if found else 'ok', found or 'none',
                   'dropped; ask the driver for the value, or derive it' if found else '')


def _late(losses: Losses) -> Finding:
    found = ', '.join(f'{count} messages on {topic}' for topic, count in losses.late.items())
    return Finding('late', 'warn' if found else 'ok', f'{found} dropped' if found else 'none',
                   'stamped more than a second before what was recorded earlier: stamp all topics '
                   'by one clock' if found else '')


def _commands(episodes: Sequence[Episode], robot: RobotSpec) -> Iterator[Finding]:
    actions = np.concatenate([np.empty((0, len(robot.action))), *(e.actions for e in episodes)])
    if not len(actions):
        return  # said of the transitions
    for field, command in zip(robot.action, actions.T, strict=True):
        name = f'command {field.name}'
        slack = 1e-6 * (field.max - field.min)
        beyond = np.mean((command < field.min - slack) | (command > field.max + slack))
        at_limit = np.mean((command <= field.min + slack) | (command >= field.max - slack))
        found = f'{command.min():.4g} to {command.max():.4g}{_unit(field)}, ' \
                f'{at_limit:.1%} at the limits or beyond'
        advice = ''
        if beyond:
            advice = f'{beyond:.1%} are beyond [{field.min:g}, {field.max:g}]: correct the ' \
                     'limits or the unit in the robot spec'
        elif np.ptp(command) <= slack:
            advice = 'it never changes: record with mode:=collect'
        elif at_limit > MANY_AT_LIMIT:
            advice = 'saturated: what lies between is hardly seen; add random motion'
        yield Finding(name, 'warn' if advice else 'ok', found, advice)


def _coverage(field: ObservationField, values: np.ndarray) -> Coverage:
    if field.feature == 'angle' and np.ptp(values) >= 2.0 * np.pi:
        values = (values + np.pi) % (2.0 * np.pi) - np.pi
    counts, edges = np.histogram(values, NUM_BINS)
    empty = []
    for is_empty, group in groupby(range(NUM_BINS), key=lambda bin_: bool(counts[bin_] == 0)):
        bins = list(group)
        if is_empty:
            empty.append((float(edges[bins[0]]), float(edges[bins[-1] + 1])))
    low, q05, q50, q95, high = np.quantile(values, [0.0, 0.05, 0.5, 0.95, 1.0]).tolist()
    return Coverage(low, q05, q50, q95, high, float(np.mean(counts > 0)), tuple(empty))


def _covered(field: ObservationField, cover: Coverage) -> Finding:
    found = f'{cover.min:.4g} to {cover.max:.4g}{_unit(field)}, 90 % in [{cover.q05:.4g}, ' \
            f'{cover.q95:.4g}], {cover.filled:.0%} of the range visited'
    if cover.empty:
        found += ', not: ' + ', '.join(f'[{low:.4g}, {high:.4g}]' for low, high in cover.empty)
    advice = ''
    if field.feature != 'ignored' and cover.max - cover.min <= 1e-9:
        advice = 'it never changes: move the robot, or check that it is measured'
    elif field.feature != 'ignored' and cover.filled < FEW_BINS:
        advice = 'large parts of the range are not visited: record motion there'
    return Finding(f'state {field.name}', 'warn' if advice else 'ok', found, advice)


def _unit(field: MessageField) -> str:
    return '' if field.unit == '1' else f' {field.unit}'


def _delay(delay: DelayEstimate, robot: RobotSpec) -> Finding:
    spec = robot.actuation_delay_steps
    if delay.steps is None:
        return Finding('actuation delay', 'warn', f'cannot tell: {delay.reason}',
                       'record a minute of random motion (mode:=collect)')
    found = f'{delay.steps:.1f} control periods (95 %: {delay.low:.1f} to {delay.high:.1f}; ' \
            f'{delay.confidence:.0%} sure to half a period); the robot spec says {spec}'
    if abs(delay.steps - spec) > 0.5:
        return Finding('actuation delay', 'warn', found,
                       f'set actuation_delay_steps: {delay.spec_steps} in the robot spec, then '
                       'train again')
    return Finding('actuation delay', 'ok', found)


def _transitions(episodes: Sequence[Episode], robot: RobotSpec, losses: Losses) -> Finding:
    number = sum(episode.num_steps for episode in episodes)
    total = number + losses.without_command + losses.bad_command
    found = f'{number} transitions in {len(episodes)} episodes, {number * robot.dt_s:.1f} s'
    if losses.without_command:
        found += f'; {losses.without_command} without a command of the last five periods'
    if losses.outside_episodes:
        found += f'; {losses.outside_episodes} observations outside any episode'
    if number <= HOLDOUT_BLOCK_STEPS:
        return Finding('transitions', 'bad', found, 'record for longer' if number else
                       'record states and commands together, stamped by one clock')
    if losses.without_command > MANY_UNCOMMANDED * total:
        return Finding('transitions', 'warn', found, 'send commands at the control rate')
    if number * robot.dt_s < FEW_SECONDS:
        return Finding('transitions', 'warn', found, 'little to train on: record a minute or more')
    return Finding('transitions', 'ok', found)
