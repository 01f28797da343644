"""Value and policy beside the model, by what is known of linear systems; learned cost terms."""

from dataclasses import replace

from fakes import artifact_of, cart, cart_model, cart_task, linear_model, rolls
import numpy as np
import pytest
from scipy.linalg import solve_discrete_are
from spox import argument, build, inline, Tensor
import spox.opset.ai.onnx.v21 as op

from mbrl_ros import planning
from mbrl_ros.cli.trial import realised_return
from mbrl_ros.control.exploitation import ExploitationCheck, ExploitationConfig
from mbrl_ros.core import plugins
from mbrl_ros.core.errors import ModelError, SpecError
from mbrl_ros.costs import CostFunction
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.data.resample import Episode
from mbrl_ros.planning import ActionSpace, make_planner, optimise
from mbrl_ros.planning.cem import Config, Planner
from mbrl_ros.runtime.rollout import Rollout

GAIN, PUSH = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.0], [0.1]])
ON_POSITION, ON_FORCE = np.diag([1.0, 0.0]), np.array([[0.1]])
HOME = {'goal': [{'name': 'where', 'value': 0.0}]}
# Without limits in the way the best force is -FEEDBACK x state, and what is still to be paid is
# state' RICCATI state, less the present state's own cost: ours is that of the state to come.
RICCATI = solve_discrete_are(GAIN, PUSH, ON_POSITION, ON_FORCE)
FEEDBACK = np.linalg.solve(ON_FORCE + PUSH.T @ RICCATI @ PUSH, PUSH.T @ RICCATI @ GAIN)
TO_GO = RICCATI - ON_POSITION


def network(path, function, size=2, goal=0, kind=np.float32, batch='N'):
    """Write a network of states and, with a size, of a goal; `function` returns its outputs."""
    inputs = {'state': argument(Tensor(kind, (batch, size)))}
    if goal:
        inputs['goal'] = argument(Tensor(kind, (goal,)))
    path.write_bytes(build(inputs, function(*inputs.values())).SerializeToString())
    return str(path)


def quadratic(state):
    product = op.matmul(state, op.const(TO_GO.astype(np.float32)))
    return {'cost_to_go': op.reduce_sum(op.mul(product, state), op.const(np.array([1])),
                                        keepdims=0)}


def feedback(state):
    return {'action': op.matmul(state, op.const(-FEEDBACK.T.astype(np.float32)))}


def rollout_of(horizon, members=2, **settings):
    return Rollout(artifact_of(cart_model(members), cart(), members), cart(),
                   cart_task(horizon=horizon, **HOME), rolls(members, **settings), threads=1)


def best_from(state, steps):
    """Return the optimal states (T + 1, S) and forces (T, 1)."""
    states, forces = [state], []
    for _ in range(steps):
        forces.append(-FEEDBACK @ states[-1])
        states.append(GAIN @ states[-1] + PUSH @ forces[-1])
    return np.array(states), np.array(forces)


def drive(rollout, planner, steps, seed):
    """Return what a plan a step costs from 0.4 m, and the candidates of a plan."""
    rng, state = np.random.default_rng(seed), np.array([0.4, 0.0])
    noise, memory, total = planner.noise(rng), planner.init(), 0.0
    for _ in range(steps):
        draw = rollout.draw(rng)
        plan = optimise(planner, memory, noise, lambda actions, given=(state, draw): rollout.costs(
            given[0], actions, given[1]), rollout.proposals(state, draw))
        state = GAIN @ state + PUSH @ plan.actions[0]
        total += state[0]**2 + 0.1 * plan.actions[0, 0]**2
        memory = planner.shift(plan.state, 1)
    rollout.close()
    return total, plan.candidates


def cem(horizon, **settings):
    return Planner(Config(**settings), ActionSpace(horizon, np.array([-2.0]), np.array([2.0])))


