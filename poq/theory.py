"""Theory that stands beside the simulations: exact where it can be, and it says where it assumes normal scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from poq.aggregators import _n_cut
from poq.matrix import SCORE_MAX


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
    grid = np.linspace(min(shift, 0.0) - 8, max(shift, 0.0) + 8, 1601)
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


def capture_probability(committee: int, n_malicious: int, n_nodes: int, *, seats: int | None = None) -> float:
    """Probability that malicious nodes hold at least `seats` of the K seats, by default more than half: exact.

    Hypergeometric, because a committee is drawn without replacement.
    """
    seats = committee // 2 + 1 if seats is None else seats
    return float(stats.hypergeom.sf(seats - 1, n_nodes, n_malicious, committee))


def largest_safe_pool(committee: int, n_nodes: int, *, risk: float = 0.01, seats: int | None = None) -> int:
    """The largest number of malicious nodes whose :func:`capture_probability` is at most `risk`."""
    # The probability grows with the number of malicious nodes, and is 0 without any.
    counts = range(n_nodes + 1)
    return max(bad for bad in counts if capture_probability(committee, bad, n_nodes, seats=seats) <= risk)


MONOTONE = ("mean", "median", "trimmed_mean", "winsorised_mean", "quantile_clip")


def breakdown_seats(rule: str, committee: int, *, up: bool = True, cut: float = 0.2, kappa: float = 0.5) -> int:
    """The least number of malicious seats that can move a consensus on which all honest members agree.

    In a range without ends these seats could move it as far as they like (finite-sample breakdown point, times K).

    Parameters
    ----------
    rule : str
        One of MONOTONE.
    up : bool
        Whether it is lifted or lowered; the quantile clip guards the upper side alone [yuma].
    cut, kappa : float
        As in :mod:`poq.aggregators`.
    """
    held = np.arange(1, committee + 1)
    moved = [unanimous_bias(rule, committee, int(bad), 5.0, up=up, cut=cut, kappa=kappa) != 0 for bad in held]
    return int(held[np.argmax(moved)])


def unanimous_bias(
    rule: str, committee: int, held: int, score: float, *, up: bool = True, cut: float = 0.2, kappa: float = 0.5
) -> float:
    """Worst-case bias, points, of a consensus when all honest members report `score` in [0, 10]: closed form.

    The rules in MONOTONE do not fall when a report rises, so the worst that `held` malicious seats can do is to report
    an end of the scale together. Options as in :func:`breakdown_seats`.
    """
    if rule not in MONOTONE:
        raise ValueError(f"no closed form for rule '{rule}': use one of {', '.join(MONOTONE)}")
    if not 0 <= held <= committee:
        raise ValueError(f"held must lie between 0 and the committee {committee}, not {held}")
    reach = SCORE_MAX - score if up else -score
    if held in (0, committee):
        return reach * (held == committee) + 0.0
    if rule == "mean":
        part = held / committee
    elif rule == "median":
        part = (np.sign(2 * held - committee) + 1) / 2
    elif rule == "quantile_clip" and up:
        part = held / committee if held >= kappa * committee - 1e-12 else 0.0
    elif rule == "quantile_clip":
        # The honest value caps the others as long as it has the support; malicious zeros need no support to count.
        part = held / committee if committee - held >= kappa * committee - 1e-12 else 1.0
    else:
        out = _n_cut(committee, cut)
        kept = np.clip((held - out) / (committee - 2 * out), 0.0, 1.0)
        # Of the winsorised mean the cut seats on this side follow the malicious ones.
        part = held / committee if rule == "winsorised_mean" and 0 < kept < 1 else kept
    return float(reach * part) + 0.0  # no minus zero


def worst_bias(rule: Callable, honest, held: int, *, monotone: bool, steps: int = 201, rounds: int = 3):
    """Worst-case bias, points, of a rule on given honest scores when `held` further seats are malicious.

    Parameters
    ----------
    rule : callable
        Of :data:`poq.aggregators.AGGREGATORS`; reduces the last axis.
    honest : (K - m,) float array in [0, 10]
    held : int
        m, the malicious seats.
    monotone : bool
        True: the extremes are exact. False: a search, first over one report for all malicious seats, then over one
        seat after the other; what it finds is a lower bound of the worst case.
    steps : int
        Reports tried per search; rounds : passes over the seats.

    Returns
    -------
    down, up : float
        The furthest that the consensus can be moved from that of the honest scores alone.
    """
    honest = np.asarray(honest, dtype=np.float64)
    base = float(rule(honest))
    if held == 0:
        return 0.0, 0.0

    def moved(reports):
        return rule(np.concatenate([np.broadcast_to(honest, (len(reports), len(honest))), reports], axis=1)) - base

    if monotone:
        down, up = moved(np.array([[0.0] * held, [SCORE_MAX] * held]))
        return float(down), float(up)
    tried = np.linspace(0.0, SCORE_MAX, steps)
    furthest = []
    for sign in (-1.0, 1.0):
        found = sign * moved(np.repeat(tried[:, None], held, axis=1))
        best, report = found.max(), np.full(held, tried[found.argmax()])
        for _ in range(rounds):
            for seat in range(held):
                candidates = np.tile(report, (steps, 1))
                candidates[:, seat] = tried
                found = sign * moved(candidates)
                if found.max() > best:
                    best, report = found.max(), candidates[found.argmax()]
        furthest.append(float(sign * best))
    return tuple(furthest)


def widest_bias(rule: Callable, committee: int, held: int, *, up: bool = True) -> float:
    """Worst-case bias, points, over all honest scores too, of a rule whose value is linear in the ordered scores.

    All of MONOTONE are. While honest scores keep their order, the bias is then linear in them, so that it is largest
    where each of them is 0 or 10: the number of zeros is all there is to try.
    """
    if not 0 <= held < committee:
        raise ValueError(f"held must lie between 0 and {committee - 1}, not {held}")
    side = int(up)
    found = [
        worst_bias(rule, SCORE_MAX * (np.arange(committee - held) >= zeros), held, monotone=True)[side]
        for zeros in range(committee - held + 1)
    ]
    return max(found) if up else min(found)


class Mirror(NamedTuple):
    """Two worlds with the same reports: reports (O, N); truth and its mirror (O,); aligned (N,) in the first world."""

    reports: np.ndarray
    truth: np.ndarray
    mirrored: np.ndarray
    aligned: np.ndarray


def mirrored_worlds(rng: np.random.Generator, *, n_outputs: int, n_nodes: int, aligned_share: float, sd: float = 1.0):
    """One table of reports that fits two worlds, whose truths are q and 10 - q.

    In the first world a share of the nodes reports clip(q + e, 0, 10) and the rest 10 minus such a report; in the
    second world it is the other way round. A rule that is shown reports alone gives the same consensus in both, so
    agreement cannot tell an honest majority from a mirrored one.
    """
    truth = rng.uniform(0.0, SCORE_MAX, n_outputs)
    aligned = np.arange(n_nodes) < int(np.floor(aligned_share * n_nodes + 0.5 + 1e-9))
    reports = np.clip(truth[:, None] + sd * rng.standard_normal((n_outputs, n_nodes)), 0.0, SCORE_MAX)
    return Mirror(np.where(aligned, reports, SCORE_MAX - reports), truth, SCORE_MAX - truth, aligned)


def mirror_bound(truth) -> float:
    """The least error, points, of any rule in the worse of two mirrored worlds: mean of abs(q - 5).

    Because abs(c - q) + abs(c - (10 - q)) >= abs(10 - 2 q), whatever c is, the mean absolute errors of the two worlds
    add up to at least twice this, and the larger one is at least this.
    """
    return float(np.mean(np.abs(np.asarray(truth, dtype=np.float64) - SCORE_MAX / 2)))


def sign_known(skill, audits):
    """Probability that the sign of a node's skill is right after so many audits: exact for normal scores.

    With z and q standardised and of correlation r, sum(z q) = ((1 + r) U - (1 - r) V) / 2 with independent U, V that
    are chi-squared with m degrees of freedom, so the sum has the sign of r > 0 when an F(m, m) variable exceeds
    (1 - r) / (1 + r).

    Parameters
    ----------
    skill : float or array in (-1, 1)
        r, the correlation of the node's scores with the truth.
    audits : int or array
        m, audited participations of the node; levels and spreads are taken as known.
    """
    skill, audits = np.abs(np.asarray(skill, dtype=np.float64)), np.asarray(audits, dtype=np.float64)
    return stats.f.sf((1 - skill) / (1 + skill), audits, audits)


def audits_needed(skill: float, *, confidence: float = 0.95) -> int:
    """The least number of audited participations after which :func:`sign_known` is at least `confidence`."""
    if not (0 < abs(skill) < 1 and 0.5 < confidence < 1):
        raise ValueError(f"skill must lie in (-1, 1) and not be 0, confidence in (0.5, 1): {skill!r}, {confidence!r}")
    most = 1
    while sign_known(skill, most) < confidence:
        most *= 2
    tried = np.arange(1, most + 1)
    return int(tried[np.argmax(sign_known(skill, tried) >= confidence)])


def precision_known(audits, *, factor: float = 1.5):
    """Probability that the variance of a node's normal errors, estimated from m audits, is right within a factor."""
    audits = np.asarray(audits, dtype=np.float64)
    return stats.chi2.cdf(audits * factor, audits) - stats.chi2.cdf(audits / factor, audits)


