"""The control tick: gate, pilots, deadlines, latency compensation. No ROS."""

from threading import Event, Timer

from fakes import artifact_of, cart, cart_model, cart_task, dynamics_of, rolls
import numpy as np
import pytest

from mbrl_ros.control.gate import SafetyGate
from mbrl_ros.control.mpc import Decision, Inputs, Mpc
from mbrl_ros.control.tick import CollectPilot, Observation, PlanPilot
from mbrl_ros.core.errors import PlanningError
from mbrl_ros.core.task import Bounds
from mbrl_ros.planning import ActionSpace
from mbrl_ros.planning.cem import Config, Planner
from mbrl_ros.runtime.rollout import Rollout

REST = np.zeros(2)
FRESH = Observation(REST)
INSIDE = {'position': Bounds(min=-1.0, max=1.0)}


def make_gate(robot=None, max_spread=5.0, termination=None):
    return SafetyGate(robot or cart(), max_spread, termination or {})


@pytest.mark.parametrize(('action', 'state', 'problem', 'spread', 'reason'), [
    (None, REST, '', 0.0, 'no plan'),
    ([1.0], None, '', 0.0, 'no observation yet'),
    ([1.0], REST, 'joint_states is stale', 0.0, 'joint_states is stale'),
    ([np.nan], REST, '', 0.0, 'not finite'),
    ([np.inf], REST, '', 0.0, 'not finite'),
    ([2.001], REST, '', 0.0, 'outside the limits'),
    ([-2.001], REST, '', 0.0, 'outside the limits'),
    ([1.0], REST, '', 5.001, 'disagree by 5 typical steps, limit 5'),
    ([1.0], REST, '', np.nan, 'not trusted'),
    ([1.0], np.array([1.001, 0.0]), '', 0.0, 'position = 1.001 outside the task range [-1, 1]'),
    ([1.0], np.array([-1.001, 0.0]), '', 0.0, 'outside the task range'),
])
def test_gate_refusals(action, state, problem, spread, reason):
    gate = make_gate(cart(safe_value=0.5), termination=INSIDE)
    verdict = gate.check(None if action is None else np.array(action), state, problem, spread)
    assert verdict.safe
    assert verdict.command.tolist() == [0.5]
    assert reason in verdict.reason


def test_gate_lets_out_what_is_allowed():
    gate = make_gate(termination=INSIDE)
    for value in (2.0, -2.0, 0.3):
        verdict = gate.check(np.array([value]), np.array([1.0, 99.0]), '', 5.0)
        assert (verdict.command.tolist(), verdict.reason, verdict.safe) == ([value], '', False)


def test_gate_slows_to_the_rate_limit():
    gate = make_gate(cart(rate_limit=5.0))  # 0.5 a period of 0.1 s
    commands = [gate.check(np.array([value]), REST, '', 0.0)
                for value in (2.0, 2.0, 1.2, -2.0)]
    # From the safe value 0: 0.5, then 1.0, then 1.2 (0.2 is allowed), then 0.7.
    np.testing.assert_allclose([v.command[0] for v in commands], [0.5, 1.0, 1.2, 0.7])
    assert [v.reason for v in commands] == ['slowed to the rate limit: force'] * 2 + [
        '', 'slowed to the rate limit: force']
    assert not any(v.safe for v in commands)


def test_safe_value_is_not_slowed_and_is_where_the_next_action_starts():
    gate = make_gate(cart(rate_limit=5.0))
    for _ in range(4):
        gate.check(np.array([2.0]), REST, '', 0.0)  # up to 2.0
    assert gate.check(np.array([2.0]), REST, 'stale', 0.0).command.tolist() == [0.0]
    assert gate.check(np.array([2.0]), REST, '', 0.0).command.tolist() == [0.5]
    gate.forget()
    assert gate.check(np.array([-2.0]), REST, '', 0.0).command.tolist() == [-0.5]


def decision_of(tick, actions, start):
    inputs = Inputs(tick, start, np.empty((0, 1)), None, {}, np.empty(0), np.empty(0),
                    len(actions))
    return Decision(inputs, actions, start, 0.5, 1, 0, 0.0, None, None)


class FakeMpc:
    """Plan number n is [n.0, n.1, n.2]; it can be held back, or fail."""

    def __init__(self):
        self.calls, self.free, self.error = [], Event(), None
        self.free.set()

    def plan(self, tick, observation, in_flight, horizon):
        error = self.error
        self.calls.append((tick, observation.copy(), [c.tolist() for c in in_flight]))
        self.free.wait()
        if error:
            raise error
        actions = 0.1 * tick + np.array([[0.0], [0.01], [0.02]])
        return decision_of(tick, actions, observation)

    def forget(self):
        self.calls.append('forgotten')


