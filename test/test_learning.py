"""Training on systems with known answers, export, and evaluation of hand-made models."""

from collections import Counter
from typing import get_args

from fakes import artifact_of, cart, linear_model, train
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.robot import load_robot, RobotSpec
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.data.resample import Episode
from mbrl_ros.learning import export
from mbrl_ros.learning.config import Activation, TrainingConfig
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.learning.evaluation import evaluate
from mbrl_ros.learning.open_loop import predict_fan
from mbrl_ros.learning.pipeline import train_model
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.surprise import Calibration
from mbrl_ros.runtime.trunk import split_members

SMALL = TrainingConfig(members=3, hidden_units=(24, 24), weight_decay=(1e-5, 1e-5, 1e-5),
                       learning_rate=3e-3, max_epochs=60, min_steps=0, patience_steps=150)
NOISE_STD = np.array([0.02, 0.1])


def episode_of(steps, seed, noise_std=NOISE_STD):
    """Position and velocity decay, force drives the one and that the other; normal noise."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-2.0, 2.0, (steps, 1))
    states = np.zeros((steps + 1, 2))
    for t in range(steps):
        position, velocity = states[t]
        states[t + 1] = [0.8 * position + 0.1 * velocity,
                         0.9 * velocity + 0.3 * actions[t, 0]]
        states[t + 1] += noise_std * rng.standard_normal(2)
    return states, actions


def transitions(steps, seed):
    episode = Episode(*episode_of(steps, seed), 0, f'seed {seed}')
    return Dataset((episode,), cart()).windows(1)


@pytest.fixture(scope='module')
def trained():
    return train(cart(), transitions(1500, 0), transitions(400, 1), SMALL, seed=0)


def loss_of_each(ensemble, data):
    """Twice the Gaussian NLL of normalised targets, a mean over transitions and fields."""
    states, actions = (torch.tensor(a, dtype=torch.float32) for a in data[:2])
    state, action, next_state = states[:, 0], actions[:, 0], states[:, 1]
    many = (ensemble.members, -1, -1)
    with torch.no_grad():
        mean, std = ensemble(state.expand(many), action.expand(many))
    mean, std, unit = mean.numpy(), std.numpy(), ensemble.target_std.numpy()
    z = (next_state.numpy() - mean) / std
    return (z**2 + 2 * np.log(std / unit)).mean(axis=(1, 2))


def test_the_noise_of_a_known_system_is_found(trained):
    states, actions = (torch.tensor(a, dtype=torch.float32) for a in transitions(300, 2)[:2])
    state, action = states[:, 0], actions[:, 0]
    with torch.no_grad():
        mean, std = trained.ensemble(state.expand(3, -1, -1), action.expand(3, -1, -1))
    # 1500 transitions know a std to 1 / sqrt(3000) = 2 %; the rest is for the network.
    np.testing.assert_allclose(std.numpy().mean(axis=(0, 1)), NOISE_STD, rtol=0.12)
    exact = np.stack([0.8 * state[:, 0] + 0.1 * state[:, 1],
                      0.9 * state[:, 1] + 0.3 * action[:, 0]], axis=1)
    error = np.sqrt(((mean.numpy().mean(axis=0) - exact)**2).mean(axis=0))
    assert (error < 0.3 * NOISE_STD).all()


def test_each_member_is_at_its_own_best(trained):
    np.testing.assert_allclose(trained.best_loss,
                               loss_of_each(trained.ensemble, transitions(400, 1)),
                               rtol=1e-3, atol=1e-3)
    # The mean over members of any epoch is no better (within the smallest drop that counts).
    least = min(row['holdout_loss'] for row in trained.history)
    assert trained.best_loss.mean() <= least + 2 * SMALL.improvement


def test_a_member_that_gets_worse_keeps_its_earlier_weights():
    wild = SMALL.model_copy(update={'learning_rate': 0.3, 'max_epochs': 12,
                                    'patience_steps': 10**6, 'batch_size': 32})
    holdout = transitions(100, 1)
    result = train(cart(), transitions(100, 0), holdout, wild, seed=1)
    np.testing.assert_allclose(result.best_loss, loss_of_each(result.ensemble, holdout),
                               rtol=1e-3, atol=1e-3)
    # Such steps throw the members about: the last epoch is worse than the best of each.
    assert result.history[-1]['holdout_loss'] > result.best_loss.mean() + 0.01


def test_stops_when_no_member_gets_better():
    config = SMALL.model_copy(update={'improvement': 1e9, 'patience_steps': 20, 'min_steps': 50})
    result = train(cart(), transitions(640, 0), transitions(100, 1), config, seed=0)
    # 10 batches of 64 an epoch. Only the first epoch (better than infinity) counts, so patience
    # ends at step 30, but 50 steps are asked for.
    assert (result.steps, result.epochs) == (50, 5)


def test_the_same_seed_gives_the_same_weights_and_members_differ(trained):
    short = SMALL.model_copy(update={'max_epochs': 2})
    data = transitions(200, 0), transitions(50, 1)
    one, same, other = (train(cart(), *data, short, seed=seed).ensemble.arrays()
                        for seed in (0, 0, 1))
    for name, array in one.items():
        np.testing.assert_array_equal(array, same[name])
    assert (one['weights.0'] != other['weights.0']).any()
    first = trained.ensemble.arrays()['weights.0']
    assert np.abs(first[0] - first[1]).max() > 0.01


def test_bootstrap_differs_between_members(monkeypatch):
    # Equal weights at the start, one batch of everything: only the bootstrap tells members apart.
    def equal_start(self, *arguments, **choices):
        original(self, *arguments, **choices)
        with torch.no_grad():
            for weight in self.weights:
                weight[:] = weight[:1].clone()
    original = Ensemble.__init__
    monkeypatch.setattr(Ensemble, '__init__', equal_start)
    config = SMALL.model_copy(update={'max_epochs': 1, 'batch_size': 200})
    weights = train(cart(), transitions(200, 0), transitions(50, 1), config,
                    seed=0).ensemble.arrays()['weights.0']
    assert (weights[0] != weights[1]).any()
    assert (weights[1] != weights[2]).any()


def test_warm_start_goes_on_from_the_earlier_weights(trained):
    again = SMALL.model_copy(update={'max_epochs': 1, 'learning_rate': 1e-9})
    holdout = transitions(400, 1)
    warm = train(cart(), transitions(1500, 0), holdout, again, 5, trained.ensemble.arrays())
    cold = train(cart(), transitions(1500, 0), holdout, again, 5)
    # No step to speak of, and the same data: the earlier model's own score.
    np.testing.assert_allclose(warm.best_loss, trained.best_loss, atol=1e-3)
    assert (cold.best_loss > warm.best_loss + 1.0).all()


def test_warm_start_of_another_shape_is_refused(trained):
    wider = SMALL.model_copy(update={'hidden_units': (32, 24)})
    with pytest.raises(ModelError) as caught:
        train(cart(), transitions(50, 0), transitions(50, 1), wider, 0,
              trained.ensemble.arrays())
    assert 'weights.0: (3, 3, 24) instead of (3, 3, 32)' in str(caught.value)
    assert 'Train without a warm start' in str(caught.value)


def test_divergence_is_refused():
    held = transitions(50, 1)
    held.states[3, 1] = np.inf
    with pytest.raises(ModelError, match='diverged in epoch 1'):
        train(cart(), transitions(50, 0), held, SMALL, 0)


def mixed_robot():
    """All kinds of fields: an absolute linear one, an angle, one that the network does not see."""
    spec = cart().model_dump()
    spec['observation'] = [
        spec['observation'][0] | {'target': 'absolute'},
        spec['observation'][1] | {'feature': 'angle', 'unit': 'rad'},
        spec['observation'][1] | {'name': 'clock', 'feature': 'ignored'}]
    return RobotSpec.model_validate(spec)


def random_ensemble(robot, seed=0, activation='silu'):
    generator = torch.Generator().manual_seed(seed)
    ensemble = Ensemble(robot, 2, (8, 8), (-4.0, 0.5), generator, activation)
    size = len(robot.observation)
    state, action = torch.randn(50, size, generator=generator), torch.randn(50, 1)
    ensemble.fit_normaliser(state, action, state + 0.1 * torch.randn(state.shape))
    return ensemble, state.numpy(), action.numpy()


@pytest.mark.parametrize('robot', [cart(), load_robot('cartpole'), mixed_robot()],
                         ids=['linear', 'angle', 'mixed'])
def test_export_equals_torch(robot):
    ensemble, state, action = random_ensemble(robot)
    model = export.to_onnx(ensemble, len(robot.observation), 1)
    assert export.check(model, ensemble, state, action) <= 1e-5


@pytest.mark.parametrize('activation', get_args(Activation))
def test_every_activation_exports(activation):
    ensemble, state, action = random_ensemble(cart(), activation=activation)
    model = export.to_onnx(ensemble, 2, 1)
    assert export.check(model, ensemble, state, action) <= 1e-5
    with torch.no_grad():
        others = [random_ensemble(cart(), activation=other)[0].normalised(torch.ones(2, 1, 3))[0]
                  for other in get_args(Activation) if other != activation]
        mine = ensemble.normalised(torch.ones(2, 1, 3))[0]
    assert all((mine - other).abs().max() > 1e-4 for other in others)


@pytest.mark.parametrize('activation', ['tanh', 'relu', 'leaky_relu'])
def test_onnx_runtime_computes_product_bias_and_activation_in_one_node(activation, tmp_path):
    ensemble, _, _ = random_ensemble(cart(), activation=activation)
    model = split_members(export.to_onnx(ensemble, 2, 1))
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / 'optimised.onnx')
    onnxruntime.InferenceSession(model.SerializeToString(), settings,
                                 providers=['CPUExecutionProvider'])
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / 'optimised.onnx').graph.node)
    # Two hidden layers of two members; the last layer has no activation.
    assert (kinds['FusedGemm'], kinds['Gemm']) == (4, 2)


def test_angles_enter_as_sine_and_cosine_and_ignored_fields_not_at_all():
    robot = mixed_robot()
    ensemble, state, action = random_ensemble(robot)
    model = artifact_of(export.to_onnx(ensemble, 3, 1), robot, 2).model
    dynamics = Dynamics(model, {'members': 2, 'step_std': [1.0] * 3})
    mean, std = dynamics(state, action)
    turned, turned_std = dynamics(state + np.array([0.0, 2 * np.pi, 5.0]), action)
    # A full turn and another value of the ignored field change the two delta fields by just that.
    np.testing.assert_allclose(turned - mean, np.broadcast_to([0.0, 2 * np.pi, 5.0], mean.shape),
                               atol=1e-5)
    np.testing.assert_allclose(turned_std, std, rtol=1e-4)
    # Bounds: std between exp(-4 / 2) and about exp(0.5 / 2), in units of the typical step.
    unit = ensemble.target_std.numpy()
    assert (std > np.exp(-2.0) * unit * 0.999).all()
    assert (std < np.exp(0.26) * unit).all()


@pytest.mark.parametrize('name', ['weights.1', 'target_mean', 'max_logvar'])
def test_a_graph_that_is_not_the_network_is_refused(name):
    ensemble, state, action = random_ensemble(cart())
    model = export.to_onnx(ensemble, 2, 1)
    with torch.no_grad():
        ensemble.state_dict()[name].view(-1)[0] += 0.01
    with pytest.raises(ModelError, match='export refused'):
        export.check(model, ensemble, state, action)


def make_dataset(seeds=(0, 1, 2)):
    robot = cart()
    return Dataset(tuple(Episode(*episode_of(100, seed), 0, f'bag_{seed}') for seed in seeds),
                   robot)


def test_the_whole_of_training_twice_gives_the_same_file(tmp_path):
    config = SMALL.model_copy(update={'max_epochs': 3})
    one, same, other = (train_model(make_dataset(), config, seed, tmp_path / name)
                        for seed, name in ((0, 'one'), (0, 'same'), (1, 'other')))
    assert one.path.read_bytes() == same.path.read_bytes()
    assert one.hash == same.hash != other.hash
    loaded = artifact.load(one.path, cart())
    assert loaded.hash == one.hash
    assert loaded.metadata['holdout']['r2'] == one.evaluation.r2
    assert [bag['transitions'] for bag in loaded.metadata['data']['bags']] == [100, 100, 100]
    # Two windows of ten steps fit into a held-out block of 25.
    trust = Calibration.from_dict(loaded.metadata['trust'])
    assert (trust.steps, trust.moments) == (10, loaded.metadata['holdout']['transitions'])
    assert trust.to_dict() == loaded.metadata['trust']
    card = (tmp_path / 'one' / 'card.md').read_text()
    for part in ('# Model of cart', '| velocity | m/s |', 'bag_2: 100 transitions, 10.0 s',
                 'moments of the held-out data'):
        assert part in card
    assert {p.name for p in (tmp_path / 'one').iterdir()} == {
        'dynamics.onnx', 'ensemble.npz', 'metrics.json', 'card.md', 'training.csv', 'run.json',
        'report.html'}
    assert loaded.metadata['card'] == card
    html = (tmp_path / 'one' / 'report.html').read_text()
    assert html.count('src="data:image/') == html.count('<img ') == 8
    assert 'http' not in html
    warm = train_model(make_dataset(), config, 0, tmp_path / 'warm', tmp_path / 'one')
    assert warm.evaluation.nll['velocity'] < one.evaluation.nll['velocity']
    with pytest.raises(ModelError, match='warm start'):
        train_model(make_dataset(), config, 0, tmp_path / 'no', tmp_path / 'nowhere')


def test_warm_start_with_another_activation_is_refused(tmp_path):
    config = SMALL.model_copy(update={'max_epochs': 1})
    tanh = config.model_copy(update={'activation': 'tanh'})
    first = train_model(make_dataset(), tanh, 0, tmp_path / 'tanh')
    assert artifact.load(first.path, cart()).metadata['activation'] == 'tanh'
    assert 'units with tanh' in (tmp_path / 'tanh' / 'card.md').read_text()
    train_model(make_dataset(), tanh, 0, tmp_path / 'again', tmp_path / 'tanh')
    with pytest.raises(ModelError, match="trained with activation 'tanh', not 'silu'"):
        train_model(make_dataset(), config, 0, tmp_path / 'no', tmp_path / 'tanh')
    # A file of a version that knew silu only.
    with np.load(tmp_path / 'tanh' / 'ensemble.npz') as file:
        arrays = {name: array for name, array in file.items() if name != 'activation'}
    (tmp_path / 'old').mkdir()
    np.savez(tmp_path / 'old' / 'ensemble.npz', **arrays)
    train_model(make_dataset(), config, 0, tmp_path / 'new', tmp_path / 'old')
    with pytest.raises(ModelError, match="trained with activation 'silu', not 'tanh'"):
        train_model(make_dataset(), tanh, 0, tmp_path / 'no', tmp_path / 'old')


def hand_made(gain, std, members=2, disagreement=0.0, step_std=(1.0, 1.0)):
    """Both fields are predicted to change by gain x force; member e adds disagreement x e."""
    model = linear_model([np.eye(2)] * members, [np.array(gain)[:, None]] * members,
                         [[disagreement * e] * 2 for e in range(members)], [std] * members)
    return Dynamics(model, {'members': members, 'step_std': step_std})


def pushes(steps):
    """Two episodes in which both fields change by the force: +1 all along, then -1."""
    def episode(force):
        actions = np.full((steps, 1), force)
        return np.outer(np.arange(steps + 1) * force, [1.0, 1.0]), actions
    return [episode(1.0), episode(-1.0)]


def test_one_step_scores_by_hand():
    dynamics = hand_made([0.8, 1.0], [0.2, 0.1])
    scores = evaluate(dynamics, cart(), pushes(10), np.ones(2), 5, seed=0)
    assert scores.transitions == 20
    # Changes are +-1 (variance 1), errors 0.2 and 0.
    assert scores.r2['position'] == pytest.approx(0.96)
    assert scores.r2['velocity'] == pytest.approx(1.0)
    # 0.5 z^2 + ln(std) + 0.5 ln(2 pi) with z = 1 and 0, typical step 1; equal members.
    half = 0.5 * np.log(2 * np.pi)
    assert scores.nll['position'] == pytest.approx(0.5 + np.log(0.2) + half, abs=1e-4)
    assert scores.nll['velocity'] == pytest.approx(np.log(0.1) + half, abs=1e-4)
    assert scores.coverage_95 == {'position': 1.0, 'velocity': 1.0}
    assert scores.spread_p99 == pytest.approx(0.0, abs=1e-6)
    # A std of 0.1 makes the error of 0.2 two of them: outside +-1.96.
    sure = evaluate(hand_made([0.8, 1.0], [0.1, 0.1]), cart(), pushes(10), np.ones(2), 5, seed=0)
    assert sure.coverage_95 == {'position': 0.0, 'velocity': 1.0}
    assert sure.nll['position'] == pytest.approx(2.0 + np.log(0.1) + half, abs=1e-4)


def test_scores_of_members_that_disagree():
    dynamics = hand_made([1.0, 1.0], [0.1, 0.1], disagreement=0.4, step_std=(0.5, 0.5))
    scores = evaluate(dynamics, cart(), pushes(10), np.ones(2), 5, seed=0)
    # Means at +0 and +0.4: the mixture is 0.2 off, its std sqrt(0.01 + 0.04) = 0.22.
    assert scores.r2['position'] == pytest.approx(0.96, abs=1e-5)
    assert scores.coverage_95['position'] == 1.0
    # One member is right, the other 4 std off (e^-8 is nothing): density 1/2 of the first's.
    expected = np.log(2) + np.log(0.1 / 0.5) + 0.5 * np.log(2 * np.pi)
    assert scores.nll['position'] == pytest.approx(expected, abs=1e-3)
    # Std of the members' means is 0.2, in typical steps of 0.5.
    assert scores.spread_p99 == pytest.approx(0.4, abs=1e-5)


def test_k_step_error_by_hand():
    dynamics = hand_made([0.8, 0.8], [1e-4, 1e-4])
    scores = evaluate(dynamics, cart(), pushes(10), np.full(2, 2.5), 25, seed=0)
    # Each step adds 0.2 to the error, in units of 2.5; episodes have only 10 steps.
    np.testing.assert_allclose([row['error'] for row in scores.k_step],
                               0.08 * np.arange(1, 11), rtol=1e-3)
    assert [row['k'] for row in scores.k_step] == list(range(1, 11))
    assert scores.horizon == 3  # 0.24 is below 0.3, 0.32 is not


def test_predicted_std_grows_with_the_root_of_k():
    dynamics = hand_made([1.0, 1.0], [0.5, 0.5])
    scores = evaluate(dynamics, cart(), pushes(60), np.full(2, 2.0), 16, seed=0)
    # 0.5 sqrt(k) / 2; of 20 particles the variance is 19/20 on average. 90 starts x 2 fields
    # x 20 particles know it to 1 / sqrt(2 x 3600) = 1.2 %.
    np.testing.assert_allclose([row['predicted'] for row in scores.k_step],
                               0.25 * np.sqrt(np.arange(1, 17) * 0.95), rtol=0.06)


def test_recommended_horizon_ends_at_the_first_bad_step():
    # The fields swing by +1 and -1, the model says they stay: wrong at odd k, right at even k.
    states = np.tile([[0.0, 0.0], [1.0, 1.0]], (15, 1))
    scores = evaluate(hand_made([0.0, 0.0], [1e-4, 1e-4]), cart(), [(states, np.zeros((29, 1)))],
                      np.full(2, 2.0), 10, seed=0)
    np.testing.assert_allclose([row['error'] for row in scores.k_step], [0.5, 0.0] * 5, atol=1e-3)
    assert scores.horizon == 1


def test_a_field_that_never_changes_scores_one_if_that_was_foreseen():
    states = np.stack([np.arange(11.0), np.full(11, 3.0)], axis=1)
    states[5:, 0] += 1.0
    scores = evaluate(hand_made([1.0, 0.0], [0.1, 0.1]), cart(), [(states, np.ones((10, 1)))],
                      np.ones(2), 5, seed=0)
    assert scores.r2['velocity'] == 1.0
    wrong = evaluate(hand_made([1.0, 0.5], [0.1, 0.1]), cart(),
                     [(states, np.ones((10, 1)))], np.ones(2), 5, seed=0)
    assert wrong.r2['velocity'] == 0.0
    assert np.isfinite(scores.r2['position'])


def test_a_fan_keeps_each_particle_with_its_member():
    dynamics = hand_made([0.0, 0.0], [1e-6, 1e-6], disagreement=1.0)
    fan = predict_fan(dynamics, np.array([[0.0, 0.0], [5.0, 5.0]]), np.zeros((2, 4, 1)), seed=0)
    assert fan.shape == (4, 20, 2, 2)
    # Ten particles of member 0 stay, ten of member 1 move by one a step.
    for start, first in ((0, 0.0), (1, 5.0)):
        ends = np.sort(fan[3, :, start, 0])
        np.testing.assert_allclose(ends, [first] * 10 + [first + 4.0] * 10, atol=1e-4)
