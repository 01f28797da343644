"""Cost terms: values by hand, NumPy against the traced graph, a task and a term of one's own."""

from fakes import artifact_of, cart, cart_model, cart_task, rolls
import ndonnx as ndx
import numpy as np
import pytest
from spox import argument, build, Tensor

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.costs import CostFunction
from mbrl_ros.runtime.ort import open_ort
from mbrl_ros.runtime.rollout import Rollout

GOAL = np.array([0.0, 0.6])


@pytest.fixture
def swingup():
    robot = load_robot('cartpole')
    return CostFunction(load_task('cartpole_swingup', robot), robot)


# Tip at (x - 0.6 sin h, -0.6 cos h), goal (0, 0.6), scale 0.6, cost -exp(-d^2 / 0.36).
@pytest.mark.parametrize(('slider', 'hinge', 'expected'), [
    (0.0, np.pi, -1.0),  # upright in the middle: d = 0
    (0.0, 0.0, -np.exp(-4.0)),  # hanging: tip at -0.6, d = 1.2, d^2 = 1.44 = 4 x 0.36
    (0.6, np.pi, -np.exp(-1.0)),  # upright, 0.6 m off: d^2 = 0.36
    (0.6, np.pi / 2, -np.exp(-1.0)),  # tip at (0.6 - 0.6, 0): d^2 = 0.36; needs the sign of sin
    (0.0, np.pi / 2, -np.exp(-2.0)),  # tip at (-0.6, 0): d^2 = 0.72
])
def test_pole_tip(swingup, slider, hinge, expected):
    tip, _ = swingup.terms(np.array([slider, hinge, 9.0, 9.0]), np.zeros(1), GOAL)
    assert tip == pytest.approx(expected, abs=1e-12)


def test_pole_tip_follows_its_goal(swingup):
    # Goal at the hanging tip (0, -0.6): d = 0.
    tip, _ = swingup.terms(np.zeros(4), np.zeros(1), np.array([0.0, -0.6]))
    assert tip == pytest.approx(-1.0)


def test_squared(swingup):
    _, effort = swingup.terms(np.zeros(4), np.array([-3.0]), GOAL)
    assert effort == 9.0
    function = CostFunction(cart_task(cost=[
        {'term': 'squared', 'name': 'to_goal', 'params': {'signal': 'position',
                                                          'target': 'where'}},
        {'term': 'squared', 'name': 'to_field', 'params': {'signal': 'position',
                                                           'target': 'velocity'}},
        {'term': 'squared', 'name': 'to_number', 'params': {'signal': 'velocity',
                                                            'target': 0.5}}]), cart())
    terms = function.terms(np.array([3.0, 1.0]), np.zeros(1), np.array([1.0]))
    # (3 - 1)^2, (3 - 1)^2, (1 - 0.5)^2
    assert terms == [4.0, 4.0, 0.25]
    assert function.labels == ['to_goal', 'to_field', 'to_number']


def test_terms_broadcast(swingup):
    state = np.random.default_rng(0).normal(size=(3, 2, 5, 4))
    tip, effort = swingup.terms(state, np.zeros((3, 1, 5, 1)), GOAL)
    assert tip.shape == (3, 2, 5)
    assert effort.shape == (3, 1, 5)
    single, _ = swingup.terms(state[2, 1, 3], np.zeros(1), GOAL)
    assert tip[2, 1, 3] == pytest.approx(single)


@pytest.mark.parametrize(('robot', 'task'), [
    ('cartpole', 'cartpole_swingup'), ('pusher', 'pusher_push'),
    ('half_cheetah', 'half_cheetah_run')])
