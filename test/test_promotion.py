"""Another model for the controllers: what is compared, on which data, and the verbs."""

from functools import partial
from hashlib import sha256
import json

from bag_factory import array, joint_state, MS, write_bag
from fakes import cart, cart_dict, save_cart_model
import numpy as np
import pytest
from typer.testing import CliRunner
import yaml

from mbrl_ros.bench import returns
from mbrl_ros.cli.main import app
from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.resample import Episode
from mbrl_ros.learning import comparison, unseen
from mbrl_ros.learning.comparison import Check, compare, judge, Limits, refusal
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.model_store import read_history
from mbrl_ros.learning.pipeline import train_model
from mbrl_ros.learning.unseen import held_out_by_both, subtract
from mbrl_ros.runtime import artifact

CART = cart()
NOISE_STD = 0.05
SECONDS = 1_000_000_000


def cart_states(steps, seed):
    """A cart under random forces: velocity += 0.1 force, with noise; forces shape (T,)."""
    rng = np.random.default_rng(seed)
    forces = rng.uniform(-2.0, 2.0, steps)
    states = np.zeros((steps + 1, 2))
    for t in range(steps):
        position, velocity = states[t]
        states[t + 1] = [position + 0.1 * velocity, 0.9 * velocity + 0.1 * forces[t]]
        states[t + 1] += NOISE_STD * rng.standard_normal(2)
    return states, forces


def record(folder, steps, seed, start_s=0):
    """A bag of the cart at 10 Hz."""
    states, forces = cart_states(steps, seed)
    messages = []
    for t, (position, velocity) in enumerate(states[:-1]):
        stamp_ns = start_s * SECONDS + (t + 1) * 100 * MS
        messages += [('joint_states', stamp_ns, joint_state(stamp_ns, [position], [velocity],
                                                            ['rail'])),
                     ('commands', stamp_ns, array(forces[t]))]
    return write_bag(folder, messages)


def blocks_of(count, seed, steps=25):
    return [Episode(states, forces[:, None], 0, f'block {i}') for i in range(count)
            for states, forces in [cart_states(steps, 100 * seed + i)]]


def verdicts(checks):
    return [check.verdict for check in checks]


@pytest.mark.parametrize(('std', 'drag', 'expected'), [
    (NOISE_STD, 0.9, ['no worse', 'no worse']),
    (NOISE_STD, 0.5, ['worse', 'worse']),
    (3 * NOISE_STD, 0.9, ['no worse', 'worse'])])
def test_a_model_against_the_truth(tmp_path, std, drag, expected):
    truth = save_cart_model(tmp_path / 'truth')
    other = save_cart_model(tmp_path / 'other', drag, std)
    found = compare(truth, other, blocks_of(40, 0), 5, Limits(), seed=0)
    assert verdicts(found) == expected
    back = compare(other, truth, blocks_of(40, 0), 5, Limits(), seed=0)
    assert verdicts(back) == ['better' if verdict == 'worse' else verdict for verdict in expected]
    assert [check.new for check in back] == pytest.approx([check.old for check in found])


def test_the_figures_by_hand(tmp_path):
    # One step, no noise in the data: velocity decays by 0.9, the model says 0.8. At velocity 1
    # its error is 0.1, the mean square over two fields 0.005. With std 0.1 that is z = 1: central
    # intervals above 0.683 hold it; position (z = 0) is inside all of them.
    model = save_cart_model(tmp_path / 'model', std=0.1, drag=0.8)
    blocks = [Episode(np.array([[0.0, 1.0], [0.1, 0.9]]), np.zeros((1, 1)), 0, 'one')] * 5
    error, calibration = compare(model, model, blocks, 1, Limits(), seed=0)
    assert error.measure == 'error over 1 steps'
    # The mean of 20 particles has a noise of 0.1 / sqrt(20) = 0.022 in each field.
    assert error.new == pytest.approx(np.sqrt(0.005), abs=0.025)
    assert (error.at_worst, error.limit) == pytest.approx((error.old, 1.05 * error.old))
    levels = np.arange(1, 100) / 100
    distance = (np.mean(1.0 - levels) + np.mean(np.abs((levels >= 0.6827) - levels))) / 2
    assert calibration.new == pytest.approx(distance, abs=1e-6)
    assert calibration.limit == pytest.approx(distance + 0.03)


