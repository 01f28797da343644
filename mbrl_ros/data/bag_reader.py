"""A bag and the topics of a robot in it."""

from collections.abc import Callable, Mapping
import json
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data import mcap_file
from mbrl_ros.data.bag_metadata import read_metadata, untold_originals

# Of a bag: (its path, messages read, messages in all).
Progress = Callable[[str, int, int], None]
PROGRESS_MESSAGES = 500


def check_bag(path: Path) -> None:
    """
    Check that a bag is there, and whole.

    Raises
    ------
    BagError
        If there is no bag at the path, or its recording was cut short.

    """
    if not path.is_dir():
        found = 'is a file' if path.is_file() else 'does not exist'
        raise BagError(f'no bag at {path}: it {found}. A bag is a folder with a metadata.yaml.')
    files = sorted(path.glob('*.mcap'))
    for file in files:
        if not mcap_file.is_complete(file):
            if mcap_file.is_being_written(file):
                raise BagError(f'{path}: is still being recorded. Stop the recording first: '
                               'ros2 service call /data_logger/record std_srvs/srv/SetBool')
            raise BagError(f'{path}: {file.name} is truncated: its recording did not end '
                           f'properly. Try: mbrl-ros bag recover {path}')
    metadata = read_metadata(path)
    if untold_originals(path, metadata):
        raise BagError(f'{path}: its recovery was cut short. Try: mbrl-ros bag recover {path}')
    if metadata is None:
        if files:
            raise BagError(f'{path}: no readable metadata.yaml. Try: mbrl-ros bag recover {path}')
        hint = f'Try: ros2 bag reindex {path}' if any(path.glob('*.db3*')) \
            else 'A bag is a folder with a metadata.yaml.'
        raise BagError(f'no bag at {path}: the folder has no readable metadata.yaml. {hint}')


def find_topic(name: str, namespace: str, known: Mapping[str, Any], bag: Path) -> str:
    """
    Return the bag's name for a topic of the robot spec.

    Raises
    ------
    BagError
        If the bag has no such topic; the text lists those it has.

    """
    absolute = name.startswith('/')
    prefix = namespace.strip('/')
    wanted = name if absolute or not prefix else f'{prefix}/{name}'
    for candidate in (wanted, '/' + wanted):
        if candidate in known:
            return candidate
    hints = [topic.removesuffix('/' + name) for topic in known if topic.endswith('/' + name)]
    hint = f' Recorded under a namespace? Try: --namespace {hints[0]}' if hints else ''
    raise BagError(f"{bag}: no topic '{wanted}'. The bag has: "
                   f'{", ".join(sorted(known)) or "no topic at all"}.{hint}')


def robot_topics(robot: RobotSpec) -> dict[str, str]:
    """Return each topic that training reads and its message type."""
    return {**robot.observation_topics(), **robot.action_topics(), **robot.label_topics()}


def locate(known: Mapping[str, Connection], path: Path, robot: RobotSpec,
           namespace: str) -> dict[str, str]:
    """
    Map the bag's names of the robot's topics to those of the robot spec.

    Raises
    ------
    BagError
        If the bag lacks a topic or has another type of messages on it.

    """
    names: dict[str, str] = {}
    for topic, type_name in robot_topics(robot).items():
        found = known[find_topic(topic, namespace, known, path)]
        if found.msgtype != type_name:
            raise BagError(f"{path}: topic '{found.topic}' is {found.msgtype}; robot "
                           f"'{robot.name}' expects {type_name}")
        names[found.topic] = topic
    return names


def parse_mark(text: str) -> dict[str, Any]:
    """Return the content of an episode mark, empty if it is not one."""
    try:
        mark = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return mark if isinstance(mark, dict) else {}


def header_stamp_ns(message: Any) -> int:
    """Return the header stamp of a message [ns], zero where there is none."""
    header = getattr(message, 'header', None)
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec if header is not None else 0
