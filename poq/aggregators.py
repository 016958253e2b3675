"""Memoryless consensus rules: each reduces the last axis, the committee, of an array of scores.

Mean, median and trimmed mean are named by [robust2026]; the trim share is not published and ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

# Up to this committee size a sorting network on whole seats beats np.sort on rows.
NETWORK_LIMIT = 32


def mean(scores):
    """Arithmetic mean over the committee: (..., K) -> (...)."""
    return np.mean(scores, axis=-1)


def median(scores):
    """Median over the committee: (..., K) -> (...); for even K the mean of the middle two."""
    seats = _sorted_seats(scores)
    middle = len(seats) // 2
    return seats[middle] if len(seats) % 2 else 0.5 * (seats[middle - 1] + seats[middle])


def trimmed_mean(scores, *, cut: float = 0.2):
    """Mean of what is left when the lowest and highest scores are cut: (..., K) -> (...) [yin2018].

    Parameters
    ----------
    scores : (..., K) float array
    cut : float in [0, 0.5)
        Share cut from *each* end, rounded down, but at least one score when K >= 3 and cut > 0; otherwise a
        trimmed mean of fewer than five scores would silently be the mean (our reconstruction).
    """
    seats = _sorted_seats(scores)
    out = _n_cut(len(seats), cut)
    kept = seats[out : len(seats) - out]
    return sum(kept[1:], start=kept[0]) / len(kept)


def _n_cut(committee: int, cut: float) -> int:
    if not 0 <= cut < 0.5:
        raise ValueError(f"cut must lie in [0, 0.5), not {cut!r}")
    # The small addition keeps 0.29 * 100 from being rounded down to 28.
    out = math.floor(cut * committee + 1e-9)
    out = max(out, 1) if cut > 0 and committee >= 3 else out
    return min(out, (committee - 1) // 2)  # a cut just below one half must leave something


def weighted_mean(scores, weights):
    """sum(w s) / sum(w) over the committee: (..., K) -> (...).

    Weights broadcast to the shape of scores and must not be negative; a committee without any takes the plain mean.
    """
    scores = np.asarray(scores, dtype=np.float64)
    weights = np.broadcast_to(np.asarray(weights, dtype=np.float64), scores.shape)
    if (weights < 0).any():
        raise ValueError("weights must not be negative")
    total = weights.sum(axis=-1)
    empty = total == 0
    if np.any(empty):
        weights = np.where(empty[..., None], 1.0, weights)
        total = weights.sum(axis=-1)
    return (weights * scores).sum(axis=-1) / total


def leave_one_out(scores, rule: Callable = mean):
    """Consensus of the others: (..., K) -> (..., K); entry k is the rule over the other K - 1 scores.

    Raises
    ------
    ValueError
        If K = 1: nobody else is there.
    """
    scores = np.asarray(scores, dtype=np.float64)
    committee = scores.shape[-1]
    if committee < 2:
        raise ValueError("leave-one-out needs a committee of at least 2, not 1")
    # Seat by seat, so that memory stays that of the scores themselves.
    seats = [rule(np.delete(scores, k, axis=-1)) for k in range(committee)]
    return np.stack(seats, axis=0).T if scores.ndim == 2 else np.stack(seats, axis=-1)


@cache
def _network(n: int) -> tuple[tuple[int, int], ...]:
    """Batcher's odd-even merge sort for n values: pairs (i, j) to be put in order, one after the other."""
    pairs = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        pairs.append((i + j, i + j + k))
            k //= 2
        p *= 2
    return tuple(pairs)


def _sorted_seats(scores) -> list[np.ndarray]:
    """The K order statistics of each round, each of shape (...)."""
    scores = np.asarray(scores, dtype=np.float64)
    committee = scores.shape[-1]
    if committee > NETWORK_LIMIT:
        ordered = np.sort(scores, axis=-1)
        return [ordered[..., k] for k in range(committee)]
    seats = [scores[..., k] for k in range(committee)]
    for i, j in _network(committee):
        seats[i], seats[j] = np.minimum(seats[i], seats[j]), np.maximum(seats[i], seats[j])
    return seats


AGGREGATORS: dict[str, Callable] = {"mean": mean, "median": median, "trimmed_mean": trimmed_mean}
