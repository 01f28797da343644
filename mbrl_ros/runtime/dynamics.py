"""One step of all members on ONNX Runtime: for the present, for evaluation, for reports."""

from typing import Any

import numpy as np
import onnx

from mbrl_ros.runtime.artifact import HEADS
from mbrl_ros.runtime.ort import open_ort


class Dynamics:
    """
    The learned dynamics of a model file.

    Parameters
    ----------
    model : onnx.ModelProto
        Graph `observation (E, N, S), action (E, N, A) -> mean, std (E, N, S)`, and the heads.
    metadata : dict
        Of the same file; `members` and `step_std` (typical change in one step, (S,)) are used.

    """

    def __init__(self, model: onnx.ModelProto, metadata: dict[str, Any]) -> None:
        self._session = open_ort(model.SerializeToString(),
                                 'CPUExecutionProvider')
        outputs = {output.name for output in model.graph.output}
        self.heads = tuple(name for name in HEADS if name in outputs)
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
        mean, std = self._session.run(['mean', 'std'], self._feeds(observation, action))
        return mean, std

    def predict_heads(self, observation: np.ndarray,
                      action: np.ndarray) -> dict[str, np.ndarray]:
        """
        Return what the model has learned beside the state, each (E, N), by the name in `heads`.

        `reward` is the mean of the step's reward, `termination` the probability that the step
        ends the episode. Parameters as above.
        """
        found = self._session.run(list(self.heads), self._feeds(observation, action)) \
            if self.heads else []
        return dict(zip(self.heads, found, strict=True))

    def _feeds(self, observation: np.ndarray, action: np.ndarray) -> dict[str, np.ndarray]:
        feeds = {}
        for name, array in (('observation', observation), ('action', action)):
            # Not broadcast_to, which takes as long as the network at N = 1: every tick does this.
            feeds[name] = np.empty((self.members, *array.shape[-2:]), np.float32)
            feeds[name][...] = array
        return feeds

    def spread(self, mean: np.ndarray) -> np.ndarray:
        """
        Return how much the members disagree, shape (N,), in typical steps.

        Standard deviation of the members' means (E, N, S), each field in units of its typical
        change in one step, root mean square over the fields.
        """
        # Not ndarray.std, which takes three times as long: every tick does this.
        apart = (mean - mean.sum(axis=0) / len(mean)) / self.step_std
        return np.sqrt((apart * apart).sum(axis=(0, -1)) / (len(mean) * mean.shape[-1]))
