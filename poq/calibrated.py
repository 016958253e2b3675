"""Trust that learns how each node reports: its bias, its gain and its noise, without the truth or with audits of it.

Both rules assume that node n reports s = a_n + g_n q + e with Var(e) = v_n, and weigh reports by precision. They differ
in what q is compared with: ``calibrated`` knows only the consensus of the others, ``audited`` is shown the truth of a
few rounds after they are paid. All of it is our reconstruction; the model is that of bias and inconsistency in
[itu_p910], and weighing by estimated variance is truth discovery as in [catd2014].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from poq.matrix import SCORE_MAX

NOISE_START = 2.0  # variance of a report before anything is known, points^2
NOISE_FLOOR = 0.25  # no node is believed to be more precise than a quarter of the median variance: a guard on collusion
SKILL_START = 0.5  # correlation with the truth of a node before any audit
POOL_PRIOR = 20.0  # audited rounds that this start weighs as much as
MOST_SHRINKAGE = 200.0  # audited participations; nodes are never believed to be exactly alike
FLAT = 1e6  # variance of a truth about which nothing is known yet


class CalibratedState(NamedTuple):
    """weights (N,), then per node bias, gain, noise, and sums (N, 7); world : mean, variance of the truth, rounds."""

    weights: np.ndarray
    bias: np.ndarray
    gain: np.ndarray
    noise: np.ndarray
    sums: np.ndarray
    world: np.ndarray
    keep: float
    prior: float
    refit: int


def start_calibrated(n_nodes: int, *, memory: float = 2000.0, prior: float = 20.0, refit: int = 50) -> CalibratedState:
    """State of the calibrated rule.

    Parameters
    ----------
    memory : float
        Participations after which what a node did counts 1/e.
    prior : float
        Participations that the assumption "like the median node" weighs as much as.
    refit : int
        Rounds between two estimates.
    """
    _check_positive(memory=memory, prior=prior)
    if memory <= 1:
        raise ValueError(f"memory must be more than 1 participation, not {memory!r}")
    if isinstance(refit, bool) or refit != int(refit) or refit < 1:
        raise ValueError(f"refit must be a whole number of rounds, 1 or more, not {refit!r}")
    return CalibratedState(
        weights=np.full(n_nodes, 1 / NOISE_START),
        bias=np.zeros(n_nodes),
        gain=np.ones(n_nodes),
        noise=np.full(n_nodes, NOISE_START),
        sums=np.zeros((n_nodes, 7)),
        world=np.array([SCORE_MAX / 2, FLAT, 0.0]),
        keep=1.0 - 1.0 / memory,
        prior=float(prior),
        refit=int(refit),
    )


def advance_calibrated(state: CalibratedState, scores, node, audit):
    """Posterior mean of the truth given all reports, under what the rule believes about the nodes.

    c = (m / v + sum g (s - a) / v_n) / (1 / v + sum g^2 / v_n), with m, v the mean and variance of the truth. At the
    start all nodes are alike and v is infinite, so c is the plain mean. For each member the same expression over the
    others gives x, and its posterior variance p; regressing s on x is free of attenuation, because x is a posterior
    mean, and the variance of the residual exceeds that of the report's noise by g^2 p. Only relative bias and gain can
    be learnt without the truth: levels are anchored at the median node, so that a minority cannot move them far, and
    gains at the median weighted by how much of a node's variance is signal.
    """
    seats = np.ascontiguousarray(scores.T)
    consensus = np.empty(len(scores))
    weights, used = np.empty_like(seats), np.empty_like(seats)
    _calibrated_rounds(seats, np.ascontiguousarray(node.T), *state, consensus, weights, used)
    return consensus, weights.T, used.T


@njit(cache=True)
def _calibrated_rounds(
    scores, node, trust, bias, gain, noise, sums, world, keep, prior, refit, consensus, weights, used
):
    committee, n_rounds = scores.shape
    for t in range(n_rounds):
        mean, variance = world[0], world[1]
        pull = mean / variance
        precision = 1.0 / variance
        for k in range(committee):
            n = node[k, t]
            corrected = (scores[k, t] - bias[n]) / gain[n]
            weights[k, t] = trust[n]
            used[k, t] = corrected
            pull += trust[n] * corrected
            precision += trust[n]
        consensus[t] = min(max(pull / precision, 0.0), SCORE_MAX)
        for k in range(committee):
            n = node[k, t]
            left = precision - trust[n]
            if committee == 1 and variance == FLAT:
                continue  # nobody to compare with, and nothing known
            x = (pull - trust[n] * used[k, t]) / left
            y = scores[k, t]
            row = sums[n]
            row *= keep
            row += np.array([1.0, x, y, x * x, x * y, y * y, 1.0 / left])
        world[2] += 1
        if world[2] % refit == 0:
            _refit_calibrated(trust, bias, gain, noise, sums, world, prior)


@njit(cache=True)
def _refit_calibrated(trust, bias, gain, noise, sums, world, prior):
    seen = sums[:, 0] > 3
    if seen.sum() < 2:
        return
    w = np.maximum(sums[:, 0], 1e-12)
    mean_x, mean_y, unsure = sums[:, 1] / w, sums[:, 2] / w, sums[:, 6] / w
    var_x = _without_rounding(sums[:, 3] / w - mean_x**2)
    cov = _without_rounding(sums[:, 4] / w - mean_x * mean_y)
    var_y = _without_rounding(sums[:, 5] / w - mean_y**2)
    spread = np.median(var_x[seen])
    slope = (cov * w + prior * spread) / (var_x * w + prior * spread + 1e-9)
    residual = var_y - 2 * slope * cov + slope**2 * var_x - slope**2 * unsure
    common = max(np.median(residual[seen]), 0.05)
    noise[:] = np.maximum((residual * w + prior * common) / (w + prior), NOISE_FLOOR * common)
    # The variance of the truth is that of its posterior mean and what that leaves open.
    left_open = 0.0 if world[1] == FLAT else sums[:, 6].sum() / sums[:, 0].sum()
    world[1] = max(spread + left_open, 0.2)
    known = w / (w + prior)
    signal = slope**2 * world[1]
    share = known * signal / (signal + noise)  # how much of a node's variance is signal
    middle = weighted_median(slope[seen], share[seen])
    if middle > 0.1:
        slope = slope / middle
    world[0] = np.median(mean_y[seen])
    for n in range(len(slope)):
        # A gain near zero would blow a report up; it carries nothing, so its size does not matter.
        gain[n] = slope[n] if abs(slope[n]) > 0.01 else 0.01
        sure = w[n] / (w[n] + 0.3 * prior)
        bias[n] = sure * mean_y[n] + (1 - sure) * world[0] - gain[n] * world[0]
        trust[n] = gain[n] ** 2 / noise[n]


@njit(cache=True)
def _without_rounding(moment):
    """A variance or covariance without what rounding leaves of a constant, which would hang on the order of nodes."""
    return np.where(np.abs(moment) < 1e-9, 0.0, moment)


@njit(cache=True)
def weighted_median(values, weights):
    """The least value at which half of the weight is reached."""
    order = np.argsort(values)
    half = 0.5 * weights.sum()
    reached = 0.0
    for i in order:
        reached += weights[i]
        if reached >= half:
            return values[i]
    return values[order[-1]]


class AuditedState(NamedTuple):
    """weights (N,), then per node skill (N,), levels (N, 3), audits (N, 2); world (8,) of pooled sums."""

    weights: np.ndarray
    skill: np.ndarray
    levels: np.ndarray
    audits: np.ndarray
    world: np.ndarray
    keep: float
    prior: float
    blend: float
    audit_share: float


def start_audited(
    n_nodes: int, *, audit_share: float = 0.02, memory: float = 2000.0, prior: float = 20.0, blend: float = 20.0
) -> AuditedState:
    """State of the audited rule.

    Parameters
    ----------
    audit_share : float in [0, 1]
        Share of rounds whose truth is revealed after payment. The simulation draws which; in :func:`run_trust` the
        argument `audit` says it.
    memory : float
        Participations after which what a node reported counts 1/e; audits of it fade after a tenth as many.
    prior : float
        Audited participations that the assumption "as skilled as all" weighs as much as.
    blend : float
        Audits after which the rule stands half way between the plain mean and its own estimate.
    """
    _check_positive(memory=memory, prior=prior, blend=blend)
    if memory <= 10:
        raise ValueError(f"memory must be more than 10 participations, not {memory!r}")
    if not 0 <= audit_share <= 1:
        raise ValueError(f"audit_share must lie in [0, 1], not {audit_share!r}")
    return AuditedState(
        weights=np.full(n_nodes, _skill_weight.py_func(SKILL_START)),
        skill=np.full(n_nodes, SKILL_START),
        levels=np.zeros((n_nodes, 3)),
        audits=np.zeros((n_nodes, 2)),
        world=np.zeros(8),
        keep=1.0 - 1.0 / memory,
        prior=float(prior),
        blend=float(blend),
        audit_share=float(audit_share),
    )


def advance_audited(state: AuditedState, scores, node, audit):
    """Posterior mean of the truth with each node's skill r, its correlation with the truth, learnt from audits.

    Reports are centred and scaled by the node's own level and spread, which need no truth: z. With independent errors
    the posterior mean is sum(r / (1 - r^2) z) / (1 + sum(r^2 / (1 - r^2))) standard deviations from the mean truth. A
    negative skill turns a report round. The skill of a node is shrunk to that of all nodes, and the estimate blends in
    with the number of audits; before the first one the consensus is the plain mean.
    """
    seats = np.ascontiguousarray(scores.T)
    consensus = np.empty(len(scores))
    weights, used = np.empty_like(seats), np.empty_like(seats)
    _audited_rounds(seats, np.ascontiguousarray(node.T), audit, *state, consensus, weights, used)
    return consensus, weights.T, used.T


@njit(cache=True)
def _skill_weight(skill):
    """r / (1 - r^2), with r kept away from 1: no finite number of audits shows a perfect node."""
    r = min(max(skill, -0.95), 0.95)
    return r / (1.0 - r * r)


@njit(cache=True)
def _standardised(score, level, common, spread):
    """Score in standard deviations of its node; 20 participations of a common node are mixed in."""
    count = level[0] + 20.0
    mean = (level[1] + 20.0 * common) / count
    return (score - mean) / np.sqrt(max((level[2] + 20.0 * spread) / count, 0.05))


@njit(cache=True)
def _sampling_over_real(audits, pooled):
    """Audited participations after which a node's own skill says more than the pooled one (empirical Bayes).

    One z q has a variance of about 1, so a mean of a has 1 / a; what skills vary beyond that is real.
    """
    total = weight = sampling = 0.0
    for n in range(len(audits)):
        a = audits[n, 0]
        if a >= 1.0:
            weight += a
            total += a * (audits[n, 1] / a - pooled) ** 2
            sampling += 1.0
    if weight == 0.0:
        return MOST_SHRINKAGE
    real = (total - sampling) / weight
    return 1.0 / max(real, 1.0 / MOST_SHRINKAGE)


@njit(cache=True)
def _audited_rounds(
    scores, node, audit, trust, skill, levels, audits, world, keep, prior, blend, audit_share, consensus, weights, used
):
    # world: reports, their sum, their sum of squares; audits, sum of truths, of squares about the mean truth;
    # audited participations, their sum of z times standardised truth
    committee, n_rounds = scores.shape
    keep_audit = 1.0 - 10.0 * (1.0 - keep)
    z = np.empty(committee)
    for t in range(n_rounds):
        common = world[1] / world[0] if world[0] > 0 else SCORE_MAX / 2
        spread = max(world[2] / world[0] - common**2, 0.1) if world[0] > 30 else 4.0
        mean = (world[4] + 5.0 * common) / (world[3] + 5.0)
        sd = np.sqrt((world[5] + 40.0) / (world[3] + 10.0))
        pull = 0.0
        precision = 1.0
        plain = 0.0
        for k in range(committee):
            n = node[k, t]
            z[k] = _standardised(scores[k, t], levels[n], common, spread)
            weight = _skill_weight(skill[n])
            pull += weight * z[k]
            precision += weight * min(max(skill[n], -0.95), 0.95)
            plain += scores[k, t] / committee
        own = world[3] / (world[3] + blend)
        # How far the level moves to that of the audited truths depends on the correlation that the committee is
        # believed to have: a level that wanders while audits come in would drown a weak signal.
        believed = np.sqrt(max(1.0 - 1.0 / precision, 0.0))
        level = common + believed * (mean - common)
        c = own * (level + sd * pull / precision) + (1.0 - own) * plain
        consensus[t] = min(max(c, 0.0), SCORE_MAX)
        for k in range(committee):
            n = node[k, t]
            weights[k, t] = trust[n]
            turned = z[k] if skill[n] >= 0 else -z[k]
            used[k, t] = own * (level + sd * turned) + (1.0 - own) * scores[k, t]
        if not np.isnan(audit[t]):
            q = (audit[t] - mean) / sd
            world[3] += 1.0
            world[4] += audit[t]
            world[5] += (audit[t] - mean) ** 2
            for k in range(committee):
                row = audits[node[k, t]]
                row *= keep_audit
                row += np.array([1.0, z[k] * q])
                world[6] += 1.0
                world[7] += z[k] * q
            doubt = POOL_PRIOR * committee
            pooled = (world[7] + doubt * SKILL_START) / (world[6] + doubt)
            shrink = max(prior, _sampling_over_real(audits, pooled))
            for n in range(len(skill)):
                skill[n] = (audits[n, 1] + shrink * pooled) / (audits[n, 0] + shrink)
                trust[n] = abs(_skill_weight(skill[n]))
        for k in range(committee):
            row = levels[node[k, t]]
            s = scores[k, t]
            before = (row[1] + 20.0 * common) / (row[0] + 20.0)
            row *= keep
            row += np.array([1.0, s, (s - before) ** 2])
            world[0] += 1.0
            world[1] += s
            world[2] += s * s


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, not {value!r}")
