"""What is no bag, or not one of this robot: refused with what it is and what to do."""

import os
from pathlib import Path
import shutil
import sqlite3

from backports.zstd import ZstdCompressor
from bag_factory import array, cartpole, joint_state, MS, tiny_robot, write_bag
from bag_forms import make_bag, ROBOT, storage_file
from lz4.frame import compress as compress_lz4
import pytest

from mbrl_ros.core.errors import BagError
from mbrl_ros.data.bag_info import read_info
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.decompress import unpack_chunk, unpack_message
from mbrl_ros.data.health import examine
from mbrl_ros.data.recover import recover


@pytest.fixture(scope='module')
def templates(tmp_path_factory):
    folder = tmp_path_factory.mktemp('good')
    for form in ('ours', 'small_chunks', 'mcap_chunk_zstd', 'sqlite3', 'sqlite3_file_zstd'):
        make_bag(folder / form, form)
    return folder


def states(dataset):
    return {row.tobytes() for episode in dataset.episodes for row in episode.states}


def verbs(bag, robot=ROBOT):
    """Call what takes a bag, each with the refusal it ends in, None if it does not."""
    refusals = []
    for verb in (lambda: load_dataset([bag], robot, use_cache=False), lambda: read_info(bag),
                 lambda: examine(bag, robot), lambda: recover(bag)):
        try:
            verb()
            refusals.append(None)
        except BagError as error:
            refusals.append(str(error))
    return refusals


def test_what_is_no_bag_is_refused(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').write_text('hello')
    (tmp_path / 'text').mkdir()
    (tmp_path / 'text' / 'text_0.mcap').write_text('This is a text, not a recording.\n' * 50)
    (tmp_path / 'nothing').mkdir()
    (tmp_path / 'nothing' / 'nothing_0.mcap').touch()
    (tmp_path / 'nothing' / 'metadata.yaml').touch()
    for name in ('absent', 'empty', 'file', 'text', 'nothing'):
        assert None not in verbs(tmp_path / name)[:3], name
    assert None not in verbs(tmp_path / 'absent')
    assert 'no .mcap file' in verbs(tmp_path / 'empty')[3]


def test_a_text_called_mcap_keeps_its_bytes_when_it_is_recovered(templates, tmp_path):
    bag = shutil.copytree(templates / 'ours', tmp_path / 'bag')
    file = storage_file(bag)
    file.write_text('This is a text, not a recording.\n' * 50)
    assert recover(bag).bytes_lost > 1000
    assert file.with_name('ours_0.mcap.truncated').read_text().startswith('This is a text')
    assert load_refusal(bag)


def load_refusal(bag, robot=ROBOT):
    with pytest.raises(BagError) as caught:
        load_dataset([bag], robot, use_cache=False)
    return str(caught.value)


@pytest.mark.parametrize('form', ['ours', 'sqlite3', 'sqlite3_file_zstd'])
def test_a_folder_or_nothing_where_a_file_belongs_is_refused(templates, tmp_path, form):
    bag = shutil.copytree(templates / form, tmp_path / 'bag')
    file = storage_file(bag)
    file.unlink()
    assert None not in verbs(bag)[:3]
    file.mkdir()
    assert None not in verbs(bag)
    file.rmdir()
    file.touch()
    assert None not in verbs(bag)[:3]
    metadata = (bag / 'metadata.yaml')
    metadata.unlink()
    metadata.mkdir()
    assert None not in verbs(bag)[:3]


def test_a_sqlite_file_with_other_tables_is_refused(templates, tmp_path):
    bag = shutil.copytree(templates / 'sqlite3', tmp_path / 'bag')
    file = storage_file(bag)
    file.unlink()
    with sqlite3.connect(file) as database:
        database.execute('CREATE TABLE books (title TEXT)')
    assert 'missing tables' in load_refusal(bag)
    with sqlite3.connect(file) as database:
        database.execute('CREATE TABLE topics (id INTEGER, name TEXT)')
        database.execute('CREATE TABLE messages (id TEXT)')
    assert None not in verbs(bag)[:3]


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_files_that_may_not_be_read_are_refused(templates, tmp_path):
    for name in ('metadata.yaml', 'ours_0.mcap'):
        bag = shutil.copytree(templates / 'ours', tmp_path / name)
        (bag / name).chmod(0)
        assert None not in verbs(bag)


def test_a_file_that_may_not_be_read_is_refused_for_root_too(templates, tmp_path, monkeypatch):
    bag = shutil.copytree(templates / 'ours', tmp_path / 'bag')
    opened = Path.open

    def forbid(path, *arguments, **options):
        if path.suffix == '.mcap':
            raise PermissionError(13, 'Permission denied', str(path))
        return opened(path, *arguments, **options)
    monkeypatch.setattr(Path, 'open', forbid)
    for refusal in verbs(bag):
        assert 'Permission denied' in refusal


def test_paths_that_lead_out_of_the_bag_lead_nowhere(templates, tmp_path):
    secret = tmp_path / 'secret.mcap'
    shutil.copy(storage_file(templates / 'ours'), secret)
    bag = shutil.copytree(templates / 'ours', tmp_path / 'bag')
    metadata = bag / 'metadata.yaml'
    text = metadata.read_text()
    for path in ('../secret.mcap', str(secret), '..', '.', '/', '../../etc/passwd', 'a' * 5000):
        metadata.write_text(text.replace('- ours_0.mcap', f'- {path}'))
        assert 'missing or named twice' in load_refusal(bag)


def test_yaml_that_would_run_something_does_not(templates, tmp_path):
    bag = shutil.copytree(templates / 'ours', tmp_path / 'bag')
    (bag / 'metadata.yaml').write_text(
        f'!!python/object/apply:os.system ["touch {tmp_path}/owned"]')
    assert None not in verbs(bag)[:3]
    assert not (tmp_path / 'owned').exists()


def test_names_that_a_terminal_would_obey_are_refused(templates, tmp_path):
    bag = shutil.copytree(templates / 'ours', tmp_path / 'bag')
    metadata = bag / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace('/commands', '"\\e]0;owned\\a"'))
    refusal = load_refusal(bag)
    assert 'cannot be printed' in refusal
    assert refusal.isprintable()


