"""Families of synthetic worlds, and the rounds of a scenario as arrays, for what looks at single rounds.

``simulate.run`` gives one row per run. An offline reference needs all rounds at once, and a curve over time needs the
consensus of each: ``replay`` draws the same rounds again, and ``consensus_of`` plays a rule on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from poq.aggregators import AGGREGATORS
from poq.attacks import ATTACKS, Context, asks_for
from poq.engine import n_malicious
from poq.matrix import ScoreMatrix
from poq.rounds import make_pool, malicious_nodes, mark_nodes, sample_rounds
from poq.simulate import Scenario
from poq.streams import stream
from poq.synthetic import synthetic_log
from poq.trust import TRUST_RULES, run_trust

# Each family adds one difficulty to the one before.
FAMILIES = ("unequal", "clusters", "echo")


def world_log(
    families: Sequence[str], *, worlds: int, seed: int = 0, n_nodes: int = 20, n_items: int = 200, n_models: int = 5
) -> pd.DataFrame:
    """A score log with one task per world, named "<family>-<number>".

    Parameters
    ----------
    families : sequence of str
        "unequal": evaluators with bias N(0, 1), gain U(0.4, 1.2) and noise U(0.4, 2.5), errors independent.
        "clusters": the same, and half of the evaluators belong to one of two clusters that share an error of 1 point.
        "echo": half of the evaluators share an error of 2.5 points and add 0.2 of their own, the others err alone by
        1.5; who agrees is not who is right.
    worlds : int
        Worlds per family; world i is the same whatever their number.
    """
    unknown = [family for family in families if family not in FAMILIES]
    if unknown:
        raise ValueError(f"unknown family '{unknown[0]}': use one of {', '.join(FAMILIES)}")
    logs = []
    for family in families:
        for number in range(worlds):
            rng = stream(seed, number, f"world {family}")
            evaluators = {f"e{n:02d}": _traits(rng, family, n, n_nodes) for n in range(n_nodes)}
            task = f"{family}-{number:02d}"
            logs.append(synthetic_log(rng, n_items=n_items, n_models=n_models, evaluators=evaluators, task=task))
    return pd.concat(logs, ignore_index=True)


def _traits(rng: np.random.Generator, family: str, n: int, n_nodes: int) -> dict:
    if family == "echo":
        return {"noise": 0.2, "cluster": 0, "cluster_noise": 2.5} if n < n_nodes / 2 else {"noise": 1.5}
    traits = {"bias": rng.normal(0, 1), "gain": rng.uniform(0.4, 1.2), "noise": rng.uniform(0.4, 2.5)}
    if family == "clusters" and n < n_nodes / 2:
        traits |= {"cluster": n % 2, "cluster_noise": 1.0}
    return traits


class Rounds(NamedTuple):
    """The rounds of one trial.

    output (R,); node (R, K); scores (R, K) as reported; truth (R,); lot (R,) in [0, 1), a round is audited at share a
    when its lot is below a; malicious (N,).
    """

    output: np.ndarray
    node: np.ndarray
    scores: np.ndarray
    truth: np.ndarray
    lot: np.ndarray
    malicious: np.ndarray


def replay(matrix: ScoreMatrix, scenario: Scenario, *, seed: int, trial: int = 0) -> Rounds:
    """The rounds that :func:`poq.simulate.run` plays for a scenario, whatever its rule.

    `matrix` is that of the scenario's task and calibration.

    Raises
    ------
    ValueError
        For an attack that reacts to the rule: its reports exist only in the engine's loop.
    """
    attack = ATTACKS[scenario.attack]
    if asks_for(attack, "history"):
        raise ValueError(f"attack '{scenario.attack}' reacts to the rule and cannot be replayed without it")
    shape = {name: getattr(scenario, name) for name in ("n_nodes", "min_available", "jitter", "resample")}
    pool = make_pool(matrix, committee=scenario.committee, seed=seed, trial=trial, **shape)
    size = {"n_rounds": scenario.n_rounds, "committee": scenario.committee}
    output, node, scores = sample_rounds(pool, seed=seed, trial=trial, **size)
    malicious = np.zeros(len(pool.evaluator), dtype=bool)
    if scenario.attack != "none":
        order = malicious_nodes(pool, matrix, who=scenario.malicious_nodes, seed=seed, trial=trial)
        malicious[order[: n_malicious(scenario.malicious_share, len(order))]] = True
    if malicious.any():
        known = {}
        if asks_for(attack, "context"):
            known["context"] = Context(np.arange(len(output)), output, matrix.model[output], node)
        hit = mark_nodes(malicious, node)
        scores = attack(scores, hit, stream(seed, trial, "attack"), **scenario.attack_options, **known)
    lot = stream(seed, trial, "audit").random(len(output))
    return Rounds(output, node, scores, matrix.truth[output], lot, malicious)


def consensus_of(rounds: Rounds, rule: str, **options) -> np.ndarray:
    """Consensus (R,) of a rule, a key of AGGREGATORS or TRUST_RULES, on the rounds of :func:`replay`."""
    if rule in AGGREGATORS:
        return AGGREGATORS[rule](rounds.scores, **options)
    n_nodes = len(rounds.malicious)
    # Rules that ask for audits say in their state how many.
    share = getattr(TRUST_RULES[rule].start(n_nodes, **options), "audit_share", 0.0)
    audit = np.where(rounds.lot < share, rounds.truth, np.nan)
    return run_trust(rounds.scores, rounds.node, n_nodes, rule=rule, audit=audit, **options).consensus