def test_few_data_show_less_than_many(tmp_path):
    # A tenth more noise in the velocity than the truth is hard to tell apart.
    truth, near = save_cart_model(tmp_path / 'a'), save_cart_model(tmp_path / 'b', drag=0.89)
    widths = [check.at_worst - check.new
              for count in (5, 80)
              for check in compare(truth, near, blocks_of(count, 1), 5, Limits(), seed=0)]
    assert widths[0] > 2 * widths[2]  # sqrt(80 / 5) = 4
    assert widths[1] > 2 * widths[3]


def test_the_same_seed_gives_the_same_checks(tmp_path):
    one, two = save_cart_model(tmp_path / 'one'), save_cart_model(tmp_path / 'two', drag=0.85)
    run = partial(compare, one, two, blocks_of(8, 2), 5, Limits())
    assert run(seed=3) == run(seed=3) != run(seed=4)


@pytest.mark.parametrize(('new', 'at_worst', 'verdict'), [
    (0.8, 0.99, 'better'), (0.8, 1.0, 'no worse'), (1.0, 1.1, 'no worse'),
    (1.0, 1.11, 'not shown'), (1.11, 1.3, 'worse'), (0.5, np.nan, 'not shown'),
    (np.nan, np.nan, 'worse'), (np.inf, np.inf, 'worse')])
def test_what_is_better_and_what_no_worse(new, at_worst, verdict):
    assert judge('error', 1.0, new, at_worst, 1.1).verdict == verdict


def test_returns_are_compared_by_their_mean():
    # Limit: 5 % of 10 below -10, and of 100 below 100; more is better.
    check = partial(comparison.compare_returns, limits=Limits())
    assert check([-8.0, -12.0], [-10.0, -11.0]) == Check(
        'return in simulation, 2 episodes', -10.0, -10.5, -10.5, -10.5, 'no worse')
    assert check([-10.0], [-10.6]).verdict == 'worse'
    assert check([-10.0], [-9.0]).verdict == 'better'
    assert check([100.0], [95.0]).verdict == 'no worse'
    assert check([100.0], [94.0]).verdict == 'worse'


def checked(*found):
    return [Check(f'measure {i}', 1.0, 1.0, 1.0, 1.0, verdict) for i, verdict in enumerate(found)]


@pytest.mark.parametrize(('held_out', 'simulated', 'expected'), [
    (('better', 'no worse'), ('no worse',), ''),
    (('no worse', 'better'), (), ''),
    (('no worse', 'no worse'), ('better',), 'not shown to be better'),
    (('better', 'worse'), (), 'measure 1: worse'),
    (('better', 'not shown'), (), 'measure 1: not shown to be no worse'),
    (('better', 'better'), ('worse',), 'measure 0: worse')])
def test_the_verdict_on_all_measures(held_out, simulated, expected):
    found = refusal(checked(*held_out), checked(*simulated))
    assert bool(found) == bool(expected)
    assert expected in found


# What neither has seen

def test_ranges_without_others():
    assert subtract([(0, 10)], [(2, 3), (5, 7)]) == [(0, 2), (3, 5), (7, 10)]
    assert subtract([(0, 10), (20, 30)], [(5, 25)]) == [(0, 5), (25, 30)]
    assert subtract([(0, 10)], [(0, 10)]) == []
    assert subtract([(0, 10)], []) == [(0, 10)]


