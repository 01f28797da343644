"""The cross-entropy method against a reference, its noise against its statistics."""

from dataclasses import fields

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from mbrl_ros.core.errors import PlanningError, SpecError
from mbrl_ros.planning import ActionSpace, load_planning, make_planner, optimise
from mbrl_ros.planning._noise import GaussianNoise
from mbrl_ros.planning.cem import Config, Planner

SPACE = ActionSpace(6, np.array([-1.0, -3.0]), np.array([2.0, 3.0]))
PETS = Config(population=50, num_elites=7, iterations=4, smoothing=0.2, noise_exponent=0.0,
              keep_elites=0, initial_std=0.4)
ICEM = PETS.model_copy(update={'noise_exponent': 1.5, 'keep_elites': 3})


class Replay:
    """Noise that is drawn once, so that planner and reference see the same."""

    def __init__(self, count, exponent):
        self.chunks = GaussianNoise(np.random.default_rng(0), 6, 2, exponent).draw(count)
        self.position = 0

    def draw(self, count):
        self.position += count
        return self.chunks[self.position - count:self.position]


def valley(actions):
    """A cost with cross terms, so that elites depend on the whole sequence."""
    target = np.array([0.5, -1.0])
    error = actions - target
    return (error**2).sum(axis=(1, 2)) + 0.5 * np.abs(np.diff(actions, axis=1)).sum(axis=(1, 2))


def reference(config, noise, mean):
    """The method by its papers: scalar loops, one candidate and one number at a time."""
    low, high = SPACE.low, SPACE.high
    horizon, size = mean.shape
    mean = mean.copy()
    std = np.empty_like(mean)
    for j in range(size):
        std[:, j] = config.initial_std * (high[j] - low[j])
    kept, history = [], []
    for _ in range(config.iterations):
        candidates = []
        for draw in noise.draw(config.population - len(kept)):
            candidate = np.empty_like(mean)
            for t in range(horizon):
                for j in range(size):
                    width = std[t, j]
                    if config.noise_exponent == 0.0:
                        width = min(width, (mean[t, j] - low[j]) / 2, (high[j] - mean[t, j]) / 2)
                    candidate[t, j] = min(max(mean[t, j] + width * draw[t, j], low[j]), high[j])
            candidates.append(candidate)
        candidates += kept
        ranked = sorted(candidates, key=lambda c: valley(c[None])[0])[:config.num_elites]
        new_mean = sum(ranked) / len(ranked)
        new_std = np.sqrt(sum((c - new_mean)**2 for c in ranked) / len(ranked))
        mean = config.smoothing * mean + (1 - config.smoothing) * new_mean
        std = config.smoothing * std + (1 - config.smoothing) * new_std
        kept = ranked[:config.keep_elites]
        history.append((mean.copy(), std.copy(), ranked[0]))
    return history, kept


@pytest.mark.parametrize('config', [PETS, ICEM], ids=['pets', 'icem'])
def test_equals_the_reference_given_the_same_noise(config):
    planner = Planner(config, SPACE)
    noise = Replay(200, config.noise_exponent)
    state = planner.init()
    history, kept = reference(config, Replay(200, config.noise_exponent), np.zeros((6, 2)))
    for mean, std, best in history:
        actions = planner.sample(state, noise)
        assert actions.shape == (50, 6, 2)
        state = planner.update(state, actions, valley(actions))
        np.testing.assert_allclose(state.mean, mean, atol=1e-12)
        np.testing.assert_allclose(state.std, std, atol=1e-12)
        np.testing.assert_allclose(state.best, best, atol=1e-12)
    np.testing.assert_allclose(state.elites, np.reshape(kept, (-1, 6, 2)), atol=1e-12)
    plan = optimise(planner, planner.init(), Replay(200, config.noise_exponent), valley)
    np.testing.assert_array_equal(plan.actions, state.mean)
    assert plan.rejected == 0


