"""Intervals and verdicts: the item bootstrap against playing on resampled items, and the words of a verdict."""

import numpy as np
import pandas as pd
import pytest

from poq import claims, simulate
from poq.synthetic import synthetic_log


@pytest.fixture(scope="module")
def log():
    evaluators = {f"e{n}": {"bias": n - 2, "noise": 1 + n / 4} for n in range(6)}
    return synthetic_log(np.random.default_rng(1), n_items=30, n_models=3, evaluators=evaluators)


def test_item_sums_give_the_metrics_of_the_run(log):
    """Each item once is the run itself."""
    scenarios = simulate.grid(
        task="synthetic", rule=["mean", "paper"], attack="boost", malicious_share=0.3, n_rounds=3000, burn_in=500
    )
    frame = simulate.run(log, scenarios, trials=1, seed=2, progress=False, item_sums=True)
    for _, row in frame.iterrows():
        found = claims._accuracy(np.reshape(row["item_sums"], (-1, 6)).sum(axis=0)[None])
        for metric, value in found.items():
            assert value[0] == pytest.approx(row[metric], abs=1e-9)
    plain = simulate.run(log, scenarios, trials=1, seed=2, progress=False)
    pd.testing.assert_frame_equal(frame.drop(columns="item_sums"), plain)


def test_bootstrap_agrees_with_playing_on_resampled_items(log):
    """The s.d. over resamples is what the spread of trials on resampled items tends to in long runs."""
    rules = ["mean", "median"]
    scenarios = simulate.grid(task="synthetic", rule=rules, resample=["none", "items"], n_rounds=20_000)
    frame = simulate.run(log, scenarios, trials=40, seed=3, progress=False, item_sums=True)
    fixed = frame[frame["resample"] == "none"]
    replicates = claims.bootstrap(fixed, n_boot=400, seed=3)
    assert set(replicates["rule"]) == set(rules)
    assert len(replicates) == 800
    for metric in ("pearson", "rmse", "bias"):
        from_sums = claims.intervals(pd.concat([fixed, replicates]), ["rule"], [metric])["se_items"].to_numpy()
        from_trials = claims.intervals(frame, ["rule"], [metric])["se_items"].to_numpy()
        # A spread from 40 trials is uncertain by an eighth.
        assert from_sums == pytest.approx(from_trials, rel=0.4)


def test_differences_of_replicates_are_paired(log):
    scenarios = simulate.grid(task="synthetic", rule=["mean", "median"], n_rounds=2000)
    frame = simulate.run(log, scenarios, trials=3, seed=3, progress=False, item_sums=True)
    both = pd.concat([frame, claims.bootstrap(frame, n_boot=200, seed=0)], ignore_index=True)
    on = ["task", "resample", "trial"]
    median, mean = both[both["rule"] == "median"], both[both["rule"] == "mean"]
    difference = claims.subtract(median, mean, on=on, metrics=["rmse"])
    spread = claims.intervals(difference, ["task"], ["rmse"])["se_items"].item()
    apart = claims.intervals(both, ["rule"], ["rmse"])["se_items"]
    assert 0 < spread < 0.5 * np.sqrt((apart**2).sum())


def rule_rows(**values):
    """Trials of some rules, one value each."""
    parts = [pd.DataFrame({"rule": rule, "trial": range(len(its)), "pearson": its}) for rule, its in values.items()]
    return pd.concat(parts, ignore_index=True).assign(resample="none")


def test_rules_are_told_apart_by_paired_differences():
    """Trials differ by far more than the rules: unpaired, all four intervals overlap."""
    luck = np.array([0.1, 0.5, 0.9, 0.3, 0.7])
    wobble = np.array([0.01, -0.01, 0.01, -0.01, 0.0])
    frame = rule_rows(far=luck - 0.1, best=luck, close=luck - 0.004 + wobble, behind=luck - 0.05 + wobble)
    assert claims.not_told_apart(frame, "best", on=["trial"], metric="pearson") == ["close"]
    cells = claims.intervals(frame, ["rule"], ["pearson"]).set_index("rule")
    assert (cells["high"] > cells.loc["best", "low"]).all()
    shuffled = frame.sample(frac=1, random_state=0)
    assert claims.not_told_apart(shuffled, "best", on=["trial"], metric="pearson") == ["close"]


def test_what_has_no_interval_is_not_told_apart():
    one = rule_rows(best=[0.9], other=[0.1])
    assert claims.not_told_apart(one, "best", on=["trial"], metric="pearson") == ["other"]
    # The tie is nearer than the undefined one; a trial in which either side is undefined says nothing.
    gaps = rule_rows(
        best=[0.9, 0.8, np.nan, 0.7], tie=[0.9, 0.8, 0.1, 0.7], never=[np.nan] * 4, behind=[0.5, 0.41, 0.9, 0.3]
    )
    assert claims.not_told_apart(gaps, "best", on=["trial"], metric="pearson") == ["tie", "never"]
    assert claims.not_told_apart(rule_rows(best=[0.9, 0.8]), "best", on=["trial"], metric="pearson") == []


