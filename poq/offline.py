"""References that no network could run: they see all rounds at once, or the truth.

They say how much of the gap between the plain mean and what can be reached at all a rule with a memory closes.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from poq.matrix import SCORE_MAX

LEAST_VARIANCE = 1e-3  # points^2; keeps a node that always agrees from taking all the weight


def oracle(scores, node, truth):
    """Posterior mean of the truth when each node's true bias, gain and noise are known.

    Parameters
    ----------
    scores, node : (R, K) arrays
        Reports in [0, 10] and who made them.
    truth : (R,) array

    Returns
    -------
    (R,) array
        (m / v + sum g (s - a) / v_n) / (1 / v + sum g^2 / v_n), with a_n, g_n, v_n from the regression of node n's
        reports on the truth, and m, v the mean and variance of the truth: the best linear estimate if errors are
        independent.
    """
    scores, node, truth = _arrays(scores, node, truth)
    n = int(node.max()) + 1
    q = np.broadcast_to(truth[:, None], scores.shape)
    count = _sum(node, np.ones_like(scores), n)
    mean_q, mean_s = _sum(node, q, n) / count, _sum(node, scores, n) / count
    dq, ds = q - mean_q[node], scores - mean_s[node]
    var_q = _sum(node, dq * dq, n) / count
    gain = np.divide(_sum(node, dq * ds, n) / count, var_q, out=np.zeros(n), where=var_q > 0)
    bias = mean_s - gain * mean_q
    noise = np.maximum(_sum(node, (ds - gain[node] * dq) ** 2, n) / count, LEAST_VARIANCE)
    weight = (gain / noise)[node]
    prior = 1 / max(truth.var(), LEAST_VARIANCE)
    pull = prior * truth.mean() + (weight * (scores - bias[node])).sum(axis=1)
    return np.clip(pull / (prior + (weight * gain[node]).sum(axis=1)), 0.0, SCORE_MAX)


def crh(scores, node, *, steps: int = 50):
    """Conflict resolution on heterogeneous data with squared distance [crh2014]: weights -log of the share of error.

    Returns the (R,) estimates after `steps` rounds of estimating truths and weights in turn.
    """
    scores, node, _ = _arrays(scores, node)
    n = int(node.max()) + 1
    count = _sum(node, np.ones_like(scores), n)  # 0 for a node number that never sat
    weights = np.ones(n)
    for _ in range(steps):
        estimate = _weighted(scores, weights[node])
        loss = np.maximum(_sum(node, (scores - estimate[:, None]) ** 2, n) / np.maximum(count, 1), LEAST_VARIANCE)
        weights = np.maximum(-np.log(loss / loss[count > 0].sum()), 1e-6)
    return _weighted(scores, weights[node])


def catd(scores, node, *, confidence: float = 0.95, steps: int = 50):
    """Confidence-aware truth discovery [catd2014]: weight = lower chi-squared quantile over the sum of squared errors.

    The quantile, at (1 - confidence) / 2 with as many degrees of freedom as a node has reports, gives nodes with few
    reports less weight.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), not {confidence!r}")
    scores, node, _ = _arrays(scores, node)
    n = int(node.max()) + 1
    count = _sum(node, np.ones_like(scores), n)
    quantile = stats.chi2.ppf((1 - confidence) / 2, np.maximum(count, 1))
    weights = np.ones(n)
    for _ in range(steps):
        estimate = _weighted(scores, weights[node])
        weights = quantile / np.maximum(
            _sum(node, (scores - estimate[:, None]) ** 2, n), LEAST_VARIANCE * np.maximum(count, 1)
        )
    return _weighted(scores, weights[node])


def p910(scores, node, output, *, steps: int = 50):
    """Bias and inconsistency of each node by alternating projection [itu_p910], for reports of whole outputs.

    An output that returns is one stimulus, so all reports on it are pooled: an advantage that no rule of a live network
    has.

    Parameters
    ----------
    scores, node : (R, K) arrays
    output : (R,) int array

    Returns
    -------
    (R,) array
        The recovered quality of each round's output.
    """
    scores, node, output = _arrays(scores, node, output)
    n, o = int(node.max()) + 1, int(output.max()) + 1
    stimulus = np.ascontiguousarray(np.broadcast_to(output.astype(np.intp)[:, None], scores.shape))
    bias, variance = np.zeros(n), np.ones(n)
    count = _sum(node, np.ones_like(scores), n)
    for _ in range(steps):
        weight = 1 / variance[node]
        total = _sum(stimulus, weight, o)
        quality = np.divide(_sum(stimulus, weight * (scores - bias[node]), o), total, out=np.zeros(o), where=total > 0)
        bias = _sum(node, scores - quality[stimulus], n) / np.maximum(count, 1)
        bias -= bias[count > 0].mean()
        error = scores - quality[stimulus] - bias[node]
        variance = np.maximum(_sum(node, error**2, n) / np.maximum(count, 1), LEAST_VARIANCE)
    return np.clip(quality[output.astype(np.intp)], 0.0, SCORE_MAX)


def _arrays(scores, node, per_round=None):
    # In the order in which they are added up, time and again.
    scores, node = np.ascontiguousarray(scores, dtype=np.float64), np.ascontiguousarray(node, dtype=np.intp)
    if scores.ndim != 2 or scores.shape != node.shape or not scores.size:
        raise ValueError(f"scores and node must both be (R, K) and not empty, not {scores.shape} and {node.shape}")
    if per_round is not None:
        per_round = np.asarray(per_round, dtype=np.float64)
        if per_round.shape != scores.shape[:1]:
            raise ValueError(f"truth or output must be (R,) = {scores.shape[:1]}, not {per_round.shape}")
    return scores, node, per_round


def _sum(code: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(code.ravel(), weights=values.ravel(), minlength=size)


def _weighted(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights * scores).sum(axis=1) / weights.sum(axis=1)
