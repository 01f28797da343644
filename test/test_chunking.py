"""Action chunks: several actions of a plan are acted upon while the next one is made."""

from collections import Counter
from threading import Condition
from types import SimpleNamespace

from fakes import cart, cart_task, rolls, save_cart_model
import numpy as np
import pytest

from mbrl_ros.bench.returns import drive, find_task, pilot_config
from mbrl_ros.control.build import build_engine, build_pilot, PilotConfig
from mbrl_ros.control.gate import SafetyGate
from mbrl_ros.control.ladder import LadderConfig
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.mpc import Decision, Inputs
from mbrl_ros.control.record import DecisionRecorder, decode
from mbrl_ros.control.replay import compare, Replayer
from mbrl_ros.control.tick import Observation, PlanPilot
from mbrl_ros.control.trust import Restraint
from mbrl_ros.core.errors import PlanningError, SpecError
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import Bounds
from mbrl_ros.planning.cem import Config
from mbrl_ros.sim.mujoco_robot import MujocoRobot

CHUNK, ACTIONS = 5, 8
FRESH = Observation(np.zeros(2))
DT_NS = 100_000_000


class ClockedMpc:
    """Plan n is n / 10, n / 10 + 0.01, ...; it takes `periods` of a clock that the test sets."""

    rollout, spread = None, 0.0

    def __init__(self, periods):
        self.periods, self.now, self.calls, self.error = periods, 0, [], None
        self.turned = Condition()

    def turn(self, now):
        with self.turned:
            self.now = now
            self.turned.notify_all()

    def is_ready(self, tick):
        return self.now >= tick - CHUNK + self.periods

    def plan(self, tick, observation, in_flight, horizon):
        self.calls.append((tick, [round(float(c[0]), 6) for c in in_flight]))
        with self.turned:
            self.turned.wait_for(lambda: self.is_ready(tick))
        if self.error:
            raise self.error
        inputs = Inputs(tick, observation, np.empty((0, 1)), None, {}, np.empty(0), np.empty(0),
                        ACTIONS)
        actions = 0.1 * tick + 0.01 * np.arange(ACTIONS)[:, None]
        return Decision(inputs, actions, observation, self.spread, 1, 0, 0.0, self.rollout, None)

    def adopt(self, other):
        self.now = other.now

    def forget(self):
        self.calls.append('forgotten')


@pytest.fixture
def fly(eventually):
    """Return a function that drives with plans of so many periods, and returns mpc and ticks."""
    made = []

    def run(periods, num_ticks, **settings):
        mpc = ClockedMpc(periods)
        pilot = PlanPilot(mpc, SafetyGate(cart(), 5.0, {}), cart(), 1, 0.02,
                          LadderConfig(hold_steps=0), chunk_steps=CHUNK, **settings)
        made.append((mpc, pilot))
        return mpc, [step(mpc, pilot, number) for number in range(1, num_ticks + 1)]

    def step(mpc, pilot, number):
        mpc.turn(number)
        if pilot._plans.is_running and mpc.is_ready(pilot._plans.due):
            assert eventually(lambda: pilot._plans.is_done)
        return pilot.tick(FRESH)
    run.step, run.made = step, made
    yield run
    for mpc, _ in made:
        mpc.turn(10**6)
    for _, pilot in made:
        pilot.close()


def command(tick):
    return round(float(tick.verdict.command[0]), 6)


def test_a_plan_of_three_periods_misses_nothing(fly):
    mpc, ticks = fly(3, 16)
    # The first plan, begun at tick 1, is for tick 6; until then there is none, and none was due.
    assert [t.verdict.reason for t in ticks[:5]] == ['no plan yet'] * 5
    # Then five actions of each: 0.6 to 0.64, 1.1 to 1.14, 1.6.
    assert [command(t) for t in ticks[5:]] == pytest.approx(
        [0.6 + 0.01 * i for i in range(5)] + [1.1 + 0.01 * i for i in range(5)] + [1.6])
    assert [t.rung for t in ticks] == ['safe'] * 5 + ['plan'] * 11
    assert not any(t.missed for t in ticks)
    # Carried through: what is in flight (one command, the delay), and the five about to be sent.
    assert mpc.calls[:3] == [(6, [0.0] * 6), (11, [0.0, 0.6, 0.61, 0.62, 0.63, 0.64]),
                             (16, [0.64, 1.1, 1.11, 1.12, 1.13, 1.14])]
    # What follows a command is the rest of its plan.
    assert ticks[6].following[:, 0] == pytest.approx([0.62, 0.63, 0.64, 0.65, 0.66, 0.67])


