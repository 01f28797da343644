"""Bags as other recorders write them, and what a dataset of them must hold, computed by hand."""

from contextlib import ExitStack
from itertools import pairwise
import math
from pathlib import Path
import sqlite3
from typing import NamedTuple

from bag_factory import ARRAY, array, cdr, JOINT_STATE, joint_state, MS, RELIABLE
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
import numpy as np
from rosbags.rosbag2 import Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
import yaml

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.bag_metadata import typestore

START = 1_790_000_000 * 10**9
DT_NS = 50 * MS
STALE_S = 0.4
IMU, ODOMETRY, POSE = ('sensor_msgs/msg/Imu', 'nav_msgs/msg/Odometry',
                       'geometry_msgs/msg/PoseStamped')
FLOAT, BOOL = 'std_msgs/msg/Float64', 'std_msgs/msg/Bool'


class Row(NamedTuple):
    """A message: when it was recorded, its topic, stamp, content, and the numbers in it."""

    log_ns: int
    topic: str
    stamp_ns: int
    message: object
    numbers: tuple[float, ...]


def observe(name, topic, kind, path, unit='m', **more):
    return {'name': name, 'unit': unit, 'topic': topic, 'type': kind, 'path': path} | more


# What is read from each topic, in this order.
OBSERVED = {
    'joint_states': [observe('slide', 'joint_states', JOINT_STATE, 'position[slider]'),
                     observe('swing', 'joint_states', JOINT_STATE, 'velocity[hinge]', 'rad/s')],
    'imu': [observe('turn', 'imu', IMU, 'angular_velocity.z', 'rad/s')],
    'odom': [observe('x', 'odom', ODOMETRY, 'pose.pose.position.x'),
             observe('yaw', 'odom', ODOMETRY, 'pose.pose.orientation.yaw', 'rad',
                     feature='angle')],
    'tip': [observe('height', 'tip', POSE, 'pose.position.z')],
    'sensors': [observe('heat', 'sensors', ARRAY, 'data[1]', 'K')],
}
SPEC = RobotSpec.model_validate({
    'name': 'foreign', 'control_rate_hz': 20.0, 'stale_after_s': dict.fromkeys(OBSERVED, STALE_S),
    'observation': [field for fields in OBSERVED.values() for field in fields],
    'action': [observe(name, 'commands', ARRAY, f'data[{index}]', 'N', min=-9.0, max=9.0,
                       rate_limit=1.0, safe_value=0.0) for index, name in enumerate('uv')],
    'reward': observe('reward', 'reward', FLOAT, 'data', '1'),
    'termination': observe('over', 'over', BOOL, 'data', '1')})


def make(kind, **values):
    """Return a message with these values at these paths, zero elsewhere."""
    types, definitions = typestore().types, typestore().fielddefs

    def zero(description):
        node, detail = int(description[0]), description[1]
        if node == 1:
            return '' if detail[0] == 'string' else False if detail[0] == 'bool' else 0
        if node == 2:
            return fill(detail, {})
        return np.zeros(detail[1], detail[0][1][0])

    def fill(name, wanted):
        inner = {}
        for path, value in wanted.items():
            first, _, rest = path.partition('__')
            inner.setdefault(first, {})[rest] = value
        return types[name](*(
            inner[field][''] if '' in inner.get(field, ()) else
            fill(description[1], inner[field]) if field in inner else zero(description)
            for field, description in definitions[name][1]))
    return fill(kind, values)


def stamped(kind, stamp_ns, **values):
    return make(kind, header__stamp__sec=stamp_ns // 10**9,
                header__stamp__nanosec=stamp_ns % 10**9, **values)


