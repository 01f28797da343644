"""What is timed at configure: whole plans, also of planners that are soon settled."""

from fakes import artifact_of, cart, cart_model, cart_task, dynamics_of, rolls
import numpy as np
import pytest

from mbrl_ros.control.mpc import Mpc
from mbrl_ros.planning import ActionSpace
from mbrl_ros.planning.cem import Config, Planner
from mbrl_ros.runtime.rollout import Rollout


class Settled(Planner):
    """Is settled after each round, and counts them."""

    num_updates = 0

    def update(self, *given):
        self.num_updates += 1
        return super().update(*given)

    def is_settled(self, state):
        return True


@pytest.fixture
def planner():
    return Settled(Config(population=10, num_elites=2, iterations=3),
                   ActionSpace(4, cart().action_min, cart().action_max))


@pytest.fixture
def mpc(planner):
    artifact = artifact_of(cart_model(), cart(), 2)
    rollout = Rollout(artifact, cart(), cart_task(), rolls(2))
    yield Mpc(dynamics_of(artifact), rollout, planner, cart(), np.random.default_rng(0))
    rollout.close()


def test_warm_up_takes_all_rounds(mpc, planner):
    mpc.warm_up(most_plans=0)
    assert planner.num_updates == 5 * 3  # five plans of three rounds
    mpc.plan(1, np.zeros(2), ())
    assert planner.num_updates == 16


@pytest.mark.parametrize(('asks', 'num_calls'), [('costs', 1), ('gradients', 0), ('expansion', 0)])
def test_tiles_are_measured_for_costs_only(mpc, planner, asks, num_calls):
    planner.asks, calls = asks, []
    mpc.rollout.calibrate = lambda *given: calls.append(given)
    mpc.calibrate()
    assert len(calls) == num_calls
