"""The random sequences of planners against their statistics."""

import numpy as np
import pytest

from mbrl_ros.planning._noise import ColoredNoise, TruncatedNoise, UniformNoise


def test_white_noise_is_truncated_at_two():
    draws = TruncatedNoise(np.random.default_rng(0), 10, 2).draw(5000)
    assert draws.shape == (5000, 10, 2)
    assert np.abs(draws).max() <= 2.0
    assert np.abs(draws).max() > 1.99
    # Variance of a standard normal cut at +-2: 1 - 2 * 2 phi(2) / (Phi(2) - Phi(-2))
    # = 1 - 4 * 0.05399 / 0.95450 = 0.7737; 100,000 draws know it to about 0.003.
    assert draws.var() == pytest.approx(0.7737, abs=0.012)
    assert abs(draws.mean()) < 0.014


COUNT = 4000


@pytest.mark.parametrize('exponent', [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('horizon', [1, 2, 25, 30])
def test_colored_noise_has_unit_variance(exponent, horizon):
    draws = ColoredNoise(np.random.default_rng(1), horizon, 2, exponent).draw(COUNT)
    assert draws.shape == (COUNT, horizon, 2)
    # At each step and actuator: a variance from n draws has std sqrt(2 / n); five allowed.
    np.testing.assert_allclose(draws.var(axis=0), 1.0, atol=5 * np.sqrt(2 / COUNT))
    np.testing.assert_allclose(draws.mean(axis=0), 0.0, atol=5 / np.sqrt(COUNT))
    # Actuators are independent: a correlation of n pairs has std 1 / sqrt(n), fewer for color.
    assert abs((draws[:, 0, 0] * draws[:, 0, 1]).mean()) < 5 / np.sqrt(COUNT)


@pytest.mark.parametrize('exponent', [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('horizon', [25, 30])
def test_colored_noise_has_its_spectrum(exponent, horizon):
    draws = ColoredNoise(np.random.default_rng(2), horizon, 1, exponent).draw(COUNT)[..., 0]
    power = (np.abs(np.fft.rfft(draws, axis=1))**2).mean(axis=0)
    frequency = np.arange(1, len(power))  # in units of the lowest
    # A mean of n periodograms has a relative std of sqrt(2 / n) at most (real coefficients).
    slack = 5 * np.sqrt(2 / COUNT)
    np.testing.assert_allclose(power[1:] / power[1] * frequency**exponent, 1.0,
                               atol=2 * slack)
    assert power[0] / power[1] == pytest.approx(1.0, abs=2 * slack)


def test_uniform_noise_is_even():
    draws = UniformNoise(np.random.default_rng(0), 10, 2).draw(5000)
    assert draws.shape == (5000, 10, 2)
    # 100,000 draws in ten bins: 10,000 +- 95 each; five of these allowed.
    counts, _ = np.histogram(draws, 10, (0.0, 1.0))
    np.testing.assert_allclose(counts, 10_000, atol=475)


@pytest.mark.parametrize('make', [UniformNoise, TruncatedNoise,
                                  lambda *sizes: ColoredNoise(*sizes, 1.0)])
def test_same_seed_same_noise(make):
    one, other, third = (make(np.random.default_rng(seed), 5, 2).draw(3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, other)
    assert (one != third).all()
