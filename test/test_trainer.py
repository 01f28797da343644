"""Kinds of networks, learned reward and termination, k-step loss, continuation and devices."""

from io import BytesIO

from fakes import artifact_of, cart, cart_task, rolls, save_artifact, train
import numpy as np
import onnx
import pytest
from scipy.linalg import expm
import torch

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.dataset import Dataset, Windows
from mbrl_ros.data.resample import Episode
from mbrl_ros.learning import export
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.heads import score_heads
from mbrl_ros.learning.pipeline import train_model
from mbrl_ros.learning.trainer import choose_device, Training
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.rollout import Rollout
from mbrl_ros.runtime.trunk import halve, split_members

SMALL = TrainingConfig(members=3, hidden_units=(24, 24), weight_decay=(1e-5, 1e-5, 1e-5),
                       learning_rate=3e-3, max_epochs=40, min_steps=0, patience_steps=200)
KINDS = [{'probabilistic': probabilistic, 'members': members}
         for probabilistic in (False, True) for members in (1, 3)]
LABEL = {'unit': '1', 'topic': 'judge', 'type': 'std_msgs/msg/Float64MultiArray'}
JUDGED = {'reward': {'name': 'reward', 'path': 'data[0]', **LABEL},
          'termination': {'name': 'ended', 'path': 'data[1]', **LABEL}}


def settings(**changes):
    return SMALL.model_copy(update=changes)


def steps_of(count, seed, noise=lambda state: np.full(state.shape, 0.1)):
    """
    Single steps of the cart from states in [-1, 1], with labels.

    Position and velocity decay, force drives the velocity. The reward is what a person would
    write for `stay in the middle without force`; an episode ends beyond 0.7.
    """
    rng = np.random.default_rng(seed)
    state, action = rng.uniform(-1, 1, (count, 2)), rng.uniform(-2, 2, (count, 1))
    after = state @ [[0.8, 0.0], [0.1, 0.9]] + action * [0.0, 0.3]
    after += noise(state) * rng.standard_normal(state.shape)
    reward = 1.0 - state[:, :1] ** 2 - 0.1 * action**2 + 0.05 * rng.standard_normal((count, 1))
    ended = (state[:, :1] + 0.05 * rng.standard_normal((count, 1)) > 0.7).astype(float)
    return Windows(np.stack([state, after], axis=1), action[:, None], reward, ended)


def export_of(result, robot):
    """The artifact of a trained ensemble, its graph compared with torch."""
    ensemble = result.ensemble
    model = export.to_onnx(ensemble, 2, 1)
    held = steps_of(200, 9)
    assert export.check(model, ensemble, held.states[:, 0], held.actions[:, 0]) <= 1e-5
    return artifact_of(model, robot, ensemble.members)


@pytest.mark.parametrize('kind', [*KINDS, {'loss_steps': 3, 'members': 2},
                                  {'reward_head': True, 'termination_head': True}])
def test_a_run_that_is_restored_goes_on_bit_for_bit(kind):
    config = settings(max_epochs=5, **kind)
    rng, steps = np.random.default_rng(0), config.loss_steps
    data = [Windows(rng.standard_normal((count, steps + 1, 2)),
                    rng.standard_normal((count, steps, 1)), rng.standard_normal((count, steps)),
                    rng.integers(0, 2, (count, steps))) for count in (150, 40)]
    new = [Training(cart(**JUDGED), *data, config, 3) for _ in range(4)]
    whole = new.pop()
    while not whole.is_done:
        whole.run_epoch()
    expected, best = whole.state(), whole.result().ensemble.arrays()
    for after, run in zip((0, 1, 4), new, strict=True):
        for _ in range(after):
            run.run_epoch()
        file = BytesIO()
        np.savez(file, allow_pickle=False, **run.state())
        if after:
            run.run_epoch()  # what a saved state holds must not go on with the run
        file.seek(0)
        again = Training(cart(**JUDGED), *data, config, 3)
        again.restore(dict(np.load(file, allow_pickle=False)))
        while not again.is_done:
            again.run_epoch()
        assert again.history == whole.history
        assert [type(value) for value in again.history[0].values()] \
            == [type(value) for value in whole.history[0].values()]
        for found, wanted in ((again.state(), expected),
                              (again.result().ensemble.arrays(), best)):
            assert found.keys() == wanted.keys()
            for name, array in wanted.items():
                np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture(scope='module', params=KINDS, ids=['D', 'DE', 'P', 'PE'])
