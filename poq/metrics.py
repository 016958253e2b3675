"""Metrics: how close the consensus came to the truth, and how the pay fell out.

The first functions take whole arrays. The rest does the same in a stream: sums are added up block by block, so that
memory does not grow with the number of rounds, and are turned into a row of numbers at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from poq.matrix import ROUNDING, SCORE_MAX
from poq.rewards import distance, reward

# Ranks of the consensus are taken in bins of 10 / 2**14 = 0.0006 points. Scores that fall into one bin count as tied.
RANK_BINS = 2**14
TRUST_MARKS = (0, 25, 50, 75, 100)  # per cent of the run at which the malicious share of trust is read


def pearson(consensus, truth) -> float:
    """Pearson correlation of two (R,) arrays; NaN where one of them does not vary."""
    consensus, truth = np.asarray(consensus), np.asarray(truth)
    if len(consensus) < 2 or np.ptp(consensus) == 0 or np.ptp(truth) == 0:
        return float("nan")
    return float(np.corrcoef(consensus, truth)[0, 1])


def spearman(consensus, truth) -> float:
    """Spearman rank correlation of two (R,) arrays; NaN where one of them does not vary."""
    from scipy.stats import rankdata  # not above: it takes a second to load, in every worker too

    return pearson(rankdata(consensus), rankdata(truth))


def rmse(consensus, truth) -> float:
    """Root mean squared error, points."""
    return float(np.sqrt(np.mean(np.square(np.asarray(consensus) - truth))))


def mae(consensus, truth) -> float:
    """Mean absolute error, points."""
    return float(np.mean(np.abs(np.asarray(consensus) - truth)))


def bias(consensus, truth) -> float:
    """Mean of consensus minus truth, points."""
    return float(np.mean(np.asarray(consensus) - truth))


class Sums(NamedTuple):
    """What a run adds up.

    accuracy : (6,) c, q, c^2, q^2, c q, abs(c - q), with c and q counted from the middle of the scale
    rank : (RANK_BINS, 2) rounds, and their summed truth ranks, per bin of the consensus
    node : (N, 3) participations, sum of d, sum of d^2 per node
    model : (M, 3) rounds, sum of c, sum of c^2 per inference model
    round : (5,) D, D^2, C, C^2, D C, where D and C are a round's summed deviations and evaluator costs
    """

    accuracy: np.ndarray
    rank: np.ndarray
    node: np.ndarray
    model: np.ndarray
    round: np.ndarray


def start_sums(n_nodes: int, n_models: int) -> Sums:
    """Sums of no rounds."""
    return Sums(np.zeros(6), np.zeros((RANK_BINS, 2)), np.zeros((n_nodes, 3)), np.zeros((n_models, 3)), np.zeros(5))


def add_accuracy(sums: Sums, output, consensus, truth, truth_rank) -> None:
    """Add a block of rounds to what accuracy needs, in place.

    output, consensus : (B,); truth, truth_rank : (O,) by output.
    """
    _add_accuracy(sums.accuracy, sums.rank, output, consensus, truth, truth_rank)


def add_inference_pay(sums: Sums, output, consensus, model) -> None:
    """Add a block of rounds to what the pay of inference nodes needs, in place.

    output, consensus : (B,); model : (O,).
    """
    _add_inference_pay(sums.model, output, consensus, model)


def add_evaluator_pay(sums: Sums, node, scores, reference, node_cost) -> None:
    """Add a block of rounds to what the pay of evaluators needs, in place.

    node, scores : (B, K); reference : (B,) or (B, K); node_cost : (N,).
    """
    seats = [np.ascontiguousarray(np.atleast_2d(array.T)) for array in (node, scores, reference)]
    _add_evaluator_pay(sums.node, sums.round, *seats, node_cost)


@njit(cache=True)
def _add_accuracy(accuracy, rank, output, consensus, truth, truth_rank):
    middle = SCORE_MAX / 2
    c1 = q1 = c2 = q2 = cq = absolute = 0.0
    for t in range(len(output)):
        o = np.uint64(output[t])  # unsigned indices: see poq.rounds
        c = consensus[t]
        q = truth[o]
        absolute += abs(c - q)
        bin_ = np.uint64(min(max(int(c * (RANK_BINS / SCORE_MAX)), 0), RANK_BINS - 1))
        rank[bin_, 0] += 1.0
        rank[bin_, 1] += truth_rank[o]
        c -= middle
        q -= middle
        c1 += c
        q1 += q
        c2 += c * c
        q2 += q * q
        cq += c * q
    accuracy += np.array([c1, q1, c2, q2, cq, absolute])


@njit(cache=True)
def _add_inference_pay(by_model, output, consensus, model):
    for t in range(len(output)):
        m = np.uint64(model[np.uint64(output[t])])
        by_model[m, 0] += 1.0
        by_model[m, 1] += consensus[t]
        by_model[m, 2] += consensus[t] * consensus[t]


@njit(cache=True)
def add_seat(by_node, n, d):
    """Add a participation of node n that deviated by d; compiled loops share it."""
    by_node[n, 0] += 1.0
    by_node[n, 1] += d
    by_node[n, 2] += d * d


@njit(cache=True)
def add_round(sums, d, c):
    """Add a round's summed deviations d and costs c to (D, D^2, C, C^2, D C); compiled loops share it."""
    return sums[0] + d, sums[1] + d * d, sums[2] + c, sums[3] + c * c, sums[4] + d * c


