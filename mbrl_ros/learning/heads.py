"""How well a model foresees the reward and the end of an episode, where it has learned them."""

import numpy as np

from mbrl_ros.data.dataset import Windows
from mbrl_ros.learning.doubt import auroc
from mbrl_ros.runtime.dynamics import Dynamics

Score = dict[str, float | None]


def score_heads(dynamics: Dynamics, held_out: Windows) -> dict[str, Score]:
    """
    Score the heads of a model one step ahead, each by the mean over its members.

    Parameters
    ----------
    dynamics : Dynamics
        The exported model: what is scored is what will drive.
    held_out : Windows
        Data with the labels of each head; the first step of each window is used.

    Returns
    -------
    dict
        For each head of the model. `reward`: `r2`, `rmse` in the reward's unit. `termination`:
        `auroc`, None where the data hold only one kind, `accuracy` at probability 1/2, and
        `share` of the steps that ended an episode, which tells what an accuracy is worth.

    """
    found = {name: values.mean(axis=0) for name, values in dynamics.predict_heads(
        held_out.states[:, 0], held_out.actions[:, 0]).items()}
    scores: dict[str, Score] = {}
    if 'reward' in found:
        assert held_out.rewards is not None, 'the trainer refuses data without rewards'
        reward = held_out.rewards[:, 0]
        square, variance = np.mean((found['reward'] - reward) ** 2), reward.var()
        # A reward that never changed has nothing to explain: 1 if that was foreseen, else 0.
        r2 = 1.0 - square / variance if variance >= 1e-12 else float(square < 1e-12)
        scores['reward'] = {'r2': float(r2), 'rmse': float(np.sqrt(square))}
    if 'termination' in found:
        assert held_out.terminations is not None, 'the trainer refuses data without terminations'
        ended, probability = held_out.terminations[:, 0] != 0, found['termination']
        both = 0 < ended.sum() < len(ended)
        scores['termination'] = {
            'auroc': auroc(probability[~ended], probability[ended]) if both else None,
            'accuracy': float(np.mean((probability > 0.5) == ended)),
            'share': float(ended.mean())}
    return scores
