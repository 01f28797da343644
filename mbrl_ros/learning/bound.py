"""The terms of MBPO's bound: what planning k steps inside the model can cost at the most."""

from typing import Any

import numpy as np
from scipy.special import ndtr

DISCOUNT = 0.99


def model_error(error: np.ndarray, state_std: np.ndarray) -> float:
    """
    Return epsilon_m, from one-step errors (N, S), at the resolution of the state's deviations.

    Notes
    -----
    The paper's is the total variation between the true and the predicted distribution of the
    next state. One sample of the truth a transition cannot tell it, and of a robot without noise
    it is 1 for every model that is not exact to the last digit. Here both are blurred with one
    state deviation: the mean total variation of two such Gaussians, one around what happened and
    one around the mean prediction, 2 Phi(d / 2) - 1 at distance d. It bounds, from above, what a
    cost that is smooth on that scale can notice.

    """
    distance = np.sqrt(((error / state_std) ** 2).sum(axis=1))
    return float((2.0 * ndtr(distance / 2.0) - 1.0).mean())


def policy_shift(before: np.ndarray, now: np.ndarray) -> float:
    """
    Return epsilon_pi, from shares of the actions in bins, each of shape (A, B).

    Notes
    -----
    The paper's is the largest total variation, over states, between the policy that the data are
    of and the newest one. Here it is that of the actions wherever they were taken, of the action
    field in which it is largest: never more than the paper's, but for the chance of few samples
    (about 0.1 for 200 actions in ten bins).

    """
    return float((0.5 * np.abs(before - now).sum(axis=1)).max())


def bound_terms(epsilon_m: float, epsilon_pi: float, longest: int) -> dict[str, Any]:
    """
    Return what branched rollouts of k steps lose at the most.

    Returns
    -------
    dict
        `epsilon_m`, `epsilon_pi`, `discount`, `best_k` (where the sum is least), and for each k
        the `policy` and `model` terms in units of the largest possible return, r_max / (1 -
        discount): a sum above 1 says nothing about the return, only how the two weigh.

    Notes
    -----
    Source: Janner et al. 2019 (MBPO), arXiv:1906.08253, Theorem 4.3: the return in the robot is
    at least that of k-step rollouts branched from the data, less

        2 r_max [gamma^(k+1) eps_pi / (1 - gamma)^2 + gamma^k eps_pi / (1 - gamma)
                 + k eps_m' / (1 - gamma)]

    where eps_m' is the error of the model on data of the newest policy: held-out data stand for
    those. MPC plans from the present, not from the data, and cuts its horizon: for it, this is a
    yardstick of trends, no guarantee.

    """
    k = np.arange(1, longest + 1)
    policy = 2.0 * epsilon_pi * (DISCOUNT ** (k + 1) / (1.0 - DISCOUNT) + DISCOUNT**k)
    model = 2.0 * k * epsilon_m
    return {'epsilon_m': epsilon_m, 'epsilon_pi': epsilon_pi, 'discount': DISCOUNT,
            'best_k': int(k[np.argmin(policy + model)]),
            'terms': [{'k': int(step), 'policy': float(one), 'model': float(other)}
                      for step, one, other in zip(k, policy, model, strict=True)]}
