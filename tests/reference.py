"""The mechanism once more, slowly and in plain Python: an independent reading that the engine is held against.

Random numbers come from the same named streams (rounds from :func:`poq.rounds.sample_rounds`, the attack's own from
its stream); calibration, attack, consensus, trust, pay and all metrics of a row are worked out here, number by number.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
from scipy import stats

from poq.rounds import make_pool, sample_rounds
from poq.scorelog import score_matrix
from poq.streams import stream

NAN = float("nan")


def calibrate(raw: list[float], how) -> list[float]:
    """Raw values of one column brought to [0, 10]."""
    if not isinstance(how, str):
        low, high = how
    elif min(raw) == max(raw):
        return [5.0 for _ in raw]
    elif how == "rank":
        ranks = [sum(y < x for y in raw) + (sum(y == x for y in raw) - 1) / 2 for x in raw]
        return [10 * rank / (len(raw) - 1) for rank in ranks]
    else:
        low, high = min(raw), max(raw)
    return [10 * (x - low) / (high - low) for x in raw]


def normalise(costs: list[float]) -> list[float]:
    """Costs of a role by min-max; the median stands in for an unknown one; without spread, 0."""
    known = [cost for cost in costs if not math.isnan(cost)]
    if not known or min(known) == max(known):
        return [0.0] * len(costs)
    filled = [statistics.median(known) if math.isnan(cost) else cost for cost in costs]
    return [(cost - min(known)) / (max(known) - min(known)) for cost in filled]


def trimmed(scores: list[float], cut: float = 0.2) -> float:
    """Mean after cutting floor(cut K) scores at each end, at least one from K = 3 up."""
    out = math.floor(cut * len(scores) + 1e-9)
    if cut > 0 and len(scores) >= 3:
        out = max(out, 1)
    kept = sorted(scores)[out : len(scores) - out]
    return sum(kept) / len(kept)


def weighted(scores: list[float], weights: list[float]) -> float:
    """Weighted mean."""
    return sum(w * s for w, s in zip(weights, scores)) / sum(weights)


def attacked(name: str, options: dict, honest: np.ndarray, malicious: list[set], nodes, rng) -> list[list[float]]:
    """Reports of every round: honest ones as they are, malicious ones changed."""
    drawn = np.zeros(honest.shape)
    if name == "noise":
        drawn = rng.standard_normal(honest.shape)
    elif name == "intermittent":
        drawn = rng.random(honest.shape)
    reports = []
    for row, who, draws in zip(honest.tolist(), nodes.tolist(), drawn.tolist()):
        report = []
        for s, n, z in zip(row, who, draws):
            if n in malicious:
                if name == "noise":
                    s = min(10.0, max(0.0, s + options.get("sd", 3.0) * z))
                elif name == "boost" or (name == "intermittent" and z < options.get("probability", 0.3)):
                    s = min(10.0, s + options.get("by", 3.0))
                elif name == "sabotage":
                    s = max(0.0, s - options.get("by", 3.0))
            report.append(s)
        reports.append(report)
    return reports


def reacted(name: str, s: float, past: list[float], relative_trust: float) -> float:
    """Report of a malicious node that looks at what the rule did so far."""
    if name == "traitor":
        return min(10.0, s + 3.0) if relative_trust >= 1 else s
    return past[-1] if past else 5.0  # copycat


def play(rule: str, options: dict, reports, nodes, n_nodes: int, marks, reacting: str = "", malicious=()):
    """Consensus and leave-one-out consensus of each round, and the weights (N,) when a marked round begins.

    Reports of malicious nodes that react are changed in place.
    """
    trust = [options.get("start", 1.0)] * n_nodes
    rate, low, high = options.get("rate", 0.1), options.get("low", 0.1), options.get("high", 5.0)
    plain = {
        "mean": lambda scores: sum(scores) / len(scores),
        "median": statistics.median,
        "trimmed_mean": lambda scores: trimmed(scores, **options),
    }
    consensus, others, seen = [], [], {}
    for t, (scores, who) in enumerate(zip(reports, nodes.tolist())):
        if t in marks:
            seen[t] = list(trust)
        if reacting:
            share = [trust[n] / mean(trust) if rule == "paper" else 1.0 for n in who]
            scores[:] = [
                reacted(reacting, s, consensus, w) if n in malicious else s for s, n, w in zip(scores, who, share)
            ]
        rest = [[s for j, s in enumerate(scores) if j != k] for k in range(len(scores))]
        if rule == "paper":
            weights = [trust[n] for n in who]
            without = [[w for j, w in enumerate(weights) if j != k] for k in range(len(scores))]
            c = weighted(scores, weights)
            left = [weighted(s, w) for s, w in zip(rest, without)] if len(scores) > 1 else []
            for s, n in zip(scores, who):
                trust[n] = min(high, max(low, trust[n] * (1 + rate * (0.5 - abs(s - c) / 10))))
        else:
            c = plain[rule](scores)
            left = [plain[rule](s) for s in rest] if len(scores) > 1 else []
        consensus.append(c)
        others.append(left)
    seen[len(reports)] = list(trust)
    return consensus, others, seen


def mean(values) -> float:
    return math.fsum(values) / len(values) if len(values) else NAN


def sd(values) -> float:
    """Population standard deviation."""
    return statistics.pstdev(values) if len(values) else NAN


def correlation(x, y, kind) -> float:
    if len(x) < 2 or max(x) - min(x) < 1e-9 or max(y) - min(y) < 1e-9:
        return NAN
    return float(kind(x, y).statistic)


def row(log, scenario, *, seed: int, trial: int) -> dict[str, float]:
    """The metrics of one row of ``simulate.run``."""
    s = scenario
    rows = log[log["task"] == s.task].to_dict("records")
    models = sorted({r["model"] for r in rows})
    names = sorted({r["evaluator"] for r in rows})
    outputs = sorted({(r["item"], r["model"]) for r in rows})
    raw_truth = {(r["item"], r["model"]): r["truth"] for r in rows}
    how = s.truth_range if s.truth_range is not None else "minmax"
    truth = calibrate([raw_truth[o] for o in outputs], how)
    value: dict[tuple[int, int], float] = {}
    for e, name in enumerate(names):
        cells = {(r["item"], r["model"]): r["score"] for r in rows if r["evaluator"] == name}
        known = [o for o, output in enumerate(outputs) if not math.isnan(cells.get(output, NAN))]
        scores = calibrate([cells[outputs[o]] for o in known], s.calibration) if known else []
        value.update({(o, e): x for o, x in zip(known, scores)})

    def mean_cost(column, key, name):
        return mean([c for r in rows if r[key] == name and not math.isnan(c := r.get(column, NAN))])

    raw_cost = [mean_cost("cost", "evaluator", name) for name in names]
    raw_model_cost = [mean_cost("model_cost", "model", name) for name in models]
    told = sorted(cost for cost in raw_cost if not math.isnan(cost))
    told_cost = [statistics.median(told) if math.isnan(cost) and told else cost for cost in raw_cost]

    matrix = score_matrix(log, task=s.task, calibration=s.calibration, truth_range=s.truth_range)
    shape = dict(committee=s.committee, n_nodes=s.n_nodes, min_available=s.min_available)
    pool = make_pool(matrix, jitter=s.jitter, resample=s.resample, seed=seed, trial=trial, **shape)
    rounds = dict(n_rounds=s.n_rounds, committee=s.committee, seed=seed, trial=trial)
    output, nodes, honest = sample_rounds(pool, **rounds)
    n_nodes = len(names) if s.n_nodes is None else s.n_nodes
    runs = pool.evaluator.tolist()
    if n_nodes >= len(names):
        assert runs == [n % len(names) for n in range(n_nodes)]
    else:
        assert len(set(runs)) == len(runs) == n_nodes
    least = max(s.committee, s.min_available or 0)
    available = [sum((o, e) in value for e in runs) for o in range(len(outputs))]
    assert set(output.tolist()) <= {o for o, n in enumerate(available) if n >= least}
    jitter = np.zeros(honest.shape)
    if n_nodes > len(names):
        drawn = [stream(seed, trial, "jitter", k).standard_normal(s.n_rounds) for k in range(s.committee)]
        jitter = s.jitter * np.stack(drawn, axis=1)
    for t in range(s.n_rounds):
        for k in range(s.committee):
            said = value[output[t], runs[nodes[t, k]]] + jitter[t, k]
            assert abs(min(10, max(0, said)) - honest[t, k]) < 1e-12

    n_bad = math.floor(s.malicious_share * n_nodes + 0.5)
    bad = set(stream(seed, trial, "malicious").permutation(n_nodes)[:n_bad].tolist())
    cost = [normalise(raw_cost)[e] for e in runs]
    model_cost = normalise(raw_model_cost)
    marks = {percent: round(s.n_rounds * percent / 100) for percent in (0, 25, 50, 75, 100)}
    counted = range(s.burn_in, s.n_rounds)

    def payments(attack):
        """(consensus, evaluator pay (R, K), inference pay (R,), weights at marks) of the counted rounds."""
        reports = attacked(attack, s.attack_options, honest, bad, nodes, stream(seed, trial, "attack"))
        reacting = {"reacting": attack, "malicious": bad} if attack in ("traitor", "copycat") else {}
        consensus, others, seen = play(s.rule, s.rule_options, reports, nodes, n_nodes, set(marks.values()), **reacting)
        evaluators = []
        for t in counted:
            reference = others[t] if s.pay_reference == "leave_one_out" else [consensus[t]] * s.committee
            quality = [1 - abs(x - ref) / 10 for x, ref in zip(reports[t], reference)]
            pay = [s.evaluator_alpha * q - s.evaluator_beta * cost[n] for q, n in zip(quality, nodes[t])]
            evaluators.append(pay)
        inference = [
            s.inference_alpha * consensus[t] / 10 - s.inference_beta * model_cost[models.index(outputs[output[t]][1])]
            for t in counted
        ]
        return reports, [consensus[t] for t in counted], evaluators, inference, seen

    def per_round(evaluators, inference):
        split = {"honest": [], "malicious": []}
        for t, pays in zip(counted, evaluators):
            split["honest"].append(sum(p for p, n in zip(pays, nodes[t]) if n not in bad))
            split["malicious"].append(sum(p for p, n in zip(pays, nodes[t]) if n in bad))
        mine = {"inference": mean(inference), **{name: mean(sums) for name, sums in split.items()}}
        return {**mine, "total": sum(mine.values())}

    reports, c, evaluators, inference, seen = payments(s.attack)
    _, _, twin_evaluators, twin_inference, _ = payments("none")
    now, before = per_round(evaluators, inference), per_round(twin_evaluators, twin_inference)
    q = [truth[output[t]] for t in counted]
    error = [x - y for x, y in zip(c, q)]
    seats = [(n, p) for t, pays in zip(counted, evaluators) for n, p in zip(nodes[t].tolist(), pays)]
    by_node = {n: [p for m, p in seats if m == n] for n in range(n_nodes)}
    said = [(reports[t][k] - honest[t, k], nodes[t, k] in bad) for t in counted for k in range(s.committee)]
    answered = [outputs[output[t]][1] for t in counted]
    result = {
        "n_malicious": n_bad,
        "outputs_dropped": sum(n < least for n in available),
        "n_outputs": len(set(pool.output.tolist())),
        "cost_known": not all(map(math.isnan, raw_cost)) and not all(map(math.isnan, raw_model_cost)),
        "pearson": correlation(c, q, stats.pearsonr),
        "spearman": correlation([round(x, 9) for x in c], q, stats.spearmanr),  # ties that rounding tore apart
        "rmse": math.sqrt(mean([e * e for e in error])),
        "mae": mean([abs(e) for e in error]),
        "bias": mean(error),
        "evaluator_reward": mean([p for _, p in seats]),
        "evaluator_reward_sd": sd([p for _, p in seats]),
        "evaluator_reward_honest": mean([p for n, p in seats if n not in bad]),
        "evaluator_reward_honest_sd": sd([p for n, p in seats if n not in bad]),
        "evaluator_reward_malicious": mean([p for n, p in seats if n in bad]),
        "evaluator_reward_malicious_sd": sd([p for n, p in seats if n in bad]),
        "evaluator_pay_round": mean([sum(pays) for pays in evaluators]),
        "evaluator_pay_round_sd": sd([sum(pays) for pays in evaluators]),
        "evaluator_pay_node": mean([sum(pays) for pays in by_node.values()]),
        "evaluator_pay_node_sd": sd([sum(pays) for pays in by_node.values()]),
        "evaluator_reward_between_sd": sd([mean(pays) for pays in by_node.values() if pays]),
        "inference_reward": mean(inference),
        "inference_reward_sd": sd(inference),
        **{f"inflation_{name}": now[name] - before[name] for name in now},
        "verification_cost": mean([sum(told_cost[runs[n]] for n in nodes[t]) for t in counted]),
        "attack_shift": mean([shift for shift, hit in said if hit]),
        "attack_shift_all": mean([shift for shift, _ in said]),
    }
    if bad and s.attack == "none":
        result["attack_shift"] = 0.0
    for model in models:
        result[f"inference_reward[{model}]"] = mean([pay for pay, m in zip(inference, answered) if m == model])
    for percent, mark in marks.items():
        share = math.fsum(seen[mark][n] for n in bad) / math.fsum(seen[mark])
        result[f"malicious_trust_{percent}"] = share if s.rule == "paper" else NAN
    return {**result, **baselines(value, truth, len(names), [output[t] for t in counted])}


def baselines(value, truth, n_evaluators: int, played) -> dict[str, float]:
    """One evaluator alone, or a constant, on the rounds played."""
    overall, pearson, rmse = [], [], []
    for e in range(n_evaluators):
        log_pairs = [(x, truth[o]) for (o, f), x in value.items() if f == e]
        overall.append(correlation(*zip(*log_pairs), stats.pearsonr) if log_pairs else NAN)
        pairs = [(value[o, e], truth[o]) for o in played if (o, e) in value]
        pearson.append(correlation(*zip(*pairs), stats.pearsonr) if pairs else NAN)
        rmse.append(math.sqrt(mean([(x - y) ** 2 for x, y in pairs])) if pairs else NAN)
    best = max(range(n_evaluators), key=lambda e: -2 if math.isnan(overall[e]) else overall[e])
    return {
        "best_single_pearson": pearson[best],
        "best_single_rmse": rmse[best],
        "random_single_pearson": mean([r for r in pearson if not math.isnan(r)]),
        "random_single_rmse": mean([r for r in rmse if not math.isnan(r)]),
        "constant_rmse": sd([truth[o] for o in played]),
    }


def audited(scores, node, audit, *, memory: float, prior: float, blend: float) -> list[float]:
    """Consensus of the audited rule, each round from the whole past: every number is a sum over what was said before.

    The past of a node fades by 1 - 1 / memory per participation, what audits showed of it by 1 - 10 / memory.
    """
    fade, fade_audit = 1 - 1 / memory, 1 - 10 / memory
    said: list[float] = []  # all reports
    past: dict[int, list] = {}  # node: its reports and their squared distance from its level then
    shown: dict[int, list[float]] = {}  # node: z q of its audited participations
    truths: list[float] = []
    gaps: list[float] = []  # squared distance of an audited truth from what was expected
    products: list[float] = []  # all z q, unfaded
    found = []

    def faded(values, keep):
        return sum(value * keep**age for age, value in enumerate(reversed(values)))

    def of_node(n, common):
        reports = past.get(n, [])
        count = faded([1.0] * len(reports), fade) + 20
        level = (faded([s for s, _ in reports], fade) + 20 * common) / count
        return level, count, faded([gap for _, gap in reports], fade)

    def skills(committee):
        pooled = (sum(products) + 20 * committee * 0.5) / (len(products) + 20 * committee)
        counts = {n: faded([1.0] * len(zq), fade_audit) for n, zq in shown.items()}
        means = {n: faded(zq, fade_audit) / counts[n] for n, zq in shown.items()}
        known = [n for n in shown if counts[n] >= 1]
        shrink = 200.0
        if known:
            spread = sum(counts[n] * (means[n] - pooled) ** 2 for n in known) - len(known)
            real = spread / sum(counts[n] for n in known)
            shrink = 1 / max(real, 1 / 200)
        shrink = max(shrink, prior)
        return pooled, {n: (means[n] * counts[n] + shrink * pooled) / (counts[n] + shrink) for n in shown}

    for reports, members, truth in zip(scores, node, audit):
        committee = len(members)
        common = sum(said) / len(said) if said else 5.0
        spread = 4.0
        if len(said) > 30:
            spread = max(sum(s * s for s in said) / len(said) - common**2, 0.1)
        mean = (sum(truths) + 5 * common) / (len(truths) + 5)
        sd = math.sqrt((sum(gaps) + 40) / (len(truths) + 10))
        pooled, skill = skills(committee) if truths else (0.5, {})
        zs, levels, pull, precision = [], [], 0.0, 1.0
        for s, n in zip(reports, members):
            level, count, squares = of_node(n, common)
            z = (s - level) / math.sqrt(max((squares + 20 * spread) / count, 0.05))
            r = min(max(skill.get(n, pooled), -0.95), 0.95)
            pull += r / (1 - r * r) * z
            precision += r * r / (1 - r * r)
            zs.append(z)
            levels.append(level)
        own = len(truths) / (len(truths) + blend)
        expected = common + math.sqrt(1 - 1 / precision) * (mean - common)
        c = own * (expected + sd * pull / precision) + (1 - own) * sum(reports) / committee
        found.append(min(max(c, 0.0), 10.0))
        if not math.isnan(truth):
            for n, z in zip(members, zs):
                shown.setdefault(n, []).append(z * (truth - mean) / sd)
                products.append(z * (truth - mean) / sd)
            truths.append(truth)
            gaps.append((truth - mean) ** 2)
        for s, n, level in zip(reports, members, levels):
            past.setdefault(n, []).append((s, (s - level) ** 2))
            said.append(s)
    return found


def yuma(scores, node, output, n_nodes: int, *, epoch: int, bond_rate: float, emission: float) -> list[float]:
    """Consensus of Yuma's clip with stake that grows by dividends, for kappa = 1/2."""
    stake = dict.fromkeys(range(n_nodes), 1 / n_nodes)
    bonds: dict[tuple[int, int], float] = {}
    found = []
    for begin in range(0, len(scores), epoch):
        held: dict[tuple[int, int], float] = {}
        rank: dict[int, float] = {}
        for reports, members, o in list(zip(scores, node, output))[begin : begin + epoch]:
            total = sum(stake[n] for n in members)
            # Clipped at the highest score that members with half of the committee's stake reach.
            support = {x: sum(stake[n] for n, s in zip(members, reports) if s >= x) for x in reports}
            top = max(x for x in reports if support[x] >= total / 2 - 1e-12)
            c = sum(stake[n] * min(s, top) for n, s in zip(members, reports)) / total
            found.append(c)
            rank[o] = rank.get(o, 0.0) + c
            for n, s in zip(members, reports):
                held[n, o] = held.get((n, o), 0.0) + stake[n] * min(s, c)
        old = {o for (_, o), bond in bonds.items() if bond > 0}
        for o in rank:
            earned = {n: held.get((n, o), 0.0) for n in range(n_nodes)}
            total = sum(earned.values())
            for n in range(n_nodes):
                share = earned[n] / total if total else 0.0
                before = bonds.get((n, o), 0.0)
                bonds[n, o] = bond_rate * share + (1 - bond_rate) * before if o in old else share
        incentive = {o: value / sum(rank.values()) for o, value in rank.items()}
        dividend = {n: sum(bonds[n, o] * value for o, value in incentive.items()) for n in range(n_nodes)}
        minted = emission * sum(stake.values())
        stake = {n: stake[n] + minted * dividend[n] / sum(dividend.values()) for n in range(n_nodes)}
    return found
