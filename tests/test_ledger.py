"""The ledger: the committed verdicts are what the shipped log supports, and other worlds get other verdicts."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from poq import claims, ledger
from poq.chapters import list_chapters, read_parameters
from poq.scorelog import read_score_log
from poq.synthetic import synthetic_log
from poq.worlds import world_log

BOOK = Path(__file__).resolve().parent.parent / "book"
SMALL = {"trials": 6, "n_rounds": 800, "n_boot": 100}


@pytest.fixture(scope="module")
def shipped():
    return ledger.evidence(read_score_log(BOOK / "data" / "score_log.csv.gz"))


def test_committed_verdicts_are_supported_by_the_log(shipped):
    """`python -m poq.ledger LOG` prints the verdicts of a log in the form of book/claims.yml."""
    committed = yaml.safe_load((BOOK / "claims.yml").read_text(encoding="utf-8"))
    found = ledger.main_verdicts(shipped)
    differ = {
        f"{claim} ({view}): the book says {committed.get(claim, {}).get(view)!r}, the log {kind!r}"
        for claim, kinds in found.items()
        for view, kind in kinds.items()
        if committed.get(claim, {}).get(view) != kind
    }
    assert not differ, "\n".join(sorted(differ))
    assert {claim: set(kinds) for claim, kinds in committed.items()} == {c: set(k) for c, k in found.items()}


def test_every_claim_has_rows_with_interval_and_n(shipped):
    assert list(dict.fromkeys(shipped["claim"])) == list(ledger.CLAIMS)
    known = shipped[shipped["verdict"] != claims.UNTESTABLE]
    assert (known["low"] <= known["value"]).all()
    assert (known["value"] <= known["high"]).all()
    assert (known["n"] > 0).all()
    assert shipped.groupby(["claim", "truth", "pool"])["main"].sum().eq(1).all()


def test_the_page_of_claims_runs_the_tested_sizes_and_names_every_claim():
    parameters = read_parameters(list_chapters(BOOK)["10_claims"])
    defaults = ledger.evidence.__kwdefaults__
    assert {name: parameters[name].default for name in defaults} == defaults
    page = list_chapters(BOOK)["10_claims"].read_text(encoding="utf-8")
    for claim, about in ledger.CLAIMS.items():
        assert f"### {claim}: " in page
        assert about.chapter in list_chapters(BOOK)
        section = re.split(r"### [A-Z]\d+: ", page.split(f"### {claim}: ")[1])[0]
        assert f"]({about.chapter}.ipynb)" in section
        assert re.search(rf"claims_{claim.lower()}_verdict", section)


def test_claims_of_ours_are_marked_and_stand_below_those_of_the_papers():
    assert list(ledger.CLAIMS) == [*ledger.PAPERS, *ledger.OURS]
    assert {about.source for about in ledger.OURS.values()} == {"ours"}
    assert "ours" not in {about.source for about in ledger.PAPERS.values()}


def verdicts(log, **options):
    found = ledger.evidence(log, **{**SMALL, **options})
    return found.set_index(["claim", "reading"])["verdict"]


def test_a_truth_at_random_is_tracked_by_nobody():
    evaluators = {f"e{n}": {"noise": 1.0} for n in range(8)}
    rng = np.random.default_rng(0)
    log = synthetic_log(rng, n_items=80, n_models=4, evaluators=evaluators)
    output = log.groupby(["item", "model"]).ngroup().to_numpy()
    blind = log.assign(truth=rng.permutation(output.max() + 1)[output].astype(float))
    assert verdicts(blind)["C1", "gap on unseen items"] == claims.REFUTED
    assert verdicts(blind)["C12", "best of each kind"] == claims.UNTESTABLE


def test_robust_rules_win_where_theory_lets_them():
    """Seven seats, one node in ten malicious, a shift of many honest spreads."""
    evaluators = {f"e{n:02d}": {"noise": 0.15} for n in range(20)}
    log = synthetic_log(np.random.default_rng(1), n_items=150, n_models=4, evaluators=evaluators, truth_sd=1.0)
    found = verdicts(log, malicious_share=0.1, committee=7, trials=10)
    assert found["C3", "correlation, median"] == claims.REPRODUCED
    assert found["C4", "correlation, median"] == claims.REPRODUCED
    assert found["C10", "distorts (loss of correlation)"] == claims.REPRODUCED
    half = verdicts(log, malicious_share=0.45, committee=3, trials=10)
    assert half["C4", "correlation, median"] == "only if attack is noise"


def test_inverted_evaluators_and_cross_encoders_are_seen():
    rng = np.random.default_rng(2)
    parts = []
    for task, sign in (("one", 1.0), ("two", -1.0)):
        traits = {"steady": {}, "turning": {"gain": sign}, "biencoder": {"noise": 0.3}, "crossencoder": {"noise": 5.0}}
        parts.append(synthetic_log(rng, n_items=60, n_models=4, evaluators=traits, task=task))
    found = verdicts(pd.concat(parts, ignore_index=True))
    assert found["C2", "strongest inversion"] == claims.REPRODUCED
    assert found["C12", "best of each kind"] == claims.REPRODUCED
    one = verdicts(parts[0])
    assert one["C2", "strongest inversion"] == claims.UNTESTABLE


def test_a_log_with_one_evaluator_is_not_testable_rather_than_wrong():
    log = synthetic_log(np.random.default_rng(3), n_items=20, n_models=2, evaluators=1)
    found = verdicts(log)
    assert found["C6", "too few evaluators"] == claims.UNTESTABLE


def test_trust_is_judged_by_whether_those_who_agree_are_right():
    """In a world of echoes consensus-only trust fails and audits do not; where errors are independent both hold."""
    size = {"n_rounds": 3000, "trials": 8}
    echo = verdicts(world_log(["echo"], worlds=1, n_nodes=12), **size)
    assert echo["M5", "correlation, no attack"] == claims.REFUTED
    assert echo["U1", "correlation, no attack"] == claims.REPRODUCED
    fair = verdicts(world_log(["unequal"], worlds=1, n_nodes=12), **size)
    assert fair["M5", "correlation, no attack"] == claims.REPRODUCED
    assert fair["U3", "correlation, wrong majority"] == claims.REPRODUCED
