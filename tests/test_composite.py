"""Composite and cascade: worked out by hand, and what must hold on any log."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poq import composite as quality
from poq.claims import reference_free
from poq.scorelog import check_log, score_matrix
from poq.simulate import Scenario, run
from tests.generators import texts

OUTPUT = ["task", "item", "model"]


def make_log(scores, *, truth=None, costs=None, task="qa", **columns):
    """A log of one item per output; scores: {evaluator: list, None = missing}."""
    n = len(next(iter(scores.values())))
    truth = np.linspace(0, 10, n) if truth is None else truth
    rows = [
        {"task": task, "item": f"i{o}", "model": "m", "evaluator": name, "score": values[o], "truth": truth[o]}
        | ({"cost": costs[name]} if costs else {})
        for name, values in scores.items()
        for o in range(n)
        if values[o] is not None
    ]
    return pd.DataFrame(rows).assign(**columns)


def told_by(log, name):
    """Scores of one evaluator by output."""
    return log[log["evaluator"] == name].set_index(OUTPUT)["score"].sort_index()


SCORES = {"short": [1, 2, 3], "plain": [30, 10, 20], "near": [0.0, 0.5, 1.0], "crowd": [7, 9, 8]}
COSTS = {"short": 1.0, "plain": 2.0, "near": 40.0, "crowd": 5.0}
DIMENSIONS = {"structure": ["short", "plain"], "semantic": ["near"], "agreement": ["crowd"]}


def test_composite_by_hand():
    """Ranks 0, 5, 10: structure means (5, 2.5, 7.5) -> ranks (5, 0, 10); weights .2, .25, .15 become 1/3, 5/12, 1/4."""
    log = quality.composite(make_log(SCORES, costs=COSTS), dimensions=DIMENSIONS)
    expected = [5 / 3 + 0 + 0, 0 + 25 / 12 + 10 / 4, 10 / 3 + 50 / 12 + 5 / 4]
    np.testing.assert_allclose(told_by(log, "composite"), expected)
    assert (log.loc[log["evaluator"] == "composite", "cost"] == 48.0).all()


def test_composite_by_hand_with_minmax():
    scores = {"a": [0, 1, 4], "b": [8, 8, 0]}
    log = quality.composite(
        make_log(scores), dimensions={"x": ["a"], "y": ["b"]}, weights={"x": 3, "y": 1}, calibration="minmax"
    )
    np.testing.assert_allclose(told_by(log, "composite"), [2.5, 0.75 * 2.5 + 2.5, 7.5])


def test_cascade_by_hand():
    """Cheap ranks 0, 2.5, 5, 7.5, 10; the band 4 to 8 asks about the third and fourth output."""
    log = make_log({"cheap": [1, 2, 3, 4, 5], "costly": [50, 40, 10, 20, 30]}, costs={"cheap": 0.1, "costly": 2.0})
    found = quality.cascade(log, "cheap", "costly", band=(4, 8))
    np.testing.assert_allclose(told_by(found, "cascade"), [0, 2.5, 0, 2.5, 10])
    cost = found[found["evaluator"] == "cascade"].sort_values("item")["cost"]
    np.testing.assert_allclose(cost, [0.1, 0.1, 2.1, 2.1, 0.1])
    assert score_matrix(found, task="qa").evaluator_cost[0] == pytest.approx(0.9)


@pytest.mark.parametrize(("band", "same_as"), [((0, 10), "costly"), ((5, 5), "cheap")])
def test_cascade_ends(band, same_as):
    log = make_log({"cheap": [1, 2, 3, 4], "costly": [9, 2, 7, 1]}, costs={"cheap": 1.0, "costly": 10.0})
    found = quality.cascade(log, "cheap", "costly", band=band)
    matrix = score_matrix(log, task="qa", calibration="rank")
    np.testing.assert_allclose(told_by(found, "cascade"), matrix.values[:, matrix.evaluators.index(same_as)])
    rows = found[found["evaluator"] == "cascade"]
    assert (rows["cost"] == (11.0 if same_as == "costly" else 1.0)).all()


def test_cascade_scores_what_both_scored():
    log = make_log({"cheap": [1, None, 3, 4], "costly": [9, 2, None, 1]})
    found = quality.cascade(log, "cheap", "costly", band=(0, 10))
    assert [item for _, item, _ in told_by(found, "cascade").index] == ["i0", "i3"]


def test_missing_parts_and_dimensions():
    """A missing part leaves its dimension's mean and its bill; a missing dimension leaves the output unscored."""
    scores = {**SCORES, "plain": [None, 10, 20], "crowd": [7, None, 8]}
    log = make_log(scores, costs=COSTS)
    found = quality.composite(log, dimensions=DIMENSIONS)
    own = found[found["evaluator"] == "composite"].set_index("item")
    assert list(own.index) == ["i0", "i2"]
    assert own.loc["i0", "cost"] == 46.0
    assert own.loc["i2", "cost"] == 48.0