@pytest.fixture
def mpc():
    return FakeMpc()


@pytest.fixture
def fly(mpc):
    """Return a function that makes a pilot; blocked plans are freed at the end."""
    pilots = []

    def make(deadline_s=None, delay_steps=1, **gate):
        pilots.append(PlanPilot(mpc, make_gate(**gate), cart(), delay_steps, deadline_s))
        return pilots[-1]
    yield make
    mpc.free.set()
    for pilot in pilots:
        pilot.close()


def command(tick):
    return round(float(tick.verdict.command[0]), 6)


def test_plan_in_time(mpc, fly):
    pilot = fly(delay_steps=2)
    ticks = [pilot.tick(Observation(np.array([i, 0.0]))) for i in range(4)]
    assert [command(t) for t in ticks] == [0.1, 0.2, 0.3, 0.4]
    assert [(t.index, t.missed, t.decision.tick) for t in ticks] == [
        (i, False, i) for i in (1, 2, 3, 4)]
    # In flight are the last two commands, oldest first; before the first the safe value.
    assert [(tick, state[0], flight) for tick, state, flight in mpc.calls] == [
        (1, 0.0, [[0.0], [0.0]]), (2, 1.0, [[0.0], [0.1]]),
        (3, 2.0, [[0.1], [0.2]]), (4, 3.0, [[0.2], [0.30000000000000004]])]


def test_late_plan_takes_the_next_action_of_the_last(mpc, fly):
    pilot = fly(deadline_s=0.3)
    assert command(pilot.tick(FRESH)) == 0.1
    mpc.free.clear()
    late = [pilot.tick(FRESH) for _ in range(2)]
    # Plan 1 goes on: 0.1 + 0.01, 0.1 + 0.02. One plan runs at a time.
    assert [command(t) for t in late] == [0.11, 0.12]
    assert [(t.missed, t.decision.tick) for t in late] == [(True, 1)] * 2
    assert [call[0] for call in mpc.calls] == [1, 2]
    # Then the last command is held for three ticks, then the safe value is sent.
    held = [pilot.tick(FRESH) for _ in range(3)]
    assert [command(t) for t in held] == [0.12] * 3
    spent = pilot.tick(FRESH)
    assert (spent.verdict.safe, spent.missed, spent.decision) == (True, True, None)
    assert command(spent) == 0.0
    assert spent.verdict.reason == 'the last plan is 6 ticks old'
    assert [t.rung for t in (*late, *held, spent)] == ['shifted'] * 2 + ['held'] * 3 + ['safe']


def test_plan_that_was_late_is_acted_upon_when_it_is_there(mpc, fly, eventually):
    pilot = fly(deadline_s=0.3)
    pilot.tick(FRESH)
    mpc.free.clear()
    assert command(pilot.tick(FRESH)) == 0.11
    mpc.free.set()
    assert eventually(lambda: pilot._plans.is_done)
    mpc.free.clear()
    tick = pilot.tick(FRESH)
    # Plan 2 is there, plan 3 was started and is late: plan 2's action for the tick after its own.
    assert command(tick) == 0.21
    assert (tick.missed, tick.decision.tick) == (True, 2)
    assert [call[0] for call in mpc.calls] == [1, 2, 3]
    # The meter of plan times must see the late ones, or it would flatter the slow machine.
    assert [plan.tick for plan in tick.finished] == [2]
    mpc.free.set()
    assert eventually(lambda: pilot._plans.is_done)
    assert [plan.tick for plan in pilot.tick(FRESH).finished] == [3, 4]


def test_no_plan_yet_is_the_safe_value(mpc, fly):
    pilot = fly(deadline_s=0.05)
    mpc.free.clear()
    tick = pilot.tick(FRESH)
    assert (command(tick), tick.verdict.safe, tick.missed) == (0.0, True, True)
    assert tick.verdict.reason == 'no plan yet'


def test_planning_error_is_the_safe_value_with_its_reason(mpc, fly):
    pilot = fly()
    pilot.tick(FRESH)
    mpc.error = PlanningError('only 3 candidates')
    tick = pilot.tick(FRESH)
    assert (command(tick), tick.verdict.safe) == (0.0, True)
    assert tick.verdict.reason == 'only 3 candidates'
    mpc.error = None
    assert command(pilot.tick(FRESH)) == 0.3


