"""Episodes on disk: found again while nothing changed, made anew else, never half-read."""

import os
import shutil

from bag_factory import array, joint_state, MS, tiny_robot, write_bag
import numpy as np
import pytest

from mbrl_ros.core.errors import BagError
from mbrl_ros.data import bag_cache, dataset
from mbrl_ros.data.dataset import load_dataset

NAN = float('nan')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'mbrl_ros'


@pytest.fixture
def reads(monkeypatch):
    """Return the bags that are truly read, in order."""
    found = []
    read = dataset.read_episodes

    def spy(path, *arguments):
        found.append(path.name)
        return read(path, *arguments)
    monkeypatch.setattr(dataset, 'read_episodes', spy)
    return found


def make(folder, first=0.0):
    messages = [('commands', 0, array(0.5))]
    for step in range(8):  # the third is not finite: two episodes, and a loss to remember
        value = NAN if step == 3 else first + step
        messages.append(('joint_states', step * 100 * MS,
                         joint_state(step * 100 * MS, [value], [0.0], ['slider'])))
        messages.append(('commands', step * 100 * MS + 1, array(step / 10)))
    return write_bag(folder, messages)


def equal(one, other):
    assert one.hash == other.hash
    assert one.losses == other.losses
    assert [(e.start_ns, e.source) for e in one.episodes] \
        == [(e.start_ns, e.source) for e in other.episodes]
    for a, b in zip(one.episodes, other.episodes, strict=True):
        np.testing.assert_array_equal(a.states, b.states)
        np.testing.assert_array_equal(a.actions, b.actions)


def test_only_new_bags_are_read_again(tmp_path, reads):
    bags = [make(tmp_path / 'one'), make(tmp_path / 'two', 100.0)]
    first = load_dataset(bags[:1], tiny_robot())
    both = load_dataset(bags, tiny_robot())
    assert reads == ['one', 'two']
    again = load_dataset(bags, tiny_robot())
    assert reads == ['one', 'two']
    equal(both, again)
    assert len(both.episodes) > len(first.episodes) > 1
    assert both.losses[0].nan_samples == {'x': (1, 300 * MS)}


def test_a_moved_bag_is_found_and_named_by_its_new_path(tmp_path, reads):
    load_dataset([make(tmp_path / 'one')], tiny_robot())
    moved = load_dataset([(tmp_path / 'one').rename(tmp_path / 'other')], tiny_robot())
    assert reads == ['one']
    assert moved.losses[0].bag == str(tmp_path / 'other')
    assert {e.source for e in moved.episodes} == {str(tmp_path / 'other')}


def test_robot_namespace_bag_and_format_each_make_it_new(tmp_path, reads, monkeypatch):
    bag = make(tmp_path / 'one')
    load_dataset([bag], tiny_robot())
    load_dataset([bag], tiny_robot(actuation_delay_steps=1))
    load_dataset([bag], tiny_robot(description='the same, but the whole spec counts'))
    assert len(reads) == 3
    load_dataset([bag], tiny_robot(), namespace='/')
    assert len(reads) == 4
    metadata = bag / 'metadata.yaml'
    metadata.write_text(metadata.read_text() + '# changed\n')
    load_dataset([bag], tiny_robot())
    assert len(reads) == 5
    monkeypatch.setattr(bag_cache, 'FORMAT', bag_cache.FORMAT + 1)
    load_dataset([bag], tiny_robot())
    assert len(reads) == 6
    load_dataset([bag], tiny_robot(), use_cache=False)
    assert len(reads) == 7


def test_a_damaged_file_is_made_anew(tmp_path, cache, reads):
    bag = make(tmp_path / 'one')
    good = load_dataset([bag], tiny_robot())
    [file] = cache.glob('*.episodes.npz')
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for case in range(60):
        damaged = bytearray(whole)
        place = int(rng.integers(0, len(whole)))
        if case % 2:
            del damaged[place:]
        else:
            damaged[place] ^= 1 << int(rng.integers(0, 8))
        file.write_bytes(damaged)
        # A bit of a name that nobody looks at, such as a date, may go unnoticed: then what is
        # read is what was written.
        equal(load_dataset([bag], tiny_robot()), good)
        file.write_bytes(whole)
    assert len(reads) > 30
    file.unlink()
    file.mkdir()
    equal(load_dataset([bag], tiny_robot()), good)


def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch, reads):
    (tmp_path / 'file').write_text('not a folder')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    bag = make(tmp_path / 'one')
    equal(load_dataset([bag], tiny_robot()), load_dataset([bag], tiny_robot()))
    assert reads == ['one', 'one']


def test_those_used_last_are_kept(tmp_path, cache, monkeypatch, reads):
    bags = [make(tmp_path / name, first) for name, first in (('a', 0.0), ('b', 10.0), ('c', 20.0))]
    sizes = []
    for age, bag in ((300, bags[0]), (200, bags[1])):
        load_dataset([bag], tiny_robot())
        newest = max(cache.glob('*.episodes.npz'), key=lambda file: file.stat().st_mtime_ns)
        sizes.append(newest.stat().st_size)
        then = newest.stat().st_mtime - age
        os.utime(newest, (then, then))
    (cache / 'x.episodes.npz.77.part').write_bytes(b'left by a killed process')
    os.utime(cache / 'x.episodes.npz.77.part', (0, 0))
    load_dataset(bags[:1], tiny_robot())  # used again: younger than b now
    monkeypatch.setattr(bag_cache, 'KEPT_BYTES', 2 * max(sizes) + 10)
    load_dataset(bags[2:], tiny_robot())
    assert not list(cache.glob('*.part'))
    load_dataset([bags[0], bags[2]], tiny_robot())
    assert reads == ['a', 'b', 'c']
    load_dataset([bags[1]], tiny_robot())
    assert reads == ['a', 'b', 'c', 'b']


def test_a_copy_of_a_bag_is_refused(tmp_path):
    bag = make(tmp_path / 'one')
    shutil.copytree(bag, tmp_path / 'copy')
    with pytest.raises(BagError, match=r'copy: given twice, also as .*one'):
        load_dataset([bag, tmp_path / 'copy'], tiny_robot())


def test_a_bag_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, cache):
    bag = make(tmp_path / 'one')
    read = dataset.read_episodes

    def meddle(*arguments):
        found = read(*arguments)
        (bag / 'metadata.yaml').write_text((bag / 'metadata.yaml').read_text() + '\n')
        return found
    monkeypatch.setattr(dataset, 'read_episodes', meddle)
    with pytest.raises(BagError, match='changed while it was read'):
        load_dataset([bag], tiny_robot())
    assert not list(cache.glob('*'))
