"""The trust gauge: uniform where all is as usual, high where it is not, and what it then does."""

from fakes import linear_model
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from pydantic import ValidationError
import pytest
from scipy.stats import kstest

from mbrl_ros.control.mpc import Mpc
from mbrl_ros.control.trust import Restraint, Trust, TrustConfig, TrustGauge, TrustLimiter
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.learning.calibration import calibrate, errors, spreads
from mbrl_ros.planning import ActionSpace, config_class, load_planning, make_planner
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.surprise import Calibration, error, plan_spread, Scale
from mbrl_ros.sim.mujoco_robot import MujocoRobot

NOISE_STD = np.array([0.01, 0.02])
DEFAULT = TrustConfig.model_validate({})
MEMBERS = 3


def dynamics():
    """Three members whose gains differ a little around the system of `episode_of`."""
    apart = np.array([-0.02, 0.0, 0.02])[:, None, None]
    state = np.array([[0.9, 0.1], [0.0, 0.9]]) + apart * np.array([[0.0, 1.0], [0.0, 0.0]])
    action = np.array([[0.0], [0.3]]) + apart * np.array([[0.0], [1.0]])
    model = linear_model(state, action, np.zeros((MEMBERS, 2)), [NOISE_STD] * MEMBERS)
    return Dynamics(model, {'members': MEMBERS, 'step_std': [0.05, 0.2]})


def episode_of(steps, rng, gain=0.3):
    states, actions = np.zeros((steps + 1, 2)), rng.uniform(-1.0, 1.0, (steps, 1))
    for t in range(steps):
        position, velocity = states[t]
        states[t + 1] = [0.9 * position + 0.1 * velocity, 0.9 * velocity + gain * actions[t, 0]]
        states[t + 1] += NOISE_STD * rng.standard_normal(2)
    return states, actions


@pytest.fixture(scope='module')
def model():
    return dynamics()


@pytest.fixture(scope='module')
def calibration(model):
    rng = np.random.default_rng(0)
    return calibrate(model, [episode_of(100, rng) for _ in range(100)], 'a test', seed=1)


def live(gauge, model, states, actions, rng):
    """Feed an episode to a gauge as a controller does; return the reading of every tick."""
    gauge.forget()
    acted, readings = np.zeros(1), []
    for t, state in enumerate(states[:-1]):
        gauge.observe(state, acted, is_consecutive=t > 0)
        readings.append(gauge.read())
        acted = actions[t]
        ahead = actions[t:t + 12]
        current = np.broadcast_to(state, (MEMBERS, 1, 2))
        path = []
        for action in ahead:  # a plan of up to 12 steps, one particle a member
            mean, std = model(current, action[None])
            current = mean + std * rng.standard_normal(mean.shape)
            path.append(current[:, 0])
        gauge.planned(np.array(path))
    return readings


def test_error_by_hand():
    # Members at 1 and 3: middle 2, variance 1 between them; 3 more are expected around: std 2.
    mean = np.array([[[1.0, 0.0]], [[3.0, 0.0]]])
    found = error(mean, np.array([[3.0, 1.0]]), np.array([[6.0, 0.0]]), np.ones(2))
    # (6 - 2) / 2 = 2 and 0: root mean square over two fields sqrt(2). A thousandth is the floor.
    np.testing.assert_allclose(found, np.sqrt(2.0), rtol=1e-6)


def test_spread_by_hand():
    # Two members 2 apart after one step and 4 after the next, in the first field: variances 2
    # and 8, in typical steps of 2 that is 0.5 and 2. Over two steps and two fields: 2.5 / 4.
    particles = np.zeros((2, 2, 1, 2))
    particles[:, 1, 0, 0] = [2.0, 4.0]
    np.testing.assert_allclose(plan_spread(particles, np.array([2.0, 1.0])), np.sqrt(0.625))