def test_a_plan_that_is_late_is_missed_until_it_comes(fly):
    # Plans take seven periods of five. Plan 6 comes at tick 8: its third action. The next one is
    # begun then, for 13, and comes at 15. Eight actions of plan 6 reach to tick 13.
    mpc, ticks = fly(7, 16)
    assert [t.index for t in ticks if t.missed] == [6, 7, 13, 14]
    assert [t.rung for t in ticks[5:]] == [
        'safe', 'safe', 'plan', 'plan', 'plan', 'shifted', 'shifted', 'shifted', 'safe', 'plan',
        'plan']
    assert [command(t) for t in ticks[5:]] == pytest.approx(
        [0.0, 0.0, 0.62, 0.63, 0.64, 0.65, 0.66, 0.67, 0.0, 1.32, 1.33])
    # Begun at tick 8 with what the ladder would send: 0.62 to 0.66.
    assert mpc.calls[1] == (13, [0.0, 0.62, 0.63, 0.64, 0.65, 0.66])
    assert [[plan.tick for plan in t.finished] for t in ticks if t.finished] == [[6], [13]]


def test_what_the_gate_would_slow_is_foreseen_slowed(fly, eventually):
    mpc = ClockedMpc(0)
    robot = cart(rate_limit=1.0)  # 0.1 a period
    pilot = PlanPilot(mpc, SafetyGate(robot, 5.0, {}), robot, 0, None, chunk_steps=CHUNK)
    fly.made.append((mpc, pilot))
    mpc.turn(100)
    for _ in range(6):
        pilot.tick(FRESH)
    # In lock-step tick 1 has a plan of its own: 0.1, 0.11, ... At tick 6 plan 6 (0.6 and on)
    # starts from 0.14 and is slowed to 0.1 a period until it is reached.
    assert eventually(lambda: len(mpc.calls) == 3)
    assert mpc.calls == [(1, []), (6, [0.1, 0.11, 0.12, 0.13, 0.14]),
                         (11, [0.24, 0.34, 0.44, 0.54, 0.64])]


def supervised_by(level='full', scale=1.0, review=None):
    return SimpleNamespace(restraint=Restraint(level, scale), horizon=None, review=review,
                           doubt=lambda: '' if level == 'full' else 'odd')


@pytest.mark.parametrize(('intervene', 'expected'), [
    # At tick 6 plan 6 is there, 0.6 and on; the last command was plan 1's fifth, 0.14.
    (lambda pilot: None, [0.6, 0.61, 0.62, 0.63, 0.64]),
    (lambda pilot: setattr(pilot._mpc, 'spread', 5.1), [0.0] * CHUNK),
    (lambda pilot: setattr(pilot, 'supervisor', supervised_by('stop', 0.0)), [0.0] * CHUNK),
    (lambda pilot: setattr(pilot, 'supervisor', supervised_by('hold')), [0.14] * CHUNK),
    (lambda pilot: setattr(pilot, 'supervisor', supervised_by('slow', 0.5)),
     [0.3, 0.305, 0.31, 0.315, 0.32]),
    (lambda pilot: pilot._gate._latch.trip('stop'), [0.0] * CHUNK),
    (lambda pilot: pilot._gate._termination.append((0, 'position', Bounds(min=1.0, max=2.0))),
     [0.0] * CHUNK)])
def test_the_next_plan_starts_from_what_is_sent(fly, eventually, intervene, expected):
    mpc = ClockedMpc(1)
    pilot = PlanPilot(mpc, SafetyGate(cart(), 5.0, {}), cart(), 0, None, chunk_steps=CHUNK)
    fly.made.append((mpc, pilot))
    mpc.turn(1)
    for _ in range(5):
        pilot.tick(FRESH)
    intervene(pilot)
    mpc.turn(100)  # plan 6 is held back till now
    sent = [command(pilot.tick(FRESH)) for _ in range(CHUNK)]
    assert sent == pytest.approx(expected)
    assert eventually(lambda: len(mpc.calls) == 3)
    assert mpc.calls[2] == (11, sent)


