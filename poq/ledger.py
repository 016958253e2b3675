"""The ledger: every claim of the papers, and our own, tried on a score log, in one or more readings, with a verdict.

``evidence`` goes through all claims under each truth and for each pool of evaluators. The chapters show why a verdict
is what it is; this module holds the tests themselves, so that the book's page of claims and the test of its verdicts
run the same code.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from poq import claims, incentives, simulate
from poq.association import correlate, resample_items
from poq.matrix import ScoreMatrix
from poq.rewards import deviation, normalise_cost
from poq.rounds import make_pool, sample_rounds
from poq.scorelog import score_matrix, tasks

RULES = ("mean", "median", "trimmed_mean", "paper")
ATTACKS = ("noise", "boost", "sabotage", "intermittent")
STRONG = 0.3  # a gap between evaluators counts as strong from this difference in correlation on (ours)
CURTAILED = 0.01  # trust counts as withheld from this share of all trust on (ours)
STABLE = 0.01  # a change of mean inference pay within this counts as none (ours)
PRICE = 0.01  # correlation that a default rule may cost where nobody attacks (ours)
WRONG_MAJORITY = 0.6  # share of nodes that invert their scores in U3 (ours)


class Claim(NamedTuple):
    """What a paper says, in our words; where; the chapter that looks into it; and how it is tried here."""

    sentence: str
    source: str
    chapter: str
    test: str


PAPERS = {
    "C1": Claim(
        "Evaluators differ strongly in how well they track the truth.",
        "robust2026",
        "02_scores",
        "Correlation of the best minus the worst evaluator, on items that did not choose them, against 0.3.",
    ),
    "C2": Claim(
        "Misalignment depends on the task and can invert a correlation with the truth.",
        "robust2026",
        "02_scores",
        "Some evaluator's correlation is below zero on one task and above it on another, each beyond its interval.",
    ),
    "C3": Claim(
        "Under attack, median, trimmed mean and trust weighting bring the consensus nearer to the truth than the mean.",
        "robust2026",
        "06_sweep",
        "Correlation of rule minus mean, four attacks on each task.",
    ),
    "C4": Claim(
        "The robust rules are less sensitive to noisy and strategic attacks than the mean.",
        "robust2026",
        "06_sweep",
        "Correlation lost to the attack, rule minus mean.",
    ),
    "C5": Claim(
        "Adaptive trust weighting curtails outlier evaluators further.",
        "promptfoo",
        "07_trust",
        "Share of all trust that malicious nodes hold at the end, against their share of the pool.",
    ),
    "C6": Claim(
        "Larger committees lower the rewards of evaluators.",
        "robust2026",
        "08_committee",
        "Change of pay from the smallest to the largest committee, per participation, per round and per node.",
    ),
    "C7": Claim(
        "Larger committees raise the variance of payoffs.",
        "robust2026",
        "08_committee",
        "Change of the variance of pay from the smallest to the largest committee, in four readings.",
    ),
    "C8": Claim(
        "Rewards of inference nodes stay stable as the committee grows.",
        "robust2026",
        "08_committee",
        "Change of mean pay from the smallest to the largest committee lies within 0.01.",
    ),
    "C9": Claim(
        "Robust consensus should be the default of cost-aware Proof of Quality.",
        "robust2026",
        "09_guidance",
        "Without attack a rule costs less than 0.01 of correlation, and under its worst attack it beats the mean.",
    ),
    "C10": Claim(
        "Manipulation distorts the consensus and inflates payouts.",
        "robust2026",
        "06_sweep",
        "Under the mean, an attack lowers the correlation with the truth and raises what a round pays.",
    ),
    "C11": Claim(
        "Cost-aware rewards favour good and cheap nodes of both roles and penalise slow poor ones.",
        "costaware2025",
        "03_costs",
        "Rank correlation of pay with quality at equal cost, and with cheapness at equal quality.",
    ),
    "C12": Claim(
        "A semantic bi-encoder tracks the truth far better than cross-encoders.",
        "costaware2025",
        "02_scores",
        "Correlation of the best biencoder* minus the best crossencoder* evaluator of the log.",
    ),
}

# Claims of this book, not of the papers; the chapters named in them show why.
OURS = {
    "M5": Claim(
        "Trust that knows only the consensus (calibrated) costs at most 0.01 of correlation where nobody attacks.",
        "ours",
        "12_memory",
        "Correlation of calibrated minus mean, counted from round 1, against -0.01.",
    ),
    "M6": Claim(
        "Under the papers' attacks trust that knows only the consensus (calibrated) beats the mean.",
        "ours",
        "12_memory",
        "Correlation of calibrated minus mean, four attacks on each task.",
    ),
    "A7": Claim(
        "A node that does no work earns less than an honest one.",
        "ours",
        "13_adversaries",
        "Pay per participation of the same nodes under the mean, honest minus always reporting 5, costs of work aside.",
    ),
    "I1": Claim(
        "Pay scored against audits pays the best estimate more than no work, costs of work aside.",
        "ours",
        "14_incentives",
        "Pay per participation of one node under audit-scored pay, best estimate minus the mean of the truth.",
    ),
    "U1": Claim(
        "Audited trust costs at most 0.01 of correlation where nobody attacks.",
        "ours",
        "15_audits",
        "Correlation of audited (2 % of the rounds) minus mean, counted from round 1, against -0.01.",
    ),
    "U2": Claim(
        "Under the papers' attacks audited trust beats the mean.",
        "ours",
        "15_audits",
        "Correlation of audited (2 % of the rounds) minus mean, four attacks on each task.",
    ),
    "U3": Claim(
        "Where most nodes invert their scores, audited trust beats the mean.",
        "ours",
        "15_audits",
        "Correlation of audited (2 % of the rounds) minus mean, with 60 % of the nodes inverting.",
    ),
    "P6": Claim(
        "Under the papers' attacks audited trust beats the clip that a network in operation uses.",
        "ours",
        "17_peers",
        "Correlation of audited (2 % of the rounds) minus quantile_clip, Yuma's clip of each committee, four attacks.",
    ),
}
CLAIMS = PAPERS | OURS


def evidence(
    log: pd.DataFrame,
    *,
    trials: int = 20,
    n_rounds: int = 2500,
    n_boot: int = 300,
    seed: int = 10,
    malicious_share: float = 0.3,
    committee: int | None = None,
) -> pd.DataFrame:
    """Try every claim on a log.

    Parameters
    ----------
    log : DataFrame
        A score log.
    trials, n_rounds : int
        Size of the simulations.
    n_boot : int
        Resamples of the items.
    seed : int
    malicious_share : float
        Of the pool, in the attacks.
    committee : int, optional
        K of the attacks; by default 5, or the largest below that the log can fill.

    Returns
    -------
    DataFrame
        One row per claim, reading and view: claim, reading, main (whether this reading gives the claim its verdict),
        truth, pool, value, low, high (95 %), n, settings (in how many it was tried), verdict.
    """
    committee = committee or max(claims.fitting(log, range(1, 6)))
    size = {"trials": trials, "seed": seed}
    rows = []
    sizes_of_pool = {}
    for (truth, pool), part in claims.views(log, least=committee).items():
        matrices = {task: score_matrix(part, task=task) for task in tasks(part)}
        attacked = _attack_runs(part, committee, malicious_share, n_rounds, n_boot=n_boot, **size)
        # Pay does not look at the truth: the same scores need not be played again under another one.
        seen = (pool, len(part))
        if seen not in sizes_of_pool:
            sizes_of_pool[seen] = _committee(part, n_rounds, **size)
        found = [
            *_tracking(matrices, n_boot=n_boot, seed=seed),
            *_robustness(attacked),
            *_trust(part, attacked, committee, malicious_share, n_rounds, n_boot=n_boot, **size),
            *sizes_of_pool[seen],
            *_cost(matrices, committee, n_rounds, **size),
            *_ours(part, committee, malicious_share, n_rounds, n_boot=n_boot, **size),
        ]
        rows += [{"truth": truth, "pool": pool, **row} for row in found]
    frame = pd.DataFrame(rows)
    order = {name: number for number, name in enumerate(CLAIMS)}
    frame["main"] = ~frame.duplicated(["claim", "truth", "pool"])
    frame = frame.sort_values("claim", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)
    first = ["claim", "reading", "main", "truth", "pool"]
    return frame[[*first, "value", "low", "high", "n", "settings", "verdict"]]


def main_verdicts(frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """{claim: {"truth, pool": kind of verdict}} of the readings that count; the kind is the verdict's first words."""
    found: dict[str, dict[str, str]] = {}
    for row in frame[frame["main"]].itertuples():
        found.setdefault(row.claim, {})[f"{row.truth}, {row.pool}"] = verdict_kind(row.verdict)
    return found


