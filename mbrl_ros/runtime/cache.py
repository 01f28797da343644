"""Compiled graphs on disk, by the hash of everything they are made from."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
import os
from pathlib import Path

from mbrl_ros.core.paths import cache_dir

SUFFIX = '.rollout'
KEPT_FILES = 20


def is_cached(ingredients: Iterable[bytes]) -> bool:
    """Return whether something was made from these ingredients and is still there."""
    try:
        return _path(ingredients).is_file()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return False


def cached(ingredients: Iterable[bytes], make: Callable[[], bytes]) -> tuple[bytes, bool]:
    """
    Return what `make` makes from the ingredients, from the disk if it was made before.

    A file starts with the SHA-256 of its content: a damaged one is made anew. A cache that cannot
    be read or written is none; the newest few files are kept.

    Returns
    -------
    content : bytes
        What `make` returned, now or earlier.
    found : bool
        True if it came from the disk.

    """
    parts = list(ingredients)
    try:
        path = _path(parts)
        data = path.read_bytes()
        digest, content = data[:32], data[32:]
        if sha256(content).digest() == digest:
            with suppress(OSError):  # a cache that can only be read
                os.utime(path)  # the newest are kept
            return content, True
    except (OSError, RuntimeError):
        pass
    content = make()
    try:
        path = _path(parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f'.{os.getpid()}.part')
        part.write_bytes(sha256(content).digest() + content)
        os.replace(part, path)
        files = sorted(path.parent.glob(f'*{SUFFIX}'), key=lambda file: file.stat().st_mtime)
        for old in files[:-KEPT_FILES]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        pass
    return content, False


def _path(ingredients: Iterable[bytes]) -> Path:
    key = sha256(b''.join(sha256(part).digest() for part in ingredients)).hexdigest()
    return cache_dir() / f'{key}{SUFFIX}'
