"""Decisions as text: nothing of them is lost, whatever the numbers are."""

from base64 import b64encode
from dataclasses import replace
import json
from pathlib import Path
from types import SimpleNamespace

from fakes import cart, cart_task
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
import numpy as np
import pytest

from mbrl_ros.control.build import PilotConfig
from mbrl_ros.control.gate import Verdict
from mbrl_ros.control.mpc import Decision, Inputs
from mbrl_ros.control.record import DecisionRecorder, decode, Setup, tools
from mbrl_ros.control.replay import open_engine
from mbrl_ros.control.tick import Tick
from mbrl_ros.core.errors import BagError, ModelError, SpecError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.planning import (
    ActionSpace,
    config_class,
    load_planning,
    make_planner,
    optimise,
)
from mbrl_ros.planning.cem import Config, State
from mbrl_ros.runtime.rollout_config import RolloutConfig

# Every bit pattern of a double is one: NaN with a payload, subnormal, minus zero.
DOUBLES = arrays.arrays(np.uint64, arrays.array_shapes(min_dims=0, min_side=0, max_side=4),
                        elements=st.integers(0, 2**64 - 1)).map(lambda bits: bits.view('<f8'))
SINGLES = arrays.arrays(np.float32, 2, elements=st.floats(width=32))
WORDS = st.integers(0, 2**128 - 1)


def config_of(**changes):
    return PilotConfig(**{
        'model': Path('dynamics.onnx'), 'signal': '', 'planner': 'cem', 'source_config': Config(),
        'rollout': RolloutConfig(), 'provider': 'cpu', 'precision': '', 'delay_steps': 1,
        'deadline_s': 0.032, 'max_spread': 20.0, 'seed': 7} | changes)


def rollout_of(**changes):
    return SimpleNamespace(**{
        'model_path': Path('models/mine/dynamics.onnx'), 'model_hash': 'ab' * 32,
        'provider': 'cpu', 'precision': 'float32', 'num_tiles': 3} | changes)


def decision_of(tick=1, rollout=None, horizon=4, **changes):
    rng = np.random.default_rng(tick)
    warm = State(*rng.normal(size=(2, horizon, 1)), rng.normal(size=(3, horizon, 1)),
                 rng.normal(size=(horizon, 1)))
    inputs = Inputs(tick, rng.normal(size=4), rng.normal(size=(1, 1)), warm,
                    rng.bit_generator.state, np.float32([0.1, 0.6]), np.float32([1.0, 0.01]),
                    horizon)
    decision = Decision(inputs, rng.normal(size=(horizon, 1)), np.float32(rng.normal(size=4)),
                        rng.random(), 40, 2, 0.0123, rollout or rollout_of(), None)
    known = {key: changes.pop(key) for key in list(changes) if hasattr(inputs, key)}
    return replace(decision, inputs=replace(inputs, **known), **changes)


def tick_of(index, *finished):
    return Tick(index, Verdict(np.zeros(1), '', safe=False), None, False, 'plan', finished)


def recorder_of():
    return DecisionRecorder(cart(), cart_task(), config_of())


def told(decision, stamp_ns=5):
    text, = recorder_of().encode(tick_of(decision.tick, decision), stamp_ns)
    return text