def verdict_kind(verdict: str) -> str:
    """A verdict without its condition or count: "only if task is qa" is of the kind "only if"."""
    return next((kind for kind in ("only if", claims.REFUTED) if verdict.startswith(kind)), verdict)


def _row(claim: str, reading: str, cells: pd.DataFrame, whole, verdict: str) -> dict:
    ends = {name: float(whole[name]) if len(cells) else np.nan for name in ("value", "low", "high")}
    n = int(cells["n"].min()) if len(cells) else 0
    return {"claim": claim, "reading": reading, **ends, "n": n, "settings": len(cells), "verdict": verdict}


def _weakest(claim: str, reading: str, cells: pd.DataFrame, *, factors: Sequence[str], line: float = 0.0) -> dict:
    """A row from cells with value, low, high, n: the weakest of them is shown, all of them decide."""
    cells = cells.dropna(subset=["value"]) if len(cells) else cells
    whole = cells.loc[cells["value"].idxmin()] if len(cells) else None
    tested = cells.assign(low=cells["low"] - line, high=cells["high"] - line) if len(cells) else cells
    return _row(claim, reading, cells, whole, claims.verdict(tested, factors=factors))


def _mean(claim: str, reading: str, frame: pd.DataFrame, metric: str, *, by, line: float = 0.0, within=None) -> dict:
    """A row from trials: the mean over settings is shown, each setting (the columns of `by`) decides."""
    cells = claims.intervals(frame, by, [metric])
    whole = claims.intervals(frame.assign(all=""), ["all"], [metric]).iloc[0] if len(cells) else None
    beyond = cells.assign(low=cells["low"] - line, high=cells["high"] - line)
    tested = claims.stability(cells, within) if within else beyond
    return _row(claim, reading, cells, whole, claims.verdict(tested, factors=by))


