"""Trust rules: consensus rules with a memory, which weigh each node by how it behaved in earlier rounds.

A rule is a pair of functions. ``start(n_nodes, **options)`` checks the options and returns the state, a tuple of
arrays that begins with the weights (N,). ``advance(state, scores, node, audit)`` plays rounds in order, updates the
state in place, and returns consensus (R,), the weights (R, K) before each round's update, and the scores (R, K) as the
rule used them (the reported ones, unless the rule corrects scores inside).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from poq.calibrated import advance_audited, advance_calibrated, start_audited, start_calibrated
from poq.matrix import SCORE_MAX
from poq.rewards import distance


class TrustRule(NamedTuple):
    """How a rule starts and how it advances; see the head of this module."""

    start: Callable
    advance: Callable


class TrustRun(NamedTuple):
    """consensus (R,); weights (R, K) of the committee before each update; final (N,) weights after the last round."""

    consensus: np.ndarray
    weights: np.ndarray
    final: np.ndarray


def run_trust(scores, node, n_nodes: int, *, rule: str = "paper", audit=None, **options) -> TrustRun:
    """Play rounds in order under a trust rule.

    Parameters
    ----------
    scores : (R, K) float array in [0, 10]
        Reported scores.
    node : (R, K) int array
        Who reported them; nodes of one round differ.
    n_nodes : int
    rule : str
        A key of TRUST_RULES.
    audit : (R,) float array, optional
        The truth of audited rounds, NaN elsewhere; a rule reads it only after that round's consensus.
    **options
        Of the rule; for "paper": rate, low, high, start.

    Raises
    ------
    ValueError
        For an unknown rule, a bad value of an option, or arrays that do not fit.
    TypeError
        For an option that the rule does not have.
    """
    if rule not in TRUST_RULES:
        raise ValueError(f"unknown trust rule '{rule}': use one of {', '.join(TRUST_RULES)}")
    scores = np.asarray(scores, dtype=np.float64)
    node = np.asarray(node)
    if scores.ndim != 2 or scores.shape != node.shape:
        raise ValueError(f"scores and node must both be (R, K), not {scores.shape} and {node.shape}")
    if scores.shape[1] == 0:
        raise ValueError(f"scores must have a member in each round, not shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite, none of them NaN: leave those who did not score out of the committee")
    if not np.issubdtype(node.dtype, np.integer):
        raise ValueError(f"node must hold whole numbers, not {node.dtype}")
    if node.size and (node.min() < 0 or node.max() >= n_nodes):
        raise ValueError(f"node must hold numbers from 0 to {n_nodes - 1}")
    audit = np.full(len(scores), np.nan) if audit is None else np.asarray(audit, dtype=np.float64)
    if audit.shape != (len(scores),):
        raise ValueError(f"audit must be (R,) = ({len(scores)},), not {audit.shape}")
    state = TRUST_RULES[rule].start(n_nodes, **options)
    consensus, weights, _ = TRUST_RULES[rule].advance(state, scores, node.astype(np.int32), audit)
    return TrustRun(consensus, weights, state[0].copy())


class PaperState(NamedTuple):
    """weights (N,), and the constants of Eq. 21."""

    weights: np.ndarray
    rate: float
    low: float
    high: float


def start_paper(n_nodes: int, *, rate: float = 0.1, low: float = 0.1, high: float = 5.0, start: float = 1.0):
    """State of Eq. 21; the values are our reconstruction, the paper does not publish its own."""
    if not 0 < low <= start <= high < np.inf:
        raise ValueError(f"trust bounds must satisfy 0 < low <= start <= high, not {low!r}, {start!r}, {high!r}")
    if not 0 <= rate < 2:
        raise ValueError(f"rate must lie in [0, 2), so that a weight stays positive, not {rate!r}")
    return PaperState(np.full(n_nodes, float(start)), float(rate), float(low), float(high))


def advance_paper(state: PaperState, scores, node, audit):
    """Eq. 21 [robust2026, as told by promptfoo]: w <- clip(w (1 + rate (0.5 - d)), low, high), d = abs(s - c) / 10.

    The consensus is the mean weighted by the weights before the update, the node's own score inside; only the
    committee's nodes are updated.
    """
    return _advance(_paper_rounds, state, scores, node)


def _advance(rounds: Callable, state: tuple, scores, node):
    """Call the compiled loop of a rule that weighs reports as they are."""
    seats = np.ascontiguousarray(scores.T)
    consensus = np.empty(len(scores))
    weights = np.empty_like(seats)
    rounds(seats, np.ascontiguousarray(node.T), *state, consensus, weights)
    return consensus, weights.T, scores


@njit(cache=True)
def updated_weight(weight, deviation, rate, low, high):
    """Eq. 21 for one node: clip(w (1 + rate (0.5 - d)), low, high)."""
    return min(max(weight * (1.0 + rate * (0.5 - deviation)), low), high)


@njit(cache=True)
def weighted_consensus(weighted, total):
    """Weighted mean of scores, from its two sums; rounding must not carry it past the ends of the scale."""
    return min(max(weighted / total, 0.0), SCORE_MAX)


@njit(cache=True)
def _consensus_of_round(scores, node, trust, weights, t):
    """Mean of round t weighted by trust; notes the weights before their update."""
    total = 0.0
    weighted = 0.0
    for k in range(len(scores)):
        w = trust[node[k, t]]
        weights[k, t] = w
        total += w
        weighted += w * scores[k, t]
    return weighted_consensus(weighted, total)


@njit(cache=True)
def _paper_rounds(scores, node, trust, rate, low, high, consensus, weights):
    committee, n_rounds = scores.shape
    for t in range(n_rounds):
        c = _consensus_of_round(scores, node, trust, weights, t)
        consensus[t] = c
        for k in range(committee):
            trust[node[k, t]] = updated_weight(weights[k, t], distance(scores[k, t], c), rate, low, high)


class RecentredState(NamedTuple):
    """weights (N,); usual : (1,) running median of deviations; and the constants of Eq. 21."""

    weights: np.ndarray
    usual: np.ndarray
    rate: float
    low: float
    high: float


def start_recentred(n_nodes: int, *, rate: float = 0.1, low: float = 0.1, high: float = 5.0, start: float = 1.0):
    """State of Eq. 21 recentred; options as in :func:`start_paper`."""
    weights, *constants = start_paper(n_nodes, rate=rate, low=low, high=high, start=start)
    return RecentredState(weights, np.array([0.1]), *constants)


def advance_recentred(state: RecentredState, scores, node, audit):
    """Eq. 21 with the running median of deviations in the place of 0.5 (our reconstruction).

    A node that deviates more than usual loses trust, so that weights need not all drift to the upper bound.
    """
    return _advance(_recentred_rounds, state, scores, node)


@njit(cache=True)
def _recentred_rounds(scores, node, trust, usual, rate, low, high, consensus, weights):
    committee, n_rounds = scores.shape
    for t in range(n_rounds):
        consensus[t] = _consensus_of_round(scores, node, trust, weights, t)
        for k in range(committee):
            d = distance(scores[k, t], consensus[t])
            # 0.5 of Eq. 21 becomes the usual deviation, and the step keeps its size relative to it.
            centred = 0.5 + 0.5 * (d - usual[0]) / max(usual[0], 0.01)
            trust[node[k, t]] = updated_weight(weights[k, t], min(centred, 1.5), rate, low, high)
        # The median is where as many steps go up as down; all of a round together, as seats have no order.
        steps = 0
        for k in range(committee):
            steps += 1 if distance(scores[k, t], consensus[t]) > usual[0] else -1
        usual[0] = max(usual[0] + 0.001 * steps, 0.001)


class EmaState(NamedTuple):
    """weights (N,), deviation (N,) its moving average, keep : what a participation leaves of the past."""

    weights: np.ndarray
    deviation: np.ndarray
    keep: float


def start_ema(n_nodes: int, *, memory: float = 100.0) -> EmaState:
    """State of trust by an exponential moving average of deviation; memory in participations."""
    if not (np.isfinite(memory) and memory >= 1):
        raise ValueError(f"memory must be 1 participation or more, not {memory!r}")
    return EmaState(np.full(n_nodes, _ema_weight.py_func(0.2)), np.full(n_nodes, 0.2), 1.0 - 1.0 / memory)


def advance_ema(state: EmaState, scores, node, audit):
    """Weight 1 / (D^2 + 0.05^2) of the moving average D of a node's deviation (our reconstruction)."""
    return _advance(_ema_rounds, state, scores, node)


@njit(cache=True)
def _ema_weight(deviation):
    return 1.0 / (deviation * deviation + 0.0025)


@njit(cache=True)
def _ema_rounds(scores, node, trust, average, keep, consensus, weights):
    committee, n_rounds = scores.shape
    for t in range(n_rounds):
        consensus[t] = _consensus_of_round(scores, node, trust, weights, t)
        for k in range(committee):
            n = node[k, t]
            average[n] = keep * average[n] + (1.0 - keep) * distance(scores[k, t], consensus[t])
            trust[n] = _ema_weight(average[n])


TRUST_RULES: dict[str, TrustRule] = {
    "paper": TrustRule(start_paper, advance_paper),
    "recentred": TrustRule(start_recentred, advance_recentred),
    "ema": TrustRule(start_ema, advance_ema),
    "calibrated": TrustRule(start_calibrated, advance_calibrated),
    "audited": TrustRule(start_audited, advance_audited),
}
