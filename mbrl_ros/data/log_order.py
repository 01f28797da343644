"""
In which order the messages of a bag were recorded.

Chunks and files may overlap in time or lie out of order, and converters write topic after topic:
messages are taken by their log time. Unless the recorder's clock was set back: then only the file
tells the order.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

SET_BACK_NS = 1_000_000_000  # log times of a topic that go back by more are of a clock set back


class BagMessage(NamedTuple):
    """One message as it lies in the bag; times in ns on the recorder's clock."""

    topic: str
    log_time_ns: int
    publish_time_ns: int
    raw: bytes


class Span(Protocol):
    """Something of a bag with its earliest and latest log time."""

    start_ns: int
    end_ns: int


S = TypeVar('S', bound=Span)


class BagFile(Span, Protocol):
    """One file of a bag, as far as its messages are wanted."""

    def blocks(self) -> Iterator[Iterable[tuple[Any, ...]]]:
        """Yield what was written in one go: topic and log time [ns], and maybe more."""

    def messages(self, keep_order: bool) -> Iterator[BagMessage]:
        """Yield the messages by log time, or in the order of the file."""


def is_set_back(blocks: Iterable[Iterable[tuple[Any, ...]]]) -> bool:
    """
    Return whether the recorder's clock was set back while it wrote.

    Parameters
    ----------
    blocks : iterable of iterables
        What was written in one go, in the order of the file: tuples that begin with the topic
        and its log time [ns].

    Notes
    -----
    The log times of a topic then go back inside a block, and what follows overlaps what was
    before, or lies far from it. What follows without a hole where something else ended was only
    written out of order.

    """
    runs: dict[Any, list[list[int]]] = {}
    has_fallen = False
    for block in blocks:
        seen = set()
        for topic, log_ns, *_ in block:
            own = runs.setdefault(topic, [[log_ns, log_ns]])
            rise_ns = log_ns - own[-1][1]
            if abs(rise_ns) > SET_BACK_NS:
                own.append([log_ns, log_ns])
                has_fallen |= rise_ns < 0 and topic in seen
            own[-1][1] = max(own[-1][1], log_ns)
            seen.add(topic)
    if not has_fallen:
        return False
    gaps_ns = [later[0] - earlier[1] for own in runs.values()
               for earlier, later in pairwise(sorted(own))]
    return abs(min(gaps_ns)) > SET_BACK_NS


def overlap(spans: Iterable[Span]) -> bool:
    """Return whether one of them begins more than a second before the end of an earlier one."""
    end_ns: int | None = None
    for span in spans:
        if end_ns is not None and span.start_ns < end_ns - SET_BACK_NS:
            return True
        end_ns = span.end_ns if end_ns is None else max(end_ns, span.end_ns)
    return False


def block_order(blocks: Sequence[S], load: Callable[[S], list[BagMessage]]
                ) -> Iterator[BagMessage]:
    """
    Yield the messages of the blocks of one file in the order of recording.

    Only blocks that overlap in time are in memory together.
    """
    is_mixed = overlap(blocks)
    if is_mixed and is_set_back(map(load, blocks)):
        for block in blocks:
            yield from load(block)
        return
    ordered = sorted(blocks, key=lambda block: block.start_ns) if is_mixed else list(blocks)
    # Nothing earlier than this is in a block or in those after it.
    floors = list(accumulate((block.start_ns for block in reversed(ordered)), min))[::-1]
    waiting: list[BagMessage] = []
    for block, floor_ns in zip(ordered, floors, strict=True):
        ready = bisect_left(waiting, floor_ns, key=_log_time)
        yield from waiting[:ready]
        found = load(block)
        in_order = sorted(found, key=_log_time)
        if not is_mixed and found != in_order and is_set_back([found]):
            yield from waiting[ready:]
            yield from found
            waiting = []
        else:
            waiting = sorted(waiting[ready:] + in_order, key=_log_time)
    yield from waiting


def recorded_order(files: Sequence[BagFile]) -> Iterator[BagMessage]:
    """Yield the messages of the files of a bag, given in the order of its metadata."""
    if overlap(files) and is_set_back(block for file in files for block in file.blocks()):
        for file in files:
            yield from file.messages(keep_order=True)
        return
    group: list[BagFile] = []
    for file in sorted(files, key=lambda file: file.start_ns):
        if group and file.start_ns >= max(other.end_ns for other in group):
            yield from _merged(group)
            group = []
        group.append(file)
    yield from _merged(group)


def _merged(files: Sequence[BagFile]) -> Iterator[BagMessage]:
    streams = [file.messages(keep_order=False) for file in files]
    return streams[0] if len(streams) == 1 else merge(*streams, key=_log_time)


def _log_time(message: BagMessage) -> int:
    return message.log_time_ns
