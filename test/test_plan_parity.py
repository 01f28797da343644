"""
A plan is the same function everywhere: each planner, propagation and risk, with doubt or without.

The reference is written from the definitions: loops over candidates, particles, members and steps
in float64, and nothing of the package but the planners themselves.
"""

from functools import cache
import itertools
import math
from types import SimpleNamespace
from typing import get_args

from fakes import artifact_of, cart, cart_model, cart_task, linear_model, rolls
import numpy as np
import pytest

from mbrl_ros import planning
from mbrl_ros.core import plugins
from mbrl_ros.planning import ActionSpace, make_planner, optimise
from mbrl_ros.runtime.compile import compile_rollout
from mbrl_ros.runtime.ort import open_ort
from mbrl_ros.runtime.providers import Form
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.rollout_config import Propagation, Risk

PROPAGATIONS, RISKS = get_args(Propagation), get_args(Risk)
HORIZON, PARTICLES = 3, 4
START = np.array([0.2, 0.6])
# Two members that part the more the faster the cart is, each with a std of its own.
GAINS = [np.array([[1.0, 0.3], [0.0, 0.9]]), np.array([[1.0, 0.3], [0.1, 1.2]])]
PUSHES = [np.array([[0.0], [0.3]]), np.array([[0.05], [0.4]])]
OFFSETS = [np.array([0.0, 0.05]), np.array([0.02, -0.1])]
STDS = [np.array([0.05, 0.1]), np.array([0.1, 0.2])]
STEP_STD, SPREAD_P99 = np.array([0.5, 0.2]), 0.4
DOUBT = {'disagreement_weight': 0.7, 'max_disagreement': 2.0, 'doubt_cost': 2.5,
         'adaptive_horizon': True}
COUNTED = 2  # steps, where the horizon is adaptive
BOUNDS = {'termination': {'position': {'min': -0.3, 'max': 0.4}}, 'termination_cost': 4.0}
SETTINGS = {'population': 12, 'num_elites': 4, 'iterations': 2, 'starts': 3, 'step_lengths': 3}


@cache
def setting(propagation, risk, doubt):
    """Return model, robot, task and how candidates are rolled out."""
    robot, task = cart(), cart_task(horizon=HORIZON, **(BOUNDS if doubt else {}))
    model = artifact_of(linear_model(GAINS, PUSHES, OFFSETS, STDS), robot, 2,
                        step_std=STEP_STD.tolist(), spread_p99=SPREAD_P99)
    config = rolls(PARTICLES, propagation, risk=risk, risk_level=0.4, risk_weight=1.5,
                   **(DOUBT if doubt else {}))
    return model, robot, task, config


@cache
def rollout_of(propagation, risk, doubt):
    return Rollout(*setting(propagation, risk, doubt), threads=1)


def draw_of(rollout, doubt):
    draw = rollout.draw(np.random.default_rng(5))
    if doubt:
        object.__setattr__(draw, 'horizon', COUNTED)
    return draw


def step_of(propagation, cloud, action, noise, order):
    """Return the next states of the particles, and how far the members part about each."""
    after, doubts = [None] * len(cloud), []
    for particle, state in enumerate(cloud):
        means = [gain @ state + push @ action + offset
                 for gain, push, offset in zip(GAINS, PUSHES, OFFSETS, strict=True)]
        middle = (means[0] + means[1]) / 2
        square = sum(((mean[i] - middle[i]) / STEP_STD[i])**2
                     for mean in means for i in range(2)) / 4
        doubts.append(math.sqrt(square) / SPREAD_P99)
        if propagation in ('ts_infinity', 'ts1'):
            slot = particle if propagation == 'ts_infinity' else list(order).index(particle)
            member = slot // (len(cloud) // 2)
            after[particle] = means[member] + STDS[member] * noise[slot]
        elif propagation == 'mean':
            after[particle] = middle
        else:
            variance = sum(std**2 for std in STDS) / 2 + sum(
                (mean - middle)**2 for mean in means) / 2
            own = noise[0] if propagation == 'moment_matching' else noise
            after[particle] = middle + np.sqrt(variance) * own[particle]
    if propagation == 'moment_matching':
        mean = sum(after) / len(after)
        std = np.sqrt(sum((state - mean)**2 for state in after) / len(after))
        after = [mean + std * anew for anew in noise[1]]
    return after, doubts


