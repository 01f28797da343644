"""What is held out: whole episodes where there are enough, else blocks; where data came from."""

from bag_factory import array, joint_state, MS, tiny_robot, write_bag
from hypothesis import given, settings, strategies
import numpy as np

from mbrl_ros.data.dataset import Dataset, load_dataset
from mbrl_ros.data.holdout import MIN_EPISODES_TO_HOLD_OUT
from mbrl_ros.data.resample import Episode

NS = 10**9


def dataset_of(lengths, source='made'):
    """Return episodes in which each state is a number of its own; episode k starts at 1000 k s."""
    episodes, first = [], 0.0
    for number, length in enumerate(lengths):
        states = first + np.arange(length + 1.0)[:, None]
        episodes.append(Episode(states, np.ones((length, 1)), 1000 * number * NS, source))
        first += length + 1
    return Dataset(tuple(episodes), tiny_robot())


def starts(dataset):
    return {episode.states[0, 0] for episode in dataset.episodes}


@given(lengths=strategies.lists(strategies.integers(5, 40), min_size=MIN_EPISODES_TO_HOLD_OUT,
                                max_size=40),
       fraction=strategies.floats(0.1, 0.9), seed=strategies.integers(0, 2**32))
@settings(deadline=None)
def test_with_ten_episodes_each_is_on_one_side_as_a_whole(lengths, fraction, seed):
    dataset = dataset_of(lengths)
    training, holdout = dataset.split_holdout(fraction, seed)
    if starts(training) | starts(holdout) != starts(dataset):
        # No choice came within half of the share: then, and only then, blocks.
        assert max(lengths) > min(fraction, 1 - fraction) * sum(lengths)
        return
    assert training.num_transitions + holdout.num_transitions == dataset.num_transitions
    assert training.episodes
    assert holdout.episodes
    assert not starts(training) & starts(holdout)
    # An episode was taken where it came nearer, so the last step was at most half an episode off,
    # unless the one shortest episode is all that makes a side.
    off = abs(holdout.num_transitions - fraction * dataset.num_transitions)
    assert off <= max(lengths)


def test_the_share_is_of_transitions_not_of_episodes():
    # 19 episodes of 10 and one of 190: 380 transitions. A fifth is 76: seven or eight short ones,
    # never the long one, which alone is half.
    for seed in range(20):
        training, holdout = dataset_of([10] * 19 + [190]).split_holdout(0.2, seed)
        assert holdout.num_transitions in {70, 80}
        assert max(e.num_steps for e in training.episodes) == 190


def test_one_giant_among_crumbs_is_cut_into_blocks():
    # 1000 + 11 x 2 transitions, a tenth is 102: the crumbs are 22 at most, the giant is far too
    # much. Blocks of 25 come near.
    training, holdout = dataset_of([1000] + [2] * 11).split_holdout(0.1, seed=1)
    assert 50 <= holdout.num_transitions <= 150
    assert training.num_transitions > 800


def test_with_nine_episodes_blocks_of_each_may_be_held_out():
    _, holdout = dataset_of([100] * (MIN_EPISODES_TO_HOLD_OUT - 1)).split_holdout(0.1, seed=0)
    # 36 blocks of 25, a tenth of them: 4; neighbours are one episode.
    assert holdout.num_transitions == 100
    assert all(episode.num_steps % 25 == 0 for episode in holdout.episodes)


def test_the_choice_depends_on_the_seed_alone():
    sides = [starts(dataset_of([20] * 30).split_holdout(0.2, seed)[1]) for seed in (1, 1, 2)]
    assert sides[0] == sides[1] != sides[2]


def test_provenance_names_bags_ranges_and_what_was_held_out(tmp_path):
    bags = []
    for number, first in enumerate((1.0, 100.0)):
        messages = []
        for step in range(61 + 30 * number):
            stamp_ns = 1000 * (number + 1) * NS + step * 100 * MS
            messages += [('commands', stamp_ns, array(0.5)),
                         ('joint_states', stamp_ns,
                          joint_state(stamp_ns, [first + step], [0.0], ['slider']))]
        bags.append(write_bag(tmp_path / f'run{number}', messages))
    dataset = load_dataset(bags, tiny_robot())
    training, holdout = dataset.split_holdout(0.3, seed=0)
    found = dataset.provenance(training, holdout)
    assert found['hash'] == dataset.hash
    one, two = found['bags']
    assert (one['bag'], one['path']) == ('run0', str(bags[0].resolve()))
    assert (one['start_ns'], one['end_ns']) == (1000 * NS, 1006 * NS)
    assert (two['start_ns'], two['end_ns']) == (2000 * NS, 2009 * NS)
    assert (one['transitions'], two['transitions'], two['seconds']) == (60, 90, 9.0)
    assert len({one['hash'], two['hash']}) == 2
    # Three blocks of 20 and four of 22 or 23: a third of seven is two.
    held = [(end - start) // (100 * MS) for bag in found['bags'] for start, end in bag['held_out']]
    assert sum(held) == holdout.num_transitions > 0
    kept = [(end - start) // (100 * MS) for bag in found['bags'] for start, end in bag['trained']]
    assert sum(kept) == training.num_transitions
    for bag in found['bags']:
        for start, end in bag['held_out']:
            assert bag['start_ns'] <= start < end <= bag['end_ns']
            # No state of training lies inside what is held out.
            for episode in training.episodes:
                stamps = episode.start_ns + np.arange(episode.num_steps + 1) * 100 * MS
                assert not ((stamps >= start) & (stamps <= end)).any()


def test_episodes_of_bags_with_similar_names_are_told_apart(tmp_path):
    step = [('commands', 0, array(0.5)), *(
        ('joint_states', k * 100 * MS, joint_state(k * 100 * MS, [float(k)], [0.0], ['slider']))
        for k in range(3))]
    more = [*step, ('joint_states', 300 * MS, joint_state(300 * MS, [3.0], [0.0], ['slider']))]
    bags = [write_bag(tmp_path / 'run', step), write_bag(tmp_path / 'run: 2', more)]
    found = load_dataset(bags, tiny_robot()).provenance()
    assert [(bag['bag'], bag['transitions']) for bag in found['bags']] == [('run', 2),
                                                                           ('run: 2', 3)]
