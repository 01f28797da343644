"""What is wrong with the messages of a bag: topics, rates, joints and stamps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np

from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.bag_scan import TopicScan

Level = Literal['ok', 'warn', 'bad']

SLOW, FAST = 0.9, 1.5  # of the control rate


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, how it is, what was found, what to do next ('' if ok)."""

    name: str
    level: Level
    found: str
    advice: str = ''


def check_topics(scans: Iterable[TopicScan], robot: RobotSpec) -> Iterator[Finding]:
    """Yield whether each topic is there, and at which rate."""
    for scan in scans:
        name = f'topic {scan.topic}'
        if scan.problem or not scan.log_ns:
            yield Finding(name, 'bad', scan.problem or 'no message',
                          'record it, or change the topic in the robot spec')
            continue
        periods = np.diff(np.sort(scan.stamps_ns))
        rate_hz = 1e9 / max(float(np.median(periods)), 1.0) if len(periods) else 0.0
        found = f'{len(scan.log_ns)} messages, {rate_hz:.4g} Hz, control rate ' \
                f'{robot.control_rate_hz:g} Hz'
        share = rate_hz / robot.control_rate_hz
        if share < SLOW:
            yield Finding(name, 'warn', found, 'publish faster, or lower control_rate_hz in the '
                                               'robot spec: in between, values are made up')
        elif share > FAST and scan.topic in robot.action_topics():
            yield Finding(name, 'warn', found, 'of several commands a control period only the '
                                               'last counts: raise control_rate_hz')
        else:
            yield Finding(name, 'ok', found)


def check_fields(scans: Iterable[TopicScan], robot: RobotSpec) -> Iterator[Finding]:
    """Yield whether the messages of each topic hold its fields, and in which order of joints."""
    paths = {f.name: f.path for f in (*robot.observation, *robot.action, *robot.labels)}
    for scan in scans:
        name = f'fields of {scan.topic}'
        orders = [' '.join(order) for order, _ in scan.joints.most_common() if order]
        if scan.missing:
            known = sorted({joint for order in scan.joints for joint in order})
            worst = ', '.join(f'{field} ({paths[field]}) in {count} of {len(scan.log_ns)} messages'
                              for field, count in scan.missing.items())
            asked = [str(MessagePath.parse(paths[field]).key) for field in scan.missing]
            alike = sorted({match for joint in asked for match in get_close_matches(
                joint, known, cutoff=0.4)})
            yield Finding(name, 'bad', f'missing: {worst}. Messages name: '
                                       f'{"; ".join(orders) or "no joint"}',
                          'give the joints in the robot spec the names of the messages'
                          + (f': {", ".join(alike)}?' if alike else ', or repair the driver'))
        elif scan.reorderings:
            yield Finding(name, 'warn', f'{len(orders)} orders of the joints, {scan.reorderings} '
                                        f'changes: {"; ".join(orders)}',
                          'read by name here; make sure that nobody goes by place')
        elif len(orders) > 1:
            yield Finding(name, 'ok', f'all there; messages name {"; or ".join(orders)}')
        elif scan.log_ns:
            yield Finding(name, 'ok', f'all there{": " if orders else ""}{"".join(orders)}')


def check_clock(scan: TopicScan, robot: RobotSpec) -> Finding:
    """Compare header stamps with the times of recording, which are of the recorder's clock."""
    header, log = np.array(scan.header_ns, np.int64), np.array(scan.log_ns, np.int64)
    offset_s = (log - header) * 1e-9
    typical_s = float(np.median(offset_s))
    tenth = max(1, len(offset_s) // 10)
    drift_s = float(np.median(offset_s[-tenth:]) - np.median(offset_s[:tenth]))
    seconds = float(log.max() - log.min()) * 1e-9
    steps_ns = np.diff(header)
    back, double = int((steps_ns < 0).sum()), int((steps_ns == 0).sum())
    late_s = float(np.quantile(offset_s, 0.99)) - typical_s
    found = f'recorded {typical_s * 1e3:.4g} ms after its stamp, p99 {late_s * 1e3:+.3g} ms, ' \
            f'drift {drift_s * 1e3:+.3g} ms in {seconds:.0f} s'
    advice = []
    if abs(typical_s) > robot.dt_s:
        advice.append("synchronise the robot's clock with the recorder's (chrony, PTP): commands "
                      'without a header are dated by the recorder')
    if abs(drift_s) > 0.5 * robot.dt_s:
        advice.append('one clock runs faster: synchronise them all the time, not once')
    if back:
        worst_ms = -float(steps_ns.min()) * 1e-6
        found += f', {back} stamps before the one before (by {worst_ms:.4g} ms at most)'
        advice.append('find what sets the clock back, or publishes twice; episodes are split at '
                      'jumps of more than a control period')
    if double:
        found += f', {double} stamps twice'
        advice.append('stamp each measurement once, when it is taken')
    return Finding(f'clock of {scan.topic}', 'warn' if advice else 'ok', found, '; '.join(advice))