def total_of(path, doubts, sequence, doubt):
    """Return what one particle's path costs, and how many of its steps count."""
    total, price, length = 0.0, None, 0
    for step, (state, apart, action) in enumerate(zip(path, doubts, sequence, strict=True)):
        if doubt and step == COUNTED:
            break
        if price is not None:
            total += price
            continue
        length += 1
        total += (state[0] - 1.0)**2 + 0.1 * action[0]**2
        if doubt:
            total += DOUBT['disagreement_weight'] * apart
            if apart > DOUBT['max_disagreement']:
                price = DOUBT['doubt_cost']
            elif not -0.3 <= state[0] <= 0.4:
                price = BOUNDS['termination_cost']
    return total, length


def risk_of(totals, risk):
    ordered = sorted(totals)
    mean = sum(totals) / len(totals)
    if risk == 'worst':
        return ordered[-1]
    if risk == 'cvar':  # 0.4 of 4 is 1.6, so the worst 2; of the one particle of `mean` it is 1
        worst = ordered[-2:]
        return sum(worst) / len(worst)
    std = math.sqrt(sum((total - mean)**2 for total in totals) / len(totals))
    return mean + 1.5 * std if risk == 'mean_std' else mean


def foresee(sequence, draw, propagation):
    cloud = [START] * (1 if propagation == 'mean' else PARTICLES)
    states, doubts = [], []
    for step, action in enumerate(sequence):
        order = draw.permutation[step] if propagation == 'ts1' else None
        cloud, apart = step_of(propagation, cloud, action, draw.noise[step].astype(float), order)
        states.append(cloud)
        doubts.append(apart)
    return np.array(states), np.array(doubts)


def reference(actions, draw, propagation, risk, doubt):
    costs = []
    for sequence in actions:
        states, doubts = foresee(sequence, draw, propagation)
        totals = [total_of(states[:, k], doubts[:, k], sequence, doubt)[0]
                  for k in range(states.shape[1])]
        costs.append(risk_of(totals, risk))
    return np.array(costs)


def slopes(actions, answer):
    """Return how much what is answered of each sequence changes with it, by central difference."""
    found = np.zeros_like(actions)
    for place in np.ndindex(actions.shape):
        moved = np.zeros_like(actions)
        moved[place] = 1e-5
        found[place] = (answer(actions + moved) - answer(actions - moved))[place[0]] / 2e-5
    return found


COMBINATIONS = list(itertools.product(PROPAGATIONS, RISKS, (False, True)))


@pytest.mark.parametrize(('propagation', 'risk', 'doubt'), COMBINATIONS)
def test_costs_are_the_definition(propagation, risk, doubt):
    rollout = rollout_of(propagation, risk, doubt)
    draw = draw_of(rollout, doubt)
    actions = np.random.default_rng(1).uniform(-2.0, 2.0, (9, HORIZON, 1))
    np.testing.assert_allclose(rollout.costs(START, actions, draw),
                               reference(actions, draw, propagation, risk, doubt), atol=1e-4)


# The form is that of the steps; the risk is taken of what they come to, and the CPU's form has met
# all four.
@pytest.mark.parametrize('doubt', [False, True])
@pytest.mark.parametrize('propagation', PROPAGATIONS)
@pytest.mark.parametrize('form', [Form(), Form(loop=True), Form(split_members=True)], ids=repr)
def test_every_form_is_the_definition(form, propagation, doubt):
    risk = RISKS[PROPAGATIONS.index(propagation) % len(RISKS)]
    rollout = rollout_of(propagation, risk, doubt)
    draw = draw_of(rollout, doubt)
    actions = np.random.default_rng(1).uniform(-2.0, 2.0, (9, HORIZON, 1))
    graph = compile_rollout(*setting(propagation, risk, doubt), form)
    found, = open_ort(graph.SerializeToString(), 'CPUExecutionProvider').run(
        ['cost'], rollout._feeds(START, actions.astype(np.float32), draw))
    np.testing.assert_allclose(found, reference(actions, draw, propagation, risk, doubt),
                               atol=1e-4)


