"""Metrics: how close the consensus came to the truth, and how the pay fell out.

The first functions take whole arrays. The rest does the same in a stream: sums are added up block by block, so that
memory does not grow with the number of rounds, and are turned into numbers at the end, those of all runs at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from poq.matrix import ROUNDING, SCORE_MAX
from poq.rewards import distance, reward

# Ranks of the consensus are taken in bins of 10 / 2**14 = 0.0006 points. Scores that fall into one bin count as tied.
RANK_BINS = 2**14
RANK_LIST = 2**15  # rounds that wait to be counted into bins, at most
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


class Ranks(NamedTuple):
    """What a run keeps for the rank correlation.

    A round waits in a list until the list is full; then all of it is counted into bins. So a short run touches no more
    memory than it has rounds: bins for each of a hundred rules would drive each other out of the cache.

    waiting : (1,) how many rounds wait
    bin, output : (L,) bin of the consensus, and output, of each round that waits
    counted : (RANK_BINS, 2) rounds, and their summed truth ranks, per bin; empty where the list holds the whole run
    """

    waiting: np.ndarray
    bin: np.ndarray
    output: np.ndarray
    counted: np.ndarray


class Sums(NamedTuple):
    """What a run adds up.

    accuracy : (6,) c, q, c^2, q^2, c q, abs(c - q), with c and q counted from the middle of the scale
    ranks : see :class:`Ranks`
    node : (N, 3) participations, sum of d, sum of d^2 per node
    model : (M, 3) rounds, sum of c, sum of c^2 per inference model
    round : (5,) D, D^2, C, C^2, D C, where D and C are a round's summed deviations and evaluator costs
    """

    accuracy: np.ndarray
    ranks: Ranks
    node: np.ndarray
    model: np.ndarray
    round: np.ndarray


class Totals(NamedTuple):
    """The sums of one finished run, or of several along the first axes; arrays as in :class:`Sums`.

    rank : (..., 2) mean product of the ranks of consensus and truth, and mean squared rank of the consensus
    """

    accuracy: np.ndarray
    rank: np.ndarray
    node: np.ndarray
    model: np.ndarray
    round: np.ndarray


def start_sums(n_nodes: int, n_models: int, *, n_rounds: int) -> Sums:
    """Sums of no rounds, for a run whose accuracy is asked over `n_rounds` of them."""
    length = min(n_rounds, RANK_LIST)
    counted = np.zeros((RANK_BINS if n_rounds > RANK_LIST else 0, 2))
    ranks = Ranks(np.zeros(1, dtype=np.int64), np.empty(length, np.uint16), np.empty(length, np.int32), counted)
    return Sums(np.zeros(6), ranks, np.zeros((n_nodes, 3)), np.zeros((n_models, 3)), np.zeros(5))


def finish(sums: Sums, truth_rank) -> Totals:
    """The totals of a run whose rounds are all added; truth_rank : (O,) by output."""
    rank = np.array(_rank_moments(*sums.ranks, truth_rank))
    return Totals(sums.accuracy, rank, sums.node, sums.model, sums.round)


def add_accuracy(sums: Sums, output, consensus, truth, truth_rank) -> None:
    """Add a block of rounds to what accuracy needs, in place.

    output, consensus : (B,); truth, truth_rank : (O,) by output.

    Raises
    ------
    ValueError
        For a block of more than RANK_LIST rounds, or more rounds than the sums were started for.
    """
    waiting, bins, _, counted = sums.ranks
    if len(output) > len(bins) or (waiting[0] + len(output) > len(bins) and not len(counted)):
        raise ValueError(
            f"a block of {len(output)} rounds does not fit: {waiting[0]} rounds wait in a list of {len(bins)}"
        )
    _add_accuracy(sums.accuracy, output, consensus, truth)
    _add_ranks(*sums.ranks, output, consensus, truth_rank)


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
def _add_accuracy(accuracy, output, consensus, truth):
    middle = SCORE_MAX / 2
    c1 = q1 = c2 = q2 = cq = absolute = 0.0
    for t in range(len(output)):
        c = consensus[t] - middle
        q = truth[np.uint64(output[t])] - middle  # unsigned indices: see poq.rounds
        absolute += abs(c - q)
        c1 += c
        q1 += q
        c2 += c * c
        q2 += q * q
        cq += c * q
    accuracy += np.array([c1, q1, c2, q2, cq, absolute])


@njit(cache=True)
def _add_ranks(waiting, bin_, its_output, counted, output, consensus, truth_rank):
    if waiting[0] + len(output) > len(bin_):
        _count_ranks(counted, bin_[: waiting[0]], its_output, truth_rank)
        waiting[0] = 0
    place = np.uint64(waiting[0])
    for t in range(len(output)):
        # A hair more, because 5 and other likely scores are ends of bins, and rounding must not part them.
        scaled = consensus[t] * (RANK_BINS / SCORE_MAX) + 1e-6
        bin_[place + np.uint64(t)] = np.uint16(min(max(scaled, 0.0), RANK_BINS - 1.0))
        its_output[place + np.uint64(t)] = output[t]
    waiting[0] += len(output)


@njit(cache=True)
def _count_ranks(counted, bin_, output, truth_rank):
    for t in range(len(bin_)):
        i = np.uint64(bin_[t])
        counted[i, 0] += 1.0
        counted[i, 1] += truth_rank[np.uint64(output[t])]


@njit(cache=True)
def _rank_moments(waiting, bin_, output, counted, truth_rank):
    if waiting[0] == 0:  # of no rounds; where any were counted, the block that came last waits
        return np.nan, np.nan
    n = counted[:, 0].sum() + waiting[0]
    counted = counted.copy() if len(counted) else np.zeros((RANK_BINS, 2))
    _count_ranks(counted, bin_[: waiting[0]], output, truth_rank)
    both = own = reached = 0.0
    for i in range(RANK_BINS):
        rank = (reached + 0.5 * counted[i, 0]) * (1.0 / n) - 0.5  # midrank, centred as in :func:`truth_ranks`
        reached += counted[i, 0]
        both += rank * counted[i, 1]
        own += rank * rank * counted[i, 0]
    return both / n, own / n


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
    below = np.cumsum(rounds) - rounds
    return ((below + rounds / 2) / rounds.sum() - 0.5)[tie]


# Totals may hold many runs: the functions below that take them work on the last axes and return an array per metric.


def accuracy_row(totals: Totals, truth_rank: np.ndarray, count: np.ndarray) -> dict[str, np.ndarray]:
    """pearson, spearman, rmse, mae, bias of consensus against truth; count : (O,) rounds per output."""
    n = count.sum()
    c1, q1, c2, q2, cq, absolute = np.moveaxis(totals.accuracy / n, -1, 0)
    rank_both, rank_own = np.moveaxis(totals.rank, -1, 0)
    linear = _ratio(cq - c1 * q1, c2 - c1 * c1, q2 - q1 * q1)
    by_rank = _ratio(rank_both, rank_own, (truth_rank**2 * count).sum() / n)
    return {
        "pearson": linear,
        # What rounding leaves of a constant may have ranks.
        "spearman": np.where(np.isnan(linear), np.nan, by_rank)[()],
        "rmse": _root(c2 - 2 * cq + q2),
        "mae": absolute,
        "bias": c1 - q1,
    }


def _ratio(covariance, var_x, var_y) -> np.ndarray:
    # A variance below this is what rounding leaves of a constant: a block adds up 10^4 squares of up to 25.
    defined = np.minimum(var_x, var_y) >= 1e-10
    spread = np.sqrt(np.where(defined, var_x * var_y, np.nan))
    return np.clip(covariance / spread, -1.0, 1.0)


def _root(variance) -> np.ndarray:
    """Square root of what rounding may have left below 0."""
    return np.sqrt(np.maximum(variance, 0.0))


def evaluator_pay_row(totals: Totals, malicious, node_cost, committee: int, *, alpha, beta) -> dict[str, np.ndarray]:
    """Evaluator pay in the four readings of "payoff variance".

    Per participation, pooled (evaluator_reward*), as the sum per round (evaluator_pay_round*), per node over the run
    (evaluator_pay_node*), and between node means (evaluator_reward_between_sd). Pay is linear in d, so its moments
    follow from those of d.

    malicious : (..., N) bool; node_cost : (N,) normalised; alpha, beta : (...).
    """
    seats, d1, d2 = np.moveaxis(totals.node, -1, 0)
    a, b = np.asarray(alpha)[..., None], np.asarray(beta)[..., None]
    best = reward(1.0, node_cost, alpha=a, beta=b)
    total = best * seats - a * d1
    squares = best**2 * seats - 2 * best * a * d1 + a**2 * d2
    row = {}
    groups = {"": np.ones_like(malicious), "_honest": ~malicious, "_malicious": malicious}
    for suffix, group in groups.items():
        pay, spread = _mean_sd(*(np.where(group, part, 0.0).sum(axis=-1) for part in (seats, total, squares)))
        row[f"evaluator_reward{suffix}"] = pay
        row[f"evaluator_reward{suffix}_sd"] = spread
    n_rounds = seats.sum(axis=-1) / committee
    big_d, big_d2, big_c, big_c2, big_dc = np.moveaxis(totals.round, -1, 0) / n_rounds
    row["evaluator_pay_round"] = alpha * (committee - big_d) - beta * big_c
    row["evaluator_pay_round_sd"] = _root(
        alpha**2 * (big_d2 - big_d**2) + beta**2 * (big_c2 - big_c**2) + 2 * alpha * beta * (big_dc - big_d * big_c)
    )
    row["evaluator_pay_node"] = total.mean(axis=-1)
    row["evaluator_pay_node_sd"] = total.std(axis=-1)
    sat = seats > 0
    row["evaluator_reward_between_sd"] = (total / np.where(sat, seats, 1.0)).std(axis=-1, where=sat)
    return row


def inference_pay_row(totals: Totals, model_cost, models, *, alpha, beta) -> dict[str, np.ndarray]:
    """Inference pay pooled over rounds, and its mean per model.

    model_cost : (M,) normalised; models : names; alpha, beta : (...).
    """
    rounds, c1, c2 = np.moveaxis(totals.model, -1, 0)
    a, b = np.asarray(alpha)[..., None], np.asarray(beta)[..., None]
    base = reward(0.0, model_cost, alpha=a, beta=b)
    slope = a / SCORE_MAX
    total = base * rounds + slope * c1
    squares = base**2 * rounds + 2 * base * slope * c1 + slope**2 * c2
    pay, spread = _mean_sd(rounds.sum(axis=-1), total.sum(axis=-1), squares.sum(axis=-1))
    row = {"inference_reward": pay, "inference_reward_sd": spread}
    for m, name in enumerate(models):
        row[f"inference_reward[{name}]"], _ = _mean_sd(rounds[..., m], total[..., m], squares[..., m])
    return row


def _mean_sd(n, total, squares) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population s.d. of n values; NaN for none of them."""
    n = np.where(n > 0, n, np.nan)
    mean = total / n
    return mean, _root(squares / n - mean**2)


def pay_per_round(totals: Totals, malicious, node_cost, model_cost, *, pay: dict) -> dict[str, np.ndarray]:
    """Mean pay per round to inference, honest, malicious nodes and all together; `pay` : the four factors, (...)."""
    seats, d1, _ = np.moveaxis(totals.node, -1, 0)
    rounds, c1, _ = np.moveaxis(totals.model, -1, 0)
    n_rounds = rounds.sum(axis=-1, keepdims=True)
    factor = {name: np.asarray(value)[..., None] for name, value in pay.items()}
    best = reward(1.0, node_cost, alpha=factor["evaluator_alpha"], beta=factor["evaluator_beta"])
    evaluators = (best * seats - factor["evaluator_alpha"] * d1) / n_rounds
    idle = reward(0.0, model_cost, alpha=factor["inference_alpha"], beta=factor["inference_beta"])
    inference = ((idle * rounds + factor["inference_alpha"] / SCORE_MAX * c1) / n_rounds).sum(axis=-1)
    honest, malicious_ = (np.where(group, evaluators, 0.0).sum(axis=-1) for group in (~malicious, malicious))
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
