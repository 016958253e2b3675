"""Rewards: what a round pays its inference node and its evaluators [costaware2025, robust2026].

R = alpha * quality - beta * cost for both roles. That it is linear in normalised quality and cost is published; the
values alpha = 0.7 and beta = 0.3 are our reconstruction.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from poq.matrix import SCORE_MAX


@njit(cache=True)
def distance(score, reference):
    """abs(s - reference) / 10 of two numbers; compiled loops share it with :func:`deviation`."""
    return abs(score - reference) * (1.0 / SCORE_MAX)  # a product takes a quarter of the time of a quotient


def reward(quality, cost, *, alpha: float = 0.7, beta: float = 0.3):
    """alpha * quality - beta * cost, both in [0, 1] and broadcast."""
    return alpha * np.asarray(quality, dtype=np.float64) - beta * np.asarray(cost, dtype=np.float64)


def deviation(scores, reference):
    """d = abs(s - reference) / 10, in [0, 1]; reference is (...) for the round or (..., K) for each member."""
    scores = np.asarray(scores, dtype=np.float64)
    reference = np.asarray(reference, dtype=np.float64)
    if reference.ndim < scores.ndim:
        reference = reference[..., None]
    return distance.py_func(scores, reference)


def evaluator_reward(scores, reference, cost, *, alpha: float = 0.7, beta: float = 0.3):
    """Pay of committee members: alpha * (1 - d) - beta * cost.

    Parameters
    ----------
    scores : (R, K) float array in [0, 10]
        Reported scores, whatever a rule corrected inside.
    reference : (R,) consensus, or (R, K) leave-one-out consensus
    cost : float or array that broadcasts to (R, K)
        Normalised cost of each member, in [0, 1].

    Returns
    -------
    (R, K) float array
    """
    return reward(1.0 - deviation(scores, reference), cost, alpha=alpha, beta=beta)


def inference_reward(consensus, cost, *, alpha: float = 0.7, beta: float = 0.3):
    """Pay of the inference node: alpha * c / 10 - beta * cost; shapes (R,), cost in [0, 1]."""
    return reward(np.asarray(consensus, dtype=np.float64) / SCORE_MAX, cost, alpha=alpha, beta=beta)


def fill_cost(cost) -> np.ndarray:
    """Costs of one role, an unknown one (NaN) among known ones as their median; all unknown stay NaN."""
    cost = np.asarray(cost, dtype=np.float64)
    known = cost[~np.isnan(cost)]
    return np.where(np.isnan(cost), np.median(known), cost) if len(known) else cost


def normalise_cost(cost) -> np.ndarray:
    """Costs of one role brought to [0, 1] by min-max, gaps filled as in :func:`fill_cost`.

    A role whose costs are all unknown, or all equal, costs 0.
    """
    filled = fill_cost(cost)
    low, high = filled.min(initial=np.inf), filled.max(initial=-np.inf)
    if not low < high:
        return np.zeros_like(filled)
    return (filled - low) / (high - low)