def assert_same(one, other):
    """The same bits, in the same types."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif hasattr(one, '__dataclass_fields__'):
        assert_same(vars(one), vars(other))
    else:
        assert repr(one) == repr(other)  # NaN too


@settings(max_examples=100, deadline=None)
@given(observation=DOUBLES, actions=DOUBLES, mean=DOUBLES, goal=SINGLES, state=WORDS, inc=WORDS,
       spread=st.floats(), stamp_ns=st.integers(0, 2**63 - 1))
def test_every_bit_survives(observation, actions, mean, goal, state, inc, spread, stamp_ns):
    generator = {'bit_generator': 'PCG64', 'state': {'state': state, 'inc': inc},
                 'has_uint32': 1, 'uinteger': 2**32 - 1}
    warm = State(mean, mean, observation, actions)
    decision = decision_of(observation=observation, actions=actions, warm=warm, goal=goal,
                           generator=generator, spread=spread)
    record = decode(told(decision, stamp_ns))
    assert_same(record.inputs, decision.inputs)
    assert record.stamp_ns == stamp_ns
    for name in ('actions', 'start', 'spread', 'rejected', 'plan_s'):
        assert_same(getattr(record.outcome, name), getattr(decision, name))


@pytest.mark.parametrize('name', ['cem', 'icem', 'mppi', 'random_shooting'])
def test_the_state_of_every_sampling_planner_survives(name):
    robot, config = cart(), config_class(name)()
    planner = make_planner(name, config, ActionSpace(4, robot.action_min, robot.action_max))
    plan = optimise(planner, planner.init(), planner.noise(np.random.default_rng(0)),
                    lambda actions: (actions**2).sum(axis=(1, 2)))
    warm = planner.shift(plan.state, 1)
    recorder = DecisionRecorder(robot, cart_task(), config_of(planner=name, source_config=config))
    text, = recorder.encode(tick_of(1, decision_of(warm=warm)), 0)
    assert_same(decode(text).inputs.warm, replace(warm))


def test_views_are_recorded_as_what_they_show():
    # The planner hands out transposed, reversed and broadcast arrays.
    base = np.arange(12.0).reshape(3, 4)
    warm = State(base.T, base[:, ::-1], np.broadcast_to(1.5, (2, 3)), base[::2, 1:])
    read = decode(told(decision_of(warm=warm))).inputs.warm
    for name, array in vars(warm).items():
        np.testing.assert_array_equal(getattr(read, name), array)


@pytest.mark.parametrize('kind', [np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_any_generator_goes_on_where_it_was(kind):
    generator = np.random.Generator(kind(3))
    generator.random(5, dtype=np.float32)
    state = generator.bit_generator.state
    other = np.random.Generator(kind(4))
    other.bit_generator.state = decode(told(decision_of(generator=state))).inputs.generator
    np.testing.assert_array_equal(other.random(9, np.float32), generator.random(9, np.float32))


def test_any_reader_of_json_reads_the_same_numbers():
    def refuse(constant):
        raise AssertionError(constant)

    def whole(digits):
        assert abs(int(digits)) <= 2**53
        return int(digits)
    generator = np.random.default_rng(0).bit_generator.state
    assert generator['state']['inc'] > 2**53
    content = json.loads(told(decision_of(spread=float('nan'), generator=generator)),
                         parse_constant=refuse, parse_int=whole)
    assert content['outcome']['spread'] == {'float': 'nan'}
    # Four doubles, little-endian, as numpy's own bytes.
    decision = decision_of()
    found = json.loads(told(decision))['inputs']['observation']
    assert found == {'dtype': '<f8', 'shape': [4],
                     'base64': b64encode(decision.inputs.observation.tobytes()).decode()}


def test_a_record_needs_nothing_beside_it():
    setup = decode(told(decision_of())).setup
    assert (setup.robot, setup.task) == (cart(), cart_task())
    assert (setup.model_hash, setup.num_tiles, setup.provider) == ('ab' * 32, 3, 'cpu')
    assert setup.model == str(Path('models/mine/dynamics.onnx').resolve())
    assert setup.tools == tools()
    # The same settings again, but on the CPU and in no hurry.
    assert setup.config(Path('other.onnx')) == config_of(model=Path('other.onnx'),
                                                         deadline_s=None)
    assert setup.deadline_s == 0.032


def test_a_reloaded_model_is_another_setup():
    recorder, other = recorder_of(), rollout_of(model_hash='cd' * 32, num_tiles=1)
    texts = [recorder.encode(tick_of(i, decision_of(i, rollout)), i)[0]
             for i, rollout in enumerate([rollout_of(), other, other], start=1)]
    assert [(r.setup.model_hash[:2], r.setup.num_tiles) for r in map(decode, texts)] \
        == [('ab', 3), ('cd', 1), ('cd', 1)]


def test_late_plans_carry_the_stamp_of_what_they_answer():
    recorder = recorder_of()
    # Tick 2 brings a plan of tick 1, which nobody listened to yet; tick 4 those of 3 and 4.
    assert recorder.encode(tick_of(2, decision_of(1)), 200) == []
    assert recorder.encode(tick_of(3), 300) == []
    late, own = map(decode, recorder.encode(tick_of(4, decision_of(3), decision_of(4)), 400))
    assert [(r.inputs.tick, r.stamp_ns) for r in (late, own)] == [(3, 300), (4, 400)]


PLANNER = """
from collections import namedtuple
from mbrl_ros.planning.cem import Config, Planner as Cem
from mbrl_ros.runtime.rollout_config import RolloutConfig

