"""Recorded decisions are made again: by their own model bit for bit, by others as a picture."""

from dataclasses import replace
import json
import shutil

from bag_factory import array, joint_state, string, write_bag
from fakes import rolls, save_artifact
from matplotlib.figure import Figure
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from typer.testing import CliRunner

from mbrl_ros.cli.main import app
from mbrl_ros.cli.replay_plot import draw_decision, what_followed
from mbrl_ros.control.build import build_engine, build_pilot, PilotConfig
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.record import DecisionRecorder, decode
from mbrl_ros.control.replay import changed_tools, compare, Replayer
from mbrl_ros.control.tick import Observation
from mbrl_ros.core.errors import BagError, ModelError
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.planning.cem import Config
from mbrl_ros.runtime import artifact
from mbrl_ros.sim.mujoco_robot import MujocoRobot

SPEC = load_robot('cartpole')
HORIZON = 6
TASK = load_task('cartpole_swingup', SPEC).model_copy(update={'horizon': HORIZON})
BUDGET = {'population': 16, 'num_elites': 4, 'iterations': 2, 'keep_elites': 2,
          'noise_exponent': 2.0}
EPISODES, STEPS = 5, 40


def config_of(model, particles=5, propagation='ts_infinity', **budget):
    return PilotConfig(
        model=model, signal='', planner='cem', source_config=Config(**BUDGET | budget),
        rollout=rolls(particles, propagation), provider='cpu',
        precision='', delay_steps=1, deadline_s=None, max_spread=1e6, seed=11)


