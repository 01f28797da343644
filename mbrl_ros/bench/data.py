"""
How fast bags are read, against rosbags, and in how much memory.

The bag is as a robot arm with a camera records it, about 2 GB: 20 minutes of joint states at 1 kHz
(1.2 million messages of seven joints, 0.4 GB: as Python lists their numbers alone would take more
than 500 MB), commands at 100 Hz (0.02 GB) and, for the rest, images of 640 x 480 bytes that the
robot spec does not name. MCAP in chunks of 1 MB, not compressed, written by rosbags.
"""

from collections.abc import Callable
import json
from pathlib import Path
import shutil
import sys
from tempfile import TemporaryDirectory
import time
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer

from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.bench.process import BenchError, peak_mb, run_module
from mbrl_ros.core.robot import JOINT_STATE, RobotSpec
from mbrl_ros.data.bag_metadata import typestore
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.episodes import read_episodes

COMMANDS, IMAGE = 'std_msgs/msg/Float64MultiArray', 'sensor_msgs/msg/Image'
JOINTS = tuple(f'panda_joint{number}' for number in range(1, 8))
CONTROL_HZ, STATE_HZ, STATES_PER_COMMAND = 50, 1000, 10
STATES, BAG_MB, ROUNDS = 1_200_000, 2000.0, 2
QUICK_STATES, QUICK_MB, QUICK_ROUNDS = 30_000, 40.0, 3
LEAST_RATIO, MOST_MB = 0.6, 500.0
START_NS = 1_790_000_000 * 10**9
REPORT_MESSAGES = 5000

# (done, of how many, what)
Report = Callable[[int, int, str], None]


def bench(quick: bool, report: Report, folder: Path | None = None) -> dict[str, Any]:
    """
    Write a bag, then read it with rosbags and for training, in turns.

    Parameters
    ----------
    quick : bool
        A bag of 40 MB in place of 2 GB.
    report : callable
        Called now and then with what was done, of how much, and what it is.
    folder : Path, optional
        Where the bag is written for the time being; a temporary folder otherwise.

    Returns
    -------
    dict
        messages_per_s, rosbags_messages_per_s: of the topics that the robot spec names; ratio;
        rss_mb: most resident memory [10^6 bytes] of a new process that loads the dataset; bag_mb,
        megabytes by topic, and whether the goals are met.

    Raises
    ------
    BenchError
        If the disk is too small, or not all of the bag was read.

    """
    states, size_mb, rounds = (QUICK_STATES, QUICK_MB, QUICK_ROUNDS) if quick \
        else (STATES, BAG_MB, ROUNDS)
    with TemporaryDirectory(dir=folder) as temporary:
        free_mb = shutil.disk_usage(temporary).free / 1e6
        if free_mb < 1.2 * size_mb:
            raise BenchError(f'{temporary}: {free_mb:.0f} MB free, {1.2 * size_mb:.0f} needed. '
                             'Try: --quick, or TMPDIR=FOLDER on a larger disk')
        bag = Path(temporary) / 'bag'
        shares_mb = write_bag(bag, states, size_mb, report)
        bag_mb = sum(file.stat().st_size for file in bag.iterdir()) / 1e6
        report(0, 0, 'load the dataset in a new process')
        loaded = json.loads(run_module('mbrl_ros.bench.data', bag))
        # Both must have read all of it: states and commands, as messages and as steps at 50 Hz.
        messages = states + states // STATES_PER_COMMAND
        steps = states * CONTROL_HZ // STATE_HZ - 1
        seconds = {'rosbags': 0.0, 'ours': 0.0}
        for number in range(rounds):
            for name, read, expected in (('rosbags', _read_rosbags, messages),
                                         ('ours', _read_ours, steps)):
                report(number, rounds, f'read with {name}')
                start = time.perf_counter()
                found = read(bag)
                seconds[name] += time.perf_counter() - start
                if found != expected:
                    raise BenchError(f'{name} read {found} of {expected}')
    rates = {name: rounds * messages / seconds[name] for name in seconds}
    ratio = rates['ours'] / rates['rosbags']
    return {
        'messages_per_s': rates['ours'], 'rosbags_messages_per_s': rates['rosbags'],
        'ratio': ratio, 'rss_mb': loaded['rss_mb'], 'bag_mb': bag_mb,
        'is_met': ratio >= LEAST_RATIO and loaded['rss_mb'] < MOST_MB,
        'topics_mb': shares_mb, 'messages': messages, 'rounds': rounds,
        'transitions': loaded['transitions'], 'load_s': loaded['seconds'], 'quick': quick,
        'machine': describe_machine()}


