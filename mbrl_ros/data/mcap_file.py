"""MCAP files record by record, in the order in which they were written, whole or truncated."""

from collections.abc import Iterator
from dataclasses import replace
import fcntl
from pathlib import Path
from typing import IO, NamedTuple

from mcap.records import Channel, Chunk, DataEnd, Footer, McapRecord, Message, Schema
from mcap.stream_reader import breakup_chunk, StreamReader
from rosbags.rosbag2.storage_mcap import decompress

END_MAGIC = b'\x89MCAP0\r\n'


class BagMessage(NamedTuple):
    """One message as it lies in the bag; times in ns on the recorder's clock."""

    topic: str
    log_time_ns: int
    publish_time_ns: int
    raw: bytes


def is_complete(path: Path) -> bool:
    """Return whether the file has its end, without which no MCAP reader opens it."""
    with path.open('rb') as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - len(END_MAGIC)))
        return size > 2 * len(END_MAGIC) and stream.read() == END_MAGIC


def is_being_written(path: Path) -> bool:
    """Return whether a BagWriter of this machine has the file open."""
    with path.open('rb') as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def expand(chunk: Chunk) -> list[McapRecord]:
    """Return the records of a chunk, checked against its CRC."""
    # mcap alone cannot read zstd without another package; rosbags brings a decoder.
    raw = decompress(chunk.data, chunk.compression, chunk.uncompressed_size,
                     chunk.uncompressed_crc)
    return breakup_chunk(replace(chunk, compression='', data=raw))


def messages(path: Path) -> Iterator[BagMessage]:
    """Yield the messages of a complete file."""
    topics: dict[int, str] = {}
    with path.open('rb') as stream:
        for outer in StreamReader(stream, emit_chunks=True).records:
            if isinstance(outer, DataEnd):
                return
            for record in expand(outer) if isinstance(outer, Chunk) else [outer]:
                if isinstance(record, Channel):
                    topics[record.id] = record.topic
                elif isinstance(record, Message):
                    yield BagMessage(topics[record.channel_id], record.log_time,
                                     record.publish_time, record.data)


def salvage(stream: IO[bytes]) -> Iterator[tuple[Schema | Channel | Message | None, int]]:
    """
    Yield what can still be read of a truncated file.

    Yields
    ------
    record : Schema, Channel or Message, or None
        None ends a stretch of readable bytes.
    lost : int
        Bytes that were unreadable since the last record, zero with a record.

    """
    size = stream.seek(0, 2)
    end = stream.seek(0)
    records = StreamReader(stream, emit_chunks=True).records
    while True:
        try:
            outer = next(records)
        except Exception:  # whatever a decoder makes of a broken tail: here the file ends
            yield None, size - end
            return
        if isinstance(outer, DataEnd | Footer):
            yield None, 0
            return
        start, end = end, stream.tell()
        try:
            inner = expand(outer) if isinstance(outer, Chunk) else [outer]
        except Exception:  # a chunk damaged on disk; those after it may be whole
            yield None, end - start
            continue
        for record in inner:
            if isinstance(record, Schema | Channel | Message):
                yield record, 0
