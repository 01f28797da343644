"""Everything a model follows from: data, settings, seed, start and device."""

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch

from mbrl_ros import __version__
from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.paths import MODEL_FILE
from mbrl_ros.data.dataset import Dataset
from mbrl_ros.learning.config import Activation, TrainingConfig
from mbrl_ros.learning.trainer import choose_device
from mbrl_ros.runtime import artifact

WEIGHTS_FILE = 'ensemble.npz'


class Parts(NamedTuple):
    """
    A dataset in three roles that share no state.

    Attributes
    ----------
    training : Dataset
        Trains the weights.
    holdout : Dataset
        Stops the training, and chooses among settings.
    tested : Dataset
        Scores the model: the holdout, or data of its own where settings were chosen on that.

    """

    training: Dataset
    holdout: Dataset
    tested: Dataset

    @property
    def used(self) -> Dataset:
        """All that the model follows from, and that cannot score it any more."""
        if self.holdout is self.tested:
            return self.training
        return replace(self.training, episodes=(*self.training.episodes, *self.holdout.episodes))


@dataclass(frozen=True)
class Recipe:
    """
    What a training run is made from; equal recipes give equal models, byte for byte.

    Attributes
    ----------
    dataset : Dataset
        Episodes of one robot.
    config : TrainingConfig
        Network and optimiser.
    seed : int
        Of the split, the initial weights, bootstrap, batches and particles.
    warm_start : Path, optional
        Folder of an earlier model of the same robot, shape and activation.
    device : str
        Where torch computes: 'cpu', 'cuda' or 'auto'.
    is_selected : bool
        Whether the config was chosen among others by the score on the holdout. That score
        flatters, so other data are held out for the final one.

    """

    dataset: Dataset
    config: TrainingConfig
    seed: int
    warm_start: Path | None = None
    device: str = 'cpu'
    is_selected: bool = False

    @cached_property
    def parts(self) -> Parts:
        """The dataset in its roles; raises BagError if it is too little for them."""
        fraction = self.config.holdout_fraction
        rest, tested = self.dataset.split_holdout(fraction, self.seed)
        if not self.is_selected:
            return Parts(rest, tested, tested)
        return Parts(*rest.split_holdout(fraction, self.seed), tested)

    def identity(self) -> dict[str, Any]:
        """Return what tells this run from others, as JSON values."""
        return {'dataset': self.dataset.hash, 'robot': self.dataset.robot.signature_hash(),
                'config': self.config.model_dump(mode='json'), 'seed': self.seed,
                'warm_start': None if self.warm_start is None
                else sha256(_read(self.warm_start)).hexdigest(),
                'device': choose_device(self.device), 'is_selected': self.is_selected,
                'mbrl_ros': __version__, 'torch': str(torch.__version__)}

    def ancestors(self) -> list[dict[str, Any]]:
        """Return the bags that the warm start was trained on, and its own warm start before."""
        if self.warm_start is None or not (self.warm_start / MODEL_FILE).is_file():
            return []
        model = artifact.load(self.warm_start / MODEL_FILE, self.dataset.robot)
        data = model.metadata.get('data', {})
        return [*data.get('bags', ()), *data.get('ancestors', ())]

    def weights(self) -> dict[str, np.ndarray] | None:
        """
        Return the weights to start from; None: random ones.

        Raises
        ------
        ModelError
            If the warm start is not there, is damaged, or has another activation.

        """
        return None if self.warm_start is None \
            else _load_weights(self.warm_start, self.config.activation)


def _read(folder: Path) -> bytes:
    try:
        return (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise ModelError(f'warm start: {folder / WEIGHTS_FILE}: {error.strerror}. Give the folder '
                         'that an earlier `mbrl-ros train --output` wrote.') from error


def _load_weights(folder: Path, activation: Activation) -> dict[str, np.ndarray]:
    try:
        with np.load(BytesIO(_read(folder)), allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, EOFError, BadZipFile) as error:
        raise ModelError(f'warm start: {folder / WEIGHTS_FILE}: damaged: {error}. Give the folder '
                         'of another model.') from error
    earlier = str(arrays.pop('activation', 'silu'))  # the only one, before it was written
    if earlier != activation:
        raise ModelError(f"warm start: {folder / WEIGHTS_FILE}: trained with activation "
                         f"'{earlier}', not '{activation}'. Train with activation: {earlier}, or "
                         'without a warm start.')
    return arrays
