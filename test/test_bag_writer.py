"""The bag survives: valid at any time, readable by rosbags, recovered after kill -9."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from bag_factory import ARRAY, array, cdr, JOINT_STATE, joint_state, RELIABLE, write_bag
import pytest
from rosbags.highlevel import AnyReader
import yaml

from mbrl_ros.core.errors import BagError
from mbrl_ros.data.bag_metadata import custom_data, read_metadata, typestore
from mbrl_ros.data.bag_reader import check_bag
from mbrl_ros.data.bag_writer import BagWriter
from mbrl_ros.data.mcap_file import messages
from mbrl_ros.data.recover import recover


def read_all(bag):
    with AnyReader([bag]) as reader:
        return [(connection.topic, time_ns, reader.deserialize(raw, connection.msgtype))
                for connection, time_ns, raw in reader.messages()]


def test_what_is_written_is_read_back(tmp_path):
    bag = write_bag(tmp_path / 'bag', [
        ('joint_states', 100, joint_state(7, [1.0, 2.0], [3.0, 4.0])),
        ('commands', 200, array(0.5))])
    read = read_all(bag)
    assert [(topic, time_ns) for topic, time_ns, _ in read] == [
        ('/joint_states', 100), ('/commands', 200)]
    assert read[0][2].position.tolist() == [1.0, 2.0]
    assert read[1][2].data.tolist() == [0.5]


def test_log_and_publish_time_are_kept_apart(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/commands', ARRAY)
        writer.write('/commands', cdr(array(1.0)), 30, 10)
    stored = next(messages(tmp_path / 'bag' / 'bag_0.mcap'))
    assert (stored.log_time_ns, stored.publish_time_ns) == (30, 10)


def test_metadata_names_types_hashes_qos_and_times(tmp_path):
    bag = write_bag(tmp_path / 'bag', [('commands', 1000, array(1.0)),
                                       ('commands', 1500, array(2.0))])
    metadata = read_metadata(bag)
    assert metadata['starting_time'] == {'nanoseconds_since_epoch': 1000}
    assert metadata['duration'] == {'nanoseconds': 500}
    assert metadata['relative_file_paths'] == ['bag_0.mcap']
    topic = metadata['topics_with_message_count'][0]
    assert topic['message_count'] == 2
    assert topic['topic_metadata']['type'] == ARRAY
    assert topic['topic_metadata']['type_description_hash'].startswith('RIHS01_')
    assert topic['topic_metadata']['offered_qos_profiles'] == [RELIABLE]
    counts = custom_data(metadata)['mbrl_ros_counts']
    assert counts == {'/commands': {'received': 2, 'written': 2, 'lost': 0}}


def test_metadata_is_valid_from_the_start_and_at_any_time(tmp_path):
    with BagWriter(tmp_path / 'bag', flush_period_s=0.01) as writer:
        assert read_metadata(tmp_path / 'bag')['message_count'] == 0
        writer.add_topic('/commands', ARRAY)
        raw, seen = cdr(array(1.0)), set()
        for number in range(300):
            writer.write('/commands', raw, number, number)
            content = yaml.safe_load((tmp_path / 'bag' / 'metadata.yaml').read_text())
            seen.add(content['rosbag2_bagfile_information']['message_count'])
            time.sleep(0.001)
    assert len(seen) > 2  # replaced while it was read
    assert len(read_all(tmp_path / 'bag')) == 300


def test_a_topic_without_messages_is_listed_and_the_bag_opens(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/joint_states', JOINT_STATE)
    assert read_metadata(tmp_path / 'bag')['topics_with_message_count'][0]['message_count'] == 0
    with AnyReader([tmp_path / 'bag'], default_typestore=typestore()) as reader:
        assert [connection.topic for connection in reader.connections] == ['/joint_states']


def test_existing_folder_is_refused(tmp_path):
    with pytest.raises(BagError, match='exists already'):
        BagWriter(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(BagError, match='cannot write a bag at'):
        BagWriter(tmp_path / 'file' / 'bag')


def test_unknown_message_type_is_refused(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer, \
            pytest.raises(BagError, match="message type 'my_msgs/msg/Odd' is not known"):
        writer.add_topic('/odd', 'my_msgs/msg/Odd')


def test_a_full_queue_counts_messages_as_lost(tmp_path):
    with BagWriter(tmp_path / 'bag', queue_size=1) as writer:
        writer.add_topic('/commands', ARRAY)
        for number in range(2000):
            writer.write('/commands', cdr(array(1.0)), number, number)
    counts = writer.counts()['/commands']
    assert counts.received == 2000
    assert counts.lost > 0
    assert counts.written + counts.lost == 2000
    assert len(read_all(tmp_path / 'bag')) == counts.written


def test_a_failing_disk_is_reported_and_everything_unsaved_is_counted_lost(tmp_path, monkeypatch):
    writer = BagWriter(tmp_path / 'bag', flush_period_s=0.01)
    writer.add_topic('/commands', ARRAY)

    def fail(descriptor):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', fail)
    for number in range(10):
        writer.write('/commands', cdr(array(1.0)), number, number)
    writer.close()
    assert 'No space left on device' in writer.error
    assert writer.counts()['/commands'].lost == 10


WRITE_UNTIL_KILLED = """
import sys, time
from bag_factory import ARRAY, RELIABLE, array, cdr
from mbrl_ros.data.bag_writer import BagWriter
writer = BagWriter(sys.argv[1])
writer.add_topic('/commands', ARRAY, [RELIABLE])
for number in range(10**9):
    writer.write('/commands', cdr(array(number)), number, number)
    print(number, flush=True)
    time.sleep(0.002)
