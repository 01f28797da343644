"""What is in a bag: topics, joints, duration and episodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2.errors import ReaderError

from mbrl_ros.core.errors import BagError
from mbrl_ros.data.bag_metadata import (
    custom_data,
    EPISODE_TOPIC,
    read_metadata,
    RECOVERED_KEY,
    typestore,
)
from mbrl_ros.data.bag_reader import check_bag, parse_mark

JOINT_STATE = 'sensor_msgs/msg/JointState'


@dataclass(frozen=True)
class TopicInfo:
    """One topic; `joints` are those of its first message, if it is a JointState."""

    name: str
    type: str
    messages: int
    joints: tuple[str, ...] = ()


@dataclass(frozen=True)
class BagInfo:
    """A bag: `episodes` counts start marks, `recovered` says how it was recovered."""

    topics: tuple[TopicInfo, ...]
    duration_s: float
    episodes: int
    recovered: str


def read_info(bag: Path | str) -> BagInfo:
    """
    Summarise a bag.

    Raises
    ------
    BagError
        If the bag cannot be read.

    """
    bag = Path(bag)
    check_bag(bag)
    try:
        with AnyReader([bag], default_typestore=typestore()) as reader:
            topics = [TopicInfo(c.topic, c.msgtype, c.msgcount, _joints(reader, c))
                      for c in sorted(reader.connections, key=lambda c: c.topic)]
            marks = [c for c in reader.connections
                     if c.topic.rpartition('/')[2] == EPISODE_TOPIC
                     and c.msgtype == 'std_msgs/msg/String']
            episodes = sum(parse_mark(message.data).get('event') == 'start'
                           for message in _messages(reader, marks))
            duration_s = reader.duration / 1e9 if reader.message_count else 0.0
    except (AnyReaderError, ReaderError) as error:
        raise BagError(f'{bag}: cannot be read: {error}') from error
    recovered = custom_data(read_metadata(bag)).get(RECOVERED_KEY, {}).get('text', '')
    return BagInfo(tuple(topics), duration_s, episodes, recovered)


def _messages(reader: AnyReader, connections: Sequence[Any]) -> Any:
    if connections:  # none would mean all
        for connection, _, raw in reader.messages(connections):
            yield reader.deserialize(raw, connection.msgtype)


def _joints(reader: AnyReader, connection: Any) -> tuple[str, ...]:
    if connection.msgtype != JOINT_STATE:
        return ()
    first = next(_messages(reader, [connection]), None)
    return tuple(first.name) if first is not None else ()
