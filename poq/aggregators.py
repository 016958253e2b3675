"""Memoryless consensus rules: each reduces the last axis, the committee, of an array of scores.

Mean, median and trimmed mean are named by [robust2026]; the trim share is not published and ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit

# Up to this committee size a sorting network on whole seats beats np.sort on rows.
NETWORK_LIMIT = 16
MAD_FLOOR = 0.5  # points


def mean(scores):
    """Arithmetic mean over the committee: (..., K) -> (...)."""
    return np.mean(scores, axis=-1, dtype=np.float64)


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


def winsorised_mean(scores, *, cut: float = 0.2):
    """Mean after the lowest and highest scores are moved to the nearest one kept: (..., K) -> (...).

    `cut` counts as in :func:`trimmed_mean`.
    """
    seats = _sorted_seats(scores)
    out = _n_cut(len(seats), cut)
    kept = seats[out : len(seats) - out]
    return (sum(kept[1:], start=kept[0]) + out * (kept[0] + kept[-1])) / len(seats)


def mad_inlier_mean(scores, *, limit: float = 2.5):
    """Mean of the scores within `limit` robust standard deviations of the median: (..., K) -> (...) [chaoschain].

    The robust standard deviation is 1.4826 times the median absolute deviation (MAD), at least MAD_FLOOR points: where
    half of a committee ties, at an end of the scale for example, MAD is 0 and would throw everybody else out. The limit
    and the floor are our reconstruction.
    """
    _check_limit(limit)
    scores = np.asarray(scores, dtype=np.float64)
    middle, spread = _median_and_spread(scores)
    return weighted_mean(scores, np.abs(scores - middle) <= limit * spread)


def huber(scores, *, limit: float = 1.345):
    """Huber's M-estimate of location: (..., K) -> (...) [huber1964].

    Scores further than `limit` robust standard deviations (as in :func:`mad_inlier_mean`) from the estimate pull with
    the force of that limit only. Found by reweighted means from the median.
    """
    _check_limit(limit)
    scores = np.asarray(scores, dtype=np.float64)
    estimate, spread = _median_and_spread(scores)
    reach = limit * spread
    for _ in range(100):
        before = estimate
        weights = np.minimum(1.0, reach / np.maximum(np.abs(scores - estimate), 1e-12))
        estimate = weighted_mean(scores, weights)[..., None]
        if not (np.abs(estimate - before) >= 1e-12).any():
            break
    return estimate[..., 0]


def quantile_clip(scores, *, kappa: float = 0.5, weights=None):
    """Mean of the scores, each clipped down to the largest value that a share `kappa` of stake supports [yuma].

    Parameters
    ----------
    scores : (..., K) float array
    kappa : float in (0, 1]
        A value is supported by the stake of all scores at or above it.
    weights : (..., K) float array, optional
        Stake or trust of each member; equal by default.

    Returns
    -------
    (...) float array
        Nobody can lift it above what a share kappa supports; the clip has no counterpart below.
    """
    if not 0 < kappa <= 1:
        raise ValueError(f"kappa must lie in (0, 1], not {kappa!r}")
    scores = np.asarray(scores, dtype=np.float64)
    stake = np.ones_like(scores) if weights is None else np.broadcast_to(np.asarray(weights, float), scores.shape)
    order = np.argsort(-scores, axis=-1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=-1)
    support = np.cumsum(np.take_along_axis(stake, order, axis=-1), axis=-1)
    enough = support >= kappa * support[..., -1:] - 1e-12
    supported = np.take_along_axis(ordered, np.argmax(enough, axis=-1)[..., None], axis=-1)
    return weighted_mean(np.minimum(scores, supported), stake)


def _median_and_spread(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and robust standard deviation of each committee, (..., 1)."""
    middle = np.asarray(median(scores))[..., None]
    spread = 1.4826 * np.asarray(median(np.abs(scores - middle)))[..., None]
    return middle, np.maximum(spread, MAD_FLOOR)


def _check_limit(limit: float) -> None:
    if not (np.isfinite(limit) and limit > 0):
        raise ValueError(f"limit must be a positive number of standard deviations, not {limit!r}")


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


def _sorted_seats(scores) -> np.ndarray:
    """The K order statistics of each round, (K, ...); all of them NaN where a score is NaN."""
    scores = np.asarray(scores, dtype=np.float64)
    committee = scores.shape[-1]
    if committee > NETWORK_LIMIT:
        ordered = np.sort(scores, axis=-1)
        ordered[np.isnan(ordered[..., -1])] = np.nan  # NaN is sorted to the end
        return np.moveaxis(ordered, -1, 0)
    seats = np.array(scores.reshape(-1, committee).T, order="C")
    _sort_seats(seats, _network(committee))
    return seats.reshape(committee, *scores.shape[:-1])


@njit(cache=True)
def _sort_seats(seats, network):
    """Sort each column of (K, B): one comparison after the other, each on all rounds at once."""
    unknown = np.zeros(seats.shape[1], dtype=np.bool_)
    for k in range(seats.shape[0]):
        for t in range(seats.shape[1]):
            unknown[t] |= np.isnan(seats[k, t])
    for pair in range(len(network)):
        i, j = network[pair]
        for t in range(seats.shape[1]):
            a, b = seats[i, t], seats[j, t]
            seats[i, t] = a if a < b else b
            seats[j, t] = b if a < b else a
    if unknown.any():
        seats[:, unknown] = np.nan


@cache
def _network(n: int) -> np.ndarray:
    """Batcher's odd-even merge sort for n values: pairs (i, j), (P, 2), to be put in order one after the other."""
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
    network = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    network.setflags(write=False)  # everyone gets the same array
    return network


AGGREGATORS: dict[str, Callable] = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "winsorised_mean": winsorised_mean,
    "mad_inlier_mean": mad_inlier_mean,
    "huber": huber,
    "quantile_clip": quantile_clip,
}
