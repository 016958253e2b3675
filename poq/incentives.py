"""Incentives: what a report is paid under four pay rules, and what one node would earn with another strategy.

The engine pays by closeness and plays one attack at a time. This module adds pay rules, strategies that do not attack
anybody, and the question of game theory: in a population of which a share lies, what is best for a single node? Rounds,
committees and scores come from the same streams as the engine's, so a seed means the same rounds in both. Pay is before
costs; what a strategy without work saves is told beside it. All of it is ours unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from numba import njit

from poq.aggregators import AGGREGATORS, leave_one_out
from poq.engine import n_malicious
from poq.matrix import SCORE_MAX, ScoreMatrix
from poq.rewards import deviation, evaluator_reward, normalise_cost
from poq.rounds import make_pool, malicious_nodes, mark_nodes, sample_rounds
from poq.streams import stream
from poq.trust import TRUST_RULES, start_paper, updated_weight

PAY_RULES = ("closeness", "leave_one_out", "trust_scaled", "audit_scored")
STRATEGIES = (
    "truthful",
    "belief",
    "lazy",
    "lazy_truth",
    "shaded",
    "copy_open",
    "copy_hidden",
    "lift",
    "constant",
)
NO_WORK = ("lazy", "lazy_truth", "copy_open", "copy_hidden", "constant")  # they save the cost of evaluating


class Rounds(NamedTuple):
    """The rounds of a trial, and what members know in them.

    output, model, truth, lot (R,) : the output, its inference model and truth, and the lot of the audit;
    node, honest, belief (R, K) : who sits there, its own score, and its best linear estimate of the truth from it;
    order (N,) : in which nodes turn liars; cost (N,) : normalised cost of an evaluation; skill (N,) : correlation of
    its evaluator with the truth over the log;
    prior, truth_prior : mean score and mean truth of the outputs, what one expects without looking.
    """

    output: np.ndarray
    model: np.ndarray
    truth: np.ndarray
    lot: np.ndarray
    node: np.ndarray
    honest: np.ndarray
    belief: np.ndarray
    order: np.ndarray
    cost: np.ndarray
    skill: np.ndarray
    prior: float
    truth_prior: float


def draw_rounds(
    matrix: ScoreMatrix,
    *,
    committee: int,
    n_rounds: int,
    n_nodes: int | None = None,
    jitter: float = 0.5,
    resample: str = "none",
    seed: int = 0,
    trial: int = 0,
) -> Rounds:
    """The rounds of one trial, the same as the engine's for this seed and trial; options as in Scenario."""
    shape = {"n_nodes": n_nodes, "jitter": jitter, "resample": resample}
    pool = make_pool(matrix, committee=committee, seed=seed, trial=trial, **shape)
    output, node, honest = sample_rounds(pool, n_rounds=n_rounds, committee=committee, seed=seed, trial=trial)
    values, truth = matrix.values[pool.output], matrix.truth[pool.output]  # resampled items count as often as drawn
    slope, level = _regression(values, truth, pool.jitter)
    evaluator = pool.evaluator[node]
    return Rounds(
        output=output,
        model=matrix.model[output],
        truth=matrix.truth[output],
        lot=stream(seed, trial, "audit").random(n_rounds),
        node=node,
        honest=honest,
        belief=np.clip(level[evaluator] + slope[evaluator] * honest, 0.0, SCORE_MAX),
        order=malicious_nodes(pool, matrix, seed=seed, trial=trial),
        cost=normalise_cost(matrix.evaluator_cost)[pool.evaluator],
        skill=matrix.skill[pool.evaluator],
        prior=float(np.nanmean(values)),
        truth_prior=float(truth.mean()),
    )


def _regression(values: np.ndarray, truth: np.ndarray, jitter: float) -> tuple[np.ndarray, np.ndarray]:
    """Slope and level, (E,), of the regression of the truth on each evaluator's score with a node's own noise."""
    known = ~np.isnan(values)
    n = np.maximum(known.sum(axis=0), 1)
    mean_v = np.where(known, values, 0.0).sum(axis=0) / n
    mean_q = np.where(known, truth[:, None], 0.0).sum(axis=0) / n
    dv, dq = np.where(known, values - mean_v, 0.0), np.where(known, truth[:, None] - mean_q, 0.0)
    slope = (dv * dq).sum(axis=0) / np.maximum((dv**2).sum(axis=0) + n * jitter**2, 1e-9)
    return slope, mean_q - slope * mean_v


