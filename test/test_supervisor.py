"""Which command acted between which observations, and what surprise does to a command."""

from types import SimpleNamespace

from fakes import artifact_of, cart, cart_model, cart_task, dynamics_of, rolls, trust_dict
import numpy as np
import pytest

from mbrl_ros.control.exploitation import ExploitationCheck, ExploitationConfig
from mbrl_ros.control.gate import SafetyGate
from mbrl_ros.control.mpc import Mpc
from mbrl_ros.control.supervisor import Supervisor
from mbrl_ros.control.tick import Observation, PlanPilot
from mbrl_ros.control.trust import TrustConfig, TrustGauge, TrustLimiter
from mbrl_ros.costs import CostFunction
from mbrl_ros.planning import ActionSpace
from mbrl_ros.planning.cem import Config, Planner
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.surprise import Calibration

DT_NS = 100_000_000


class Ear:
    """A gauge that keeps what it is told, and reads as it is set."""

    def __init__(self):
        self.heard, self.figure = [], 0.0

    def observe(self, state, acted, *, is_consecutive):
        self.heard.append((None if state is None else state[0], acted[0], is_consecutive))

    def planned(self, states, lengths):
        self.heard.append((states.shape, lengths))

    def read(self):
        return self

    def describe(self):
        return 'odd'

    def forget(self):
        self.heard.append('forgotten')


def make_supervisor(gauge, delay_steps, **trust):
    check = ExploitationCheck(CostFunction(cart_task(), cart()), 4, delay_steps,
                              ExploitationConfig())
    return Supervisor(gauge, TrustLimiter(TrustConfig(**trust)), check, delay_steps, DT_NS)


def plan_of(tick, horizon=4, lengths=None):
    """Return what a supervisor wants of a decision: four steps of two particles, at rest."""
    prediction = SimpleNamespace(terms=np.zeros(2), states=np.zeros((4, 2, 2)),
                                 lengths=None if lengths is None else np.array(lengths))
    inputs = SimpleNamespace(goal=np.zeros(1), weights=np.ones(2), horizon=horizon)
    return SimpleNamespace(tick=tick, inputs=inputs, prediction=prediction)


@pytest.mark.parametrize(('delay_steps', 'expected'), [
    # Command n is 10 n; between the observations of ticks n - 1 and n acts that of n - 1 - delay.
    (0, [(1.0, 10.0, False), (2.0, 10.0, True), (3.0, 20.0, True), (4.0, 30.0, True)]),
    (2, [(1.0, 10.0, False), (2.0, 10.0, False), (3.0, 10.0, False), (4.0, 10.0, True)])])
def test_what_acted_is_what_was_sent_before_the_delay(delay_steps, expected):
    ear = Ear()
    supervisor = make_supervisor(ear, delay_steps)
    for n in range(1, 5):
        supervisor.review(n, np.array([float(n), 0.0]), n * DT_NS, np.array([10.0 * n]), None)
    assert ear.heard[1:] == expected


def test_a_gap_is_no_step():
    ear = Ear()
    supervisor = make_supervisor(ear, 0)
    state, command = np.zeros(2), np.zeros(1)
    #        tick, fresh, stamp in periods: missing at 3, silent tick 5 between two observations
    #        that are one period apart, a stamp half a period late at 8, one twice at 10.
    told = [(1, True, 1), (2, True, 2), (3, False, 2), (4, True, 4), (5, False, 4), (6, True, 5),
            (7, True, 6), (8, True, 7.5), (9, True, 8.5), (10, True, 8.5)]
    for tick, fresh, stamp in told:
        supervisor.review(tick, state if fresh else None, round(stamp * DT_NS), command, None)
    assert [item[2] for item in ear.heard[1:]] == [
        False, True, False, False, False, False, True, False, True, False]


@pytest.mark.parametrize(('plan', 'num_promises'), [
    (plan_of(1), 1), (plan_of(1, horizon=3), 1), (plan_of(1, lengths=[4, 4]), 1),
    (plan_of(1, horizon=3, lengths=[3, 3]), 1),
    # Terms of fewer steps than are compared with what the robot is charged promise too little.
    (plan_of(1, lengths=[4, 3]), 0), (plan_of(1, horizon=3, lengths=[2, 3]), 0),
    (plan_of(0), 0)])  # late: not followed from its start
