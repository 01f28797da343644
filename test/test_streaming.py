"""Bags are read as a stream: no number depends on where buffers end, and memory is bounded."""

from itertools import pairwise
import tracemalloc

from bag_factory import array, cdr, JOINT_STATE, joint_state, MS, tiny_robot, write_bag
from foreign_bags import FLOAT, make, observe
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mbrl_ros.core.errors import ObservationError
from mbrl_ros.core.field_reader import FieldReader
from mbrl_ros.core.robot import ObservationField
from mbrl_ros.data.bag_metadata import typestore
from mbrl_ros.data.bag_reader import header_stamp_ns
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.intake import Intake
from mbrl_ros.data.losses import Losses
from mbrl_ros.data.topic_reader import TopicReader

FIXED = settings(derandomize=True, deadline=None, max_examples=30)
NAN = float('nan')
ROBOT = tiny_robot(
    observation=[observe('x', 'a', JOINT_STATE, 'position[slider]'),
                 observe('v', 'a', JOINT_STATE, 'velocity[slider]', 'm/s', when_missing='derive'),
                 observe('yaw', 'b', 'sensor_msgs/msg/Imu', 'orientation.yaw', 'rad')],
    stale_after_s={'a': 0.5, 'b': 1.0}, reward=observe('r', 'reward', FLOAT, 'data', '1'),
    actuation_delay_steps=1)
# Columns of a row: x, v as reported, and the position that v may be derived from.
COLUMNS = {'a': 3, 'b': 1, 'commands': 1, 'reward': 1}


def episodes_of(messages, flush_messages, robot=ROBOT):
    """Return the episodes of (topic, stamp, row) in this order, and what was lost."""
    losses = Losses('bag')
    intake = Intake(robot, 'bag', losses, flush_messages)
    episodes = []
    for topic, stamp_ns, row in messages:
        if intake.jumps_back(topic, stamp_ns):
            losses.clock_jumps += 1
            episodes += intake.finish()
            intake = Intake(robot, 'bag', losses, flush_messages, before=intake)
        intake.add(topic, stamp_ns, row)
    return episodes + intake.finish(), losses