@pytest.mark.parametrize('config', [PETS, ICEM], ids=['pets', 'icem'])
def test_warm_start_moves_towards_now_and_ends_in_zeros(config):
    planner = Planner(config, SPACE)
    done = optimise(planner, planner.init(), Replay(200, config.noise_exponent), valley).state
    for steps in (1, 2, 6):
        moved = planner.shift(done, steps)
        np.testing.assert_array_equal(moved.mean[:6 - steps], done.mean[steps:])
        np.testing.assert_array_equal(moved.mean[6 - steps:], 0.0)
        # The Gaussian is wide again: 0.4 of the ranges 3 and 6.
        np.testing.assert_allclose(moved.std, np.broadcast_to([1.2, 2.4], (6, 2)))
        assert moved.elites.shape == done.elites.shape
        np.testing.assert_array_equal(moved.elites[:, :6 - steps], done.elites[:, steps:])
        np.testing.assert_array_equal(moved.elites[:, 6 - steps:], 0.0)
    cold = Planner(config.model_copy(update={'warm_start': False}), SPACE).shift(done, 1)
    np.testing.assert_array_equal(cold.mean, 0.0)
    assert len(cold.elites) == 0


@pytest.mark.parametrize('config', [PETS, ICEM], ids=['pets', 'icem'])
def test_a_range_without_zero_inside_starts_in_its_middle(config):
    space = ActionSpace(3, np.array([0.0, -2.0, -1.0]), np.array([1.0, -1.0, 2.0]))
    planner = Planner(config, space)
    np.testing.assert_array_equal(planner.init().mean, [[0.5, -1.5, 0.0]] * 3)
    np.testing.assert_array_equal(planner.shift(planner.init(), 1).mean, [[0.5, -1.5, 0.0]] * 3)
    # A start on the limit 0 would leave the first actuator (a propeller, say) there for ever.
    plan = optimise(planner, planner.init(), planner.noise(np.random.default_rng(0)),
                    lambda actions: ((actions[..., 0] - 0.8)**2).sum(axis=1))
    np.testing.assert_allclose(plan.actions[:, 0], 0.8, atol=0.2)


@pytest.mark.parametrize('exponent', [0.0, 1.0])
def test_finds_the_optimum_of_a_quadratic(exponent):
    target = np.random.default_rng(3).uniform(-0.8, 0.8, (6, 2))
    config = Config(population=300, num_elites=30, iterations=20, noise_exponent=exponent,
                    keep_elites=5)
    planner = Planner(config, SPACE)
    plan = optimise(planner, planner.init(), planner.noise(np.random.default_rng(0)),
                    lambda actions: ((actions - target)**2).sum(axis=(1, 2)))
    # The std shrinks by a factor of about 1.5 or more a refit: 20 of them leave below 1e-2.
    np.testing.assert_allclose(plan.actions, target, atol=0.02)
    best = Planner(config.model_copy(update={'execute': 'best'}), SPACE)
    np.testing.assert_array_equal(best.solution(plan.state), plan.state.best)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_cost_that_is_not_finite_never_wins_and_is_counted(bad):
    planner = Planner(PETS, SPACE)

    def costs(actions):  # candidates that push forward at first look best, and diverge
        return np.where(actions[:, 0, 0] > 0, bad, valley(actions) - 10 * actions[:, 0, 0])
    seen = []

    def counted(actions):
        seen.append(np.count_nonzero(actions[:, 0, 0] > 0))
        return costs(actions)
    plan = optimise(planner, planner.init(), planner.noise(np.random.default_rng(0)), counted)
    assert plan.rejected == sum(seen) > 20
    assert plan.state.best[0, 0] <= 0
    assert plan.actions[0, 0] <= 0
    assert np.isfinite(plan.actions).all()


def test_too_few_finite_costs():
    planner = Planner(PETS, SPACE)
    actions = planner.sample(planner.init(), Replay(50, 0.0))
    cost = np.full(50, np.nan)
    cost[:6] = 1.0
    with pytest.raises(PlanningError, match=r'only 6 of 50 .* num_elites 7'):
        planner.update(planner.init(), actions, cost)
    cost[6] = 1.0  # seven are enough, and only they count
    np.testing.assert_allclose(planner.update(planner.init(), actions, cost).mean,
                               0.8 * actions[:7].mean(axis=0))


def test_states_are_values():
    planner = Planner(ICEM, SPACE)
    noise = planner.noise(np.random.default_rng(0))
    state = optimise(planner, planner.init(), noise, valley).state
    before = {f.name: getattr(state, f.name).copy() for f in fields(state)}
    actions = planner.sample(state, noise)
    kept = actions.copy()
    planner.shift(planner.update(state, actions, valley(actions)), 2)
    planner.shift(state, 2)
    np.testing.assert_array_equal(actions, kept)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(state, name), array)
    with pytest.raises(AttributeError):
        state.mean = 0


