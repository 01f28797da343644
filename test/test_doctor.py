"""`mbrl-ros doctor BAG`: what is wrong with a bag, one fault at a time, and what to do then."""

import json

from bag_factory import array, cdr, joint_state, MS, RELIABLE, write_bag
from fakes import cart_dict
import numpy as np
import pytest
import typer
from typer.testing import CliRunner
import yaml

from mbrl_ros.cli import checks
from mbrl_ros.cli.doctor import doctor
from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.bag_writer import BagWriter
from mbrl_ros.data.health import examine

DT_NS = 100 * MS
START_NS = 10**18
STEPS = 400
NAN = float('nan')
SPEC = RobotSpec.model_validate(cart_dict())


def motion(delay_steps=0, seed=0, steps=STEPS):
    """Return (stamp, position, velocity, force) of fakes.cart with a spring, moved at random."""
    force = np.random.default_rng(seed).uniform(-1.9, 1.9, steps)
    position, velocity, rows = 0.0, 0.0, []
    for step in range(steps):
        rows.append((START_NS + step * DT_NS, position, velocity, force[step]))
        acting = force[step - delay_steps] if step >= delay_steps else 0.0
        velocity += 0.1 * (acting - position - 0.2 * velocity)
        position += 0.1 * velocity
    return rows


def messages_of(rows, names=lambda step: ['rail'], shift_ns=lambda step: 0):
    """Return the messages; `shift_ns` is what header stamps are behind the recorder's clock."""
    messages = []
    for step, (stamp_ns, position, velocity, force) in enumerate(rows):
        order = names(step)
        state = joint_state(stamp_ns - shift_ns(step),
                            [position if name in ('rail', 'track') else 7.0 for name in order],
                            [velocity if name in ('rail', 'track') else 7.0 for name in order],
                            order)
        messages += [('joint_states', stamp_ns, state), ('commands', stamp_ns, array(force))]
    return messages


def look(tmp_path, messages, robot=SPEC, **options):
    """Return the health of a bag of these messages, and its findings by name."""
    health = examine(write_bag(tmp_path / 'bag', messages), robot, **options)
    return health, {finding.name: finding for finding in health.findings}


def troubled(health):
    return {finding.name for finding in health.findings if finding.level != 'ok'}


def test_a_healthy_bag(tmp_path):
    health, findings = look(tmp_path, messages_of(motion()))
    assert health.is_trainable
    assert troubled(health) == set()
    assert '400 messages, 10 Hz' in findings['topic joint_states'].found
    # 400 observations are 399 transitions of 0.1 s.
    assert '399 transitions in 1 episodes, 39.9 s' in findings['transitions'].found
    assert health.delay.steps == 0.0
    cover = health.coverage['position']
    positions = [row[1] for row in motion()]
    assert (cover.min, cover.max) == (min(positions), max(positions))
    assert cover.q50 == pytest.approx(np.median(positions), abs=1e-12)


def test_the_delay_and_what_the_spec_says_of_it(tmp_path):
    health, findings = look(tmp_path, messages_of(motion(delay_steps=2)))
    assert health.is_trainable
    assert troubled(health) == {'actuation delay'}
    assert '2.0 control periods' in findings['actuation delay'].found
    assert 'set actuation_delay_steps: 2 ' in findings['actuation delay'].advice
    told = SPEC.model_copy(update={'actuation_delay_steps': 2})
    health = examine(tmp_path / 'bag', told)
    assert troubled(health) == set()


def test_gaps(tmp_path):
    # Steps 100 to 104 are silent: 99 to 105 are 600 ms apart. Step 99 began 9.9 s after the start.
    health, findings = look(tmp_path, messages_of(motion()[:100] + motion()[105:]))
    assert troubled(health) == {'gaps'}
    assert '1, 0 jumps' in findings['gaps'].found
    assert 'longest 600 ms on joint_states at 1000000009.900 s' in findings['gaps'].found
    assert health.is_trainable


def test_not_a_number(tmp_path):
    rows = motion()
    rows[50] = (rows[50][0], NAN, rows[50][2], rows[50][3])
    health, findings = look(tmp_path, messages_of(rows))
    assert 'position: 1 samples' in findings['not finite'].found
    assert findings['not finite'].level == 'warn'
    assert health.is_trainable
    never = [(stamp_ns, NAN, *rest) for stamp_ns, _, *rest in motion()]
    health = examine(write_bag(tmp_path / 'never', messages_of(never)), SPEC)
    assert not health.is_trainable
    assert "'position' (joint_states, position[rail]) is never a finite number" \
        in health.findings[-1].found


