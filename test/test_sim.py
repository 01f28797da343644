"""The simulated robot without ROS: physics, seeds, delay, scales and refusals."""

import numpy as np
import pytest

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.sim.command_delay import CommandDelay
from mbrl_ros.sim.mujoco_robot import MujocoRobot
from mbrl_ros.sim.sketch import joint_positions, sketch

# Capsules of 1000 kg/m^3: 1000 pi r^2 (length + 4 r / 3).
CART_KG = 1000 * np.pi * 0.1**2 * (0.2 + 4 / 3 * 0.1)
POLE_KG = 1000 * np.pi * 0.049**2 * (np.hypot(0.6, 0.001) + 4 / 3 * 0.049)
ZERO = np.zeros(1)


@pytest.fixture
def spec():
    return load_robot('cartpole')


def changed(spec, **changes):
    return RobotSpec.model_validate(spec.model_dump() | changes)


def test_masses_are_those_of_the_figures(spec):
    mass = MujocoRobot(spec).model.body_mass
    np.testing.assert_allclose(mass[1:], [CART_KG, POLE_KG], rtol=1e-6)
    np.testing.assert_allclose(mass[1:], [10.47, 5.02], atol=0.005)


def test_hanging_stays_hanging(spec):
    robot = MujocoRobot(spec)
    np.testing.assert_array_equal(robot.state(), np.zeros(4))
    for _ in range(100):
        robot.step(ZERO)
    # The pole leans by 1 mm over 0.6 m: it settles 0.0017 rad off, and starts with that swing.
    np.testing.assert_allclose(robot.state(), np.zeros(4), atol=0.004)


def test_a_push_accelerates_the_cart_as_computed_by_hand(spec):
    robot = MujocoRobot(spec)
    robot.step(np.array([0.5]))
    # Hanging pole as a rod with round ends, centre 0.3 m below the hinge, inertia I about it. At
    # rest: F = (M + m) a - m l w, 0 = I_h w - m l a (w: angular acceleration, positive about y
    # moves the tip towards -x), I_h = I + m l^2. So a = F / (M + m - (m l)^2 / I_h).
    rod, ball = 1000 * np.pi * 0.049**2 * 0.6, 1000 * 4 / 3 * np.pi * 0.049**3
    inertia = (rod * (0.6**2 / 12 + 0.049**2 / 4)
               + ball * (0.4 * 0.049**2 + 0.3**2 + 3 / 4 * 0.3 * 0.049))
    lever = POLE_KG * 0.3
    acceleration = 50 / (CART_KG + POLE_KG - lever**2 / (inertia + lever * 0.3))
    # Over 0.04 s, damping (1 N s/m), gravity and the swing change it by less than 2 %.
    assert robot.state()[2] == pytest.approx(acceleration * 0.04, rel=0.02)
    assert robot.state()[0] == pytest.approx(acceleration * 0.04**2 / 2, rel=0.02)
    assert robot.state()[3] > 0
    # 0.5 x gear 100
    np.testing.assert_allclose(robot.observe()['joint_states'].effort, [50.0, 0.0])


def test_pushed_to_the_left_first_means_negative(spec):
    robot = MujocoRobot(spec)
    robot.step(np.array([-0.5]))
    assert robot.state()[0] < 0


def test_damping_takes_energy_away(spec):
    robot = MujocoRobot(spec)
    robot.model.opt.enableflags |= 2  # mjENBL_ENERGY
    robot.reset(np.random.default_rng(3))
    energies = []
    for _ in range(50):
        robot.step(ZERO)
        energies.append(float(robot.data.energy.sum()))
    assert np.all(np.diff(energies) < 1e-9)


def test_same_seed_same_start_and_successive_resets_differ(spec):
    def starts(seed):
        robot, rng, rows = MujocoRobot(spec), np.random.default_rng(seed), []
        for _ in range(200):
            robot.reset(rng)
            rows.append(robot.state())
        return np.array(rows)
    first = starts(0)
    np.testing.assert_array_equal(first, starts(0))
    assert not np.array_equal(first, starts(1))
    # 800 numbers of std 0.1: the sample std is within 4 standard errors, 0.1 / sqrt(1600).
    assert first.std() == pytest.approx(0.1, abs=4 * 0.1 / 40)


def test_noise_is_seeded_and_leaves_the_motion_alone(spec):
    clean = MujocoRobot(spec)
    noisy = [MujocoRobot(spec, observation_noise_std=0.01, noise_seed=s) for s in (5, 5, 6)]
    readings = [robot.state() for robot in noisy]
    np.testing.assert_array_equal(readings[0], readings[1])
    assert not np.array_equal(readings[0], readings[2])
    for robot in (clean, *noisy):
        robot.step(np.ones(1))
    np.testing.assert_array_equal(clean.data.qpos, noisy[0].data.qpos)