# Over one step and over five, with particles that all end, and with a horizon that ends sooner.
@pytest.mark.parametrize('settings', [
    {}, {'risk': 'worst'}, {'adaptive_horizon': True}, {'propagation': 'mean'},
    {'max_disagreement': 1.0, 'doubt_cost': 1.0}], ids=str)
def test_value_is_what_is_still_to_be_paid(tmp_path, settings):
    rollout = rollout_of(5, value=network(tmp_path / 'value.onnx', quadratic), **settings)
    start = np.array([0.4, -0.2])
    _, forces = best_from(start, 5)
    for horizon in (5, 2) if 'adaptive_horizon' in settings else (5,):
        draw = replace(rollout.draw(np.random.default_rng(0)), horizon=horizon)
        # However far the plan reaches: it and the rest cost what the whole way costs.
        assert rollout.costs(start, forces[None], draw)[0] == pytest.approx(
            start @ TO_GO @ start, rel=1e-5)
    rollout.close()


def test_value_of_an_ended_particle_is_that_of_its_last_state_that_counts(tmp_path):
    rollout = Rollout(
        artifact_of(cart_model(disagreement=3.0), cart(), 2), cart(), cart_task(horizon=5, **HOME),
        rolls(2, max_disagreement=1e-3, doubt_cost=0.5,
              value=network(tmp_path / 'value.onnx', quadratic)), threads=1)
    found = rollout.costs(np.array([1.0, 0.0]), np.zeros((1, 5, 1)),
                          rollout.draw(np.random.default_rng(0)))
    # Both end at the first step, at (1, 0) and (1, 3): 1 for the place, 4 x 0.5, and the rest.
    rest = [state @ TO_GO @ state for state in np.array([[1.0, 0.0], [1.0, 3.0]])]
    assert found[0] == pytest.approx(1.0 + 2.0 + np.mean(rest), rel=1e-5)
    rollout.close()


def test_five_steps_and_a_value_do_no_worse_than_twenty_five_without(tmp_path):
    value = network(tmp_path / 'value.onnx', quadratic)
    start = np.array([0.4, 0.0])
    budget = {'population': 60, 'num_elites': 8, 'iterations': 4}
    for seed in range(2):
        short, _ = drive(rollout_of(5, value=value), cem(5, **budget), 40, seed)
        blind, _ = drive(rollout_of(5), cem(5, **budget), 40, seed)
        long, _ = drive(rollout_of(25), cem(25, **budget), 40, seed)
        assert short <= long
        assert short < 1.02 * start @ TO_GO @ start  # the optimum
        assert blind > 1.5 * short  # five steps alone see no gain in braking


def test_a_policy_that_proposes_saves_two_thirds_of_the_samples(tmp_path):
    policy = network(tmp_path / 'policy.onnx', feedback)
    for seed in range(2):
        large, most = drive(rollout_of(25), cem(25, population=60, num_elites=8, iterations=3),
                            40, seed)
        tiny, few = drive(rollout_of(25, policy=policy),
                          cem(25, population=8, num_elites=2, iterations=2, execute='best'),
                          40, seed)
        assert few <= most / 3
        assert tiny <= large


def test_proposals_follow_each_member_inside_the_limits(tmp_path):
    robot = cart()
    rollout = Rollout(artifact_of(cart_model(3, std=1.0, disagreement=0.5), robot, 3), robot,
                      cart_task(**HOME),
                      rolls(3, policy=network(tmp_path / 'policy.onnx', feedback)), threads=1)
    draw = rollout.draw(np.random.default_rng(0))
    start = np.array([-0.5, 0.3])
    found = rollout.proposals(start, draw)
    assert found.shape == (3, 4, 1)
    for member, sequence in enumerate(found):
        state = start
        for force in sequence:
            assert force == pytest.approx(np.clip(-FEEDBACK @ state, -2.0, 2.0), abs=1e-5)
            state = GAIN @ state + PUSH @ force + [0.0, 0.5 * member]
    assert rollout.proposals(np.array([9.0, 9.0]), draw)[0, 0, 0] == -2.0
    rollout.close()