def test_after_a_planning_error_the_older_plan_is_not_taken_up_again(mpc, fly):
    pilot = fly(deadline_s=0.3)
    pilot.tick(FRESH)
    mpc.error = PlanningError('only 3 candidates')
    pilot.tick(FRESH)
    mpc.error = None
    mpc.free.clear()
    late = pilot.tick(FRESH)
    assert (command(late), late.verdict.safe, late.missed) == (0.0, True, True)


def test_a_tick_that_waited_for_an_older_plan_missed_its_own(mpc, fly):
    pilot = fly(deadline_s=0.3)
    mpc.free.clear()
    assert pilot.tick(FRESH).missed
    # Plan 1 comes in while tick 2 waits for it: no plan was made from what tick 2 observed.
    Timer(0.05, mpc.free.set).start()
    tick = pilot.tick(FRESH)
    assert (tick.decision.tick, command(tick), tick.missed) == (1, 0.11, True)
    assert [call[0] for call in mpc.calls] == [1]


def test_failure_of_a_late_plan_does_not_stop_a_newer_one(mpc, fly, eventually):
    pilot = fly(deadline_s=0.3)
    pilot.tick(FRESH)
    mpc.free.clear()
    mpc.error = PlanningError('only 3 candidates')
    assert command(pilot.tick(FRESH)) == 0.11
    assert eventually(lambda: len(mpc.calls) == 2)
    mpc.error = None
    mpc.free.set()
    assert eventually(lambda: pilot._plans.is_done)
    tick = pilot.tick(FRESH)
    assert (tick.verdict.reason, command(tick), tick.missed) == ('', 0.3, False)


def test_nothing_is_planned_from_what_is_wrong_or_known(mpc, fly):
    pilot = fly()
    assert pilot.tick(Observation(None, 'no message on joint_states yet')).verdict.safe
    tick = pilot.tick(Observation(REST, 'joint_states is stale'))
    assert (tick.verdict.safe, tick.verdict.reason) == (True, 'joint_states is stale')
    assert mpc.calls == []
    assert not tick.missed
    pilot.tick(FRESH)  # tick 3
    tick = pilot.tick(Observation(REST, fresh=False))
    assert len(mpc.calls) == 1
    assert command(tick) == 0.31


def test_spread_of_the_plan_acted_upon_is_judged(mpc, fly):
    tick = fly(max_spread=0.4).tick(FRESH)  # every fake plan has 0.5
    assert tick.verdict.safe
    assert 'not trusted' in tick.verdict.reason


def test_commands_that_were_let_out_are_the_ones_in_flight(mpc, fly):
    pilot = fly(robot=cart(rate_limit=0.5))  # 0.05 a period: plans are slowed
    for _ in range(3):
        pilot.tick(FRESH)
    np.testing.assert_allclose(mpc.calls[1][2], [[0.05]])
    np.testing.assert_allclose(mpc.calls[2][2], [[0.1]])


def test_forget_leaves_nothing_of_an_earlier_activation(mpc, fly):
    pilot = fly(deadline_s=0.3)
    pilot.tick(FRESH)
    pilot.tick(FRESH)
    pilot.forget()
    assert mpc.calls[-1] == 'forgotten'
    mpc.free.clear()
    tick = pilot.tick(FRESH)
    # Not the rest of plan 2, and the safe value is in flight again.
    assert (tick.verdict.safe, tick.verdict.reason) == (True, 'no plan yet')
    assert mpc.calls[-1][2] == [[0.0]]


class Ramp:
    """An exploration signal: 0.1, 0.2, ..."""

    count = 0

    def next(self):
        self.count += 1
        return np.array([0.1 * self.count])


def test_collect_pilot_sends_the_signal_through_the_gate():
    pilot = CollectPilot(Ramp(), make_gate(termination=INSIDE))
    tick = pilot.tick(FRESH)
    assert (command(tick), tick.index, tick.decision, tick.missed) == (0.1, 1, None, False)
    tick = pilot.tick(Observation(np.array([1.5, 0.0])))
    assert tick.verdict.safe
    assert 'position = 1.5' in tick.verdict.reason
    assert pilot.tick(Observation(None, 'no message yet')).verdict.safe


def make_mpc(seed=0, horizon=4, **model):
    robot, task = cart(), cart_task(horizon=horizon)
    artifact = artifact_of(cart_model(**model), robot, 2)
    planner = Planner(Config(population=60, num_elites=6, iterations=3),
                      ActionSpace(horizon, robot.action_min, robot.action_max))
    return Mpc(dynamics_of(artifact), Rollout(artifact, robot, task, rolls(2)), planner, robot,
               np.random.default_rng(seed))


