"""From bags to transitions: what acts when, what is dropped, and what is held out."""

from bag_factory import (
    array,
    cartpole,
    cdr,
    JOINT_STATE,
    joint_state,
    mark,
    MS,
    tiny_robot,
    write_bag,
)
from hypothesis import given, settings, strategies
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from mbrl_ros.core.errors import BagError
from mbrl_ros.data.bag_metadata import typestore
from mbrl_ros.data.dataset import Dataset, load_dataset
from mbrl_ros.data.resample import Episode
from mbrl_ros.data.samples import hold, interpolate, Samples

NAN = float('nan')


def observed(stamp_ms, x):
    return ('joint_states', stamp_ms * MS, joint_state(stamp_ms * MS, [x], [0.0], ['slider']))


def commanded(stamp_ms, u):
    return ('commands', stamp_ms * MS, array(u))


def marked(stamp_ms, event, episode=0):
    return ('episode', stamp_ms * MS, mark(event, episode))


def load(tmp_path, messages, robot=None, **options):
    return load_dataset([write_bag(tmp_path / 'bag', messages)], robot or tiny_robot(), **options)


def contents(dataset):
    return [(e.states[:, 0].tolist(), e.actions[:, 0].tolist()) for e in dataset.episodes]


def test_samples_on_the_grid_are_taken_as_they_are(tmp_path):
    # dt 100 ms. The command at 1000 acts from 1000; the one at 1150 from the next grid time on.
    dataset = load(tmp_path, [
        commanded(1000, 0.1), observed(1000, 1.0), observed(1100, 2.0), commanded(1150, 0.2),
        observed(1200, 4.0), observed(1300, 8.0)])
    assert contents(dataset) == [([1.0, 2.0, 4.0, 8.0], [0.1, 0.1, 0.2])]
    assert dataset.episodes[0].start_ns == 1000 * MS
    assert dataset.describe_losses() == []
    assert dataset.seconds == pytest.approx(0.3)


def test_between_samples_states_are_linear_and_commands_are_held(tmp_path):
    # Stamps 1000, 1080, 1160, 1240, 1320 with x = stamp - 1000. Grid: 1000, 1100, 1200, 1300.
    # Linear in time, so x on the grid is 0, 100, 200, 300. Commands stamped 990 and 1101: the
    # second comes 1 ms too late for 1100 and acts from 1200.
    messages = [commanded(990, 0.5)]
    for stamp in (1000, 1080, 1160, 1240, 1320):
        messages.append(observed(stamp, stamp - 1000.0))
    messages.insert(3, commanded(1101, -0.5))
    assert contents(load(tmp_path, messages)) == [
        ([0.0, pytest.approx(100.0), pytest.approx(200.0), pytest.approx(300.0)],
         [0.5, 0.5, -0.5])]


def test_command_stamped_exactly_on_the_grid_acts_at_once(tmp_path):
    # The answer to an observation in lock-step carries the observation's own time.
    dataset = load(tmp_path, [observed(0, 0.0), commanded(1, 9.0), observed(1000, 1.0),
                              commanded(1000, 0.1), observed(1100, 2.0), commanded(1100, 0.2),
                              observed(1200, 3.0)])
    assert contents(dataset) == [([1.0, 2.0, 3.0], [0.1, 0.2])]


def test_transitions_before_the_first_command_are_dropped(tmp_path):
    dataset = load(tmp_path, [observed(0, 0.0), observed(100, 1.0), commanded(150, 0.1),
                              observed(200, 2.0), observed(300, 3.0)])
    # At 0 and 100 nothing was commanded yet: two transitions lost, one left.
    assert contents(dataset) == [([2.0, 3.0], [0.1])]
    assert '2 transitions dropped without a command' in dataset.describe_losses()[0]


def test_a_command_that_is_not_repeated_is_not_held_for_ever(tmp_path):
    dataset = load(tmp_path, [commanded(0, 0.1), *(observed(100 * k, k) for k in range(8))])
    # dt 100 ms: from 500 ms on the command is five periods old; what acts then is not known.
    assert contents(dataset) == [([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0.1] * 5)]
    assert '2 transitions dropped without a command' in dataset.describe_losses()[0]


def test_a_command_that_is_not_finite_drops_its_transitions_only(tmp_path):
    dataset = load(tmp_path, [
        commanded(0, 0.1), observed(0, 0.0), observed(100, 1.0), commanded(100, NAN),
        observed(200, 2.0), commanded(200, 0.3), observed(300, 3.0)])
    assert contents(dataset) == [([0.0, 1.0], [0.1]), ([2.0, 3.0], [0.3])]
    assert '1 transition dropped with a command that is not finite' in dataset.describe_losses()[0]