def test_the_safe_value_is_foreseen_at_once_and_a_refused_action_as_it(fly, eventually):
    mpc = ClockedMpc(0)
    robot = cart(rate_limit=1.0)  # 0.1 a period, but not to the safe value
    pilot = PlanPilot(mpc, SafetyGate(robot, 5.0, {}), robot, 0, None,
                      LadderConfig(hold_steps=0), chunk_steps=CHUNK)
    fly.made.append((mpc, pilot))
    mpc.turn(100)
    for _ in range(20):
        pilot.tick(FRESH)
    # Plan 21 starts at 2.1, beyond the limit of 2: nothing of it passes. Plan 16 ends at 1.64.
    sent = [command(pilot.tick(FRESH)) for _ in range(CHUNK)]
    assert sent == [0.0] * CHUNK
    assert eventually(lambda: len(mpc.calls) == 6)
    assert mpc.calls[-1] == (26, sent)


@pytest.mark.parametrize('periods', [3, 5, 7])
def test_another_model_waits_for_one_plan_at_most(fly, periods):
    mpc, _ = fly(periods, 1)
    pilot = fly.made[0][1]
    new = ClockedMpc(periods)
    new.rollout = 'new'
    fly.made.append((new, pilot))
    taken, ticks = [], []
    for number in range(2, 22):
        taken.append(pilot.replace_model(new, 4.0, None, None))
        new.turn(number)
        ticks.append(fly.step(mpc, pilot, number))
    # Plan 6, begun at tick 1, is done at tick 1 + periods: no plan of the old model comes after.
    assert taken.index(True) <= periods
    assert all(taken[taken.index(True):])
    finished = [(plan.tick, plan.rollout) for tick in ticks for plan in tick.finished]
    assert finished[:2] == [(6, None), (max(6, 1 + periods) + CHUNK, 'new')]
    assert [tick for tick, _ in mpc.calls] == [6]
    assert pilot._gate.max_spread == 4.0
    # It begins when the one before is there, as without a change of models.
    assert [t.missed for t in ticks[4:9]] == [i < periods - 5 for i in range(5)]


def test_a_model_that_waits_is_forgotten(fly):
    mpc, _ = fly(7, 2)
    pilot = fly.made[0][1]
    assert not pilot.replace_model(ClockedMpc(7), 4.0, None, None)
    mpc.turn(100)
    pilot.forget()
    pilot.tick(FRESH)
    assert (pilot._mpc, pilot._gate.max_spread) == (mpc, 5.0)


@pytest.mark.parametrize(('periods', 'expected'), [(3, [(6, 6), (11, 11), (16, 16)]),
                                                   (7, [(8, 6), (15, 13)])])
def test_each_plan_is_reviewed_once_when_it_comes(fly, periods, expected):
    heard = []

    def review(index, state, stamp_ns, sent, decision):
        if decision is not None:
            heard.append((index, decision.tick))
    mpc, _ = fly(periods, 0, supervisor=supervised_by(review=review))
    pilot = fly.made[0][1]
    for number in range(1, 17):
        pilot.review(FRESH, fly.step(mpc, pilot, number))
    assert heard == expected


def test_after_a_failed_plan_nothing_of_the_older_one_is_done(fly):
    mpc, _ = fly(3, 6)
    mpc.error = PlanningError('only 3 candidates')
    pilot = fly.made[0][1]
    ticks = [fly.step(mpc, pilot, number) for number in range(7, 12)]
    assert [t.rung for t in ticks] == ['plan'] * 4 + ['safe']
    assert (ticks[-1].verdict.reason, ticks[-1].missed) == ('only 3 candidates', False)
    mpc.error = None
    ticks = [fly.step(mpc, pilot, number) for number in range(12, 17)]
    assert [command(t) for t in ticks] == [0.0] * 4 + [1.6]
    assert mpc.calls[2] == (16, [0.64] + [0.0] * 5)


def test_forgetting_waits_and_begins_anew(fly, eventually):
    mpc, _ = fly(3, 7)
    pilot = fly.made[0][1]
    mpc.turn(100)
    pilot.forget()
    assert mpc.calls[-1] == 'forgotten'
    assert pilot.tick(FRESH).verdict.reason == 'no plan yet'
    assert eventually(lambda: mpc.calls[-1] == (13, [0.0] * 6))


def config_of(model, **settings):
    return PilotConfig(**{
        'model': model, 'signal': '', 'planner': 'cem',
        'source_config': Config(population=24, num_elites=4, iterations=2), 'rollout': rolls(2),
        'provider': 'cpu', 'precision': '', 'delay_steps': 1, 'deadline_s': None,
        'max_spread': 1e6, 'seed': 3} | settings)