def test_open_loop_errors_and_spreads_by_hand():
    def changes(gains, offsets, std):
        """Members predict that both fields change by gain x force + offset."""
        found = linear_model([np.eye(2)] * 2, [np.array(gains)[:, None]] * 2,
                             np.repeat(offsets, 2).reshape(2, 2), [[std, std]] * 2)
        return Dynamics(found, {'members': 2, 'step_std': [0.5, 0.5]})
    states, actions = np.outer(np.arange(11.0), [1.0, 1.0]), np.ones((10, 1))
    # Off by 0.2 a step in one field of two; each step adds a variance of 0.01.
    for steps in (1, 4):
        expected = np.full(11 - steps, 0.2 * steps / np.sqrt(0.01 * steps) / np.sqrt(2.0))
        np.testing.assert_allclose(errors(changes([0.8, 1.0], [0.0, 0.0], 0.1), states, actions,
                                          steps), expected, rtol=1e-3)
    assert errors(changes([1.0, 1.0], [0.0, 0.0], 0.1), states, actions, 11).shape == (0,)
    # Members that part by 0.4 a step, without noise: after k steps the std of two is 0.4 k /
    # sqrt(2), in typical steps of 0.5; the root mean square over k = 1, 2 is that x sqrt(2.5).
    found = spreads(changes([1.0, 1.0], [0.0, 0.4], 1e-6), states, actions, 2,
                    np.random.default_rng(0))
    np.testing.assert_allclose(found, np.full(9, 0.8 / np.sqrt(2.0) * np.sqrt(2.5)), rtol=1e-4)


def test_what_runs_live_is_what_was_calibrated(model, calibration):
    states, actions = episode_of(40, np.random.default_rng(3))
    readings = live(TrustGauge(model, calibration), model, states, actions,
                    np.random.default_rng(4))
    assert calibration.steps == 10
    assert readings[0].signals == {}
    assert readings[0].figure == 0.0
    assert set(readings[9].signals) == {'one_step', 'plan_spread'}
    np.testing.assert_allclose([r.signals['one_step'] for r in readings[1:]],
                               errors(model, states, actions, 1)[:-1], rtol=1e-3)
    np.testing.assert_allclose([r.signals['k_step'] for r in readings[10:]],
                               errors(model, states, actions, 10)[:-1], rtol=1e-3)
    # The plan's spread is random numbers: the same on average only. 29 windows of 20 numbers
    # with about 2 degrees of freedom each; windows overlap: 20 % is three std.
    offline = spreads(model, states, actions, 10, np.random.default_rng(5))
    assert np.mean([r.signals['plan_spread'] for r in readings[1:30]]) == pytest.approx(
        offline.mean(), rel=0.2)


def test_the_figure_is_uniform_on_fresh_data_of_the_same_kind(model, calibration):
    gauge, rng = TrustGauge(model, calibration), np.random.default_rng(7)
    figures = np.concatenate([
        [reading.figure for reading in live(gauge, model, *episode_of(100, rng), rng)[10:88]]
        for _ in range(60)])
    # 4680 moments here and 8200 in the calibration. Ten in a row share a window, so at least a
    # tenth of them are independent. Dvoretzky-Kiefer-Wolfowitz at 1e-3: sqrt(ln(2e3) / 2n), and
    # both sides add up: 0.090 + 0.068.
    assert kstest(figures, 'uniform').statistic < 0.16
    for threshold in (0.5, 0.9, 0.99):
        # A share p known from 468 and 820 draws: std sqrt(p (1 - p) (1 / 468 + 1 / 820)).
        p = 1.0 - threshold
        known = np.sqrt(p * (1.0 - p) * (1 / 468 + 1 / 820))
        assert np.mean(figures > threshold) == pytest.approx(p, abs=4.0 * known)


@pytest.mark.parametrize('index', [0.2, 1.0])
def test_beyond_the_held_out_moments_a_power_law_is_gone_on_with(index):
    rng = np.random.default_rng(0)
    scale = Scale.fit(rng.random(2000) ** -index)
    fresh = rng.random(1_000_000) ** -index
    assert scale.tail == pytest.approx(25 / 2000)
    alarms = np.mean([scale.share_below(value) > 0.999 for value in fresh[fresh > np.quantile(
        fresh, 0.98)]]) * 0.02
    # The last anchor is beyond 1.25 % +- 20 % of the moments (25 of them), and Hill's index from
    # 25 moments is known to 20 %. From 1.25 % to 0.1 % is a factor 12.5: three std of both give
    # 0.6 ... 1.6 times 0.0125 / 12.5^(0.4 ... 1.6).
    assert 0.6 * 0.0125 * 12.5**-1.6 < alarms < 1.6 * 0.0125 * 12.5**-0.4


