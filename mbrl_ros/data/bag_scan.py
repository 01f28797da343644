"""One pass over the messages of a robot's topics: stamps, joint names, fields that are missing."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader

from mbrl_ros.core.errors import BagError, ObservationError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import MessageField, ObservationField, RobotSpec
from mbrl_ros.data.bag_metadata import typestore
from mbrl_ros.data.bag_reader import (
    check_bag,
    fields_by_topic,
    find_topic,
    header_stamp_ns,
    Progress,
    stored_messages,
)


@dataclass
class TopicScan:
    """
    What one topic's messages said of themselves, in the order of the bag.

    Attributes
    ----------
    topic : str
        As the robot spec spells it.
    problem : str
        Why the topic cannot be read, such as that the bag has none; empty otherwise.
    header_ns, log_ns : list of int
        Stamp in the header (0: none) and time of recording of each message [ns].
    joints : Counter of tuple of str
        Orders of the joint names, and the number of messages in each.
    reorderings : int
        Messages whose joints are in another order than in the message before.
    missing : Counter of str
        Fields, and the number of messages without them.

    """

    topic: str
    problem: str = ''
    header_ns: list[int] = field(default_factory=list)
    log_ns: list[int] = field(default_factory=list)
    joints: Counter[tuple[str, ...]] = field(default_factory=Counter)
    reorderings: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    _order: tuple[str, ...] = ()

    def add(self, message: Any, log_ns: int, fields: list[tuple[str, MessagePath]]) -> None:
        """Take one message, and the names and paths of the fields to read from it."""
        self.header_ns.append(header_stamp_ns(message))
        self.log_ns.append(log_ns)
        order = tuple(getattr(message, 'name', ()))
        self.reorderings += bool(self._order) and order != self._order \
            and sorted(order) == sorted(self._order)
        self._order = order
        self.joints[order] += 1
        for name, path in fields:
            try:
                path.read(message)
            except ObservationError:
                self.missing[name] += 1

    @property
    def stamps_ns(self) -> np.ndarray:
        """Stamps that transitions are cut by: the header's, else the time of recording [ns]."""
        return np.array([header or log for header, log
                         in zip(self.header_ns, self.log_ns, strict=True)], np.int64)


def scan_bag(path: Path, robot: RobotSpec, namespace: str = '',
             progress: Progress | None = None) -> dict[str, TopicScan]:
    """
    Look at every message of a robot's topics.

    Parameters
    ----------
    path, robot, namespace, progress
        See `bag_reader.read_bag`.

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
    groups = fields_by_topic((*robot.observation, *robot.action))
    scans = {topic: TopicScan(topic) for topic in groups}
    paths = {topic: [(f.name, MessagePath.parse(f.path)) for f in fields if not _is_derived(f)]
             for topic, fields in groups.items()}
    names: dict[str, str] = {}
    types = {**robot.observation_topics(), **robot.action_topics()}
    number = 0
    try:
        with AnyReader([path], default_typestore=typestore()) as reader:
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
            for number, stored in enumerate(stored_messages(reader, wanted) if wanted else ()):
                if progress is not None and number % 500 == 0:
                    progress(str(path), number, total)
                topic = names[stored.topic]
                message = reader.deserialize(stored.raw, types[topic])
                scans[topic].add(message, stored.log_time_ns, paths[topic])
    except Exception as error:  # of rosbags, or whatever a decoder makes of a damaged file
        raise BagError(f'{path}: cannot be read after {number} messages: {type(error).__name__}: '
                       f'{error}. If it was copied, copy it again.') from error
    return scans


def _is_derived(field_: MessageField) -> bool:
    return isinstance(field_, ObservationField) and field_.when_missing == 'derive'
