"""Kill -9 of training, promotion and recovery: nothing half-written is loaded, and all go on."""

from contextlib import suppress
from hashlib import sha256
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

from bag_factory import array, joint_state, MS, write_bag
from fakes import cart, cart_dict
import numpy as np
import pytest
import yaml

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.paths import find_model
from mbrl_ros.data.dataset import Dataset, load_dataset
from mbrl_ros.data.recover import recover
from mbrl_ros.learning import checkpoint
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.model_store import read_history
from mbrl_ros.learning.pipeline import UNFINISHED
from mbrl_ros.learning.recipe import Recipe
from mbrl_ros.runtime import artifact

HERE = Path(__file__).parent
KILLS = 20


class Server:
    """Starts processes that are killed after a time, or before their n-th change of a file."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / 'kill_server.py')], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=os.environ | {'PYTHONPATH': str(HERE)})
        # Its imports take seconds, which must not count as those of the first work.
        assert self._process.stdout.readline() == 'ready\n'

    def run(self, work, *arguments, after_s=None, before_change=0):
        """Return whether the process was killed; one that fails by itself is an error."""
        request = json.dumps([work, arguments, before_change], default=str)
        self._process.stdin.write(request + '\n')
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if after_s is not None:
            time.sleep(after_s)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = int(self._process.stdout.readline())
        assert status in (0, signal.SIGKILL), f'{work} ended with status {status}'
        return status == signal.SIGKILL

    def seconds(self, work, *arguments):
        start = time.monotonic()
        assert not self.run(work, *arguments)
        return time.monotonic() - start

    def close(self):
        self._process.stdin.close()
        self._process.wait(10.0)


@pytest.fixture(scope='module')
def server():
    server = Server()
    yield server
    server.close()


def messages(steps, seed, start_ns):
    """A cart that is pushed at random, 10 Hz."""
    rng = np.random.default_rng(seed)
    position = velocity = 0.0
    for step in range(steps):
        now_ns, force = start_ns + step * 100 * MS, rng.uniform(-2.0, 2.0)
        yield 'commands', now_ns - MS, array(force)
        yield 'joint_states', now_ns, joint_state(now_ns, [position], [velocity], ['rail'])
        position, velocity = position + 0.1 * velocity, 0.9 * velocity + 0.1 * force


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp('kills') / 'bag', messages(200, 0, 10**9))


@pytest.fixture(scope='module')
def models(server, bag, tmp_path_factory):
    """Two models of runs that nobody disturbed, by seed; and how long the second took."""
    folder = tmp_path_factory.mktemp('models')
    took_s = [server.seconds('train', bag, folder / str(seed), seed) for seed in (0, 1)]
    return folder, took_s[1]


def content(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


def hash_of(folder):
    return sha256((folder / 'dynamics.onnx').read_bytes()).hexdigest()


def epoch_of(folder):
    """Return the last epoch in a folder; a checkpoint that is no run's would be an error."""
    # What the run is made from, as the trainer knows it.
    with suppress(FileNotFoundError):
        identity = json.loads((folder / UNFINISHED / 'run.json').read_text())['made_from']
        state = checkpoint.load(folder / UNFINISHED, identity)
        return 0 if state is None else len(state['history.epoch'])
    return 0


def check_model(folder, old, new):
    """Whatever loads is the old model or the new one, and nobody sees foreign scores."""
    model = artifact.load(find_model(str(folder)), cart())
    assert model.hash in {hash_of(old), hash_of(new)}
    told = json.loads((folder / 'metrics.json').read_text())
    assert told['hash'] in {hash_of(old), hash_of(new)}
    if told['hash'] == model.hash:
        assert told['holdout'] == model.metadata['holdout']
    else:  # the model comes last
        assert model.hash == hash_of(old)
    start = Recipe(Dataset((), cart()), TrainingConfig(), 0, folder).weights()
    assert start['weights.0'].shape[0] == 2


def test_training_goes_on_after_each_of_twenty_kills(server, bag, models, tmp_path):
    folder, took_s = models
    old, new = folder / '0', folder / '1'
    rng = np.random.default_rng(5)
    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        output = tmp_path / str(rounds)
        shutil.copytree(old, output)
        epoch = 0
        while server.run('train', bag, output, 1, after_s=rng.uniform(0.02, 0.6) * took_s):
            kills += 1
            check_model(output, old, new)
            load_dataset([bag], cart())
            reached = epoch_of(output)
            if (output / UNFINISHED).is_dir() and hash_of(output) == hash_of(old):
                assert reached >= epoch
                epoch = reached
            if kills >= KILLS:
                assert not server.run('train', bag, output, 1)
                break
        names = ('dynamics.onnx', 'ensemble.npz', 'training.csv', 'metrics.json', 'card.md')
        assert content(output, *names) == content(new, *names)
        assert not (output / UNFINISHED).exists()


def test_a_kill_before_any_change_at_the_end_of_a_training(server, bag, models, tmp_path):
    folder, _ = models
    old, new = folder / '0', folder / '1'
    output = tmp_path / 'output'
    shutil.copytree(old, output)
    # Epochs only write into files of the run's own: the first kill at a file of the model comes
    # after the last of them, and the runs after that have nothing but the end before them.
    number = 1
    while server.run('train', bag, output, 1, before_change=number):
        check_model(output, old, new)
        number += 1
    assert hash_of(output) == hash_of(new)
    assert number > 7 + 3 + 1  # the model's seven files; three of the run, and their folder


@pytest.fixture
def robot_file(tmp_path):
    path = tmp_path / 'cart.yaml'
    path.write_text(yaml.safe_dump(cart_dict()))
    return path


