"""One trial: the rounds are drawn once, and every attack, rule and pay rule that shares them is played on them.

The stages are those of the paper's algorithm, each on a block of rounds: draw outputs and committees, attack, reach
consensus, update trust, pay, add up. Nothing here knows of processes, files or progress.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from poq import metrics
from poq.aggregators import leave_one_out, weighted_mean
from poq.attacks import Context, History, asks_for
from poq.rewards import normalise_cost
from poq.rounds import block_length, iter_outputs, iter_rounds, make_pool, malicious_nodes, mark_nodes
from poq.scorelog import SCORE_MAX, ScoreMatrix, best_evaluator
from poq.streams import stream
from poq.trust import TrustRule

MEMORY = 1000  # past consensus values that a reacting attacker is shown


# Attacks and rules are compared by identity: the plan makes one object for each, however many rows share it.
@dataclass(frozen=True, eq=False)
class Attack:
    """An attack as the engine plays it; `function` is None where nothing is attacked."""

    function: Callable | None
    options: dict = field(default_factory=dict)
    share: float = 0.0
    who: str = "random"


@dataclass(frozen=True, eq=False)
class Rule:
    """A consensus rule as the engine plays it: a function on scores or a TrustRule, and what pay is compared with."""

    function: Callable | TrustRule
    options: dict = field(default_factory=dict)
    reference: str = "consensus"


class Case(NamedTuple):
    """One row to make: an attack, a rule, and the four factors of the pay."""

    attack: Attack
    rule: Rule
    pay: dict


class Track(NamedTuple):
    """A rule on its way through the rounds: its sums, its state if it has one, and its weights at marked rounds.

    accurate : whether its consensus is compared with the truth, or only its pay is wanted.
    by_output : (2, O) summed consensus and squared consensus of each output, where item sums are wanted.
    past : the last consensus values, for attackers who react.
    """

    sums: metrics.Sums
    state: tuple | None
    trust: dict
    accurate: bool
    by_output: np.ndarray | None = None
    past: list | None = None


def n_malicious(share: float, n_nodes: int) -> int:
    """floor(share * N + 0.5); the small addition keeps 0.145 * 100 from falling below 14.5."""
    return int(np.floor(share * n_nodes + 0.5 + 1e-9))


def play_trial(matrix: ScoreMatrix, cases: list[Case], *, draw: dict, seed: int, trial: int) -> list[dict]:
    """Play one trial and return one row of metrics per case.

    Parameters
    ----------
    matrix : ScoreMatrix
    cases : list of Case
    draw : dict
        What fixes the rounds: committee, n_nodes, min_available, jitter, resample, n_rounds, burn_in; and whether
        rows carry `item_sums`, see :func:`_item_sums`.
    seed, trial : int
    """
    committee, n_rounds, burn_in = draw["committee"], draw["n_rounds"], draw["burn_in"]
    shape = {name: draw[name] for name in ("n_nodes", "min_available", "jitter", "resample")}
    pool = make_pool(matrix, committee=committee, seed=seed, trial=trial, **shape)
    n_nodes = len(pool.evaluator)
    node_cost = normalise_cost(matrix.evaluator_cost)[pool.evaluator]

    step = block_length(committee)
    marks = [round(n_rounds * mark / 100) for mark in metrics.TRUST_MARKS]
    edges = sorted({*range(0, n_rounds, step), n_rounds, burn_in, *marks})

    # The outputs are drawn twice, first only to be counted: ranks of the truth need to know how often each occurs.
    count = np.zeros(len(matrix.truth))
    for begin, output in zip(edges[:-1], iter_outputs(pool, edges, seed=seed, trial=trial)):
        if begin >= burn_in:
            count += np.bincount(output, minlength=len(count))
    truth_rank = metrics.truth_ranks(matrix.truth_tie, count)
    tables = (matrix.truth, truth_rank, matrix.model, node_cost)

    malicious = {}
    for who, share in {(case.attack.who, case.attack.share) for case in cases}:
        order = malicious_nodes(pool, matrix, who=who, seed=seed, trial=trial)
        malicious[who, share] = np.zeros(n_nodes, dtype=bool)
        malicious[who, share][order[: n_malicious(share, n_nodes)]] = True

    # Every rule is played on the honest reports too; the difference is what the attack cost.
    n_outputs = len(matrix.truth) if draw.get("item_sums") else 0
    start = partial(_start_track, n_nodes=n_nodes, n_models=len(matrix.models), n_outputs=n_outputs)
    tracks: dict[Attack, dict[Rule, Track]] = {}
    shown = set()
    for case in cases:
        if case.attack.function is not None and malicious[case.attack.who, case.attack.share].any():
            tracks.setdefault(case.attack, {})[case.rule] = start(case.rule)
        else:
            shown.add(case.rule)
    honest_tracks = {case.rule: start(case.rule, accurate=case.rule in shown) for case in cases}
    generators: dict = {}
    shifts: dict = {}  # summed shift of malicious reports, and their number

    auditor = stream(seed, trial, "audit")
    audits = dict.fromkeys((_audit_share(track) for track in honest_tracks.values()), 0)

    blocks = iter_rounds(pool, committee, edges, seed=seed, trial=trial)
    for begin, (output, node, honest) in zip(edges[:-1], blocks):
        lot = auditor.random(len(output))
        for share in audits:
            audits[share] += int((lot < share).sum())
        play = partial(_play_block, node=node, output=output, lot=lot, tables=tables, counted=begin >= burn_in)
        if begin in marks:
            _mark_trust(begin, honest_tracks, *tracks.values())
        for rule, track in honest_tracks.items():
            play(rule, track, honest)
        for attack, its_tracks in tracks.items():
            hit = mark_nodes(malicious[attack.who, attack.share], node)
            context = Context(np.arange(begin, begin + len(output)), output, matrix.model[output], node)
            if asks_for(attack.function, "history"):
                # Reports now hang on what the rule made of earlier ones: round by round, each rule for itself.
                for rule, track in its_tracks.items():
                    rng = generators.setdefault((attack, rule), stream(seed, trial, "attack"))
                    shift = _play_reacting(
                        attack, rule, track, honest, hit, rng, context, lot, tables, begin >= burn_in
                    )
                    shifts.setdefault((attack, rule), np.zeros(2))[:] += shift
                continue
            rng = generators.setdefault(attack, stream(seed, trial, "attack"))
            options = {**attack.options, "context": context} if asks_for(attack.function, "context") else attack.options
            reported = attack.function(honest, hit, rng, **options)
            _check_scale("attack", attack.function, reported)
            if begin >= burn_in:
                shifts.setdefault(attack, np.zeros(2))[:] += reported.sum() - honest.sum(), hit.sum()
            for rule, track in its_tracks.items():
                play(rule, track, reported)
    _mark_trust(n_rounds, honest_tracks, *tracks.values())

    model_cost = normalise_cost(matrix.model_cost)
    shared = {
        "n_outputs": len(np.unique(pool.output)),
        "outputs_dropped": pool.dropped,
        "cost_known": bool((~np.isnan(matrix.evaluator_cost)).any() and (~np.isnan(matrix.model_cost)).any()),
        **metrics.baseline_row(matrix.values, matrix.truth, count, best_evaluator(matrix)),
    }
    rows = []
    for case in cases:
        bad = malicious[case.attack.who, case.attack.share]
        honest_track = honest_tracks[case.rule]
        track = tracks.get(case.attack, {}).get(case.rule, honest_track)
        rows.append(
            {
                "n_malicious": int(bad.sum()),
                **shared,
                **_row(track, honest_track, bad, case.pay, matrix, pool, node_cost, model_cost, committee, marks),
                "audits": audits[_audit_share(track)],
                **_shift_row(
                    shifts.get(case.attack, shifts.get((case.attack, case.rule))), count.sum() * committee, bad
                ),
                **metrics.accuracy_row(track.sums, truth_rank, count),
            }
        )
        if track.by_output is not None:
            rows[-1]["item_sums"] = _item_sums(track, matrix, count)
    return rows


def _start_track(rule: Rule, *, n_nodes: int, n_models: int, n_outputs: int = 0, accurate: bool = True) -> Track:
    state = rule.function.start(n_nodes, **rule.options) if isinstance(rule.function, TrustRule) else None
    by_output = np.zeros((2, n_outputs)) if n_outputs and accurate else None
    return Track(metrics.start_sums(n_nodes, n_models), state, {}, accurate, by_output, [])


def _audit_share(track: Track) -> float:
    """Share of rounds whose truth a rule is shown; 0 for rules that ask for none."""
    return getattr(track.state, "audit_share", 0.0)


def _mark_trust(number: int, *groups: dict[Rule, Track]) -> None:
    for track in (track for group in groups for track in group.values()):
        if track.state is not None:
            track.trust[number] = track.state[0].copy()


def _play_block(rule: Rule, track: Track, reported, *, node, output, lot, tables, counted: bool):
    """Consensus and trust update for a block of rounds, then pay and sums if they count; returns the consensus."""
    truth, truth_rank, model, node_cost = tables
    leave_out = counted and rule.reference == "leave_one_out"
    reference = None
    if track.state is None:
        consensus_of = partial(rule.function, **rule.options)
        consensus = consensus_of(reported)
        reference = leave_one_out(reported, consensus_of) if leave_out else consensus
    else:
        audit = np.where(lot < _audit_share(track), truth[output], np.nan)
        consensus, weights, used = rule.function.advance(track.state, reported, node, audit)
        reference = _weighted_leave_one_out(used, weights) if leave_out else consensus
    _check_scale("rule", rule.function, consensus)
    if counted:
        metrics.add_pay(track.sums, output, node, consensus, reported, reference, model, node_cost)
        if track.accurate:
            metrics.add_accuracy(track.sums, output, consensus, truth, truth_rank)
        if track.by_output is not None:
            for row, value in zip(track.by_output, (consensus, consensus**2)):
                row += np.bincount(output, weights=value, minlength=len(row))
    return consensus


def _check_scale(what: str, function, scores) -> None:
    # Bins are indexed by score, so a rule or an attack of one's own must not leave the scale unnoticed.
    if not (scores.min() >= -1e-9 and scores.max() <= SCORE_MAX + 1e-9):
        function = getattr(function, "start", function)
        raise ValueError(f"{what} '{function.__name__}' gives scores outside [0, 10], or NaN")


def _play_reacting(attack, rule, track, honest, hit, rng, context, lot, tables, counted: bool) -> np.ndarray:
    """Play a block whose attackers react, one round after the other; returns summed shift and number of reports."""
    shift = np.zeros(2)
    past = track.past
    extra = asks_for(attack.function, "context")
    for t in range(len(honest)):
        now = slice(t, t + 1)
        node = context.node[now]
        reported = honest[now]
        if hit[t].any():
            trust = np.ones(node.shape) if track.state is None else track.state[0][node] / track.state[0].mean()
            options = {**attack.options, "history": History(np.array(past), trust)}
            if extra:
                options["context"] = Context(*(field_[now] for field_ in context))
            reported = attack.function(honest[now], hit[now], rng, **options)
            _check_scale("attack", attack.function, reported)
            shift += reported.sum() - honest[now].sum(), hit[t].sum()
        c = _play_block(
            rule, track, reported, node=node, output=context.output[now], lot=lot[now], tables=tables, counted=counted
        )
        past.append(c[0])
        del past[:-MEMORY]
    return shift if counted else np.zeros(2)


def _item_sums(track: Track, matrix: ScoreMatrix, count: np.ndarray) -> list[float]:
    """For each item in turn: rounds, and the sums over them of c, q, c^2, q^2, c q.

    From these the accuracy on any resample of items follows without playing again.
    """
    c, cc = track.by_output
    q = matrix.truth
    parts = (count, c, count * q, cc, count * q * q, c * q)
    sums = [np.bincount(matrix.item, weights=part, minlength=len(matrix.items)) for part in parts]
    return np.column_stack(sums).ravel().tolist()


def _weighted_leave_one_out(scores, weights):
    committee = scores.shape[1]
    others = [np.delete(np.arange(committee), k) for k in range(committee)]
    return np.stack([weighted_mean(scores[:, keep], weights[:, keep]) for keep in others]).T


def _row(track, honest_track, bad, pay, matrix, pool, node_cost, model_cost, committee, marks) -> dict[str, float]:
    now = metrics.pay_per_round(track.sums, bad, node_cost, model_cost, pay=pay)
    before = metrics.pay_per_round(honest_track.sums, bad, node_cost, model_cost, pay=pay)
    seats = track.sums.node[:, 0]
    raw_cost = matrix.evaluator_cost[pool.evaluator]
    row = {
        **metrics.evaluator_pay_row(
            track.sums, bad, node_cost, committee, alpha=pay["evaluator_alpha"], beta=pay["evaluator_beta"]
        ),
        **metrics.inference_pay_row(
            track.sums, model_cost, matrix.models, alpha=pay["inference_alpha"], beta=pay["inference_beta"]
        ),
        **{f"inflation_{name}": now[name] - before[name] for name in now},
        "verification_cost": float((seats * raw_cost).sum() / seats.sum() * committee),
    }
    for percent, mark in zip(metrics.TRUST_MARKS, marks):
        weights = track.trust.get(mark, np.full(len(bad), np.nan))
        row[f"malicious_trust_{percent}"] = float(weights[bad].sum() / weights.sum())
    return row


def _shift_row(shift, n_reports: float, bad) -> dict[str, float]:
    """Realised mean shift of a malicious report, and of a report, in points."""
    if shift is None:
        return {"attack_shift": 0.0 if bad.any() else float("nan"), "attack_shift_all": 0.0}
    total, reports = shift
    return {"attack_shift": total / reports if reports else float("nan"), "attack_shift_all": total / n_reports}