def test_a_gap_splits_and_the_grid_starts_anew(tmp_path):
    # 0.25 s without an observation is stale: 100 to 351 splits, and the grid restarts at 351.
    dataset = load(tmp_path, [
        commanded(0, 0.1), observed(0, 0.0), observed(100, 1.0), observed(351, 2.0),
        observed(451, 3.0)])
    assert contents(dataset) == [([0.0, 1.0], [0.1]), ([2.0, 3.0], [0.1])]
    assert dataset.episodes[1].start_ns == 351 * MS
    assert dataset.losses[0].gaps == 1


def test_a_short_gap_is_interpolated(tmp_path):
    dataset = load(tmp_path, [commanded(0, 0.1), observed(0, 0.0), observed(200, 2.0)])
    assert contents(dataset) == [([0.0, 1.0, 2.0], [0.1, 0.1])]


def test_nan_samples_are_dropped_counted_and_split(tmp_path):
    # 200 is not finite: 0-100 and 300-400 remain, although 100 to 300 is no stale gap.
    dataset = load(tmp_path, [
        commanded(0, 0.1), observed(0, 0.0), observed(100, 1.0), observed(200, NAN),
        observed(300, 3.0), observed(400, 4.0)])
    assert contents(dataset) == [([0.0, 1.0], [0.1]), ([3.0, 4.0], [0.1])]
    assert dataset.losses[0].nan_samples == {'x': (1, 200 * MS)}
    assert "1 sample of 'x' not finite, dropped; first at stamp 0.200 s" \
        in dataset.describe_losses()[0]


def test_a_field_that_is_never_finite_is_refused(tmp_path):
    with pytest.raises(BagError, match=r"'x' \(joint_states, position\[slider\]\) is never a fin"):
        load(tmp_path, [commanded(0, 0.1), observed(0, NAN), observed(100, NAN)])


def test_a_clock_that_goes_backwards_splits(tmp_path):
    dataset = load(tmp_path, [
        commanded(5000, 0.1), observed(5000, 0.0), observed(5100, 1.0),
        commanded(0, 0.2), observed(0, 7.0), observed(100, 8.0)])
    assert contents(dataset) == [([0.0, 1.0], [0.1]), ([7.0, 8.0], [0.2])]
    assert dataset.losses[0].clock_jumps == 1


def test_samples_that_changed_places_are_put_right(tmp_path):
    dataset = load(tmp_path, [commanded(0, 0.1), observed(0, 0.0), observed(200, 2.0),
                              observed(100, 1.0), observed(300, 3.0)])
    assert contents(dataset) == [([0.0, 1.0, 2.0, 3.0], [0.1, 0.1, 0.1])]


def test_episodes_run_from_start_mark_to_next_mark(tmp_path):
    # Before the first start and after the end nothing counts. The paused robot's last stamp (100)
    # equals that of the marks: it belongs to the episode it was recorded in. A command of the
    # first episode does not act in the second: the robot was reset in between.
    dataset = load(tmp_path, [
        commanded(0, 0.9), observed(0, 9.0), marked(0, 'start', 0), commanded(0, 0.1),
        observed(0, 0.0), observed(100, 1.0), marked(100, 'end', 0), marked(100, 'start', 1),
        observed(200, 5.0), commanded(300, 0.3), observed(300, 6.0), observed(400, 7.0),
        marked(400, 'end', 1), observed(500, 9.0)])
    assert contents(dataset) == [([0.0, 1.0], [0.1]), ([6.0, 7.0], [0.3])]
    assert [e.source[-9:] for e in dataset.episodes] == ['episode 0', 'episode 1']
    losses = dataset.losses[0]
    assert (losses.outside_episodes, losses.without_command) == (2, 1)


def two_topic_robot():
    y = {'name': 'y', 'unit': 'm', 'topic': 'other', 'type': JOINT_STATE,
         'path': 'position[lift]'}
    x = {'name': 'x', 'unit': 'm', 'topic': 'joint_states', 'type': JOINT_STATE,
         'path': 'position[slider]'}
    return tiny_robot(observation=[y, x], stale_after_s={'joint_states': 0.25, 'other': 0.25})


def test_two_topics_share_a_grid_where_both_report(tmp_path):
    # x at 0..400 every 100 ms; y at 50 and 250 only (y = stamp / 10). Both report in [50, 250]:
    # grid 50, 150, 250. x is linear between samples (0.5, 1.5, 2.5), y is 5, 15, 25.
    def lift(stamp):
        return ('other', stamp * MS, joint_state(stamp * MS, [stamp / 10], [0.0], ['lift']))
    dataset = load(tmp_path, [
        commanded(0, 0.1), observed(0, 0.0), lift(50), observed(100, 1.0), observed(200, 2.0),
        lift(250), observed(300, 3.0), observed(400, 4.0)], two_topic_robot())
    assert dataset.episodes[0].states.tolist() == [[5.0, 0.5], [15.0, 1.5], [25.0, 2.5]]


