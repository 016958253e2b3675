"""Families of worlds, and replayed rounds: the same ones that the engine plays."""

import numpy as np
import pytest

from poq.attacks import ATTACKS, asks_for
from poq.metrics import pearson, rmse
from poq.scorelog import matrix_of, score_matrix
from poq.simulate import Scenario, run
from poq.worlds import FAMILIES, consensus_of, replay, world_log

LOG = world_log(FAMILIES, worlds=2, n_items=40)
RULES = ["mean", "median", "paper", "recentred", "ema", "calibrated", "audited"]


def scenario(**fields):
    return Scenario(**{"task": "clusters-01", "committee": 5, "n_rounds": 3000, "malicious_share": 0.3, **fields})


OPTIONS = {"affine": {"sd": 1.0, "probability": 0.5, "shift": 2.0}}


@pytest.mark.parametrize("attack", [name for name in ATTACKS if not asks_for(ATTACKS[name], "history")])
@pytest.mark.parametrize("calibration", ["minmax", "rank"])
def test_replayed_rounds_are_those_of_the_engine(attack, calibration):
    options = {"attack": attack, "attack_options": OPTIONS.get(attack, {}), "calibration": calibration}
    played = [scenario(rule=rule, **options) for rule in RULES]
    frame = run(LOG, played, trials=2, seed=3, progress=False)
    matrix = score_matrix(LOG, task="clusters-01", calibration=calibration)
    for row in frame.itertuples():
        rounds = replay(matrix, scenario(**options), seed=3, trial=row.trial)
        consensus = consensus_of(rounds, row.rule)
        assert rmse(consensus, rounds.truth) == pytest.approx(row.rmse, rel=1e-9), row.rule
        assert pearson(consensus, rounds.truth) == pytest.approx(row.pearson, rel=1e-9), row.rule
        if attack != "none":
            assert rounds.malicious.sum() == row.n_malicious


def test_rule_options_and_audit_shares_reach_the_rule():
    played = scenario(rule="audited", rule_options={"audit_share": 0.2}, attack="inverse", n_nodes=30)
    frame = run(LOG, played, trials=1, seed=1, progress=False)
    rounds = replay(matrix_of(LOG, task="clusters-01"), played, seed=1)
    consensus = consensus_of(rounds, "audited", audit_share=0.2)
    assert rmse(consensus, rounds.truth) == pytest.approx(frame["rmse"][0], rel=1e-9)
    assert int((rounds.lot < 0.2).sum()) == frame["audits"][0]


def test_a_world_is_the_same_whatever_stands_beside_it():
    alone = world_log(["clusters"], worlds=1, n_items=40)
    beside = LOG[LOG["task"] == "clusters-00"].reset_index(drop=True)
    assert alone.equals(beside)
    assert not np.allclose(alone["score"], LOG.loc[LOG["task"] == "clusters-01", "score"])


def test_families_are_what_they_say():
    log = world_log(FAMILIES, worlds=1, n_items=400, seed=1)
    errors = {}
    for family in FAMILIES:
        part = log[log["task"] == f"{family}-00"]
        scores = part.pivot_table(index=["item", "model"], columns="evaluator", values="score")
        truth = part.groupby(["item", "model"])["truth"].first()
        level = scores.apply(lambda s, q=truth: s - np.polyval(np.polyfit(q, s, 1), q))
        errors[family] = np.abs(np.triu(level.corr().to_numpy(), 1))
    assert errors["unequal"].max() < 0.2
    assert errors["clusters"][0, 2] > 0.15 > errors["clusters"][0, 1]
    assert errors["echo"][0, 1] > 0.9 > 0.2 > errors["echo"][11, 12]


def test_what_cannot_be_done_is_named():
    with pytest.raises(ValueError, match="unknown family 'flat'"):
        world_log(["flat"], worlds=1)
    with pytest.raises(ValueError, match="'copycat' reacts"):
        replay(matrix_of(LOG, task="clusters-01"), scenario(attack="copycat"), seed=0)