"""


@pytest.fixture
def killed_bag(tmp_path):
    """Return a bag whose writing process was killed, and the number of the last message."""
    bag = tmp_path / 'bag'
    with subprocess.Popen([sys.executable, '-c', WRITE_UNTIL_KILLED, str(bag)],
                          stdout=subprocess.PIPE, text=True,
                          env=os.environ | {'PYTHONPATH': str(Path(__file__).parent)}) as process:
        last = -1
        for line in process.stdout:
            last = int(line)
            metadata = read_metadata(bag)
            if last % 20 == 0 and metadata['message_count'] >= 300:
                break
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            last = int(line)
    return bag, last


def test_kill_9_keeps_everything_up_to_the_last_flush(killed_bag):
    bag, last = killed_bag
    flushed = read_metadata(bag)['message_count']
    with pytest.raises(BagError, match=f'truncated.*Try: mbrl-ros bag recover {bag}'):
        check_bag(bag)
    result = recover(bag)
    check_bag(bag)
    numbers = [message.data[0] for _, _, message in read_all(bag)]
    assert numbers == list(range(len(numbers)))  # a prefix, nothing missing in between
    assert flushed <= len(numbers) <= last + 1
    # Flushes are 0.5 s apart, messages at least 2 ms: at most about 250 can be lost.
    assert last + 1 - len(numbers) <= 300
    assert result.counts == {'/commands': len(numbers)}
    assert result.missing == {}
    assert (bag / 'bag_0.mcap.truncated').is_file()
    assert read_metadata(bag)['message_count'] == len(numbers)
    assert 'recovered' in custom_data(read_metadata(bag))['mbrl_ros_recovered']['text']
    assert 'nothing to recover' in recover(bag).describe()


def test_recovery_says_what_a_torn_file_lost(tmp_path):
    raw = cdr(array(1.0))
    with BagWriter(tmp_path / 'bag', flush_period_s=0.05) as writer:
        writer.add_topic('/commands', ARRAY, [RELIABLE])
        for number in range(40):
            writer.write('/commands', raw, number, number)
            time.sleep(0.01)
    file = tmp_path / 'bag' / 'bag_0.mcap'
    content = file.read_bytes()
    file.write_bytes(content[:len(content) // 3])
    result = recover(tmp_path / 'bag')
    kept = len(read_all(tmp_path / 'bag'))
    assert 0 < kept < 40
    assert result.missing == {'/commands': 40 - kept}
    assert result.bytes_lost > 0
    assert f'lost: {40 - kept} on /commands' in result.describe()


def test_recovery_skips_a_damaged_chunk_and_zeros_at_the_end(tmp_path):
    raw = cdr(array(1.0))
    with BagWriter(tmp_path / 'bag', flush_period_s=0.05) as writer:
        writer.add_topic('/commands', ARRAY, [RELIABLE])
        for number in range(40):
            writer.write('/commands', raw, number, number)
            time.sleep(0.01)
    file = tmp_path / 'bag' / 'bag_0.mcap'
    content = bytearray(file.read_bytes())
    # Damage the data of the third chunk (its start is found by the LZ4 frame magic), and end the
    # file in the zeros that a file system leaves after a power cut.
    magic, start = bytes.fromhex('04224d18'), 0
    for _ in range(3):
        start = content.index(magic, start + 1)
    content[start + 8:start + 24] = bytes(16)
    file.write_bytes(bytes(content[:-8]) + bytes(4096))
    recover(tmp_path / 'bag')
    assert 20 < len(read_all(tmp_path / 'bag')) < 40


@pytest.mark.parametrize('text', [None, '', 'rosbag2_bagfile_information: ['])
def test_a_bag_without_readable_metadata_gets_one(tmp_path, text):
    bag = write_bag(tmp_path / 'bag', [('commands', 5, array(1.0))])
    (bag / 'metadata.yaml').unlink()
    if text is not None:
        (bag / 'metadata.yaml').write_text(text)
    with pytest.raises(BagError, match=r'no readable metadata\.yaml\. Try: mbrl-ros bag recover'):
        check_bag(bag)
    recover(bag)
    assert len(read_all(bag)) == 1


def test_a_bag_being_written_is_left_alone(tmp_path):
    with BagWriter(tmp_path / 'bag'):
        for action in (check_bag, recover):
            with pytest.raises(BagError, match='still being recorded'):
                action(tmp_path / 'bag')


@pytest.mark.parametrize('action', [check_bag, recover])
def test_no_bag_at_all(tmp_path, action):
    with pytest.raises(BagError, match=r'no bag at|no \.mcap file'):
        action(tmp_path / 'absent')