def test_a_lighter_tail_gives_fewer_alarms_than_stated():
    rng = np.random.default_rng(1)
    scale = Scale.fit(np.abs(rng.standard_normal(2000)))
    fresh = np.abs(rng.standard_normal(1_000_000))
    alarms = sum(scale.share_below(value) > 0.9999 for value in fresh[fresh > 3.0])
    # 100 of a million are stated. The bound at which they begin is known as above.
    assert alarms < 100


def test_shares_and_quantiles_are_each_others_inverse():
    scale = Scale.fit(np.random.default_rng(2).exponential(size=500))
    shares = [0.0, 0.1, 0.33, 0.5, 0.94, 0.96, 0.999, 0.99999]
    found = [scale.share_below(scale.quantile(share)) for share in shares]
    np.testing.assert_allclose(found, shares, atol=1e-9)


def test_a_model_that_is_exact_everywhere_finds_rounding_usual():
    scale = Scale.fit(np.full(100, 1e-7))
    assert scale.share_below(3e-6) == 0.0
    assert scale.share_below(1.0) > 0.99
    assert scale.share_below(float('nan')) == scale.share_below(float('inf')) == 1.0


def test_a_calibration_survives_its_way_through_the_metadata(calibration):
    assert Calibration.from_dict(calibration.to_dict()) == calibration


def test_short_episodes_calibrate_with_shorter_windows(model):
    episodes = [episode_of(steps, np.random.default_rng(steps)) for steps in (1, 2, 5)]
    found = calibrate(model, episodes, 'a test', seed=0)
    assert (found.steps, found.moments) == (3, 8)
    single = calibrate(model, episodes[:1], 'a test', seed=0)
    assert (single.steps, single.moments) == (1, 1)


@pytest.mark.parametrize('gain', [0.6, 0.1])
def test_a_robot_that_answers_otherwise_is_noticed(model, calibration, gain):
    rng = np.random.default_rng(8)
    readings = live(TrustGauge(model, calibration), model, *episode_of(60, rng, gain), rng)
    limiter = TrustLimiter(TrustConfig(stop_above=0.999, hold_above=0.999))
    levels = [limiter.update(reading.figure).level for reading in readings]
    # Gain off by 0.2 or 0.3: at a typical |action| of 0.5 the velocity is off by 5 std of its
    # noise in one step. Ten steps of it are in the k-step error at tick 10, five ticks confirm.
    assert 'slow' in levels[:16] or 'stop' in levels[:16]


def test_only_one_particle_a_member_counts(model, calibration):
    one_each = np.random.default_rng(0).standard_normal((15, MEMBERS, 2))
    found = []
    for share in (1, 4):
        gauge = TrustGauge(model, calibration)
        others = np.random.default_rng(share).standard_normal((15, MEMBERS * share, 2))
        others[:, ::share] = one_each
        gauge.planned(others)
        found.append(gauge.read().signals['plan_spread'])
    assert found[0] == found[1]


def test_a_gap_in_the_observations_leaves_the_errors_unknown(model, calibration):
    states, actions = episode_of(40, np.random.default_rng(3))
    whole, gauge = TrustGauge(model, calibration), TrustGauge(model, calibration)
    for t in range(40):
        whole.observe(states[t], actions[t - 1], is_consecutive=t > 0)
        if t == 14:
            gauge.observe(None, actions[t - 1], is_consecutive=False)
        else:
            gauge.observe(states[t], actions[t - 1], is_consecutive=t not in (0, 25))
        known = set(gauge.read().signals)
        if t in (0, 14, 15, 25):
            assert known == set()
        elif t in range(1, 10) or t in range(16, 25) or t in range(26, 35):
            assert known == {'one_step'}
        else:
            assert known == {'one_step', 'k_step'}
            assert gauge.read() == whole.read()
    gauge.forget()
    assert gauge.read() == Trust()
    assert gauge.read().describe() == 'nothing known yet'


