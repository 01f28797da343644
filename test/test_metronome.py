"""The metronome: commands leave at a steady rate though plans take now more, now less time."""

import numpy as np
import pytest

from mbrl_ros.control.metronome import Metronome

PERIOD_S = 0.01
LONGEST_S = 0.008


def run(arrived_s, plan_s, metronome=None, rest_s=0.0):
    """Return when each command left, of observations that arrived at these times."""
    metronome = metronome or Metronome(PERIOD_S, LONGEST_S)
    left = []
    for arrival, plan in zip(arrived_s, plan_s, strict=True):
        metronome.arrive(arrival)
        left.append(metronome.leave_s(arrival, arrival + plan))
        metronome.adapt(rest_s)
    return np.array(left)


def test_the_first_commands_leave_as_soon_as_they_are_ready():
    arrived_s = 5.0 + PERIOD_S * np.arange(10)
    plan_s = np.linspace(0.001, 0.002, 10)
    np.testing.assert_allclose(run(arrived_s, plan_s), arrived_s + plan_s, atol=1e-9)


def test_plans_of_different_length_leave_at_one_phase():
    rng = np.random.default_rng(0)
    arrived_s = 5.0 + PERIOD_S * np.arange(2000)
    plan_s = rng.uniform(0.002, 0.004, 2000)
    left = run(arrived_s, plan_s)[500:]
    # The hold is the 98th percentile, 3.96 ms: at most 0.04 ms is left of the 2 ms, of two
    # commands in a hundred. Of the 500 to 1000 samples remembered it has a std of at most
    # sqrt(0.02 x 0.98 / 500) x 2 ms = 13 us: four of them, and what is left.
    np.testing.assert_allclose(left - arrived_s[500:], 0.00396, atol=1e-4)
    errors_s = np.abs(np.diff(left) - PERIOD_S)
    # One distance in twenty-five is one to or from such a command.
    assert np.quantile(errors_s, 0.8) < 1e-5
    assert errors_s.max() < 4e-4
    # As they are ready, the distance of two varies by up to 2 ms.
    assert np.abs(np.diff(arrived_s + plan_s) - PERIOD_S).max() > 1.8e-3


def test_jitter_of_the_arrivals_is_smoothed():
    rng = np.random.default_rng(0)
    arrived_s = 5.0 + PERIOD_S * np.arange(2000) + rng.uniform(0.0, 3e-4, 2000)
    left = run(arrived_s, rng.uniform(0.002, 0.003, 2000))[500:]
    # Of uniform jitter (std 0.3 ms / sqrt(12) = 87 us) a first-order filter of gain 1/16 leaves
    # sqrt(g / (2 - g)) = 0.18; the distance of two beats changes by g times that jitter at most.
    errors_s = np.abs(np.diff(left) - PERIOD_S)
    # Two commands in a hundred are late, which shows in two distances each.
    assert np.quantile(errors_s, 0.9) < 3e-4 / 16 + 1e-6


@pytest.mark.parametrize('off', [0.999, 1.001])
def test_it_follows_a_sensor_whose_clock_is_off(off):
    arrived_s = 5.0 + PERIOD_S * off * np.arange(3000)
    left = run(arrived_s, np.full(3000, 0.003))[500:]
    # It lags by (1 - g) / g = 15 steps of 10 us; plans take 3 ms all the same.
    delays_s = left - arrived_s[500:]
    assert np.ptp(delays_s) < 1e-5
    assert abs(delays_s[-1] - 0.003) <= 16 * 1e-5
    np.testing.assert_allclose(np.diff(left), PERIOD_S * off, atol=1e-6)


def test_the_next_observation_is_foreseen_by_the_beat():
    metronome = Metronome(PERIOD_S, LONGEST_S)
    arrived_s = 5.0 + PERIOD_S * np.arange(100)
    assert metronome.next_s() < 0.0  # before the first one none is
    run(arrived_s, np.full(100, 0.003), metronome)
    assert metronome.next_s() == pytest.approx(arrived_s[-1] + PERIOD_S)