State = namedtuple('State', 'mean')

class Planner(Cem):
    def init(self):
        return State(super().init().mean)
"""


def test_a_planner_whose_state_could_not_be_recorded_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'lab').mkdir()
    (tmp_path / 'lab' / '__init__.py').write_text('')
    (tmp_path / 'lab' / 'tuples.py').write_text(PLANNER)
    with pytest.raises(SpecError, match=r"'lab\.tuples': its state, a State, cannot be recorded"):
        DecisionRecorder(cart(), cart_task(), config_of(planner='lab.tuples'))
    # A signal has no state to be recorded.
    DecisionRecorder(cart(), cart_task(), config_of(signal='uniform', planner='lab.tuples'))


def test_a_decision_of_the_cart_pole_is_small():
    robot, planning = load_robot('cartpole'), load_planning('cem')
    task = load_task('cartpole_swingup', robot)
    recorder = DecisionRecorder(robot, task, config_of(source_config=Config(**planning.params)))
    text, = recorder.encode(tick_of(1, decision_of(1, horizon=task.horizon)), 0)
    # Mean, std, best, actions and three elites of 20 doubles: 7 * 160 bytes, a third more in
    # base64, is 1.5 kB; robot and task as JSON 2 kB; settings and names 1 kB.
    assert len(text) < 6000


def spoilt(**changes):
    content = json.loads(told(decision_of()))
    content['setup'] |= changes
    return json.dumps(content)


@pytest.mark.parametrize(('text', 'error', 'problem'), [
    ('hello', BagError, 'no record of a decision'),
    ('[]', BagError, 'no record of a decision'),
    ('{}', BagError, "KeyError: 'setup'"),
    (spoilt(format=1), BagError, 'format: Input should be 2'),
    (spoilt(colour='red'), BagError, "unknown key 'colour'"),
    (spoilt(planner='divination'), SpecError, "unknown name 'divination'. Known: cem")])
def test_what_cannot_be_read_is_refused(text, error, problem):
    with pytest.raises(error, match=problem):
        decode(text)


def test_a_record_cut_short_is_refused():
    with pytest.raises(BagError, match='no record of a decision'):
        decode(told(decision_of())[:-10])


def test_a_value_that_is_not_what_it_was_is_refused_by_name(tmp_path):
    value = tmp_path / 'value.onnx'
    value.write_bytes(b'one')
    robot = load_robot('cartpole')
    setup = Setup.of(robot, load_task('cartpole_swingup', robot),
                     config_of(rollout=RolloutConfig(value=str(value))), rollout_of())
    value.write_bytes(b'another')
    # SHA-256 of the two, by sha256sum.
    with pytest.raises(ModelError, match=r'value\.onnx: hash ae448ac86c.* with 7692c3ad3540'):
        open_engine(setup, Path('dynamics.onnx'))
