"""Compiled graphs on disk: found again, made anew when anything changed, never in the way."""

import importlib
import os
from pathlib import Path
import sys

from fakes import artifact_of, cart, cart_model, cart_task, rolls
import numpy as np
import pytest

from mbrl_ros.runtime.rollout import Rollout


def test_a_compiled_graph_comes_from_the_cache_until_anything_changes(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    robot, task = cart(), cart_task()
    model = artifact_of(cart_model(), robot, 2)
    noisy = artifact_of(cart_model(std=0.5), robot, 2)
    rng = np.random.default_rng(0)
    state, actions = rng.normal(size=2), rng.uniform(-2, 2, (7, 4, 1))

    def use(*arguments):
        rollout = Rollout(*arguments)
        cost = rollout.costs(state, actions, rollout.draw(np.random.default_rng(0)))
        rollout.close()
        return rollout.was_cached, cost
    was_cached, cost = use(model, robot, task, rolls(6))
    assert not was_cached
    was_cached, again = use(model, robot, task, rolls(6))
    assert was_cached
    np.testing.assert_array_equal(again, cost)
    heavier = cart_task(goal=[], cost=[{'term': 'squared', 'params': {'signal': 'velocity'}}])
    for arguments in ((noisy, robot, task, rolls(6)), (model, robot, task, rolls(4)),
                      (model, robot, heavier, rolls(6)),
                      (model, robot, task, rolls(6, 'ts1'))):
        assert not use(*arguments)[0]
        assert use(*arguments)[0]
    # A damaged file is made anew.
    for path in tmp_path.rglob('*.rollout'):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    was_cached, repaired = use(model, robot, task, rolls(6))
    assert not was_cached
    np.testing.assert_array_equal(repaired, cost)


def test_a_cache_that_cannot_be_written_is_none(monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('not a folder')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    for _ in range(2):
        rollout = Rollout(artifact_of(cart_model(), cart(), 2), cart(), cart_task(), rolls(2))
        assert not rollout.was_cached
        rollout.close()


def test_a_cache_that_can_only_be_read_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    model = artifact_of(cart_model(), cart(), 2)
    Rollout(model, cart(), cart_task(), rolls(2)).close()

    def refuse(*given):
        raise PermissionError
    monkeypatch.setattr(os, 'utime', refuse)
    monkeypatch.setattr(os, 'replace', refuse)
    rollout = Rollout(model, cart(), cart_task(), rolls(2))
    assert rollout.was_cached
    rollout.close()


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def homeless():
        raise RuntimeError('Could not determine home directory.')
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(Path, 'home', homeless)
    rollout = Rollout(artifact_of(cart_model(), cart(), 2), cart(), cart_task(), rolls(2))
    assert not rollout.was_cached
    rollout.close()


def test_another_text_of_a_cost_term_is_another_graph(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    task = cart_task(goal=[], cost=[{'term': 'lab_of_ours.far', 'params': {'signal': 'position'}}])
    folder = tmp_path / 'lab_of_ours'
    folder.mkdir()
    (folder / '__init__.py').write_text('')
    (folder / 'scale.py').write_text('SCALE = 2.0\n')
    (folder / 'far.py').write_text("""
from lab_of_ours.scale import SCALE
from mbrl_ros.core.yaml_file import Strict

class Params(Strict):
    signal: str

def cost(signal, params):
    return SCALE * signal(params.signal)
""")
    model = artifact_of(cart_model(), cart(), 2)
    # One step from (0, 1) leads to 0.1, the second to 0.2: 2 x 0.3 without force, then 3 x 0.3.
    for scale, expected in ((2.0, 2.0), (3.0, 3.0)):
        (folder / 'scale.py').write_text(f'SCALE = {scale}\n')
        for name in [name for name in sys.modules if name.startswith('lab_of_ours')]:
            del sys.modules[name]
        importlib.invalidate_caches()
        rollout = Rollout(model, cart(), task.model_copy(update={'horizon': 2}), rolls(2))
        cost = rollout.costs(np.array([0.0, 1.0]), np.zeros((1, 2, 1)),
                             rollout.draw(np.random.default_rng(0)))
        assert cost[0] == pytest.approx(expected * 0.3, rel=1e-5)
        assert not rollout.was_cached
        rollout.close()