@njit(cache=True)
def _add_evaluator_pay(by_node, by_round, node, scores, reference, node_cost):
    committee, n_rounds = node.shape
    own = np.uint64(len(reference) > 1)  # every seat has a reference of its own, or the round has one for all
    sums = (0.0, 0.0, 0.0, 0.0, 0.0)
    for t in range(n_rounds):
        round_d = 0.0
        round_c = 0.0
        for k in range(committee):
            n = np.uint64(node[k, t])
            d = distance(scores[k, t], reference[own * np.uint64(k), t])
            add_seat(by_node, n, d)
            round_d += d
            round_c += node_cost[n]
        sums = add_round(sums, round_d, round_c)
    by_round += np.array(sums)


def truth_ranks(tie: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Midrank of each output's truth, (O,), among all rounds, when output o is answered count[o] times.

    tie : (O,) number of each output's truth among the distinct truths. Ranks are centred and divided by the number of
    rounds, so that sums over many rounds keep their precision.
    """
    rounds = np.bincount(tie, weights=count)
    return _centred_midrank(rounds)[tie]


@njit(cache=True)
def _centred_midrank(count):
    total = count.sum()
    midrank = np.empty(len(count))
    reached = 0.0
    for i in range(len(count)):
        midrank[i] = (reached + count[i] / 2) / total - 0.5
        reached += count[i]
    return midrank


def accuracy_row(sums: Sums, truth_rank: np.ndarray, count: np.ndarray) -> dict[str, float]:
    """pearson, spearman, rmse, mae, bias of consensus against truth; count : (O,) rounds per output."""
    n = count.sum()
    c1, q1, c2, q2, cq, absolute = sums.accuracy / n
    var_c, var_q = c2 - c1 * c1, q2 - q1 * q1
    hits, truth_by_bin = sums.rank.T
    centred = _centred_midrank(hits)  # an empty bin has a rank too, which nothing is multiplied with
    return {
        "pearson": _ratio(cq - c1 * q1, var_c, var_q),
        "spearman": _ratio(
            (centred * truth_by_bin).sum() / n,
            (centred**2 * hits).sum() / n,
            (truth_rank**2 * count).sum() / n,
        ),
        "rmse": float(np.sqrt(max(c2 - 2 * cq + q2, 0.0))),
        "mae": float(absolute),
        "bias": float(c1 - q1),
    }


def _ratio(covariance: float, var_x: float, var_y: float) -> float:
    # A variance below this is what rounding leaves of a constant: a block adds up 10^4 squares of up to 25.
    if min(var_x, var_y) < 1e-10:
        return float("nan")
    return float(np.clip(covariance / np.sqrt(var_x * var_y), -1.0, 1.0))


def evaluator_pay_row(sums: Sums, malicious, node_cost, committee: int, *, alpha: float, beta: float) -> dict:
    """Evaluator pay in the four readings of "payoff variance".

    Per participation, pooled (evaluator_reward*), as the sum per round (evaluator_pay_round*), per node over the run
    (evaluator_pay_node*), and between node means (evaluator_reward_between_sd). Pay is linear in d, so its moments
    follow from those of d.

    malicious : (N,) bool; node_cost : (N,) normalised.
    """
    seats, d1, d2 = sums.node.T
    best = reward(1.0, node_cost, alpha=alpha, beta=beta)
    total = best * seats - alpha * d1
    squares = best**2 * seats - 2 * best * alpha * d1 + alpha**2 * d2
    row = {}
    groups = {"": np.ones_like(malicious), "_honest": ~malicious, "_malicious": malicious}
    for suffix, group in groups.items():
        pay, spread = _mean_sd(seats[group].sum(), total[group].sum(), squares[group].sum())
        row[f"evaluator_reward{suffix}"] = pay
        row[f"evaluator_reward{suffix}_sd"] = spread
    n_rounds = seats.sum() / committee
    big_d, big_d2, big_c, big_c2, big_dc = sums.round / n_rounds
    row["evaluator_pay_round"] = float(alpha * (committee - big_d) - beta * big_c)
    variance = (
        alpha**2 * (big_d2 - big_d**2) + beta**2 * (big_c2 - big_c**2) + 2 * alpha * beta * (big_dc - big_d * big_c)
    )
    row["evaluator_pay_round_sd"] = float(np.sqrt(max(variance, 0.0)))
    row["evaluator_pay_node"] = float(total.mean())
    row["evaluator_pay_node_sd"] = float(total.std())
    sat = seats > 0
    row["evaluator_reward_between_sd"] = float((total[sat] / seats[sat]).std())
    return row


def inference_pay_row(sums: Sums, model_cost, models, *, alpha: float, beta: float) -> dict[str, float]:
    """Inference pay pooled over rounds, and its mean per model; model_cost : (M,) normalised, models : names."""
    rounds, c1, c2 = sums.model.T
    base = reward(0.0, model_cost, alpha=alpha, beta=beta)
    slope = alpha / SCORE_MAX
    total = base * rounds + slope * c1
    squares = base**2 * rounds + 2 * base * slope * c1 + slope**2 * c2
    pay, spread = _mean_sd(rounds.sum(), total.sum(), squares.sum())
    row = {"inference_reward": pay, "inference_reward_sd": spread}
    for name, n, sum_ in zip(models, rounds, total):
        row[f"inference_reward[{name}]"] = float(sum_ / n) if n else float("nan")
    return row


def _mean_sd(n: float, total: float, squares: float) -> tuple[float, float]:
    """Mean and population s.d. of n values; NaN for none of them."""
    if n == 0:
        return float("nan"), float("nan")
    mean = total / n
    return float(mean), float(np.sqrt(max(squares / n - mean**2, 0.0)))


def pay_per_round(sums: Sums, malicious, node_cost, model_cost, *, pay: dict[str, float]) -> dict[str, float]:
    """Mean pay per round to inference, honest, malicious nodes and all together; `pay` holds the four factors."""
    seats, d1, _ = sums.node.T
    rounds, c1, _ = sums.model.T
    n_rounds = rounds.sum()
    best = reward(1.0, node_cost, alpha=pay["evaluator_alpha"], beta=pay["evaluator_beta"])
    evaluators = (best * seats - pay["evaluator_alpha"] * d1) / n_rounds
    idle = reward(0.0, model_cost, alpha=pay["inference_alpha"], beta=pay["inference_beta"])
    inference = float((idle * rounds + pay["inference_alpha"] / SCORE_MAX * c1).sum() / n_rounds)
    honest, malicious_ = float(evaluators[~malicious].sum()), float(evaluators[malicious].sum())
    return {
        "inference": inference,
        "honest": honest,
        "malicious": malicious_,
        "total": inference + honest + malicious_,
    }


def baseline_row(values: np.ndarray, truth: np.ndarray, count: np.ndarray, best: int) -> dict[str, float]:
    """What one evaluator alone, or a constant, would reach on the same rounds without any attack.

    values : (O, E); truth, count : (O,); best : column of the evaluator that tracks the truth best over the log.
    The random single evaluator is the mean over evaluators. The constant is the mean truth of these rounds.
    """
    used = count > 0
    values, truth, weight = values[used], truth[used, None], count[used, None]
    known = ~np.isnan(values)
    w = weight * known
    n = w.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.where(known, values, 0.0)
        error = np.sqrt((w * (x - truth) ** 2).sum(axis=0) / n)
        dx = x - (w * x).sum(axis=0) / n
        dy = truth - (w * truth).sum(axis=0) / n
        covariance = (w * dx * dy).sum(axis=0)
        spread = np.sqrt((w * dx * dx).sum(axis=0) * (w * dy * dy).sum(axis=0))
        spread[spread < ROUNDING * np.maximum(n, 1)] = np.nan
        correlation = covariance / spread
    mean_truth = (weight * truth).sum() / weight.sum()
    return {
        "best_single_pearson": float(correlation[best]),
        "best_single_rmse": float(error[best]),
        "random_single_pearson": _nan_mean(correlation),
        "random_single_rmse": _nan_mean(error),
        "constant_rmse": float(np.sqrt((weight * (truth - mean_truth) ** 2).sum() / weight.sum())),
    }


def _nan_mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
