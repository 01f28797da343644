"""Files that are replaced as a whole: a reader, a kill or a power cut finds old or new."""

from collections.abc import Iterator
from contextlib import contextmanager
import fcntl
import os
from pathlib import Path


def replace_file(path: Path, content: str | bytes) -> None:
    """
    Replace a file, or make it.

    Parameters
    ----------
    path : Path
        In a folder that exists.
    content : str or bytes
        Of the whole file; text is written as UTF-8.

    Notes
    -----
    What is not yet whole is named `<name>.new`; a process that is killed leaves it behind, and
    the next one overwrites it. Two processes must not write the same file at the same time.

    """
    new = path.with_name(path.name + '.new')
    with new.open('wb') as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """
    Let no other process of this package write to a folder meanwhile.

    Raises
    ------
    BlockingIOError
        If another process has it locked.
    OSError
        If it cannot be opened.

    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            # The kernel lets go of it when the process ends, however it ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a network file system that cannot lock folders
        yield
    finally:
        os.close(descriptor)
