"""
What a model says of a system whose noise is known, inside its data and where it has none.

Position and velocity in [-1, 1], force in [-2, 2], all uniform:

    position' = position + 0.2 sin(3 velocity) + 0.05 n1
    velocity' = 0.9 velocity + 0.3 force - 0.3 sin(2 position) + 0.1 exp(1.2 velocity) n2

n1 and n2 are N(0, 1): the noise of the velocity grows elevenfold from one end to the other.
"""

from fakes import cart, train
import numpy as np
import pytest
import torch

from mbrl_ros.data.dataset import Windows
from mbrl_ros.learning import export
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.evaluation import evaluate
from mbrl_ros.learning.one_step import OneStep
from mbrl_ros.learning.recalibration import Recalibration
from mbrl_ros.learning.region import Region
from mbrl_ros.runtime.dynamics import Dynamics

CONFIG = TrainingConfig(hidden_units=(32, 32), weight_decay=(1e-5, 1e-5, 1e-5),
                        learning_rate=3e-3, batch_size=64, max_epochs=60, min_steps=0,
                        patience_steps=300, averaging=0.1)


def noise_std(state):
    return np.stack([np.full(len(state), 0.05), 0.1 * np.exp(1.2 * state[:, 1])], axis=1)


def transitions(count, seed):
    rng = np.random.default_rng(seed)
    state, force = rng.uniform(-1.0, 1.0, (count, 2)), rng.uniform(-2.0, 2.0, (count, 1))
    position, velocity = state.T
    mean = np.stack([position + 0.2 * np.sin(3.0 * velocity),
                     0.9 * velocity + 0.3 * force[:, 0] - 0.3 * np.sin(2.0 * position)], axis=1)
    after = mean + noise_std(state) * rng.standard_normal((count, 2))
    return state, force, after


def windows(count, seed):
    state, force, after = transitions(count, seed)
    return Windows(np.stack([state, after], axis=1), force[:, None])


def episodes(count, seed):
    """Transitions as episodes of one step."""
    return [(np.stack([state, after]), force[None])
            for state, force, after in zip(*transitions(count, seed), strict=True)]


def fit(**changes):
    """Train as the pipeline does: weights, then the factors on the std, both on the holdout."""
    config = CONFIG.model_copy(update=changes)
    ensemble = train(cart(), windows(2000, 0), windows(500, 1), config, seed=0).ensemble
    about = {'members': config.members, 'step_std': ensemble.step_std}
    held = episodes(500, 1)
    raw = OneStep.predict(Dynamics(export.to_onnx(ensemble, 2, 1), about), held)
    recalibration = Recalibration.fit(raw, held, seed=0)
    ensemble.std_factor, ensemble.std_power = (
        torch.tensor(values, dtype=torch.float32) for values in recalibration.shape)
    return Dynamics(export.to_onnx(ensemble, 2, 1), about)


@pytest.fixture(scope='module')
def model():
    return fit()


@pytest.fixture(scope='module')
def scores(model):
    state, force, _ = transitions(2000, 0)
    return evaluate(model, cart(), episodes(1000, 2), state.std(axis=0), 1, seed=0,
                    region=Region.of(cart(), state, force))


def test_aleatoric_std_is_the_noise(model):
    state, force, _ = transitions(1000, 2)
    _, std = model(state, force)
    found, truth = np.sqrt((std**2).mean(axis=0)), noise_std(state)
    # Fifths of the range of the velocity: 400 transitions know a std to 1 / sqrt(800) = 3.5 %.
    fifth = np.floor((state[:, 1] + 1.0) / 0.4).astype(int)
    ratio = np.array([[found[fifth == i].mean(0) / truth[fifth == i].mean(0)] for i in range(5)])
    np.testing.assert_allclose(ratio, 1.0, atol=0.15)


def test_members_part_where_there_were_no_data(model):
    state, force, _ = transitions(1000, 2)
    inside = model.spread(model(state, force)[0])
    # One to two of the range's half-widths beyond it, on either side, in both fields.
    outside = model.spread(model(state + 2.0 * np.sign(state), force)[0])
    assert np.median(outside) >= 5.0 * np.median(inside)
    assert outside.mean() >= 5.0 * inside.mean()


def test_scores(scores):
    # 1000 transitions know a share of 0.95 to 0.7 %.
    assert 0.90 <= min(scores.coverage_95.values()) <= max(scores.coverage_95.values()) <= 0.98
    assert scores.overall['calibration_error'] <= 0.05
    assert scores.doubt['auroc'] >= 0.9
    # The best possible: of a standardised normal 1.419, plus the mean log of noise over step.
    state, _, after = transitions(1000, 2)
    best = 1.419 + np.log(noise_std(state) / (after - state).std(axis=0)).mean()
    assert best - 0.05 <= scores.overall['nll'] <= best + 0.1


def test_likelihood_of_deterministic_and_single_networks(scores):
    def nll(**changes):
        return evaluate(fit(**changes), cart(), episodes(1000, 2), np.ones(2), 1,
                        seed=0).overall['nll']
    ensemble, single = nll(probabilistic=False), nll(probabilistic=False, members=1)
    # One std for all velocities costs log(rms) - mean(log): 0.5 log(sinh(2.4) / 2.4) = 0.41 in
    # one of the two fields.
    assert scores.overall['nll'] < ensemble - 0.1
    assert ensemble < single
