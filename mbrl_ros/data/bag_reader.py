"""Read what a robot spec names from any rosbag2 folder: MCAP or sqlite3, compressed or not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection
from rosbags.rosbag2.errors import ReaderError
from rosbags.rosbag2.storage_mcap import McapReader

from mbrl_ros.core.errors import BagError, ObservationError
from mbrl_ros.core.field_reader import FieldReader
from mbrl_ros.core.robot import MessageField, RobotSpec
from mbrl_ros.data import mcap_file
from mbrl_ros.data.bag_metadata import (
    COUNTS_KEY,
    custom_data,
    EPISODE_TOPIC,
    read_metadata,
    RECOVERED_KEY,
    typestore,
)
from mbrl_ros.data.losses import Losses
from mbrl_ros.data.mcap_file import BagMessage

# Of a bag: (its path, messages read, messages in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Samples:
    """Numbers of one topic: stamps (N,) [ns], strictly increasing; values (N, F), as recorded."""

    stamps_ns: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Segment:
    """
    A stretch of a bag without episode mark and without a jump of the clock.

    Attributes
    ----------
    source : str
        Bag and, where marked, episode.
    observations, commands : mapping of str to Samples
        By the topic name of the robot spec; columns are the fields of that topic in spec order.

    """

    source: str
    observations: Mapping[str, Samples]
    commands: Mapping[str, Samples]


class _Builder:
    """Collects the messages of one segment in the order of the file."""

    def __init__(self, source: str, widths: Mapping[str, int]) -> None:
        self.source, self.widths = source, widths
        self.stamps: dict[str, list[int]] = {topic: [] for topic in widths}
        self.values: dict[str, list[list[float]]] = {topic: [] for topic in widths}

    def jumps_back(self, topic: str, stamp_ns: int, tolerance_ns: int) -> bool:
        stamps = self.stamps[topic]
        return bool(stamps) and stamp_ns < stamps[-1] - tolerance_ns

    def add(self, topic: str, stamp_ns: int, values: list[float]) -> None:
        self.stamps[topic].append(stamp_ns)
        self.values[topic].append(values)

    def samples(self, topic: str) -> Samples:
        stamps = np.array(self.stamps[topic], np.int64)
        values = np.array(self.values[topic], np.float64).reshape(-1, self.widths[topic])
        # Small reorderings are put right; of equal stamps the last message counts.
        order = np.argsort(stamps, kind='stable')
        stamps = stamps[order]
        last = np.append(stamps[1:] != stamps[:-1], np.ones(min(len(stamps), 1), bool))
        return Samples(stamps[last], values[order][last])


def fields_by_topic(fields: Sequence[MessageField]) -> dict[str, list[MessageField]]:
    """Group fields by topic, both in the order of the spec."""
    grouped: dict[str, list[MessageField]] = {}
    for field in fields:
        grouped.setdefault(field.topic, []).append(field)
    return grouped


def read_bag(path: Path | str, robot: RobotSpec, namespace: str = '',
             progress: Progress | None = None) -> tuple[list[Segment], Losses]:
    """
    Read the observations and commands of a robot.

    Parameters
    ----------
    path : Path
        Folder with a metadata.yaml.
    robot : RobotSpec
        Says which topics, and where in their messages.
    namespace : str
        ROS namespace under which the robot was recorded.
    progress : callable, optional
        Called now and then with the path, the messages read and their number.

    Returns
    -------
    segments : list of Segment
        In recording order.
    losses : Losses
        What was dropped so far.

    Raises
    ------
    BagError
        If the bag cannot be read, lacks a topic, a joint or every value of a field.

    Notes
    -----
    The stamp of a message is that of its header; without one, its publish time; where the bag
    has none (sqlite3, message-wise compression), the time it was recorded.

    """
    path = Path(path)
    check_bag(path)
    metadata = read_metadata(path)
    losses = Losses(str(path))
    custom = custom_data(metadata)
    losses.recorder_lost = {topic: counts['lost'] for topic, counts
                            in custom.get(COUNTS_KEY, {}).items() if counts['lost']}
    losses.recovered = custom.get(RECOVERED_KEY, {}).get('text', '')
    try:
        with AnyReader([path], default_typestore=typestore()) as reader:
            segments = _collect(reader, path, robot, namespace, losses, progress)
    except (AnyReaderError, ReaderError) as error:
        raise BagError(f'{path}: cannot be read: {error} Try: mbrl-ros bag info {path}') from error
    _check_finite(segments, robot, losses)
    return segments, losses


def check_bag(path: Path) -> None:
    """
    Check that a bag is there, and whole.

    Raises
    ------
    BagError
        If there is no bag at the path, or its recording was cut short.

    """
    if not path.is_dir():
        found = 'is a file' if path.is_file() else 'does not exist'
        raise BagError(f'no bag at {path}: it {found}. A bag is a folder with a metadata.yaml.')
    files = sorted(path.glob('*.mcap'))
    for file in files:
        if not mcap_file.is_complete(file):
            if mcap_file.is_being_written(file):
                raise BagError(f'{path}: is still being recorded. Stop the recording first: '
                               'ros2 service call /data_logger/record std_srvs/srv/SetBool')
            raise BagError(f'{path}: {file.name} is truncated: its recording did not end '
                           f'properly. Try: mbrl-ros bag recover {path}')
    if read_metadata(path) is None:
        if files:
            raise BagError(f'{path}: no readable metadata.yaml. Try: mbrl-ros bag recover {path}')
        hint = f'Try: ros2 bag reindex {path}' if any(path.glob('*.db3*')) \
            else 'A bag is a folder with a metadata.yaml.'
        raise BagError(f'no bag at {path}: the folder has no readable metadata.yaml. {hint}')


def stored_messages(reader: AnyReader,
                    connections: Sequence[Connection]) -> Iterator[BagMessage]:
    """Yield the messages of some topics, with publish times where the storage has them."""
    storage: Any = reader.readers[0].storage  # type: ignore[union-attr]
    if storage.metadata.compression_mode != 'message' \
            and all(isinstance(store, McapReader) for store in storage.storages):
        # rosbags yields log times only; its stores know where the plain file lies.
        topics = {connection.topic for connection in connections}
        for store in storage.storages:
            yield from (m for m in mcap_file.messages(store.path) if m.topic in topics)
    else:
        for connection, time_ns, raw in reader.messages(connections):
            yield BagMessage(connection.topic, time_ns, time_ns, bytes(raw))


def find_topic(name: str, namespace: str, known: Mapping[str, Any], bag: Path) -> str:
    """
    Return the bag's name for a topic of the robot spec.

    Raises
    ------
    BagError
        If the bag has no such topic; the text lists those it has.

    """
    absolute = name.startswith('/')
    prefix = namespace.strip('/')
    wanted = name if absolute or not prefix else f'{prefix}/{name}'
    for candidate in (wanted, '/' + wanted):
        if candidate in known:
            return candidate
    hints = [topic.removesuffix('/' + name) for topic in known if topic.endswith('/' + name)]
    hint = f' Recorded under a namespace? Try: --namespace {hints[0]}' if hints else ''
    raise BagError(f"{bag}: no topic '{wanted}'. The bag has: "
                   f'{", ".join(sorted(known)) or "no topic at all"}.{hint}')


def _locate(known: Mapping[str, Connection], path: Path, robot: RobotSpec,
            namespace: str) -> dict[str, str]:
    """Map the bag's names of the robot's topics to those of the robot spec."""
    names: dict[str, str] = {}
    for topic, type_name in {**robot.observation_topics(), **robot.action_topics()}.items():
        found = known[find_topic(topic, namespace, known, path)]
        if found.msgtype != type_name:
            raise BagError(f"{path}: topic '{found.topic}' is {found.msgtype}; robot "
                           f"'{robot.name}' expects {type_name}")
        names[found.topic] = topic
    return names


def _collect(reader: AnyReader, path: Path, robot: RobotSpec, namespace: str, losses: Losses,
             progress: Progress | None) -> list[Segment]:
    known = {connection.topic: connection for connection in reader.connections}
    names = _locate(known, path, robot, namespace)
    groups = fields_by_topic((*robot.observation, *robot.action))
    readers = {topic: FieldReader(group, robot.stale_after_s.get(topic, math.inf))
               for topic, group in groups.items()}
    widths = {topic: len(group) for topic, group in groups.items()}
    marks = [name for name in known if name.strip('/') == f'{namespace}/{EPISODE_TOPIC}'.strip('/')
             and known[name].msgtype == 'std_msgs/msg/String' and known[name].msgcount]
    wanted = [known[name] for name in (*names, *marks)]
    total = sum(connection.msgcount for connection in wanted)
    # Without marks the whole bag is one episode; with marks, only what lies between them.
    current = None if marks else _Builder(str(path), widths)
    done: list[_Builder] = []
    for number, stored in enumerate(stored_messages(reader, wanted)):
        if progress is not None and number % 500 == 0:
            progress(str(path), number, total)
        message: Any = reader.deserialize(stored.raw, known[stored.topic].msgtype)
        if stored.topic in marks:
            # A mark splits by its place in the bag, not by its stamp: headers and marks may be
            # stamped by two clocks, and a paused robot's last stamp equals the mark's.
            done += [current] if current is not None else []
            mark = parse_mark(message.data)
            _forget(readers)
            current = _Builder(f'{path}: episode {mark.get("episode")}', widths) \
                if mark.get('event') == 'start' else None
            continue
        topic = names[stored.topic]
        if current is None:
            losses.outside_episodes += topic in robot.stale_after_s
            continue
        stamp_ns = header_stamp_ns(message) or stored.publish_time_ns
        if current.jumps_back(topic, stamp_ns, robot.dt_ns):
            losses.clock_jumps += 1
            _forget(readers)
            done.append(current)
            current = _Builder(current.source, widths)
        try:
            current.add(topic, stamp_ns, readers[topic].read(message, stamp_ns))
        except ObservationError as error:
            raise BagError(f"{path}: topic '{stored.topic}', stamp {stamp_ns / 1e9:.3f} s: "
                           f'{error}. Try: mbrl-ros bag info {path}') from error
    done += [current] if current is not None else []
    if progress is not None:
        progress(str(path), total, total)
    return [Segment(builder.source,
                    {topic: builder.samples(topic) for topic in robot.observation_topics()},
                    {topic: builder.samples(topic) for topic in robot.action_topics()})
            for builder in done]


def _forget(readers: Mapping[str, FieldReader]) -> None:
    for reader in readers.values():
        reader.forget()


def parse_mark(text: str) -> dict[str, Any]:
    """Return the content of an episode mark, empty if it is not one."""
    try:
        mark = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return mark if isinstance(mark, dict) else {}


def header_stamp_ns(message: Any) -> int:
    """Return the header stamp of a message [ns], zero where there is none."""
    header = getattr(message, 'header', None)
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec if header is not None else 0


def _check_finite(segments: Sequence[Segment], robot: RobotSpec, losses: Losses) -> None:
    for topic, group in fields_by_topic(robot.observation).items():
        recorded = [segment.observations[topic] for segment in segments]
        stamps = np.concatenate([np.empty(0, np.int64), *(s.stamps_ns for s in recorded)])
        values = np.concatenate([np.empty((0, len(group))), *(s.values for s in recorded)])
        if not len(stamps):
            raise BagError(f"{losses.bag}: no message on '{topic}' inside an episode. "
                           f'Try: mbrl-ros bag info {losses.bag}')
        for field, column in zip(group, values.T, strict=True):
            bad = ~np.isfinite(column)
            if bad.all():
                raise BagError(
                    f"{losses.bag}: '{field.name}' ({topic}, {field.path}) is never a finite "
                    'number. Does the robot publish it? Try another path in the robot spec.')
            if bad.any():
                losses.nan_samples[field.name] = (int(bad.sum()), int(stamps[bad][0]))