def test_a_lost_observation_does_not_shift_the_beat():
    arrived_s = 5.0 + PERIOD_S * np.arange(1000)
    kept = np.random.default_rng(0).random(1000) > 0.3
    left = run(arrived_s[kept], np.full(kept.sum(), 0.003))
    np.testing.assert_allclose(left, arrived_s[kept] + 0.003, atol=1e-9)


@pytest.mark.parametrize('shift', [0.6, -0.6])
def test_another_phase_is_taken_at_once(shift):
    metronome = Metronome(PERIOD_S, LONGEST_S)
    arrived_s = 5.0 + PERIOD_S * np.arange(200)
    run(arrived_s, np.full(200, 0.003), metronome)
    later_s = arrived_s[-1] + PERIOD_S * (2.0 + shift) + PERIOD_S * np.arange(5)
    np.testing.assert_allclose(run(later_s, np.full(5, 0.001), metronome), later_s + 0.003,
                               atol=1e-9)


def test_a_pause_starts_a_new_rhythm():
    metronome = Metronome(PERIOD_S, LONGEST_S)
    run(5.0 + PERIOD_S * np.arange(200), np.full(200, 0.003), metronome)
    assert run([1e4 + 0.0033], [0.001], metronome) == pytest.approx([1e4 + 0.0033 + 0.003])


def test_no_hold_makes_the_next_tick_late():
    # One tick at a time: it begins when the observation is there and the tick before is over. One
    # in thirty takes 9 ms; 3 ms follow each command. Of 10 ms that leaves a hold of 7 ms. Held
    # until they are ready, 9 ms, all ticks would end after 12 ms and begin later and later, until
    # nothing is held but by the deadline.
    metronome, free_s, rest_s = Metronome(PERIOD_S, 1.0), 0.0, 0.003
    delays_s = []
    for index, arrived_s in enumerate(5.0 + PERIOD_S * np.arange(2000)):
        ready_s = max(arrived_s, free_s) + (0.009 if index % 30 == 0 else 0.004)
        metronome.arrive(arrived_s)
        left_s = metronome.leave_s(arrived_s, ready_s)
        free_s = left_s + rest_s
        metronome.adapt(rest_s)
        delays_s.append(left_s - arrived_s)
    # 9 ms + 3 ms is 2 ms late; with 4 ms of planning the next is ready after 6 ms: in rhythm.
    assert metronome.hold_s == pytest.approx(PERIOD_S - rest_s)
    assert np.quantile(delays_s[100:], 0.95) == pytest.approx(0.007)
    assert max(delays_s) == pytest.approx(0.009)


def test_slow_seconds_do_not_delay_the_commands_of_the_next():
    # Blocks of a second: nine that take 3 ms, four that take 7 ms, one that takes 3 ms again.
    metronome = Metronome(PERIOD_S, LONGEST_S)
    arrived_s = 5.0 + PERIOD_S * np.arange(1400)
    plan_s = np.full(1400, 0.003)
    plan_s[900:1300] = 0.007
    left = run(arrived_s, plan_s, metronome)
    np.testing.assert_allclose((left - arrived_s)[1300:], 0.003, atol=1e-9)
    # Of the last nine most are slow after five: then it is no exception any more.
    plan_s = np.full(500, 0.007)
    run(arrived_s[-1] + PERIOD_S * np.arange(1, 501), plan_s, metronome)
    assert metronome.hold_s == pytest.approx(0.007)


def test_no_command_is_held_beyond_the_longest_hold():
    arrived_s = 5.0 + PERIOD_S * np.arange(500)
    plan_s = np.where(np.arange(500) % 2, 0.002, 0.0095)  # half of them are late for good
    left = run(arrived_s, plan_s)
    held = plan_s < LONGEST_S
    assert (left[held] - arrived_s[held]).max() <= LONGEST_S + 1e-9
    # And none leaves before it is ready.
    assert (left >= arrived_s + plan_s - 1e-12).all()
