"""The metadata.yaml of a rosbag2 folder, and the message definitions that go into its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
import json
import os
from pathlib import Path
from typing import Any

from rosbags.typesys import get_typestore, Stores
from rosbags.typesys.store import Typestore
import yaml

from mbrl_ros.core.errors import BagError

METADATA_VERSION = 9
EPISODE_TOPIC = 'episode'
# Keys of ours in custom_data: what the recorder counted, and what a recovery could not save.
COUNTS_KEY = 'mbrl_ros_counts'
RECOVERED_KEY = 'mbrl_ros_recovered'

Qos = Mapping[str, Any]


@dataclass(frozen=True)
class BagTopic:
    """What metadata.yaml says of one topic; `qos` holds the publishers' offered profiles."""

    name: str
    type: str
    type_hash: str
    qos: tuple[Qos, ...] = ()


@dataclass(frozen=True)
class BagFile:
    """What metadata.yaml says of one storage file; times are log times."""

    name: str
    start_ns: int
    end_ns: int
    messages: int


@cache
def typestore() -> Typestore:
    """Return the message types that bags are written with, and read with if they bring none."""
    return get_typestore(Stores.ROS2_KILTED)


def message_definition(type_name: str) -> tuple[str, str]:
    """
    Return the ros2msg definition of a type, its dependencies included, and its RIHS01 hash.

    Raises
    ------
    BagError
        If the type is not one of the ROS distribution.

    """
    store = typestore()
    if type_name not in store.fielddefs:
        raise BagError(f"message type '{type_name}' is not known, so it cannot be recorded. "
                       'Known are the message packages of a ROS desktop install.')
    return store.generate_msgdef(type_name, ros_version=2)[0], store.hash_rihs01(type_name)


def qos_text(qos: Sequence[Qos]) -> str:
    """Return offered QoS profiles as the YAML text that an MCAP channel carries."""
    return yaml.safe_dump([dict(profile) for profile in qos], sort_keys=False) if qos else ''


def metadata_text(files: Sequence[BagFile], topics: Sequence[tuple[BagTopic, int]],
                  custom: Mapping[str, Any], ros_distro: str) -> str:
    """
    Return the text of metadata.yaml.

    Parameters
    ----------
    files : sequence of BagFile
        In recording order.
    topics : sequence of (BagTopic, int)
        Each topic and its number of messages.
    custom : mapping of str to object
        Values of ours; written as JSON text, since rosbag2 allows only strings.
    ros_distro : str
        Name of the ROS distribution that recorded, or ''.

    """
    filled = [file for file in files if file.messages]
    start = min((file.start_ns for file in filled), default=0)
    end = max((file.end_ns for file in filled), default=0)
    return yaml.safe_dump({'rosbag2_bagfile_information': {
        'version': METADATA_VERSION,
        'storage_identifier': 'mcap',
        'duration': {'nanoseconds': end - start},
        'starting_time': {'nanoseconds_since_epoch': start},
        'message_count': sum(file.messages for file in files),
        'topics_with_message_count': [{
            'topic_metadata': {
                'name': topic.name, 'type': topic.type, 'serialization_format': 'cdr',
                'offered_qos_profiles': [dict(profile) for profile in topic.qos],
                'type_description_hash': topic.type_hash},
            'message_count': count} for topic, count in topics],
        'compression_format': '',
        'compression_mode': '',
        'relative_file_paths': [file.name for file in files],
        'files': [{
            'path': file.name,
            'starting_time': {'nanoseconds_since_epoch': file.start_ns},
            'duration': {'nanoseconds': file.end_ns - file.start_ns},
            'message_count': file.messages} for file in files],
        'custom_data': {key: json.dumps(value) for key, value in custom.items()},
        'ros_distro': ros_distro,
    }}, sort_keys=False)


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """Return what metadata.yaml holds, None without a readable one."""
    try:
        content = yaml.safe_load((folder / 'metadata.yaml').read_text())
        information = content['rosbag2_bagfile_information']
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    return information if isinstance(information, dict) else None


def custom_data(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the values of ours in custom_data, decoded; what others wrote stays as text."""
    values: dict[str, Any] = dict((metadata or {}).get('custom_data') or {})
    for key in (COUNTS_KEY, RECOVERED_KEY):
        if key in values:
            values[key] = json.loads(values[key])
    return values


def replace_file(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a power cut, finds either the old or the new text."""
    new = path.with_name(path.name + '.new')
    with new.open('w') as stream:
        stream.write(text)
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