def test_joints_are_found_by_name_even_if_their_order_changes(tmp_path):
    def state(stamp_ms, names):
        value = {'slider': 1.0, 'hinge': 2.0, 'extra': 9.0}
        return ('joint_states', stamp_ms * MS, joint_state(
            stamp_ms * MS, [value[n] for n in names], [-value[n] for n in names], names))
    dataset = load(tmp_path, [
        ('forward_command_controller/commands', 0, array(0.5)), state(40, ['slider', 'hinge']),
        state(80, ['hinge', 'slider']), state(120, ['extra', 'hinge', 'slider'])], cartpole())
    assert dataset.episodes[0].states.tolist() == [[1.0, 2.0, -1.0, -2.0]] * 3


def test_a_missing_joint_names_those_in_the_message(tmp_path):
    with pytest.raises(BagError, match=r"no 'slider' in this message; it names \['rail'\]"):
        load(tmp_path, [commanded(0, 0.1),
                        ('joint_states', 0, joint_state(0, [1.0], [0.0], ['rail']))])


def test_an_empty_velocity_list_is_refused(tmp_path):
    with pytest.raises(BagError, match=r'index 0 of an array of 0'):
        load(tmp_path, [('forward_command_controller/commands', 0, array(0.5)),
                        ('joint_states', 0, joint_state(0, [1.0, 2.0], []))], cartpole())


def test_a_missing_topic_names_those_in_the_bag(tmp_path):
    with pytest.raises(BagError, match=r"no topic 'commands'. The bag has: /joint_states\."):
        load(tmp_path, [observed(0, 0.0), observed(100, 1.0)])


def test_a_namespace_is_found_and_proposed(tmp_path):
    bag = write_bag(tmp_path / 'bag', [commanded(0, 0.1), observed(0, 0.0), observed(100, 1.0)],
                    prefix='/left/')
    assert load_dataset([bag], tiny_robot(), namespace='/left').num_transitions == 1
    with pytest.raises(BagError, match='Try: --namespace /left'):
        load_dataset([bag], tiny_robot())


def test_another_message_type_is_refused(tmp_path):
    with pytest.raises(BagError, match=r'is sensor_msgs/\w+/JointState; robot .* expects std'):
        load(tmp_path, [observed(0, 0.0), ('commands', 0, joint_state(0, [1.0], [0.0]))])


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize('compression', [CompressionMode.NONE, CompressionMode.FILE,
                                         CompressionMode.MESSAGE, CompressionMode.STORAGE])
def test_bags_of_other_recorders_are_read(tmp_path, storage, compression):
    if (storage, compression) == (StoragePlugin.SQLITE3, CompressionMode.STORAGE):
        pytest.skip('sqlite3 has no compression of its own')
    messages = [commanded(0, 0.1), observed(0, 0.0), observed(100, 1.0), observed(200, 2.0)]
    writer = Writer(tmp_path / 'bag', version=9, storage_plugin=storage)
    if compression is not CompressionMode.NONE:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    connections = {}
    with writer:
        for topic, time_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(
                    '/' + topic, message.__msgtype__, typestore=typestore())
            writer.write(connections[topic], time_ns, cdr(message))
    dataset = load_dataset([tmp_path / 'bag'], tiny_robot())
    assert contents(dataset) == [([0.0, 1.0, 2.0], [0.1, 0.1])]


def test_no_transition_is_refused_with_the_reason(tmp_path):
    with pytest.raises(BagError, match=r'no transition in(.|\n)*without a command'):
        load(tmp_path, [observed(0, 0.0), observed(100, 1.0), commanded(200, 0.1)])


def test_the_same_bag_twice_is_refused(tmp_path):
    bag = write_bag(tmp_path / 'bag', [commanded(0, 0.1), observed(0, 0.0), observed(100, 1.0)])
    with pytest.raises(BagError, match='given twice'):
        load_dataset([bag, f'{bag}/../bag'], tiny_robot())


def test_progress_ends_at_the_number_of_messages(tmp_path):
    calls = []
    load(tmp_path, [commanded(0, 0.1), observed(0, 0.0), observed(100, 1.0)],
         progress=lambda *call: calls.append(call[1:]), use_cache=False)
    assert (calls[0], calls[-1]) == ((0, 3), (3, 3))


stamps = strategies.lists(strategies.integers(0, 2000), min_size=1, max_size=30, unique=True)


@given(stamps=stamps, grid=stamps)
def test_hold_is_the_last_command_and_never_a_future_one(stamps, grid):
    # The value of each sample is its own stamp, so that a value tells when it was commanded.
    times, grid_ns = np.array(sorted(stamps)), np.array(sorted(grid))
    held = hold(Samples(times, times[:, None].astype(float)), grid_ns)[:, 0]
    for wanted, value in zip(grid_ns, held, strict=True):
        past = [stamp for stamp in stamps if stamp <= wanted]
        assert value == max(past) if past else np.isnan(value)


