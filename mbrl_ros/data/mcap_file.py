"""The messages of a whole MCAP file in the order of time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
import fcntl
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import IO
from zlib import crc32

from mcap.opcode import Opcode
from mcap.records import Chunk, McapRecord
from mcap.stream_reader import breakup_chunk
from rosbags.rosbag2.errors import ReaderError
from rosbags.rosbag2.storage_mcap import McapReader

from mbrl_ros.core.errors import BagError
from mbrl_ros.data.decompress import unpack_chunk
from mbrl_ros.data.log_order import BagMessage, block_order

END_MAGIC = b'\x89MCAP0\r\n'
BLOCK_BYTES = 1_000_000  # of messages outside chunks that are read at once
_RECORD, _MESSAGE, _CHUNK = Struct('<BQ'), Struct('<HIQQ'), Struct('<QQQII')
_CHANNEL_ID, _LENGTH, _FOOTER = Struct('<H'), Struct('<Q'), Struct('<BQQQI8s')


@dataclass
class Block:
    """
    Records that lie together in a file: a chunk, or messages outside chunks.

    Attributes
    ----------
    start_ns, end_ns : int
        Earliest and latest log time of its messages.
    offset, size : int
        Where its bytes lie in the file.
    channels : set of int
        Channels that it has messages of; empty if the file does not say.
    compression, raw_size, crc
        Of a chunk; the size is None outside chunks.

    """

    start_ns: int
    end_ns: int
    offset: int
    size: int
    channels: set[int]
    compression: str = ''
    raw_size: int | None = None
    crc: int = 0


def is_complete(path: Path) -> bool:
    """Return whether the file has its begin and end, without which no MCAP reader opens it."""
    with _reading(path) as stream:
        begin = stream.read(len(END_MAGIC))
        end = stream.seek(0, 2) - _FOOTER.size
        stream.seek(max(end, 0))
        footer = stream.read()
        if begin != END_MAGIC or end < len(begin) or footer[-len(END_MAGIC):] != END_MAGIC:
            return False
        opcode, length, summary, _, crc, _ = _FOOTER.unpack(footer)
        if opcode != Opcode.FOOTER or length != 20 or summary > end:
            return False
        # The CRC is of all that lies between the data and the CRC itself.
        stream.seek(summary)
        return not crc or not summary or crc32(
            stream.read(end + _FOOTER.size - summary - 12)) == crc


def is_being_written(path: Path) -> bool:
    """Return whether a BagWriter of this machine has the file open."""
    with _reading(path) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open('rb') as stream:
            yield stream
    except OSError as error:
        raise BagError(f'{path}: cannot be read: {error.strerror or error}') from error


def expand(chunk: Chunk) -> list[McapRecord]:
    """Return the records of a chunk, checked against its CRC."""
    raw = unpack_chunk(chunk.data, chunk.compression, chunk.uncompressed_size,
                       chunk.uncompressed_crc)
    return breakup_chunk(replace(chunk, compression='', data=raw))


class McapFile:
    """
    Some topics of a whole file.

    Parameters
    ----------
    store : McapReader
        The file, opened.
    topics : mapping of str to str
        Topics to read, and their types.

    """

    def __init__(self, store: McapReader, topics: Mapping[str, str]) -> None:
        self.start_ns, self.end_ns = store.metadata.start_time, store.metadata.end_time
        self._path = Path(str(store.path))
        self._channels = {c.id: c.topic for c in store.connections
                          if topics.get(c.topic) == c.msgtype}
        with self._path.open('rb') as stream:
            blocks = list(_find_blocks(stream, store.data_start, store.data_end))
        self._blocks = [block for block in blocks
                        if not block.channels or block.channels & self._channels.keys()]

    def blocks(self) -> Iterator[list[BagMessage]]:
        """Yield the messages of chunk after chunk."""
        with self._path.open('rb') as stream:
            yield from (self._load(stream, block) for block in self._blocks)

    def messages(self, keep_order: bool) -> Iterator[BagMessage]:
        """Yield the messages by log time, or in the order of the file."""
        if keep_order:
            yield from chain.from_iterable(self.blocks())
            return
        with self._path.open('rb') as stream:
            yield from block_order(self._blocks, lambda block: self._load(stream, block))

    def _load(self, stream: IO[bytes], block: Block) -> list[BagMessage]:
        stream.seek(block.offset)
        data = stream.read(block.size)
        if block.raw_size is not None:
            data = unpack_chunk(data, block.compression, block.raw_size, block.crc)
        found, position, size = [], 0, len(data)
        channels = self._channels
        while position + 9 <= size:
            opcode, length = _RECORD.unpack_from(data, position)
            position += 9
            if opcode == Opcode.MESSAGE:
                channel, _, log_ns, publish_ns = _MESSAGE.unpack_from(data, position)
                if channel in channels:
                    found.append(BagMessage(channels[channel], log_ns, publish_ns,
                                            data[position + 22:position + length]))
            position += length
        if position != size:
            raise ReaderError(f'{self._path.name}: a record ends outside its chunk.')
        return found


@contextmanager
def opened(path: Path) -> Iterator[McapReader]:
    """Open a whole file."""
    store = McapReader(path)
    store.open()
    try:
        yield store
    finally:
        store.close()


def messages(path: Path) -> Iterator[BagMessage]:
    """Yield all messages of a whole file by log time."""
    with opened(path) as store:
        yield from McapFile(store, {c.topic: c.msgtype for c in store.connections}).messages(False)


def _find_blocks(stream: IO[bytes], start: int, end: int) -> Iterator[Block]:
    """Yield the blocks of the data section, which lies from byte `start` to `end`."""
    block: Block | None = None
    position = start
    while position < end:
        stream.seek(position)
        opcode, length = _RECORD.unpack(stream.read(9))
        body, position = position + 9, position + 9 + length
        if position > end:
            raise ReaderError(f'a record at byte {body - 9} ends outside the data of the file.')
        if opcode == Opcode.CHUNK:
            if block:
                yield block
            first_ns, last_ns, raw_size, crc, name_size = _CHUNK.unpack(stream.read(32))
            compression = stream.read(min(name_size, length)).decode()
            size, = _LENGTH.unpack(stream.read(8))
            block = Block(first_ns, last_ns, body + 40 + name_size, size, set(), compression,
                          raw_size, crc)
            if body + 40 + name_size + size > position:
                raise ReaderError(f'the chunk at byte {body - 9} ends outside its record.')
        elif opcode == Opcode.MESSAGE_INDEX and block and length > 6:
            block.channels.add(_CHANNEL_ID.unpack(stream.read(2))[0])
        elif opcode == Opcode.MESSAGE:
            channel, _, log_ns, _ = _MESSAGE.unpack(stream.read(22))
            if block and (block.raw_size is not None or block.offset + block.size != body - 9
                          or block.size > BLOCK_BYTES):
                yield block
                block = None
            block = block or Block(log_ns, log_ns, body - 9, 0, set())
            block.start_ns, block.end_ns = min(block.start_ns, log_ns), max(block.end_ns, log_ns)
            block.size += 9 + length
            block.channels.add(channel)
    if block:
        yield block