def test_a_bag_of_another_robot_is_refused_with_what_it_has(templates):
    refusal = load_refusal(templates / 'ours', cartpole())
    assert "no topic 'forward_command_controller/commands'" in refusal \
        or "no 'hinge' in this message" in refusal
    assert '/commands, /joint_states' in refusal or 'slider' in refusal


def test_a_bag_of_far_slower_messages_says_that_values_are_made_up(tmp_path):
    # 1 Hz for a control rate of 10 Hz: nine of ten states are drawn between two observations. With
    # a staleness limit of 0.25 s every observation is a gap of its own, and nothing is left.
    messages = [item for step in range(6) for item in (
        ('commands', step * 1000 * MS, array(0.1)),
        ('joint_states', step * 1000 * MS,
         joint_state(step * 1000 * MS, [float(step)], [0.0], ['slider'])))]
    bag = write_bag(tmp_path / 'bag', messages)
    assert 'no transition in' in load_refusal(bag, tiny_robot())
    patient = tiny_robot(stale_after_s={'joint_states': 2.0})
    said = load_dataset([bag], patient, use_cache=False).describe_losses()
    # 50 steps of 100 ms, 6 observations: 0.12 a period.
    assert any('observed 0.12 times a control period' in line for line in said), said


def test_messages_that_metadata_counts_and_the_file_lacks_are_told(templates, tmp_path):
    bag = shutil.copytree(templates / 'sqlite3', tmp_path / 'bag')
    with sqlite3.connect(storage_file(bag)) as database:
        database.execute('DELETE FROM messages WHERE timestamp = 500000000')
    said = load_dataset([bag], ROBOT, use_cache=False).describe_losses()
    assert any('counts 24 messages' in line and '22 were found' in line for line in said), said


