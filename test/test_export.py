"""Exports read back to the last bit."""

import json

from bag_factory import tiny_robot
import numpy as np
import pytest

from mbrl_ros.core.errors import BagError
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.data.export import export, format_of
from mbrl_ros.data.resample import Episode

LABEL = {'unit': '1', 'topic': 'judge', 'type': 'std_msgs/msg/Float64', 'path': 'data'}


def made(labelled=False, **changes):
    """Return two episodes of random bits, of 3 and 2 steps; the first starts at 7 ns."""
    rng = np.random.default_rng(5)
    labels = {'reward': {'name': 'r', **LABEL},
              'termination': {'name': 't', **LABEL, 'topic': 'end'}} if labelled else {}
    episodes = []
    for steps, start_ns in ((3, 7), (2, 1_790_000_000_123_456_789)):
        rewards, ends = (rng.normal(size=steps), np.eye(1, steps, steps - 1)[0]) \
            if labelled else (None, None)
        episodes.append(Episode(rng.normal(size=(steps + 1, 1)), rng.normal(size=(steps, 1)),
                                start_ns, f'bag: episode {steps}', rewards, ends))
    return Dataset(tuple(episodes), tiny_robot(**labels, **changes))


# Rows are states: 4 of the first episode and 3 of the second. dt is 100 ms.
TIMES = [7, 100_000_007, 200_000_007, 300_000_007,
         *(1_790_000_000_123_456_789 + k * 100_000_000 for k in range(3))]


@pytest.mark.parametrize('labelled', [False, True])
def test_npz_reads_back_to_the_last_bit(tmp_path, labelled):
    dataset = made(labelled)
    export(dataset, tmp_path / 'new' / 'data.npz', 'npz')
    with np.load(tmp_path / 'new' / 'data.npz', allow_pickle=False) as file:
        read = dict(file)
    assert read['episode_starts'].tolist() == [0, 4]
    assert read['time_ns'].tolist() == TIMES
    for start, episode in zip((0, 4), dataset.episodes, strict=True):
        stop = start + episode.num_steps
        np.testing.assert_array_equal(read['states'][start:stop + 1], episode.states)
        np.testing.assert_array_equal(read['actions'][start:stop], episode.actions)
        assert np.isnan(read['actions'][stop]).all()
        if labelled:
            np.testing.assert_array_equal(read['reward'][start:stop], episode.rewards)
            np.testing.assert_array_equal(read['termination'][start:stop], episode.terminations)
    assert (read['state_names'].tolist(), read['state_units'].tolist()) == (['x'], ['m'])
    assert (read['action_names'].tolist(), read['action_units'].tolist()) == (['u'], ['N'])
    about = json.loads(str(read['about']))
    assert about['robot_spec_hash'] == dataset.robot.spec_hash()
    assert json.loads(about['provenance'])['hash'] == dataset.hash


@pytest.mark.parametrize('labelled', [False, True])
def test_parquet_reads_back_to_the_last_bit(tmp_path, labelled):
    from pyarrow.parquet import read_table  # noqa: PLC0415 (an optional extra)

    dataset = made(labelled)
    export(dataset, tmp_path / 'data.parquet', 'parquet')
    table = read_table(tmp_path / 'data.parquet')
    rows = table.to_pydict()
    assert rows['episode'] == [0, 0, 0, 0, 1, 1, 1]
    assert rows['step'] == [0, 1, 2, 3, 0, 1, 2]
    assert rows['time_ns'] == TIMES
    one, two = dataset.episodes
    assert rows['x'] == [*one.states[:, 0], *two.states[:, 0]]
    assert rows['u'] == [*one.actions[:, 0], None, *two.actions[:, 0], None]
    assert ('reward' in rows) == labelled
    if labelled:
        assert rows['reward'] == [*one.rewards, None, *two.rewards, None]
        assert rows['termination'] == [0.0, 0.0, 1.0, None, 0.0, 1.0, None]
    units = {field.name: field.metadata[b'unit'].decode() for field in table.schema}
    assert (units['x'], units['u'], units['time_ns']) == ('m', 'N', 'ns')
    assert table.schema.metadata[b'robot_spec_hash'].decode() == dataset.robot.spec_hash()


@pytest.mark.parametrize('labelled', [False, True])
def test_minari_reads_back_to_the_last_bit(tmp_path, monkeypatch, labelled):
    import minari  # noqa: PLC0415 (an optional extra)

    dataset = made(labelled)
    export(dataset, tmp_path / 'tiny-v3', 'minari')
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path))
    read = minari.load_dataset('tiny-v3')
    assert (read.total_episodes, read.total_steps) == (2, 5)
    assert read.action_space.high.tolist() == [1.0]
    for found, episode in zip(read.iterate_episodes(), dataset.episodes, strict=True):
        np.testing.assert_array_equal(found.observations, episode.states)
        np.testing.assert_array_equal(found.actions, episode.actions)
        if labelled:
            np.testing.assert_array_equal(found.rewards, episode.rewards)
            assert found.terminations.tolist() == (episode.terminations != 0).tolist()
            assert not found.truncations.any()
        else:  # no reward was recorded: not zero, and no end but that of the recording
            assert np.isnan(found.rewards).all()
            assert not found.terminations.any()
            assert found.truncations.tolist() == [False] * (episode.num_steps - 1) + [True]
    with pytest.raises(BagError, match='exists'):
        export(dataset, tmp_path / 'tiny-v3', 'minari')
    with pytest.raises(BagError, match='tiny-v0'):
        export(dataset, tmp_path / 'mine', 'minari')


@pytest.mark.parametrize(('format_', 'package'), [('parquet', 'pyarrow'), ('minari', 'minari'),
                                                  ('minari', 'h5py')])
def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch, format_, package):
    import sys  # noqa: PLC0415

    for name in [name for name in sys.modules if name.split('.')[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BagError, match=rf"pip install 'mbrl_ros\[{format_}\]'"):
        export(made(), tmp_path / 'data-v0', format_)
    assert not list(tmp_path.iterdir())


def test_the_format_is_that_of_the_ending_unless_given(tmp_path):
    assert format_of(tmp_path / 'a.parquet', None) == 'parquet'
    assert format_of(tmp_path / 'a.parquet', 'npz') == 'npz'
    with pytest.raises(BagError, match='npz, parquet, minari'):
        format_of(tmp_path / 'a.csv', None)


def test_an_export_is_whole_or_not_there(tmp_path, monkeypatch):
    export(made(), tmp_path / 'data.npz', 'npz')
    before = (tmp_path / 'data.npz').read_bytes()

    def full(*_, **__):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'savez_compressed', full)
    with pytest.raises(BagError, match='No space left'):
        export(made(), tmp_path / 'data.npz', 'npz')
    assert (tmp_path / 'data.npz').read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ['data.npz']


def test_a_field_with_the_name_of_a_column_is_refused(tmp_path):
    spec = made().robot.model_dump()
    spec['observation'][0]['name'] = 'step'
    dataset = Dataset(made().episodes, type(made().robot).model_validate(spec))
    with pytest.raises(BagError, match='named step already'):
        export(dataset, tmp_path / 'data.npz', 'npz')
