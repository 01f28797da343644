"""A million inputs to the safety gate: nothing but allowed commands ever comes out."""

from fakes import cart
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np

from mbrl_ros.control.gate import SafetyGate
from mbrl_ros.control.latch import Latch
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import Bounds

EXAMPLES, CHECKS = 200, 5000  # 1e6 together
ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e308, -1e308, 5e-324, 1e-9, -1e-9])


def two_axes(low, high, rate, safe):
    """The cart with a second action, each with a range, rate limit and safe value of its own."""
    data = cart().model_dump(exclude_none=True)
    first = data['action'][0]
    data['action'] = [
        first | {'name': f'axis_{i}', 'path': f'data[{i}]', 'min': low[i], 'max': high[i],
                 'rate_limit': rate[i], 'safe_value': safe[i]} for i in range(2)]
    return RobotSpec.model_validate(data)


@st.composite
def robots(draw):
    number = st.floats(-1e3, 1e3, allow_subnormal=False)
    low = [draw(number) for _ in range(2)]
    high = [value + draw(st.floats(1e-3, 1e3)) for value in low]
    safe = [min(a + draw(st.floats(0.0, 1.0)) * (b - a), b)
            for a, b in zip(low, high, strict=True)]
    return two_axes(low, high, [draw(st.floats(1e-3, 1e4)) for _ in range(2)], safe)


def random_actions(rng, robot):
    """Actions inside, at, just beyond and far from the limits, and numbers that are none."""
    low, high = robot.action_min, robot.action_max
    inside = rng.uniform(low, high, (CHECKS, 2))
    edges = np.where(rng.random((CHECKS, 2)) < 0.5, low, high) \
        + rng.choice([0.0, 1e-10, -1e-10, 1e-8, -1e-8], (CHECKS, 2))
    far = rng.normal(0.0, 1e4, (CHECKS, 2))
    odd = rng.choice(ODD, (CHECKS, 2))
    return np.choose(rng.choice(4, (CHECKS, 1), p=[0.6, 0.2, 0.1, 0.1]),
                     [inside, edges, far, odd])


@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(robot=robots(), seed=st.integers(0, 2**32 - 1))
def test_no_command_leaves_the_limits_or_the_rate_limit_or_is_no_number(robot, seed):
    rng, latch = np.random.default_rng(seed), Latch()
    gate = SafetyGate(robot, 5.0, {'position': Bounds(min=-1.0, max=1.0)}, latch)
    actions = random_actions(rng, robot)
    positions = rng.choice([0.0, 1.0, 1.5, np.nan], CHECKS, p=[0.9, 0.05, 0.03, 0.02])
    spreads = rng.choice([0.0, 5.0, 5.1, np.nan, np.inf], CHECKS, p=[0.9, 0.04, 0.02, 0.02, 0.02])
    problems = rng.choice(['', 'stale'], CHECKS, p=[0.95, 0.05])
    kinds = rng.random(CHECKS)
    last, step = robot.safe_value, robot.action_rate_limit * robot.dt_s
    outs, lasts, safes = np.empty((CHECKS, 2)), np.empty((CHECKS, 2)), np.zeros(CHECKS, bool)
    for i in range(CHECKS):
        if kinds[i] < 0.01:
            latch.trip('stop') if kinds[i] < 0.005 else latch.release()
        verdict = gate.check(None if kinds[i] > 0.99 else actions[i],
                             None if 0.98 < kinds[i] < 0.99 else np.array([positions[i], 0.0]),
                             str(problems[i]), spreads[i])
        lasts[i], outs[i], safes[i] = last, verdict.command, verdict.safe
        if latch.reason or problems[i] or not spreads[i] <= 5.0:
            assert verdict.safe
        last = verdict.command
    assert np.isfinite(outs).all()
    assert ((outs >= robot.action_min) & (outs <= robot.action_max)).all()
    assert (outs[safes] == robot.safe_value).all()
    # What is no safe value moved no further than the rate limit; rounding of last + step apart.
    moved = np.abs(outs - lasts)[~safes]
    slack = 4e-16 * (np.abs(lasts[~safes]) + step) + 1e-9
    assert (moved <= step + slack).all()
    # Both kinds were seen, or this test would prove nothing.
    assert safes.any()
    assert not safes.all()