# C1, C2, C12: how the evaluators track the truth


def _tracking(matrices: dict[str, ScoreMatrix], *, n_boot: int, seed: int) -> list[dict]:
    draws, gaps, encoders = {}, [], []
    for task, matrix in matrices.items():
        rng = np.random.default_rng(np.random.SeedSequence([seed, *task.encode()]))
        times = resample_items(len(matrix.items), n_boot=n_boot, rng=rng)
        draws[task] = correlate(matrix.values, matrix.truth, matrix.item, times)
        unseen = correlate(matrix.values, matrix.truth, matrix.item, (times[1:] == 0).astype(float))
        n = len(matrix.items)
        gaps.append({"task": task, "n": n, **_percentiles(_gap(draws[task][1:], unseen))})
        bi = [i for i, name in enumerate(matrix.evaluators) if name.startswith("biencoder")]
        cross = [i for i, name in enumerate(matrix.evaluators) if name.startswith(("crossencoder", "cross_encoder"))]
        if bi and cross:
            ahead = draws[task][:, bi].max(axis=1) - draws[task][:, cross].max(axis=1)
            encoders.append({"task": task, "n": n, **_percentiles(ahead[1:])})
    columns = ["task", "n", "value", "low", "high"]
    return [
        _weakest("C1", "gap on unseen items", pd.DataFrame(gaps, columns=columns), factors=["task"], line=STRONG),
        _inversion(matrices, draws),
        _weakest("C12", "best of each kind", pd.DataFrame(encoders, columns=columns), factors=["task"]),
    ]