@pytest.mark.parametrize(('lengths', 'expected'), [
    # Members at 0, 0 and 3 d after every step, d the typical step of the first of two fields:
    # variance 3, over two fields 1.5. Of the members at 0 and 3 d: 4.5, so 2.25.
    ([2, 2, 2], 1.5), ([9, 2, 5], 1.5), ([2, 1, 2], (1.5 + 2.25) / 2), ([2, 2, 1], 1.5 / 2),
    ([1, 1, 2], 1.5), ([1, 1, 1], 1.5), ([2, 0, 2], 2.25), ([2, 0, 0], None), ([0, 0, 0], None)])
def test_particles_are_compared_up_to_their_ends(model, calibration, lengths, expected):
    gauge = TrustGauge(model, calibration)
    states = np.zeros((2, MEMBERS, 2))
    states[:, 2, 0] = 3.0 * model.step_std[0]
    gauge.planned(states)
    states[np.arange(2)[:, None] >= np.array(lengths)] = np.nan  # diverged after their ends
    gauge.planned(states, np.array(lengths))
    assert gauge.read().signals.get('plan_spread') == (
        None if expected is None else pytest.approx(np.sqrt(expected)))


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_not_finite_is_strangest(model, calibration, value):
    gauge = TrustGauge(model, calibration)
    states = np.zeros((10, MEMBERS, 2))
    gauge.planned(states)
    assert gauge.read().figure < 0.5
    states[3, 1, 0] = value
    with np.errstate(invalid='ignore'):
        gauge.planned(states)
    assert gauge.read().figure == 1.0
    assert gauge.read().describe().startswith('plan_spread of')


def restraints(figures, **changes):
    limiter = TrustLimiter(TrustConfig.model_validate(
        {'slow_above': 0.8, 'hold_above': 0.9, 'stop_above': 0.95, 'trust_ticks': 2,
         'hold_ticks': 3, 'min_scale': 0.2} | changes))
    return [limiter.update(figure) for figure in figures]


def levels(figures, **changes):
    return ''.join(found.level[0].upper() if found.level == 'stop' else found.level[0]
                   for found in restraints(figures, **changes))


def test_levels_follow_the_thresholds():
    # f full, s slow, h hold, S stop; two ticks in a row are needed, up and down.
    assert levels([0.7, 0.99, 0.7, 0.99, 0.99, 0.7, 0.99, 0.7, 0.7]) == 'ffffSSSSf'
    assert levels([0.85, 0.85, 0.92, 0.92, 0.92, 0.92, 0.92]) == 'fsshhhS'
    assert levels([0.92, 0.92, 0.92, 0.92, 0.92, 0.85, 0.85]) == 'fhhhSSs'
    assert levels([1.0] * 4, trust_ticks=1, hold_ticks=0) == 'SSSS'
    assert levels([1.0] * 9, slow_above=1.0, hold_above=1.0, stop_above=1.0) == 'f' * 9
    assert levels([0.92] * 3, trust_ticks=1, hold_ticks=0) == 'SSS'


def test_slowing_down_is_linear_between_its_thresholds():
    for figure, scale in ((0.8, 1.0), (0.825, 0.8), (0.85, 0.6), (0.9, 0.2)):
        found = restraints([figure] * 2)[-1]
        assert found.scale == pytest.approx(scale)
        np.testing.assert_allclose(found.apply(np.array([5.0]), np.array([9.0]), np.array([1.0])),
                                   [1.0 + 4.0 * scale])
    action, last, safe = np.array([5.0]), np.array([9.0]), np.array([1.0])
    assert Restraint().apply(action, last, safe) is action
    assert Restraint('hold').apply(action, last, safe) is last
    assert Restraint('stop', 0.0).apply(action, last, safe) is safe


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), max_size=60), st.integers(1, 6), st.floats(-3.0, 3.0))
def test_a_restrained_action_lies_between_the_safe_value_and_what_was_wanted(figures, ticks,
                                                                              action):
    limiter = TrustLimiter(TrustConfig(trust_ticks=ticks))
    last = safe = np.array([0.5])
    for count, figure in enumerate(figures, start=1):
        found = limiter.update(figure)
        command = found.apply(np.array([action]), last, safe)
        if count < ticks or max(figures[max(0, count - ticks):count]) <= DEFAULT.slow_above:
            assert found.level == 'full'
        if count >= ticks and min(figures[count - ticks:count]) > DEFAULT.stop_above:
            assert found.level == 'stop'
        assert min(action, 0.5) - 1e-12 <= command[0] <= max(action, 0.5) + 1e-12
        last = command