@given(stamps=strategies.lists(strategies.integers(0, 10**10), min_size=2, max_size=30,
                               unique=True),
       fractions=strategies.lists(strategies.floats(0.0, 1.0), min_size=1, max_size=20),
       slope=strategies.floats(-5.0, 5.0))
@settings(deadline=None)
def test_interpolation_is_exact_for_lines_and_hits_every_sample(stamps, fractions, slope):
    # Stamps as of 2026, where float64 resolves only 256 ns.
    origin = 1_790_000_000 * 10**9
    times = origin + np.array(sorted(stamps))
    values = slope * (times - origin)[:, None] * 1e-9
    inside = times[0] + np.sort(np.array(fractions) * (times[-1] - times[0])).astype(np.int64)
    found = interpolate(Samples(times, values), inside)[:, 0]
    # Snapping to a sample at most 1 us away is worth at most slope * 1e-6.
    np.testing.assert_allclose(found, slope * (inside - origin) * 1e-9, atol=6e-6)
    samples = Samples(times, np.arange(len(times))[:, None].astype(float))
    spread = np.concatenate([[True], np.diff(times) > 2000])
    np.testing.assert_array_equal(
        interpolate(samples, times)[spread], samples.values[spread])


def counting_dataset(*lengths):
    """Return a dataset in which each state is a number of its own."""
    episodes, first = [], 0.0
    for length in lengths:
        states = first + np.arange(length + 1.0)[:, None]
        episodes.append(Episode(states, np.ones((length, 1)), 0, f'episode of {length}'))
        first += length + 1
    return Dataset(tuple(episodes), tiny_robot())


@given(lengths=strategies.lists(strategies.integers(1, 130), min_size=1, max_size=6),
       fraction=strategies.floats(0.01, 0.99), seed=strategies.integers(0, 2**32))
@settings(deadline=None)
def test_holdout_and_training_share_no_state(lengths, fraction, seed):
    dataset = counting_dataset(*lengths)
    if sum(-(-length // 25) for length in lengths) < 2:
        with pytest.raises(BagError, match='too few to hold some out'):
            dataset.split_holdout(fraction, seed)
        return
    training, holdout = dataset.split_holdout(fraction, seed)
    seen = [{float(x) for e in side.episodes for x in e.states[:, 0]}
            for side in (training, holdout)]
    assert not seen[0] & seen[1]
    assert holdout.num_transitions > 0
    # At most two transitions a holdout block are given up, and none is invented.
    lost = dataset.num_transitions - training.num_transitions - holdout.num_transitions
    assert 0 <= lost <= 2 * sum(-(-length // 25) for length in lengths)
    for side in (training, holdout):
        for episode in side.episodes:
            np.testing.assert_array_equal(np.diff(episode.states[:, 0]), 1.0)


def test_one_long_episode_has_a_holdout_from_blocks_of_25():
    # 100 steps: 4 blocks; a quarter is one block, 25 transitions. Training loses one transition
    # at each end of it, or one in all if the block is first or last: 75 - 1 or 75 - 2.
    training, holdout = counting_dataset(100).split_holdout(0.25, seed=3)
    assert holdout.num_transitions == 25
    assert training.num_transitions in (73, 74)
    first = holdout.episodes[0].states[0, 0]
    assert holdout.episodes[0].start_ns == round(first * 0.1e9)  # 10 Hz, counted from zero


def test_the_split_is_a_function_of_its_seed():
    dataset = counting_dataset(200, 130, 40)
    hashes = [[side.hash for side in dataset.split_holdout(0.2, seed)] for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_hash_depends_on_every_number_and_on_order():
    one, other = counting_dataset(10, 20), counting_dataset(20, 10)
    assert one.hash == counting_dataset(10, 20).hash
    assert one.hash != other.hash
    changed = counting_dataset(10, 20).episodes
    actions = np.ones((20, 1))
    actions[7] += 1e-12
    episodes = (changed[0], Episode(changed[1].states, actions, 0, ''))
    assert Dataset(episodes, one.robot).hash != one.hash


def test_transitions_are_stacked_over_episodes():
    states, actions, following = counting_dataset(2, 1).transitions()
    # Episode one has states 0 1 2, episode two 3 4.
    assert states[:, 0].tolist() == [0.0, 1.0, 3.0]
    assert following[:, 0].tolist() == [1.0, 2.0, 4.0]
    assert actions.shape == (3, 1)


def test_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match='read-only'):
        counting_dataset(3).episodes[0].states[0] = 1.0