def _gap(seen: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Best minus worst evaluator (B,), chosen by seen (B, E) and measured on unseen (B, E); of one there is none."""
    if seen.shape[1] < 2:
        return np.empty(0)
    usable = ~np.isnan(seen).all(axis=1)
    seen, unseen = seen[usable], unseen[usable]
    each = np.arange(len(seen))
    best, worst = (np.argmax(np.where(np.isnan(seen), -2.0, sign * seen), axis=1) for sign in (1, -1))
    return unseen[each, best] - unseen[each, worst]


def _percentiles(draws: np.ndarray) -> dict[str, float]:
    draws = draws[~np.isnan(draws)]
    if len(draws) == 0:
        return dict.fromkeys(("value", "low", "high"), np.nan)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": draws.mean(), "low": low, "high": high}


def _inversion(matrices: dict[str, ScoreMatrix], draws: dict[str, np.ndarray]) -> dict:
    """The strongest inversion between two tasks; the ends of the intervals are widened for the evaluators tried."""
    turns = []
    for one, other in itertools.combinations(matrices, 2):
        common = sorted(set(matrices[one].evaluators) & set(matrices[other].evaluators))
        level = stats.norm.isf(0.025 / max(len(common), 1))
        for name in common:
            z, half = [], []
            for task in (one, other):
                r = np.clip(draws[task][:, matrices[task].evaluators.index(name)], -0.999999, 0.999999)
                z.append(np.arctanh(r[0]))
                half.append(level * np.nanstd(np.arctanh(r[1:]), ddof=1))
            # The strength of an inversion is the smaller of the two distances from zero on opposite sides.
            ends = [min(-z[i] + side * half[i], z[1 - i] + side * half[1 - i]) for side in (0, -1, 1) for i in (0, 1)]
            value, low, high = (np.tanh(max(ends[k : k + 2])) for k in (0, 2, 4))
            n = min(len(matrices[one].items), len(matrices[other].items))
            turns.append({"value": value, "low": low, "high": high, "n": n})
    cells = pd.DataFrame(turns, columns=["value", "low", "high", "n"]).dropna()
    if cells.empty:
        return _row("C2", "strongest inversion", cells, None, claims.UNTESTABLE)
    if (cells["low"] > 0).any():
        word = claims.REPRODUCED
    else:
        word = claims.REFUTED if (cells["high"] < 0.1).all() else claims.UNDECIDED
    return _row("C2", "strongest inversion", cells, cells.loc[cells["value"].idxmax()], word)


# C3, C4, C9, C10: rules under attack


def _attack_runs(log, committee, share, n_rounds, *, trials, seed, n_boot, rules=RULES, burn_in=0) -> pd.DataFrame:
    """Honest and attacked runs of all rules, with the rows of resampled items."""
    every = {"task": tasks(log), "rule": list(rules), "committee": committee, "n_rounds": n_rounds, "burn_in": burn_in}
    scenarios = simulate.grid(**every)
    if share > 0:
        scenarios += simulate.grid(**every, attack=list(ATTACKS), malicious_share=share)
    frame = simulate.run(log, scenarios, trials=trials, seed=seed, progress=False, item_sums=True)
    return pd.concat([frame, claims.bootstrap(frame, n_boot=n_boot, seed=seed)], ignore_index=True)


def _robustness(frame: pd.DataFrame) -> list[dict]:
    same = ["task", "resample", "trial"]
    honest, hit = frame[frame["attack"] == "none"], frame[frame["attack"] != "none"]
    ahead = claims.subtract(
        hit[hit["rule"] != "mean"], hit[hit["rule"] == "mean"], on=[*same, "attack"], metrics=["pearson", "rmse"]
    )
    loss = claims.subtract(hit, honest, on=[*same, "rule"], metrics=["pearson", "rmse"])
    spared = claims.subtract(
        loss[loss["rule"] != "mean"], loss[loss["rule"] == "mean"], on=[*same, "attack"], metrics=["pearson", "rmse"]
    )
    rows = []
    for claim, part in (("C3", ahead), ("C4", spared)):
        part = part.assign(less_error=-part["rmse"])
        rows.append(_mean(claim, "correlation, all rules", part, "pearson", by=["rule", "attack", "task"]))
        for rule in part["rule"].unique():
            one = part[part["rule"] == rule]
            rows.append(_mean(claim, f"correlation, {rule}", one, "pearson", by=["attack", "task"]))
        rows.append(_mean(claim, "RMSE, all rules", part, "less_error", by=["rule", "attack", "task"]))
    rows.append(_default(frame))
    of_mean = loss[loss["rule"] == "mean"]
    distorts = of_mean.assign(support=-of_mean["pearson"], effect="distorts")
    inflates = of_mean[of_mean["resample"] == "none"]
    inflates = inflates.assign(support=inflates["inflation_total"], effect="inflates")
    both = pd.concat([distorts, inflates])
    rows.append(
        {
            **_mean("C10", "", both, "support", by=["effect", "attack", "task"]),
            **_shown(_mean("C10", "", inflates, "support", by=["attack", "task"])),
            "reading": "distorts and inflates (total pay per round)",
        }
    )
    rows.append(_mean("C10", "distorts (loss of correlation)", distorts, "support", by=["attack", "task"]))
    moved = inflates.assign(support=inflates["inflation_inference"])
    rows.append(_mean("C10", "inflates inference pay", moved, "support", by=["attack", "task"]))
    return rows


def _shown(row: dict) -> dict:
    return {name: row[name] for name in ("value", "low", "high")}


def _default(frame: pd.DataFrame) -> dict:
    """C9: a default rule must cost little without attack and be ahead of the mean under the attack worst for it."""
    parts = []
    for attack, part in frame.groupby("attack", sort=False):
        ahead = claims.subtract(
            part[part["rule"] != "mean"],
            part[part["rule"] == "mean"],
            on=["task", "resample", "trial"],
            metrics=["pearson"],
        )
        parts.append(ahead.assign(margin=ahead["pearson"] + (PRICE if attack == "none" else 0.0)))
    parts = pd.concat(parts)
    # The attack that is worst for a rule is the one under which its own correlation is lowest, over the trials.
    fixed = frame[(frame["resample"] == "none") & (frame["attack"] != "none") & (frame["rule"] != "mean")]
    level = fixed.groupby(["task", "rule", "attack"])["pearson"].mean()
    worst = level.groupby(["task", "rule"]).idxmin() if len(level) else pd.Series(dtype=object)
    chosen = {key for key in worst}
    keys = list(zip(parts["task"], parts["rule"], parts["attack"]))
    kept = parts[[key in chosen or key[2] == "none" for key in keys]]
    kept = kept.assign(when=np.where(kept["attack"] == "none", "no attack", "worst attack"))
    under = kept[kept["when"] == "worst attack"]
    row = _mean("C9", "cheap without attack, ahead under the worst", kept, "margin", by=["rule", "when", "task"])
    if len(under):
        row |= _shown(_mean("C9", "", under, "pearson", by=["rule", "task"]))
    return row


# C5: trust


def _trust(log, attacked, committee, share, n_rounds, *, trials, seed, n_boot) -> list[dict]:
    held = attacked[(attacked["rule"] == "paper") & (attacked["attack"] != "none") & (attacked["resample"] == "none")]
    held = held.assign(withheld=held["malicious_trust_0"] - held["malicious_trust_100"])
    held = held[held["n_malicious"] > 0]
    late = _attack_runs(
        log,
        committee,
        share,
        n_rounds,
        trials=trials,
        seed=seed,
        n_boot=n_boot,
        rules=("mean", "paper"),
        burn_in=n_rounds // 2,
    )
    late = late[late["attack"] != "none"]
    ahead = claims.subtract(
        late[late["rule"] == "paper"],
        late[late["rule"] == "mean"],
        on=["task", "attack", "resample", "trial"],
        metrics=["pearson"],
    )
    by = ["attack", "task"]
    return [
        _mean("C5", "trust withheld from malicious nodes", held, "withheld", by=by, line=CURTAILED),
        _mean("C5", "correlation ahead of the mean, second half", ahead, "pearson", by=by),
    ]


# C6, C7, C8: the committee


def _committee(log: pd.DataFrame, n_rounds: int, *, trials: int, seed: int) -> list[dict]:
    sizes = claims.fitting(log, range(2, 16))
    if len(sizes) < 2:
        empty = pd.DataFrame(columns=["value", "low", "high", "n"])
        return [_row(claim, "too few evaluators", empty, None, claims.UNTESTABLE) for claim in ("C6", "C7", "C8")]
    every = {"task": tasks(log), "committee": [min(sizes), max(sizes)], "resample": ["none", "items"]}
    every |= {"min_available": max(sizes), "n_rounds": n_rounds}
    scenarios = simulate.grid(**every, rule=list(RULES))
    scenarios += simulate.grid(**every, pay_reference="leave_one_out")
    frame = simulate.run(log, scenarios, trials=trials, seed=seed, progress=False)
    names = {
        "(a) per participation": "evaluator_reward",
        "(b) per round": "evaluator_pay_round",
        "(c) per node": "evaluator_pay_node",
        "(d) between node means": "evaluator_reward_between",
    }
    for name in names.values():
        frame[f"{name}_variance"] = frame[f"{name}_sd"] ** 2
    pay = [name for name in names.values() if name in frame]
    metrics = [*pay, *(f"{name}_variance" for name in names.values()), "inference_reward"]
    change = claims.subtract(
        frame[frame["committee"] == max(sizes)],
        frame[frame["committee"] == min(sizes)],
        on=["task", "rule", "pay_reference", "resample", "trial"],
        metrics=metrics,
    )
    rows = []
    for claim, sign, suffix in (("C6", -1, ""), ("C7", 1, "_variance")):
        kinds = {reading: name + suffix for reading, name in names.items() if name + suffix in metrics}
        for reference, where in (("consensus", "own score inside"), ("leave_one_out", "leave-one-out")):
            own = change[(change["rule"] == "mean") & (change["pay_reference"] == reference)]
            parts = [own.assign(support=sign * own[name], reading=reading) for reading, name in kinds.items()]
            row = _mean(claim, f"all readings, {where}", pd.concat(parts), "support", by=["reading", "task"])
            first = own.assign(change=own[next(iter(kinds.values()))])
            rows.append({**row, **_shown(_mean(claim, "", first, "change", by=["task"]))})
            if reference == "consensus":
                rows += [
                    _mean(claim, f"{reading}, {where}", part, "support", by=["task"])
                    for part, reading in zip(parts, kinds)
                ]
            else:
                rows.append(_mean(claim, f"(a) per participation, {where}", parts[0], "support", by=["task"]))
    own = change[change["pay_reference"] == "consensus"]
    rows.append(_mean("C8", "all rules", own, "inference_reward", by=["rule", "task"], within=STABLE))
    of_mean = own[own["rule"] == "mean"]
    rows.append(_mean("C8", "mean rule", of_mean, "inference_reward", by=["task"], within=STABLE))
    return rows


# C11: cost-aware pay


def _cost(matrices: dict[str, ScoreMatrix], committee: int, n_rounds: int, *, trials: int, seed: int) -> list[dict]:
    cells = []
    for task, matrix in matrices.items():
        costs = {"inference": matrix.model_cost, "evaluator": matrix.evaluator_cost}
        draws = {
            resample: [_pay(matrix, committee, n_rounds, resample, seed=seed, trial=trial) for trial in range(trials)]
            for resample in ("none", "items")
        }
        for role, raw in costs.items():
            if np.isnan(raw).all() or len(raw) < 4:
                continue
            cost = normalise_cost(raw)
            tests = {
                resample: np.array([_favours(*trial[role], cost) for trial in parts])
                for resample, parts in draws.items()
            }
            for number, what in enumerate(("good", "cheap")):
                ends = _percentiles(tests["items"][:, number])
                value = np.nanmean(tests["none"][:, number]) if (~np.isnan(tests["none"][:, number])).any() else np.nan
                cells.append({"task": task, "role": role, "favours": what, "n": trials, **ends, "value": value})
    names = ["task", "role", "favours", "n", "value", "low", "high"]
    cells = pd.DataFrame(cells, columns=names)
    rows = [_weakest("C11", "good and cheap, both roles", cells, factors=["favours", "role", "task"])]
    for role, part in cells.groupby("role", sort=False):
        rows.append(_weakest("C11", f"good and cheap, {role} nodes", part, factors=["favours", "task"]))
    return rows


def _pay(matrix: ScoreMatrix, committee: int, n_rounds: int, resample: str, *, seed: int, trial: int) -> dict:
    """One honest trial under the mean: for each role the quality that pay sees, and that of the truth, per node."""
    pool = make_pool(matrix, committee=committee, resample=resample, seed=seed, trial=trial)
    output, node, scores = sample_rounds(pool, n_rounds=n_rounds, committee=committee, seed=seed, trial=trial)
    consensus, truth, model = scores.mean(axis=1), matrix.truth[output], matrix.model[output]

    def mean_by(index, value, size):
        with np.errstate(invalid="ignore"):
            return np.bincount(index, weights=value, minlength=size) / np.bincount(index, minlength=size)

    models, nodes = len(matrix.models), len(pool.evaluator)
    return {
        "inference": [mean_by(model, value / 10, models) for value in (consensus, truth)],
        "evaluator": [1 - mean_by(node.ravel(), deviation(scores, c).ravel(), nodes) for c in (consensus, truth)],
    }


def _favours(seen, true, cost) -> tuple[float, float]:
    """Partial rank correlations of pay: with quality at equal cost, and with cheapness at equal quality."""
    known = ~np.isnan(seen) & ~np.isnan(true)
    if known.sum() < 4:
        return np.nan, np.nan
    pay = 0.7 * seen[known] - 0.3 * cost[known]
    ranks = [stats.rankdata(np.round(part, 12)) for part in (pay, true[known], -cost[known])]
    return _partial(*ranks), _partial(ranks[0], ranks[2], ranks[1])


def _partial(x, y, z) -> float:
    if min(np.ptp(x), np.ptp(y)) == 0:
        return np.nan
    xy = np.corrcoef(x, y)[0, 1]
    xz, yz = (np.corrcoef(part, z)[0, 1] if np.ptp(z) else 0.0 for part in (x, y))
    rest = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / np.sqrt(rest)) if rest > 1e-9 else np.nan


# M5, M6, A7, U1, U2, U3: our own


def _ours(log, committee, share, n_rounds, *, trials, seed, n_boot) -> list[dict]:
    rules = ("mean", "calibrated", "audited", "quantile_clip")
    size = {"trials": trials, "seed": seed}
    frame = _attack_runs(log, committee, share, n_rounds, rules=rules, n_boot=n_boot, **size)
    every = {"task": tasks(log), "committee": committee, "n_rounds": n_rounds}
    scenarios = simulate.grid(**every, rule=["mean", "audited"], attack="inverse", malicious_share=WRONG_MAJORITY)
    wrong = simulate.run(log, scenarios, progress=False, item_sums=True, **size)
    frame = pd.concat([frame, wrong, claims.bootstrap(wrong, n_boot=n_boot, seed=seed)], ignore_index=True)
    ahead = claims.subtract(
        frame[frame["rule"] != "mean"],
        frame[frame["rule"] == "mean"],
        on=["task", "attack", "resample", "trial"],
        metrics=["pearson"],
    )
    rows = []
    for rule, claim, under in (("calibrated", "M5", "M6"), ("audited", "U1", "U2")):
        own = ahead[ahead["rule"] == rule]
        free, hit = own[own["attack"] == "none"], own[own["attack"].isin(ATTACKS)]
        rows.append(_mean(claim, "correlation, no attack", free, "pearson", by=["task"], line=-PRICE))
        rows.append(_mean(under, "correlation, four attacks", hit, "pearson", by=["attack", "task"]))
    clip = claims.subtract(
        frame[(frame["rule"] == "audited") & frame["attack"].isin(ATTACKS)],
        frame[frame["rule"] == "quantile_clip"],
        on=["task", "attack", "resample", "trial"],
        metrics=["pearson"],
    )
    rows.append(_mean("P6", "correlation, four attacks", clip, "pearson", by=["attack", "task"]))
    turned = ahead[ahead["attack"] == "inverse"]
    rows.append(_mean("U3", "correlation, wrong majority", turned, "pearson", by=["task"]))
    scenarios = simulate.grid(**every, attack=["none", "lazy"], malicious_share=share)
    pay = simulate.run(log, scenarios, progress=False, **size)
    honest = claims.subtract(
        pay[pay["attack"] == "none"],
        pay[pay["attack"] == "lazy"],
        on=["task", "trial"],
        metrics=["evaluator_reward_malicious"],
    )
    rows.append(_mean("A7", "pay, honest minus lazy", honest, "evaluator_reward_malicious", by=["task"]))
    rows.append(_mean("I1", "pay, estimate minus no work", _audit_scored(log, committee, **size), "gain", by=["task"]))
    return rows


def _audit_scored(log, committee, *, trials, seed) -> pd.DataFrame:
    """What the best estimate earns over no work where pay is scored against audits, by task, trial and resample."""
    found = [pd.DataFrame(columns=["task", "trial", "resample", "gain"])]  # all there is where nobody can be compared
    settings = itertools.product(tasks(log), ("none", "items")) if committee > 1 else ()
    for task, resample in settings:
        # A node alone among truthful ones; its pay hangs on the truth alone, so neither K nor the rule enters.
        pays = incentives.deviations(
            score_matrix(log, task=task),
            rules=["mean"],
            states={"truthful": [0.0]},
            strategies=["belief", "lazy_truth"],
            committee=committee,
            n_rounds=1000,
            resample=resample,
            trials=trials,
            seed=seed,
        )
        gain = incentives.gains(pays, base="lazy_truth").query("strategy == 'belief' and pay_rule == 'audit_scored'")
        found.append(gain.assign(task=task, resample=resample))
    return pd.concat(found[1:] or found, ignore_index=True)


if __name__ == "__main__":
    import sys

    import yaml

    from poq.scorelog import read_score_log

    yaml.safe_dump(main_verdicts(evidence(read_score_log(sys.argv[1]))), sys.stdout, sort_keys=False)
