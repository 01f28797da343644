"""The folder that controllers load: replaced safely, its history, and the way back."""

from functools import partial
import os

from fakes import cart, save_cart_model
import pytest
from typer.testing import CliRunner

from mbrl_ros.cli.main import app
from mbrl_ros.core.errors import ModelError
from mbrl_ros.learning import model_store
from mbrl_ros.learning.model_store import FILES, opened, read_history
from mbrl_ros.runtime import artifact

CART = cart()


def content(folder):
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def put(store, model, action='promoted', **details):
    return store.replace(model.path.parent, model.hash, action, details)


@pytest.fixture
def models(tmp_path):
    """Three models; the second has no card, the third has a report."""
    found = [save_cart_model(tmp_path / f'new{i}', drag=0.9 - 0.01 * i) for i in range(3)]
    (tmp_path / 'new1' / 'card.md').unlink()
    (tmp_path / 'new2' / 'report.html').write_text('<html>')
    return found


def test_history_and_the_way_back(tmp_path, models):
    folder = tmp_path / 'deep' / 'mine'
    files = [content(model.path.parent) for model in models]
    with opened(folder) as store:
        put(store, models[0], 'adopted')
        put(store, models[1], reason='why')
        assert content(folder) == files[1]  # no card of the model before
        put(store, models[2])
        assert content(folder) == files[2]
    with opened(folder) as store:
        assert (store.number, store.finished) == (3, None)
        assert store.roll_back().number == 2
        assert content(folder) == files[1]
        assert store.roll_back().number == 1
        assert content(folder) == files[0]
        with pytest.raises(ModelError, match=r'no model that this one replaced .* 1, 2, 3'):
            store.roll_back()
        with pytest.raises(ModelError, match='no model 9 in its history'):
            store.roll_back(9)
        assert store.roll_back(3).replaced == 1
        put(store, models[1])  # again: its copy is there
        assert store.roll_back().number == 3
    history = read_history(folder)
    assert [(entry.action, entry.number, entry.replaced) for entry in history] == [
        ('adopted', 1, None), ('promoted', 2, 1), ('promoted', 3, 2), ('rolled back', 2, 3),
        ('rolled back', 1, 2), ('rolled back', 3, 1), ('promoted', 2, 3), ('rolled back', 3, 2)]
    assert history[1].details == {'reason': 'why'}
    assert all(entry.is_installed for entry in history)
    copies = sorted(path for path in (folder / 'history').iterdir() if path.is_dir())
    assert [path.name for path in copies] == [
        f'{i + 1:04d}-{model.hash[:8]}' for i, model in enumerate(models)]
    assert [content(path) for path in copies] == files


def test_a_model_that_came_by_another_way_is_kept(tmp_path, models):
    mine, folder = save_cart_model(tmp_path / 'mine', drag=0.5), tmp_path / 'mine'
    (folder / 'robot.xml').write_text('not of the model')
    with opened(folder) as store:
        put(store, models[0])
        assert store.roll_back().hash == mine.hash
    other = save_cart_model(folder, drag=0.6)  # a training in place
    with opened(folder) as store:
        put(store, models[0])
        assert store.roll_back().hash == other.hash
    assert [(entry.action, entry.number) for entry in read_history(folder)] == [
        ('found', 1), ('promoted', 2), ('rolled back', 1), ('found', 3), ('promoted', 2),
        ('rolled back', 3)]
    assert (folder / 'robot.xml').read_text() == 'not of the model'


class Killed(BaseException):
    """Stands for a kill: nothing that runs after it may matter."""


def kill_after(monkeypatch, count):
    """Let the process die after so many renames."""
    done = 0

    def counted(original, *arguments, **keywords):
        nonlocal done
        done += 1
        if done > count:
            raise Killed
        return original(*arguments, **keywords)
    for name in ('rename', 'replace'):
        monkeypatch.setattr(os, name, partial(counted, getattr(os, name)))


def test_a_kill_between_any_two_renames_is_repaired(tmp_path, models, monkeypatch):
    files = [content(model.path.parent) for model in models]
    outcomes, count, is_through = set(), 0, False
    while not is_through:
        folder = tmp_path / f'killed{count}'
        with opened(folder) as store:
            put(store, models[2], 'adopted')
        with monkeypatch.context() as patch:
            kill_after(patch, count)
            try:
                with opened(folder) as store:
                    put(store, models[1])
                is_through = True
            except Killed:
                pass
        # At any moment there is a whole model to load.
        assert artifact.load(folder / 'dynamics.onnx', CART).hash in (models[1].hash,
                                                                     models[2].hash)
        with opened(folder) as store:
            is_new = store.hash == models[1].hash
            assert content(folder) == files[1 if is_new else 2]
            assert (store.finished is not None) == (is_new and not is_through)
            assert store.history[-1].hash == store.hash
            put(store, models[0])
            assert store.roll_back().number == (2 if is_new else 1)
        assert not list(folder.rglob('*.new'))
        outcomes.add(is_new)
        count += 1
    assert outcomes == {True, False}
    # Two files, their folder, the history; the two files at the top, and the history again.
    assert count == 8


