"""mbrl-lib's ModelTrainer on our data, with its own settings of PETS on the cart-pole."""

import time

from configuration import configuration
from mbrl.models import ModelTrainer
from mbrl.types import TransitionBatch
from mbrl.util.common import create_one_dim_tr_model
from mbrl.util.replay_buffer import BootstrapIterator, TransitionIterator
import numpy as np
import torch


class Trainer:
    """What mbrl-lib's train_model_and_save_model_and_data does, on a split that is given."""

    def __init__(self, device):
        self._device = device

    def data(self, file, members, seed):
        """
        Take the data and make an untrained model.

        Parameters
        ----------
        file : str
            Arrays training_states (N, S), training_actions (N, A), training_next_states (N, S),
            and the same of the holdout: floats, in physical units.
        members : int
            Networks; its own configuration has 7, of which 5 plan.
        seed : int
            Of everything random.

        """
        with np.load(file) as arrays:
            self._training, self._holdout = (
                TransitionBatch(*(arrays[f'{side}_{name}']
                                  for name in ('states', 'actions', 'next_states')),
                                *(np.zeros(len(arrays[f'{side}_states']), kind)
                                  for kind in (float, bool, bool)))
                for side in ('training', 'holdout'))
        self._members, self._seed = members, seed
        self._make()
        chosen = ('model_lr', 'model_wd', 'model_batch_size', 'num_epochs_train_model', 'patience')
        return {'settings': {name: self._overrides[name] for name in chosen}}

    def epochs(self, number):
        """Train on; the first epoch is not timed, for an evaluation comes before it."""
        stamps = []
        self._trainer.train(*self._iterators, num_epochs=number,
                            callback=lambda *_: stamps.append(time.perf_counter()))
        return {'seconds': np.diff(stamps).tolist()}

    def fit(self, capped, file):
        """
        Train an untrained model until its own rule says stop, and predict the holdout.

        Parameters
        ----------
        capped : bool
            Stop after the epochs that its configuration allows to one of its many calls, if its
            patience has not ended before; else only its patience ends it.
        file : str
            Where to write the mean and std of the holdout's changes.

        """
        start = time.perf_counter()
        self._make()
        count = self._overrides.num_epochs_train_model if capped else None
        losses, _ = self._trainer.train(*self._iterators, num_epochs=count,
                                        patience=self._overrides.patience)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            inputs = self._wrapper._get_model_input(self._holdout.obs, self._holdout.act)
            mean, logvar = self._wrapper.forward(inputs, use_propagation=False)
        np.savez(file, mean=mean.cpu(), std=torch.exp(0.5 * logvar).cpu())
        return {'seconds': seconds, 'epochs': len(losses)}

    def _make(self):
        """Make the untrained model, its trainer and the iterators over the data."""
        config = configuration(self._device)
        self._overrides = config.overrides
        config.dynamics_model.ensemble_size = self._members
        # The features of a state are one more than its fields, for the angle has two.
        (_, num_state), (_, num_action) = self._training.obs.shape, self._training.act.shape
        config.dynamics_model.update({'in_size': num_state + 1 + num_action,
                                      'out_size': num_state})
        torch.manual_seed(self._seed)
        rng = np.random.default_rng(self._seed)
        self._wrapper = create_one_dim_tr_model(config, (num_state,), (num_action,))
        self._wrapper.update_normalizer(self._training)
        batch = self._overrides.model_batch_size
        training = BootstrapIterator(
            self._training, batch, self._members, shuffle_each_epoch=True,
            permute_indices=self._overrides.get('bootstrap_permutes', False), rng=rng)
        # Its configuration of the cart-pole scores the training data, which takes it longer, and
        # keeps worse weights.
        self._iterators = training, TransitionIterator(self._holdout, batch, rng=rng)
        self._trainer = ModelTrainer(self._wrapper, optim_lr=self._overrides.model_lr,
                                     weight_decay=self._overrides.model_wd)