def test_without_a_policy_nothing_is_proposed():
    rollout = rollout_of(2)
    assert rollout.proposals(np.zeros(2), rollout.draw(np.random.default_rng(0))) is None
    rollout.close()


@pytest.mark.parametrize('name', plugins.names(planning))
def test_proposals_join_the_first_round_of_every_planner(name):
    rollout = rollout_of(4, propagation='mean')  # iLQR knows no other
    draw, start = rollout.draw(np.random.default_rng(0)), np.array([0.4, 0.0])
    _, forces = best_from(start, 4)
    config = plugins.find(planning, name).Config
    known = {key: value for key, value in (('population', 12), ('num_elites', 3), ('starts', 3))
             if key in config.model_fields}
    planner = make_planner(name, config(**known),
                           ActionSpace(4, np.array([-2.0]), np.array([2.0])))
    asked = []

    def evaluate(actions):
        asked.append(len(actions))
        return getattr(rollout, planner.asks)(start, actions, draw)

    def run(proposals):
        asked.clear()
        return optimise(planner, planner.init(), planner.noise(np.random.default_rng(0)), evaluate,
                        proposals)
    alone = run(None)
    first, *others = asked
    joined = run(np.repeat(forces[None], 2, axis=0))
    assert asked[0] == first + 2
    assert set(asked[1:]) <= set(others)  # what is tried later is the planner's own
    if planner.asks != 'expansion':  # iLQR may be done sooner
        assert joined.candidates == alone.candidates + 2
    rollout.close()


def test_copies_of_a_proposal_do_not_hold_the_search_back():
    def valley(actions):
        return ((actions - 0.8)**2).sum(axis=(1, 2))
    planner = cem(12, population=100, num_elites=10, iterations=8)
    copies = np.full((10, 12, 1), 0.5)
    # Ten members of a policy agree on a sequence that is better than all first samples. In every
    # round they would be elites until others are cheaper, and leave 0.18 to 0.33 of their cost.
    for seed in range(3):
        plan = optimise(planner, planner.init(), planner.noise(np.random.default_rng(seed)),
                        valley, copies)
        assert valley(plan.actions[None])[0] < 0.1 * valley(copies)[0]


def test_value_and_policy_may_know_the_goal(tmp_path):
    def away(state, goal):
        position = op.slice(state, *(op.const(np.array([n])) for n in (0, 1, 1)))
        return op.sub(goal, position)  # (N, 1)
    value = network(tmp_path / 'value.onnx', lambda state, goal: {'cost_to_go': op.squeeze(
        op.abs(away(state, goal)), op.const(np.array([1])))}, goal=1)
    policy = network(tmp_path / 'policy.onnx', lambda state, goal: {'action': away(state, goal)},
                     goal=1)
    rollout = rollout_of(1, value=value, policy=policy)
    for goal in (0.0, 3.0):
        rollout.set_goal(np.array([goal]))
        draw = rollout.draw(np.random.default_rng(0))
        # It stays at 1: (1 - goal)^2, and |1 - goal| for the rest.
        assert rollout.costs(np.array([1.0, 0.0]), np.zeros((1, 1, 1)), draw)[0] == pytest.approx(
            (1.0 - goal)**2 + abs(1.0 - goal))
        assert rollout.proposals(np.array([1.0, 0.0]), draw)[0, 0, 0] == goal - 1.0
    rollout.close()


def first_field(state):
    return op.gather(state, op.const(np.int64(0)), axis=1)


