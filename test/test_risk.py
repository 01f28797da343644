"""Risk by hand, and as what it must be whatever the numbers are."""

from functools import cache
from typing import get_args

from fakes import artifact_of, cart, cart_model, cart_task, rolls
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from spox import argument, build, Tensor

from mbrl_ros.runtime.ort import open_ort
from mbrl_ros.runtime.risk import RISKS
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.rollout_config import Risk

COSTS = [1.0, 10.0, 2.0, 3.0, 4.0]


@cache
def session(risk, level, weight, count):
    costs = argument(Tensor(np.float32, (count, 'P')))
    config = rolls(count, risk=risk, risk_level=level, risk_weight=weight)
    model = build({'costs': costs}, {'cost': RISKS[risk](costs, config)})
    return open_ort(model.SerializeToString(), 'CPUExecutionProvider')


def risk_of(costs, risk, level=0.2, weight=1.0):
    columns = np.array(costs, np.float32).reshape(len(costs), -1)
    return session(risk, level, weight, len(costs)).run(['cost'], {'costs': columns})[0]


# Mean 4; squares of the deviations 9, 36, 4, 1, 0: variance 10. 0.2 of 5 is one, 0.21 two.
@pytest.mark.parametrize(('settings', 'expected'), [
    (('mean',), 4.0), (('worst',), 10.0), (('mean_std', 0.2, 2.0), 4.0 + 2.0 * np.sqrt(10.0)),
    (('cvar', 0.2), 10.0), (('cvar', 0.21), 7.0), (('cvar', 0.01), 10.0), (('cvar', 0.6), 17 / 3),
    (('cvar', 1.0), 4.0)])
def test_by_hand(settings, expected):
    assert risk_of(COSTS, *settings) == pytest.approx([expected], rel=1e-6)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8),
       st.floats(-100.0, 100.0, width=32))
def test_each_risk_lies_between_mean_and_worst_and_moves_with_the_costs(costs, shift):
    mean, worst = risk_of(costs, 'mean')[0], risk_of(costs, 'worst')[0]
    for risk in get_args(Risk):
        value = risk_of(costs, risk, level=0.5, weight=0.1)[0]
        assert value >= mean - 1e-2
        # The std of n numbers is at most sqrt(n - 1) (worst - mean): 0.1 of it is less than that.
        assert value <= worst + 1e-2
        moved = risk_of([cost + shift for cost in costs], risk, level=0.5, weight=0.1)[0]
        assert moved == pytest.approx(value + shift, abs=1e-2)


@pytest.mark.parametrize('risk', get_args(Risk))
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_particle_that_diverges_takes_its_candidate_with_it(risk, value):
    rollout = Rollout(artifact_of(cart_model(std=0.5), cart(), 2), cart(), cart_task(),
                      rolls(6, risk=risk), threads=1)
    draw = rollout.draw(np.random.default_rng(0))
    assert np.isfinite(rollout.costs(np.zeros(2), np.zeros((2, 4, 1)), draw)).all()
    draw.noise[2, 3, 1] = value
    assert not np.isfinite(rollout.costs(np.zeros(2), np.zeros((2, 4, 1)), draw)).any()
    rollout.close()
