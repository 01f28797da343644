"""The thread that plans: what else it computes, and what it survives."""

from threading import current_thread

from fakes import cart
import numpy as np
import pytest

from mbrl_ros.control.gate import SafetyGate
from mbrl_ros.control.mpc import Decision, Inputs
from mbrl_ros.control.tick import Observation, PlanPilot
from mbrl_ros.runtime.rollout import Prediction


class FakeMpc:
    """Plans to stay; as its own rollout it notes which thread predicts."""

    def __init__(self):
        self.error, self.threads = None, []

    def plan(self, tick, observation, in_flight, horizon):
        if self.error:
            raise self.error
        inputs = Inputs(tick, observation, np.empty((0, 1)), None, {}, np.empty(0), np.empty(0), 3)
        return Decision(inputs, np.zeros((3, 1)), observation, 0.5, 1, 0, 0.0, self, None)

    def predict(self, start, actions, draw):
        self.threads.append(current_thread().name)
        return Prediction(7.0, np.empty(0), np.empty((3, 1, 2)))


@pytest.fixture
def mpc():
    return FakeMpc()


@pytest.fixture
def pilot(mpc):
    made = PlanPilot(mpc, SafetyGate(cart(), float('inf'), {}), cart(), 1, None)
    yield made
    made.close()


def test_what_a_review_needs_is_computed_on_the_plan_thread(mpc, pilot, eventually):
    decision = pilot.tick(Observation(np.array([0.3, 0.0]))).decision
    assert mpc.threads == []
    pilot.prepare_review()
    assert eventually(lambda: 'prediction' in vars(decision))
    assert decision.prediction.cost == 7.0
    assert mpc.threads == ['plan']


def test_a_planner_that_exits_fails_and_the_next_observation_is_planned_for(mpc, pilot):
    mpc.error = SystemExit(3)
    tick = pilot.tick(Observation(np.array([0.3, 0.0])))
    assert tick.verdict.safe
    assert tick.verdict.reason == 'the planner failed: SystemExit: 3'
    mpc.error = None
    assert pilot.tick(Observation(np.array([0.3, 0.0]))).rung == 'plan'