def rows_of(seed=0, seconds=8.0):
    """
    Return what a robot of seven topics sent, in the order of recording.

    Rates differ, stamps jitter by 30 % of a period, 3 % are lost and 0.4 s of the odometry; joints
    change places, some messages come twice, some change places, and topics are late to each other.
    """
    rng = np.random.default_rng(seed)
    rows = []

    def send(topic, rate_hz, late_ms, content):
        period = 1e9 / rate_hz
        for number in range(int(seconds * rate_hz)):
            stamp = START + int(period * (number + rng.uniform(-0.3, 0.3))) + 500 * MS
            time_s = (stamp - START) * 1e-9
            if rng.random() < 0.03 or (topic == 'odom' and 3.0 < time_s < 3.4):
                continue
            message, numbers = content(stamp, time_s)
            log = stamp + int(late_ms * MS)
            rows.append(Row(log, topic, stamp, message, numbers))
            if rng.random() < 0.04:
                # Again; where there is a stamp, with other numbers, of which the last count.
                if hasattr(message, 'header'):
                    message, numbers = content(stamp, time_s + 1.0)
                    log += 10
                rows.append(Row(log, topic, stamp, message, numbers))

    def joints(stamp, time_s):
        values = {'slider': (math.sin(3 * time_s), 0.5), 'hinge': (time_s, math.cos(time_s)),
                  'lid': (9.0, 9.0)}
        names = list(values)
        rng.shuffle(names)
        names = names[:] if 'lid' in names[:2] or rng.random() < 0.5 else names[:2]
        return joint_state(stamp, [values[n][0] for n in names], [values[n][1] for n in names],
                           names), (values['slider'][0], values['hinge'][1])

    def odometry(stamp, time_s):
        yaw = 3.0 + 2.0 * time_s
        return stamped(ODOMETRY, stamp, pose__pose__position__x=time_s**2,
                       pose__pose__orientation__z=math.sin(yaw / 2),
                       pose__pose__orientation__w=math.cos(yaw / 2)), (time_s**2, yaw)

    def number(make_message, function):
        def content(stamp, time_s):
            value = function(time_s)
            return make_message(stamp, value), value if isinstance(value, tuple) else (value,)
        return content
    send('joint_states', 60, 0.0, joints)
    send('odom', 25, 400.0, odometry)
    send('imu', 110, 2.0, number(lambda t, v: stamped(IMU, t, angular_velocity__z=v),
                                 lambda s: math.sin(7 * s)))
    send('tip', 30, 250.0, number(lambda t, v: stamped(POSE, t, pose__position__z=v), math.exp))
    send('sensors', 20, 0.0, number(lambda t, v: array(-1.0, v, -1.0), lambda s: 300.0 - s))
    send('commands', 20, 0.0, number(lambda t, v: array(*v), lambda s: (math.sin(s), -s)))
    send('reward', 30, 0.0, number(lambda t, v: make(FLOAT, data=v), lambda s: -s))
    send('over', 60, 0.0, number(lambda t, v: make(BOOL, data=bool(v)), lambda s: float(s > 6)))
    rows.sort(key=lambda row: row.log_ns)
    # Some neighbours of the joint states change places: by less than a control period.
    at = [index for index, row in enumerate(rows) if row.topic == 'joint_states']
    for one, other in zip(at[5::20], at[6::20], strict=False):
        first, second = rows[one], rows[other]
        rows[one], rows[other] = (second._replace(log_ns=first.log_ns),
                                  first._replace(log_ns=second.log_ns))
    return rows


# By hand: slow and simple, and not a line of it is shared with what it checks.


def in_order(rows, topic):
    """Return (stamp, numbers) of a topic by stamp; of one stamp, the last recorded."""
    return sorted({row.stamp_ns: row.numbers for row in rows if row.topic == topic}.items())


def unbroken(samples):
    """Return (first, last) stamps of stretches without a gap."""
    steps = sorted(b[0] - a[0] for a, b in pairwise(samples))
    middle = len(steps) // 2
    usual = steps[middle] if len(steps) % 2 else (steps[middle - 1] + steps[middle]) / 2
    longest = min(1.5 * max(DT_NS, usual), STALE_S * 1e9)
    stretches = [[samples[0][0], samples[0][0]]]
    for (before, _), (stamp, _) in pairwise(samples):
        if stamp - before > longest:
            stretches.append([stamp, stamp])
        stretches[-1][1] = stamp
    return stretches


def last_before(samples, time, after=-math.inf):
    found = None
    for stamp, numbers in samples:
        if after < stamp <= time:
            found = numbers
        if stamp > time:
            break
    return found


def line(samples, time):
    for stamp, numbers in samples:
        if abs(stamp - time) <= 1000:
            return numbers
    for (before, low), (after, high) in pairwise(samples):
        if before < time < after:
            share = (time - before) / (after - before)
            return tuple(a + share * (b - a) for a, b in zip(low, high, strict=True))
    raise AssertionError(time)


def by_hand(rows):
    """Return [(start, states, actions, rewards, terminations)] of the episodes in the rows."""
    observed = {topic: in_order(rows, topic) for topic in OBSERVED}
    commands, rewards, overs = (in_order(rows, t) for t in ('commands', 'reward', 'over'))
    shared = [[-math.inf, math.inf]]
    for samples in observed.values():
        shared = [[max(a, c), min(b, d)] for a, b in shared for c, d in unbroken(samples)
                  if max(a, c) <= min(b, d)]
    episodes = []
    for start, end in shared:
        steps = []
        time = start
        while time + DT_NS <= end + 1000:
            near = {topic: [s for s in samples if abs(s[0] - time) <= 10**9]
                    for topic, samples in observed.items()}
            after = {topic: [s for s in samples if abs(s[0] - time - DT_NS) <= 10**9]
                     for topic, samples in observed.items()}
            command = last_before(commands, time, time - 5 * DT_NS)
            reward = last_before(rewards, time + DT_NS, time)
            over = last_before(overs, time + DT_NS, time)
            if command is None or reward is None or over is None:
                if steps:
                    episodes.append(steps)
                steps = []
            else:
                steps.append((time, [x for t in OBSERVED for x in line(near[t], time)],
                              [x for t in OBSERVED for x in line(after[t], time + DT_NS)],
                              command, reward[0], over[0]))
            time += DT_NS
        if steps:
            episodes.append(steps)
    return [(steps[0][0], [step[1] for step in steps] + [steps[-1][2]],
             [step[3] for step in steps], [step[4] for step in steps],
             [step[5] for step in steps]) for steps in episodes]


