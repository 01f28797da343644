"""README is true: its tables match the code, its blocks work."""

import importlib
import json
from pathlib import Path
import re
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from mbrl_ros.cli.main import app
from mbrl_ros.control.exploitation import ExploitationConfig
from mbrl_ros.control.exploration import chirp, ou, uniform
from mbrl_ros.control.ladder import LadderConfig
from mbrl_ros.control.trust import TrustConfig
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.costs import CostFunction
from mbrl_ros.nodes.controller_params import ControllerParams
from mbrl_ros.nodes.data_logger import LoggerParams
from mbrl_ros.nodes.realtime import RealTimeParams
from mbrl_ros.nodes.sim_robot import SimParams
from mbrl_ros.planning import load_planning
from mbrl_ros.planning.cem import Config
from mbrl_ros.runtime.rollout_config import RolloutConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()


def blocks(language):
    return re.findall(rf'^```{language}\n(.*?)^```', README, re.MULTILINE | re.DOTALL)


def table(heading):
    text = README.split(f'\n`{heading}\n\n')[1].split('\n\n')[0]
    return [[cell.strip() for cell in line.strip('|').split('|')]
            for line in text.splitlines()[2:]]


def rows(model, prefix='', values=None):
    return [[f'`{prefix}{name}`', f'`{json.dumps((values or {}).get(name, field.default))}`',
             field.description] for name, field in model.model_fields.items()]


def signal_rows():
    return [row for name, module in (('uniform', uniform), ('ou', ou), ('chirp', chirp))
            for row in rows(module.Config, f'{name}.')]


def controller_rows():
    planning = load_planning('cem')
    return [*rows(ControllerParams),
            *rows(RolloutConfig, 'rollout.', planning.rollout.model_dump()),
            *rows(LadderConfig, 'fallback.'), *rows(TrustConfig, 'trust.'),
            *rows(ExploitationConfig, 'exploitation.'), *rows(RealTimeParams, 'realtime.'),
            *rows(Config, 'cem.', planning.params)]


@pytest.mark.parametrize(('node', 'expected'), [
    ('sim_robot`', rows(SimParams)), ('data_logger`', rows(LoggerParams)),
    ('mpc_controller`', controller_rows()),
    ('mpc_controller` in collect mode', signal_rows())])
def test_parameter_tables_match_the_nodes(node, expected):
    assert table(node) == expected


def test_the_task_of_the_readme_loads(tmp_path):
    path = tmp_path / 'task.yaml'
    path.write_text(next(b for b in blocks('yaml') if b.startswith('name: cart_at_one_metre')))
    robot = load_robot('cartpole')
    task = load_task(str(path), robot)
    terms = CostFunction(task, robot).terms(
        np.array([0.25, 0.0, 0.0, 0.0]), np.array([2.0]), task.goal_values)
    # (0.25 - 1)^2 = 0.5625 and 2^2 = 4
    np.testing.assert_allclose(terms, [0.5625, 4.0])


def test_the_cost_term_of_the_readme_works(tmp_path, monkeypatch):
    (tmp_path / 'my_lab_costs.py').write_text(blocks('python')[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'my_lab_costs', raising=False)
    module = importlib.import_module('my_lab_costs')
    params = module.Params(signal='speed', limit=2.0)
    # 3 is 1 above the limit, 1 is below it.
    np.testing.assert_allclose(module.cost(lambda _: np.array([3.0, 1.0]), params), [1.0, 0.0])


def commands():
    lines = [line for language in ('bash', 'sh') for block in blocks(language)
             for line in block.splitlines()]
    return [line.split('mbrl-ros ', 1)[1].split() for line in lines if 'mbrl-ros ' in line]


@pytest.mark.parametrize('words', commands(), ids=' '.join)
def test_every_command_and_option_exists(words):
    verb = [word for word in words if not word.startswith('-')][:2]
    depth = 2 if verb[:1] in (['bag'], ['bench']) else 1
    result = CliRunner().invoke(app, [*verb[:depth], '--help'], env={'COLUMNS': '200'},
                                color=False)
    assert result.exit_code == 0
    plain = re.sub(r'\x1b\[[0-9;]*m', '', result.output)
    for option in (word for word in words if word.startswith('--')):
        assert option in plain


def test_make_targets_exist():
    makefile = (ROOT / 'Makefile').read_text()
    targets = {line.split()[1] for block in blocks('bash') for line in block.splitlines()
               if line.startswith('make ')}
    assert targets == {'demo', 'test'}
    assert all(re.search(rf'^{target}:', makefile, re.MULTILINE) for target in targets)
