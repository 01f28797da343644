"""Unpack what a bag holds compressed, without believing what it says of its size."""

import sys
from zlib import crc32

from lz4.frame import LZ4FrameDecompressor

from mbrl_ros.core.errors import BagError

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor
else:
    from backports.zstd import ZstdDecompressor

# Recorders make chunks of a megabyte or a few; a message is rarely larger.
MAX_BYTES = 256 * 1024**2


def unpack_chunk(data: bytes, compression: str, size: int, crc: int) -> bytes:
    """
    Return the records of an MCAP chunk.

    Parameters
    ----------
    data : bytes
        As it lies in the file.
    compression : str
        `lz4`, `zstd` or '' for none.
    size : int
        Bytes of the records, as the chunk states it.
    crc : int
        CRC-32 of the records, 0 if the chunk states none.

    Raises
    ------
    BagError
        If it is not what the chunk states, or larger than `MAX_BYTES`.

    """
    raw = data if not compression else _unpack(data, compression, size)
    if len(raw) != size:
        raise BagError(f'a chunk holds {len(raw)} bytes, not {size}')
    if crc and crc32(raw) != crc:
        raise BagError('a chunk does not match its checksum')
    return raw


def unpack_message(data: bytes) -> bytes:
    """Return a message that is compressed by itself, with zstd; BagError if it cannot be."""
    return _unpack(data, 'zstd', MAX_BYTES)


def _unpack(data: bytes, compression: str, most: int) -> bytes:
    kinds = {'lz4': LZ4FrameDecompressor, 'zstd': ZstdDecompressor}
    if compression not in kinds:
        raise BagError(f"a chunk is compressed with '{compression[:20]}'. Known: lz4, zstd")
    if most > MAX_BYTES:
        raise BagError(f'a chunk of {most} bytes: more than {MAX_BYTES} are not read at once')
    decoder = kinds[compression]()
    # One byte more than there may be: what is larger is told from what fits.
    raw = bytes(decoder.decompress(data, most + 1))
    if len(raw) > most or not decoder.eof:
        raise BagError(f'what is compressed is larger than {most} bytes, or cut short')
    return raw
