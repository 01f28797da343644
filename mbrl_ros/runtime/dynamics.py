"""One step of all members on ONNX Runtime: for the present, for evaluation, for reports."""

from typing import Any

import numpy as np
import onnx

from mbrl_ros.runtime.ort import open_session


class Dynamics:
    """
    The learned dynamics of a model file.

    Parameters
    ----------
    model : onnx.ModelProto
        Graph `observation (E, N, S), action (E, N, A) -> mean, std (E, N, S)`.
    metadata : dict
        Of the same file; `members` and `step_std` (typical change in one step, (S,)) are used.

    """

    def __init__(self, model: onnx.ModelProto, metadata: dict[str, Any]) -> None:
        self._session = open_session(model)
        self.members = int(metadata['members'])
        self.step_std = np.array(metadata['step_std'])

    def __call__(self, observation: np.ndarray,
                 action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Predict one step.

        Parameters
        ----------
        observation, action : array, shapes (E, N, S) and (E, N, A), or (N, S) and (N, A)
            One batch a member, or the same batch for all.

        Returns
        -------
        mean, std : array, each of shape (E, N, S)
            Of the next state.

        """
        feeds = {}
        for name, array in (('observation', observation), ('action', action)):
            shape = (self.members, *array.shape[-2:])
            feeds[name] = np.ascontiguousarray(np.broadcast_to(array, shape), np.float32)
        mean, std = self._session.run(['mean', 'std'], feeds)
        return mean, std

    def spread(self, mean: np.ndarray) -> np.ndarray:
        """
        Return how much the members disagree, shape (N,), in typical steps.

        Standard deviation of the members' means (E, N, S), each field in units of its typical
        change in one step, root mean square over the fields.
        """
        return np.sqrt(np.mean((mean.std(axis=0) / self.step_std) ** 2, axis=-1))
