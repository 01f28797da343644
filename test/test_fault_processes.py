"""Controller, simulated robot and logger, each a process: one ends, the others do right."""

import resource
import signal
import time

import pytest

pytest.importorskip('rclpy')

from controller_files import parameters_of, SAFE
from diagnostic_msgs.msg import DiagnosticStatus
from node_process import COMMANDS, NodeProcess, Witness
from std_srvs.srv import SetBool

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.data.bag_info import read_info
from mbrl_ros.data.bag_metadata import EPISODE_TOPIC, read_metadata
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.recover import recover

ERROR, STALE, WARN = DiagnosticStatus.ERROR, DiagnosticStatus.STALE, DiagnosticStatus.WARN
# The robot reports the effort that acted in the period before: 100 N a unit of the command.
SAFE_EFFORT = 100 * SAFE
START_S = 60.0
DISK_BYTES = 100_000


@pytest.fixture
def witness(ros, spin):
    node = Witness()
    spin(node)
    return node


@pytest.fixture
def run(witness, files):
    """Return a function that starts a node of the small robot as a process."""
    started = []

    def begin(name, **parameters):
        started.append(NodeProcess(name, files, robot=str(files / 'robots.yaml'), **parameters))
        return started[-1]
    yield begin
    for node in reversed(started):
        node.process.kill()
        node.process.wait()


@pytest.fixture
def run_controller(run, files):
    def begin(**changes):
        given = parameters_of(files, **changes)
        given.pop('robot')
        return run('mpc_controller', **given)
    return begin


def real_time(run_controller):
    return run_controller(lockstep=False, actuation_delay_steps=1, allow_slow=True)


@pytest.fixture
def drives(witness, eventually):
    """Return a function that waits until so many ticks more had plans of their own."""
    def wait(count=5):
        first = len(witness.ticks)
        return eventually(lambda: sum(
            tick['rung'] == 'plan' for tick in witness.ticks[first:]) >= count, START_S)
    return wait


def test_the_controller_ends(witness, run, run_controller, drives, eventually):
    robot = run('sim_robot')
    for number in (signal.SIGKILL, signal.SIGTERM):
        controller, told = real_time(run_controller), len(witness.told)
        assert drives()
        # All have found each other: the robot does what it is told.
        assert eventually(lambda: witness.commands and witness.states
                          and witness.states[-1][1] != SAFE_EFFORT)
        status = controller.end(number)
        # The last command, sent at c, is latched at the robot's first tick from c on, which
        # publishes state 0 after c; states 1 to 5 come after periods in which it acted. The fifth
        # tick without another one latches the safe value, which state 6 is the first to show.
        assert eventually(lambda: len([s for s, _ in witness.states
                                       if s >= witness.commands[-1][0]]) > 8)
        sent_ns, command = witness.commands[-1]
        efforts = [effort for stamp, effort in witness.states if stamp >= sent_ns]
        assert efforts[1:6] == pytest.approx([100 * command] * 5)
        assert efforts[6:] == pytest.approx([SAFE_EFFORT] * len(efforts[6:]))
        assert eventually(lambda: 'watchdog: no command on ' + COMMANDS in robot.log)
        assert eventually(lambda first=told: witness.was_told(
            'sim_robot: commands', WARN, 'commands refused or missing', first))
        if number == signal.SIGKILL:
            assert status == -signal.SIGKILL
            continue
        assert (status, command) == (0, SAFE)
        ending = f'the node ends: {signal.Signals(number).name}'
        assert ending in controller.log
        assert eventually(lambda text=ending, first=told: witness.was_told(
            'mpc_controller: safety', STALE, text, first))


def test_the_simulator_ends(witness, run, run_controller, drives, eventually):
    controller = real_time(run_controller)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        robot, told = run('sim_robot'), len(witness.told)
        assert drives()  # after the second start too: the robot is back
        assert eventually(lambda first=told: witness.speaks('sim_robot: loop', first))
        assert eventually(lambda: witness.commands and witness.states)
        count = len(witness.ticks)
        status = robot.end(number)
        assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0)
        assert eventually(lambda first=count: [
            t['safe'] for t in witness.ticks[first:]][-3:] == ['True'] * 3)
        # The answer to the last state and two ticks of its plan; the third tick, 3.5 periods after
        # the state, is later than it may be old (3 periods): the safe value.
        last = [tick for tick in witness.ticks if tick['stamp_ns'] == str(witness.states[-1][0])]
        safe = [tick['safe'] == 'True' for tick in last]
        assert safe.index(True) <= 3
        assert all(safe[safe.index(True):])
        assert witness.commands[-1][1] == SAFE
        assert 'joint_states is stale' in last[-1]['reason']
        assert 'safe value sent: joint_states is stale' in controller.log
        assert eventually(lambda first=told: witness.was_told(
            'mpc_controller: safety', ERROR, 'joint_states is stale', first))
        ending = f'the node ends: {signal.Signals(number).name}'
        if number != signal.SIGKILL:
            assert ending in robot.log
            assert eventually(lambda text=ending, first=told: witness.was_told(
                'sim_robot: loop', STALE, text, first))


