"""Make a bag whose recording was cut short readable again, and say what it lost."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, UTC
from itertools import chain
import os
from pathlib import Path
from typing import Any

from mcap.reader import make_reader
from mcap.records import Channel, Message, Schema
from mcap.summary import Summary
from mcap.writer import CompressionType, Writer
import yaml

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.files import replace_file, sync_folder
from mbrl_ros.data.bag_metadata import (
    BagFile,
    BagTopic,
    custom_data,
    metadata_text,
    ORIGINAL_SUFFIX,
    Qos,
    read_metadata,
    RECOVERED_KEY,
    untold_originals,
)
from mbrl_ros.data.bag_reader import Progress
from mbrl_ros.data.mcap_file import is_being_written, is_complete
from mbrl_ros.data.salvage import salvage, Salvaged

# How zstd begins; no message in CDR does, whose first byte is 0.
_ZSTD_MAGIC = bytes.fromhex('28b52ffd')


@dataclass(frozen=True)
class Recovery:
    """
    What a recovery saved and what it could not.

    Attributes
    ----------
    bag : Path
        The bag.
    files : tuple of Path
        Truncated originals, kept beside the repaired files; empty if the bag was whole.
    counts : dict of str to int
        Messages in the bag now, by topic.
    bytes_lost : int
        Unreadable bytes of the originals.
    missing : dict of str to int
        Messages that the last flush had counted and that are gone, by topic.
    is_counted : bool
        Whether these are all that were lost before the last flush. They may not be without a
        readable metadata.yaml, or if later messages make up for lost ones in the count.

    """

    bag: Path
    files: tuple[Path, ...]
    counts: dict[str, int]
    bytes_lost: int
    missing: dict[str, int]
    is_counted: bool

    def describe(self) -> str:
        """Return one line about what was saved and lost."""
        if not self.files:
            return f'{self.bag}: complete, nothing to recover'
        lost = ', '.join(f'{count} on {topic}' for topic, count in self.missing.items())
        if lost:
            told = f'lost: {"" if self.is_counted else "at least "}{lost}'
        elif self.is_counted:
            told = 'messages lost since the last flush only'
        else:
            told = 'how many messages were lost is not known'
        return (f'{self.bag}: {sum(self.counts.values())} messages recovered; '
                f'{self.bytes_lost} bytes unreadable; {told}')


def recover(bag: Path | str, progress: Progress | None = None) -> Recovery:
    """
    Rewrite the MCAP files of a bag that are cut short or damaged, and its metadata.yaml.

    Parameters
    ----------
    bag : Path
        Folder; a metadata.yaml is not needed.
    progress : callable, optional
        Called now and then with the path, the bytes read and their number.

    Raises
    ------
    BagError
        If there is no MCAP file, it is being written right now, or cannot be replaced; if files
        are compressed as a whole. Nothing is changed then.

    Notes
    -----
    Originals are kept with the suffix `.truncated`. A bag that is whole is left alone, so the
    verb can be repeated. One that was killed is done again from the originals: what was lost can
    be told only from them. Until metadata.yaml tells it, no reader takes the bag.

    """
    try:
        return _recover(Path(bag), progress)
    except OSError as error:
        raise BagError(f'{bag}: cannot be recovered: {error}. May you write into the folder, and '
                       'is there room on the disk for a copy of the damaged files?') from error


def _recover(bag: Path, progress: Progress | None) -> Recovery:
    _refuse_compressed(bag)
    _undo_half(bag)
    files = sorted(bag.glob('*.mcap'), key=lambda file: (len(file.name), file.name))
    if not files:
        raise BagError(f'{bag}: no .mcap file to recover. For a sqlite3 bag try: '
                       f'ros2 bag reindex {bag}')
    if any(is_being_written(file) for file in files):
        raise BagError(f'{bag}: is still being recorded. Stop the recording first.')
    metadata = _read_metadata(bag)
    untold = untold_originals(bag, metadata)
    broken = [file for file in files if file.name in untold] + _find_broken(
        [file for file in files if file.name not in untold], progress)
    losses = [_rewrite(file) for file in broken]
    bytes_lost = sum(lost for lost, _ in losses)
    infos, topics, counts = _take_stock(files)
    flushed = {entry['topic_metadata']['name']: entry['message_count']
               for entry in (metadata or {}).get('topics_with_message_count', ())}
    missing = {topic: count - counts[topic] for topic, count in flushed.items()
               if count > counts[topic]}
    is_end_only = not any(before for _, before in losses) and set(broken) <= {files[-1]}
    result = Recovery(bag, tuple(_original(file) for file in broken), dict(counts), bytes_lost,
                      missing, metadata is not None and is_end_only)
    # Files that were compressed as a whole have other names by now than metadata.yaml says.
    if broken or metadata is None or _compression_mode(metadata) == 'file':
        custom = custom_data(metadata)
        if broken:
            custom[RECOVERED_KEY] = {
                'text': result.describe().removeprefix(f'{bag}: '), 'bytes_lost': bytes_lost,
                'missing': missing, 'at': datetime.now(UTC).isoformat(),
                'files': sorted(untold_originals(bag, None))}
        replace_file(bag / 'metadata.yaml', metadata_text(
            infos, [(topic, counts[topic.name]) for topic in topics], custom,
            str((metadata or {}).get('ros_distro') or ''), _message_compression(files, metadata)))
    return result


def _refuse_compressed(bag: Path) -> None:
    """Refuse files that rosbag2 compressed as a whole: without them a bag would lack messages."""
    packed = sorted(bag.glob('*.mcap.zstd'), key=lambda file: (len(file.name), file.name))
    if not packed:
        return
    twice = [file.name for file in packed if file.with_suffix('').exists()]
    hint = (f' Beside {", ".join(twice)} lies what it was made from, or a part of it: delete the '
            'one that is not whole first (zstd -t FILE tests the compressed one).'
            if twice else '')
    raise BagError(f'{bag}: files are compressed as a whole: '
                   f'{", ".join(file.name for file in packed)}. Unpack each: zstd -d --rm FILE, '
                   f'then repeat: mbrl-ros bag recover {bag}.{hint}')


def _compression_mode(metadata: dict[str, Any]) -> str:
    return str(metadata.get('compression_mode') or '').lower()  # rosbag2 writes MESSAGE or FILE


def _message_compression(files: list[Path], metadata: dict[str, Any] | None) -> str:
    """Return what each message is compressed with; MCAP does not say, the messages have to."""
    if metadata is not None:
        is_packed = _compression_mode(metadata) == 'message'
        return str(metadata.get('compression_format') or '') if is_packed else ''
    found = (record for file in files for step in salvage(file) for record in step.records
             if isinstance(record, Message))
    is_packed = False
    for message in found:
        is_packed = message.data.startswith(_ZSTD_MAGIC)
        if not is_packed:
            break
    return 'zstd' if is_packed else ''


def _read_metadata(bag: Path) -> dict[str, Any] | None:
    """Return what metadata.yaml holds; one that is damaged is as good as none: it is rewritten."""
    try:
        metadata = read_metadata(bag)
        custom_data(metadata)
    except BagError:
        return None
    return metadata


def _find_broken(files: list[Path], progress: Progress | None) -> list[Path]:
    """Return the files that lack their end, or something in the middle."""
    broken, before, total = [], 0, sum(file.stat().st_size for file in files)
    for file in files:
        lost = 0
        for step in salvage(file):
            lost += step.lost
            if progress is not None:
                progress(str(file.parent), before + step.position, total)
        before += file.stat().st_size
        if lost or not is_complete(file) or not _read_summary(file):
            broken.append(file)
    if progress is not None and files:
        progress(str(files[0].parent), total, total)
    return broken


def _rewrite(file: Path) -> tuple[int, int]:
    """
    Replace a broken file by what can be read of it.

    Returns the bytes that cannot be read, and how many of them come before a message that can.
    """
    new, original = file.with_name(file.name + '.new'), _original(file)
    source = original if original.exists() else file
    lost = lost_before = 0
    schemas: dict[int, int] = {}
    channels: dict[int, int] = {}
    with new.open('wb') as target:
        writer = Writer(target, compression=CompressionType.LZ4)
        writer.start(profile='ros2', library='mbrl_ros recover')
        # The topics that the end lists come first: the chunk that named them may be gone.
        summary = _read_summary(source)
        listed: list[Schema | Channel | Message] = []
        if summary:
            listed += [*summary.schemas.values(), *summary.channels.values()]
        for step in chain([Salvaged(listed, 0, 0)], salvage(source)):
            lost += step.lost
            for record in step.records:
                if isinstance(record, Schema):
                    if record.id not in schemas:
                        schemas[record.id] = writer.register_schema(record.name, record.encoding,
                                                                    record.data)
                elif isinstance(record, Channel):
                    if record.id not in channels:
                        channels[record.id] = writer.register_channel(
                            record.topic, record.message_encoding,
                            schemas.get(record.schema_id, 0), record.metadata)
                elif record.channel_id in channels:
                    writer.add_message(channels[record.channel_id], record.log_time, record.data,
                                       record.publish_time, record.sequence)
                    lost_before = lost
                else:  # the chunk that named its topic is gone
                    lost += len(record.data)
        writer.finish()
        target.flush()
        os.fsync(target.fileno())
    if source == file:
        try:
            os.link(file, original)  # a second name: there is a file of each name at any moment
        except OSError:  # a file system without links, as on a memory stick
            os.replace(file, original)
    os.replace(new, file)
    sync_folder(file.parent)
    return lost, lost_before


def _original(file: Path) -> Path:
    return file.with_name(file.name + ORIGINAL_SUFFIX)


def _undo_half(bag: Path) -> None:
    """Give originals their names back where a kill came before the repaired file had them."""
    for original in bag.glob(f'*.mcap{ORIGINAL_SUFFIX}'):
        file = original.with_name(original.name.removesuffix(ORIGINAL_SUFFIX))
        if not file.exists():
            os.replace(original, file)


def _read_summary(file: Path) -> Summary | None:
    """Return what the end of a file lists, None if that cannot be read."""
    try:
        with file.open('rb') as stream:
            summary = make_reader(stream).get_summary()
    except Exception:  # whatever a decoder makes of damaged bytes
        return None
    return summary if summary and summary.statistics else None


def _take_stock(files: list[Path]) -> tuple[list[BagFile], list[BagTopic], Counter[str]]:
    infos: list[BagFile] = []
    topics: dict[str, BagTopic] = {}
    counts: Counter[str] = Counter()
    for file in files:
        summary = _read_summary(file)
        if summary is None or summary.statistics is None:
            raise BagError(f'{file}: cannot be read after all. Try: ros2 bag reindex '
                           f'{file.parent}')
        statistics = summary.statistics
        infos.append(BagFile(file.name, statistics.message_start_time,
                             statistics.message_end_time, statistics.message_count))
        for channel in summary.channels.values():
            counts[channel.topic] += statistics.channel_message_counts.get(channel.id, 0)
            schema = summary.schemas.get(channel.schema_id)
            topics.setdefault(channel.topic, BagTopic(
                channel.topic, schema.name if schema else '',
                channel.metadata.get('topic_type_hash', ''), _read_qos(channel)))
    return infos, list(topics.values()), counts


def _read_qos(channel: Channel) -> tuple[Qos, ...]:
    try:
        profiles = yaml.safe_load(channel.metadata.get('offered_qos_profiles', ''))
        return tuple(dict(profile) for profile in profiles or ())
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        return ()  # nobody needs it to read the bag
