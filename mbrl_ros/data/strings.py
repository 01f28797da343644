"""Texts on a topic of a bag: std_msgs/String."""

from pathlib import Path
from typing import Any

from mbrl_ros.core.errors import BagError
from mbrl_ros.data.bag_reader import check_bag, find_topic
from mbrl_ros.data.bag_storage import open_bag, stored_messages

STRING = 'std_msgs/msg/String'


def read_strings(path: Path, topic: str, namespace: str, advice: str) -> list[tuple[float, str]]:
    """
    Read every text of a topic; at least one.

    Parameters
    ----------
    path : Path
        rosbag2 folder.
    topic, namespace : str
        Name of the topic, and the ROS namespace under which it was recorded.
    advice : str
        How to get such texts recorded, for whoever has none.

    Returns
    -------
    list of (float, str)
        Seconds since the start of the bag, as rosbag2's tools count them, and the text.

    Raises
    ------
    BagError
        If the bag cannot be read, or has no text on such a topic.

    """
    check_bag(path)
    with open_bag(path) as reader:
        known = {connection.topic: connection for connection in reader.connections}
        try:
            found = known[find_topic(topic, namespace, known, path)]
        except BagError as error:
            raise BagError(f'{error} {advice}') from error
        if found.msgtype != STRING:
            raise BagError(f"{path}: topic '{found.topic}' is {found.msgtype}; expected "
                           f'{STRING}')
        texts = []
        for stored in stored_messages(reader, [found]):
            message: Any = reader.deserialize(stored.raw, STRING)
            texts.append(((stored.log_time_ns - reader.start_time) * 1e-9, message.data))
        if not texts:
            raise BagError(f"{path}: nothing on topic '{found.topic}'. {advice}")
        return texts