def test_forgetting_gives_full_trust():
    limiter = TrustLimiter(TrustConfig(trust_ticks=1))
    assert limiter.update(1.0).level == 'stop'
    limiter.forget()
    assert limiter.update(0.5).level == 'full'


def test_thresholds_must_not_decrease():
    with pytest.raises(ValidationError, match='must not decrease'):
        TrustConfig(slow_above=0.95, hold_above=0.9)


class Loop:
    """The shipped cart-pole model and planner in lock-step with MuJoCo, the gauge between."""

    def __init__(self):
        self.robot = load_robot('cartpole')
        self.task = load_task('cartpole_swingup', self.robot)
        self.model = artifact.load(find_model('cartpole'), self.robot)
        self.planning = load_planning('cem')
        self.rollout = Rollout(self.model, self.robot, self.task,
                               self.planning.rollout, threads=1)

    def drive(self, seed, steps, start=None, **scales):
        """Return the figure and the level of every tick."""
        space = ActionSpace(self.task.horizon, self.robot.action_min, self.robot.action_max)
        planner = make_planner('cem', config_class('cem').model_validate(self.planning.params),
                               space)
        dynamics = Dynamics(self.model.model, self.model.metadata)
        mpc = Mpc(dynamics, self.rollout, planner, self.robot, np.random.default_rng(seed))
        gauge = TrustGauge(Dynamics(self.model.model, self.model.metadata),
                           Calibration.from_dict(self.model.metadata['trust']))
        limiter, simulated = TrustLimiter(DEFAULT), MujocoRobot(self.robot, **scales)
        simulated.reset(np.random.default_rng([seed, 1]))
        if start is not None:
            simulated.data.qpos[:], simulated.data.qvel[:] = start[:2], start[2:]
        command, figures, found = self.robot.safe_value, [], []
        for tick in range(1, steps + 1):
            state = simulated.state()
            gauge.observe(state, command, is_consecutive=tick > 1)
            figures.append(gauge.read().figure)
            restraint = limiter.update(figures[-1])
            found.append(restraint.level)
            decision = mpc.plan(tick, state, ())
            command = restraint.apply(decision.actions[0], command, self.robot.safe_value)
            gauge.planned(decision.prediction.states)
            simulated.step(command)
        return np.array(figures), found


@pytest.fixture(scope='module')
def loop():
    loop = Loop()
    yield loop
    loop.rollout.close()


def test_the_shipped_model_swings_up_undisturbed(loop):
    _, found = loop.drive(seed=11, steps=120)
    # Full all along: every command is the planner's own, so the return is that without a gauge.
    assert set(found) == {'full'}


@pytest.mark.parametrize('change', [{'mass_scale': 2.0}, {'friction_scale': 3.0}])
def test_a_payload_and_friction_are_noticed(loop, change):
    # Held-out data of the right robot cross 0.99 once in 100 ticks; here it takes a few ticks of
    # motion, and five that agree before anything is done.
    figures, found = loop.drive(seed=12, steps=30, **change)
    assert (figures[:10] > 0.99).any()
    assert 'slow' in found[:20]


@pytest.mark.parametrize('start', [
    (5.0, 0.0, 0.0, 0.0), (0.0, 0.0, 15.0, 0.0), (0.0, 0.0, 0.0, 80.0)],
    ids=['off the rail', 'fast cart', 'fast pole'])
def test_a_state_far_outside_the_data_is_noticed_at_once(loop, start):
    # The first plan's spread is in the reading of the second tick, and so is the first error.
    figures, _ = loop.drive(seed=13, steps=4, start=start)
    assert figures[1:].max() > 0.99