# Writers.


def write_rosbags(folder, rows, plugin, compression=CompressionMode.NONE, version=9):
    writer = Writer(folder, version=version, storage_plugin=plugin)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for row in rows:
            if row.topic not in connections:
                connections[row.topic] = writer.add_connection(
                    '/' + row.topic, row.message.__msgtype__, typestore=typestore())
            writer.write(connections[row.topic], row.log_ns, cdr(row.message))
    return folder


def write_mcap(folder, parts, names=None, publish_ns=lambda row: row.log_ns, undefined=(),
               **options):
    """Write a file for each part of the rows with the mcap library; None ends a chunk."""
    folder.mkdir()
    names = names or [f'bag_{number}.mcap' for number in range(len(parts))]
    with ExitStack() as stack:
        for name, rows in zip(names, parts, strict=True):
            writer = McapWriter(stack.enter_context((folder / name).open('wb')), **options)
            writer.start(profile='ros2', library='by hand')
            channels = {}
            for row in rows:
                if row is None:
                    writer.flush()
                    continue
                kind = row.message.__msgtype__
                if row.topic not in channels:
                    definition = typestore().generate_msgdef(kind, ros_version=2)[0]
                    channels[row.topic] = writer.register_channel(
                        '/' + row.topic, 'cdr',
                        writer.register_schema(kind, *(
                            ('', b'') if kind in undefined else ('ros2msg', definition.encode()))),
                        {'offered_qos_profiles': yaml.safe_dump([RELIABLE])})
                writer.add_message(channels[row.topic], row.log_ns, cdr(row.message),
                                   publish_ns(row))
            writer.finish()
    write_metadata(folder, [row for rows in parts for row in rows if row], 'mcap', names)
    return folder


def write_sqlite(folder, parts, distro=None, store=None, rename=None):
    """Write a file for each part of the rows as Humble did: no definitions in it."""
    folder.mkdir()
    names = [f'bag_{number}.db3' for number in range(len(parts))]
    for name, rows in zip(names, parts, strict=True):
        with sqlite3.connect(folder / name) as database:
            database.executescript(
                'CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT '
                'NULL, serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);'
                'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, '
                'timestamp INTEGER NOT NULL, data BLOB NOT NULL);'
                'CREATE INDEX timestamp_idx ON messages (timestamp ASC);')
            ids = {}
            for row in rows:
                if row.topic not in ids:
                    ids[row.topic] = len(ids) + 1
                    database.execute('INSERT INTO topics VALUES(?, ?, ?, ?, ?)', (
                        ids[row.topic], '/' + row.topic, renamed(row, rename), 'cdr', ''))
                database.execute('INSERT INTO messages(topic_id, timestamp, data) VALUES(?, ?, ?)',
                                 (ids[row.topic], row.log_ns, bytes((store or typestore()
                                  ).serialize_cdr(row.message, row.message.__msgtype__))))
        database.close()
    write_metadata(folder, [row for rows in parts for row in rows], 'sqlite3', names, rename,
                   version=8 if distro else 5, **({'ros_distro': distro} if distro else {}))
    return folder


def renamed(row, rename):
    return (rename or {}).get(row.message.__msgtype__, row.message.__msgtype__)


def write_metadata(folder: Path, rows, storage, names, rename=None, version=8, **more):
    types = {row.topic: renamed(row, rename) for row in rows}
    times = [row.log_ns for row in rows]
    (folder / 'metadata.yaml').write_text(yaml.safe_dump({'rosbag2_bagfile_information': {
        'version': version, 'storage_identifier': storage,
        'duration': {'nanoseconds': max(times) - min(times)},
        'starting_time': {'nanoseconds_since_epoch': min(times)}, 'message_count': len(rows),
        'topics_with_message_count': [{'topic_metadata': {
            'name': '/' + topic, 'type': kind, 'serialization_format': 'cdr',
            'offered_qos_profiles': ''},
            'message_count': sum(row.topic == topic for row in rows)}
            for topic, kind in types.items()],
        'compression_format': '', 'compression_mode': '', 'relative_file_paths': names} | more}))


LZ4 = {'compression': CompressionType.LZ4}
PLAIN = {'compression': CompressionType.NONE}
