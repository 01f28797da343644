"""What the loss weighs, and which weights training ends with."""

from fakes import cart
import numpy as np
import pytest
import torch

from mbrl_ros.data.dataset import Windows
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.learning.objective import Objective
from mbrl_ros.learning.trainer import Training

WIDE = (-40.0, 40.0)


@pytest.mark.parametrize(('exponent', 'slope'), [(0.0, 0.25 * np.exp(-4.0)),
                                                 (0.5, 0.25 * np.exp(-2.0)), (1.0, 0.25)])
def test_a_power_of_the_variance_gives_unsure_means_their_gradient(exponent, slope):
    # A member that says m = 0.125 of two fields that rest, each with a variance of e^4. The loss
    # of a field is e^4k (m^2 e^-4 + 4), k the exponent, and theirs is the mean: its slope by one
    # m is m e^(4k - 4), and by both together twice that.
    config = TrainingConfig(members=1, hidden_units=(4,), weight_decay=(0.0, 0.0),
                            logvar_bounds=WIDE, variance_exponent=exponent)
    ensemble = Ensemble(cart(), 1, (4,), WIDE, torch.Generator())
    with torch.no_grad():
        ensemble.weights[-1].zero_()
        ensemble.biases[-1].copy_(torch.tensor([[[0.125, 0.125, 4.0, 4.0]]]))
    objective = Objective(ensemble, config)
    samples = objective.samples(Windows(np.zeros((3, 2, 2)), np.zeros((3, 1, 1)), None, None))
    objective.training_loss(samples, torch.arange(3)[None]).sum().backward()
    np.testing.assert_allclose(ensemble.biases[-1].grad[0, 0, :2].sum(), slope, rtol=1e-5)
    # What the holdout is scored by is the likelihood all the same: 0.125^2 e^-4 + 4.
    loss, score = objective.holdout_losses(samples)
    np.testing.assert_allclose([loss[0].item(), score[0].item()],
                               0.125**2 * np.exp(-4.0) + 4.0, rtol=1e-6)


@pytest.mark.parametrize(('chosen_by', 'epochs'), [('likelihood', 2), ('last', 5)])
def test_training_ends_with_the_likeliest_weights_or_the_last(chosen_by, epochs):
    # Motion that is opposite on the holdout, and no first drop is large enough but the one from
    # infinity: the likeliest weights are those of the first epoch, of one batch, and patience of
    # one step ends with the second. The last ones know of no patience.
    config = TrainingConfig(members=2, hidden_units=(4,), weight_decay=(0.0, 0.0), max_epochs=5,
                            min_steps=0, patience_steps=1, improvement=1e9, chosen_by=chosen_by)
    still = np.zeros((8, 1, 1))
    moved = np.random.default_rng(0).standard_normal((8, 2, 2))
    training = Training(cart(), Windows(moved, still, None, None),
                        Windows(-moved, still, None, None), config, 0)
    seen = []
    result = training.run(lambda _: seen.append(training.ensemble.arrays()['biases.1']))
    assert len(result.history) == epochs
    kept = seen[0 if chosen_by == 'likelihood' else -1]
    np.testing.assert_array_equal(result.ensemble.arrays()['biases.1'], kept)
    assert np.abs(seen[0] - seen[-1]).max() > 1e-4


def test_averaged_weights_are_kept_and_training_goes_on_from_its_own():
    # Each epoch is one batch, so `seen` holds the weights after each gradient step. After step t
    # the average moves by 1 / max(t / 2, 1) towards them: by all of the way after steps 1 and 2,
    # then by 2/3, 1/2 and 2/5.
    config = TrainingConfig(members=2, hidden_units=(4,), weight_decay=(0.0, 0.0), max_epochs=5,
                            min_steps=99, averaging=0.5, chosen_by='last')
    rng = np.random.default_rng(0)
    windows = Windows(rng.standard_normal((8, 2, 2)), np.zeros((8, 1, 1)), None, None)
    arguments = (cart(), windows, windows)
    training = Training(*arguments, config, 0)
    seen = []
    result = training.run(lambda _: seen.append(training.ensemble.arrays()['biases.1']))
    average = seen[1]
    for share, weights in zip((2 / 3, 1 / 2, 2 / 5), seen[2:], strict=True):
        average = average + share * (weights - average)
    np.testing.assert_allclose(result.ensemble.arrays()['biases.1'], average, rtol=1e-5)
    plain = Training(*arguments, config.model_copy(update={'averaging': 0.0}), 0)
    np.testing.assert_array_equal(plain.run().ensemble.arrays()['biases.1'], seen[-1])