@st.composite
def recordings(draw):
    """Return messages of four topics with jitter, loss, doubles, disorder, NaN and resets."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    start, messages = 10**18, []
    for _ in range(draw(st.integers(1, 2))):
        part = []
        seconds = draw(st.sampled_from([2.0, 5.0, 12.0]))
        for topic, columns in COLUMNS.items():
            stamp = float(rng.uniform(0.0, 0.5))
            period = draw(st.sampled_from([0.02, 0.1, 0.13]))
            while stamp < seconds:
                stamp += period * rng.uniform(0.5, 1.5) if rng.random() < 0.98 \
                    else rng.uniform(0.0, 2.0)
                row = rng.normal(size=columns)
                if rng.random() < 0.1:
                    row[rng.integers(columns)] = NAN
                late = rng.choice([0.0, 0.05, 0.9, 1.5], p=[0.8, 0.1, 0.095, 0.005])
                part += [(stamp + late, topic, start + int(stamp * 1e9), row.tolist())
                         ] * (1 + (rng.random() < 0.05))
        messages += [message[1:] for message in sorted(part)]
        start -= draw(st.sampled_from([0, 1, 10**4])) * 10**9
    return messages


@FIXED
@given(messages=recordings(), flush_messages=st.integers(1, 400))
def test_no_number_depends_on_where_buffers_end(messages, flush_messages):
    whole, lost = episodes_of(messages, len(messages) + 1)
    found, lost_too = episodes_of(messages, flush_messages)
    assert len(found) == len(whole)
    for one, other in zip(found, whole, strict=True):
        assert one.start_ns == other.start_ns
        np.testing.assert_array_equal(one.states, other.states)
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.rewards, other.rewards)
    assert lost == lost_too


def steady(topic, seconds, value=0.0, period_ms=10):
    return [(topic, number * period_ms * MS, [value] * COLUMNS[topic])
            for number in range(round(seconds * 1000) // period_ms)]


PLAIN = tiny_robot(
    observation=[observe('x', 'a', JOINT_STATE, 'position[slider]'),
                 observe('yaw', 'b', 'sensor_msgs/msg/Imu', 'orientation.yaw', 'rad')],
    stale_after_s={'a': 0.5, 'b': 0.5})


@pytest.mark.parametrize('stuck', ['gone', 'the same stamp', 'commands gone'])
def test_a_topic_that_never_advances_is_not_waited_for(stuck):
    intake = Intake(PLAIN, 'bag', Losses('bag'))

    def send(first, last):
        for number in range(first, last):
            intake.add('a', number * MS, [1.0])
            if stuck != 'commands gone' or number == 0:
                intake.add('commands', number * MS, [0.5])
            if number == 0 or stuck == 'the same stamp':
                intake.add('b', 0, [2.0])
    send(0, 12_000)
    tracemalloc.start()
    send(12_000, 47_000)
    # 35,000 messages of 16 bytes are 560 kB; what is kept is the last second, and one buffer.
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 400_000
    assert [e.num_steps for e in intake.finish()] == []


def test_messages_late_to_another_topic_are_put_right_up_to_a_second():
    on_time = sorted([*steady('a', 4), *steady('b', 4), *steady('commands', 4)],
                     key=lambda m: m[1])
    late = sorted(on_time, key=lambda m: m[1] + 999 * MS * (m[0] == 'b'))
    assert [m[0] for m in late] != [m[0] for m in on_time]
    right, _ = episodes_of(on_time, 50, PLAIN)
    found, losses = episodes_of(late, 50, PLAIN)
    # 3.99 s at 10 Hz.
    assert [e.num_steps for e in found] == [e.num_steps for e in right] == [39]
    assert not losses.late
    # By more than a second: one of them is dropped and said, here a gap of 20 ms.
    index = next(i for i, m in enumerate(late) if m[0] == 'b' and m[1] == 2000 * MS)
    message = late.pop(index)
    late.insert(late.index(('a', 3100 * MS, [0.0] * 3)), message)
    found, losses = episodes_of(late, 50, PLAIN)
    assert [e.num_steps for e in found] == [39]
    assert losses.late == {'b': 1}
    assert '1 message on b dropped: stamped more than a second before' in losses.describe()[0]


def test_what_was_stamped_before_the_clock_was_set_back_is_left_over():
    old = sorted([*steady('a', 2), *steady('b', 2), *steady('commands', 2)], key=lambda m: m[1])
    old = [(topic, stamp + 100_000 * MS, row) for topic, stamp, row in old]
    new = sorted([*steady('a', 2), *steady('b', 2), *steady('commands', 2)], key=lambda m: m[1])
    # One command of before arrives after the first observation of after.
    found, losses = episodes_of([*old, new[0], ('commands', 101_995 * MS, [9.0]), *new[1:]], 70,
                                PLAIN)
    # 1.99 s at 10 Hz, each.
    assert [(e.start_ns, e.num_steps) for e in found] == [(100_000 * MS, 19), (0, 19)]
    assert losses.clock_jumps == 1
    assert losses.late == {'commands': 1}


def test_the_usual_period_is_that_of_the_first_seconds():
    # 5 Hz for a control rate of 10 Hz: no gaps. From 12 s on every other is lost: 0.4 s of
    # silence is more than 1.5 periods, however many of them there are.
    stamps = [*range(0, 12_000, 200), *range(12_000, 60_000, 400)]
    messages = [('a', stamp * MS, [1.0]) for stamp in stamps]
    messages += [(topic, stamp * MS, [0.0]) for stamp in range(0, 60_000, 100)
                 for topic in ('b', 'commands')]
    found, losses = episodes_of(sorted(messages, key=lambda m: m[1]), 10**6, PLAIN)
    # From 0 to the sample at 12.0 s.
    assert [e.num_steps for e in found] == [120]
    # 12.0 to 12.4 s and so on: between 121 samples.
    assert losses.gaps == 119


def labelled(tmp_path, labels, robot):
    """Load 0.5 s at 10 Hz with reward messages stamped at these milliseconds."""
    messages = [('commands', 0, array(0.1))]
    messages += [('joint_states', t * MS, joint_state(t * MS, [t], [0.0], ['slider']))
                 for t in range(0, 600, 100)]
    messages += [('reward', t * MS, make(FLOAT, data=value)) for t, value in labels]
    messages.sort(key=lambda m: m[1])
    return load_dataset([write_bag(tmp_path / 'bag', messages)], robot)


def test_a_label_is_the_last_one_within_its_step(tmp_path):
    # Steps end at 100 .. 500. 0 is before the first; 200 is at the end of the second; 201 and 250
    # are of the third, where 250 is later; nothing between 300 and 400; 500 is not a number.
    labels = [(0, 9.0), (60, 1.0), (200, 2.0), (201, 3.0), (250, 4.0), (500, NAN)]
    robot = tiny_robot(reward=observe('r', 'reward', FLOAT, 'data', '1'),
                       termination=observe('end', 'reward', FLOAT, 'data', '1'))
    dataset = labelled(tmp_path, labels, robot)
    episode, = dataset.episodes
    assert episode.states[:, 0].tolist() == [0.0, 100.0, 200.0, 300.0]
    assert episode.rewards.tolist() == [1.0, 2.0, 4.0]
    assert episode.terminations.tolist() == [1.0, 1.0, 1.0]
    assert dataset.losses[0].without_label == 2
    assert '2 transitions dropped without a reward or termination' in dataset.describe_losses()[0]


def test_labels_that_the_spec_does_not_name_change_nothing(tmp_path):
    dataset = labelled(tmp_path, [(60, 1.0)], tiny_robot())
    episode, = dataset.episodes
    assert (episode.num_steps, episode.rewards, episode.terminations) == (5, None, None)


# Reading messages: from their bytes, one at a time, and many at once.

FIELDS = [ObservationField.model_validate(observe(name, 'a', JOINT_STATE, path, 'rad', **more))
          for name, path, more in (('p', 'position[hinge]', {}), ('q', 'position[slider]', {}),
                                   ('e', 'effort[slider]', {}),
                                   ('v', 'velocity[hinge]', {'when_missing': 'derive'}))]


@FIXED
@given(seed=st.integers(0, 2**32 - 1), orders=st.lists(st.sampled_from(
    [('slider', 'hinge'), ('hinge', 'slider'), ('slider', 'lid', 'hinge')]), max_size=60),
    has_velocity=st.booleans())
def test_numbers_from_bytes_are_those_of_the_message(seed, orders, has_velocity):
    rng = np.random.default_rng(seed)
    reader = TopicReader(typestore(), JOINT_STATE, [FieldReader(FIELDS), FieldReader(FIELDS[:1])])
    plain = [FieldReader(FIELDS), FieldReader(FIELDS[:1])]
    for number, names in enumerate(orders):
        message = joint_state(10**18 + number, rng.normal(size=len(names)),
                              rng.normal(size=len(names)) if has_velocity else [], names)
        message.effort = rng.normal(size=len(names))
        message.effort[rng.integers(len(names))] = NAN
        stamp_ns, row = reader.read(cdr(message))
        assert stamp_ns == header_stamp_ns(message) == 10**18 + number
        np.testing.assert_array_equal(
            list(row), [value for one in plain for value in one.row(message)])


def test_a_message_that_lacks_a_joint_is_refused_whatever_was_before():
    reader = TopicReader(typestore(), JOINT_STATE, [FieldReader(FIELDS[:1])])
    for number in range(500):
        reader.read(cdr(joint_state(number, [1.0, 2.0], [])))
    with pytest.raises(ObservationError, match=r"no 'hinge' in this message; it names \['slid"):
        reader.read(cdr(joint_state(0, [1.0, 2.0], [], ('slider', 'henge'))))


def test_a_number_that_is_no_item_of_an_array_is_read_anew():
    # The size of the message and of the array stay; the field beside it changes.
    field = ObservationField.model_validate(observe('x', 'a', 'sensor_msgs/msg/LaserScan',
                                                    'range_max'))
    item = ObservationField.model_validate(observe('y', 'a', 'sensor_msgs/msg/LaserScan',
                                                   'ranges[1]'))
    reader = TopicReader(typestore(), 'sensor_msgs/msg/LaserScan', [FieldReader([field, item])])
    for number in range(500):
        message = make('sensor_msgs/msg/LaserScan', range_max=float(number // 100),
                       ranges=np.array([0.0, number, 0.0], np.float32))
        assert list(reader.read(cdr(message))[1]) == [float(number // 100), float(number)]


@FIXED
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_control_and_training_see_the_same_numbers(seed, cuts):
    rng = np.random.default_rng(seed)
    stamps = 10**18 + np.cumsum(rng.choice([10, 100, 700], 60)) * MS
    turns = FieldReader([field for field in ROBOT.observation if field.topic == 'b'], 0.5)
    joints = FieldReader([field for field in ROBOT.observation if field.topic == 'a'], 0.5)
    angles = Rotation.from_rotvec(
        np.cumsum(rng.uniform(-3.0, 3.0, 60))[:, None] * [0.0, 0.0, 1.0]).as_quat()
    messages = [(joint_state(0, [x], [v] if kind else [], ['slider']), make(
        'sensor_msgs/msg/Imu', orientation__z=z, orientation__w=w))
        for x, v, kind, (_, _, z, w) in zip(
            rng.normal(size=60), rng.choice([NAN, 1.5], 60), rng.random(60) < 0.5, angles,
            strict=True)]
    for which, reader in enumerate((joints, turns)):
        one_by_one = [reader.read(message[which], int(stamp))
                      for message, stamp in zip(messages, stamps, strict=True)]
        reader.forget()
        rows = np.array([reader.row(message[which]) for message in messages])
        edges = sorted({0, 60, *cuts})
        joined = [reader.join(stamps[a:b], rows[a:b]) for a, b in pairwise(edges)]
        np.testing.assert_array_equal(np.concatenate(joined), one_by_one)
