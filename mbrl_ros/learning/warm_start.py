"""Begin a training run with the weights of an earlier model."""

import numpy as np
import torch

from mbrl_ros.core.errors import ModelError
from mbrl_ros.learning.ensemble import Ensemble

Arrays = dict[str, np.ndarray]


def load_weights(ensemble: Ensemble, arrays: Arrays) -> None:
    """
    Give an ensemble the weights of another.

    Parameters
    ----------
    ensemble : Ensemble
        Untrained.
    arrays : dict of arrays
        `Ensemble.arrays()` of the earlier model.

    Raises
    ------
    ModelError
        If that one predicts something else, has layers of another size, or other fields of it
        are predicted as changes.

    """
    own = ensemble.arrays()
    shapes, found = ({name: value.shape for name, value in side.items()} for side in (own, arrays))
    if shapes != found:
        kinds = [_kind(side) for side in (arrays, own)]
        different = [f'{kinds[0]} instead of {kinds[1]}'] if kinds[0] != kinds[1] else [
            f'{name}: {found.get(name)} instead of {shape}'
            for name, shape in shapes.items() if found.get(name) != shape]
        raise ModelError('warm start: the earlier model has another shape: '
                         + '; '.join(different) + '. Train without a warm start.')
    if not np.array_equal(own['is_delta'], arrays['is_delta']):
        kinds = [', '.join('delta' if is_delta else 'absolute' for is_delta in side['is_delta'])
                 for side in (arrays, own)]
        raise ModelError(f'warm start: the earlier model has other targets: {kinds[0]} instead of '
                         f"{kinds[1]}. Change `target` in the robot's spec back, or train without "
                         'a warm start.')
    ensemble.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    if not ensemble.probabilistic:
        ensemble.constant_logvar.zero_()


def _kind(arrays: Arrays) -> str:
    """Return in words what networks with these weights predict."""
    last = max((name for name in arrays if name.startswith('biases.')), default='',
               key=lambda name: int(name.split('.')[1]))
    if not {last, 'target_std', 'is_delta'} <= arrays.keys():
        return 'no ensemble'
    is_probabilistic, num_targets = 'min_logvar' in arrays, arrays['target_std'].size
    heads = [name for name, is_there in (
        ('reward', num_targets > arrays['is_delta'].size),
        ('termination', arrays[last][0].size > num_targets * (1 + is_probabilistic))) if is_there]
    return ('probabilistic' if is_probabilistic else 'deterministic') \
        + (f' with {" and ".join(heads)}' if heads else '')
