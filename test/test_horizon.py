"""The adaptive horizon: shorter where the members part, or where the robot was missed lately."""

from types import SimpleNamespace

from fakes import artifact_of, cart, cart_model, dynamics_of, linear_model, trust_dict
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from mbrl_ros.control.horizon import AdaptiveHorizon, count_trusted, disagreement
from mbrl_ros.runtime.surprise import Calibration

HORIZON = 12


def dynamics(**model):
    return dynamics_of(artifact_of(cart_model(**model), cart(), 2))


def rule_of(limit=1.0, min_steps=1, unit=1.0, **model):
    """Make a rule with k = 3 to which errors up to 2 predicted std are usual."""
    calibration = Calibration.from_dict(trust_dict(usual_up_to=2.0, steps=3))
    return AdaptiveHorizon(dynamics(**model), calibration, unit, limit, min_steps, HORIZON)


def plan_of(actions, particles=4):
    """Return what a rule wants of a decision: the cart at rest, and stays there."""
    states = np.zeros((len(actions), particles, 2))
    return SimpleNamespace(start=np.zeros(2), actions=np.reshape(actions, (-1, 1)),
                           prediction=SimpleNamespace(states=states))


@pytest.mark.parametrize(('doubt', 'expected'), [
    ([0.1, 1.0, 1.0], 3), ([0.1, 1.1, 0.2], 1), ([2.0, 0.0, 0.0], 0), ([0.1, np.nan, 0.0], 1),
    ([0.1, 0.2, np.inf], 2)])
def test_steps_before_the_first_that_is_doubted(doubt, expected):
    assert count_trusted(np.array(doubt), 1.0) == expected


@given(doubt=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=30), limit=st.floats(0.1, 9.0),
       more=st.floats(0.0, 5.0))
def test_a_higher_limit_never_trusts_less(doubt, limit, more):
    doubt = np.array(doubt)
    steps = count_trusted(doubt, limit)
    assert (doubt[:steps] <= limit).all()
    assert steps == len(doubt) or doubt[steps] > limit
    assert count_trusted(doubt, limit + more) >= steps


def test_disagreement_is_asked_along_the_mean_of_the_particles():
    # Members e = 0 and 1 predict a velocity of (1 + e) p: apart by p, so their standard deviation
    # is p / 2, and the root mean square over two fields, of which the positions agree,
    # p / 2 / sqrt(2).
    gain = [[[1.0, 0.0], [1.0 + e, 0.0]] for e in range(2)]
    model = linear_model(gain, np.zeros((2, 2, 1)), np.zeros((2, 2)), np.zeros((2, 2)))
    plan = plan_of([0.0] * 4)
    plan.start = np.array([1.0, 0.0])
    plan.prediction.states[:, :2, 0] = np.array([[2.0], [4.0], [6.0], [99.0]])  # mean: half
    found = disagreement(dynamics_of(artifact_of(model, cart(), 2)), plan)
    np.testing.assert_allclose(found, np.array([1.0, 1.0, 2.0, 3.0]) / 2 / np.sqrt(2), rtol=1e-6)


def test_members_that_part_end_the_horizon():
    # Velocities 0.4 apart everywhere: 0.4 / 2 / sqrt(2) = 0.141 typical steps.
    plan = plan_of([0.0] * HORIZON)
    for unit, expected in ((0.15, HORIZON), (0.14, 2)):
        rule = rule_of(unit=unit, min_steps=2, disagreement=0.4)
        assert rule.steps == HORIZON  # nothing is known
        rule.planned(plan)
        rule.update({})
        assert rule.steps == expected


@pytest.mark.parametrize(('signals', 'expected'), [
    # Errors of 2 are one unit: after k = 3 steps one unit of doubt, the limit: three steps.
    ({'one_step': 0.1, 'k_step': 2.0}, 3), ({'one_step': 2.0, 'k_step': 0.1}, 3),
    ({'one_step': 1.0, 'k_step': 0.8}, 6), ({'one_step': 0.5}, 12), ({'one_step': 0.45}, 12),
    ({'one_step': 20.0}, 2), ({'one_step': np.inf}, 2), ({}, 12)])
def test_errors_add_up_over_the_steps(signals, expected):
    rule = rule_of(min_steps=2)
    rule.update(signals)
    assert rule.steps == expected


def test_errors_are_averaged_over_k_moments_and_not_across_a_gap():
    rule = rule_of()
    found = []
    for one_step in (0.3, 0.3, 5.4, 0.3, 0.3, 0.3):
        rule.update({'one_step': one_step})
        found.append(rule.steps)
    # Means of three: 0.3, 0.3, 2, 2, 2, 0.3; in units of 2: 0.15 and 1; steps 3 / 0.15 and 3 / 1.
    assert found == [12, 12, 3, 3, 3, 12]
    rule.update({'one_step': 6.0})
    # Means 0.3 + 0.3 + 6 = 2.2, in units of 2 1.1: 3 / 1.1 steps.
    assert rule.steps == 2
    for signals in ({}, {}, {'one_step': 6.0}, {'one_step': 0.6}):
        rule.update(signals)
        found.append(rule.steps)
    # Nothing is known of the lost moments: the last mismatch stays. After them 6, then the mean of
    # 6 and 0.6: 3 and 1.65 units, 3 / 3 and 3 / 1.65 steps.
    assert found[6:] == [2, 2, 1, 1]
    rule.forget()
    assert rule.steps == HORIZON


def test_each_error_stays_until_it_is_known_again():
    rule, found = rule_of(), []
    for signals in ({'one_step': 0.1, 'k_step': 2.0}, {}, {'one_step': 0.1}, {'one_step': 0.1},
                    {'one_step': 0.1, 'k_step': 0.1}):
        rule.update(signals)
        found.append(rule.steps)
    # One lost observation leaves the k-step error unknown for k = 3 ticks.
    assert found == [3, 3, 3, 3, 12]


def test_a_plan_shorter_than_the_least_horizon_counts_whole():
    rule = rule_of(min_steps=50)
    rule.update({'one_step': 100.0})
    assert rule.steps == HORIZON
