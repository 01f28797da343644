"""`mbrl-ros bag`: what it prints about whole, truncated, damaged and missing bags."""

from datetime import datetime, UTC
import json
import re
import shutil

from backports import zstd
from bag_factory import array, joint_state, mark, MS, write_bag
from bag_forms import make_bag, ROBOT, storage_file
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
from typer.testing import CliRunner

from mbrl_ros.cli.bag import app
from mbrl_ros.core.errors import BagError
from mbrl_ros.data.bag_cache import hash_bag
from mbrl_ros.data.bag_info import read_info
from mbrl_ros.data.bag_metadata import read_metadata, typestore
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.recover import recover

TINY = """
name: tiny
control_rate_hz: 10.0
stale_after_s: {joint_states: 0.25}
observation:
  - {name: x, unit: m, topic: joint_states, type: sensor_msgs/msg/JointState, path: 'position[a]'}
action:
  - {name: u, unit: N, topic: commands, type: std_msgs/msg/Float64MultiArray, path: 'data[0]',
     min: -1.0, max: 1.0, rate_limit: 100.0, safe_value: 0.0}
"""


@pytest.fixture
def bag(tmp_path):
    return write_bag(tmp_path / 'bag', [
        ('episode', 0, mark('start')), ('joint_states', 0, joint_state(0, [1.0, 2.0], [0.0, 0.0])),
        ('commands', 1_500_000_000, array(1.0)), ('episode', 1_500_000_000, mark('end'))])


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / 'tiny.yaml'
    path.write_text(TINY)
    return path


def moving(folder, steps=40, joint='a'):
    rng = np.random.default_rng(0)
    messages = []
    for step in range(steps):
        stamp_ns = step * 100 * MS
        messages += [('commands', stamp_ns, array(rng.uniform(-0.9, 0.9))),
                     ('joint_states', stamp_ns,
                      joint_state(stamp_ns, [rng.normal()], [0.0], [joint]))]
    return write_bag(folder, messages)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments],
                              env={'COLUMNS': '200'})


