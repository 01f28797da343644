"""Each sampling planner, bit for bit, against its paper written out in scalar loops."""

import numpy as np
import pytest

from mbrl_ros.core.errors import PlanningError
from mbrl_ros.planning import ActionSpace, cem, icem, mppi, optimise, random_shooting
from mbrl_ros.planning._noise import ColoredNoise, TruncatedNoise, UniformNoise

SPACE = ActionSpace(6, np.array([-1.0, -3.0]), np.array([2.0, 3.0]))
PETS = cem.Config(population=50, num_elites=7, iterations=4, smoothing=0.2, noise_exponent=0.0,
                  keep_elites=0, initial_std=0.4)
COLORED = PETS.model_copy(update={'noise_exponent': 1.5, 'keep_elites': 3})
ICEM = icem.Config(population=30, decay=1.5, num_elites=7, iterations=4, smoothing=0.2,
                   noise_exponent=1.5, keep_share=0.5, initial_std=0.4)
SIZES = [30, 20, 14, 14]  # 30, 20, 13.3 and 8.9, but 2 x 7 at least
MPPI = mppi.Config(population=50, iterations=3, temperature=0.3, std=0.2)
PUBLISHED = mppi.Config(population=50, iterations=3, temperature=2.0, temperature_unit='cost',
                        action_cost=1.0, std=0.2)


class Replay:
    """Noise that is drawn once, so that planner and reference see the same."""

    def __init__(self, noise):
        self.chunks = noise(np.random.default_rng(0), 6, 2).draw(400)
        self.position = 0

    def draw(self, count):
        self.position += count
        return self.chunks[self.position - count:self.position]


def truncated():
    return Replay(TruncatedNoise)


def colored(exponent=1.5):
    return Replay(lambda *sizes: ColoredNoise(*sizes, exponent))


def valley(actions):
    """A cost with cross terms, so that elites depend on the whole sequence."""
    target = np.array([0.5, -1.0])
    error = actions - target
    return (error**2).sum(axis=(1, 2)) + 0.5 * np.abs(np.diff(actions, axis=1)).sum(axis=(1, 2))


def cost_of(candidate):
    return valley(candidate[None])[0]


def spoilt(actions):
    """Return the valley's costs, those of every fifth candidate rejected."""
    return np.where(np.arange(len(actions)) % 5 == 2, np.nan, valley(actions))


def clipped(candidate):
    return np.array([[min(max(value, low), high) for value, low, high
                      in zip(row, SPACE.low, SPACE.high, strict=True)] for row in candidate])


def widths(share):
    """Return `share` of the ranges, one for each step and actuator."""
    return np.array([[share * (high - low) for low, high
                      in zip(SPACE.low, SPACE.high, strict=True)]] * SPACE.horizon)


def moments(elites):
    mean = sum(elites) / len(elites)
    return mean, sum((c - mean)**2 for c in elites) / len(elites)


def cem_reference(config, noise):
    """Yield mean, std, kept elites and the best candidate after each refit."""
    mean, std, kept = np.zeros((6, 2)), widths(config.initial_std), []
    for _ in range(config.iterations):
        candidates = []
        for draw in noise.draw(config.population - len(kept)):
            candidate = np.empty_like(mean)
            for t in range(6):
                for j in range(2):
                    width = std[t, j]
                    if config.noise_exponent == 0.0:
                        width = min(width, (mean[t, j] - SPACE.low[j]) / 2,
                                    (SPACE.high[j] - mean[t, j]) / 2)
                    candidate[t, j] = mean[t, j] + width * draw[t, j]
            candidates.append(clipped(candidate))
        ranked = sorted([*candidates, *kept], key=cost_of)[:config.num_elites]
        new_mean, new_variance = moments(ranked)
        old = config.smoothing
        mean = old * mean + (1 - old) * new_mean
        std = np.sqrt(old * (std * std) + (1 - old) * new_variance)  # PETS smooths the variance
        kept = ranked[:config.keep_elites]
        yield mean, std, kept, ranked[0]


@pytest.mark.parametrize(('config', 'noise'), [(PETS, truncated), (COLORED, colored)],
                         ids=['pets', 'colored'])