def test_a_task_without_a_dimension_is_renormalised_and_said():
    second = make_log({"near": [1, 2], "crowd": [2, 1]}, task="sum")
    log = pd.concat([make_log(SCORES), second])
    with pytest.warns(UserWarning, match="'sum' has no evaluator for structure"):
        found = quality.composite(log, dimensions=DIMENSIONS)
    np.testing.assert_allclose(told_by(found, "composite").loc["sum"], [10 * 0.15 / 0.4, 10 * 0.25 / 0.4])


def test_unknown_costs_stay_unknown():
    log = make_log(SCORES, costs={**COSTS, "plain": np.nan})
    assert quality.composite(log, dimensions=DIMENSIONS).query("evaluator == 'composite'")["cost"].isna().all()
    assert "cost" not in quality.composite(make_log(SCORES), dimensions=DIMENSIONS)


def test_a_constant_dimension_changes_nothing_but_the_level():
    """Two opposite parts cancel; what rounding leaves of them is not ranked."""
    rng = np.random.default_rng(3)
    x = rng.random(50)
    log = make_log({"up": list(x), "down": list(-x), "near": list(rng.random(50))})
    found = quality.composite(log, dimensions={"structure": ["up", "down"], "semantic": ["near"]})
    ranks = score_matrix(log, task="qa", calibration="rank").values[:, 1]
    own, by_item = told_by(found, "composite"), score_matrix(log, task="qa").items
    np.testing.assert_allclose(own.to_numpy(), (0.2 * 5 + 0.25 * ranks) / 0.45)
    assert [item for _, item, _ in own.index] == list(by_item)


@st.composite
def logs(draw):
    """A log of four evaluators with gaps and ties, and weights."""
    n = draw(st.integers(2, 8))
    cell = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0]), st.floats(-50, 50, allow_subnormal=False))
    scores = {name: draw(st.lists(cell, min_size=n, max_size=n)) for name in "abcd"}
    for name in "abcd":
        scores[name][0] = 1.0  # every evaluator of the dimensions is in the log, and one output has them all
    weights = {name: draw(st.floats(0, 5)) for name in "xyz"}
    weights[draw(st.sampled_from("xyz"))] += 1.0
    return make_log(scores, costs=dict.fromkeys("abcd", 1.0)), weights


THREE = {"x": ["a", "b"], "y": ["c"], "z": ["d"]}