def kind(request):
    result = train(cart(), steps_of(600, 0), steps_of(300, 1), settings(**request.param), 0)
    return request.param, result


def test_every_kind_knows_its_noise(kind):
    _, result = kind
    held = steps_of(300, 1)
    mean, std = Dynamics(export.to_onnx(result.ensemble, 2, 1),
                         {'members': result.ensemble.members, 'step_std': [1.0, 1.0]})(
        held.states[:, 0], held.actions[:, 0])
    # 600 steps know a std of 0.1 to 1 / sqrt(1200) = 3 %, 300 to 4 %; the rest is the network's.
    np.testing.assert_allclose(std.mean(axis=(0, 1)), 0.1, rtol=0.15)
    # The loss is twice the NLL less its constant, in units of a typical step.
    error = (held.states[:, 1] - mean) / std
    nll = (error**2 + 2 * np.log(std / result.ensemble.step_std)).mean(axis=(1, 2))
    np.testing.assert_allclose(nll, result.best_loss, rtol=1e-3, atol=1e-3)


def test_the_std_of_a_deterministic_member_is_its_residual_std(kind):
    config, result = kind
    held = steps_of(300, 1)
    with torch.no_grad():
        mean, std = (array.numpy() for array in result.ensemble(*(
            torch.tensor(part, dtype=torch.float32).expand(config['members'], -1, -1)
            for part in (held.states[:, 0], held.actions[:, 0]))))
    residual = np.sqrt(((held.states[:, 1] - mean) ** 2).mean(axis=1, keepdims=True))
    if config['probabilistic']:
        assert np.ptp(std, axis=1).min() > 1e-3
    else:
        np.testing.assert_allclose(std, np.broadcast_to(residual, std.shape), rtol=1e-4)


