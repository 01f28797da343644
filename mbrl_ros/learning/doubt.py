"""Whether the members disagree where the model is wrong."""

import numpy as np
from scipy.stats import mannwhitneyu, spearmanr


def rank_correlation(disagreement: np.ndarray, error: np.ndarray) -> float | None:
    """
    Return Spearman's correlation of two signals (N,); None if one of them never changes.

    Under noise it is below 1 for the best of models: what happened is off by the noise too.
    """
    if np.ptp(disagreement) == 0.0 or np.ptp(error) == 0.0:
        return None
    return float(spearmanr(disagreement, error).statistic)


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """
    Return the area under the ROC curve of a signal that should tell (N,) from (M,).

    That is the share of pairs in which the value outside is the larger one, ties as halves.
    """
    pairs = mannwhitneyu(outside, inside, method='asymptotic').statistic
    return float(pairs / (len(inside) * len(outside)))
