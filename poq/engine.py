"""One trial: the rounds are drawn once, and every attack, rule and pay rule that shares them is played on them.

The stages are those of the paper's algorithm, each on a block of rounds: draw outputs and committees, attack, reach
consensus, update trust, pay, add up. Nothing here knows of processes, files or progress.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import njit

from poq import metrics
from poq.aggregators import leave_one_out, weighted_mean
from poq.attacks import MEMORY, Context, History, asks_for
from poq.fused import PLAY, PLAY_TWICE
from poq.matrix import SCORE_MAX, ScoreMatrix, best_evaluator
from poq.rewards import fill_cost, normalise_cost
from poq.rounds import Pool, block_length, count_outputs, iter_rounds, make_pool, malicious_nodes, mark_nodes
from poq.streams import stream
from poq.trust import TrustRule


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


def play_trial(matrix: ScoreMatrix, cases: list[Case], *, draw: dict, seed: int, trial: int) -> dict[str, np.ndarray]:
    """Play one trial and return its metrics by name, one value per case.

    Parameters
    ----------
    matrix : ScoreMatrix
    cases : list of Case
    draw : dict
        What fixes the rounds: committee, n_nodes, min_available, jitter, resample, n_rounds, burn_in; and whether
        `item_sums` are wanted, see :func:`_item_sums`.
    seed, trial : int
    """
    stage = _set_stage(matrix, cases, draw=draw, seed=seed, trial=trial)
    n_outputs = len(matrix.truth) if draw.get("item_sums") else 0
    n_rounds = draw["n_rounds"] - draw["burn_in"]
    honest_tracks, tracks = _start_tracks(stage, cases, n_rounds=n_rounds, n_outputs=n_outputs)
    generators = defaultdict(partial(stream, seed, trial, "attack"))
    shifts = defaultdict(partial(np.zeros, 2))  # summed shift of malicious reports, and their number
    audits = dict.fromkeys(filter(None, map(_audit_share, honest_tracks.values())), 0)  # how many, by share of rounds

    for block, honest in _iter_blocks(stage, draw["burn_in"], seed=seed, trial=trial, audited=bool(audits)):
        for share in audits:
            audits[share] += np.count_nonzero(block.lot < share)
        honest_yet = dict(honest_tracks)
        for attack, its_tracks in tracks.items():
            hit = mark_nodes(stage.malicious[attack.who, attack.share], block.node)
            if asks_for(attack.function, "history"):
                # Reports now hang on what the rule made of earlier ones: round by round, each rule for itself.
                for rule, track in its_tracks.items():
                    rng = generators[attack, rule]
                    shifts[attack, rule] += _play_reacting(stage, attack, rule, track, honest, hit, rng, block)
                continue
            reported, shift = _attacked(stage, attack, honest, hit, generators[attack], block)
            if block.counted:
                shifts[attack] += shift, np.count_nonzero(hit)
            for rule, track in its_tracks.items():
                if rule in honest_yet and _can_play_twice(rule, honest_yet[rule], block):
                    _play_twice(stage, rule, track, reported, honest_yet.pop(rule), honest, block)
                else:
                    _play(stage, rule, track, reported, block)
        for rule, track in honest_yet.items():
            _play(stage, rule, track, honest, block)
    for track in [*honest_tracks.values(), *(track for group in tracks.values() for track in group.values())]:
        _note_trust(stage, track, draw["n_rounds"])

    bad = np.array([stage.malicious[case.attack.who, case.attack.share] for case in cases])
    # Cases may share a run: under no attack there is only the honest one.
    before = [honest_tracks[case.rule] for case in cases]
    after = [tracks.get(case.attack, {}).get(case.rule, track) for case, track in zip(cases, before)]
    moved = [shifts.get(case.attack, shifts.get((case.attack, case.rule))) for case in cases]
    shared = {
        "n_outputs": len(np.unique(stage.pool.output)),
        "outputs_dropped": stage.pool.dropped,
        "cost_known": bool((~np.isnan(matrix.evaluator_cost)).any() and (~np.isnan(matrix.model_cost)).any()),
        **metrics.baseline_row(matrix.values, matrix.truth, stage.count, best_evaluator(matrix)),
    }
    totals, totals_before = _totals(stage, after, before)
    columns = {
        "n_malicious": bad.sum(axis=-1),
        **{name: np.full(len(cases), value) for name, value in shared.items()},
        **_pay_columns(stage, totals, totals_before, bad, [case.pay for case in cases]),
        **_trust_columns(stage, after, bad),
        "audits": np.array([audits.get(_audit_share(track), 0) for track in after]),
        **_shift_columns(moved, stage.count.sum() * stage.committee, bad),
        **metrics.accuracy_row(totals, stage.truth_rank, stage.count),
    }
    if draw.get("item_sums"):
        columns["item_sums"] = np.array([_item_sums(track, matrix, stage.count) for track in after])
    return columns


class Stage(NamedTuple):
    """What all rules of a trial share.

    edges : rounds at which blocks begin and end; marks : rounds at which trust is noted; count (O,) : how often each
    output is answered in counted rounds; truth_rank (O,); raw_cost (N,) : cost of a node in the unit of the log, and
    node_cost (N,) normalised; malicious : (N,) bool for each (who, share).
    """

    matrix: ScoreMatrix
    pool: Pool
    committee: int
    edges: list[int]
    marks: list[int]
    count: np.ndarray
    truth_rank: np.ndarray
    raw_cost: np.ndarray
    node_cost: np.ndarray
    model_cost: np.ndarray
    malicious: dict


class Block(NamedTuple):
    """Consecutive rounds: number of the first, output (B,), node (B, K), lot of the audit (B,), whether counted."""

    begin: int
    output: np.ndarray
    node: np.ndarray
    lot: np.ndarray
    counted: bool

    def cut(self, begin: int, end: int) -> Block:
        """Rounds begin to end - 1 of the block."""
        return Block(self.begin + begin, *(part[begin:end] for part in self[1:-1]), self.counted)

    def pieces(self, marks: list[int]) -> Iterator[tuple[slice, Block]]:
        """The block, cut at the marked rounds, and where in it each piece stands."""
        length = len(self.output)
        inside = sorted({mark - self.begin for mark in marks if 0 < mark - self.begin < length})
        for begin, end in pairwise([0, *inside, length]):
            yield slice(begin, end), self.cut(begin, end)


def _set_stage(matrix: ScoreMatrix, cases: list[Case], *, draw: dict, seed: int, trial: int) -> Stage:
    committee, n_rounds = draw["committee"], draw["n_rounds"]
    shape = {name: draw[name] for name in ("n_nodes", "min_available", "jitter", "resample")}
    pool = make_pool(matrix, committee=committee, seed=seed, trial=trial, **shape)
    marks = [round(n_rounds * mark / 100) for mark in metrics.TRUST_MARKS]
    edges = sorted({*range(0, n_rounds, block_length(committee)), n_rounds, draw["burn_in"]})
    # The outputs are drawn twice, first only to be counted: ranks of the truth need to know how often each occurs.
    count = count_outputs(pool, edges, skip=draw["burn_in"], seed=seed, trial=trial)
    malicious = {}
    for who, share in {(case.attack.who, case.attack.share) for case in cases}:
        order = malicious_nodes(pool, matrix, who=who, seed=seed, trial=trial)
        malicious[who, share] = np.zeros(len(order), dtype=bool)
        malicious[who, share][order[: n_malicious(share, len(order))]] = True
    return Stage(
        matrix=matrix,
        pool=pool,
        committee=committee,
        edges=edges,
        marks=marks,
        count=count,
        truth_rank=metrics.truth_ranks(matrix.truth_tie, count),
        raw_cost=fill_cost(matrix.evaluator_cost)[pool.evaluator],
        node_cost=normalise_cost(matrix.evaluator_cost)[pool.evaluator],
        model_cost=normalise_cost(matrix.model_cost),
        malicious=malicious,
    )


def _iter_blocks(
    stage: Stage, burn_in: int, *, seed: int, trial: int, audited: bool
) -> Iterator[tuple[Block, np.ndarray]]:
    """Blocks of rounds with the honest scores (B, K); the lots of audits are drawn where there are any."""
    auditor = stream(seed, trial, "audit")
    unaudited = np.ones(block_length(stage.committee))
    rounds = iter_rounds(stage.pool, stage.committee, stage.edges, seed=seed, trial=trial)
    for begin, (output, node, honest) in zip(stage.edges[:-1], rounds):
        lot = auditor.random(len(output)) if audited else unaudited[: len(output)]
        yield Block(begin, output, node, lot, begin >= burn_in), honest


def _start_tracks(stage: Stage, cases: list[Case], *, n_rounds: int, n_outputs: int):
    """A track for each rule on honest reports, and for each attack and rule.

    Every rule is played on the honest reports too: the difference is what the attack cost.
    """
    start = partial(
        _start_track,
        n_nodes=len(stage.pool.evaluator),
        n_models=len(stage.matrix.models),
        n_rounds=n_rounds,
        n_outputs=n_outputs,
    )
    tracks: dict[Attack, dict[Rule, Track]] = {}
    shown = set()
    for case in cases:
        if case.attack.function is not None and stage.malicious[case.attack.who, case.attack.share].any():
            tracks.setdefault(case.attack, {})[case.rule] = start(case.rule)
        else:
            shown.add(case.rule)
    return {case.rule: start(case.rule, accurate=case.rule in shown) for case in cases}, tracks


def _start_track(
    rule: Rule, *, n_nodes: int, n_models: int, n_rounds: int, n_outputs: int, accurate: bool = True
) -> Track:
    state = rule.function.start(n_nodes, **rule.options) if isinstance(rule.function, TrustRule) else None
    by_output = np.zeros((2, n_outputs)) if n_outputs and accurate else None
    sums = metrics.start_sums(n_nodes, n_models, n_rounds=n_rounds if accurate else 0)
    return Track(sums, state, {}, accurate, by_output, [])


def _audit_share(track: Track) -> float:
    """Share of rounds whose truth a rule is shown; 0 for rules that ask for none."""
    return getattr(track.state, "audit_share", 0.0)


def _note_trust(stage: Stage, track: Track, number: int) -> None:
    """Keep the weights as they are before round `number`, if it is marked."""
    if track.state is not None and number in stage.marks:
        track.trust[number] = track.state[0].copy()


def _attacked(stage: Stage, attack: Attack, honest, hit, rng, block: Block) -> tuple[np.ndarray, float]:
    """Reports (B, K) after the attack, and their summed shift."""
    known = _context(stage, attack, block)
    reported = _reports(attack, _locked(honest), _locked(hit), rng, **known)
    return reported, _shift(attack, honest, reported, hit)


def _locked(array):
    """The array for the eyes of rules and attacks: others are still to be played on it."""
    view = array.view()
    view.flags.writeable = False
    return view


def _reports(attack: Attack, honest, hit, rng, **known) -> np.ndarray:
    """What the attack makes of scores (B, K), which must be as many."""
    reported = np.asarray(attack.function(honest, hit, rng, **attack.options, **known), dtype=np.float64)
    if reported.shape != honest.shape:
        raise ValueError(
            f"attack '{_name(attack.function)}' returns shape {reported.shape} for scores of shape {honest.shape}"
        )
    return reported


def _context(stage: Stage, attack: Attack, block: Block) -> dict[str, Context]:
    """What the attack asks to know of the rounds."""
    if not asks_for(attack.function, "context"):
        return {}
    number = np.arange(block.begin, block.begin + len(block.output))
    return {"context": Context(number, block.output, stage.matrix.model[block.output], block.node)}


def _shift(attack: Attack, honest, reported, hit) -> float:
    """Summed shift of the reports (B, K), which must be on the scale, and those of honest nodes as they were."""
    shift, off_scale, changed = _survey(*(np.ascontiguousarray(array.T) for array in (honest, reported, hit)))
    _check_scale("attack", attack.function, off_scale)
    if changed:
        raise ValueError(f"attack '{_name(attack.function)}' changes the reports of honest nodes")
    return shift


def _play(stage: Stage, rule: Rule, track: Track, reported, block: Block) -> None:
    """Play a block; a rule with a memory stops where its weights are noted."""
    pieces = [(slice(None), block)] if track.state is None else block.pieces(stage.marks)
    for part, piece in pieces:
        _note_trust(stage, track, piece.begin)
        _play_block(stage, rule, track, reported[part], piece)


def _play_block(stage: Stage, rule: Rule, track: Track, reported, block: Block) -> None:
    """Consensus and trust update for a block of rounds, then pay and sums if they count."""
    if block.counted and rule.reference == "consensus" and rule.function in PLAY:
        consensus = PLAY[rule.function](track.state, reported, block.node, track.sums, stage.node_cost)
        _add_up(stage, track, consensus, block)
    else:
        audit = _audit(stage, track, block)
        _settle(stage, rule, track, reported, *_agree(rule, track, _locked(reported), block.node, audit), block)


def _audit(stage: Stage, track: Track, block: Block):
    """The truth of the rounds that a rule with a memory is shown, NaN for the others; None without a memory."""
    if track.state is None:
        return None
    return np.where(block.lot < _audit_share(track), stage.matrix.truth[block.output], np.nan)


def _agree(rule: Rule, track: Track, reported, node, audit):
    """Consensus (B,), and of a rule with a memory, which is updated, the weights (B, K) and the reports it used."""
    if track.state is None:
        return rule.function(reported, **rule.options), None, None
    return rule.function.advance(track.state, reported, node, audit)


def _check_shapes(rule: Rule, *parts, shape: tuple[int, int]) -> None:
    """Whether consensus (B,), weights (B, K) and reports used (B, K) are those of all rounds played.

    Compiled loops index by round and do not look where an array ends.
    """
    for part, expected in zip(parts, (shape[:1], shape, shape)):
        if part is not None and np.shape(part) != expected:
            name = _name(rule.function)
            raise ValueError(
                f"rule '{name}' returns shape {np.shape(part)} instead of {expected} for scores of shape {shape}"
            )


def _settle(stage: Stage, rule: Rule, track: Track, reported, consensus, weights, used, block: Block) -> None:
    """Check what was agreed on in a block of rounds; pay and add up if they count."""
    consensus = np.asarray(consensus, dtype=np.float64)
    on_scale = not consensus.size or (consensus.min() >= -1e-9 and consensus.max() <= SCORE_MAX + 1e-9)
    _check_scale("rule", rule.function, not on_scale)
    _check_shapes(rule, consensus, weights, used, shape=reported.shape)
    if not block.counted:
        return
    reference = consensus
    if rule.reference == "leave_one_out" and weights is None:
        reference = leave_one_out(reported, partial(rule.function, **rule.options))
    elif rule.reference == "leave_one_out":
        reference = _weighted_leave_one_out(used, weights)
    metrics.add_evaluator_pay(track.sums, block.node, reported, reference, stage.node_cost)
    _add_up(stage, track, consensus, block)


def _can_play_twice(rule: Rule, honest_track: Track, block: Block) -> bool:
    return block.counted and rule.reference == "consensus" and rule.function in PLAY_TWICE and not honest_track.accurate


def _play_twice(stage: Stage, rule: Rule, track: Track, reported, honest_track: Track, honest, block: Block) -> None:
    """The attacked and the honest run of a rule with a memory in one pass."""
    play = PLAY_TWICE[rule.function]
    for part, piece in block.pieces(stage.marks):
        for its_track in (track, honest_track):
            _note_trust(stage, its_track, piece.begin)
        beside = {"state_honest": honest_track.state, "honest": honest[part], "sums_honest": honest_track.sums}
        runs = play(track.state, reported[part], piece.node, track.sums, stage.node_cost, **beside)
        for its_track, consensus in zip((track, honest_track), runs):
            _add_up(stage, its_track, consensus, piece)


def _add_up(stage: Stage, track: Track, consensus, block: Block) -> None:
    """Add what the consensus of a block pays to inference nodes, and how near it came to the truth."""
    metrics.add_inference_pay(track.sums, block.output, consensus, stage.matrix.model)
    if track.accurate:
        metrics.add_accuracy(track.sums, block.output, consensus, stage.matrix.truth, stage.truth_rank)
    if track.by_output is not None:
        for row, value in zip(track.by_output, (consensus, consensus**2)):
            row += np.bincount(block.output, weights=value, minlength=len(row))


def _check_scale(what: str, function, off_scale: int) -> None:
    # Bins are indexed by score, so a rule or an attack of one's own must not leave the scale unnoticed.
    if off_scale:
        raise ValueError(f"{what} '{_name(function)}' gives scores outside [0, 10], or NaN")


def _name(function) -> str:
    function = getattr(function, "start", function)
    return getattr(function, "__name__", type(function).__name__)


@njit(cache=True, fastmath={"reassoc", "nsz"})
def _survey(honest, reported, hit):
    """Of (K, B) arrays in one pass: the summed difference of reports from honest scores, how many reports are off the
    scale or NaN, and how many of those that are no hit differ."""
    shift = 0.0
    off_scale = changed = 0
    for k in range(honest.shape[0]):
        for t in range(honest.shape[1]):
            shift += reported[k, t] - honest[k, t]
            off_scale += not (-1e-9 <= reported[k, t] <= SCORE_MAX + 1e-9)
            changed += (not hit[k, t]) and reported[k, t] != honest[k, t]
    return shift, off_scale, changed


def _play_reacting(
    stage: Stage, attack: Attack, rule: Rule, track: Track, honest, hit, rng, block: Block
) -> np.ndarray:
    """Play a block whose attackers react, one round after the other; returns summed shift and number of reports.

    Only what a round hangs on is done round by round: the attack, the consensus and the trust update.
    """
    reported, agreed = honest.copy(), []
    honest, hit = _locked(honest), _locked(hit)
    context, audit = _context(stage, attack, block), _audit(stage, track, block)
    begin = len(track.past)
    past = np.concatenate([track.past, np.empty(len(honest))])
    shown, answered = _locked(past), _locked(reported)
    struck = hit.any(axis=1)
    for t in range(len(honest)):
        now, node = slice(t, t + 1), block.node[t : t + 1]
        _note_trust(stage, track, block.begin + t)
        if struck[t]:
            trust = np.ones(node.shape) if track.state is None else track.state[0][node] / track.state[0].mean()
            known = {name: Context(*(part[now] for part in whole)) for name, whole in context.items()}
            known["history"] = History(shown[max(begin + t - MEMORY, 0) : begin + t], trust)
            reported[now] = attack.function(honest[now], hit[now], rng, **attack.options, **known)
        agreed.append(_agree(rule, track, answered[now], node, None if audit is None else audit[now]))
        past[begin + t] = agreed[-1][0][0]
        if not -1e-9 <= past[begin + t] <= SCORE_MAX + 1e-9:
            break  # the attack is at fault, or else the rule: said below
    track.past[:] = past[-MEMORY:]
    shift = _shift(attack, honest, reported, hit)
    consensus, *beside = zip(*agreed)
    weights, used = (None, None) if track.state is None else map(np.concatenate, beside)
    _settle(stage, rule, track, reported, np.concatenate(consensus), weights, used, block)
    return np.array([shift, np.count_nonzero(hit)]) if block.counted else np.zeros(2)


def _item_sums(track: Track, matrix: ScoreMatrix, count: np.ndarray) -> np.ndarray:
    """For each item in turn: rounds, and the sums over them of c, q, c^2, q^2, c q.

    From these the accuracy on any resample of items follows without playing again.
    """
    c, cc = track.by_output
    q = matrix.truth
    parts = (count, c, count * q, cc, count * q * q, c * q)
    sums = [np.bincount(matrix.item, weights=part, minlength=len(matrix.items)) for part in parts]
    return np.column_stack(sums).ravel()


def _weighted_leave_one_out(scores, weights):
    committee = scores.shape[1]
    others = [np.delete(np.arange(committee), k) for k in range(committee)]
    left = np.stack([weighted_mean(scores[:, keep], weights[:, keep]) for keep in others]).T
    return np.clip(left, 0.0, SCORE_MAX)  # a rule that corrects scores may have taken them off the scale


def _totals(stage: Stage, *lists: list[Track]) -> list[metrics.Totals]:
    """For each list of tracks what they added up, one after the other along the first axis."""
    different = {id(track): track for tracks in lists for track in tracks}
    finished = {key: metrics.finish(track.sums, stage.truth_rank) for key, track in different.items()}
    return [metrics.Totals(*map(np.stack, zip(*(finished[id(track)] for track in tracks)))) for tracks in lists]


def _pay_columns(stage: Stage, after: metrics.Totals, before: metrics.Totals, bad, pays: list[dict]) -> dict:
    """Pay of both roles, payout inflation, and what the verification of an output costs in the unit of the log.

    after, before : the runs of the cases, and those on honest reports; bad : (C, N); pays : of each case.
    """
    costs = (stage.node_cost, stage.model_cost)
    pay = {name: np.array([its_pay[name] for its_pay in pays]) for name in pays[0]}
    now = metrics.pay_per_round(after, bad, *costs, pay=pay)
    then = metrics.pay_per_round(before, bad, *costs, pay=pay)
    seats = after.node[..., 0]
    evaluator = {"alpha": pay["evaluator_alpha"], "beta": pay["evaluator_beta"]}
    inference = {"alpha": pay["inference_alpha"], "beta": pay["inference_beta"]}
    return {
        **metrics.evaluator_pay_row(after, bad, stage.node_cost, stage.committee, **evaluator),
        **metrics.inference_pay_row(after, stage.model_cost, stage.matrix.models, **inference),
        **{f"inflation_{name}": now[name] - then[name] for name in now},
        "verification_cost": (seats * stage.raw_cost).sum(axis=-1) / seats.sum(axis=-1) * stage.committee,
    }


def _trust_columns(stage: Stage, tracks: list[Track], bad) -> dict[str, np.ndarray]:
    """Share of trust that malicious nodes hold at the marked rounds; NaN for a rule without trust."""
    columns = {}
    unknown = np.full(bad.shape[-1], np.nan)
    for percent, mark in zip(metrics.TRUST_MARKS, stage.marks):
        weights = np.array([track.trust.get(mark, unknown) for track in tracks])
        columns[f"malicious_trust_{percent}"] = (weights * bad).sum(axis=-1) / weights.sum(axis=-1)
    return columns


def _shift_columns(shifts: list, n_reports: float, bad) -> dict[str, np.ndarray]:
    """Realised mean shift of a malicious report, and of a report, in points.

    shifts : per case (summed shift, number of malicious reports), or None where nothing was attacked.
    """
    total, reports = np.array([(0.0, 0.0) if shift is None else shift for shift in shifts]).T
    idle = np.array([shift is None for shift in shifts]) & bad.any(axis=-1)
    return {
        "attack_shift": np.where(idle, 0.0, total / np.where(reports, reports, np.nan)),
        "attack_shift_all": total / n_reports,
    }