def test_cem(config, noise):
    planner, given = cem.Planner(config, SPACE), noise()
    state = planner.init()
    for mean, std, kept, best in cem_reference(config, noise()):
        actions = planner.sample(state, given)
        assert actions.shape == (50, 6, 2)
        state = planner.update(state, actions, valley(actions))
        np.testing.assert_array_equal(state.mean, mean)
        np.testing.assert_array_equal(state.std, std)
        np.testing.assert_array_equal(state.best, best)
        np.testing.assert_array_equal(state.elites, np.reshape(kept, (-1, 6, 2)))
    plan = optimise(planner, planner.init(), noise(), valley)
    np.testing.assert_array_equal(plan.actions, state.mean)
    assert (plan.candidates, plan.rejected) == (200, 0)


@pytest.mark.parametrize(('kind', 'config', 'expected'), [
    # Smoothing 0.1, initial std 0.5 x 3, elites of std 0.3: PETS smooths variances,
    # sqrt(0.1 x 1.5^2 + 0.9 x 0.3^2) = sqrt(0.306), and iCEM stds, 0.1 x 1.5 + 0.9 x 0.3.
    (cem, cem.Config(population=2, num_elites=2, smoothing=0.1, initial_std=0.5), 0.306**0.5),
    (icem, icem.Config(population=2, num_elites=2, smoothing=0.1, initial_std=0.5), 0.42),
], ids=['cem', 'icem'])
def test_what_is_smoothed_is_as_published(kind, config, expected):
    planner = kind.Planner(config, ActionSpace(1, np.array([-1.5]), np.array([1.5])))
    elites = np.array([-0.3, 0.3]).reshape(2, 1, 1)
    state = planner.update(planner.init(), elites, np.zeros(2))
    np.testing.assert_allclose(state.std, expected, rtol=1e-12)


def icem_reference(config, noise, steps):
    """Yield mean, std and the best candidate after each refit of two plans, `steps` apart."""
    mean, kept, open_steps = np.zeros((6, 2)), [], 0
    for _ in range(2):
        std = widths(config.initial_std)
        for iteration, size in enumerate(SIZES):
            last = iteration == config.iterations - 1
            num_fresh = size - len(kept) - last
            num_tails = len(kept) if open_steps else 0
            drawn = [clipped(mean + std * draw) for draw in noise.draw(num_fresh + num_tails)]
            if open_steps:  # elites of the last plan end in drawn actions
                kept = [np.concatenate([elite[:6 - open_steps], tail[6 - open_steps:]])
                        for elite, tail in zip(kept, drawn[num_fresh:], strict=True)]
            candidates = drawn[:num_fresh] + kept + ([mean] if last else [])
            assert len(candidates) == size
            ranked = sorted(candidates, key=cost_of)[:config.num_elites]
            new_mean, new_variance = moments(ranked)
            old = config.smoothing
            mean = old * mean + (1 - old) * new_mean
            std = old * std + (1 - old) * np.sqrt(new_variance)  # iCEM smooths the std itself
            kept, open_steps = ranked[:3], 0  # half of 7, rounded down
            yield mean, std, ranked[0]
        mean = np.array([mean[min(t + steps, 5)] for t in range(6)])
        kept = [np.concatenate([elite[steps:], np.full((steps, 2), np.nan)]) for elite in kept]
        open_steps = steps


@pytest.mark.parametrize('steps', [1, 4, 6])
def test_icem(steps):
    planner, given = icem.Planner(ICEM, SPACE), colored()
    state = planner.init()
    for index, (mean, std, best) in enumerate(icem_reference(ICEM, colored(), steps)):
        if index == ICEM.iterations:
            state = planner.shift(state, steps)
        actions = planner.sample(state, given)
        state = planner.update(state, actions, valley(actions))
        np.testing.assert_array_equal(state.mean, mean)
        np.testing.assert_array_equal(state.std, std)
        np.testing.assert_array_equal(planner.solution(state), best)
    assert optimise(planner, planner.init(), colored(), valley).candidates == sum(SIZES)


