"""Another model while the loop runs: swapped between two ticks, or the old one kept."""

from itertools import pairwise
from threading import Thread
import time
from types import SimpleNamespace

from fakes import cart, linear_model, metadata_of, save_artifact
import numpy as np
import pytest

pytest.importorskip('rclpy')

from controller_files import DT_S, FORCE_GAIN, SAFE
from controller_robot import tick_values
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from mbrl_ros.control.latch import Latch
from mbrl_ros.control.tick import PlanPilot
from mbrl_ros.core.robot import load_robot
from mbrl_ros.nodes.control_loop import ControlLoop
from mbrl_ros.nodes.realtime import RealTimeParams
from mbrl_ros.runtime import artifact

OK = TransitionCallbackReturn.SUCCESS


def write_model(folder, gain, path=None, **metadata):
    """Write a model like that of controller_files with another force gain; return its hash."""
    robot = load_robot(folder / 'robots.yaml')
    kinematics = np.eye(4)
    kinematics[[0, 1], [2, 3]] = DT_S
    push = np.array([[0.0], [0.0], [gain], [0.0]])
    model = linear_model([kinematics] * 2, [push] * 2, np.zeros((2, 4)), np.zeros((2, 4)))
    path = path or folder / 'dynamics.onnx'
    save_artifact(path, model, metadata_of(robot, 2) | metadata)
    return '' if metadata else artifact.load(path, robot).hash


@pytest.fixture
def reload(robot, eventually):
    """Return a function that calls ~/reload_model and does `meanwhile` until the answer comes."""
    def ask(meanwhile=lambda: None):
        client = robot.create_client(Trigger, 'mpc_controller/reload_model')
        assert client.wait_for_service(5.0)
        future = client.call_async(Trigger.Request())

        def done():
            if not future.done():
                meanwhile()
            return future.done()
        assert eventually(done, 60.0)
        robot.destroy_client(client)
        return future.result()
    return ask


def models(robot):
    """The model of each tick that told of one."""
    values = [tick_values(tick) for tick in robot.ticks]
    return [value['model'] for value in values if 'model' in value]


def test_the_model_changes_between_two_ticks(files, start, robot, answer, reload):
    start()
    old = write_model(files, FORCE_GAIN)[:16]  # what is there already
    for _ in range(3):
        answer()
    new = write_model(files, 2 * FORCE_GAIN)
    response = reload(meanwhile=answer)
    assert (response.success, response.message) == (True, f'model {new}')
    before = len(robot.ticks)
    for _ in range(3):
        answer()
    told = models(robot)
    assert set(told[before:]) == {new[:16]}
    # One change, and every observation was answered, the ones during the reload too.
    changes = [i for i in range(1, len(told)) if told[i] != told[i - 1]]
    assert len(changes) == 1
    assert set(told[:changes[0]]) == {old}
    assert SAFE not in robot.sent[1:]


def test_fifty_reloads_drop_no_tick(files, start, robot, answer, reload):
    start()
    hashes = [write_model(files, (1 + i % 2) * FORCE_GAIN, files / f'{i % 2}.onnx')
              for i in range(2)]
    controller_models = []
    for i in range(50):
        (files / 'dynamics.onnx').write_bytes((files / f'{i % 2}.onnx').read_bytes())
        response = reload(meanwhile=answer)
        assert response.message == f'model {hashes[i % 2]}'
        answer()
        controller_models.append(models(robot)[-1])
    assert controller_models == [hashes[i % 2][:16] for i in range(50)]
    told = models(robot)
    assert sum(a != b for a, b in pairwise(told)) in (49, 50)
    values = [tick_values(tick) for tick in robot.ticks]
    assert {value['missed'] for value in values} == {'False'}
    assert len(told) == len(robot.ticks) == len(robot.sent) - 1  # the first is no answer


@pytest.mark.parametrize(('spoil', 'text'), [
    (lambda files: (files / 'dynamics.onnx').write_bytes(b'garbage'), 'dynamics.onnx'),
    (lambda files: (files / 'dynamics.onnx').write_bytes(
        (files / 'dynamics.onnx').read_bytes()[:500]), 'dynamics.onnx'),
    (lambda files: (files / 'dynamics.onnx').unlink(), 'dynamics.onnx'),
    (lambda files: write_model(files, 1.0, **metadata_of(cart(), 2)), 'robot')])
def test_a_bad_model_is_refused_and_the_old_one_drives_on(
        files, start, robot, answer, reload, spoil, text, logged):
    start()
    answer()
    old = models(robot)[-1]
    spoil(files)
    response = reload(meanwhile=answer)
    assert not response.success
    assert 'the old model stays' in response.message
    assert text in response.message
    assert logged('~/reload_model: the old model stays')
    answer()
    assert set(models(robot)) == {old}
    assert SAFE not in robot.sent[1:]


def test_the_model_parameter_may_change_while_driving(files, start, robot, answer, reload):
    controller = start()
    answer()
    new = write_model(files, 2 * FORCE_GAIN, files / 'other.onnx')
    result, = controller.set_parameters([Parameter('model', value=str(files / 'other.onnx'))])
    assert result.successful
    answer()
    assert models(robot)[-1] != new[:16]  # it waits for the service
    assert reload(meanwhile=answer).success
    answer()
    assert models(robot)[-1] == new[:16]


def test_no_reload_without_a_loop(start, reload, answer):
    controller = start()
    answer()
    assert controller.trigger_deactivate() == OK
    response = reload()
    assert not response.success
    assert 'not active' in response.message


def test_a_goal_that_changed_meanwhile_goes_over_to_the_new_model(files, start, answer, reload):
    controller = start()
    answer()
    goal = np.array([0.5, 0.4])
    controller._goal.goal = goal
    write_model(files, 2 * FORCE_GAIN)
    assert reload(meanwhile=answer).success
    np.testing.assert_array_equal(controller._engine.rollout.goal, goal.astype(np.float32))


class BusyPilot(PlanPilot):
    """Plans with whatever model it is set to, in its own time."""

    def __init__(self):
        self.offered, self.plans_with = '', ''

    def replace_model(self, mpc, *further):
        self.offered = mpc
        return mpc == self.plans_with


def test_an_engine_that_waits_is_closed_unless_plans_are_made_with_it(eventually):
    log, pilot = [], BusyPilot()

    def engine(name):
        return SimpleNamespace(mpc=name, spread_limit=1.0, gauge=None, adaptive_horizon=None,
                               close=lambda: log.append(f'{name} closed'))

    def tell(engine):
        log.append(f'{engine.mpc} taken')
    inbox = SimpleNamespace(take=lambda: None, due_in_s=lambda: 1e-3)
    receiver = SimpleNamespace(lend=lambda work: Thread(target=work, args=[time.sleep]).start())
    loop = ControlLoop(receiver, inbox, pilot, None, Latch(), None, 0.0, RealTimeParams(), None,
                       None, log.append, tell, log.append)
    loop.start()
    loop.replace_engine(engine('a'))
    assert eventually(lambda: pilot.offered == 'a')
    loop.replace_engine(engine('b'))
    assert eventually(lambda: pilot.offered == 'b')
    assert log == ['a closed']
    pilot.plans_with = 'b'
    assert eventually(lambda: log == ['a closed', 'b taken'])
    loop.replace_engine(engine('c'))
    loop.replace_engine(engine('d'))
    assert eventually(lambda: log[2:] == ['c closed'])
    assert loop.stop(5.0)
    assert log[3:] == ['d closed']