def check_promoted(place, old, new):
    check_model(place, old, new)
    read_history(place)


def finish_promotion(server, new, place, robot_file):
    assert not server.run('promote', new, place, robot_file)
    names = ('dynamics.onnx', 'ensemble.npz', 'metrics.json', 'card.md')
    assert content(place, *names) == content(new, *names)
    history = read_history(place)
    assert [entry.is_installed for entry in history] == [True] * len(history)
    # The model that was there first has a copy, and each model only one.
    assert sorted(entry.hash for entry in history) == sorted([
        artifact.load(copy / 'dynamics.onnx', cart()).hash
        for copy in (place / 'history').iterdir() if copy.is_dir()])


def test_promotion_goes_on_after_each_of_twenty_kills(server, models, robot_file, tmp_path):
    # A kill before each single change of a file: see test_model_store.py.
    folder, _ = models
    old, new = folder / '0', folder / '1'
    shutil.copytree(old, tmp_path / 'first')
    took_s = server.seconds('promote', new, tmp_path / 'first', robot_file)
    rng = np.random.default_rng(6)
    kills = 0
    while kills < KILLS:
        place = tmp_path / 'place'
        shutil.copytree(old, place)
        while kills < KILLS and server.run('promote', new, place, robot_file,
                                           after_s=rng.uniform(0.0, 1.0) * took_s):
            kills += 1
            check_promoted(place, old, new)
        finish_promotion(server, new, place, robot_file)
        shutil.rmtree(place)


@pytest.fixture(scope='module')
def broken(tmp_path_factory):
    """A bag of two files, both cut short; its metadata.yaml counts what they held."""
    folder = tmp_path_factory.mktemp('broken')
    bag = write_bag(folder / 'bag', messages(900, 0, 10**9))
    second = write_bag(folder / 'second', messages(900, 1, 10**12))
    [file] = second.glob('*.mcap')
    shutil.copy(file, bag / 'bag_1.mcap')
    path = bag / 'metadata.yaml'
    metadata = yaml.safe_load(path.read_text())
    information = metadata['rosbag2_bagfile_information']
    information['relative_file_paths'].append('bag_1.mcap')
    information['files'].append(information['files'][0] | {'path': 'bag_1.mcap'})
    for topic in information['topics_with_message_count']:
        topic['message_count'] *= 2
    path.write_text(yaml.safe_dump(metadata))
    for file in bag.glob('*.mcap'):
        os.truncate(file, file.stat().st_size // 2)
    return bag


def read_recovered(bag):
    """What a finished recovery leaves: files, losses, and what the dataset says of them."""
    metadata = yaml.safe_load((bag / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    told = json.loads(metadata['custom_data'].pop('mbrl_ros_recovered'))
    del told['at']
    files = content(bag, *(path.name for path in bag.glob('*.mcap*')))
    dataset = load_dataset([bag], cart(), use_cache=False)
    losses = [line.replace(str(bag), '') for line in dataset.describe_losses()]
    return metadata, told, files, dataset.hash, losses


@pytest.fixture(scope='module')
def recovered(broken, tmp_path_factory):
    """The same bag after a recovery that nobody disturbed."""
    bag = tmp_path_factory.mktemp('recovered') / 'bag'
    shutil.copytree(broken, bag)
    recover(bag)
    found = read_recovered(bag)
    # It did lose something, and says so.
    assert found[1]['missing'].keys() == {'/joint_states', '/commands'}
    assert sorted(found[2]) == ['bag_0.mcap', 'bag_0.mcap.truncated', 'bag_1.mcap',
                                'bag_1.mcap.truncated']
    return found


def check_bag(bag, recovered):
    """The bag is refused, or it is the recovered one."""
    assert len(list(bag.glob('*.mcap'))) == 2
    try:
        dataset = load_dataset([bag], cart())
    except BagError as error:
        assert 'Try: mbrl-ros bag recover' in str(error)  # noqa: PT017 (both are right)
    else:
        assert dataset.hash == recovered[3]
        assert [line.replace(str(bag), '') for line in dataset.describe_losses()] == recovered[4]


def test_recovery_goes_on_after_each_of_twenty_kills(server, broken, recovered, tmp_path):
    shutil.copytree(broken, tmp_path / 'first')
    took_s = server.seconds('recover', tmp_path / 'first')
    rng = np.random.default_rng(7)
    kills, bag = 0, tmp_path / 'bag'
    while kills < KILLS:
        shutil.copytree(broken, bag)
        while kills < KILLS and server.run('recover', bag, after_s=rng.uniform(0.0, 1.0) * took_s):
            kills += 1
            check_bag(bag, recovered)
        assert not server.run('recover', bag)
        assert read_recovered(bag) == recovered
        shutil.rmtree(bag)


@pytest.mark.parametrize('has_links', [True, False])
def test_a_kill_before_any_change_of_a_recovery(server, broken, recovered, tmp_path, has_links):
    number, bag, killed = 0, tmp_path / 'bag', True
    while killed:
        number += 1
        shutil.copytree(broken, bag)
        killed = server.run('recover', bag, before_change=number)
        check_bag(bag, recovered)
        if not has_links and killed:
            # As where files cannot have two names: a kill between both renames.
            for file in bag.glob('*.mcap'):
                if file.with_name(f'{file.name}.truncated').exists():
                    file.unlink()
        assert not server.run('recover', bag)
        assert read_recovered(bag) == recovered
        shutil.rmtree(bag)
    # Two files, each linked and replaced; metadata.yaml replaced; then it is through.
    assert number == 2 * 2 + 1 + 1