def run(*arguments):
    result = invoke(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_info_shows_topics_rates_joints_duration_and_episodes(bag):
    text = run('info', bag)
    assert '1.5 s, 1 marked episodes' in text
    row = next(line for line in text.splitlines() if '/joint_states' in line)
    assert 'slider, hinge' in row
    # Two marks in 1.5 s: one period of 1.5 s, 0.6667 Hz.
    assert '0.6667' in next(line for line in text.splitlines() if '/episode' in line)


def test_info_shows_storage_files_time_and_hash(bag):
    text = run('info', bag)
    assert 'storage: mcap, compression: chunk, lz4' in text
    size = sum(file.stat().st_size for file in bag.iterdir())
    assert f'files: {size / 1e6:.3g} MB in 1 files: bag_0.mcap' in text
    assert 'recorded: 1970-01-01 00:00:00.000+00:00' in text
    assert f'hash: {hash_bag(bag)}' in text


def test_info_of_a_compressed_sqlite_bag_of_a_known_time(tmp_path):
    writer = Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(CompressionMode.FILE, CompressionFormat.ZSTD)
    start = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    with writer:
        connection = writer.add_connection('/x', 'std_msgs/msg/Float64', typestore=typestore())
        for step in range(11):
            writer.write(connection, int(start.timestamp() * 10**9) + step * 50 * MS,
                         bytes.fromhex('00010000') + bytes(8))
    text = run('info', tmp_path / 'bag')
    assert 'storage: sqlite3, compression: file, zstd' in text
    assert '2026-03-04 05:06:07.000+00:00' in text
    row = next(line for line in text.splitlines() if '/x' in line)
    assert [cell.strip() for cell in row.split('│')[3:5]] == ['11', '20']  # 10 periods in 0.5 s


def test_recover_repairs_then_finds_nothing_to_do(bag):
    file = bag / 'bag_0.mcap'
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(BagError, match='Try: mbrl-ros bag recover'):
        run('info', bag)
    assert '4 messages recovered' in run('recover', bag)
    assert 'recovered:' in run('info', bag)
    assert 'nothing to recover' in run('recover', bag)


def test_recover_takes_several_bags_and_goes_on_after_one_that_cannot_be(bag, tmp_path):
    other = moving(tmp_path / 'other')
    file = other / 'other_0.mcap'
    file.write_bytes(file.read_bytes()[:-20])
    result = invoke('recover', bag, tmp_path / 'absent', other)
    assert result.exit_code == 1
    assert 'bag: complete, nothing to recover' in result.output
    assert 'absent: no .mcap file to recover' in result.output
    assert 'other: 80 messages recovered' in result.output
    assert invoke('recover', bag, other).exit_code == 0


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize('has_metadata', [True, False])
def test_files_compressed_as_a_whole_are_unpacked_before_recovery(tmp_path, has_metadata):
    # As `ros2 bag record --compression-mode file` leaves it when it is killed.
    whole = make_bag(tmp_path / 'whole', 'rosbags_mcap')
    data = storage_file(whole).read_bytes()
    bag = make_bag(tmp_path / 'f', 'mcap_file_zstd')
    packed = storage_file(bag).rename(bag / 'f_0.mcap.zstd')
    if not has_metadata:
        (bag / 'metadata.yaml').unlink()
    shutil.copy(packed, bag / 'f_1.mcap.zstd')
    (bag / 'f_2.mcap').write_bytes(data[:-20])
    before = contents(bag)
    with pytest.raises(BagError, match=r'f_0\.mcap\.zstd, f_1\.mcap\.zstd\. Unpack each: '
                                       r'zstd -d --rm FILE, then repeat: mbrl-ros bag recover'):
        recover(bag)
    assert contents(bag) == before
    for file in (packed, bag / 'f_1.mcap.zstd'):
        file.with_suffix('').write_bytes(zstd.decompress(file.read_bytes()))
    with pytest.raises(BagError, match=r'Beside f_0\.mcap\.zstd, f_1\.mcap\.zstd lies'):
        recover(bag)
    for file in bag.glob('*.zstd'):
        file.unlink()
    each = sum(topic.messages for topic in read_info(whole).topics)
    assert sum(recover(bag).counts.values()) == 3 * each
    assert sum(topic.messages for topic in read_info(bag).topics) == 3 * each


def test_a_whole_bag_that_was_unpacked_by_hand_is_named_anew(tmp_path):
    bag = make_bag(tmp_path / 'f', 'mcap_file_zstd')
    [packed] = bag.glob('*.zstd')
    packed.with_suffix('').write_bytes(zstd.decompress(packed.read_bytes()))
    packed.unlink()
    assert not recover(bag).files
    assert read_info(bag).files == (packed.stem,)
    assert read_info(bag).compression == 'none'


@pytest.mark.parametrize('mode', ['message', 'MESSAGE', None])
@pytest.mark.parametrize('cut', [0, 20])
def test_compressed_messages_can_be_read_after_recovery(tmp_path, mode, cut):
    bag = make_bag(tmp_path / 'bag', 'mcap_message_zstd')
    good = load_dataset([bag], ROBOT, use_cache=False)
    file, path = storage_file(bag), bag / 'metadata.yaml'
    if mode is None:
        path.unlink()
    else:  # as rosbags writes it, and as rosbag2 does
        path.write_text(path.read_text().replace('compression_mode: message',
                                                 f'compression_mode: {mode}'))
    file.write_bytes(file.read_bytes()[:-cut or None])
    recover(bag)
    assert read_info(bag).compression == 'message, zstd'
    found = load_dataset([bag], ROBOT, use_cache=False)
    assert [e.states.tobytes() for e in found.episodes] == \
        [e.states.tobytes() for e in good.episodes]


def test_messages_that_are_not_all_compressed_are_not_called_so(tmp_path):
    # Only the first message begins like zstd.
    bag = make_bag(tmp_path / 'bag', 'ours', lambda number, payload: (
        bytes.fromhex('28b52ffd') + payload[4:] if number == 0 else payload))
    (bag / 'metadata.yaml').unlink()
    recover(bag)
    assert read_metadata(bag)['compression_mode'] == ''


@pytest.mark.parametrize(('damage', 'told'), [
    ('end', 'messages lost since the last flush only'),
    ('end without metadata', 'how many messages were lost is not known'),
    ('middle', 'how many messages were lost is not known'),
    ('middle, counted', 'lost: at least '),
    ('first of two files', 'how many messages were lost is not known')])
def test_recover_says_what_it_cannot_know(tmp_path, damage, told):
    bag = make_bag(tmp_path / 'bag', 'small_chunks')
    file, path = bag / 'bag_0.mcap', bag / 'metadata.yaml'
    data = bytearray(file.read_bytes())
    if damage == 'first of two files':
        shutil.copy(file, bag / 'bag_1.mcap')
    if 'middle' in damage:
        # A chunk: 6, then 36 bytes, the name of its compression, the length of its records.
        name = b'\x03\0\0\0lz4'
        chunks = [i for i in range(len(data)) if data.startswith(name, i) and data[i - 37] == 6]
        data[chunks[len(chunks) // 2] + 30] ^= 0xff
        if damage == 'middle':  # written before the messages that make up for the lost ones
            path.write_text(path.read_text().replace('message_count: 12', 'message_count: 3'))
    else:
        del data[-20:]
    if 'without' in damage:
        path.unlink()
    file.write_bytes(data)
    text = recover(bag).describe()
    assert told in text
    assert (' flush ' in text) == (damage == 'end')


def test_no_bag_is_refused(tmp_path):
    with pytest.raises(BagError, match='no bag at'):
        run('info', tmp_path / 'absent')


def test_check_tells_a_bag_that_can_train_from_those_that_cannot(tmp_path, tiny):
    good, wrong = moving(tmp_path / 'good'), moving(tmp_path / 'wrong', joint='b')
    short = moving(tmp_path / 'short', steps=10)
    result = invoke('check', good, '--robot', tiny)
    assert result.exit_code == 0
    # 40 observations: 39 transitions of 0.1 s.
    assert "good: can train 'tiny': 39 transitions, 3.9 s in 1 episodes" in result.output
    assert 'next: mbrl-ros train' in result.output
    result = invoke('check', good, wrong, short, tmp_path / 'absent', '--robot', tiny)
    assert result.exit_code == 1
    assert "wrong: cannot train 'tiny'" in result.output
    assert 'missing: x (position[a]) in 40 of 40 messages' in result.output
    assert "short: cannot train 'tiny': 9 transitions" in result.output
    assert 'record for longer' in result.output
    assert 'no bag at' in result.output
    assert 'next: mend what is bad' in result.output


def test_check_prints_json(tmp_path, tiny):
    good = moving(tmp_path / 'good')
    result = CliRunner().invoke(app, ['check', str(good), str(tmp_path / 'absent'), '--robot',
                                      str(tiny), '--json'])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found['robot'], found['can_train']) == ('tiny', False)
    one, other = found['bags']
    assert (one['can_train'], one['transitions'], one['seconds'], one['losses']) \
        == (True, 39, pytest.approx(3.9), [])
    assert (other['can_train'], other['problems'][0]['level']) == (False, 'bad')


def test_check_says_what_was_lost(tmp_path, tiny):
    messages = [('commands', 0, array(0.1))]
    for step in range(60):  # one of them is not finite
        value = float('nan') if step == 30 else float(step)
        messages += [('joint_states', step * 100 * MS,
                      joint_state(step * 100 * MS, [value], [0.0], ['a'])),
                     ('commands', step * 100 * MS, array(0.01 * step))]
    text = run('check', write_bag(tmp_path / 'bag', messages), '--robot', tiny)
    # 0 to 29 and 31 to 59: 29 and 28 transitions.
    assert '57 transitions, 5.7 s in 2 episodes' in text
    assert "lost 1 sample of 'x' not finite" in text


def test_export_writes_the_dataset(tmp_path, tiny):
    text = run('export', moving(tmp_path / 'good'), '--robot', tiny, '--output',
               tmp_path / 'data.npz')
    assert '(npz): 39 transitions in 1 episodes' in text
    with np.load(tmp_path / 'data.npz') as file:
        assert file['states'].shape == (40, 1)
    with pytest.raises(BagError, match=r'End the file in \.npz or \.parquet'):
        run('export', tmp_path / 'good', '--robot', tiny, '--output', tmp_path / 'data.csv')


def test_joint_names_are_shown_as_text_not_as_markup_or_control(tmp_path):
    bag = write_bag(tmp_path / 'bag', [('joint_states', 0, joint_state(
        0, [0.0, 0.0], [0.0, 0.0], ['[bold red]arm[/]', '\x1b]0;owned\x07']))])
    text = run('info', bag)
    assert '[bold red]arm[/]' in text
    assert '\x1b]0;' not in text


@pytest.mark.parametrize('verb', ['info', 'check', 'recover', 'export'])
def test_help_fits_a_screen_and_has_an_example(verb):
    result = CliRunner().invoke(app, [verb, '--help'], env={'COLUMNS': '100'})
    plain = re.sub(r'\x1b\[[0-9;]*m', '', result.output)
    assert len(plain.splitlines()) <= 40
    assert f'mbrl-ros bag {verb} bags/' in plain
