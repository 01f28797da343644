"""`mbrl-ros bench tune`: what it searches, what it writes, and that the controller takes it."""

import json
import re

import pytest

pytest.importorskip('rclpy')

from controller_files import edit, make_controller, write_files
from fakes import artifact_of, cart, cart_model, cart_task
import numpy as np
from rclpy.parameter import parameter_dict_from_yaml_file
from typer.testing import CliRunner
import yaml

from mbrl_ros.bench import tune
from mbrl_ros.cli.bench import app
from mbrl_ros.core.errors import PlanningError, ProviderError, SpecError
from mbrl_ros.planning import (
    ActionSpace,
    config_class,
    load_planning,
    make_planner,
    PlanningConfig,
)
from mbrl_ros.planning.cem import Config

START = Config(population=40, num_elites=6, keep_elites=3, iterations=1)
PLANNING = PlanningConfig(planner='cem', rollout={'particles': 2},
                          params={'population': 40, 'num_elites': 6, 'iterations': 1})


class FakeBench:
    """A machine that takes 0.1 ms a candidate, and 10 % more over the plans of the last check."""

    def __init__(self):
        self.populations = []

    def measure(self, config, plans, seconds):
        self.populations.append(config.population)
        p99_s = 1e-4 * config.population * (1.1 if plans > tune.PLANS else 1.0)
        return tune.Attempt('cpu', 'float32', config, p99_s, p99_s, plans)


@pytest.mark.parametrize('limit_s', [0.001, 0.003, 0.004, 0.0123, 0.1, 0.9])
def test_the_search_ends_just_below_the_limit(limit_s):
    bench = FakeBench()
    best = list(tune._search(bench, START, limit_s))[-1]
    exact = limit_s / 1.1e-4
    # Populations closer than a tenth are not told apart; the last check may take one more off.
    assert exact / 1.1**2 - 1 <= best.population <= exact
    assert best.num_plans == tune.FINAL_PLANS
    assert best.p99_s <= limit_s
    assert len(bench.populations) < 20


def test_the_search_knows_both_ends():
    best, = tune._search(FakeBench(), START, 0.0005)
    assert (best.population, best.p99_s > 0.0005) == (tune.SMALLEST, True)
    best, = tune._search(FakeBench(), START, 60.0)
    assert best.population == tune.LARGEST


def test_elites_keep_their_share():
    config = tune._with_population(START, 400)
    assert (config.population, config.num_elites, config.keep_elites) == (400, 60, 30)
    # 8 candidates: 1.2 elites, of which 0.6 are kept.
    config = tune._with_population(START, 8)
    assert (config.population, config.num_elites, config.keep_elites) == (8, 2, 1)


@pytest.mark.parametrize('name', ['cem', 'cem_fine', 'icem', 'icem_fine', 'mppi', 'pets',
                                  'random_shooting'])
def test_every_shipped_planner_can_be_tuned(name):
    planning = load_planning(name)
    start = config_class(planning.planner).model_validate(planning.params)
    space = ActionSpace(3, np.array([-1.0]), np.array([1.0]))
    for population in (tune.SMALLEST, 43, tune.LARGEST):
        planner = make_planner(planning.planner, tune._with_population(start, population), space)
        noise = planner.noise(np.random.default_rng(0))
        assert len(planner.sample(planner.init(), noise)) == population


@pytest.fixture
def brief(monkeypatch):
    """Measure few plans of few candidates: real ones, in little time."""
    for name, value in (('LARGEST', 64), ('PLANS', 5), ('FINAL_PLANS', 7)):
        monkeypatch.setattr(tune, name, value)


def test_real_plans_are_measured_and_the_slowest_budget_is_refused(brief):
    robot, task = cart(), cart_task()
    model = artifact_of(cart_model(), robot, 2)
    seen = []
    best = tune.tune(robot, task, model, PLANNING, 60.0, provider='cpu', progress=seen.append)
    assert best.population == tune.LARGEST == seen[-1].population
    assert 0.0 < best.p50_s <= best.p99_s < 60.0
    with pytest.raises(PlanningError, match=r'8 candidates take .* more than 0.0 ms. Try fewer'):
        tune.tune(robot, task, model, PLANNING, 1e-6)
    with pytest.raises(ProviderError, match='int8'):
        tune.tune(robot, task, model, PLANNING, 1.0, provider='cpu', precision='int8')


def test_a_planner_without_population_is_refused(monkeypatch):
    monkeypatch.setattr(tune, 'config_class', lambda name: PlanningConfig)
    with pytest.raises(SpecError, match="planner 'cem' has no population"):
        tune.tune(cart(), cart_task(), artifact_of(cart_model(), cart(), 2), PLANNING, 1.0)


def test_the_command_writes_what_the_controller_reads(ros, brief, tmp_path, monkeypatch):
    monkeypatch.setattr(tune.Mpc, 'warm_up', lambda mpc, *limits: np.full(5, 0.039))
    write_files(tmp_path)
    edit(tmp_path / 'planners.yaml', params={'population': 40, 'num_elites': 6, 'iterations': 2})
    output = tmp_path / 'tuned.yaml'
    result = CliRunner().invoke(app, [
        'tune',
        *(f'--{kind}={tmp_path / name}' for kind, name in (
            ('robot', 'robots.yaml'), ('task', 'tasks.yaml'), ('planner', 'planners.yaml'),
            ('model', 'dynamics.onnx'))),
        '--provider=cpu', '--share=1.0', f'--output={output}', '--json'])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report['limit_ms'] == pytest.approx(40.0)
    assert report['best'] in report['attempts']
    values = yaml.safe_load(output.read_text())['/**/mpc_controller']['ros__parameters']
    assert values['cem']['population'] == report['best']['population']
    assert values['cem']['iterations'] == 2
    assert re.search(r'^# .*the control period is 40 ms', output.read_text(), re.MULTILINE)

    # The names are those of the controller, once it has declared them.
    controller = make_controller(tmp_path)
    given = parameter_dict_from_yaml_file(str(output), target_nodes=['/**/mpc_controller'])
    assert controller.trigger_configure().name == 'SUCCESS', controller.refusal
    unknown = [name for name in given if not controller.has_parameter(name)]
    assert unknown == []
    controller.leave()
    controller.destroy_node()
