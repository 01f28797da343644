"""What can still be read of an MCAP file that is cut short, or damaged anywhere."""

from collections.abc import Iterator
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
import re
from struct import Struct
from typing import NamedTuple

from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, DataEnd, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader

from mbrl_ros.data.mcap_file import END_MAGIC, expand

# How a chunk begins (opcode; length, two times, size and CRC; compression), and how the data ends.
_LANDMARK = re.compile(
    rb'\x06.{36}(?:\x04\x00\x00\x00zstd|\x03\x00\x00\x00lz4|\x00\x00\x00\x00)|\x0f\x04\x00{7}',
    re.DOTALL)
_RECORD, _INDEX = Struct('<BQ'), Struct('<HI')
_KNOWN = {int(opcode) for opcode in Opcode}
_FIRST_PRIVATE = 0x80  # of the opcodes that the format leaves to others


class Salvaged(NamedTuple):
    """
    A step through a file.

    Attributes
    ----------
    records : list of Schema, Channel or Message
        In the order of the file.
    lost : int
        Bytes before them that cannot be read.
    position : int
        Where in the file they end.

    """

    records: list[Schema | Channel | Message]
    lost: int
    position: int


def salvage(path: Path) -> Iterator[Salvaged]:
    """
    Yield what can still be read of a file, chunk by chunk.

    After what cannot be read it goes on at the next chunk: a length that is damaged tells nothing
    of where the record ends.
    """
    size = path.stat().st_size
    if not size:
        return
    with path.open('rb') as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        position = len(END_MAGIC)
        while position < size:
            try:
                record, end = _record(data, position)
                if isinstance(record, DataEnd):
                    return
                inner = expand(record) if isinstance(record, Chunk) else [record]
                found = [r for r in inner if isinstance(r, Schema | Channel | Message)]
            except Exception:  # whatever a decoder makes of damaged bytes
                landmark = _LANDMARK.search(data, position + 1)
                end = landmark.start() if landmark else size
                yield Salvaged([], end - position, end)
            else:
                yield Salvaged(found, 0, end)
            position = end


def _record(data: mmap, position: int) -> tuple[McapRecord | None, int]:
    """Return the record at a position, None for one that holds no message, and its end."""
    opcode, length = _RECORD.unpack_from(data, position)
    body = position + _RECORD.size
    end = body + length
    if end > len(data) or (opcode < _FIRST_PRIVATE and opcode not in _KNOWN):
        raise ValueError('no record')
    if opcode == Opcode.MESSAGE_INDEX and length != 6 + _INDEX.unpack_from(data, body)[1]:
        raise ValueError('not the length of its entries')
    if opcode not in {Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE, Opcode.CHUNK,
                      Opcode.DATA_END}:
        return None, end
    record = next(StreamReader(BytesIO(data[position:end]), skip_magic=True,
                               emit_chunks=True).records)
    if isinstance(record, Chunk) and length != 40 + len(record.compression) + len(record.data):
        raise ValueError('not the length of its records')
    return record, end