@pytest.mark.parametrize('propagation', PROPAGATIONS)
def test_prediction_tells_of_each_particle(propagation):
    rollout = rollout_of(propagation, 'mean', True)
    draw = draw_of(rollout, doubt=True)
    lengths = set()
    for sequence in np.random.default_rng(2).uniform(-2.0, 2.0, (12, HORIZON, 1)):
        found = rollout.predict(START, sequence, draw)
        states, doubts = foresee(sequence, draw, propagation)
        np.testing.assert_allclose(found.states, states, atol=1e-4)
        expected = [total_of(states[:, k], doubts[:, k], sequence, doubt=True)[1]
                    for k in range(states.shape[1])]
        np.testing.assert_array_equal(found.lengths, expected)
        going = [[doubts[h, k] for k, length in enumerate(expected) if h < length]
                 for h in range(HORIZON)]
        np.testing.assert_allclose(found.disagreement,
                                   [np.mean(row) if row else np.nan for row in going], atol=1e-4)
        lengths.update(expected)
    assert lengths == {1, COUNTED}  # some ended, some did not


def planner_of(name, **settings):
    config = plugins.find(planning, name).Config
    known = {key: value for key, value in (SETTINGS | settings).items()
             if key in config.model_fields}
    return make_planner(name, config(**known),
                        ActionSpace(HORIZON, np.array([-2.0]), np.array([2.0])))


def plan(planner, answer):
    noise = planner.noise(np.random.default_rng(3))
    return optimise(planner, planner.init(), noise, answer)


PLANNERS = plugins.names(planning)
BY_COST = [name for name in PLANNERS if planner_of(name).asks == 'costs']


@pytest.mark.parametrize(('propagation', 'risk', 'doubt'), COMBINATIONS)
@pytest.mark.parametrize('name', BY_COST)
def test_a_plan_is_the_same_by_reference_and_by_graph(name, propagation, risk, doubt):
    rollout = rollout_of(propagation, risk, doubt)
    draw = draw_of(rollout, doubt)
    ours = plan(planner_of(name), lambda actions: rollout.costs(START, actions, draw))
    other = plan(planner_of(name),
                 lambda actions: reference(actions, draw, propagation, risk, doubt))
    assert ours.candidates == other.candidates >= 12
    np.testing.assert_allclose(ours.actions, other.actions, atol=1e-4)


# A gradient in float32 is off by some 1e-7. A step of Adam, at most 0.4 long here, divides it by
# the size of all gradients so far, some 1e-2: 4e-6. Where a risk has a kink both sides agree,
# unless a plan comes within 1e-5 of it.
@pytest.mark.parametrize('risk', RISKS)
@pytest.mark.parametrize('propagation', PROPAGATIONS)
def test_a_plan_by_gradients_is_the_same_by_differences_of_the_reference(propagation, risk):
    rollout = rollout_of(propagation, risk, doubt=False)
    draw = draw_of(rollout, doubt=False)

    def costs(actions):
        return reference(actions, draw, propagation, risk, doubt=False)
    planner = planner_of('gradient', iterations=4)
    ours = plan(planner, lambda actions: rollout.gradients(START, actions, draw))
    other = plan(planner, lambda actions: SimpleNamespace(cost=costs(actions),
                                                          gradient=slopes(actions, costs)))
    assert ours.candidates == other.candidates == 12
    np.testing.assert_allclose(ours.actions, other.actions, atol=1e-5)
    np.testing.assert_allclose(ours.state.actions, other.state.actions, atol=1e-5)


def mean_step(both):
    """Return the mean of the members' next states, of state and action side by side."""
    return step_of('mean', [both[:2]], both[2:], np.zeros(2), None)[0][0]


def charge(both):
    """Return the cost of one step, of the state after it and its action side by side."""
    return total_of([both[:2]], [0.0], [both[2:]], doubt=False)[0]