@pytest.mark.parametrize('form', ['small_chunks', 'mcap_chunk_zstd'])
def test_a_chunk_broken_in_the_middle_is_found_and_the_rest_saved(templates, tmp_path, form):
    bag = shutil.copytree(templates / form, tmp_path / 'bag')
    file = storage_file(bag)
    data = bytearray(file.read_bytes())
    good = load_dataset([bag], ROBOT, use_cache=False)
    # A chunk: 6, then 36 bytes, the name of its compression, the length of its records, these.
    name = b'\x03\0\0\0lz4' if form == 'small_chunks' else b'\x04\0\0\0zstd'
    chunks = [i for i in range(len(data)) if data.startswith(name, i) and data[i - 37] == 6]
    place = chunks[len(chunks) // 2] + len(name) + 8 + 10
    data[place] ^= 0xff
    file.write_bytes(data)
    assert 'mbrl-ros bag recover' in load_refusal(bag)
    result = recover(bag)
    assert result.files == (file.with_name(file.name + '.truncated'),)
    assert result.bytes_lost > 0
    if form == 'small_chunks':
        rest = load_dataset([bag], ROBOT, use_cache=False)
        assert 0 < rest.num_transitions < good.num_transitions
        assert states(rest) < states(good)
        assert any('was recovered' in line for line in rest.describe_losses())
    assert not recover(bag).files


def test_a_bomb_in_a_chunk_is_not_unpacked(tmp_path):
    # 1 GB of zeros are 32 kB of zstd: a chunk that says 1 kB is stopped at 1 kB, and one that
    # owns up to it is refused before anything is unpacked.
    compressor = ZstdCompressor()
    block = bytes(1024**2)
    bomb = b''.join([compressor.compress(block) for _ in range(1024)] + [compressor.flush()])
    assert len(bomb) < 200_000
    for size in (1024, 1024**3):
        with pytest.raises(BagError):
            unpack_chunk(bomb, 'zstd', size, 0)
    with pytest.raises(BagError, match='larger than'):
        unpack_message(bomb)
    assert unpack_chunk(compress_lz4(b'abc'), 'lz4', 3, 0) == b'abc'


def damaged(templates, folder, change):
    """Return a bag of many chunks after `change(data, places of its chunks)`, and the good one."""
    bag = shutil.copytree(templates / 'small_chunks', folder / 'bag')
    file = storage_file(bag)
    data = bytearray(file.read_bytes())
    name = b'\x03\0\0\0lz4'
    change(data, [i - 37 for i in range(len(data))
                  if data.startswith(name, i) and data[i - 37] == 6])
    file.write_bytes(data)
    return bag


def test_a_length_that_leads_astray_costs_one_chunk(templates, tmp_path):
    # The length of the third chunk (8 bytes after its opcode) is far too large, or too small: what
    # follows is found by what a chunk begins with.
    for name, length in (('far', 2**40), ('near', 3), ('all', 900)):
        def change(data, chunks, length=length):
            data[chunks[2] + 1:chunks[2] + 9] = length.to_bytes(8, 'little')
        bag = damaged(templates, tmp_path / name, change)
        before = sum(c.messages for c in read_info(templates / 'small_chunks').topics)
        assert load_refusal(bag)
        counts = recover(bag).counts
        assert 0.5 * before < sum(counts.values()) < before, name
        assert load_dataset([bag], ROBOT, use_cache=False).losses[0].recovered


def test_without_the_chunk_that_named_the_topics_the_end_names_them(templates, tmp_path):
    def change(data, chunks):
        data[chunks[0] + 60] ^= 0xff
    bag = damaged(templates, tmp_path, change)
    result = recover(bag)
    assert set(result.counts) == {'/commands', '/joint_states'}
    assert all(count > 0 for count in result.counts.values())
    assert all(count > 0 for count in result.missing.values())