@pytest.fixture
def lockstep(witness, run, run_controller, eventually):
    """Start robot and controller in lock-step: each observation has exactly one answer."""
    run('sim_robot', lockstep=True, start_paused=True)
    run_controller(use_sim_time=True)
    client = witness.create_client(SetBool, '/sim_robot/set_pause')
    assert client.wait_for_service(START_S)
    # The witness listens too: the robot cannot tell that its first observation found nobody else.
    assert eventually(lambda: witness.count_subscribers('/joint_states') == 2
                      and witness.count_publishers(f'/{COMMANDS}') == 1, START_S)
    time.sleep(0.5)  # both sides have matched
    future = client.call_async(SetBool.Request(data=False))
    assert eventually(future.done)


def fewest_messages(bag):
    """
    Return how many messages the bag holds of the topic that it holds the fewest of.

    DDS finds each process in its own time: dozens of ticks may be safe before the first state.
    """
    if not (bag / 'metadata.yaml').exists():
        return 0
    counts = {topic['topic_metadata']['name']: topic['message_count']
              for topic in read_metadata(bag)['topics_with_message_count']}
    counts.pop(f'/{EPISODE_TOPIC}', None)
    return min(counts.values(), default=0)


@pytest.fixture
def record(run, tmp_path, witness, eventually):
    """Return a function that starts a logger and waits until it has recorded every topic."""
    def begin(name):
        told, bag = len(witness.told), tmp_path / 'bags' / name
        logger = run('data_logger', record=True, output=str(bag.parent), bag_name=name,
                     use_sim_time=True)
        assert eventually(lambda: fewest_messages(bag) > 20, START_S)
        assert eventually(lambda: witness.speaks('data_logger: recorder', told))
        return logger, bag
    return begin


def assert_undisturbed(ticks):
    """Every observation was answered by a plan of its own: ticks count as the periods do."""
    first, last = ticks[0], ticks[-1]
    assert {(tick['rung'], tick['missed']) for tick in ticks} == {('plan', 'False')}
    assert (int(last['stamp_ns']) - int(first['stamp_ns'])) // 40_000_000 == \
        int(last['tick']) - int(first['tick'])


def test_the_logger_ends(witness, lockstep, record, files, drives, eventually):
    for number in (signal.SIGKILL, signal.SIGTERM):  # SIGINT comes in the next test
        told = len(witness.told)
        logger, bag = record(number.name)
        first = len(witness.ticks)
        status = logger.end(number)
        assert drives(50)
        assert_undisturbed(witness.ticks[first:])
        if number == signal.SIGKILL:
            assert status == -signal.SIGKILL
            with pytest.raises(BagError, match='Try: mbrl-ros bag recover'):
                load_dataset([bag], load_robot(str(files / 'robots.yaml')))
            recover(bag)
        else:
            assert status == 0
            ending = f'the node ends: {number.name}'
            assert ending in logger.log
            assert eventually(lambda text=ending, first=told: witness.was_told(
                'data_logger: recorder', STALE, text, first))
        assert sum(topic.messages for topic in read_info(bag).topics) > 0


def test_the_disk_is_full_under_the_logger(witness, lockstep, record, files, drives, eventually):
    logger, bag = record('bag')
    first = len(witness.ticks)
    # No file may grow beyond this: writing fails with EFBIG as it would with ENOSPC.
    resource.prlimit(logger.process.pid, resource.RLIMIT_FSIZE, (DISK_BYTES, DISK_BYTES))
    text = 'File too large'
    assert eventually(lambda: witness.was_told('data_logger: recorder', ERROR, text), START_S)
    assert eventually(lambda: 'nothing more is recorded: OSError' in logger.log)
    assert text in logger.log
    assert drives(50)
    assert_undisturbed(witness.ticks[first:])
    assert logger.process.poll() is None  # it goes on, to say so
    assert logger.end(signal.SIGINT) == 0
    assert 'the disk failed' in logger.log
    result = recover(bag)
    assert result.missing == {}
    assert (bag / 'bag_0.mcap').stat().st_size > DISK_BYTES / 4
    dataset = load_dataset([bag], load_robot(str(files / 'robots.yaml')))
    assert dataset.num_transitions > 10