def test_mass_and_friction_scale(spec):
    heavy = MujocoRobot(spec, mass_scale=2.0, friction_scale=3.0)
    plain = MujocoRobot(spec)
    np.testing.assert_allclose(heavy.model.body_mass, 2 * plain.model.body_mass)
    np.testing.assert_allclose(heavy.model.body_inertia, 2 * plain.model.body_inertia)
    np.testing.assert_allclose(heavy.model.dof_damping, [3.0, 3.0])  # 1 in the MJCF
    for robot in (heavy, plain):
        robot.step(np.ones(1))
    # Twice the mass, the same force: half the speed, but for the friction.
    assert heavy.state()[2] == pytest.approx(plain.state()[2] / 2, rel=0.01)


def test_commands_beyond_the_actuator_are_clipped_by_it_and_counted(spec):
    wild, full = MujocoRobot(spec), MujocoRobot(spec)
    wild.step(np.array([7.0]))
    full.step(np.array([3.0]))
    np.testing.assert_array_equal(wild.state(), full.state())
    assert (wild.num_clipped, full.num_clipped) == (1, 0)


def test_delay_starts_with_the_safe_value_and_keeps_the_order():
    delay = CommandDelay(2, np.array([9.0]))
    assert [float(delay.push(np.array([x]))[0]) for x in (1.0, 2.0, 3.0)] == [9.0, 9.0, 1.0]
    delay.clear()
    assert float(delay.push(np.array([4.0]))[0]) == 9.0
    assert float(CommandDelay(0, np.zeros(1)).push(np.array([5.0]))[0]) == 5.0


def test_sketch_puts_the_tip_where_the_reward_looks_for_it(spec):
    robot = MujocoRobot(spec)
    x, theta = 0.4, 2.0
    positions = joint_positions(spec, np.array([x, theta, 0.0, 0.0]))
    assert positions == {'slider': x, 'hinge': theta}
    drawing = sketch(robot, positions)
    pole = int(np.argmin(np.abs(drawing.radius - 0.049)))
    ends = np.array([drawing.start[pole], drawing.end[pole]])
    # tip = (x - 0.6 sin th, -0.6 cos th), but for the 1 mm lean of the pole.
    tip = np.array([x - 0.6 * np.sin(theta), -0.6 * np.cos(theta)])
    assert np.linalg.norm(ends - tip, axis=1).min() < 0.0011
    assert np.linalg.norm(ends - [x, 0.0], axis=1).min() < 1e-9
    np.testing.assert_array_equal(robot.state(), np.zeros(4))


@pytest.mark.parametrize(('changes', 'text'), [
    ({'simulation': {'mjcf': 'cartpole/robot.xml', 'keyframe': 'up'}},
     "no keyframe 'up'. Allowed: hanging"),
    ({'simulation': {'mjcf': 'nowhere.xml', 'keyframe': 'up'}}, "no MJCF 'nowhere.xml'"),
    ({'simulation': None}, "no 'simulation' section"),
    ({'control_rate_hz': 40.0}, 'control period 0.025 s is no whole number'),
])
def test_refuses_a_spec_that_does_not_fit(spec, changes, text):
    with pytest.raises(SpecError, match=text):
        MujocoRobot(changed(spec, **changes))


@pytest.mark.parametrize(('section', 'field', 'text'), [
    ('action', {'name': 'slider_torque'}, "no actuator 'slider_torque'. Allowed: slider_force"),
    ('action', {'max': 4.0}, r'\[-3.0, 4.0\] beyond the control range \[-3, 3\]'),
    ('observation', {'path': 'position[elbow]'}, 'Allowed joints: slider, hinge'),
    ('observation', {'path': 'temperature[slider]'}, 'allowed: position, velocity, effort'),
])
def test_refuses_fields_that_the_mjcf_lacks(spec, section, field, text):
    fields = [dict(f) for f in spec.model_dump()[section]]
    fields[0] |= field
    with pytest.raises(SpecError, match=text):
        MujocoRobot(changed(spec, **{section: fields}))


def test_refuses_a_broken_mjcf(spec, tmp_path):
    path = tmp_path / 'robot.xml'
    path.write_text('<mujoco><worldbody><joint/></worldbody></mujoco>')
    with pytest.raises(SpecError, match='MuJoCo cannot read it'):
        MujocoRobot(changed(spec, simulation={'mjcf': str(path), 'keyframe': 'x'}))
