"""What is in a bag: storage, files, topics, joints, duration and episodes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from mbrl_ros.data.bag_cache import bag_files, hash_bag
from mbrl_ros.data.bag_metadata import custom_data, EPISODE_TOPIC, read_metadata, RECOVERED_KEY
from mbrl_ros.data.bag_reader import check_bag, parse_mark, Progress
from mbrl_ros.data.bag_storage import open_bag, stored_messages

JOINT_STATE = 'sensor_msgs/msg/JointState'


@dataclass(frozen=True)
class TopicInfo:
    """
    One topic of a bag.

    `rate_hz` is the mean over the bag, 0.0 with less than two messages; `joints` are those of
    the first message, if it is a JointState.
    """

    name: str
    type: str
    messages: int
    rate_hz: float
    joints: tuple[str, ...] = ()


@dataclass(frozen=True)
class BagInfo:
    """
    A bag.

    Attributes
    ----------
    topics : tuple of TopicInfo
        By name.
    storage, compression : str
        `mcap` or `sqlite3`; what is compressed and how, `none` if nothing is.
    files : tuple of str
        Storage files, in recording order.
    size_bytes : int
        Of the storage files and metadata.yaml.
    ros_distro : str
        That recorded it, '' if it does not say.
    start_ns : int
        Time of the first message, since 1970 where the recorder's clock knew.
    duration_s : float
        From the first message to the last.
    episodes : int
        Start marks.
    recovered : str
        How it was recovered, '' if it was not.
    hash : str
        SHA-256 of its files: what the metadata of a model names it by.

    """

    topics: tuple[TopicInfo, ...]
    storage: str
    compression: str
    files: tuple[str, ...]
    size_bytes: int
    ros_distro: str
    start_ns: int
    duration_s: float
    episodes: int
    recovered: str
    hash: str


def read_info(bag: Path | str, progress: Progress | None = None) -> BagInfo:
    """
    Summarise a bag.

    Parameters
    ----------
    bag : Path
        Folder with a metadata.yaml.
    progress : callable, optional
        Called now and then with the path, the bytes read and their number.

    Raises
    ------
    BagError
        If the bag cannot be read.

    """
    bag = Path(bag)
    check_bag(bag)
    metadata = read_metadata(bag) or {}
    own, *files = bag_files(bag)
    bag_hash = hash_bag(bag, progress)
    with open_bag(bag) as reader:
        duration_s = reader.duration / 1e9 if reader.message_count else 0.0
        marks = [c for c in reader.connections
                 if c.topic.rpartition('/')[2] == EPISODE_TOPIC
                 and c.msgtype == 'std_msgs/msg/String']
        return BagInfo(
            topics=tuple(_topic(reader, c, duration_s) for c in
                         sorted(reader.connections, key=lambda c: c.topic)),
            storage=metadata['storage_identifier'], compression=_compression(reader),
            files=tuple(file.name for file in files),
            size_bytes=sum(file.stat().st_size for file in (own, *files)),
            ros_distro=str(metadata.get('ros_distro') or ''),
            start_ns=reader.start_time if reader.message_count else 0, duration_s=duration_s,
            episodes=sum(parse_mark(message.data).get('event') == 'start'
                         for message in _messages(reader, marks)),
            recovered=custom_data(metadata).get(RECOVERED_KEY, {}).get('text', ''),
            hash=bag_hash)


def _topic(reader: AnyReader, connection: Connection, duration_s: float) -> TopicInfo:
    first = next(_messages(reader, [connection]), None) \
        if connection.msgtype == JOINT_STATE else None
    rate_hz = max(connection.msgcount - 1, 0) / duration_s if duration_s else 0.0
    return TopicInfo(connection.topic, connection.msgtype, connection.msgcount, rate_hz,
                     tuple(first.name) if first is not None else ())


def _compression(reader: AnyReader) -> str:
    storage: Any = reader.readers[0].storage  # type: ignore[union-attr]
    if storage.metadata.compression_mode:
        return f'{storage.metadata.compression_mode}, {storage.metadata.compression_format}'
    chunks = {chunk.compression for store in storage.storages
              for chunk in getattr(store, 'chunks', ())} - {''}
    return f'chunk, {", ".join(sorted(chunks))}' if chunks else 'none'


def _messages(reader: AnyReader, connections: Sequence[Connection]) -> Iterator[Any]:
    types = {connection.topic: connection.msgtype for connection in connections}
    for stored in stored_messages(reader, connections) if connections else ():
        yield reader.deserialize(stored.raw, types[stored.topic])
