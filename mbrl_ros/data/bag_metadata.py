"""The metadata.yaml of a rosbag2 folder, and the message definitions that go into its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
import json
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Json,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)
from rosbags.typesys import get_typestore, Stores
from rosbags.typesys.store import Typestore
import yaml

from mbrl_ros.core.errors import BagError

METADATA_VERSION = 9
MAX_METADATA_BYTES = 4 * 1024**2  # a bag of a thousand files and topics has half a megabyte
MAX_NAME_BYTES = 256  # file systems take one less
EPISODE_TOPIC = 'episode'
# Keys of ours in custom_data: what the recorder counted, and what a recovery could not save.
COUNTS_KEY = 'mbrl_ros_counts'
RECOVERED_KEY = 'mbrl_ros_recovered'
# What a recovery appends to the name of an original, which it keeps.
ORIGINAL_SUFFIX = '.truncated'

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
def typestore(ros_distro: str = '') -> Typestore:
    """
    Return the message types of a ROS distribution, Kilted's if it is not known.

    Bags are written with Kilted's, and read with those of the distribution that recorded them
    unless they bring their own.
    """
    return get_typestore(getattr(Stores, f'ROS2_{ros_distro.upper()}', Stores.ROS2_KILTED))


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
                  custom: Mapping[str, Any], ros_distro: str,
                  message_compression: str = '') -> str:
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
    message_compression : str
        What each message is compressed with by itself, '' if it is not.

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
        'compression_format': message_compression,
        'compression_mode': 'message' if message_compression else '',
        'relative_file_paths': [file.name for file in files],
        'files': [{
            'path': file.name,
            'starting_time': {'nanoseconds_since_epoch': file.start_ns},
            'duration': {'nanoseconds': file.end_ns - file.start_ns},
            'message_count': file.messages} for file in files],
        'custom_data': {key: json.dumps(value) for key, value in custom.items()},
        'ros_distro': ros_distro,
    }}, sort_keys=False)


def _printed(text: str) -> str:
    if not text.isprintable():
        raise ValueError('characters that cannot be printed')
    return text


# Names are shown on terminals, which obey control characters.
_Printed = Annotated[str, AfterValidator(_printed)]


class _Strict(BaseModel):
    """A value of metadata.yaml; only the keys that every version has are looked at."""

    model_config = ConfigDict(strict=True)


class _TopicMetadata(_Strict):
    name: _Printed
    type: _Printed
    serialization_format: str


class _TopicCount(_Strict):
    topic_metadata: _TopicMetadata
    message_count: NonNegativeInt


class _Duration(_Strict):
    nanoseconds: int


class _StartingTime(_Strict):
    nanoseconds_since_epoch: int


class _Information(_Strict):
    version: int
    storage_identifier: Literal['mcap', 'sqlite3']
    relative_file_paths: list[_Printed]
    duration: _Duration
    starting_time: _StartingTime
    message_count: NonNegativeInt
    topics_with_message_count: list[_TopicCount]
    compression_format: Literal['', 'zstd'] | None = ''
    compression_mode: str | None = ''
    # Of rosbag2, all values are text; yaml-cpp writes the text '42' without quotes.
    custom_data: dict[str, str | int | float | bool | None] | None = None
    ros_distro: _Printed | None = ''


class _Recovered(BaseModel):
    """As far as it is read: one line on what was recovered, and the files that were."""

    model_config = ConfigDict(extra='allow')

    text: str = ''
    files: list[str] = []


_OWN_VALUES: Mapping[str, TypeAdapter[Any]] = {
    COUNTS_KEY: TypeAdapter(Json[dict[str, dict[Literal['received', 'written', 'lost'], int]]]),
    RECOVERED_KEY: TypeAdapter(Json[_Recovered])}


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """
    Return what metadata.yaml holds, None without a readable one.

    Raises
    ------
    BagError
        If it is YAML, but not what rosbag2 writes.

    """
    path = folder / 'metadata.yaml'
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise BagError(f'{path}: {path.stat().st_size} bytes are not the metadata of a bag; '
                           f'at most {MAX_METADATA_BYTES} are read.')
        information, wrong = _parse(path.read_text('utf-8'))
    except (OSError, ValueError):
        return None
    if wrong:
        raise BagError(f'{path}: {wrong}. Try: mbrl-ros bag recover {folder}, or '
                       f'ros2 bag reindex {folder}')
    return information


@lru_cache(maxsize=8)
def _parse(text: str) -> tuple[dict[str, Any] | None, str]:
    """Return the information in a metadata.yaml, if any, and what is wrong with it."""
    try:
        information = yaml.safe_load(text)['rosbag2_bagfile_information']
    except (yaml.YAMLError, ValueError, KeyError, TypeError, IndexError,
            RecursionError):  # what PyYAML makes of text that is no YAML
        return None, ''
    if not isinstance(information, dict):
        return None, ''
    try:
        _Information.model_validate(information)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        where = '.'.join(str(part)[:40] for part in first['loc'])
        return None, f'{where}: {first["msg"]}'
    return information, ''


def storage_files(folder: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """
    Return the storage files that metadata.yaml names, in recording order.

    Only their names count, as in any reader of rosbag2: nothing outside the folder is a bag's.

    Raises
    ------
    BagError
        If one is not there, or named twice.

    """
    names = [PurePath(name).name for name in metadata['relative_file_paths']]
    files = [folder / name for name in names]
    missing = [str(file) for file, name in zip(files, names, strict=True)
               if not 0 < len(name.encode()) < MAX_NAME_BYTES or not file.is_file()]
    if missing or len(set(names)) < len(names):
        raise BagError(f'{folder}: metadata.yaml names files that are missing or named twice: '
                       f'{", ".join(missing or names)[:500]}. Was the bag copied as a whole?')
    return files


def custom_data(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    Return the values of ours in custom_data, decoded; what others wrote stays as text.

    Raises
    ------
    BagError
        If a value of ours is not what the data logger or a recovery writes.

    """
    values: dict[str, Any] = dict((metadata or {}).get('custom_data') or {})
    for key, adapter in _OWN_VALUES.items():
        if key in values:
            try:
                values[key] = adapter.dump_python(adapter.validate_python(values[key]))
            except ValidationError as error:
                raise BagError(f"metadata.yaml: custom_data: '{key}' is not what mbrl_ros writes: "
                               'the file was changed. Delete that line to read the bag without '
                               'it.') from error
    return values


def untold_originals(folder: Path, metadata: Mapping[str, Any] | None) -> set[str]:
    """Return the files that a recovery began to repair, and of which metadata.yaml lacks it."""
    told = custom_data(metadata).get(RECOVERED_KEY, {}).get('files', ())
    return {path.name.removesuffix(ORIGINAL_SUFFIX)
            for path in folder.glob(f'*.mcap{ORIGINAL_SUFFIX}')} - set(told)
