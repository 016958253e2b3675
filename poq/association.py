"""Association: correlations of all evaluators at once, on resampled items, plain or with something held fixed.

Every function takes ``times`` (B, I), how often each item counts in each of B samples, as :func:`resample_items` makes
it; its first row is the log itself, so that row 0 of a result is the estimate and the rest its bootstrap.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


def resample_items(n_items: int, *, n_boot: int, rng: np.random.Generator) -> np.ndarray:
    """How often each item counts: (1 + n_boot, I); once each in row 0, then samples of whole items with replacement."""
    drawn = rng.multinomial(n_items, np.full(n_items, 1 / n_items), size=n_boot)
    return np.vstack([np.ones((1, n_items)), drawn])


def correlate(values, truth, item, times, *, stratum=None) -> np.ndarray:
    """Pearson correlation of each evaluator with the truth, in every sample of items.

    Parameters
    ----------
    values : (O, E) float array
        Scores; NaN where missing.
    truth : (O,) float array
    item : (O,) int array
        Index of each output's item.
    times : (B, I) array
    stratum : (O,) int array, optional
        Correlate within strata only: from every score and truth the mean of its stratum is taken away first, sample by
        sample. With bins of a variable as strata this is the correlation given that variable, whatever its shape.

    Returns
    -------
    (B, E) float array
        NaN where one of the two does not vary.
    """
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    x = _standardise(values, known)
    y = np.where(known, _standardise(np.asarray(truth, dtype=np.float64)[:, None], np.ones((len(truth), 1), bool)), 0.0)
    sums = [np.zeros((len(times), values.shape[1])) for _ in range(3)]
    for rows in _strata(stratum, len(truth)):
        add = _adder(item[rows], times)
        n, sx, sy = (add(part[rows]) for part in (known, x, y))
        for total, (a, sa), (b, sb) in zip(sums, ((x, sx), (y, sy), (x, sx)), ((x, sx), (y, sy), (y, sy))):
            total += add((a * b)[rows]) - np.divide(sa * sb, n, out=np.zeros_like(n), where=n > 0)
    return _ratio(*sums)


def correlate_pairs(values, item, times) -> np.ndarray:
    """Pearson correlation of each evaluator with each other over the outputs that both scored: (B, E, E)."""
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    x = _standardise(values, known)
    add = _adder(item, times)
    result = np.empty((len(times), values.shape[1], values.shape[1]))
    for e in range(values.shape[1]):
        both = known & known[:, e : e + 1]
        own = x[:, e : e + 1] * both
        other = x * both
        n, sx, sy = add(both), add(own), add(other)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[:, e] = _ratio(
                add(own * own) - sx * sx / n, add(other * other) - sy * sy / n, add(own * other) - sx * sy / n
            )
    return result


def bins(values, *, n: int = 10) -> np.ndarray:
    """Number of the quantile bin of each value, (O,); equal values share a bin, so there may be fewer than n."""
    values = np.asarray(values, dtype=np.float64)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, n + 1)[1:-1]))
    return np.searchsorted(edges, values, side="left")


def interval(draws, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate (row 0) and ends of the percentile interval over the other rows; NaN where undefined."""
    draws = np.asarray(draws, dtype=np.float64)
    estimate, rest = draws[0], draws[1:]
    low, high = np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
    defined = (~np.isnan(rest)).any(axis=0) & ~np.isnan(estimate)
    if defined.any():
        tail = (1 - level) / 2
        if estimate.ndim:
            low[defined], high[defined] = np.nanquantile(rest[:, defined], [tail, 1 - tail], axis=0)
        else:
            low, high = np.nanquantile(rest, [tail, 1 - tail])
    return estimate, low, high


def _standardise(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean 0 and s.d. 1 per column, 0 where unknown: sums of squares then keep their precision on any scale."""
    n = np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, values, 0.0)
    centred = np.where(known, centred - centred.sum(axis=0) / n, 0.0)
    sd = np.sqrt((centred**2).sum(axis=0) / n)
    level = np.where(known, np.abs(values), 0.0).max(axis=0, initial=0.0)
    varies = sd > 1e-12 * np.maximum(level, np.finfo(float).tiny)
    return np.where(varies, centred / np.where(varies, sd, 1.0), 0.0)


def _strata(stratum, n_outputs: int):
    if stratum is None:
        return [np.arange(n_outputs)]
    stratum = np.asarray(stratum)
    return [np.flatnonzero(stratum == label) for label in np.unique(stratum)]


def _adder(item, times):
    """A function that adds up (n, E) rows by item and then by sample: (B, E)."""
    by_item = sparse.csr_matrix(
        (np.ones(len(item)), (np.asarray(item), np.arange(len(item)))), shape=(times.shape[1], len(item))
    )
    return lambda rows: times @ (by_item @ np.asarray(rows, dtype=np.float64))


def _ratio(sxx, syy, sxy) -> np.ndarray:
    # Scores have unit variance here: what is below this is what rounding leaves of a constant.
    constant = (np.minimum(sxx, syy) < 1e-9) | np.isnan(sxx) | np.isnan(syy)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(constant, np.nan, np.clip(sxy / np.sqrt(sxx * syy), -1.0, 1.0))