def robot_spec() -> RobotSpec:
    """Return the spec of the arm: seven positions and velocities, seven commands, 50 Hz."""
    topics = {'topic': 'joint_states', 'type': JOINT_STATE}
    return RobotSpec.model_validate({
        'name': 'bench_arm', 'control_rate_hz': CONTROL_HZ, 'stale_after_s': {'joint_states': 0.2},
        'observation': [
            {'name': f'{kind}_{joint}', 'unit': unit, 'path': f'{kind}[{joint}]', **topics}
            for kind, unit in (('position', 'rad'), ('velocity', 'rad/s')) for joint in JOINTS],
        'action': [{'name': f'command_{index}', 'unit': 'rad/s', 'topic': 'commands',
                    'type': COMMANDS, 'path': f'data[{index}]', 'min': -2.0, 'max': 2.0,
                    'rate_limit': 10.0, 'safe_value': 0.0} for index in range(len(JOINTS))]})


def write_bag(bag: Path, states: int, size_mb: float, report: Report) -> dict[str, float]:
    """Write the bag; return the megabytes of messages by topic."""
    store = typestore()
    rng = np.random.default_rng(0)
    state, position_at = _joint_state()
    frame = _image(rng)
    written = {'joint_states': 0, 'commands': 0, 'camera': 0}
    # What MCAP adds to a message is 31 bytes, and 16 in the index.
    frames = int((size_mb * 1e6 - states * (len(state) + 47)) / len(frame))
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        joint_states, commands, camera = (
            writer.add_connection(topic, kind, typestore=store) for topic, kind in (
                ('/joint_states', JOINT_STATE), ('/commands', COMMANDS), ('/camera', IMAGE)))
        layout = store.types['std_msgs/msg/MultiArrayLayout']([], 0)
        for number in range(states):
            if number % REPORT_MESSAGES == 0:
                report(number, states, f'write a bag of {size_mb:.0f} MB')
                numbers = rng.normal(size=(REPORT_MESSAGES, 3 * len(JOINTS)))
            stamp_ns = START_NS + number * (10**9 // STATE_HZ)
            row = numbers[number % REPORT_MESSAGES]
            state[4:12] = np.array([stamp_ns // 10**9, stamp_ns % 10**9], '<u4').tobytes()
            for offset, part in zip(position_at, np.split(row, 3), strict=True):
                state[offset:offset + part.nbytes] = part.tobytes()
            writer.write(joint_states, stamp_ns, bytes(state))
            written['joint_states'] += len(state)
            if number % STATES_PER_COMMAND == 0:
                raw = bytes(store.serialize_cdr(store.types[COMMANDS](
                    layout, row[:len(JOINTS)]), COMMANDS))
                writer.write(commands, stamp_ns, raw)
                written['commands'] += len(raw)
            if number * frames // states != (number + 1) * frames // states:
                writer.write(camera, stamp_ns, frame)
                written['camera'] += len(frame)
    return {topic: size / 1e6 for topic, size in written.items()}


def _joint_state() -> tuple[bytearray, list[int]]:
    """Return a serialised message, and where its positions, velocities and efforts begin."""
    store = typestore()
    arrays = [np.arange(1.0, 8.0) + 10.0 * part for part in range(3)]
    header = store.types['std_msgs/msg/Header'](
        store.types['builtin_interfaces/msg/Time'](0, 0), 'base_link')
    raw = bytearray(store.serialize_cdr(store.types[JOINT_STATE](header, list(JOINTS), *arrays),
                                        JOINT_STATE))
    return raw, [raw.index(part.tobytes()) for part in arrays]


def _image(rng: np.random.Generator) -> bytes:
    store = typestore()
    header = store.types['std_msgs/msg/Header'](
        store.types['builtin_interfaces/msg/Time'](0, 0), 'camera')
    pixels = rng.integers(0, 256, 640 * 480, np.uint8)
    return bytes(store.serialize_cdr(store.types[IMAGE](header, 480, 640, 'mono8', 0, 640, pixels),
                                     IMAGE))


def _read_rosbags(bag: Path) -> int:
    """Deserialise the messages of the robot's topics with rosbags; return their number."""
    number = 0
    with AnyReader([bag]) as reader:
        wanted = [c for c in reader.connections if c.msgtype != IMAGE]
        for connection, _, raw in reader.messages(wanted):
            reader.deserialize(raw, connection.msgtype)
            number += 1
    return number


def _read_ours(bag: Path) -> int:
    """Read the episodes of the robot; return the number of their steps."""
    return sum(episode.num_steps for episode in read_episodes(bag, robot_spec())[0])


def _load(bag: Path) -> dict[str, Any]:
    start = time.perf_counter()
    dataset = load_dataset([bag], robot_spec(), use_cache=False)
    return {'rss_mb': peak_mb(), 'transitions': dataset.num_transitions,
            'seconds': time.perf_counter() - start}


if __name__ == '__main__':
    print(json.dumps(_load(Path(sys.argv[1]))))