def assert_plans(model, robot):
    """The compiled rollout costs what NumPy says, in every form that a runtime may want."""
    task, dynamics = cart_task(horizon=3), Dynamics(model.model, model.metadata)
    rng = np.random.default_rng(0)
    state, actions = np.array([0.3, -0.2]), rng.uniform(-1, 1, (4, 3, 1))
    rollout = Rollout(model, robot, task, rolls(6))
    draw = rollout.draw(rng)
    found = rollout.costs(state, actions, draw)
    rollout.close()
    expected = []
    for sequence in actions:
        current = np.broadcast_to(state, (model.members, 6 // model.members, 2))
        cost = 0.1 * (sequence**2).sum()
        for action, noise in zip(sequence, draw.noise, strict=True):
            mean, std = dynamics(current, np.broadcast_to(action, (*current.shape[:2], 1)))
            current = mean + std * noise.reshape(mean.shape)
            cost += ((current[..., 0] - 1.0) ** 2).mean()
        expected.append(cost)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    held = steps_of(20, 5)
    inputs = held.states[:, 0], held.actions[:, 0]
    for form, atol in ((split_members, 1e-5), (halve, 5e-3)):
        other = Dynamics(form(model.model), model.metadata)
        for one, two in zip(other(*inputs), dynamics(*inputs), strict=True):
            np.testing.assert_allclose(one, two, atol=atol)
    assert not np.isnan(dynamics.spread(dynamics(*inputs)[0])).any()


def test_every_kind_loads_and_plans(kind, tmp_path):
    config, result = kind
    made = export_of(result, cart())
    save_artifact(tmp_path / 'dynamics.onnx', made.model, made.metadata)
    model = artifact.load(tmp_path / 'dynamics.onnx', cart())
    assert model.members == config['members']
    assert_plans(model, cart())


def test_a_probabilistic_network_beats_a_deterministic_one_where_the_noise_depends_on_the_state():
    # Noise of 0.02 on one side and 0.4 on the other. Twice the NLL of a field, less the constant,
    # is the mean of ln(variance) + 1: with the true std, ln(0.02^2) / 2 + ln(0.4^2) / 2 + 1; with
    # one for both sides, ln((0.02^2 + 0.4^2) / 2) + 1. Between them lie 2.3.
    def noise(state):
        return np.where(state[:, :1] > 0, 0.4, 0.02) * np.ones(2)
    losses = {flag: train(cart(), steps_of(600, 0, noise), steps_of(300, 1, noise),
                          settings(probabilistic=flag, members=2), 0).best_loss
              for flag in (True, False)}
    assert (losses[False] - losses[True] > 1.5).all()


@pytest.fixture(scope='module')
def judged():
    config = settings(reward_head=True, termination_head=True, members=2)
    return train(cart(**JUDGED), steps_of(1000, 0), steps_of(300, 1), config, 0)


def test_reward_and_termination_are_learned(judged):
    held = steps_of(500, 2)
    model = export_of(judged, cart(**JUDGED))
    scores = score_heads(Dynamics(model.model, model.metadata), held)
    # The reward's own noise, 0.05, is 2.6 % of its variance: 4/45 + 0.01 (4/3)^2 4/5 + 0.0025.
    assert scores['reward']['r2'] >= 0.95
    assert scores['reward']['rmse'] < 0.08
    # 15 % of the positions are beyond 0.7; within 0.05 of it, 5 % of all, the label is a guess.
    assert scores['termination']['auroc'] > 0.98
    assert scores['termination']['accuracy'] > 0.95
    assert scores['termination']['share'] == held.terminations.mean()


def test_heads_leave_the_state_as_it_was_and_the_model_loads_and_plans(judged, tmp_path):
    plain = train(cart(), steps_of(1000, 0), steps_of(300, 1), settings(members=2), 0)
    held = steps_of(500, 2)
    errors = []
    for result in (judged, plain):
        made = export_of(result, cart())
        save_artifact(tmp_path / 'dynamics.onnx', made.model, made.metadata)
        model = artifact.load(tmp_path / 'dynamics.onnx', cart())
        assert_plans(model, cart())
        mean, _ = Dynamics(model.model, model.metadata)(held.states[:, 0], held.actions[:, 0])
        errors.append(np.sqrt(((mean.mean(axis=0) - held.states[:, 1]) ** 2).mean()))
    assert errors[0] < 1.05 * errors[1]


def test_heads_are_named_outputs_that_a_model_may_have_and_none_beside_them(judged, tmp_path):
    model = export_of(judged, cart())
    assert [output.name for output in model.model.graph.output] \
        == ['mean', 'std', 'reward', 'termination']
    dynamics = Dynamics(model.model, model.metadata)
    found = dynamics.predict_heads(np.zeros((5, 2)), np.zeros((5, 1)))
    assert {name: array.shape for name, array in found.items()} \
        == {'reward': (2, 5), 'termination': (2, 5)}
    assert Dynamics(split_members(model.model), model.metadata).predict_heads(
        np.zeros((5, 2)), np.zeros((5, 1)))['reward'] == pytest.approx(found['reward'], abs=1e-5)
    for other in ({'reward': 'prize'}, {'std': 'spread'}):
        renamed = rename(model.model, other)
        save_artifact(tmp_path / 'dynamics.onnx', renamed, model.metadata)
        with pytest.raises(ModelError, match='expected inputs'):
            artifact.load(tmp_path / 'dynamics.onnx', cart())


def rename(model, names):
    """The model with other names for some outputs."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for output in model.graph.output:
        new = names.get(output.name, output.name)
        for node in model.graph.node:
            node.output[:] = [new if name == output.name else name for name in node.output]
            node.input[:] = [new if name == output.name else name for name in node.input]
        output.name = new
    return model


@pytest.mark.parametrize('head', ['reward', 'termination'])
def test_a_head_without_labels_is_refused(head):
    config = settings(**{f'{head}_head': True})
    bare = Windows(*steps_of(50, 0)[:2])
    with pytest.raises(ModelError) as caught:
        Training(cart(), bare, bare, config, 0)
    assert f'{head}_head: there is no {head} to learn' in str(caught.value)
    assert f'`{head}: {{name, unit, topic, type, path}}`' in str(caught.value)
    with pytest.raises(ModelError, match='Record its topic'):
        Training(cart(**JUDGED), bare, bare, config, 0)


@pytest.mark.parametrize(('changes', 'said'), [
    ({'probabilistic': False}, 'probabilistic instead of deterministic.'),
    ({'reward_head': True}, 'probabilistic instead of probabilistic with reward.'),
    ({'reward_head': True, 'termination_head': True},
     'probabilistic instead of probabilistic with reward and termination.')])
def test_a_warm_start_of_another_kind_is_refused(changes, said):
    data, robot = (steps_of(50, 0), steps_of(50, 1)), cart(**JUDGED)
    earlier = Training(robot, *data, SMALL, 0).ensemble.arrays()
    with pytest.raises(ModelError, match=said):
        Training(robot, *data, settings(**changes), 0, earlier)
    with pytest.raises(ModelError, match='no ensemble instead of'):
        Training(robot, *data, settings(**changes), 0, {'weights': np.zeros(3)})


def test_a_warm_start_with_other_targets_is_refused():
    data, spec = (steps_of(50, 0), steps_of(50, 1)), cart().model_dump()
    earlier = Training(cart(), *data, SMALL, 0).ensemble.arrays()
    spec['observation'][1]['target'] = 'absolute'
    with pytest.raises(ModelError, match='other targets: delta, delta instead of delta, absolute'):
        Training(RobotSpec.model_validate(spec), *data, SMALL, 0, earlier)


def test_export_compares_some_of_many_transitions(monkeypatch):
    ensemble, shapes = Training(cart(), steps_of(50, 0), steps_of(50, 1), SMALL, 0).ensemble, []

    def predict(*arrays):
        shapes.append([array.shape for array in arrays])
        return original(*arrays)
    original = ensemble.predict
    monkeypatch.setattr(ensemble, 'predict', predict)
    for count in (10_000, 25_000):
        many = steps_of(count, 9)
        export.check(export.to_onnx(ensemble, 2, 1), ensemble, many.states[:, 0],
                     many.actions[:, 0])
    # All of 10,000; every third of 25,000.
    assert shapes == [[(3, 10_000, 2), (3, 10_000, 1)], [(3, 8334, 2), (3, 8334, 1)]]


def test_a_deterministic_warm_start_goes_on(kind):
    config, result = kind
    again = settings(**config, max_epochs=1, learning_rate=1e-9)
    warm = train(cart(), steps_of(600, 0), steps_of(300, 1), again, 5, result.ensemble.arrays())
    np.testing.assert_allclose(warm.best_loss, result.best_loss, atol=1e-3)


def test_a_single_network_sees_all_data():
    run = Training(cart(), steps_of(50, 0), steps_of(50, 1), settings(members=1), 0)
    np.testing.assert_array_equal(run.state()['bootstrap'], np.arange(50)[None])


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert (choose_device('auto'), choose_device('cpu')) == ('cpu', 'cpu')
    with pytest.raises(ModelError, match=r"device 'gpu': allowed are auto, cpu and cuda\."):
        choose_device('gpu')
    for built_for, why in ((None, 'built without CUDA'), ('12.8', 'finds no CUDA device')):
        monkeypatch.setattr(torch.version, 'cuda', built_for)
        with pytest.raises(ModelError, match=f'device cuda: .*{why}.* Train with device cpu'):
            Training(cart(), steps_of(50, 0), steps_of(50, 1), SMALL, 0, device='cuda')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert choose_device('auto') == 'cuda'


def swinging(seed, noise, steps=150):
    """
    An undamped spring pushed at random, 42 steps a period: the states, and what is seen of them.

    `noise` is the std of what is seen, in standard deviations of each field.
    """
    rng = np.random.default_rng(seed)
    turn = expm(0.1 * np.array([[0.0, 1.0, 0.0], [-1.5**2, -0.05, 1.0], [0.0, 0.0, 0.0]]))
    actions = np.repeat(rng.uniform(-2, 2, (steps // 5, 1)), 5, axis=0)
    states = np.empty((steps + 1, 2))
    states[0] = rng.standard_normal(2)
    for t in range(steps):
        states[t + 1] = turn[:2, :2] @ states[t] + turn[:2, 2] * actions[t]
    return states, states + noise * states.std(axis=0) * rng.standard_normal(states.shape), actions


def open_loop_error(ensemble, steps=25):
    """Of the mean over the members, from states known exactly, in standard deviations."""
    errors = []
    for states, _, actions in (swinging(1000 + i, 0.0) for i in range(10)):
        starts = np.arange(0, len(actions) - steps, 5)
        many = (ensemble.members, -1, -1)
        current = torch.tensor(states[starts], dtype=torch.float32).expand(many)
        with torch.no_grad():
            for t in range(steps):
                action = torch.tensor(actions[starts + t], dtype=torch.float32)
                current, _ = ensemble(current, action.expand(many))
        errors.append((current.mean(dim=0).numpy() - states[starts + steps]) / states.std(axis=0))
    return np.sqrt(np.mean(np.concatenate(errors) ** 2))


def test_a_loss_of_many_steps_sees_through_noisy_observations():
    # What is seen of the state is off by a tenth of its spread, so the best guess of the next
    # one shrinks towards the mean by 1 / (1 + 0.1^2) each step: a fifth in 25 steps. Over ten
    # steps the same noise shrinks it once.
    errors = []
    for steps in (1, 10):
        training, holdout = (Dataset(tuple(
            Episode(seen, actions, 0, 'spring') for _, seen, actions in (
                swinging(first + i, 0.1) for i in range(count))), cart()).windows(steps)
            for first, count in ((0, 10), (500, 3)))
        config = settings(loss_steps=steps, members=1, hidden_units=(32, 32), max_epochs=15)
        errors.append(open_loop_error(train(cart(), training, holdout, config, 0).ensemble))
    assert errors[1] < 0.8 * errors[0]


def test_a_single_deterministic_network_with_heads_goes_all_the_way(tmp_path):
    robot = cart(**JUDGED)

    def episode(seed):
        rng = np.random.default_rng(seed)
        states, actions = np.zeros((121, 2)), rng.uniform(-2, 2, (120, 1))
        for t, action in enumerate(actions):
            states[t + 1] = [0.8 * states[t, 0] + 0.3 * states[t, 1],
                             0.9 * states[t, 1] + 0.3 * action[0]]
            states[t + 1] += 0.02 * rng.standard_normal(2)
        return Episode(states, actions, 0, f'bag_{seed}', states[:-1, 1] - 0.1 * actions[:, 0],
                       (states[:-1, 1] > 0.5).astype(float))
    config = settings(probabilistic=False, members=1, loss_steps=2, max_epochs=20,
                      reward_head=True, termination_head=True)
    data = Dataset(tuple(map(episode, range(6))), robot)
    made = train_model(data, config, 0, tmp_path / 'model')
    loaded = artifact.load(made.path, robot)
    heads = loaded.metadata['heads']
    assert heads['reward']['r2'] > 0.5
    assert heads['termination']['auroc'] > 0.9
    assert loaded.metadata['probabilistic'] is False
    assert loaded.metadata['spread_p99'] == 0.0  # one member agrees with itself
    assert all(np.isfinite(value) for value in made.evaluation.nll.values())
    assert_plans(loaded, robot)
    again = train_model(data, config, 0, tmp_path / 'again')
    assert again.path.read_bytes() == made.path.read_bytes()