def bag_entry(bag, bag_hash, end_s, held_out):
    return {'bag': bag, 'path': f'/bags/{bag}', 'hash': bag_hash, 'start_ns': 0,
            'end_ns': end_s * SECONDS,
            'trained': [[a * SECONDS, b * SECONDS] for a, b in subtract([(0, end_s)], held_out)],
            'held_out': [[a * SECONDS, b * SECONDS] for a, b in held_out]}


def test_what_both_held_out_newest_first():
    new = {'bags': [bag_entry('first', 'f', 100, [(10, 20), (50, 60)]),
                    bag_entry('last', 'l', 200, [(0, 30)]),
                    bag_entry('same', 's', 50, [(0, 5)]),
                    {'bag': 'of no bag', 'hash': '', 'held_out': [[0, 5]]}]}
    # The old one held out 15 to 55 s of the first bag, and has not seen the last.
    old = {'bags': [bag_entry('moved', 'f', 100, [(15, 55)]), bag_entry('same', 's', 50, [])]}
    assert [(source.bag, [(a // SECONDS, b // SECONDS) for a, b in source.ranges])
            for source in held_out_by_both(new, old)] == [
        ('last', [(0, 30)]), ('first', [(15, 20), (50, 55)])]
    # A model of an earlier version says which bags, but neither hash nor range: none of theirs.
    assert [source.bag for source in held_out_by_both(new, {'bags': [{'bag': 'last'}]})] == [
        'first', 'same']


def test_what_a_warm_start_was_trained_on_is_not_new():
    old = {'bags': [bag_entry('other', 'o', 10, [])]}
    new = {'bags': [bag_entry('first', 'f', 100, [(10, 20), (50, 60)])],
           'ancestors': [bag_entry('first', 'f', 100, [(0, 15)])]}
    # The ancestor saw 15 to 100 s.
    found, = held_out_by_both(new, old)
    assert found.ranges == ((10 * SECONDS, 15 * SECONDS),)
    assert unseen.seen_before(new['bags'], new['ancestors']) == ['first']
    assert unseen.seen_before(new['bags'], old['bags']) == []


def test_episodes_that_share_their_stamps_do_not_hide_in_each_other():
    # A bag whose clock begins anew: 0 to 8 s is held out once, and trained on once.
    entry = bag_entry('reset', 'r', 8, [(0, 8)]) | {'trained': [[0, 8 * SECONDS]]}
    assert held_out_by_both({'bags': [entry]}, {'bags': []}) == []


def test_an_early_version_named_the_episode_behind_its_bag():
    assert unseen.trained_on({'bags': [{'bag': 'run: episode 0'}]}, 'run', 'x') == [unseen.ALL]
    assert unseen.trained_on({'bags': [{'bag': 'run: episode 0'}]}, 'run2', 'x') == []


def test_what_was_fitted_to_the_data_gains_nothing_there(tmp_path):
    wide = save_cart_model(tmp_path / 'wide', 0.9, 3 * NOISE_STD)
    right = save_cart_model(tmp_path / 'right')
    for is_fresh, verdict in ((True, 'better'), (False, 'no worse')):
        found = compare(wide, right, blocks_of(40, 0), 5, Limits(), seed=0, is_fresh=is_fresh)
        assert found[1].verdict == verdict


def test_only_the_ranges_are_read(tmp_path):
    bag = record(tmp_path / 'bag', 250, 0)
    whole = load_dataset([bag], CART)
    (episode,), bag_hash = whole.episodes, whole.bags[0].hash
    start_ns = episode.start_ns
    ranges = ((start_ns + 2 * SECONDS, start_ns + 7 * SECONDS),
              (start_ns + 9 * SECONDS, start_ns + 10**15))
    source = unseen.Source('bag', bag, bag_hash, ranges)
    data = unseen.read_unseen([source], CART, steps=5)
    # 5 s are 50 steps: two blocks of 25; from 9 s on there are 159 of 249: six of 26.5.
    assert [block.num_steps for block in data.blocks] == [25, 25, 26, 27, 27, 26, 26, 27]
    np.testing.assert_array_equal(data.blocks[0].states, episode.states[20:46])
    np.testing.assert_array_equal(data.blocks[1].actions, episode.actions[45:70])
    np.testing.assert_array_equal(data.blocks[7].states[-1], episode.states[-1])
    assert data.bags == ('bag',)
    with pytest.raises(BagError, match=r'2 stretches .* at least 8 of 25 steps') as caught:
        unseen.read_unseen([
            unseen.Source('gone', tmp_path / 'gone', 'x', ranges),
            unseen.Source('other', bag, 'x', ranges),
            unseen.Source('bag', bag, bag_hash, ranges[:1])], CART, steps=5)
    assert f'{tmp_path / "gone"}: is gone' in str(caught.value)
    assert f'{bag}: has changed since the training' in str(caught.value)
    assert '--on BAG' in str(caught.value)


# The verbs, on models trained from bags

SMALL = TrainingConfig(members=2, hidden_units=(16, 16), weight_decay=(1e-5, 1e-5, 1e-5),
                       learning_rate=5e-3, max_epochs=30, min_steps=0, patience_steps=100,
                       holdout_fraction=0.25)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """Bags of the cart, a model of little data, one of all, and a wrong one of all."""
    root = tmp_path_factory.mktemp('world')
    (root / 'cart.yaml').write_text(yaml.safe_dump(cart_dict()))
    bags = [record(root / 'first', 60, 1), record(root / 'second', 900, 2, start_s=1000)]
    record(root / 'fresh', 250, 3, start_s=2000)
    train_model(load_dataset(bags[:1], CART), SMALL, 0, root / 'little')
    train_model(load_dataset(bags, CART), SMALL, 0, root / 'all')
    data = artifact.load(root / 'all' / 'dynamics.onnx', CART).metadata['data']
    save_cart_model(root / 'wrong', drag=0.3, data=data)
    return root


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def promote(world, new, over, *arguments):
    return call('promote', world / new, '--over', over, '--robot', world / 'cart.yaml', *arguments)


def hash_of(folder):
    return sha256((folder / 'dynamics.onnx').read_bytes()).hexdigest()


def holds(folder, model):
    """Whether every file that the training wrote has come along."""
    return all((folder / file.name).read_bytes() == file.read_bytes()
               for file in model.iterdir() if file.is_file())


def test_promote_and_roll_back(world, tmp_path):
    mine = tmp_path / 'mine'
    first = promote(world, 'little', mine)
    assert first.exit_code == 0, first.output
    assert 'adopted: there was none' in first.output
    second = promote(world, 'all', mine, '--json')
    assert second.exit_code == 0, second.output
    outcome = json.loads(second.stdout)
    assert outcome['promoted'] is True
    assert outcome['bags'] == ['second', 'first']  # the newest first, and held out by both
    assert (outcome['checks'][0]['verdict'], outcome['number']) == ('better', 2)
    assert 'no task is known' in second.stderr
    assert holds(mine, world / 'all')
    again = promote(world, 'all', mine)
    assert (again.exit_code, 'is in place already' in again.output) == (0, True)
    worse = promote(world, 'wrong', mine)
    assert worse.exit_code == 1
    assert 'refused' in worse.output
    assert hash_of(mine) == hash_of(world / 'all')
    assert [entry.action for entry in read_history(mine)] == ['adopted', 'promoted']
    back = call('rollback', mine, '--json')
    assert back.exit_code == 0, back.output
    assert json.loads(back.stdout)[-1]['action'] == 'rolled back'
    assert 'reload_model' in back.stderr
    assert holds(mine, world / 'little')
    assert call('rollback', mine, '--to', 2).exit_code == 0
    assert hash_of(mine) == hash_of(world / 'all')
    listed = call('rollback', mine, '--list')
    assert all(word in listed.output for word in ('adopted', 'promoted', 'rolled back'))
    assert len(read_history(mine)) == 4


def test_bags_of_ones_own_choice(world, tmp_path):
    mine = tmp_path / 'mine'
    promote(world, 'little', mine)
    seen = promote(world, 'all', mine, '--on', world / 'second')
    assert isinstance(seen.exception, BagError)
    assert 'the new model was trained on 0.0 to ' in str(seen.exception)
    none = promote(world, 'all', mine, '--on', world / 'nowhere')
    assert isinstance(none.exception, BagError)
    assert hash_of(mine) == hash_of(world / 'little')
    twice = promote(world, 'all', mine, '--on', world / 'fresh', '--on', world / 'fresh')
    assert 'given twice' in str(twice.exception)
    fresh = promote(world, 'all', mine, '--on', world / 'fresh', '--json')
    assert fresh.exit_code == 0, fresh.output
    # 250 observations; the last has no successor: 249 steps in ten stretches of about 25.
    outcome = json.loads(fresh.stdout)
    assert [outcome[key] for key in ('bags', 'transitions', 'stretches')] == [['fresh'], 249, 10]


def test_nothing_is_left_to_compare_on(world, tmp_path):
    mine = tmp_path / 'mine'
    promote(world, 'all', mine)
    none = promote(world, 'little', mine)  # holds out less than five stretches
    assert isinstance(none.exception, BagError)
    assert '--on BAG' in str(none.exception)
    forced = promote(world, 'little', mine, '--force', 'the bags are lost')
    assert forced.exit_code == 0
    assert hash_of(mine) == hash_of(world / 'little')
    assert read_history(mine)[-1].details['reason'] == 'the bags are lost'
    assert 'forced' in call('rollback', mine, '--list').output


def test_simulation_has_a_veto(world, tmp_path, monkeypatch):
    mine = tmp_path / 'mine'
    spec = cart_dict() | {'simulation': {'mjcf': 'cartpole/robot.xml', 'keyframe': 'hanging'}}
    (tmp_path / 'cart.yaml').write_text(yaml.safe_dump(spec))
    (tmp_path / 'task.yaml').write_text(yaml.safe_dump({
        'name': 'reach', 'robot': 'cart', 'horizon': 4, 'episode_steps': 20,
        'cost': [{'term': 'squared', 'params': {'signal': 'position'}}]}))
    promote(world, 'little', mine)
    driven = []

    def drive(model, robot, task, seed, delay_steps):
        driven.append((model.parent.name, task.name, seed, delay_steps))
        return {'mine': 100.0, 'all': gained}[model.parent.name]
    monkeypatch.setattr(returns, 'drive_episode', drive)
    ask = partial(call, 'promote', world / 'all', '--over', mine, '--task', tmp_path / 'task.yaml',
                  '--robot', tmp_path / 'cart.yaml', '--episodes', 2, '--seed', 7)
    gained = 94.0  # a loss of 6 %, of 5 % at the most
    refused = ask()
    assert refused.exit_code == 1
    assert 'return in simulation, 2 episodes: worse' in ' '.join(refused.output.split())
    assert driven == [('mine', 'reach', 7, 0), ('all', 'reach', 7, 0), ('mine', 'reach', 8, 0),
                      ('all', 'reach', 8, 0)]
    assert hash_of(mine) == hash_of(world / 'little')
    assert ask('--return-margin', 0.07, '--json').exit_code == 0
    assert read_history(mine)[-1].details['new_returns'] == [94.0, 94.0]
    driven.clear()
    call('rollback', mine)
    assert ask('--no-sim').exit_code == 0
    assert driven == []


def test_a_shipped_robot_has_its_task():
    assert returns.find_task(load_robot('cartpole')).name == 'cartpole_swingup'
    assert returns.find_task(CART) is None
