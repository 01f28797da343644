"""The stored messages of any rosbag2 folder, MCAP or sqlite3, in the order of recording."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

from mbrl_ros.core.errors import BagError, MbrlError
from mbrl_ros.data.bag_metadata import read_metadata, typestore
from mbrl_ros.data.decompress import unpack_message
from mbrl_ros.data.log_order import BagFile, BagMessage, is_set_back, recorded_order
from mbrl_ros.data.mcap_file import McapFile

FAR_NS = 60 * 10**9  # publish times further from the time of recording are of another clock


class SqliteFile:
    """
    Some topics of a sqlite3 file.

    Parameters
    ----------
    store : Sqlite3Reader
        The file, opened.
    topics : mapping of str to str
        Topics to read, and their types.

    """

    def __init__(self, store: Sqlite3Reader, topics: Mapping[str, str]) -> None:
        self.start_ns, self.end_ns = store.metadata.start_time, store.metadata.end_time
        self._connection: Any = store.dbconn
        self._topics = {c.id: c.topic for c in store.connections
                        if topics.get(c.topic) == c.msgtype}

    def blocks(self) -> Iterator[Iterator[tuple[str, int]]]:
        """Yield the topics and log times of all messages."""
        yield ((self._topics[topic], time_ns)
               for topic, time_ns in self._select('topic_id, timestamp', 'id'))

    def messages(self, keep_order: bool) -> Iterator[BagMessage]:
        """Yield the messages by log time, or in the order of the file."""
        topics = self._topics
        is_stored_order = keep_order or self._is_in_order() or is_set_back(self.blocks())
        for topic, time_ns, raw in self._select('topic_id, timestamp, data',
                                                'id' if is_stored_order else 'timestamp, id'):
            yield BagMessage(topics[topic], time_ns, time_ns, raw)

    def _is_in_order(self) -> bool:
        times = (time_ns for time_ns, in self._select('timestamp', 'id'))
        return all(earlier <= later for earlier, later in pairwise(times))

    def _select(self, columns: str, order: str) -> Any:
        places = ', '.join('?' * len(self._topics))
        return self._connection.execute(
            f'SELECT {columns} FROM messages WHERE topic_id IN ({places}) ORDER BY {order}',
            tuple(self._topics))


@contextmanager
def open_bag(path: Path) -> Iterator[AnyReader]:
    """
    Open a bag, with the message types of its ROS distribution as the default.

    Raises
    ------
    BagError
        If it cannot be read: also for whatever a library raises while the bag is open.

    """
    metadata = read_metadata(path) or {}
    # Humble does not say that it is, but was the last to write this version.
    distro = metadata.get('ros_distro') or ('humble' if metadata.get('version') == 5 else '')
    default = typestore(str(distro))
    try:
        with AnyReader([path], default_typestore=default) as reader:
            known = reader.typestore.fielddefs
            if any(c.msgtype not in known for c in reader.connections):
                # A bag may define some of its types only.
                reader.typestore.register({name: definition for name, definition
                                           in default.fielddefs.items() if name not in known})
            yield reader
    except MbrlError:
        raise
    except Exception as error:  # of rosbags, or whatever a decoder makes of a damaged file
        raise BagError(f'{path}: cannot be read: {type(error).__name__}: {str(error)[:500]}. If '
                       'it was copied, copy it again. Try: mbrl-ros bag recover '
                       f'{path}') from error


def stored_messages(reader: AnyReader, connections: Sequence[Connection]
                    ) -> Iterator[BagMessage]:
    """Yield the messages of some topics in the order of recording."""
    storage: Any = reader.readers[0].storage  # type: ignore[union-attr]
    topics = {connection.topic: connection.msgtype for connection in connections}
    # rosbags yields no publish times, and overlapping files one after the other.
    files: list[BagFile] = [
        McapFile(store, topics) if isinstance(store, McapReader) else SqliteFile(store, topics)
        for store in storage.storages]
    stored = recorded_order(files)
    if storage.metadata.compression_mode == 'message':
        return (message._replace(raw=unpack_message(message.raw)) for message in stored)
    return stored


def stored_count(reader: AnyReader, topic: str) -> int:
    """Return how many messages of a topic the files hold, whatever metadata.yaml says."""
    storage: Any = reader.readers[0].storage  # type: ignore[union-attr]
    return sum(connection.msgcount for store in storage.storages
               for connection in store.connections if connection.topic == topic)


def receive_stamp_ns(message: BagMessage) -> int:
    """Return when a message was published, if its bag tells, else when it was recorded [ns]."""
    is_near = abs(message.publish_time_ns - message.log_time_ns) < FAR_NS
    return message.publish_time_ns if is_near else message.log_time_ns
