"""Exploration signals: inside the limits, seeded, and with the statistics they promise."""

from fakes import cart
import numpy as np
import pytest

from mbrl_ros.control.exploration import chirp, config_class, make_signal, ou, uniform

SIGNALS = ['chirp', 'ou', 'uniform']


def run(signal, count):
    return np.array([signal.next() for _ in range(count)])


def test_a_smaller_amplitude_stays_nearer_to_the_safe_value():
    robot = cart(min=-2.0, max=1.0, safe_value=0.5)
    signal = uniform.Signal(uniform.Config(amplitude=0.2), robot, np.random.default_rng(0))
    actions = run(signal, 1000)
    # 0.5 - 0.2 (0.5 + 2) = 0 and 0.5 + 0.2 (1 - 0.5) = 0.6
    assert 0.0 <= actions.min() < 0.01
    assert 0.59 < actions.max() <= 0.6


@pytest.mark.parametrize('name', SIGNALS)
@pytest.mark.parametrize(('low', 'high', 'safe'), [(-2.0, 2.0, 0.0), (0.0, 1.0, 0.0),
                                                  (-2.0, 2.0, 1.5)])
def test_inside_the_limits_and_seeded(name, low, high, safe):
    robot = cart(min=low, max=high, safe_value=safe)
    one, same, other = (
        run(make_signal(name, config_class(name)(), robot, np.random.default_rng(seed)), 500)
        for seed in (1, 1, 2))
    assert one.shape == (500, 1)
    assert (one >= low).all()
    assert (one <= high).all()
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert one.std() > 0.1 * (high - low)


def test_uniform_covers_the_range():
    values = run(uniform.Signal(uniform.Config(), cart(), np.random.default_rng(0)), 5000)
    # Of width 4: std 4 / sqrt(12) = 1.155, known to sqrt((9/5 - 1) / (4 n)) = 0.6 % of it.
    assert values.std() == pytest.approx(1.155, rel=0.03)
    assert abs(values.mean()) < 5 * 1.155 / np.sqrt(5000)
    assert values.min() < -1.98
    assert values.max() > 1.98


def test_uniform_holds():
    signal = uniform.Signal(uniform.Config(hold_steps=3), cart(), np.random.default_rng(0))
    values = run(signal, 30).reshape(10, 3)
    assert (values == values[:, :1]).all()
    assert len(np.unique(values)) == 10


def test_ornstein_uhlenbeck():
    count = 20000
    config = ou.Config(correlation_s=0.3, std=0.05)  # 0.2 N: limits are 10 std away
    values = run(ou.Signal(config, cart(), np.random.default_rng(0)), count)[100:, 0]
    # Neighbours keep k = exp(-0.1 / 0.3) = 0.717: the variance of n values is known as from
    # n (1 - k^2) / (1 + k^2) = 6400 free ones, so the std to 1 / sqrt(2 x 6400) = 0.9 %.
    assert values.std() == pytest.approx(0.2, rel=0.045)
    # After the correlation time, 3 steps, exp(-1) is left; its std is at most
    # sqrt((1 + k^2) / (1 - k^2) / n) = 0.0125. Half of the time leaves exp(-1/3) a step.
    for lag, left in ((1, np.exp(-1 / 3)), (3, np.exp(-1))):
        found = np.mean(values[lag:] * values[:-lag]) / values.var()
        assert found == pytest.approx(left, abs=0.06)


def test_ornstein_uhlenbeck_starts_at_the_safe_value():
    config = ou.Config(correlation_s=1e6, std=0.25)
    signal = ou.Signal(config, cart(safe_value=0.5), np.random.default_rng(0))
    # One step's std is sqrt(1 - exp(-2e-7)) of 1 N: 0.0004.
    assert signal.next()[0] == pytest.approx(0.5, abs=0.003)


def test_chirp_sweeps_from_start_to_end():
    config = chirp.Config(start_hz=0.5, end_hz=8.0, sweep_s=10.0, amplitude=0.9)
    robot = cart(control_rate_hz=1000.0)
    wave = run(chirp.Signal(config, robot, np.random.default_rng(0)), 10_000)[:, 0]
    assert wave.max() == pytest.approx(1.8, abs=1e-3)  # 0.9 of the room to the limits +-2
    assert wave.min() == pytest.approx(-1.8, abs=1e-3)
    before = np.flatnonzero((wave[:-1] < 0) & (wave[1:] >= 0))
    rise = (before - wave[before] / (wave[before + 1] - wave[before])) * 1e-3
    # f(t) = 0.5 x 16^(t / 10); each period's mean frequency lies between those at its ends.
    bounds = 0.5 * 16 ** (rise / 10)
    mean = 1 / np.diff(rise)
    assert (mean >= bounds[:-1] * 0.999).all()
    assert (mean <= bounds[1:] * 1.001).all()
    # Cycles: the integral of f is 7.5 / (ln(16) / 10) = 27.05.
    assert len(rise) in (27, 28)
    assert mean[-1] > 7.5


def test_chirp_around_an_uneven_safe_value():
    robot = cart(control_rate_hz=1000.0, safe_value=1.0)
    wave = run(chirp.Signal(chirp.Config(start_hz=1.0, end_hz=1.0, sweep_s=2.0, amplitude=0.9),
                            robot, np.random.default_rng(0)), 2000)
    # 0.9 of the room: 1 + 0.9 x 1 and 1 - 0.9 x 3.
    assert wave.max() == pytest.approx(1.9, abs=1e-3)
    assert wave.min() == pytest.approx(-1.7, abs=1e-3)
    # A constant 1 Hz: the second period repeats the first.
    np.testing.assert_allclose(wave[1000:], wave[:1000], atol=1e-6)