def test_rows_without_partner_are_left_out_and_a_best_without_rows_is_refused():
    frame = rule_rows(best=[0.9, 0.8, 0.7], other=[0.5, 0.41, 0.3, 9.0])
    assert claims.not_told_apart(frame, "best", on=["trial"], metric="pearson") == []
    with pytest.raises(ValueError, match="no row of rule 'absent'"):
        claims.not_told_apart(frame, "absent", on=["trial"], metric="pearson")


def test_subtract_refuses_rows_without_counterpart():
    frame = pd.DataFrame({"trial": [0, 1], "rmse": [1.0, 2.0]})
    with pytest.raises(ValueError, match="no counterpart"):
        claims.subtract(frame, frame[:1], on=["trial"], metrics=["rmse"])
    with pytest.raises(ValueError, match="several rows"):
        claims.subtract(frame, pd.concat([frame, frame]), on=["trial"], metrics=["rmse"])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ([0.1, 0.1, 0.2, 0.1], [0.3] * 4, "reproduced"),
        ([-0.3] * 4, [-0.1] * 4, "not reproduced"),
        ([-0.1] * 4, [0.1] * 4, "undecided at this size"),
        ([0.1, 0.1, -0.1, -0.2], [0.3, 0.3, 0.1, -0.1], "only if attack is noise"),
        ([0.1, 0.1, 0.1, -0.2], [0.3, 0.3, 0.3, -0.1], "only if the setting suits (3 of 4; 1 against)"),
        ([0.1, -0.3, -0.3, -0.2], [0.3, -0.1, -0.1, -0.1], "not reproduced (1 of 4; 3 against)"),
        ([0.1, -0.1, 0.1, -0.2], [0.3, 0.1, 0.3, -0.1], "only if task is qa"),
        ([np.nan] * 4, [np.nan] * 4, "undecided at this size"),
        ([], [], "not testable here"),
    ],
)
def test_verdict(low, high, expected):
    cells = pd.DataFrame({"low": low, "high": high}, dtype=float)
    cells["attack"], cells["task"] = ["noise", "noise", "boost", "boost"][: len(low)], ["qa", "sum"] * (len(low) // 2)
    assert claims.verdict(cells, factors=["attack", "task"]) == expected
    mirrored = cells.assign(low=-cells["high"], high=-cells["low"])
    assert claims.verdict(mirrored, factors=["attack", "task"], sign=-1) == expected


def test_views_lead_with_the_reference_free_pool(log):
    marked = log.assign(reference_based=log["evaluator"].isin(["e0", "e1"]), truth_alt=10 - log["truth"])
    found = claims.views(marked, least=3)
    assert list(found) == [
        ("truth", "reference-free"),
        ("truth", "full"),
        ("truth_alt", "reference-free"),
        ("truth_alt", "full"),
    ]
    assert found["truth_alt", "reference-free"]["evaluator"].nunique() == 4
    assert list(claims.views(marked, least=5)) == [("truth", "full"), ("truth_alt", "full")]
    assert list(claims.views(log)) == [("truth", "full")]


def test_fitting_keeps_the_committees_that_most_outputs_can_fill(log):
    assert claims.fitting(log, [1, 3, 6, 7]) == [1, 3, 6]
    assert claims.fitting(log, [9, 12]) == [6]
    few = log.assign(score=log["score"].where(log["evaluator"].isin(["e0", "e1"]) | (log["item"] < "item-00010")))
    assert claims.fitting(few, [1, 2, 3]) == [1, 2]
    assert claims.fitting(few, [1, 2, 3, 6], share=0.3) == [1, 2, 3, 6]


def test_stability():
    cells = pd.DataFrame({"low": [-0.01, 0.03, -0.03], "high": [0.01, 0.04, 0.01]})
    assert list(claims.support(claims.stability(cells, 0.02))) == [1, -1, 0]


def test_in_words():
    row = pd.Series({"value": 0.0061, "low": -0.0032, "high": 0.01})
    assert claims.in_words(row) == "+0.006 [-0.003, +0.010]"
    assert claims.in_words(row * 1e6, digits=1) == "+6,100 [-3,200, +10,000]"
    assert claims.in_words(row / 100) == "+0.000 [+0.000, +0.000]"
    assert claims.in_words(row.replace(0.01, np.nan)) == "+0.006 (no interval from one trial)"
    assert claims.in_words(row * np.nan) == "no number"
