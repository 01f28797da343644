"""Bags that our logger did not write: the dataset equals the one computed by hand."""

from functools import cache

from bag_factory import array, JOINT_STATE, joint_state, MS, tiny_robot
from foreign_bags import (
    by_hand,
    LZ4,
    observe,
    PLAIN,
    Row,
    rows_of,
    SPEC,
    START,
    write_mcap,
    write_rosbags,
    write_sqlite,
)
from mcap.writer import IndexType
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2.enums import CompressionMode
from rosbags.typesys import get_typestore, Stores

from mbrl_ros.core.errors import BagError
from mbrl_ros.data.dataset import load_dataset


@cache
def recorded():
    rows = rows_of()
    return rows, by_hand(rows)


def in_blocks(rows, size=200):
    return [rows[start:start + size] for start in range(0, len(rows), size)]


def flat(blocks):
    return [row for block in blocks for row in block]


def shuffled(blocks):
    return [blocks[index] for index in np.random.default_rng(3).permutation(len(blocks))]


def by_topic(rows):
    return sorted(rows, key=lambda row: row.topic)


FORMS = {
    **{f'rosbags {plugin.name} {mode.name}': lambda folder, rows, plugin=plugin, mode=mode:
       write_rosbags(folder, rows, plugin, mode)
       for plugin in StoragePlugin for mode in CompressionMode
       if (plugin, mode) != (StoragePlugin.SQLITE3, CompressionMode.STORAGE)},
    'lz4 chunks': lambda f, rows: write_mcap(f, [rows], chunk_size=20_000, **LZ4),
    'no chunks': lambda f, rows: write_mcap(f, [rows], use_chunking=False, **PLAIN),
    'no index': lambda f, rows: write_mcap(
        f, [rows], chunk_size=20_000, index_types=IndexType.NONE, use_statistics=False,
        use_summary_offsets=False, repeat_channels=False, repeat_schemas=False, **LZ4),
    'no chunks, no index, out of order': lambda f, rows: write_mcap(
        f, [flat(shuffled(in_blocks(rows)))], use_chunking=False, index_types=IndexType.NONE,
        **PLAIN),
    'chunks out of order': lambda f, rows: write_mcap(
        f, [flat(shuffled(in_blocks(rows)))], chunk_size=1000, **LZ4),
    'chunks overlap': lambda f, rows: write_mcap(
        f, [flat([*block[::2], None, *block[1::2], None] for block in in_blocks(rows, 600))],
        **LZ4),
    'topic after topic': lambda f, rows: write_mcap(f, [by_topic(rows)], chunk_size=20_000, **LZ4),
    'split': lambda f, rows: write_mcap(f, in_blocks(rows, 700), **LZ4),
    'split, listed in another order': lambda f, rows: write_mcap(
        f, shuffled(in_blocks(rows, 700)), **LZ4),
    'split with overlap': lambda f, rows: write_mcap(f, [rows[::2], rows[1::2]],
                                                     chunk_size=20_000, **LZ4),
    'split by topic': lambda f, rows: write_mcap(
        f, [[r for r in rows if r.topic < 'k'], [r for r in rows if r.topic > 'k']], **PLAIN),
    'Humble sqlite3, split': lambda f, rows: write_sqlite(f, in_blocks(rows, 900)),
    'sqlite3, topic after topic, two files': lambda f, rows: write_sqlite(
        f, [by_topic(rows)[::2], by_topic(rows)[1::2]], 'jazzy'),
}


@pytest.mark.parametrize('form', FORMS)
def test_the_dataset_is_the_one_computed_by_hand(tmp_path, form):
    rows, expected = recorded()
    dataset = load_dataset([FORMS[form](tmp_path / 'bag', rows)], SPEC)
    # Losses of 3 % of seven topics split it again and again.
    assert len(dataset.episodes) == len(expected) > 3
    for episode, (start, states, actions, rewards, overs) in zip(
            dataset.episodes, expected, strict=True):
        assert episode.start_ns == start
        found = episode.states.copy()
        # The thread of the yaw starts in -pi..pi: whole turns off.
        found[:, 4] += 2 * np.pi * np.round((np.array(states)[:, 4] - found[:, 4]) / (2 * np.pi))
        np.testing.assert_allclose(found, states, rtol=0.0, atol=1e-9)
        np.testing.assert_allclose(np.diff(episode.states[:, 4]), np.diff(np.array(states)[:, 4]),
                                   rtol=0.0, atol=1e-9)
        np.testing.assert_array_equal(episode.actions, actions)
        np.testing.assert_array_equal(episode.rewards, rewards)
        np.testing.assert_array_equal(episode.terminations, overs)
    assert not dataset.losses[0].late
    assert dataset.losses[0].clock_jumps == 0
    assert dataset.losses[0].without_label > 0


def small(stamp_ms, x, log_ms=None):
    """Return a joint state of bag_factory.tiny_robot."""
    stamp = START + stamp_ms * MS
    return Row(stamp if log_ms is None else START + log_ms * MS, 'joint_states', stamp,
               joint_state(stamp, [x], [0.0], ['slider']), (x,))