def forward(state, force):
    return np.array([state[0] + 0.1 * state[1], state[1] + 0.1 * force])


def test_plans_start_where_the_commands_in_flight_lead():
    pilot = PlanPilot(make_mpc(), make_gate(), cart(), 2, None)
    state, sent = np.array([0.5, -0.2]), [0.0, 0.0]
    for _ in range(4):
        tick = pilot.tick(Observation(state))
        # Two periods pass before this plan acts, under the two commands sent before it.
        expected = forward(forward(state, sent[-2]), sent[-1])
        np.testing.assert_allclose(tick.decision.start, expected, rtol=1e-5)
        assert abs(tick.verdict.command[0]) > 1e-3
        sent.append(tick.verdict.command[0])
        state = forward(state, sent[-3])
    pilot.close()


def test_carrying_forward_uses_the_mean_of_the_members():
    decision = make_mpc(disagreement=1.0).plan(1, np.array([0.0, 0.0]), [np.array([1.0])])
    # Velocities 0.1 and 1.1: mean 0.6. The members' velocities are 1 apart, std 0.5, step 1,
    # position agrees: sqrt(0.5^2 / 2).
    np.testing.assert_allclose(decision.start, [0.0, 0.6], rtol=1e-6)
    assert decision.spread == pytest.approx(0.5 / np.sqrt(2))


def test_without_delay_the_plan_starts_at_the_observation():
    decision = make_mpc().plan(1, np.array([0.5, 0.25]), ())
    np.testing.assert_array_equal(decision.start, [0.5, 0.25])
    # Towards the goal at 1: the force is positive.
    assert decision.actions[0, 0] > 0.1


def test_warm_start_is_shifted_by_the_ticks_that_passed():
    shifts = []

    class Watched(Planner):
        def shift(self, state, steps):
            shifts.append(steps)
            return super().shift(state, steps)
    robot, task = cart(), cart_task()
    artifact = artifact_of(cart_model(), robot, 2)
    planner = Watched(Config(population=10, num_elites=2, iterations=1),
                      ActionSpace(4, robot.action_min, robot.action_max))
    mpc = Mpc(dynamics_of(artifact), Rollout(artifact, robot, task, rolls(2)), planner, robot,
              np.random.default_rng(0))
    for tick in (1, 2, 5, 30):
        mpc.plan(tick, REST, ())
    assert shifts == [1, 3, 4]  # at most the horizon


def test_warm_up_leaves_no_trace():
    cold, warm = make_mpc(std=0.1), make_mpc(std=0.1)
    warm.calibrate()
    assert len(warm.warm_up(most_plans=7)) == 7
    assert len(warm.warm_up(most_s=0.0)) == 3  # five plans, the first two not counted
    other = make_mpc(seed=1, std=0.1)
    for tick in (1, 2):
        plans = [mpc.plan(tick, np.array([0.3, 0.0]), ()).actions for mpc in (cold, warm, other)]
        np.testing.assert_array_equal(plans[0], plans[1])
        assert (plans[0] != plans[2]).any()


def test_the_plan_does_not_wait_for_its_prediction():
    mpc = make_mpc(std=0.1)
    decision = mpc.plan(1, np.array([0.3, 0.0]), ())
    calls = []
    predict = decision.rollout.predict
    decision.rollout.predict = lambda *given: calls.append(given) or predict(*given)
    assert mpc.plan(2, np.array([0.3, 0.0]), ()).plan_s > 0.0
    assert calls == []
    expected = predict(decision.start, decision.actions, decision.draw)
    assert decision.prediction.cost == decision.prediction.cost == expected.cost
    assert len(calls) == 1


def test_forgetting_starts_cold():
    one, other = make_mpc(), make_mpc()
    one.plan(1, np.array([-3.0, 0.0]), ())
    bits = one._generator.bit_generator.state
    one.forget()
    other._generator.bit_generator.state = bits
    np.testing.assert_array_equal(one.plan(2, REST, ()).actions, other.plan(1, REST, ()).actions)


def test_divergence_is_counted_and_refused():
    mpc = make_mpc()
    with pytest.raises(PlanningError, match='none of 60'):
        mpc.plan(1, np.array([np.nan, 0.0]), ())
    assert mpc.plan(2, REST, ()).rejected == 0