def test_a_kill_then_a_training_in_place(tmp_path, models, monkeypatch):
    folder = tmp_path / 'mine'
    with opened(folder) as store:
        put(store, models[2], 'adopted')
    with monkeypatch.context() as patch:
        kill_after(patch, 5)  # two files, their folder, the history, one file at the top
        with pytest.raises(Killed), opened(folder) as store:
            put(store, models[1])
    assert not read_history(folder)[-1].is_installed
    trained = save_cart_model(folder, drag=0.3)
    with opened(folder) as store:
        assert store.hash == trained.hash  # of which there is no other copy
        assert store.history[-1].is_installed


def test_what_the_store_refuses(tmp_path, models):
    folder = tmp_path / 'mine'
    with opened(folder) as store:
        put(store, models[0], 'adopted')
        (tmp_path / 'new1' / 'metrics.json').write_text('{"hash": "of another"}')
        with pytest.raises(ModelError, match='training that wrote them was cut short'):
            put(store, models[1])
        (tmp_path / 'new1' / 'metrics.json').unlink()
        with pytest.raises(ModelError, match='changed while it was judged'):
            store.replace(tmp_path / 'new1', models[2].hash, 'promoted', {})
        put(store, models[2])
        (copy,) = (folder / 'history').glob('0001-*')
        (copy / 'dynamics.onnx').write_bytes(b'x')
        with pytest.raises(ModelError, match='copy of model 1 is missing or damaged'):
            store.roll_back()
        assert store.hash == models[2].hash
    (tmp_path / 'file').write_text('')
    with pytest.raises(ModelError, match=r'file.mine: cannot be written: .*folder of your own'), \
            opened(tmp_path / 'file' / 'mine'):
        pass
    (folder / 'history' / 'history.json').write_text('[{')
    with pytest.raises(ModelError, match='not a history of models'):
        read_history(folder)


def test_a_full_disk_leaves_the_old_model(tmp_path, models, monkeypatch):
    folder = tmp_path / 'mine'
    with opened(folder) as store:
        put(store, models[0], 'adopted')

        def full(path, content):
            raise OSError(28, 'No space left on device', str(path))
        with monkeypatch.context() as patch:
            patch.setattr(model_store, 'replace_file', full)
            with pytest.raises(ModelError, match='No space left on device'):
                put(store, models[2])
        assert store.hash == models[0].hash
    with opened(folder) as store:
        assert put(store, models[2]).number == 2


def test_two_at_once(tmp_path, models):
    folder = tmp_path / 'mine'
    with opened(folder) as store:
        put(store, models[0], 'adopted')
        # flock counts by open file: a second one in this process is as good as another process.
        with pytest.raises(ModelError, match='another promote, rollback or train'), \
                opened(folder):
            pass
    with opened(folder) as store:  # it was let go
        assert store.number == 1


def test_a_kill_then_a_damaged_copy(tmp_path, models, monkeypatch):
    folder = tmp_path / 'mine'
    with opened(folder) as store:
        put(store, models[0])
    with monkeypatch.context() as patch:
        kill_after(patch, 4)  # two files, their folder, the history
        with pytest.raises(Killed), opened(folder) as store:
            put(store, models[1])
    (copy,) = (folder / 'history').glob('0002-*')
    (copy / 'dynamics.onnx').write_bytes(b'x')
    with opened(folder) as store:  # what cannot be finished is not in the way for good
        assert (store.number, store.history[-1].number) == (1, 1)
        assert put(store, models[2]).number == 3


def rollback(*arguments):
    return CliRunner().invoke(app, ['rollback', *map(str, arguments)])


def test_rollback_without_history(tmp_path):
    assert 'nothing was promoted here' in str(rollback(tmp_path).exception)
    assert not (tmp_path / 'history').exists()


def test_a_repeated_rollback_goes_one_step_only(tmp_path, models, monkeypatch):
    folder = tmp_path / 'mine'
    with opened(folder) as store:
        for model in models:
            put(store, model)
    with monkeypatch.context() as patch:
        kill_after(patch, 2)  # the history says so, and one file is at the top
        with pytest.raises(Killed), opened(folder) as store:
            store.roll_back()
    listed = rollback(folder, '--list')
    assert 'cut short' in listed.output
    result = rollback(folder)
    assert 'finished what was cut short: rolled back model 2' in result.output
    assert artifact.load(folder / 'dynamics.onnx', CART).hash == models[1].hash


def test_a_rollback_after_a_promotion_that_was_cut_short(tmp_path, models, monkeypatch):
    folder = tmp_path / 'mine'
    with opened(folder) as store:
        put(store, models[0])
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed), opened(folder) as store:
            put(store, models[1])
    result = rollback(folder)
    assert 'finished what was cut short: promoted model 2' in result.output
    assert content(folder) == content(tmp_path / 'new0')
    again = rollback(folder, '--to', 1)
    assert 'model 1' in again.output
    assert [entry.action for entry in read_history(folder)] == ['promoted', 'promoted',
                                                                'rolled back']