@settings(derandomize=True, deadline=None, max_examples=60)
@given(low=st.floats(-50, 50), width=st.floats(1e-3, 100), exponent=st.sampled_from([0.0, 0.5, 3]),
       std=st.floats(0.01, 1.0), horizon=st.integers(1, 9), seed=st.integers(0, 999))
def test_samples_are_always_inside_the_limits(low, width, exponent, std, horizon, seed):
    space = ActionSpace(horizon, np.array([low]), np.array([low + width]))
    planner = Planner(Config(population=20, num_elites=2, initial_std=std, keep_elites=2,
                             noise_exponent=exponent), space)
    rng = np.random.default_rng(seed)
    noise, state = planner.noise(rng), planner.init()
    for _ in range(4):
        actions = planner.sample(state, noise)
        assert actions.shape == (20, horizon, 1)
        assert (actions >= low).all()
        assert (actions <= low + width).all()
        state = planner.shift(planner.update(state, actions, rng.normal(size=20)), 1)


def test_white_noise_is_truncated_at_two():
    draws = GaussianNoise(np.random.default_rng(0), 10, 2, 0.0).draw(5000)
    assert draws.shape == (5000, 10, 2)
    assert np.abs(draws).max() <= 2.0
    assert np.abs(draws).max() > 1.99
    # Variance of a standard normal cut at +-2: 1 - 2 * 2 phi(2) / (Phi(2) - Phi(-2))
    # = 1 - 4 * 0.05399 / 0.95450 = 0.7737; 100,000 draws know it to about 0.003.
    assert draws.var() == pytest.approx(0.7737, abs=0.012)
    assert abs(draws.mean()) < 0.014


COUNT = 4000


@pytest.mark.parametrize('exponent', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('horizon', [1, 2, 25, 30])
def test_colored_noise_has_unit_variance(exponent, horizon):
    draws = GaussianNoise(np.random.default_rng(1), horizon, 2, exponent).draw(COUNT)
    assert draws.shape == (COUNT, horizon, 2)
    # At each step and actuator: a variance from n draws has std sqrt(2 / n); five allowed.
    np.testing.assert_allclose(draws.var(axis=0), 1.0, atol=5 * np.sqrt(2 / COUNT))
    np.testing.assert_allclose(draws.mean(axis=0), 0.0, atol=5 / np.sqrt(COUNT))
    # Actuators are independent: a correlation of n pairs has std 1 / sqrt(n), fewer for color.
    assert abs((draws[:, 0, 0] * draws[:, 0, 1]).mean()) < 5 / np.sqrt(COUNT)


@pytest.mark.parametrize('exponent', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('horizon', [25, 30])
def test_colored_noise_has_its_spectrum(exponent, horizon):
    draws = GaussianNoise(np.random.default_rng(2), horizon, 1, exponent).draw(COUNT)[..., 0]
    power = (np.abs(np.fft.rfft(draws, axis=1))**2).mean(axis=0)
    frequency = np.arange(1, len(power))  # in units of the lowest
    # A mean of n periodograms has a relative std of sqrt(2 / n) at most (real coefficients).
    slack = 5 * np.sqrt(2 / COUNT)
    np.testing.assert_allclose(power[1:] / power[1] * frequency**exponent, 1.0,
                               atol=2 * slack)
    assert power[0] / power[1] == pytest.approx(1.0, abs=2 * slack)


def test_same_seed_same_noise():
    for exponent in (0.0, 1.0):
        one, other, third = (GaussianNoise(np.random.default_rng(seed), 5, 2, exponent).draw(3)
                             for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, other)
        assert (one != third).all()


@pytest.mark.parametrize('name', ['cem', 'pets'])
def test_shipped_planners_load_and_plan(name):
    planning = load_planning(name)
    config = Config.model_validate(planning.params)
    planner = make_planner(planning.planner, config, SPACE)
    plan = optimise(planner, planner.init(), planner.noise(np.random.default_rng(0)), valley)
    # Standing still costs 6 * (0.5^2 + 1^2) = 7.5; even 3 x 40 candidates save more than half.
    assert valley(plan.actions[None])[0] < 3.75


def test_unknown_planner_file():
    with pytest.raises(SpecError, match='Known names:'):
        load_planning('fastest')
