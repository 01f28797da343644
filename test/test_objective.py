"""What the holdout chooses weights by."""

from fakes import cart
import numpy as np
import torch

from mbrl_ros.data.dataset import Windows
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.learning.objective import Objective


def test_weights_are_chosen_by_errors_where_likelihood_is_all_outliers():
    # Two members that say the same everywhere: one that nothing moves, sure of it (std e^-5), and
    # one that all moves by half, unsure (std 1). Of 100 steps two fields rest in 99 and move by 2
    # in one: mean squared errors 0.04 and 0.99 x 0.25 + 0.01 x 2.25 = 0.27, and twice the negative
    # log-likelihoods 0.04 e^10 - 10 = 871 and 0.27: the sure one errs less and is far less likely.
    still = np.zeros((100, 2, 2))
    still[0, 1] = 2.0
    windows = Windows(still, np.zeros((100, 1, 1)), None, None)
    for chosen_by, best in (('likelihood', 1), ('error', 0)):
        config = TrainingConfig(members=2, hidden_units=(4,), weight_decay=(0.0, 0.0),
                                logvar_bounds=(-40.0, 40.0), chosen_by=chosen_by)
        ensemble = Ensemble(cart(), 2, (4,), config.logvar_bounds, torch.Generator())
        with torch.no_grad():
            ensemble.weights[-1].zero_()
            ensemble.biases[-1].copy_(torch.tensor([[[0.0, 0.0, -10.0, -10.0]],
                                                    [[0.5, 0.5, 0.0, 0.0]]]))
        objective = Objective(ensemble, config)
        loss, score = objective.holdout_losses(objective.samples(windows))
        assert int(score.argmin()) == best
        np.testing.assert_allclose(loss.numpy(), [0.04 * np.exp(10.0) - 10.0, 0.27], rtol=1e-4)
        if chosen_by == 'error':
            np.testing.assert_allclose(score.numpy(), 1.0 + np.log([0.04, 0.27]), rtol=1e-5)
