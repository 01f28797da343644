"""One pass over the messages of a robot's topics: stamps, joint names, fields that are missing."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_ros.core.errors import BagError, ObservationError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.path_reader import PathReader
from mbrl_ros.core.robot import MessageField, ObservationField, RobotSpec
from mbrl_ros.data.bag_reader import (
    check_bag,
    find_topic,
    header_stamp_ns,
    Progress,
    PROGRESS_MESSAGES,
    robot_topics,
)
from mbrl_ros.data.bag_storage import open_bag, stored_messages
from mbrl_ros.data.resample import fields_by_topic


@dataclass
class TopicScan:
    """
    What one topic's messages said of themselves, in the order of the bag.

    Attributes
    ----------
    topic : str
        As the robot spec spells it.
    fields : list of MessageField
        Fields that every message of the topic must hold.
    problem : str
        Why the topic cannot be read, such as that the bag has none; empty otherwise.
    header_ns, log_ns : array of int
        Stamp in the header (0: none) and time of recording of each message [ns].
    joints : Counter of tuple of str
        Orders of the joint names, and the number of messages in each.
    reorderings : int
        Messages whose joints are in another order than in the message before.
    missing : Counter of str
        Fields, and the number of messages without them.

    """

    topic: str
    fields: list[MessageField]
    problem: str = ''
    header_ns: 'array[int]' = field(default_factory=lambda: array('q'))
    log_ns: 'array[int]' = field(default_factory=lambda: array('q'))
    joints: Counter[tuple[str, ...]] = field(default_factory=Counter)
    reorderings: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    _order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._paths = {field_.name: MessagePath.parse(field_.path) for field_ in self.fields}
        self._reader = PathReader(list(self._paths.values()))

    def add(self, message: Any, log_ns: int) -> None:
        """Take one message."""
        self.header_ns.append(header_stamp_ns(message))
        self.log_ns.append(log_ns)
        order = tuple(getattr(message, 'name', ()))
        self.reorderings += bool(self._order) and order != self._order \
            and sorted(order) == sorted(self._order)
        self._order = order
        self.joints[order] += 1
        try:
            self._reader.read(message)
        except ObservationError:
            for name, path in self._paths.items():
                try:
                    path.read(message)
                except ObservationError:
                    self.missing[name] += 1

    @property
    def stamps_ns(self) -> np.ndarray:
        """Stamps that transitions are cut by: the header's, else the time of recording [ns]."""
        header_ns = np.array(self.header_ns, np.int64)
        return np.where(header_ns != 0, header_ns, np.array(self.log_ns, np.int64))


def scan_bag(path: Path, robot: RobotSpec, namespace: str = '',
             progress: Progress | None = None) -> dict[str, TopicScan]:
    """
    Look at every message of a robot's topics.

    Parameters
    ----------
    path, robot, namespace, progress
        See `episodes.read_episodes`.

    Returns
    -------
    dict of str to TopicScan
        By the topic name of the robot spec.

    Raises
    ------
    BagError
        If the bag cannot be read at all.

    """
    check_bag(path)
    fields = (*robot.observation, *robot.action, *robot.labels)
    scans = {topic: TopicScan(topic, [field for field in group if not _is_derived(field)])
             for topic, group in fields_by_topic(fields).items()}
    names: dict[str, str] = {}
    types = robot_topics(robot)
    with open_bag(path) as reader:
        known = {connection.topic: connection for connection in reader.connections}
        for topic, scan in scans.items():
            try:
                found = known[find_topic(topic, namespace, known, path)]
            except BagError as error:
                scan.problem = str(error)
                continue
            if found.msgtype != types[topic]:
                scan.problem = f'is {found.msgtype}, the robot spec says {types[topic]}'
                continue
            names[found.topic] = topic
        total = sum(known[name].msgcount for name in names)
        wanted = [known[name] for name in names]
        number = 0
        try:
            for number, stored in enumerate(stored_messages(reader, wanted) if wanted else ()):
                if progress is not None and number % PROGRESS_MESSAGES == 0:
                    progress(str(path), number, total)
                topic = names[stored.topic]
                message = reader.deserialize(stored.raw, types[topic])
                scans[topic].add(message, stored.log_time_ns)
        except Exception as error:  # of rosbags, or whatever a decoder makes of a damaged file
            raise BagError(f'{path}: cannot be read after {number} messages: '
                           f'{type(error).__name__}: {error}. If it was copied, copy it again.'
                           ) from error
    return scans


def _is_derived(field_: MessageField) -> bool:
    return isinstance(field_, ObservationField) and field_.when_missing == 'derive'