@pytest.mark.parametrize(('make', 'text'), [
    (lambda path: network(path, lambda s: {'value': first_field(s)}),
     r"outputs \{'value': \('N',\)\}; expected .* outputs \{'cost_to_go': \('N',\)\}"),
    (lambda path: network(path, lambda s: {'cost_to_go': first_field(s)}, size=3),
     r"inputs \{'state': \('N', 3\)\} .* expected inputs \{'state': \('N', 2\)\}"),
    (lambda path: network(path, lambda s: {'cost_to_go': first_field(s)}, batch=8),
     r"inputs \{'state': \(8, 2\)\}"),
    (lambda path: network(path, lambda s: {'cost_to_go': first_field(s)}, kind=np.float64),
     'state is not a tensor of float32'),
    (lambda path: network(path, lambda s: {'cost_to_go': op.log(first_field(s))}),
     'cost_to_go is not finite for finite states'),
    (lambda path: str(path.write_bytes(b'no model')) and str(path), 'not a valid ONNX model'),
    (str, 'No such file')])
def test_a_value_that_breaks_the_contract_is_refused(tmp_path, make, text):
    with pytest.raises(ModelError, match=text) as caught:
        rollout_of(1, value=make(tmp_path / 'value.onnx'))
    assert 'value.onnx' in str(caught.value)


def test_a_policy_that_breaks_the_contract_is_refused(tmp_path):
    path = network(tmp_path / 'policy.onnx', lambda s: {'action': s})
    with pytest.raises(ModelError, match=r"'action': \('N', 2.* expected .*'action': \('N', 1"):
        rollout_of(1, policy=path)


def test_another_value_in_the_same_file_is_another_graph(tmp_path):
    path, found = tmp_path / 'value.onnx', []
    for scale in (1.0, 2.0):
        network(path, lambda s, scale=scale: {'cost_to_go': op.mul(
            first_field(s), op.const(np.float32(scale)))})
        rollout = rollout_of(1, value=str(path))
        found.append(rollout.costs(np.array([1.0, 0.0]), np.zeros((1, 1, 1)),
                                   rollout.draw(np.random.default_rng(0)))[0])
        rollout.close()
    assert found == pytest.approx([2.0, 3.0])


LEARNED = {'cost': [{'term': 'learned_reward', 'weight': 2.0},
                    {'term': 'learned_termination', 'weight': 5.0},
                    {'term': 'squared', 'name': 'effort', 'params': {'signal': 'force'}}],
           'goal': [], 'horizon': 2}


def with_heads():
    """Return the cart's model; member e's reward is (e + 1) x velocity + force, ends at 0.1 e."""
    model = cart_model(disagreement=1.0)
    plain = argument(Tensor(np.float32, (2, 'N', 2))), argument(Tensor(np.float32, (2, 'N', 1)))
    found = inline(model)(observation=plain[0], action=plain[1])
    velocity = op.gather(plain[0], op.const(np.int64(1)), axis=2)
    force = op.squeeze(plain[1], op.const(np.array([2])))
    factor = op.const(np.array([[1.0], [2.0]], np.float32))
    reward = op.add(op.mul(velocity, factor), force)
    ends = op.add(op.mul(velocity, op.const(np.float32(0))),
                  op.const(np.array([[0.0], [0.1]], np.float32)))
    return build({'observation': plain[0], 'action': plain[1]},
                 dict(found) | {'reward': reward, 'termination': ends})


# Velocity 1 at first. Members add 0 and 1 to it, beside the force 1, a tenth of it: then 1.1 and
# 2.1, or 1.6 on average. Rewards at the first step 1 + 1 and 2 + 1; at the second, force 2,
# 1.1 + 2 and 4.2 + 2 by particles that keep their members, or 1.6 + 2 and 3.2 + 2 by both.
@pytest.mark.parametrize(('settings', 'reward'), [
    ({}, (2.0 + 3.0) / 2 + (3.1 + 6.2) / 2),
    ({'disagreement_weight': 1e-9}, (2.0 + 3.0) / 2 + (3.1 + 6.2) / 2),
    ({'particles': 4}, (2.0 + 3.0) / 2 + (3.1 + 6.2) / 2),
    ({'propagation': 'mean'}, (2.0 + 3.0) / 2 + (3.6 + 5.2) / 2)], ids=str)
