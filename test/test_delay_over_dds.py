"""A robot that answers two control periods late, over DDS in lock-step: estimated and driven."""

from pathlib import Path

import pytest

pytest.importorskip('rclpy')

from mbrl_ros.cli.trial import realised_return
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.delay import estimate_delay
from mbrl_ros.nodes.operator import Operator
from mbrl_ros.nodes.table import NodeOptions

SPEC = load_robot('cartpole')
DELAY_STEPS = 2


@pytest.fixture
def operate(ros_domain, tmp_path):
    """Return a function that runs the delayed robot for some steps, and returns the bag."""
    def run(name, steps, **controller):
        extra = {
            'sim_robot': {'start_paused': True, 'pause_after_steps': steps,
                          'actuation_delay_steps': DELAY_STEPS},
            'data_logger': {'output': str(tmp_path / name), 'record': False},
            'mpc_controller': {'autostart': False, **controller}}
        with Operator(SPEC, NodeOptions(use_sim_time=True), extra, tmp_path / name) as operator:
            operator.configure('mpc_controller')
            operator.wait_until_connected()
            bag = Path(operator.switch('data_logger', 'record', on=True))
            operator.activate('mpc_controller')
            operator.start_counting()
            operator.switch('sim_robot', 'set_pause', on=False)
            operator.wait_for_observations(steps + 1, 60.0)
            operator.deactivate('mpc_controller')
            operator.switch('data_logger', 'record', on=False)
        return bag
    return run


def test_the_delay_of_a_recorded_robot_is_found(operate):
    bag = operate('collect', 500, mode='collect')
    found = estimate_delay(load_dataset([bag], SPEC).episodes, SPEC)
    assert found.steps == pytest.approx(DELAY_STEPS, abs=0.5)


def test_compensation_swings_up_where_without_it_nothing_does(operate):
    # The pole is up after a second, and earns up to 1 a step from then on: 60 steps are worth
    # more than 25 with compensation, and little while the pole still swings.
    task = load_task('cartpole_swingup', SPEC)
    delayed = SPEC.model_copy(update={'actuation_delay_steps': DELAY_STEPS})

    def total(name, delay_steps):
        bag = operate(name, 60, actuation_delay_steps=delay_steps)
        return realised_return(load_dataset([bag], delayed), SPEC, task)
    compensated = total('with', DELAY_STEPS)
    assert compensated > 25.0
    assert compensated > 2.0 * total('without', 0)