def differences(function, place):
    """Return derivatives by each input, by central difference; the input is the first axis."""
    moves = 1e-3 * np.eye(len(place))
    return np.array([(function(place + move) - function(place - move)) / 2e-3 for move in moves])


def expanded(actions, draw):
    """Return what a rollout's `expansion` does, by differences of the reference."""
    cost = reference(actions, draw, 'mean', 'mean', doubt=False)
    best = int(np.argmin(cost))
    states = np.vstack([START, foresee(actions[best], draw, 'mean')[0][:, 0]])
    before, after = (np.hstack([part, actions[best]]) for part in (states[:-1], states[1:]))
    step = np.array([differences(mean_step, place).T for place in before])
    slope = np.array([differences(charge, place) for place in after])
    bend = np.array([differences(lambda near: differences(charge, near), place)
                     for place in after])
    return SimpleNamespace(
        cost=cost, best=best, states=states, by_state=step[:, :, :2], by_action=step[:, :, 2:],
        l_x=slope[:, :2], l_u=slope[:, 2:], l_xx=bend[:, :2, :2], l_ux=bend[:, 2:, :2],
        l_uu=bend[:, 2:, 2:])


def test_a_plan_of_ilqr_is_the_same_by_differences_of_the_reference():
    rollout = rollout_of('mean', 'mean', doubt=False)
    draw = draw_of(rollout, doubt=False)
    planner = planner_of('ilqr', iterations=4)
    ours = plan(planner, lambda actions: rollout.expansion(START, actions, draw))
    other = plan(planner, lambda actions: expanded(actions, draw))
    np.testing.assert_allclose(ours.actions, other.actions, atol=1e-4)
    for name in ('jacobian', 'slope', 'curvature'):
        np.testing.assert_allclose(getattr(ours.state, name), getattr(other.state, name),
                                   atol=1e-4)


@pytest.mark.parametrize('doubt', [False, True])
@pytest.mark.parametrize('propagation', PROPAGATIONS)
def test_gradients_are_those_of_the_definition(propagation, doubt):
    risk = RISKS[-1 - PROPAGATIONS.index(propagation) % len(RISKS)]
    rollout = rollout_of(propagation, risk, doubt)
    draw = draw_of(rollout, doubt)
    actions = np.random.default_rng(4).uniform(-1.5, 1.5, (3, HORIZON, 1))
    found = rollout.gradients(START, actions, draw)
    expected = slopes(actions, lambda tried: reference(tried, draw, propagation, risk, doubt))
    np.testing.assert_allclose(found.cost, reference(actions, draw, propagation, risk, doubt),
                               atol=1e-4)
    np.testing.assert_allclose(found.gradient, expected, atol=1e-3)


@pytest.mark.parametrize(('propagation', 'settings'), [
    ('ts_infinity', {'disagreement_weight': 1.0}), ('distribution_sampling', {}),
    ('ts1', {'risk': 'mean_std'})], ids=str)
def test_gradients_are_finite_where_nothing_parts(propagation, settings):
    # Equal members without noise: every std is 0, and its square root has no slope there.
    given = artifact_of(cart_model(), cart(), 2), cart(), cart_task()
    one, other = (Rollout(*given, config, threads=1) for config in (
        rolls(2, propagation, **settings), rolls(2)))
    draw = one.draw(np.random.default_rng(0))
    actions = np.random.default_rng(4).uniform(-1.5, 1.5, (3, 4, 1))
    np.testing.assert_allclose(one.gradients(START, actions, draw).gradient,
                               other.gradients(START, actions, draw).gradient, atol=1e-6)
    one.close()
    other.close()


def test_an_expansion_costs_what_mean_propagation_does():
    rollout = rollout_of('mean', 'mean', doubt=False)
    draw = draw_of(rollout, doubt=False)
    actions = np.random.default_rng(4).uniform(-1.5, 1.5, (5, HORIZON, 1))
    np.testing.assert_allclose(rollout.expansion(START, actions, draw).cost,
                               reference(actions, draw, 'mean', 'mean', doubt=False), atol=1e-4)
