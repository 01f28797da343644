"""Make a bag whose recording was cut short readable again, and say what it lost."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, UTC
import os
from pathlib import Path

from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.records import Channel, Message, Schema
from mcap.writer import CompressionType, Writer
import yaml

from mbrl_ros.core.errors import BagError
from mbrl_ros.data.bag_metadata import (
    BagFile,
    BagTopic,
    custom_data,
    metadata_text,
    read_metadata,
    RECOVERED_KEY,
    replace_file,
    sync_folder,
)
from mbrl_ros.data.mcap_file import is_being_written, is_complete, salvage

SUFFIX = '.truncated'


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

    """

    bag: Path
    files: tuple[Path, ...]
    counts: dict[str, int]
    bytes_lost: int
    missing: dict[str, int]

    def describe(self) -> str:
        """Return one line about what was saved and lost."""
        if not self.files:
            return f'{self.bag}: complete, nothing to recover'
        lost = ', '.join(f'{count} on {topic}' for topic, count in self.missing.items())
        return (f'{self.bag}: {sum(self.counts.values())} messages recovered; '
                f'{self.bytes_lost} bytes unreadable; '
                f'{"messages lost since the last flush only" if not lost else f"lost: {lost}"}')


def recover(bag: Path | str) -> Recovery:
    """
    Rewrite the truncated MCAP files of a bag, and its metadata.yaml.

    Parameters
    ----------
    bag : Path
        Folder; a metadata.yaml is not needed.

    Raises
    ------
    BagError
        If there is no MCAP file, or it is being written right now.

    Notes
    -----
    Originals are kept with the suffix `.truncated`. A bag that is whole is left alone, so the
    verb can be repeated.

    """
    bag = Path(bag)
    files = sorted(bag.glob('*.mcap'), key=lambda file: (len(file.name), file.name))
    if not files:
        raise BagError(f'{bag}: no .mcap file to recover. For a sqlite3 bag try: '
                       f'ros2 bag reindex {bag}')
    metadata = read_metadata(bag)
    broken = [file for file in files if not is_complete(file)]
    if any(is_being_written(file) for file in files):
        raise BagError(f'{bag}: is still being recorded. Stop the recording first.')
    bytes_lost = sum(_rewrite(file) for file in broken)
    infos, topics, counts = _take_stock(files)
    flushed = {entry['topic_metadata']['name']: entry['message_count']
               for entry in (metadata or {}).get('topics_with_message_count', ())}
    missing = {topic: count - counts[topic] for topic, count in flushed.items()
               if count > counts[topic]}
    result = Recovery(bag, tuple(file.with_name(file.name + SUFFIX) for file in broken),
                      dict(counts), bytes_lost, missing)
    if broken or metadata is None:
        custom = custom_data(metadata)
        if broken:
            custom[RECOVERED_KEY] = {
                'text': result.describe().removeprefix(f'{bag}: '), 'bytes_lost': bytes_lost,
                'missing': missing, 'at': datetime.now(UTC).isoformat()}
        replace_file(bag / 'metadata.yaml', metadata_text(
            infos, [(topic, counts[topic.name]) for topic in topics], custom,
            str((metadata or {}).get('ros_distro') or '')))
    return result


def _rewrite(file: Path) -> int:
    """Replace a truncated file by what can be read of it; return the bytes that cannot."""
    new = file.with_name(file.name + '.new')
    lost = 0
    schemas: dict[int, int] = {}
    channels: dict[int, int] = {}
    with file.open('rb') as source, new.open('wb') as target:
        writer = Writer(target, compression=CompressionType.LZ4)
        writer.start(profile='ros2', library='mbrl_ros recover')
        for record, bytes_lost in salvage(source):
            lost += bytes_lost
            if isinstance(record, Schema) and record.id not in schemas:
                schemas[record.id] = writer.register_schema(record.name, record.encoding,
                                                            record.data)
            elif isinstance(record, Channel) and record.id not in channels:
                channels[record.id] = writer.register_channel(
                    record.topic, record.message_encoding, schemas.get(record.schema_id, 0),
                    record.metadata)
            elif isinstance(record, Message):
                if record.channel_id in channels:
                    writer.add_message(channels[record.channel_id], record.log_time, record.data,
                                       record.publish_time, record.sequence)
                else:  # the chunk that named its topic is gone
                    lost += len(record.data)
        writer.finish()
        target.flush()
        os.fsync(target.fileno())
    os.replace(file, file.with_name(file.name + SUFFIX))
    os.replace(new, file)
    sync_folder(file.parent)
    return lost


def _take_stock(files: list[Path]) -> tuple[list[BagFile], list[BagTopic], Counter[str]]:
    infos: list[BagFile] = []
    topics: dict[str, BagTopic] = {}
    counts: Counter[str] = Counter()
    for file in files:
        with file.open('rb') as stream:
            try:
                summary = make_reader(stream).get_summary()
            except McapError as error:
                raise BagError(f'{file}: cannot be read after all: {error}') from error
        if summary is None or summary.statistics is None:
            raise BagError(f'{file}: has no summary. Try: ros2 bag reindex {file.parent}')
        statistics = summary.statistics
        infos.append(BagFile(file.name, statistics.message_start_time,
                             statistics.message_end_time, statistics.message_count))
        for channel in summary.channels.values():
            counts[channel.topic] += statistics.channel_message_counts.get(channel.id, 0)
            schema = summary.schemas.get(channel.schema_id)
            topics.setdefault(channel.topic, BagTopic(
                channel.topic, schema.name if schema else '',
                channel.metadata.get('topic_type_hash', ''),
                tuple(yaml.safe_load(channel.metadata.get('offered_qos_profiles', '')) or ())))
    return infos, list(topics.values()), counts
