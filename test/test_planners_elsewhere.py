"""Our MPPI and iCEM beside pytorch-mppi and pytorch-icem, on the same problem."""

import numpy as np
import pytest
from pytorch_icem import iCEM
from pytorch_mppi import MPPI
import torch

from mbrl_ros.planning import ActionSpace, icem, mppi, optimise
from mbrl_ros.planning._noise import ColoredNoise

HORIZON, DT_S, STEPS, SEEDS = 12, 0.1, 15, 20
LIMIT = 2.0
SPACE = ActionSpace(HORIZON, np.array([-LIMIT, -LIMIT]), np.array([LIMIT, LIMIT]))
START = np.array([1.0, -0.5, 0.0, 0.0])  # position and velocity in the plane


def step(state, action):
    """Move a point mass by an acceleration; arrays of NumPy and torch alike."""
    next_state = 1.0 * state
    next_state[..., :2] += DT_S * state[..., 2:]
    next_state[..., 2:] += DT_S * action
    return next_state


def stage_cost(state, action):
    return (state[..., :2]**2).sum(-1) + 0.1 * (state[..., 2:]**2).sum(-1) \
        + 0.01 * (action**2).sum(-1)


def costs(state, actions):
    """Return the costs (P,) of candidates (P, H, A)."""
    states, total = np.tile(state, (len(actions), 1)), np.zeros(len(actions))
    for t in range(HORIZON):
        states = step(states, actions[:, t])
        total += stage_cost(states, actions[:, t])
    return total


def drive(act):
    """Return the cost of an episode; `act` maps a state to an action."""
    state, total = START.copy(), 0.0
    for _ in range(STEPS):
        action = np.clip(act(state), -LIMIT, LIMIT)
        state = step(state, action)
        total += float(stage_cost(state, action))
    return total


def drive_ours(planner, seed):
    noise = planner.noise(np.random.default_rng(seed))
    found = planner.init()

    def act(state):
        nonlocal found
        plan = optimise(planner, found, noise, lambda actions: costs(state, actions))
        found = planner.shift(plan.state, 1)
        return plan.actions[0]
    return drive(act)


def their_mppi(std, temperature, population):
    return MPPI(step, stage_cost, 4, torch.diag(torch.tensor([std**2] * 2, dtype=torch.float64)),
                num_samples=population, horizon=HORIZON, lambda_=temperature,
                u_min=torch.tensor([-LIMIT] * 2), u_max=torch.tensor([LIMIT] * 2),
                U_init=torch.zeros(HORIZON, 2, dtype=torch.float64))


def our_mppi(std, temperature, population):
    return mppi.Planner(mppi.Config(
        population=population, temperature=temperature, temperature_unit='cost', action_cost=1.0,
        std=std / (2 * LIMIT)), SPACE)


def test_one_update_of_mppi_is_theirs():
    std, temperature = 0.9, 3.0
    ours, theirs = our_mppi(std, temperature, 50), their_mppi(std, temperature, 50)
    mean = np.random.default_rng(1).uniform(-1.5, 1.5, (HORIZON, 2))
    draws = ColoredNoise(np.random.default_rng(0), HORIZON, 2, 0.0).draw(50)

    class Given:
        def draw(self, count):
            return draws
    theirs.U, theirs._sample_noise = torch.from_numpy(mean), lambda shape: torch.from_numpy(
        std * draws)
    theirs.command(START, shift_nominal_trajectory=False)
    state = mppi.State(mean)
    actions = ours.sample(state, Given())
    assert (np.abs(actions) == LIMIT).any()  # some are clipped, here as there
    after = ours.update(state, actions, costs(START, actions))
    np.testing.assert_allclose(after.mean, theirs.U.numpy(), atol=1e-5)
    assert np.abs(after.mean - mean).max() > 0.1
    # The next plan begins where theirs does.
    theirs.shift_nominal_trajectory()
    np.testing.assert_allclose(ours.shift(after, 1).mean, theirs.U.numpy(), atol=1e-5)


def check_alike(ours, theirs):
    """Compare costs by seed: the same method's means differ by chance alone, and by little."""
    error = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / SEEDS)
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error
    assert 4 * error < 0.1 * np.mean(theirs)  # so that a tenth more would be told


def test_mppi_reaches_what_theirs_does():
    settings, ours, theirs = (0.6, 0.3, 200), [], []
    for seed in range(SEEDS):
        ours.append(drive_ours(our_mppi(*settings), seed))
        torch.manual_seed(seed)
        planner = their_mppi(*settings)
        theirs.append(drive(lambda state, planner=planner: planner.command(state).numpy()))
    check_alike(ours, theirs)


@pytest.mark.filterwarnings('ignore:To copy construct:UserWarning')  # theirs
def test_icem_reaches_what_theirs_does():
    config = icem.Config(population=60, num_elites=10, iterations=3, decay=1.0, smoothing=0.1,
                         noise_exponent=2.0, keep_share=0.3, initial_std=0.25)
    ours, theirs = [], []

    def clipped(actions):  # theirs knows no limits
        return torch.clamp(actions, -LIMIT, LIMIT)
    for seed in range(SEEDS):
        ours.append(drive_ours(icem.Planner(config, SPACE), seed))
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (theirs draws from the global one)
        planner = iCEM(lambda state, action: step(state, clipped(action)),
                       lambda states, actions: stage_cost(states, clipped(actions)).sum(-1), 4, 2,
                       sigma=torch.full((1, 2), LIMIT / 2), num_samples=60, num_elites=10,
                       horizon=HORIZON, elites_keep_fraction=0.3, alpha=0.1, noise_beta=2.0,
                       warmup_iters=3, online_iters=3)
        theirs.append(drive(lambda state, planner=planner: planner.command(state).numpy()))
    check_alike(ours, theirs)
