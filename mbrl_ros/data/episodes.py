"""From a bag to episodes at the fixed dt of a robot, and what the bag lost on the way."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader

from mbrl_ros.core.errors import BagError, ObservationError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.bag_metadata import (
    COUNTS_KEY,
    custom_data,
    EPISODE_TOPIC,
    read_metadata,
    RECOVERED_KEY,
)
from mbrl_ros.data.bag_reader import (
    check_bag,
    locate,
    parse_mark,
    Progress,
    PROGRESS_MESSAGES,
)
from mbrl_ros.data.bag_storage import open_bag, receive_stamp_ns, stored_count, stored_messages
from mbrl_ros.data.intake import field_readers, FLUSH_MESSAGES, Intake
from mbrl_ros.data.losses import Losses
from mbrl_ros.data.resample import Episode
from mbrl_ros.data.topic_reader import TopicReader


def read_episodes(path: Path | str, robot: RobotSpec, namespace: str = '',
                  progress: Progress | None = None, flush_messages: int = FLUSH_MESSAGES
                  ) -> tuple[list[Episode], Losses]:
    """
    Read the episodes of a robot from a bag.

    Memory holds the episodes, a few thousand messages and the chunks of the bag that overlap,
    however long the bag is.

    Parameters
    ----------
    path : Path
        Folder with a metadata.yaml.
    robot : RobotSpec
        Says which topics, and where in their messages.
    namespace : str
        ROS namespace under which the robot was recorded.
    progress : callable, optional
        Called now and then with the path, the messages read and their number.
    flush_messages : int
        Messages that are buffered; it changes no number.

    Returns
    -------
    episodes : list of Episode
        In recording order; none shorter than one transition.
    losses : Losses
        What was dropped.

    Raises
    ------
    BagError
        If the bag cannot be read, lacks a topic, a joint or every value of a field.

    Notes
    -----
    The stamp of a message is that of its header; without one, its publish time; where the bag
    has none (sqlite3), or one of another clock, the time it was recorded.

    """
    path = Path(path)
    check_bag(path)
    custom = custom_data(read_metadata(path))
    losses = Losses(str(path))
    losses.recorder_lost = {topic: counts['lost'] for topic, counts
                            in custom.get(COUNTS_KEY, {}).items() if counts['lost']}
    losses.recovered = custom.get(RECOVERED_KEY, {}).get('text', '')
    begin = partial(Intake, robot, losses=losses, flush_messages=flush_messages)
    with open_bag(path) as reader:
        episodes = list(_episodes(reader, path, robot, namespace, begin, progress))
    losses.check_observed(robot.observation)
    losses.find_sparse(sum(episode.num_steps for episode in episodes))
    return episodes, losses


def _episodes(reader: AnyReader, path: Path, robot: RobotSpec, namespace: str,
              begin: 'partial[Intake]', progress: Progress | None) -> Iterator[Episode]:
    losses: Losses = begin.keywords['losses']
    known = {connection.topic: connection for connection in reader.connections}
    names = locate(known, path, robot, namespace)
    marks = [name for name in known if name.strip('/') == f'{namespace}/{EPISODE_TOPIC}'.strip('/')
             and known[name].msgtype == 'std_msgs/msg/String' and stored_count(reader, name)]
    types = {name: known[name].msgtype for name in (*names, *marks)}
    total = sum(known[name].msgcount for name in types)
    unknown = {kind for kind in types.values() if kind not in reader.typestore.fielddefs}
    if unknown:
        raise BagError(f'{path}: brings no definition of {", ".join(sorted(unknown))}, and it is '
                       'not of a ROS desktop install. Try: ros2 bag convert, to MCAP')
    roles = field_readers(robot)
    readers = {name: TopicReader(reader.typestore, types[name],
                                 [role[topic] for role in roles if topic in role])
               for name, topic in names.items()}
    # Without marks the whole bag is one episode; with marks, only what lies between them.
    intake = None if marks else begin(source=str(path))
    number = -1
    for number, stored in enumerate(stored_messages(reader, [known[name] for name in types])):
        if progress is not None and number % PROGRESS_MESSAGES == 0:
            progress(str(path), number, total)
        if stored.topic in marks:
            # A mark splits by its place in the bag, not by its stamp: headers and marks may be
            # stamped by two clocks, and a paused robot's last stamp equals the mark's.
            yield from intake.finish() if intake is not None else ()
            message: Any = reader.deserialize(stored.raw, types[stored.topic])
            mark = parse_mark(message.data)
            intake = begin(source=f'{path}: episode {mark.get("episode")}') \
                if mark.get('event') == 'start' else None
            continue
        topic = names[stored.topic]
        if intake is None:
            losses.outside_episodes += topic in robot.stale_after_s
            continue
        try:
            stamp_ns, row = readers[stored.topic].read(stored.raw)
        except ObservationError as error:
            raise BagError(f"{path}: topic '{stored.topic}', recorded at "
                           f'{stored.log_time_ns / 1e9:.3f} s: {error}. '
                           f'Try: mbrl-ros bag info {path}') from error
        stamp_ns = stamp_ns or receive_stamp_ns(stored)
        if intake.jumps_back(topic, stamp_ns):
            losses.clock_jumps += 1
            yield from intake.finish()
            intake = begin(source=intake.source, before=intake)
        intake.add(topic, stamp_ns, row)
    yield from intake.finish() if intake is not None else ()
    losses.miscounted = (total, number + 1) if total != number + 1 else None
    if progress is not None:
        progress(str(path), total, total)
