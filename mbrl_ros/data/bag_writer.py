"""Write a rosbag2 folder that survives `kill -9` and a power cut up to the last flush."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
import fcntl
import os
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Lock, Thread
import time
from types import TracebackType

from mcap.writer import CompressionType, Writer

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.files import replace_file
from mbrl_ros.data.bag_metadata import (
    BagFile,
    BagTopic,
    COUNTS_KEY,
    message_definition,
    metadata_text,
    Qos,
    qos_text,
)
from mbrl_ros.data.log_order import BagMessage

# Small chunks: what is lost with an unfinished one is small too.
CHUNK_BYTES = 64 * 1024


@dataclass
class TopicCounts:
    """Messages of one topic: handed in, safe on disk, and lost on the way (any cause)."""

    received: int = 0
    written: int = 0
    lost: int = 0


class BagWriter:
    """
    Writes one bag in a thread of its own, so that a slow disk never delays the caller.

    Parameters
    ----------
    folder : Path
        Bag to create; its parents are created too.
    ros_distro : str
        Written into the metadata.
    flush_period_s : float
        Longest time [s] for which a message is not yet safe on disk.
    queue_size : int
        Messages that may wait for the disk; more are counted as lost.

    Raises
    ------
    BagError
        If the folder exists or cannot be created.

    """

    def __init__(self, folder: Path | str, ros_distro: str = '', flush_period_s: float = 0.5,
                 queue_size: int = 20_000) -> None:
        self.folder = Path(folder)
        self.error = ''
        self._ros_distro, self._flush_period_s = ros_distro, flush_period_s
        self._lock = Lock()
        self._topics: dict[str, BagTopic] = {}
        self._counts: dict[str, TopicCounts] = {}
        self._channels: dict[str, int] = {}
        self._pending: dict[str, int] = {}
        self._file = BagFile(f'{self.folder.name}_0.mcap', 0, 0, 0)
        self._metadata = ''
        self._queue: Queue[BagMessage | None] = Queue(queue_size)
        try:
            self.folder.mkdir(parents=True)
            self._stream = (self.folder / self._file.name).open('wb')
            fcntl.flock(self._stream, fcntl.LOCK_EX)
            self._mcap = Writer(self._stream, chunk_size=CHUNK_BYTES,
                                compression=CompressionType.LZ4)
            self._mcap.start(profile='ros2', library='mbrl_ros')
            self._flush()
        except FileExistsError:
            raise BagError(f'{self.folder} exists already, and a bag is never overwritten. '
                           'Choose another name or remove it.') from None
        except OSError as error:
            raise BagError(f'cannot write a bag at {self.folder}: {error.strerror}. '
                           'Choose a folder that can be written.') from error
        # A daemon: an owner that dies without close() must not hang; flushes have saved the rest.
        self._thread = Thread(target=self._work, name='bag_writer', daemon=True)
        self._thread.start()

    def add_topic(self, name: str, type_name: str, qos: Sequence[Qos] = ()) -> None:
        """
        Announce a topic; again with other QoS profiles before its first message replaces them.

        Raises
        ------
        BagError
            If the message type is not known.

        """
        type_hash = message_definition(type_name)[1]
        with self._lock:
            # A reader matches channel and metadata by their QoS: fixed with the first message.
            if name not in self._counts or not self._counts[name].received:
                self._topics[name] = BagTopic(name, type_name, type_hash, tuple(qos))
                self._counts.setdefault(name, TopicCounts())

    def write(self, topic: str, raw: bytes, log_time_ns: int, publish_time_ns: int) -> None:
        """
        Queue one message of an announced topic.

        Parameters
        ----------
        topic : str
            As given to add_topic.
        raw : bytes
            The message in CDR.
        log_time_ns, publish_time_ns : int
            When it was recorded and when it was published, on one clock [ns].

        """
        with self._lock:
            counts = self._counts[topic]
            counts.received += 1
            try:
                self._queue.put_nowait(BagMessage(topic, log_time_ns, publish_time_ns, raw))
            except Full:
                counts.lost += 1

    def note_lost(self, topic: str, count: int) -> None:
        """Count messages that were lost before they could be handed in."""
        with self._lock:
            self._counts[topic].lost += count

    def counts(self) -> dict[str, TopicCounts]:
        """Return a copy of the counts by topic."""
        with self._lock:
            return {topic: replace(counts) for topic, counts in self._counts.items()}

    def close(self) -> None:
        """Write what is queued, and finish the file and its metadata."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def __enter__(self) -> 'BagWriter':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _work(self) -> None:
        next_flush = time.monotonic() + self._flush_period_s
        while True:
            try:
                message = self._queue.get(timeout=max(0.0, next_flush - time.monotonic()))
                if message is None:
                    break
                self._add(message)
            except Empty:
                pass
            if time.monotonic() >= next_flush:
                self._attempt(self._flush)
                next_flush = time.monotonic() + self._flush_period_s
        self._attempt(self._finish)
        with suppress(OSError):
            self._stream.close()

    def _add(self, message: BagMessage) -> None:
        self._pending[message.topic] = self._pending.get(message.topic, 0) + 1
        self._attempt(lambda: self._store(message))

    def _attempt(self, step: Callable[[], None]) -> None:
        """Run a step; after a failure of the disk nothing more is written, only counted."""
        if not self.error:
            try:
                step()
            except Exception as error:  # a thread that dies silently would lose everything
                self.error = f'{type(error).__name__}: {error}'
        if self.error:
            for topic, count in self._pending.items():
                self.note_lost(topic, count)
            self._pending.clear()

    def _store(self, message: BagMessage) -> None:
        topic, time_ns = message.topic, message.log_time_ns
        if topic not in self._channels:
            self._channels[topic] = self._register(self._topics[topic])
        self._mcap.add_message(self._channels[topic], time_ns, message.raw,
                               message.publish_time_ns)
        start_ns = min(self._file.start_ns, time_ns) if self._file.messages else time_ns
        self._file = BagFile(self._file.name, start_ns, max(self._file.end_ns, time_ns),
                             self._file.messages + 1)

    def _register(self, topic: BagTopic) -> int:
        schema = self._mcap.register_schema(topic.type, 'ros2msg',
                                            message_definition(topic.type)[0].encode())
        return self._mcap.register_channel(topic.name, 'cdr', schema, {
            'offered_qos_profiles': qos_text(topic.qos), 'topic_type_hash': topic.type_hash})

    def _flush(self) -> None:
        """Make everything so far safe: first the messages, then the metadata that counts them."""
        self._mcap.flush()
        self._sync()

    def _finish(self) -> None:
        self._mcap.finish()
        self._stream.flush()
        self._sync()

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        with self._lock:
            for topic, count in self._pending.items():
                self._counts[topic].written += count
            self._pending.clear()
            topics = list(self._topics.values())
            counts = {name: vars(replace(count)) for name, count in self._counts.items()}
        text = metadata_text(
            [self._file], [(topic, counts[topic.name]['written']) for topic in topics],
            {COUNTS_KEY: counts}, self._ros_distro)
        if text != self._metadata:
            replace_file(self.folder / 'metadata.yaml', text)
            self._metadata = text