def test_numpy_equals_the_traced_graph(robot, task):
    spec = load_robot(robot)
    target = load_task(task, spec)
    function = CostFunction(target, spec)
    shapes = {'state': ('N', len(spec.observation)), 'action': ('N', len(spec.action)),
              'goal': (len(target.goal),)}
    rng = np.random.default_rng(1)
    arrays = {name: rng.normal(size=[50 if n == 'N' else n for n in shape]).astype(np.float32)
              for name, shape in shapes.items()}
    inputs = {name: argument(Tensor(np.float32, shape)) for name, shape in shapes.items()}
    traced = function.terms(*(ndx.asarray(var) for var in inputs.values()))
    model = build(inputs, {label: term.unwrap_spox()
                           for label, term in zip(function.labels, traced, strict=True)})
    found = open_ort(model.SerializeToString(), 'CPUExecutionProvider').run(
        function.labels, {n.name: arrays[n.name] for n in model.graph.input})
    for one, other in zip(found, function.terms(*arrays.values()), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def rollout_cost(robot, task, actions):
    rollout = Rollout(artifact_of(cart_model(), robot, 2), robot, task, rolls(2), threads=1)
    try:
        draw = rollout.draw(np.random.default_rng(0))
        return rollout.costs(np.array([0.0, 1.0]), np.array(actions)[None, :, None], draw)[0]
    finally:
        rollout.close()


def test_a_task_is_one_file(tmp_path):
    path = tmp_path / 'hold.yaml'
    path.write_text("""
name: hold
robot: cart
horizon: 2
episode_steps: 10
cost:
  - {term: squared, weight: 3.0, params: {signal: velocity, target: 2.0}}
""")
    # No goal at all. Velocity 1 -> 1.1 -> 1.3 under forces 1, 2: 3 (0.9^2 + 0.7^2) = 3.9.
    assert rollout_cost(cart(), load_task(path, cart()), [1.0, 2.0]) == pytest.approx(3.9)


def test_a_cost_term_is_one_file_anywhere(tmp_path, monkeypatch):
    (tmp_path / 'my_terms').mkdir()
    (tmp_path / 'my_terms' / 'absolute.py').write_text("""
from mbrl_ros.core.yaml_file import Strict


class Params(Strict):
    signal: str


def cost(signal, params):
    value = signal(params.signal)
    return value.__array_namespace__().abs(value)
""")
    monkeypatch.syspath_prepend(tmp_path)
    task = cart_task(horizon=2, goal=[], cost=[
        {'term': 'my_terms.absolute', 'params': {'signal': 'force'}}])
    # |-1| + |0.5|
    assert rollout_cost(cart(), task, [-1.0, 0.5]) == pytest.approx(1.5)


def test_l1_distance_between_fields_and_numbers():
    function = CostFunction(cart_task(cost=[
        {'term': 'l1_distance', 'params': {'point': ['position', 'velocity', 0.5],
                                           'goal': ['where', 2.0, -0.25]}},
        {'term': 'linear', 'name': 'fast', 'params': {'signal': 'velocity', 'factor': -1.5}}]),
        cart())
    distance, fast = function.terms(np.array([3.0, 1.0]), np.zeros(1), np.array([5.0]))
    # |3 - 5| + |1 - 2| + |0.5 + 0.25|
    assert distance == pytest.approx(3.75)
    assert fast == -1.5
    np.testing.assert_array_equal(
        function.position(np.array([3.0, 1.0]), np.zeros(1), np.array([5.0])), [3.0, 1.0, 0.5])
    np.testing.assert_array_equal(function.target(np.array([5.0])), [5.0, 2.0, -0.25])


@pytest.mark.parametrize(('params', 'text'), [
    ({'point': [0.0, 0.0, 0.0], 'goal': [1.0, 1.0, 1.0]}, 'at least one field'),
    ({'point': ['position', 'height', 0.0], 'goal': [1.0, 1.0, 1.0]}, "unknown field 'height'"),
    ({'point': ['position', 0.0], 'goal': [1.0, 1.0, 1.0]}, 'Field required'),
])
def test_l1_distance_refuses(params, text):
    with pytest.raises(SpecError, match=text):
        CostFunction(cart_task(cost=[{'term': 'l1_distance', 'params': params}]), cart())