def test_clocks_that_differ_drift_and_jump(tmp_path):
    # Header stamps 150 ms behind the recorder: more than a period of 100 ms.
    _, findings = look(tmp_path, messages_of(motion(), shift_ns=lambda step: 150 * MS))
    assert 'recorded 150 ms after its stamp' in findings['clock of joint_states'].found
    assert 'synchronise' in findings['clock of joint_states'].advice
    # 0.3 ms a step behind: medians of the first and last 40 are 360 steps, 108 ms apart.
    bag = write_bag(tmp_path / 'drift', messages_of(motion(),
                                                    shift_ns=lambda step: step * MS * 3 // 10))
    clock = {f.name: f for f in examine(bag, SPEC).findings}['clock of joint_states']
    assert 'drift +108 ms in 40 s' in clock.found
    assert 'one clock runs faster' in clock.advice
    # From step 200 on 500 ms further behind: step 200 is stamped 400 ms before step 199.
    bag = write_bag(tmp_path / 'jump', messages_of(
        motion(), shift_ns=lambda step: 500 * MS * (step >= 200)))
    findings = {f.name: f for f in examine(bag, SPEC).findings}
    assert '1 stamps before the one before (by 400 ms at most)' \
        in findings['clock of joint_states'].found
    assert '0, 1 jumps of the clock' in findings['gaps'].found
    # Every hundredth observation comes twice.
    messages = messages_of(motion())
    for step in (300, 200, 100):
        messages.insert(2 * step, messages[2 * step])
    clock = {f.name: f for f in examine(write_bag(tmp_path / 'double', messages), SPEC).findings}
    assert ', 3 stamps twice' in clock['clock of joint_states'].found


def test_states_and_commands_of_different_clocks_cannot_train(tmp_path):
    # Simulated time in the headers, system time on the commands, which have no header.
    health, findings = look(tmp_path, messages_of(motion(),
                                                  shift_ns=lambda step: START_NS - DT_NS))
    assert not health.is_trainable
    assert findings['transitions'].level == 'bad'
    assert 'stamped by one clock' in findings['transitions'].advice
    assert findings['clock of joint_states'].level == 'warn'


def test_joints_in_another_order(tmp_path):
    health, findings = look(tmp_path, messages_of(
        motion(), names=lambda step: ['rail', 'lid'] if step % 100 < 50 else ['lid', 'rail']))
    assert troubled(health) == {'fields of joint_states'}
    # 400 messages in runs of 50: seven changes.
    assert '2 orders of the joints, 7 changes: rail lid; lid rail' \
        in findings['fields of joint_states'].found
    assert health.is_trainable
    assert health.delay.steps == 0.0  # read by name


def test_joints_that_are_missing_or_renamed(tmp_path):
    health, findings = look(tmp_path, messages_of(
        motion(), names=lambda step: ['lid'] if step < 3 else ['rail', 'lid']))
    row = findings['fields of joint_states']
    assert (row.level, health.is_trainable) == ('bad', False)
    assert 'position (position[rail]) in 3 of 400 messages' in row.found
    health = examine(write_bag(tmp_path / 'renamed', messages_of(
        motion(), names=lambda step: ['rail_joint'])), SPEC)
    row = {f.name: f for f in health.findings}['fields of joint_states']
    assert 'in 400 of 400 messages. Messages name: rail_joint' in row.found
    assert 'rail_joint?' in row.advice
    assert not health.is_trainable


def test_topics_that_are_missing_or_of_another_type(tmp_path):
    states = [m for m in messages_of(motion()) if m[0] == 'joint_states']
    health, findings = look(tmp_path, states)
    assert not health.is_trainable
    assert "no topic 'commands'. The bag has: /joint_states" in findings['topic commands'].found
    assert troubled(health) == {'topic commands'}
    bag = write_bag(tmp_path / 'named', messages_of(motion()), prefix='/left/')
    health = examine(bag, SPEC)
    assert 'Try: --namespace /left' in health.findings[0].found
    assert examine(bag, SPEC, namespace='/left').is_trainable
    swapped = [('commands' if topic == 'joint_states' else 'joint_states', stamp_ns, message)
               for topic, stamp_ns, message in messages_of(motion())]
    health = examine(write_bag(tmp_path / 'swapped', swapped), SPEC)
    assert [f.level for f in health.findings[:2]] == ['bad', 'bad']
    assert 'the robot spec says sensor_msgs/msg/JointState' in health.findings[0].found


@pytest.mark.parametrize(('change', 'text', 'advice'), [
    (lambda force: 0.7, '0.7 to 0.7 N', 'never changes'),
    (lambda force: 2.0 if force > 0.0 else -2.0, '100.0% at the limits', 'saturated'),
    (lambda force: 10.0 * force, 'at the limits or beyond', r'beyond [-2, 2]')])
def test_commands(tmp_path, change, text, advice):
    rows = [(*row, change(force)) for *row, force in motion()]
    health, findings = look(tmp_path, messages_of(rows))
    row = findings['command force']
    assert row.level == 'warn'
    assert text in row.found
    assert advice in row.advice
    assert health.is_trainable


def test_commands_that_stop(tmp_path):
    # Commands end at step 300; they count for five periods: 399 - 304 = 95 steps have none.
    messages = [m for step, pair in enumerate(zip(*[iter(messages_of(motion()))] * 2, strict=True))
                for m in pair if step < 300 or m[0] == 'joint_states']
    _, findings = look(tmp_path, messages)
    assert '304 transitions' in findings['transitions'].found
    assert '95 without a command' in findings['transitions'].found
    assert findings['transitions'].level == 'warn'


def test_rates(tmp_path):
    # Every other observation only: 5 Hz for a control rate of 10 Hz.
    messages = [m for i, m in enumerate(messages_of(motion()))
                if i % 4 != 2 or m[0] == 'commands']
    health, findings = look(tmp_path, messages)
    assert '200 messages, 5 Hz, control rate 10 Hz' in findings['topic joint_states'].found
    assert findings['topic joint_states'].level == 'warn'
    assert health.is_trainable


def test_places_where_the_robot_never_was(tmp_path):
    # Two clouds of a tenth of their distance: ten of the twelve parts between them are empty.
    rows = [(stamp, (step >= 200) + (step % 10) * 0.009, 0.1 * (step % 3), force)
            for step, (stamp, _, _, force) in enumerate(motion())]
    health, findings = look(tmp_path, messages_of(rows))
    cover = health.coverage['position']
    assert cover.filled == pytest.approx(2 / 12)
    # Parts of (1.081 - 0) / 12; the first and the last hold everything.
    assert cover.empty == ((pytest.approx(1.081 / 12), pytest.approx(1.081 * 11 / 12)),)
    assert 'not: [0.09008, 0.9909]' in findings['state position'].found
    assert findings['state position'].level == 'warn'


def test_too_little(tmp_path):
    health, findings = look(tmp_path, messages_of(motion(steps=20)))
    assert not health.is_trainable
    assert findings['transitions'].level == 'bad'
    assert findings['actuation delay'].found.startswith('cannot tell')
    health = examine(write_bag(tmp_path / 'more', messages_of(motion(steps=100))), SPEC)
    assert health.is_trainable  # 9.9 s
    assert 'record a minute' in {f.name: f for f in health.findings}['transitions'].advice


def run(tmp_path, *arguments):
    robot = tmp_path / 'cart.yaml'
    robot.write_text(yaml.safe_dump(cart_dict()))
    app = typer.Typer()
    app.command()(doctor)
    return CliRunner().invoke(app, [*map(str, arguments), '--robot', str(robot)],
                              env={'COLUMNS': '250'})


def test_the_command_prints_a_table_or_json(tmp_path):
    bag = write_bag(tmp_path / 'bag', messages_of(motion(delay_steps=1)))
    result = run(tmp_path, bag)
    assert result.exit_code == 0
    assert 'set actuation_delay_steps: 1 in the robot spec' in result.stdout
    assert f'next: mbrl-ros train {bag}' in result.stdout
    result = run(tmp_path, bag, '--json')
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    assert content['is_trainable'] is True
    assert content['delay']['steps'] == 1.0
    assert {row['level'] for row in content['findings']} == {'ok', 'warn'}
    assert set(content['coverage']) == {'position', 'velocity'}


def test_status_one_only_where_training_is_impossible(tmp_path):
    bag = write_bag(tmp_path / 'bag', messages_of(motion(), names=lambda step: ['wheel']))
    result = run(tmp_path, bag)
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert 'this bag cannot train the robot' in result.stdout
    assert run(tmp_path, bag, '--json').exit_code == 1


def break_file(bag, how):
    file = bag / f'{bag.name}_0.mcap'
    content = bytearray(file.read_bytes())
    if how == 'truncated':
        content = content[:len(content) // 2]
    elif how == 'scrambled':
        middle = len(content) // 2
        content[middle:middle + 2000] = bytes(2000)
    elif how == 'empty':
        content = bytearray()
    file.write_bytes(content)
    if how == 'no metadata':
        (bag / 'metadata.yaml').unlink()


@pytest.mark.parametrize('how', ['truncated', 'scrambled', 'empty', 'no metadata'])
def test_bags_that_cannot_be_read_are_refused_in_words(tmp_path, how):
    bag = write_bag(tmp_path / 'bag', messages_of(motion()))
    break_file(bag, how)
    error = run(tmp_path, bag).exception
    assert isinstance(error, BagError)
    assert str(bag) in str(error)


def test_other_things_than_bags_are_refused_in_words(tmp_path):
    for path in (tmp_path / 'nowhere', tmp_path / 'cart.yaml', tmp_path):
        assert isinstance(run(tmp_path, path).exception, BagError)


def test_messages_that_are_no_messages(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer:
        for topic, time_ns, message in messages_of(motion(steps=30)):
            writer.add_topic('/' + topic, message.__msgtype__, [RELIABLE])
            raw = cdr(message)
            writer.write('/' + topic, raw[:7] if time_ns == START_NS + 9 * DT_NS else raw,
                         time_ns, time_ns)
    error = run(tmp_path, tmp_path / 'bag').exception
    assert isinstance(error, BagError)
    assert 'cannot be read after 18 messages' in str(error)


def test_without_a_bag_the_machine_is_examined(tmp_path, monkeypatch):
    found = [checks.Check('python', '3', True), checks.Check('gpu', 'none', False, needed=False)]
    monkeypatch.setattr(checks, 'run_checks', lambda: found)
    result = run(tmp_path, '--json')
    assert result.exit_code == 0
    assert [row['name'] for row in json.loads(result.stdout)] == ['python', 'gpu']
    found.append(checks.Check('torch', 'not installed', False))
    assert run(tmp_path).exit_code == 1