@settings(max_examples=15)
@given(logs(), st.randoms(use_true_random=False))
def test_composite_holds_on_any_log(made, random):
    log, weights = made
    found = told_by(quality.composite(log, dimensions=THREE, weights=weights), "composite")
    assert found.between(-1e-9, 10 + 1e-9).all()
    # The scale of the weights, the order of rows, dimensions and parts, and the truth do not matter.
    more = {name: 7 * value for name, value in weights.items()}
    turned = {"z": ["d"], "y": ["c"], "x": ["b", "a"]}
    shuffled = log.iloc[random.sample(range(len(log)), len(log))]
    lies = log.assign(truth=-3 * log["truth"] ** 2)
    for other in (
        quality.composite(log, dimensions=THREE, weights=more),
        quality.composite(log, dimensions=turned, weights=weights),
        quality.composite(shuffled, dimensions=THREE, weights=weights),
        quality.composite(lies, dimensions=THREE, weights=weights),
    ):
        pd.testing.assert_series_equal(told_by(other, "composite"), found, rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(logs(), st.integers(0, 7), st.sampled_from("abcd"), st.floats(0, 20), st.sampled_from(["rank", "minmax"]))
def test_a_better_part_never_lowers_the_composite(made, place, part, by, calibration):
    log, weights = made
    better = log.copy()
    row = (better["evaluator"] == part) & (better["item"] == f"i{place}")
    better.loc[row, "score"] += by
    before, after = (
        told_by(quality.composite(part_, dimensions=THREE, weights=weights, calibration=calibration), "composite")
        for part_ in (log, better)
    )
    key = ("qa", f"i{place}", "m")
    if key in before.index:
        assert after[key] >= before[key] - 1e-6


@settings(max_examples=15)
@given(logs(), st.floats(0, 5))
def test_cascade_holds_on_any_log(made, half):
    log, _ = made
    band = (5 - half, 5 + half)
    found = quality.cascade(log, "a", "b", band=band)
    own = told_by(found, "cascade")
    lies = quality.cascade(log.assign(truth=log["truth"] * -1), "a", "b", band=band)
    pd.testing.assert_series_equal(told_by(lies, "cascade"), own)
    wider = quality.cascade(log, "a", "b", band=(0, 10))
    cost, most = (part[part["evaluator"] == "cascade"]["cost"].mean() for part in (found, wider))
    assert 1.0 <= cost <= most == 2.0


@given(st.lists(texts, min_size=1, max_size=6, unique=True))
def test_choice_of_dimensions_takes_an_evaluator_once_at_most(names):
    chosen = [part for parts in quality.choose_dimensions(names).values() for part in parts]
    assert len(chosen) == len(set(chosen))
    assert set(chosen) <= set(names)


def test_choice_of_dimensions():
    """The named evaluators where they are there; elsewhere by pattern in the name."""
    shipped = ["agreement", "brevity", "judge", "biencoder_ref", "prompt_cosine", "rouge_l"]
    assert quality.choose_dimensions(shipped, named=quality.REFERENCE_FREE) == {
        "structure": ("brevity",),
        "semantic": ("judge",),
        "alignment": ("prompt_cosine",),
        "agreement": ("agreement",),
    }
    other = ["c_len", "bert_f_score", "rouge_1_recall", "question_overlap", "mystery"]
    assert quality.choose_dimensions(other) == {
        "structure": ("c_len",),
        "semantic": ("bert_f_score", "rouge_1_recall"),
        "alignment": ("question_overlap",),
    }


def test_published_weights_are_renormalised():
    found = quality.shares(quality.WEIGHTS, quality.WEIGHTS)
    assert sum(found.values()) == pytest.approx(1)
    assert found["semantic"] == pytest.approx(0.25 / 0.90)


def test_new_evaluators_join_the_simulator():
    log = make_log(SCORES, costs=COSTS, reference_based=0)
    log.loc[log["evaluator"] == "near", "reference_based"] = 1
    found = quality.composite(log, dimensions=DIMENSIONS)
    found = quality.cascade(found, "short", "crowd", band=(4, 6))
    check_log(found)
    kept = set(reference_free(found)["evaluator"])
    assert kept == {"short", "plain", "crowd", "cascade"}  # the composite reads what `near` reads
    rows = run(found, Scenario("qa", committee=3, n_rounds=50), trials=2, seed=0, progress=False)
    assert rows["pearson"].notna().all()
    only = run(
        found[found["evaluator"] == "composite"],
        Scenario("qa", committee=3, n_nodes=6, n_rounds=50),
        trials=1,
        seed=0,
        progress=False,
    )
    assert only["verification_cost"].iloc[0] == pytest.approx(3 * 48.0)


def priors_log():
    rows = [
        {"task": "qa", "item": item, "model": model, "evaluator": "e", "score": 1.0 * n, "truth": truth}
        for n, (item, model, truth) in enumerate(
            [("a", "m", 2), ("a", "n", 8), ("b", "m", 4), ("b", "n", 6), ("c", "m", 9), ("c", "n", 0)]
        )
    ]
    return pd.DataFrame(rows).assign(model_cost=lambda f: f["model"].map({"m": 3.0, "n": 1.0}), cost=2.0)


def test_model_prior_by_hand():
    """Items a and b teach: c gets their mean, and each of the two what the other says."""
    log = priors_log()
    found = quality.model_prior(log, train=log["item"] != "c")
    expected = {("a", "m"): 4, ("a", "n"): 6, ("b", "m"): 2, ("b", "n"): 8, ("c", "m"): 3, ("c", "n"): 7}
    assert {key[1:]: value for key, value in told_by(found, "model_prior").items()} == expected
    assert (found.loc[found["evaluator"] == "model_prior", "cost"] == 0).all()
    # The truth of other items is not read.
    unread = log.assign(truth=log["truth"].where(log["item"] != "c", 5.0))
    again = quality.model_prior(unread, train=unread["item"] != "c")
    pd.testing.assert_series_equal(told_by(again, "model_prior"), told_by(found, "model_prior"))


def test_cost_prior_prefers_the_cheap_model():
    own = told_by(quality.cost_prior(priors_log()), "cost_prior")
    assert set(own.xs("m", level="model")) == {-3.0}
    assert set(own.xs("n", level="model")) == {-1.0}


def test_evaluator_agreement_is_highest_where_evaluators_agree():
    log = make_log({"a": [1, 2, 3], "b": [1, 3, 2], "c": [None, 1, None]})
    own = told_by(quality.evaluator_agreement(log, ["a", "b", "c"]), "evaluator_agreement")
    np.testing.assert_allclose(own, [0.0, -np.std([5, 10, 5]), -2.5], atol=1e-8)


def test_fitted_weights_find_the_recipe():
    rng = np.random.default_rng(0)
    values = rng.random((20_000, 3)) * 10
    truth = 3 + 0.6 * values[:, 0] + 0.2 * values[:, 1] - 0.4 * values[:, 2]
    values[0] = np.nan
    found = quality.fit_weights(values, truth)
    assert found.sum() == pytest.approx(1)
    assert found[2] == 0
    assert found[0] / found[1] == pytest.approx(3, rel=0.1)
    np.testing.assert_array_equal(quality.fit_weights(values, -truth * 0), [1 / 3] * 3)
    assert list(quality.prune(values, truth, [3, 1, 1])) == [True, True, False]


def test_pruning_keeps_at_least_one():
    values = np.random.default_rng(1).random((50, 3))
    assert quality.prune(values, -values.sum(axis=1), np.ones(3)).sum() >= 1
    assert list(quality.prune(values, np.ones(50), [1.0, 0.0, 1.0])) == [True, False, True]


BAD = {
    "unknown evaluator": (lambda log: quality.composite(log, dimensions={"x": ["nobody"], "y": ["near"]}), "'nobody'"),
    "evaluator twice": (lambda log: quality.composite(log, dimensions={"x": ["near"], "y": ["near"]}), "stands twice"),
    "text for a list": (lambda log: quality.composite(log, dimensions={"semantic": "near"}), "dimension 'semantic'"),
    "empty dimension": (lambda log: quality.composite(log, dimensions={"semantic": []}), "dimension 'semantic'"),
    "no dimensions": (lambda log: quality.composite(log, dimensions={}), "empty"),
    "one dimension": (lambda log: quality.composite(log, dimensions={"semantic": ["near"]}), "at least two"),
    "no weight": (lambda log: quality.composite(log, dimensions=DIMENSIONS, weights={"semantic": 1}), "'structure'"),
    "negative weight": (
        lambda log: quality.composite(log, dimensions=DIMENSIONS, weights={**quality.WEIGHTS, "semantic": -1}),
        "'semantic'",
    ),
    "weights of zero": (
        lambda log: quality.composite(log, dimensions=DIMENSIONS, weights=dict.fromkeys(DIMENSIONS, 0)),
        "add to nothing",
    ),
    "name taken": (lambda log: quality.composite(log, dimensions=DIMENSIONS, name="near"), "'near' already"),
    "calibration": (lambda log: quality.composite(log, dimensions=DIMENSIONS, calibration="best"), "'best'"),
    "unknown cheap": (lambda log: quality.cascade(log, "nobody", "near", band=(4, 6)), "cheap.*'nobody'"),
    "unknown costly": (lambda log: quality.cascade(log, "near", "nobody", band=(4, 6)), "costly.*'nobody'"),
    "cheap is costly": (lambda log: quality.cascade(log, "near", "near", band=(4, 6)), "'near'"),
    "band turned round": (lambda log: quality.cascade(log, "short", "near", band=(6, 4)), "band"),
    "band outside": (lambda log: quality.cascade(log, "short", "near", band=(-1, 4)), "band"),
    "cascade name taken": (lambda log: quality.cascade(log, "short", "near", band=(4, 6), name="crowd"), "'crowd'"),
    "no costs": (quality.cost_prior, "model_cost"),
    "one evaluator": (lambda log: quality.evaluator_agreement(log, ["near"]), "near"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, words = BAD[name]
    with pytest.raises(ValueError, match=words) as caught:
        call(make_log(SCORES))
    assert "\n" not in str(caught.value)


def test_cascade_of_evaluators_that_never_meet():
    log = make_log({"a": [1, None], "b": [None, 2]})
    with pytest.raises(ValueError, match="both 'a' and 'b'"):
        quality.cascade(log, "a", "b", band=(4, 6))