def test_only_a_plan_in_time_that_goes_on_to_its_end_is_a_promise(plan, num_promises):
    ear = Ear()
    supervisor = make_supervisor(ear, 0)
    heard = []
    supervisor._adaptive_horizon = SimpleNamespace(planned=heard.append, update=lambda _: None)
    ear.signals = {}
    state, command = np.zeros(2), np.zeros(1)
    supervisor.review(1, state, DT_NS, command, plan)
    for n in range(2, 7):
        supervisor.review(n, state, n * DT_NS, command, None)
    assert supervisor.exploitation.num_plans == num_promises
    # The gauge and the horizon look at every plan, at the steps that count.
    assert heard == [plan]
    shape, lengths = ear.heard[2]
    assert shape == (plan.inputs.horizon, 2, 2)
    assert lengths is plan.prediction.lengths


def fly(gauge, **trust):
    """A pilot of the cart whose gauge is replaced."""
    robot, task = cart(), cart_task()
    artifact = artifact_of(cart_model(), robot, 2)
    planner = Planner(Config(population=60, num_elites=6, iterations=3),
                      ActionSpace(4, robot.action_min, robot.action_max))
    mpc = Mpc(dynamics_of(artifact), Rollout(artifact, robot, task, rolls(2)), planner, robot,
              np.random.default_rng(0))
    return mpc, PlanPilot(mpc, SafetyGate(robot, 5.0, {}), robot, 0, None,
                          supervisor=make_supervisor(gauge, 0, **trust))


def step(pilot, number):
    observation = Observation(np.array([0.3, 0.0]), stamp_ns=number * DT_NS)
    tick = pilot.tick(observation)
    pilot.review(observation, tick)
    return tick


def test_surprise_slows_then_holds_then_stops():
    ear = Ear()
    _, pilot = fly(ear, slow_above=0.8, hold_above=0.9, stop_above=0.95, min_scale=0.5,
                   trust_ticks=1, hold_ticks=5)
    first = step(pilot, 1)
    assert (first.rung, first.verdict.reason) == ('plan', '')
    ear.figure = 0.85  # half way from slow to hold: scale 1 - 0.5 / 2 = 0.75, from the next tick
    step(pilot, 2)
    slow = step(pilot, 3)
    np.testing.assert_allclose(slow.verdict.command, 0.75 * slow.decision.actions[0], rtol=1e-9)
    assert slow.verdict.reason == 'the model is surprised, slowed to 75% of the plan: odd'
    ear.figure = 0.92
    step(pilot, 4)
    held = step(pilot, 5)
    np.testing.assert_array_equal(held.verdict.command, pilot._gate.last)
    assert (held.rung, held.verdict.safe) == ('held', False)
    ear.figure = 0.99
    step(pilot, 6)
    stopped = step(pilot, 7)
    assert (stopped.rung, stopped.verdict.command.tolist()) == ('safe', [0.0])
    assert stopped.verdict.reason == 'the model is surprised, stopped: odd'
    ear.figure = 0.1  # trust comes back
    step(pilot, 8)
    assert step(pilot, 9).rung == 'plan'
    pilot.close()


def test_the_real_gauge_notices_that_the_robot_changed():
    mpc, pilot = fly(Ear())
    # Errors up to 100 predicted std are usual; the model is exact, so rounding is all there is.
    calibration = Calibration.from_dict(trust_dict(usual_up_to=100.0))
    pilot.supervisor.replace_model(TrustGauge(mpc.dynamics, calibration), None)

    def drive(gain, numbers, state):
        figures = []
        for number in numbers:
            observation = Observation(state, stamp_ns=number * DT_NS)
            tick = pilot.tick(observation)
            pilot.review(observation, tick)
            force = tick.verdict.command[0]
            state = np.array([state[0] + 0.1 * state[1], state[1] + gain * force])
            figures.append(pilot.supervisor.trust.figure)
        return figures, state
    figures, state = drive(0.1, range(1, 20), np.array([0.3, 0.0]))  # as the model has it
    assert max(figures) < 0.5
    # The motor runs backwards, five times as strong: 0.6 a unit of force off, 0.001 expected.
    figures, _ = drive(-0.5, range(20, 40), state)
    assert max(figures) > 0.9
    assert pilot.supervisor.trust.signals['one_step'] > 0.0
    pilot.forget()
    assert pilot.supervisor.trust.figure == 0.0
    pilot.close()
