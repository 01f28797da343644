"""A robot that answers two control periods late, over DDS in lock-step: estimated and driven."""

import pytest

pytest.importorskip('rclpy')

from mbrl_ros.cli.trial import realised_return
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.delay import estimate_delay
from mbrl_ros.nodes.operator import Operator
from mbrl_ros.nodes.table import NodeOptions

pytestmark = pytest.mark.any_pace
SPEC = load_robot('cartpole')
DELAY_STEPS = 2


@pytest.fixture
def start(ros_domain, tmp_path):
    """Return a function that starts the nodes; the robot pauses itself after some steps."""
    def nodes(steps):
        return Operator(SPEC, NodeOptions(use_sim_time=True), {
            'sim_robot': {'start_paused': True, 'pause_after_steps': steps,
                          'actuation_delay_steps': DELAY_STEPS},
            'data_logger': {'output': str(tmp_path / 'bags'), 'record': False},
            'mpc_controller': {'autostart': False}}, tmp_path)
    return nodes


def test_the_delay_of_a_recorded_robot_is_found(start):
    with start(500) as operator:
        operator.prepare({'mode': 'collect'})
        bag = operator.record_run(500, 60.0)
    found = estimate_delay(load_dataset([bag], SPEC).episodes, SPEC)
    assert found.steps == pytest.approx(DELAY_STEPS, abs=0.5)


def test_compensation_swings_up_where_without_it_nothing_does(start):
    # The pole is up after a second, and earns up to 1 a step from then on: 60 steps are worth
    # more than 25 with compensation, and little while the pole still swings.
    task = load_task('cartpole_swingup', SPEC)
    delayed = SPEC.model_copy(update={'actuation_delay_steps': DELAY_STEPS})
    returns = []
    with start(60) as operator:
        for delay_steps in (DELAY_STEPS, 0):
            operator.prepare({'actuation_delay_steps': delay_steps})
            bag = operator.record_run(60, 60.0)
            returns.append(realised_return(load_dataset([bag], delayed), SPEC, task))
    compensated, uncompensated = returns
    assert compensated > 25.0
    assert compensated > 2.0 * uncompensated