def command(log_ms, u):
    return Row(START + log_ms * MS, 'commands', 0, array(u), (u,))


def contents(dataset):
    return [(e.states[:, 0].tolist(), e.actions[:, 0].tolist()) for e in dataset.episodes]


@pytest.mark.parametrize(('publish_ns', 'expected'), [
    # Recorded 80 ms after it was sent, the second command would act a step too late.
    (lambda row: row.log_ns - 80 * MS, [0.1, 0.2, 0.2]),
    # Published by another clock: the time of recording is what there is.
    (lambda row: row.log_ns - 10**18, [0.1, 0.1, 0.2]),
    (lambda row: 0, [0.1, 0.1, 0.2])])
def test_without_a_header_the_publish_time_counts(tmp_path, publish_ns, expected):
    rows = [command(80, 0.1), *(small(100 * n, float(n), 100 * n + 80) for n in range(1, 5)),
            command(260, 0.2)]
    rows.sort(key=lambda row: row.log_ns)
    bag = write_mcap(tmp_path / 'bag', [rows], publish_ns=publish_ns, **LZ4)
    assert contents(load_dataset([bag], tiny_robot())) == [([1.0, 2.0, 3.0, 4.0], expected)]


@pytest.mark.parametrize('write', [
    lambda f, rows: write_mcap(f, [rows], **LZ4),
    lambda f, rows: write_mcap(f, [rows], use_chunking=False, **PLAIN),
    lambda f, rows: write_mcap(f, [[*rows[:9], None, *rows[9:35], None, *rows[35:]]], **LZ4),
    lambda f, rows: write_mcap(f, [rows[:35], rows[35:]], **LZ4),
    lambda f, rows: write_sqlite(f, [rows]),
    lambda f, rows: write_sqlite(f, [rows[:35], rows[35:]])],
    ids=['mcap', 'no chunks', 'chunks', 'split mcap', 'sqlite3', 'split sqlite3'])
def test_a_clock_that_is_set_back_splits_in_every_storage(tmp_path, write):
    # 5.0 to 6.4 s, then the recorder's simulated clock begins at 4.2 s again, and runs over it.
    rows = [row for begin, number in ((5000, 15), (4200, 30)) for n in range(number)
            for row in (command(begin + 100 * n, begin / 1e4),
                        small(begin + 100 * n, begin + n))]
    dataset = load_dataset([write(tmp_path / 'bag', rows)], tiny_robot())
    assert contents(dataset) == [
        ([5000.0 + n for n in range(15)], [0.5] * 14),
        ([4200.0 + n for n in range(30)], [0.42] * 29)]
    assert dataset.losses[0].clock_jumps == 1


@pytest.mark.parametrize('distro', ['humble', 'iron', 'jazzy', 'kilted', 'lyrical', 'unheard of'])
def test_a_bag_without_definitions_is_read_as_its_distribution_wrote_it(tmp_path, distro):
    # From Iron on, a Range ends with a variance that Humble's does not have.
    kind = 'sensor_msgs/msg/Range'
    name = 'KILTED' if ' ' in distro else distro.upper()
    store = get_typestore(getattr(Stores, f'ROS2_{name}'))
    variance = () if distro == 'humble' else (0.5,)
    rows = [command(0, 0.1)]
    for n in range(3):
        header = store.types['std_msgs/msg/Header'](
            store.types['builtin_interfaces/msg/Time'](START // 10**9, n * 100 * MS), '')
        message = store.types[kind](header, 0, 1.0, 2.0, 3.0, float(n), *variance)
        rows.append(Row(START + n * 100 * MS, 'range', 0, message, ()))
    robot = tiny_robot(observation=[observe('x', 'range', kind, 'range')],
                       stale_after_s={'range': 0.25})
    bags = [write_sqlite(tmp_path / 'told', [rows], distro, store)]
    if distro == 'humble':
        bags.append(write_sqlite(tmp_path / 'by version', [rows], None, store))
    for bag in bags:
        assert contents(load_dataset([bag], robot)) == [([0.0, 1.0, 2.0], [0.1, 0.1])]


def test_a_type_that_the_bag_does_not_define_is_looked_up_or_refused_in_words(tmp_path):
    rows = [command(0, 0.1), small(0, 1.0), small(100, 2.0)]
    defined = write_mcap(tmp_path / 'part', [rows], undefined=[JOINT_STATE], **LZ4)
    assert contents(load_dataset([defined], tiny_robot())) == [([1.0, 2.0], [0.1])]
    kind = 'my_msgs/msg/State'
    robot = tiny_robot(observation=[observe('x', 'joint_states', kind, 'position[slider]')])
    bag = write_sqlite(tmp_path / 'own', [rows], rename={JOINT_STATE: kind})
    with pytest.raises(BagError, match='brings no definition of my_msgs/msg/State, and'):
        load_dataset([bag], robot)