def mppi_reference(config, noise, costs):
    """Yield the mean after each update."""
    mean, std = np.zeros((6, 2)), widths(config.std)
    for _ in range(config.iterations):
        candidates = [clipped(mean + std * draw) for draw in noise.draw(config.population)]
        cost = costs(np.array(candidates))
        cheap = sorted(c for c in cost if np.isfinite(c))
        temperature = config.temperature
        if config.temperature_unit == 'median_gap':
            temperature *= cheap[len(cheap) // 2] - cheap[0]
        charged = [c + config.action_cost * temperature
                   * np.sum(mean * (candidate - mean) / std**2) if np.isfinite(c) else np.inf
                   for c, candidate in zip(cost, candidates, strict=True)]
        weight = np.exp([(min(charged) - c) / temperature for c in charged])
        weight /= weight.sum()
        mean = clipped(mean + sum(w * (candidate - mean)
                                  for w, candidate in zip(weight, candidates, strict=True)))
        yield mean


@pytest.mark.parametrize('costs', [valley, spoilt])
@pytest.mark.parametrize('config', [MPPI, PUBLISHED], ids=['median_gap', 'published'])
def test_mppi(config, costs):
    planner, given = mppi.Planner(config, SPACE), colored(0.0)
    state = planner.init()
    for mean in mppi_reference(config, colored(0.0), costs):
        actions = planner.sample(state, given)
        state = planner.update(state, actions, costs(actions))
        np.testing.assert_array_equal(state.mean, mean)
    assert valley(state.mean[None])[0] < 7.0  # of 7.5 at the start


def test_random_shooting():
    planner = random_shooting.Planner(random_shooting.Config(population=400), SPACE)
    best = None
    for draw in Replay(UniformNoise).draw(400):
        candidate = SPACE.low + (SPACE.high - SPACE.low) * draw
        if best is None or cost_of(candidate) < cost_of(best):
            best = candidate
    plan = optimise(planner, planner.init(), Replay(UniformNoise), valley)
    np.testing.assert_array_equal(plan.actions, best)


def test_temperature_does_not_depend_on_the_unit_of_the_cost_nor_on_outliers():
    planner = mppi.Planner(MPPI, SPACE)
    actions = planner.sample(planner.init(), colored(0.0))
    cost = valley(actions)
    expected = planner.update(planner.init(), actions, cost).mean
    # A power of two scales exactly; the difference of two costs is off in its last bits.
    scaled = planner.update(planner.init(), actions, 1024.0 * cost + 5.0).mean
    np.testing.assert_allclose(scaled, expected, atol=1e-9)
    cost[np.argsort(cost)[-5:]] = 1e30  # the dearest five, all but diverged
    np.testing.assert_allclose(planner.update(planner.init(), actions, cost).mean, expected,
                               atol=1e-3)
    alike = planner.update(planner.init(), actions, np.full(50, 3.0, np.float32)).mean
    np.testing.assert_allclose(alike, actions.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize('planner', [cem.Planner(PETS, SPACE), icem.Planner(ICEM, SPACE)],
                         ids=['cem', 'icem'])
def test_too_few_finite_costs_for_the_elites(planner):
    actions = planner.sample(planner.init(), colored())
    cost = np.full(len(actions), np.nan)
    cost[:6] = 1.0
    with pytest.raises(PlanningError, match=r'only 6 of .* num_elites 7'):
        planner.update(planner.init(), actions, cost)
    cost[6] = 1.0  # seven are enough, and only they count
    np.testing.assert_allclose(planner.update(planner.init(), actions, cost).mean,
                               0.8 * actions[:7].mean(axis=0))


def test_cem_stops_early():
    def parabola(actions):
        return (actions**2).sum(axis=(1, 2))
    every = cem.Planner(PETS.model_copy(update={'iterations': 30}), SPACE)
    early = cem.Planner(every.config.model_copy(update={'stop_std': 0.01}), SPACE)
    plan, full = (optimise(planner, planner.init(), planner.noise(np.random.default_rng(0)),
                           parabola) for planner in (early, every))
    assert full.candidates == 30 * 50
    assert plan.candidates < full.candidates
    # In shares of the ranges 3 and 6. It is also no later than it might be: not yet a refit ago,
    # when no variance was more than 1 / 0.2 (the smoothing) of what it is now: 0.01 sqrt(0.2).
    assert 0.0044 < (plan.state.std / [3.0, 6.0]).max() < 0.01
    assert not every.is_settled(full.state)


def test_what_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match='num_elites 5 exceeds population 4'):
        icem.Config(population=4, num_elites=5)
    with pytest.raises(ValueError, match=r'action_cost 1\.0 is defined for white noise'):
        mppi.Config(action_cost=1.0, noise_exponent=2.0)