# Pay rules


def proper_score(scores, truth):
    """1 - ((s - q) / 10)^2, in [0, 1]: a strictly proper score for the mean.

    E (s - q)^2 = (s - E q)^2 + Var q for whatever the member believes about q, and the second term does not depend on
    s: the report that maximises expected pay is the mean of the belief, and no other does.
    """
    return 1.0 - deviation(scores, truth) ** 2


def audit_reward(scores, truth, audited, *, share: float, alpha: float = 0.7):
    """Flat pay alpha, less a fine of alpha / share * ((s - q) / 10)^2 in audited rounds: (R, K).

    Divided by the share of audited rounds, so that expected pay is alpha times :func:`proper_score` whatever the share.
    A member must therefore be able to lose alpha / share in a round.

    Parameters
    ----------
    scores : (R, K) float array in [0, 10]
    truth : (R,) float array
    audited : (R,) bool array
        Independent of the reports.
    share : float in (0, 1]
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], not {share!r}")
    fine = (1.0 - proper_score(scores, truth)) * np.asarray(audited)[:, None] / share
    return alpha * (1.0 - fine)


def trust_scaled_reward(scores, consensus, weights, *, alpha: float = 0.7):
    """alpha * (1 - d) * w / mean(w) over the committee: closeness scaled by trust (our reconstruction); (R, K)."""
    weights = np.asarray(weights, dtype=np.float64)
    relative = weights / weights.mean(axis=-1, keepdims=True)
    return relative * evaluator_reward(scores, consensus, 0.0, alpha=alpha, beta=0.0)


class Played(NamedTuple):
    """Rounds under a rule: reported (R, K), consensus (R,), others (R, K) the leave-one-out consensus, weights (R, K).

    weights : trust before each round; of the rule if it has any, else of Eq. 21 run beside it.
    copying : (R, K) bool, who copies the others of the same round.
    """

    reported: np.ndarray
    consensus: np.ndarray
    others: np.ndarray
    weights: np.ndarray
    copying: np.ndarray


def pay(rounds: Rounds, played: Played, *, alpha: float = 0.7) -> dict[str, np.ndarray]:
    """Pay before costs, (R, K), under each pay rule; the audit-scored one in expectation over the audits."""
    reported = played.reported
    return {
        "closeness": evaluator_reward(reported, played.consensus, 0.0, alpha=alpha, beta=0.0),
        "leave_one_out": evaluator_reward(reported, played.others, 0.0, alpha=alpha, beta=0.0),
        "trust_scaled": trust_scaled_reward(reported, played.consensus, played.weights, alpha=alpha),
        "audit_scored": alpha * proper_score(reported, rounds.truth),
    }


def node_mean(values, node, n_nodes: int) -> np.ndarray:
    """Mean of (R, K) values per node, (N,); NaN for a node that never sat."""
    seats = np.bincount(node.ravel(), minlength=n_nodes).astype(float)
    seats[seats == 0] = np.nan
    return np.bincount(node.ravel(), weights=np.asarray(values).ravel(), minlength=n_nodes) / seats


# Strategies


def reports(
    rounds: Rounds,
    strategy: str,
    *,
    shade: float = 0.5,
    by: float = 3.0,
    partner: int | None = None,
    value: float = SCORE_MAX,
) -> np.ndarray:
    """What each member would report, (R, K), with a strategy that does not look at the others.

    Parameters
    ----------
    strategy : str
        "truthful": one's own score. "belief": the best linear estimate of the truth from it, over the log.
        "lazy", "lazy_truth": the mean score, or mean truth, whatever the output. "shaded": one's own score, pulled a
        share `shade` towards the mean score. "lift": `by` points more for the outputs of `partner`, for all if None.
        "constant": `value`, as agreed among colluders. Copying ("copy_open", "copy_hidden") starts as "lazy".
    """
    honest = rounds.honest
    if strategy == "truthful":
        return honest
    if strategy == "belief":
        return rounds.belief
    if strategy in ("lazy", "copy_open", "copy_hidden"):
        return np.full_like(honest, rounds.prior)
    if strategy == "lazy_truth":
        return np.full_like(honest, rounds.truth_prior)
    if strategy == "shaded":
        return (1 - shade) * honest + shade * rounds.prior
    if strategy == "lift":
        chosen = True if partner is None else (rounds.model == partner)[:, None]
        return np.minimum(SCORE_MAX, honest + np.where(chosen, by, 0.0))
    _check_names("strategy", [strategy], STRATEGIES)
    return np.full_like(honest, float(value))


def _check_names(what: str, given, known) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"unknown {what} '{name}': use one of {', '.join(known)}")


def fill_copies(reported, copying, prior: float) -> np.ndarray:
    """Let copying members report the mean of those who do not copy, or the prior where everybody copies; (R, K)."""
    if not copying.any():
        return reported
    seen = (~copying).sum(axis=1)
    total = np.where(copying, 0.0, reported).sum(axis=1)
    copied = np.where(seen > 0, total / np.maximum(seen, 1), prior)
    return np.where(copying, copied[:, None], reported)


def play(
    rounds: Rounds,
    liars,
    strategy: str,
    *,
    rule: str = "mean",
    lag: int = 20,
    deviant: int | None = None,
    deviation_to: str = "truthful",
    **options,
) -> Played:
    """Play all rounds with one strategy for the liars and the truth from all others.

    Parameters
    ----------
    rounds : Rounds
    liars : (N,) bool array
    strategy : str
        One of STRATEGIES. "copy_open" sees the reports of its own round before it speaks; "copy_hidden" is what
        commit-reveal leaves of it: the consensus of `lag` rounds ago, which was about another output.
    rule : str
        A key of AGGREGATORS or TRUST_RULES, with its default options.
    deviant : int, optional
        A node that plays `deviation_to` instead, in all rounds.
    **options
        Of :func:`reports`.
    """
    liars = np.asarray(liars, dtype=bool)
    if liars.shape != rounds.order.shape:
        raise ValueError(f"liars must be (N,) = {rounds.order.shape}, not {liars.shape}")
    hit = mark_nodes(liars, rounds.node)
    planned = np.where(hit, reports(rounds, strategy, **options), rounds.honest)
    copying, lagged = hit & (strategy == "copy_open"), hit & (strategy == "copy_hidden")
    if deviant is not None:
        alone = rounds.node == deviant
        planned = np.where(alone, reports(rounds, deviation_to, **options), planned)
        copying = np.where(alone, deviation_to == "copy_open", copying)
        lagged = np.where(alone, deviation_to == "copy_hidden", lagged)
    planned = fill_copies(planned, copying, rounds.prior)
    n_rounds = len(planned)
    step = lag if lagged.any() else n_rounds
    advance = _start(rule, rounds)
    consensus = np.empty(n_rounds)
    parts = []
    for begin in range(0, n_rounds, step):
        block = slice(begin, min(begin + step, n_rounds))
        if begin:
            before = consensus[begin - step : block.stop - step]
            planned[block] = np.where(lagged[block], before[:, None], planned[block])
        parts.append(advance(planned[block], block))
        consensus[block] = parts[-1][0]
    others, weights = (np.concatenate(part) for part in list(zip(*parts))[1:])
    if rule in AGGREGATORS:
        weights = eq21_beside(deviation(planned, consensus), rounds.node, len(rounds.order))
    return Played(planned, consensus, others, weights, copying)


def _start(rule: str, rounds: Rounds) -> Callable:
    """A function (reports of a block, block) -> consensus, leave-one-out consensus, weights."""
    if rule in AGGREGATORS:
        function = AGGREGATORS[rule]
        return lambda said, block: (function(said), leave_one_out(said, function), np.ones(said.shape))
    _check_names("rule", [rule], [*AGGREGATORS, *TRUST_RULES])
    state = TRUST_RULES[rule].start(len(rounds.order))
    share = getattr(state, "audit_share", 0.0)

    def advance(said, block):
        audit = np.where(rounds.lot[block] < share, rounds.truth[block], np.nan)
        consensus, weights, used = TRUST_RULES[rule].advance(state, said, rounds.node[block], audit)
        total, weighted = weights.sum(axis=1, keepdims=True), (weights * used).sum(axis=1, keepdims=True)
        left = np.maximum(total - weights, 1e-12)
        others = np.clip((weighted - weights * used) / left, 0.0, SCORE_MAX)
        return consensus, others, weights

    return advance


def eq21_beside(deviations, node, n_nodes: int) -> np.ndarray:
    """Weights, (R, K), of Eq. 21 before each round, from deviations (R, K) from a consensus that does not use them.

    Each node's weight depends on its own deviations alone, so the deviations may also be what each member alone would
    have shown with another report.
    """
    state = start_paper(n_nodes)
    weights = np.empty(deviations.shape)
    _eq21_rounds(deviations, np.asarray(node), state.weights, state.rate, state.low, state.high, weights)
    return weights


@njit(cache=True)
def _eq21_rounds(deviations, node, trust, rate, low, high, weights):
    for t in range(len(node)):
        for k in range(node.shape[1]):
            n = node[t, k]
            weights[t, k] = trust[n]
            trust[n] = updated_weight(trust[n], deviations[t, k], rate, low, high)


# One member alone


def deviation_pay(
    rounds: Rounds, played: Played, strategy: str, *, rule: str, lag: int = 20, alpha: float = 0.7, **options
) -> dict[str, np.ndarray]:
    """Pay, (R, K), of each member if it alone had played `strategy`, under a rule without memory.

    Everybody else does what they did in `played`; those who copy in the open follow the new report. Trust follows the
    deviating member's reports through all rounds. What a single node changes in the trust of others, and in what a
    later copy of the consensus says, is left out.
    """
    function = AGGREGATORS[rule]
    planned = reports(rounds, strategy, **options)
    if strategy == "copy_hidden":
        planned = np.concatenate([planned[:lag], np.tile(played.consensus[:-lag, None], planned.shape[1])])[
            : len(planned)
        ]
    copies = strategy == "copy_open"
    follow = copies or played.copying.any()
    # Seats stay contiguous, as they come from the draw: rules go through them seat by seat.
    report, consensus, others = planned.copy(order="K"), np.empty_like(planned), played.others
    if follow:
        others = np.empty_like(planned)
    for k in range(planned.shape[1]):
        moved = played.reported.copy(order="K")
        moved[:, k] = planned[:, k]
        if follow:
            copying = played.copying.copy(order="K")
            copying[:, k] = copies
            moved = fill_copies(moved, copying, rounds.prior)
            others[:, k] = function(np.delete(moved, k, axis=1))
        report[:, k] = moved[:, k]
        consensus[:, k] = function(moved)
    weights = eq21_beside(deviation(report, consensus), rounds.node, len(rounds.order))
    mean_weight = played.weights.mean(axis=1, keepdims=True) + (weights - played.weights) / weights.shape[1]
    close = evaluator_reward(report, consensus, 0.0, alpha=alpha, beta=0.0)
    return {
        "closeness": close,
        "leave_one_out": evaluator_reward(report, others, 0.0, alpha=alpha, beta=0.0),
        "trust_scaled": close * weights / mean_weight,
        "audit_scored": alpha * proper_score(report, rounds.truth),
    }


def deviations(
    matrix: ScoreMatrix,
    *,
    rules: Sequence[str],
    states: Mapping[str, Sequence[float]],
    strategies: Sequence[str] = STRATEGIES,
    committee: int = 5,
    n_rounds: int = 2000,
    n_nodes: int | None = None,
    resample: str = "none",
    trials: int,
    seed: int,
    lag: int = 20,
    focal: int = 2,
    alpha: float = 0.7,
    beta: float = 0.3,
    **options,
) -> pd.DataFrame:
    """What one node earns with each strategy, whatever it does itself, when a share of the pool plays another one.

    Under a rule without memory every member of every round is moved alone. Under a rule with memory a trial is played
    again for each of `focal` nodes, which play the strategy from the first round to the last.

    Parameters
    ----------
    states : mapping
        Strategy of the liars -> shares of the pool that play it; all others are truthful.
    strategies : sequence of str
        What the one node may do.
    focal : int
        Nodes that are moved per trial under a rule with memory: the last ones to turn liars.
    alpha, beta : float
        Factors of quality and cost; `saved` is what the cost of an evaluation is worth to who does not evaluate.
    **options
        Of :func:`reports`.

    Returns
    -------
    DataFrame
        trial, rule, population, share, strategy, then pay before costs per participation under each pay rule, saved.
    """
    _check_names("rule", rules, [*AGGREGATORS, *TRUST_RULES])
    _check_names("strategy", [*states, *strategies], STRATEGIES)
    size_of = {"committee": committee, "n_rounds": n_rounds, "n_nodes": n_nodes, "resample": resample}
    rows = []
    for trial in range(trials):
        rounds = draw_rounds(matrix, seed=seed, trial=trial, **size_of)
        saved = float(beta * rounds.cost[rounds.node].mean())
        size = len(rounds.order)
        for rule in rules:
            for population, shares in states.items():
                for share in shares:
                    liars = np.zeros(size, dtype=bool)
                    liars[rounds.order[: n_malicious(share, size)]] = True
                    common = {"rule": rule, "lag": lag, **options}
                    if rule in AGGREGATORS:
                        played = play(rounds, liars, population, **common)
                        alone = partial(_mean_alone, rounds, played, alpha=alpha, **common)
                    else:
                        nodes = rounds.order[-focal:]
                        alone = partial(_mean_replayed, rounds, liars, population, nodes, alpha=alpha, **common)
                    for strategy in strategies:
                        row = {"trial": trial, "rule": rule, "population": population, "share": float(share)}
                        gain = {"saved": saved if strategy in NO_WORK else 0.0}
                        rows.append({**row, "strategy": strategy, **alone(strategy), **gain})
    return pd.DataFrame(rows)


def _mean_alone(rounds, played, strategy, **options) -> dict[str, float]:
    found = deviation_pay(rounds, played, strategy, **options)
    return {name: float(values.mean()) for name, values in found.items()}


def _mean_replayed(rounds, liars, population, nodes, strategy, *, alpha, **common) -> dict[str, float]:
    """Mean pay over `nodes`, each of which deviates alone in a run of its own."""
    total = dict.fromkeys(PAY_RULES, 0.0)
    for node in nodes:
        played = play(rounds, liars, population, deviant=int(node), deviation_to=strategy, **common)
        sat = rounds.node == node
        for name, values in pay(rounds, played, alpha=alpha).items():
            total[name] += float(values[sat].mean()) / len(nodes)
    return total


def gains(table: pd.DataFrame, *, base: str = "truthful") -> pd.DataFrame:
    """Pay of each strategy minus that of `base` in the same trial and state; long in the column pay_rule.

    Columns: trial, rule, population, share, strategy, pay_rule, gain, gain_saved (with the cost of evaluating saved).
    """
    keys = ["trial", "rule", "population", "share"]
    long = table.melt([*keys, "strategy", "saved"], list(PAY_RULES), var_name="pay_rule", value_name="pay")
    reference = long[long["strategy"] == base].set_index([*keys, "pay_rule"])[["pay", "saved"]]
    matched = reference.reindex(pd.MultiIndex.from_frame(long[[*keys, "pay_rule"]]))
    long["gain"] = long["pay"].to_numpy() - matched["pay"].to_numpy()
    long["gain_saved"] = long["gain"] + long["saved"].to_numpy() - matched["saved"].to_numpy()
    return long


def crossing(shares, gain) -> float:
    """The least share at which a gain is positive, by linear interpolation; 0 if it is at the start, inf if never.

    shares, gain : (P,) arrays, shares rising.
    """
    shares, gain = np.asarray(shares, dtype=float), np.asarray(gain, dtype=float)
    above = np.flatnonzero(gain > 0)
    if not len(above):
        return float("inf")
    i = above[0]
    if i == 0:
        return float(shares[0])
    return float(shares[i - 1] + (shares[i] - shares[i - 1]) * -gain[i - 1] / (gain[i] - gain[i - 1]))


def crossing_interval(shares, gain, *, n_boot: int, seed: int, level: float = 0.95) -> tuple[float, float, float]:
    """:func:`crossing` of the mean gain, with an interval from resampled trials; gain : (T, P)."""
    gain = np.asarray(gain, dtype=float)
    picks = np.random.default_rng(np.random.SeedSequence([seed, 1])).integers(len(gain), size=(n_boot, len(gain)))
    found = np.sort([crossing(shares, gain[pick].mean(axis=0)) for pick in picks])
    # Order statistics, because some of the crossings may be infinite.
    low, high = (found[round((n_boot - 1) * tail)] for tail in ((1 - level) / 2, (1 + level) / 2))
    return crossing(shares, gain.mean(axis=0)), float(low), float(high)


def bribes(
    matrix: ScoreMatrix,
    *,
    rules: Sequence[str],
    shares: Sequence[float],
    lifts: Sequence[float],
    committee: int = 5,
    n_rounds: int = 2000,
    n_nodes: int | None = None,
    resample: str = "none",
    trials: int,
    seed: int,
    base: str = "truthful",
    alpha: float = 0.7,
) -> pd.DataFrame:
    """What colluders lose who lift a partner's outputs, and what the partner gains, per round of the partner.

    A share of 0 stands for a single colluder. Under a rule without memory all models are the partner in turn; under a
    rule with memory one of them per trial, and only its rounds count. With base "belief" all report their best estimate
    instead of their own score, and colluders lift that.

    Returns
    -------
    DataFrame
        trial, rule, share, by, seats (colluders per round), partner (gain: alpha / 10 times the shift of the
        consensus), and under each pay rule what the colluders together lose against a run in which nobody lifts.
    """
    _check_names("rule", rules, [*AGGREGATORS, *TRUST_RULES])
    _check_names("base", [base], ("truthful", "belief"))
    size_of = {"committee": committee, "n_rounds": n_rounds, "n_nodes": n_nodes, "resample": resample}
    rows = []
    for trial in range(trials):
        rounds = draw_rounds(matrix, seed=seed, trial=trial, **size_of)
        rounds = rounds._replace(honest=reports(rounds, base))
        size = len(rounds.order)
        for rule in rules:
            partner = None if rule in AGGREGATORS else trial % len(matrix.models)
            his = np.ones(n_rounds, dtype=bool) if partner is None else rounds.model == partner
            if not his.any():
                continue
            before = play(rounds, np.zeros(size, dtype=bool), "truthful", rule=rule)
            honest = pay(rounds, before, alpha=alpha)
            for share in shares:
                liars = np.zeros(size, dtype=bool)
                liars[rounds.order[: max(n_malicious(share, size), 1)]] = True
                seats = liars[rounds.node[his]]
                for by in lifts:
                    after = play(rounds, liars, "lift", rule=rule, by=by, partner=partner)
                    lifted = pay(rounds, after, alpha=alpha)
                    lost = {
                        name: float(((honest[name] - lifted[name])[his] * seats).sum() / his.sum())
                        for name in PAY_RULES
                    }
                    row = {"trial": trial, "rule": rule, "share": float(share), "by": float(by)}
                    gained = float(alpha / SCORE_MAX * (after.consensus - before.consensus)[his].mean())
                    rows.append({**row, "seats": float(seats.sum() / his.sum()), "partner": gained, **lost})
    return pd.DataFrame(rows)


def pay_ranks(
    matrix: ScoreMatrix,
    *,
    rule: str = "mean",
    audit_shares: Sequence[float] = (0.02, 1.0),
    committee: int = 5,
    n_rounds: int = 5000,
    n_nodes: int | None = None,
    resample: str = "none",
    trials: int,
    seed: int,
    alpha: float = 0.7,
) -> pd.DataFrame:
    """Whether those earn more who track the truth better: rank correlation of node pay and reliability, all truthful.

    Reliability is the Pearson correlation r of a node's evaluator with the truth over the log; where nodes report their
    best estimate, which turns a negative r round, it is the absolute value of r.

    Returns
    -------
    DataFrame
        trial, pay_rule, audit_share (NaN for pay without audits), reports ("truthful", or "belief" where the audit
        scores each node's best linear estimate), spearman over nodes.
    """
    from scipy.stats import spearmanr  # not above: it takes a second to load

    size_of = {"committee": committee, "n_rounds": n_rounds, "n_nodes": n_nodes, "resample": resample}
    rows = []
    for trial in range(trials):
        rounds = draw_rounds(matrix, seed=seed, trial=trial, **size_of)
        size = len(rounds.order)
        skill = rounds.skill

        def agreement(values, skill, rounds=rounds, size=size):
            earned = node_mean(values, rounds.node, size)
            known = np.isfinite(earned) & np.isfinite(skill)
            if known.sum() < 3 or np.ptp(earned[known]) == 0 or np.ptp(skill[known]) == 0:
                return float("nan")
            return float(spearmanr(earned[known], skill[known]).statistic)

        paid = pay(rounds, play(rounds, np.zeros(size, dtype=bool), "truthful", rule=rule), alpha=alpha)
        for name in PAY_RULES[:-1]:
            rows.append((trial, name, np.nan, "truthful", agreement(paid[name], skill)))
        for share in audit_shares:
            for kind, said, good in (("truthful", rounds.honest, skill), ("belief", rounds.belief, np.abs(skill))):
                scored = audit_reward(said, rounds.truth, rounds.lot < share, share=share, alpha=alpha)
                rows.append((trial, PAY_RULES[-1], float(share), kind, agreement(scored, good)))
    return pd.DataFrame(rows, columns=["trial", "pay_rule", "audit_share", "reports", "spearman"])