class Driver:
    """Drives the simulated robot in lock-step, one period late, and records what it decides."""

    def __init__(self, config, num_tiles=2):
        self.config = config
        self.built = build_pilot(SPEC, TASK, config, Latch())
        self.built.engine.rollout.num_tiles = num_tiles
        self.recorder = DecisionRecorder(SPEC, TASK, config)
        self.body, self.rng = MujocoRobot(SPEC), np.random.default_rng(5)
        self.stamp_ns, self.messages = SPEC.dt_ns, []

    def drive(self, steps):
        """Begin an episode; `messages` grows by its topics."""
        self.body.reset(self.rng)
        self.built.pilot.forget()
        self.stamp_ns += 10**9  # the reader sees the gap between two episodes
        acting = SPEC.safe_value
        for _ in range(steps):
            state = self.body.state()
            tick = self.built.pilot.tick(Observation(state))
            for topic, message in (
                    ('joint_states', joint_state(self.stamp_ns, state[:2], state[2:])),
                    ('forward_command_controller/commands', array(*acting)),
                    *(('mpc_controller/decision', string(text))
                      for text in self.recorder.encode(tick, self.stamp_ns))):
                self.messages.append((topic, self.stamp_ns, message))
            self.body.step(acting)
            acting = tick.verdict.command
            self.stamp_ns += SPEC.dt_ns

    def records(self):
        return [decode(m.data) for topic, _, m in self.messages if topic.endswith('decision')]

    def record(self, number):
        return decode(self.messages[3 * number + 2][2].data)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Return two models of the cart-pole; a layer of the other one is twice as large."""
    folder = tmp_path_factory.mktemp('models')
    own, other = folder / 'own' / 'dynamics.onnx', folder / 'other' / 'dynamics.onnx'
    known = artifact.load(find_model('cartpole'), SPEC)
    save_artifact(own, known.model, known.metadata | {'horizon': 7})  # its hash is not shipped
    changed = onnx.ModelProto.FromString(known.model.SerializeToString())
    weights = max((part.t for node in changed.graph.node for part in node.attribute),
                  key=lambda tensor: np.prod(tensor.dims))
    weights.CopyFrom(onnx.numpy_helper.from_array(
        onnx.numpy_helper.to_array(weights) * np.float32(2.0), weights.name))
    save_artifact(other, changed, known.metadata)
    return own, other


@pytest.fixture(scope='module')
def driven(models):
    """Return what five episodes recorded, each towards another goal."""
    driver = Driver(config_of(models[0]))
    for episode in range(EPISODES):
        driver.built.engine.rollout.set_goal(np.array([0.1 * episode, 0.6]))
        driver.drive(STEPS)
    driver.built.close()
    return driver


@pytest.fixture(scope='module')
def bag(driven, tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp('bags') / 'bag', driven.messages)


@pytest.fixture
def brief(driven, tmp_path):
    """Return a function that writes a bag of the first ten decisions, changed or not."""
    def write(change=lambda number, content: None):
        messages, number = [], 0
        for topic, stamp_ns, message in driven.messages[:30]:
            if topic.endswith('decision'):
                content = json.loads(message.data)
                change(number, content)
                message, number = string(json.dumps(content)), number + 1  # noqa: PLW2901
            messages.append((topic, stamp_ns, message))
        assert number == 10
        return write_bag(tmp_path / 'brief', messages)
    return write


def run(*arguments, status=0):
    result = CliRunner().invoke(app, ['replay', *map(str, arguments)], env={'COLUMNS': '200'})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.output


def test_a_thousand_decisions_come_out_the_same(bag):
    count = EPISODES * STEPS
    assert f'{count} decisions made again on the CPU: {count} are the same, bit for bit' \
        in run(bag, '--all')


@pytest.mark.parametrize(('settings', 'num_tiles'), [
    ({'propagation': 'ts1', 'particles': 10}, 1), ({'execute': 'best'}, 2),
    ({'warm_start': False, 'noise_exponent': 0.0, 'keep_elites': 0}, 2)])
def test_any_way_to_plan_comes_out_the_same(models, settings, num_tiles):
    driver = Driver(config_of(models[0], **settings), num_tiles)
    driver.drive(10)
    driver.built.close()
    with Replayer() as replayer:
        again = [compare(record, replayer.decide(record)) for record in driver.records()]
    assert [found.differences for found in again] == [()] * 10


def test_each_decision_is_made_again_by_the_model_of_its_time(models):
    driver = Driver(config_of(models[0]))
    driver.drive(5)
    old, new = driver.built.engine, build_engine(SPEC, TASK, config_of(models[1]), num_tiles=2)
    assert driver.built.pilot.replace_model(new.mpc, new.spread_limit, new.gauge, None)
    driver.drive(5)
    driver.built.pilot.close()
    old.close()
    new.close()
    records = driver.records()
    hashes = [record.setup.model_hash for record in records]
    assert hashes == [old.rollout.model_hash] * 5 + [new.rollout.model_hash] * 5
    with Replayer() as replayer:
        assert all(compare(record, replayer.decide(record)).is_exact for record in records)


def test_one_changed_bit_of_what_was_seen_is_noticed(brief):
    def nudge(number, content):
        if number == 3:
            record = decode(json.dumps(content))
            record.inputs.observation[1] += 1e-3
            kept = content['inputs']['observation']
            kept['base64'] = encoded(record.inputs.observation)
    text = run(brief(nudge), '--all', status=1)
    assert '10 decisions made again on the CPU: 9 are the same' in text
    assert '1 differ:\ntick 4, 0.12 s: start: ' in text


def encoded(values):
    from base64 import b64encode  # noqa: PLC0415

    return b64encode(values.tobytes()).decode()


def test_a_changed_last_bit_of_the_outcome_is_noticed(driven):
    record = driven.record(7)
    with Replayer() as replayer:
        again = replayer.decide(record)
    assert compare(record, again).is_exact
    actions = record.outcome.actions.copy()
    actions[2, 0] = np.nextafter(actions[2, 0], 9.0)
    found = compare(replace(record, outcome=replace(record.outcome, actions=actions)), again)
    assert not found.is_good
    assert len(found.differences) == 1
    assert found.differences[0].startswith('actions: 1 of 6 numbers, by up to ')
    assert found.differences[0].endswith('(slider_force, step 2)')
    for change in ({'spread': 0.5}, {'rejected': 1}, {'start': record.outcome.start + 1},
                   {'start': record.outcome.start.astype(float)}):
        spoilt = replace(record, outcome=replace(record.outcome, **change))
        difference, = compare(spoilt, again).differences
        assert difference.startswith(f'{next(iter(change))}: ')


def test_another_provider_must_come_close_only(driven):
    record = driven.record(7)
    with Replayer() as replayer:
        again = replayer.decide(record)
    # The action's range is 6 N: 1.1 is 0.183 of it, 1.3 is 0.217, and a fifth is allowed.
    for apart, is_good in ((1.1, True), (1.3, False)):
        other = replace(record, setup=record.setup.model_copy(update={'provider': 'cuda'}),
                        outcome=replace(record.outcome, actions=again.actions + apart))
        found = compare(other, again)
        assert (found.is_exact, found.is_good) == (False, is_good)
        assert found.deviation == pytest.approx(apart / 6.0)


def test_what_was_not_made_on_the_cpu_is_said(brief):
    def relabel(number, content):
        content['setup'] |= {'provider': 'cuda', 'precision': 'tf32'}
        content['outcome']['spread'] *= 1.001
    bag = brief(relabel)
    assert '0 are the same, bit for bit\n10 were not made on the CPU: their actions may differ ' \
           'by 0.2 of their range' in run(bag, '--all')
    assert 'close enough the same\nspread: ' in run(bag, '--tick', 2)


def test_other_tools_are_named_where_bits_differ(brief):
    def age(number, content):
        content['setup']['tools']['onnxruntime'] = '0.9'
        content['outcome']['rejected'] = 3
    bag = brief(age)
    assert 'rejected: 3 was recorded, now it is 0\nonnxruntime: recorded with 0.9, here is ' \
        in run(bag, '--at', 0, status=1)
    text = run(bag, '--all', status=1)
    assert '10 differ:' in text
    assert 'recorded with 0.9' in text


def test_the_same_tools_change_nothing(driven):
    assert changed_tools(driven.record(0).setup) == []


def test_a_decision_is_found_by_its_time_or_tick(brief):
    bag = brief()
    # Ten ticks, 0.04 s apart, from the first message on.
    assert 'tick 5, 0.16 s after the start' in run(bag, '--at', 0.17)
    assert 'tick 10, 0.36 s after the start' in run(bag, '--at', 99)
    assert 'made again on the CPU: the same, bit for bit' in run(bag, '--tick', 5)
    with pytest.raises(BagError, match='tick 11: no decision; the bag has those of ticks 1 to 10'):
        run(bag, '--tick', 11)
    for choice in ((), ('--all', '--at', 1), ('--at', 1, '--tick', 1)):
        assert 'give one of' in run(bag, *choice, status=2)
    assert 'one decision' in run(bag, '--all', '--output', 'x.png', status=2)


def test_a_tick_number_that_came_twice_is_not_guessed(brief):
    def restart(number, content):
        content['inputs']['tick'] = 1 + number % 5
    with pytest.raises(BagError, match=r'started anew decided at 0\.04, 0\.24 s\. Try: --at'):
        run(brief(restart), '--tick', 2)


def test_another_model_is_asked_and_drawn(brief, models, tmp_path):
    picture = tmp_path / 'pictures' / 'other.png'
    text = run(brief(), '--tick', 3, '--model', models[1].parent, '--output', picture)
    assert 'made again on the CPU: the same, bit for bit' in text
    assert f'model {models[1]}, hash ' in text
    assert 'slider_force [1]: ' in text
    assert 'was foreseen for the recorded plan' in text
    assert f'picture: {picture}' in text
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_without_the_model_another_one_may_still_be_asked(brief, models, tmp_path, monkeypatch):
    def move(number, content):
        content['setup'] |= {'model': str(tmp_path / 'gone.onnx'), 'model_hash': 'ab' * 32}
    bag = brief(move)
    with pytest.raises(ModelError) as caught:
        run(bag, '--tick', 3)
    for part in ('hash abababababababab', f'{tmp_path}/gone.onnx: No such file', '--model PATH',
                 f'{find_model("cartpole")}: hash '):
        assert part in str(caught.value)
    monkeypatch.chdir(tmp_path)
    text = run(bag, '--tick', 3, '--model', models[1])
    assert 'not made again: the model with hash abababababababab' in text
    assert 'picture: replay_3.png' in text
    assert (tmp_path / 'replay_3.png').is_file()


def test_a_model_that_was_moved_is_taken_from_where_it_is(brief, models, tmp_path):
    def move(number, content):
        content['setup']['model'] = str(tmp_path / 'gone.onnx')
    bag, moved = brief(move), tmp_path / 'moved' / 'dynamics.onnx'
    moved.parent.mkdir()
    shutil.copy(models[0], moved)
    assert '10 are the same, bit for bit' in run(bag, '--all', '--model', moved)
    text = run(bag, '--tick', 3, '--model', moved.parent)
    assert 'the same, bit for bit' in text
    assert 'picture' not in text
    with pytest.raises(ModelError, match=r'gone\.onnx: No such file'):
        run(bag, '--all')


def test_all_decisions_are_not_asked_of_another_model(brief, models):
    with pytest.raises(ModelError, match=r'made none of these decisions; \w{16} did\. To see'):
        run(brief(), '--all', '--model', models[1])


def test_the_picture_shows_both_plans_and_what_followed(driven, bag, models):
    record = driven.record(STEPS + 20)
    with Replayer() as replayer:
        again = replayer.decide(record)
        other = build_engine(SPEC, TASK, config_of(models[1]), num_tiles=2)
        would = other.mpc.decide(record.inputs)
        followed = what_followed(load_dataset([bag], SPEC).episodes, record)
        figure = Figure()
        draw_decision(figure, record, again, would, followed)
        other.close()
    # Delay 1 and horizon 6: seven steps, from the very state that was observed.
    assert followed.num_steps == 7
    np.testing.assert_array_equal(followed.states[0], record.inputs.observation)
    force, *states = figure.axes
    assert [axes.get_title() for axes in figure.axes] == [
        'slider_force [1]', 'slider_position [m]', 'hinge_position [rad]',
        'slider_velocity [m/s]', 'hinge_velocity [rad/s]', '']
    really, planned, wanted = force.lines[:3]
    np.testing.assert_array_equal(really.get_ydata()[:-1], followed.actions[:, 0])
    np.testing.assert_array_equal(planned.get_ydata()[:-1], record.outcome.actions[:, 0])
    np.testing.assert_array_equal(wanted.get_ydata()[:-1], would.actions[:, 0])
    assert (planned.get_ydata() != wanted.get_ydata()).any()
    # What is planned acts from one period of 0.04 s after the observation.
    np.testing.assert_allclose(planned.get_xdata(), 0.04 * np.arange(1, 8))
    for index, axes in enumerate(states[:4]):
        really, foreseen, other_foreseen = axes.lines[:3]
        np.testing.assert_array_equal(really.get_ydata(), followed.states[:, index])
        assert foreseen.get_ydata()[0] == pytest.approx(again.start[index])
        np.testing.assert_allclose(
            other_foreseen.get_ydata()[1:], would.prediction.states[:, :, index].mean(axis=1))


def test_what_followed_ends_with_the_recording(driven, bag):
    episodes = load_dataset([bag], SPEC).episodes
    assert len(episodes) == EPISODES
    last = driven.record(STEPS - 4)
    # 200 states are 199 transitions, and the plan of the fourth last state sees three of them.
    assert what_followed(episodes, last).num_steps == 3
    assert what_followed(episodes, driven.record(STEPS - 1)) is None
    assert what_followed([], last) is None


@pytest.mark.parametrize('topics', [('joint_states',), ('joint_states', 'mpc_controller/plan')])
def test_a_bag_without_decisions_says_how_to_get_them(tmp_path, topics):
    bag = write_bag(tmp_path / 'bag', [(topic, 0, string('')) for topic in topics])
    with pytest.raises(BagError, match=r"no topic 'mpc_controller/decision'.* 'topics' lists"):
        run(bag, '--all')


def test_an_announced_topic_without_a_decision_says_so_too(tmp_path):
    from mbrl_ros.data.bag_writer import BagWriter  # noqa: PLC0415

    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/mpc_controller/decision', 'std_msgs/msg/String')
        writer.add_topic('/episode', 'std_msgs/msg/String')
        writer.write('/episode', b'\0\1\0\0\1\0\0\0\0', 0, 0)
    with pytest.raises(BagError, match="nothing on topic '/mpc_controller/decision'"):
        run(tmp_path / 'bag', '--all')


def test_other_texts_and_other_types_are_refused(tmp_path):
    bag = write_bag(tmp_path / 'texts', [('mpc_controller/decision', 0, string('hello'))])
    with pytest.raises(BagError, match=r'0\.000 s after the start: no record of a decision'):
        run(bag, '--all')
    bag = write_bag(tmp_path / 'arrays', [('mpc_controller/decision', 0, array(1.0))])
    with pytest.raises(BagError, match='is std_msgs/msg/Float64MultiArray; expected'):
        run(bag, '--all')


def test_a_namespace_is_found(driven, tmp_path):
    bag = write_bag(tmp_path / 'bag', driven.messages[:30], prefix='/left/')
    with pytest.raises(BagError, match='Try: --namespace /left'):
        run(bag, '--all')
    picture = tmp_path / 'seen.svg'
    text = run(bag, '--tick', 1, '--namespace', 'left', '--output', picture)
    assert f'bit for bit\npicture: {picture}' in text
    assert '<svg' in picture.read_text()
