"""The fallback ladder: an older plan, then the last command, then nothing."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from mbrl_ros.control.ladder import climb_down, LadderConfig
from mbrl_ros.control.mpc import Decision, Inputs

LAST = np.array([9.0])


def plan_of(tick, horizon=4):
    """Plan of tick n: n.0, n.1, n.2, ..."""
    actions = tick + 0.1 * np.arange(horizon)[:, None]
    inputs = Inputs(tick, np.zeros(2), np.empty((0, 1)), None, {}, np.empty(0), np.empty(0),
                    horizon)
    return Decision(inputs, actions, np.zeros(2), 0.0, 1, 0, 0.0, None, None)


@pytest.mark.parametrize(('shift_steps', 'hold_steps', 'expected'), [
    # Ticks 5 to 11 after a plan for tick 5 that reaches four steps: 5.0, 5.1, 5.2, 5.3.
    (10, 2, [5.0, 5.1, 5.2, 5.3, 9.0, 9.0, None]),
    (1, 2, [5.0, 5.1, 9.0, 9.0, None, None, None]),
    (0, 1, [5.0, 9.0, None, None, None, None, None]),
    (2, 0, [5.0, 5.1, 5.2, None, None, None, None]),
    (0, 0, [5.0, None, None, None, None, None, None])])
def test_rungs_in_order(shift_steps, hold_steps, expected):
    config = LadderConfig(shift_steps=shift_steps, hold_steps=hold_steps)
    found = [climb_down(config, plan_of(5), tick, LAST) for tick in range(5, 12)]
    assert [None if a is None else pytest.approx(a[0]) for a, _ in found] == expected
    names = {5.0: 'plan', 9.0: 'held', None: 'safe'}
    assert [rung for _, rung in found] == [names.get(value, 'shifted') for value in expected]


@pytest.mark.parametrize(('shift_steps', 'counted', 'expected', 'rungs'), [
    # A chunk of two, then the older plan, held for one tick, as far as its steps count.
    (10, 4, [5.0, 5.1, 5.2, 5.3, 9.0, None], 'plan plan shifted shifted held safe'),
    (1, 4, [5.0, 5.1, 5.2, 9.0, None, None], 'plan plan shifted held safe safe'),
    (0, 4, [5.0, 5.1, 9.0, None, None, None], 'plan plan held safe safe safe'),
    (10, 3, [5.0, 5.1, 5.2, 9.0, None, None], 'plan plan shifted held safe safe')])
def test_a_chunk_is_the_plans_own(shift_steps, counted, expected, rungs):
    config = LadderConfig(shift_steps=shift_steps, hold_steps=1)
    plan = plan_of(5)
    plan = replace(plan, inputs=replace(plan.inputs, horizon=counted))
    found = [climb_down(config, plan, tick, LAST, chunk_steps=2) for tick in range(5, 11)]
    assert [None if a is None else pytest.approx(a[0]) for a, _ in found] == expected
    assert [rung for _, rung in found] == rungs.split()


def test_no_plan_is_the_last_rung():
    assert climb_down(LadderConfig(), None, 3, LAST) == (None, 'safe')


@given(shift=st.integers(0, 200), hold=st.integers(0, 200), horizon=st.integers(1, 30),
       age=st.integers(0, 500))
def test_no_action_is_older_than_its_rung_allows(shift, hold, horizon, age):
    config = LadderConfig(shift_steps=shift, hold_steps=hold)
    action, rung = climb_down(config, plan_of(7, horizon), 7 + age, LAST)
    if rung == 'shifted':
        assert 0 < age <= min(shift, horizon - 1)
    if age > min(shift, horizon - 1) + hold:
        assert (action, rung) == (None, 'safe')
