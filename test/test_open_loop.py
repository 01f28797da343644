"""Open loop: plans that see one observation and then what the model made of it."""

from fakes import artifact_of, cart, cart_model, cart_task, dynamics_of, rolls
import mujoco
import numpy as np
import pytest

from mbrl_ros.bench.returns import drive, find_task, pilot_config
from mbrl_ros.control.build import build_pilot
from mbrl_ros.control.gate import SafetyGate
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.mpc import Mpc
from mbrl_ros.control.tick import Observation, PlanPilot
from mbrl_ros.control.trust import TrustConfig
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import Bounds
from mbrl_ros.planning import ActionSpace
from mbrl_ros.planning.cem import Config, Planner
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.sim.mujoco_robot import MujocoRobot

# Surprise restrains nothing: what is compared is what plans see.
UNRESTRAINED = TrustConfig(slow_above=1.0, hold_above=1.0, stop_above=1.0)
KICK_TICK, KICK_RAD = 15, 0.5


def forward(state, force):
    return np.array([state[0] + 0.1 * state[1], state[1] + 0.1 * force])


@pytest.mark.parametrize(('delay_steps', 'chunk_steps'), [(0, 1), (2, 1), (1, 3)])
def test_plans_go_on_from_the_first_observation(delay_steps, chunk_steps):
    robot = cart()
    model = artifact_of(cart_model(), robot, 2)
    planner = Planner(Config(population=20, num_elites=4, iterations=2),
                      ActionSpace(4, robot.action_min, robot.action_max))
    rollout = Rollout(model, robot, cart_task(), rolls(2))
    mpc = Mpc(dynamics_of(model), rollout, planner, robot, np.random.default_rng(0))
    gate = SafetyGate(robot, 5.0, {'position': Bounds(min=-90.0, max=90.0)})
    pilot = PlanPilot(mpc, gate, robot, delay_steps, None, chunk_steps=chunk_steps,
                      open_loop=True)
    # The model is exact: what it makes of the commands is where the robot truly is.
    state, sent, truth = np.array([0.4, -0.1]), [np.zeros(1)] * delay_steps, []
    for number in range(7):
        truth.append(state)
        shown = Observation(state if number == 0 else np.full(2, 50.0))
        tick = pilot.tick(shown)
        for plan in tick.finished:
            ahead = len(plan.inputs.in_flight) - delay_steps
            np.testing.assert_allclose(plan.inputs.observation, truth[plan.tick - ahead - 1],
                                       atol=1e-5)
        pilot.review(shown, tick)
        sent.append(tick.verdict.command)
        state = forward(state, sent[-1 - delay_steps][0])
    assert tick.decision.tick >= 5
    # The gate judges what is observed.
    assert pilot.tick(Observation(np.full(2, 99.0))).verdict.safe
    # After a pause it looks again.
    pilot.forget()
    plan = pilot.tick(Observation(np.array([0.7, 0.2]))).decision
    np.testing.assert_array_equal(plan.inputs.observation, [0.7, 0.2])
    pilot.close()
    rollout.close()


def fly(episode_steps, watch=lambda tick, body: None, *, open_loop, body):
    """Drive the cart-pole with the shipped model; return the return."""
    task = find_task(body.spec).model_copy(update={'episode_steps': episode_steps})
    config = pilot_config(find_model('cartpole'), task, seed=0, open_loop=open_loop,
                          trust=UNRESTRAINED)
    built = build_pilot(body.spec, task, config, Latch())
    try:
        return drive(built, body, task, 0, watch=watch)
    finally:
        built.close()


def test_closed_loop_beats_open_loop_under_noise():
    body = MujocoRobot(load_robot('cartpole'), observation_noise_std=0.02, noise_seed=1)
    closed, opened = (fly(100, open_loop=open_loop, body=body) for open_loop in (False, True))
    # Swung up after 30 steps or so, and then near 1 a step; or never.
    assert closed > 60.0
    assert opened < 0.5 * closed


class Upright(MujocoRobot):
    """Starts with the pole up and at rest."""

    def reset(self, rng=None):
        super().reset()
        self.data.qpos[1] = np.pi
        mujoco.mj_forward(self.model, self.data)


@pytest.mark.parametrize('open_loop', [False, True])
def test_closed_loop_recovers_from_a_kick_and_open_loop_does_not(open_loop):
    angles = []

    def kick(tick, body):
        angles.append(abs(body.data.qpos[1] - np.pi))
        if tick.index == KICK_TICK:
            body.data.qpos[1] += KICK_RAD
            mujoco.mj_forward(body.model, body.data)
    fly(75, kick, open_loop=open_loop, body=Upright(load_robot('cartpole')))
    assert max(angles[:KICK_TICK]) < 0.25  # both hold it until then
    if open_loop:
        assert min(angles[-20:]) > 0.5 * np.pi  # it hangs
    else:
        assert max(angles) < 1.0  # it never falls
        assert max(angles[-20:]) < 0.45