def lift_loss(lift, *, committee: int, sd: float, leave_one_out: bool = False):
    """Expected closeness, points, that one member loses by lifting its report, all others honest and the rule the mean.

    The distance from the consensus is normal with the s.d. tau of :func:`expected_deviation` and moves by `lift` times
    1 - 1/K, or by all of it against the others alone: the mean of a folded normal. For a small lift the loss is
    quadratic, sqrt(2/pi) delta^2 / (2 tau), while what it moves the consensus by, lift / K, is linear.
    """
    mean, _ = expected_deviation(committee, sd=sd, leave_one_out=leave_one_out)
    tau = mean / np.sqrt(2 / np.pi)
    delta = np.asarray(lift, dtype=np.float64) * (1.0 if leave_one_out else 1 - 1 / committee)
    folded = tau * np.sqrt(2 / np.pi) * np.exp(-(delta**2) / (2 * tau**2)) + delta * (
        1 - 2 * stats.norm.cdf(-delta / tau)
    )
    return folded - mean


def shaded_deviation(weight, *, committee: int, signal: float, noise: float, leave_one_out: bool = False):
    """Expected distance, points, from the mean of honest others, of a report that gives one's own score a weight.

    Truths and errors are normal with s.d. `signal` and `noise`, all evaluators are alike and unbiased, and the report
    is m + weight (s - m) with the mean truth m. Against the others' mean the difference has the variance
    (1 - weight)^2 signal^2 + weight^2 noise^2 + noise^2 / (K - 1); with the own report inside, the distance is 1 - 1/K
    times that. Weight 1 is the truth, 0 is no work, and the best weight is r^2 = signal^2 / (signal^2 + noise^2), the
    same that minimises the squared error against the truth; so no work beats the own score where r^2 < 1/2.

    Returns
    -------
    float array, the shape of `weight`
    """
    weight = np.asarray(weight, dtype=np.float64)
    variance = ((1 - weight) * signal) ** 2 + (weight * noise) ** 2 + noise**2 / (committee - 1)
    return np.sqrt(2 / np.pi * variance) * (1.0 if leave_one_out else 1 - 1 / committee)
