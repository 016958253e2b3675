"""Theory that stands beside the simulations: exact where it can be, and it says where it assumes normal scores."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import special, stats


class Error(NamedTuple):
    """Mean and variance of consensus minus truth, points and points squared."""

    bias: float
    variance: float

    @property
    def mse(self) -> float:
        return self.bias**2 + self.variance


def expected_deviation(committee, *, sd: float = 1.0, leave_one_out: bool = False):
    """Mean and variance of abs(s - c) for independent normal scores and the mean rule.

    With one's own score inside, s - c is normal with variance sd^2 (1 - 1/K); against the others alone it is
    sd^2 (1 + 1/(K - 1)). The mean of the absolute value of a normal is its s.d. times sqrt(2/pi).

    Parameters
    ----------
    committee : int or array_like
        K; leave-one-out is NaN at K = 1.
    sd : float
        S.d. of honest scores for one output, points.

    Returns
    -------
    mean, variance : float arrays
    """
    committee = np.asarray(committee, dtype=np.float64)
    with np.errstate(divide="ignore"):
        variance = sd**2 * (1 + 1 / (committee - 1) if leave_one_out else 1 - 1 / committee)
    variance = np.where(np.isfinite(variance), variance, np.nan)
    return np.sqrt(2 / np.pi * variance), (1 - 2 / np.pi) * variance


def pool_error(values, truth, committee):
    """RMSE of the mean of K scores drawn without replacement from each output's pool, exact for any scores.

    The mean of K of the N scores has the expectation of the pool's own mean and the variance S^2 (1/K - 1/N), where
    S^2 is the variance between the output's scores (divisor N - 1). No attack; every output equally often.

    Parameters
    ----------
    values : (O, N) float array
        Honest scores, NaN where missing.
    truth : (O,) float array
    committee : int or array_like
        K, at most the least number of scores per output.

    Returns
    -------
    float array, the shape of `committee`
    """
    committee = np.asarray(committee, dtype=np.float64)[..., None]
    n = (~np.isnan(values)).sum(axis=1)
    error = np.nanmean(values, axis=1) - truth
    spread = np.where(n > 1, np.nansum((values - np.nanmean(values, axis=1)[:, None]) ** 2, axis=1), 0.0)
    spread = spread / np.maximum(n - 1, 1)
    return np.sqrt(np.mean(error**2 + spread * (1 / committee - 1 / n), axis=-1))


def honest_spread(values) -> float:
    """Root mean square, over outputs, of the s.d. between the scores of one output, points; values : (O, N)."""
    several = (~np.isnan(values)).sum(axis=1) > 1
    return float(np.sqrt(np.mean(np.nanvar(values[several], axis=1, ddof=1)))) if several.any() else float("nan")


def seats_held(committee: int, n_malicious: int, n_nodes: int) -> np.ndarray:
    """Probability, (K + 1,), that 0 .. K seats of a committee are malicious: hypergeometric."""
    return stats.hypergeom.pmf(np.arange(committee + 1), n_nodes, n_malicious, committee)


def mean_moments(committee: int, shift: float) -> np.ndarray:
    """First and second moment, (K + 1, 2), of the mean's error with 0 .. K malicious seats.

    Honest scores are normal around the truth with s.d. 1, malicious ones lie `shift` s.d. higher.
    """
    bias = shift * np.arange(committee + 1) / committee
    return np.column_stack([bias, bias**2 + 1 / committee])


def median_moments(committee: int, shift: float) -> np.ndarray:
    """The same for the median of an odd K, from its exact distribution on a fine grid.

    Raises
    ------
    ValueError
        For even K, where the median is the mean of two scores and has no distribution this simple.
    """
    if committee % 2 == 0:
        raise ValueError(f"committee must be odd, not {committee}")
    grid = np.linspace(-8, shift + 8, 1601)
    middle = (grid[1:] + grid[:-1]) / 2
    honest, malicious = stats.norm.cdf(grid), stats.norm.cdf(grid - shift)
    moments = []
    for bad in range(committee + 1):
        weight = np.diff(_at_least(committee // 2 + 1, committee - bad, honest, bad, malicious))
        moments.append((weight @ middle, weight @ middle**2))
    return np.array(moments)


def _at_least(least: int, n_first: int, first, n_second: int, second):
    """P(X + Y >= least) for X ~ Binomial(n_first, first) and Y ~ Binomial(n_second, second), elementwise."""
    total = np.zeros_like(first)
    for y in range(n_second + 1):
        rest = sum(_binomial(x, n_first, first) for x in range(max(least - y, 0), n_first + 1))
        total += _binomial(y, n_second, second) * rest
    return total


def _binomial(count: int, n: int, probability):
    # Written out, because scipy's overflows where the probability is all but zero.
    return special.comb(n, count) * probability**count * (1 - probability) ** (n - count)


def consensus_error(moments, seats) -> Error:
    """Bias and variance of a consensus, from its moments per number of malicious seats and their probabilities."""
    first, second = seats @ moments
    return Error(float(first), float(second - first**2))


def border(committee: int, n_malicious, n_nodes: int, *, of: str = "mse", largest: float = 12.0) -> np.ndarray:
    """The attack, in s.d. of honest scores, from which on the median's error is smaller than the mean's.

    Parameters
    ----------
    committee : int
        K, odd.
    n_malicious : (P,) int array
    n_nodes : int
    of : "mse" or "variance"
        Which part of the error counts; a correlation with the truth sees the variance alone.
    largest : float
        Attacks beyond this are not searched.

    Returns
    -------
    (P,) float array
        NaN where the median's error is never the smaller one.
    """
    if of not in ("mse", "variance"):
        raise ValueError(f"of must be 'mse' or 'variance', not {of!r}")
    steps, tables = _both_moments(committee, largest)
    found = []
    for bad in np.atleast_1d(n_malicious):
        seats = seats_held(committee, int(bad), n_nodes)
        gain = np.array([np.subtract(*(getattr(consensus_error(t, seats), of) for t in pair)) for pair in tables])
        crossing = np.flatnonzero((gain[:-1] <= 0) & (gain[1:] > 0))
        if len(crossing):
            i = crossing[0]
            found.append(steps[i] - gain[i] * (steps[i + 1] - steps[i]) / (gain[i + 1] - gain[i]))
        else:
            found.append(np.nan)
    return np.array(found)


@cache
def _both_moments(committee: int, largest: float):
    """Attack sizes, and for each the moments of mean and median; they depend on nothing else."""
    steps = np.linspace(0.0, largest, 97)
    return steps, [(mean_moments(committee, step), median_moments(committee, step)) for step in steps]


def captured(committee: int, n_malicious: int, n_nodes: int, *, of: str = "mse") -> bool:
    """Whether the mean beats the median under every large enough attack, because majorities fall too often.

    With an attack far beyond the honest spread the median errs by the whole shift when malicious nodes hold the
    majority, and not at all otherwise; the mean errs by their share of the seats. For an even K, half of the seats
    move the median by half the shift.
    """
    seats = seats_held(committee, n_malicious, n_nodes)
    held = np.arange(committee + 1)
    median, mean = (np.sign(2 * held - committee) + 1) / 2, held / committee
    parts = []
    for effect in (mean, median):
        bias = seats @ effect
        parts.append(seats @ effect**2 - (bias**2 if of == "variance" else 0.0))
    return bool(parts[1] >= parts[0])