def fly_cart(built, num_ticks, recorder=None):
    """Drive the cart, one period late, a third heavier than its model has it."""
    state, acting, texts, ticks = np.zeros(2), np.zeros(1), [], []
    for number in range(1, num_ticks + 1):
        observation = Observation(state, stamp_ns=number * DT_NS)
        ticks.append(built.pilot.tick(observation))
        built.pilot.review(observation, ticks[-1])
        if recorder is not None:
            texts += recorder.encode(ticks[-1], number * DT_NS)
        state = np.array([state[0] + 0.1 * state[1], 0.9 * state[1] + 0.075 * acting[0]])
        acting = ticks[-1].verdict.command
    return ticks, [decode(text) for text in texts]


def test_records_are_made_again_bit_for_bit_with_their_horizon(tmp_path):
    save_cart_model(tmp_path, std=1e-3)
    # Errors below 1e6 are usual to this model, so a limit of 1e-5 makes those of the mass count.
    rollout = rolls(2, adaptive_horizon=True, horizon_disagreement=1e-5, min_horizon=1)
    config = config_of(tmp_path / 'dynamics.onnx', chunk_steps=3, rollout=rollout)
    robot, task = cart(), cart_task(horizon=6)
    built = build_pilot(robot, task, config, Latch())
    _, records = fly_cart(built, 12, DecisionRecorder(robot, task, config))
    built.close()
    # Tick 1 plans for itself, then each plan answers the observation of three ticks before.
    assert [(r.inputs.tick, r.stamp_ns // DT_NS, len(r.inputs.in_flight)) for r in records] == [
        (1, 1, 1), (4, 1, 4), (7, 4, 4), (10, 7, 4)]
    horizons = [record.inputs.horizon for record in records]
    assert horizons[:2] == [6, 6]  # nothing was known
    assert min(horizons) == 3  # what a chunk acts upon is always weighed
    with Replayer() as replayer:
        assert all(compare(record, replayer.decide(record)).is_exact for record in records)


def test_a_plan_of_the_old_model_is_acted_upon_and_not_judged_by_the_new(tmp_path, eventually):
    config = config_of(tmp_path / 'old/dynamics.onnx', chunk_steps=3)
    save_cart_model(tmp_path / 'old')
    save_cart_model(tmp_path / 'new', drag=0.8)
    robot, task = cart(), cart_task(horizon=6)
    built = build_pilot(robot, task, config, Latch())
    new = build_engine(robot, task, config.with_model(tmp_path / 'new/dynamics.onnx'))
    fly_cart(built, 2)
    pilot = built.pilot
    assert eventually(lambda: pilot._plans.is_done)  # and due at tick 4
    assert pilot.replace_model(new.mpc, new.spread_limit, new.gauge, None)
    judged = []
    new.gauge.planned = lambda states, lengths: judged.append(states.shape)
    ticks, _ = fly_cart(built, 5)
    assert [t.rung for t in ticks] == ['plan'] * 5
    models = [t.decision.rollout.model_hash for t in ticks]
    assert models[:4] == [built.engine.rollout.model_hash] * 4
    assert models[4] == new.rollout.model_hash  # ticks 3 to 7: plans for 1, 4 and 7
    assert len(judged) == 1
    built.close()
    new.close()


def test_a_chunk_is_no_longer_than_a_plan(tmp_path):
    save_cart_model(tmp_path)
    with pytest.raises(SpecError, match=r'chunk_steps is 7.*allowed are 1 to 6'):
        build_pilot(cart(), cart_task(horizon=6),
                    config_of(tmp_path / 'dynamics.onnx', chunk_steps=7), Latch())


def test_chunks_of_five_return_nine_tenths():
    robot = load_robot('cartpole')
    task = find_task(robot)
    found = {}
    for chunk_steps in (1, 5, 5):
        config = pilot_config(find_model('cartpole'), task, seed=0, chunk_steps=chunk_steps)
        built = build_pilot(robot, task, config, Latch())
        counts = Counter()

        def count(tick, body, counts=counts):
            counts['plans'] += len(tick.finished)
            counts[tick.rung] += 1
        total = drive(built, MujocoRobot(robot), task, seed=0, watch=count)
        built.close()
        assert counts == {'plans': task.episode_steps // chunk_steps, 'plan': task.episode_steps}
        # A run is a function of its seed, though plans are made beside the ticks.
        assert found.setdefault(chunk_steps, total) == total
    assert found[5] >= 0.9 * found[1]