def test_heads_are_cost_terms(settings, reward):
    task = cart_task(**LEARNED)
    rollout = Rollout(artifact_of(with_heads(), cart(), 2), cart(), task,
                      rolls(**{'particles': 2} | settings), threads=1)
    found = rollout.predict(np.array([0.0, 1.0]), np.array([[1.0], [2.0]]),
                            rollout.draw(np.random.default_rng(0)))
    np.testing.assert_allclose(found.terms, [-reward, 2 * 0.05, 5.0], rtol=1e-5)
    assert found.cost == pytest.approx(-2 * reward + 5 * 0.1 + 5.0, rel=1e-5)
    rollout.close()


def test_ts1_heads_are_those_of_each_particle():
    rollout = Rollout(artifact_of(with_heads(), cart(), 2), cart(), cart_task(**LEARNED),
                      rolls(4, 'ts1', risk='worst'), threads=1)
    draw = rollout.draw(np.random.default_rng(3))
    cost = rollout.costs(np.array([0.0, 1.0]), np.zeros((1, 2, 1)), draw)[0]
    totals = []
    for particle in range(4):
        velocity, total = 1.0, 0.0
        for order in draw.permutation:
            member = list(order).index(particle) // 2
            total += -2.0 * (member + 1) * velocity + 5.0 * 0.1 * member
            velocity += member
        totals.append(total)
    assert len(set(totals)) > 2
    assert cost == pytest.approx(max(totals), rel=1e-5)
    rollout.close()


def test_a_model_without_the_head_is_refused():
    with pytest.raises(ModelError, match=r'no head reward, termination, .* train anew'):
        Rollout(artifact_of(cart_model(), cart(), 2), cart(), cart_task(**LEARNED), rolls(2))


def test_real_transitions_are_charged_by_what_was_recorded():
    task, weights = cart_task(**LEARNED), np.array([2.0, 5.0, 1.0])
    states, actions = np.zeros((3, 2)), np.array([[1.0], [2.0]])
    labels = np.array([3.0, 4.0]), np.array([0.0, 1.0])
    judged = Dataset((Episode(states, actions, 0, 'bag', *labels),), cart())
    # Rewards 3 + 4, one end, forces 1 and 2: minus (-2 x 7 + 5 + 5).
    assert realised_return(judged, cart(), task) == 4.0
    plain = Dataset((Episode(states, actions, 0, 'bag'),), cart())
    with pytest.raises(SpecError, match='learned_reward, learned_termination: reward, termination '
                                        'is known where a model foresees it'):
        realised_return(plain, cart(), task)
    # The check of kept promises leaves them out, of what was promised and of what came.
    function = CostFunction(task, cart())
    check = ExploitationCheck(function, 1, 0, ExploitationConfig(window_ticks=1))
    assert check.promise(weights, np.array([-9.0, 0.5, 4.0])) == 4.0
    for tick in range(3):
        check.observe(np.zeros(2), np.array([2.0]), np.zeros(0), weights,
                      is_consecutive=tick > 0)
        check.planned(check.promise(weights, np.array([-9.0, 0.5, 4.0])), 1)
    assert (check.read().predicted, check.read().realised) == (4.0, 4.0)


def test_a_state_of_that_name_comes_first():
    robot = cart(observation=[field | {'name': name} for field, name in zip(
        cart().model_dump(exclude_none=True)['observation'], ('reward', 'speed'), strict=True)])
    model = linear_model([np.eye(2)] * 2, np.zeros((2, 2, 1)), np.zeros((2, 2)), np.zeros((2, 2)))
    task = cart_task(goal=[], horizon=1, cost=[{'term': 'learned_reward'}])
    rollout = Rollout(artifact_of(model, robot, 2), robot, task, rolls(2), threads=1)
    cost = rollout.costs(np.array([7.0, 0.0]), np.zeros((1, 1, 1)),
                         rollout.draw(np.random.default_rng(0)))
    assert cost == [-7.0]
    rollout.close()
