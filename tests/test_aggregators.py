"""Consensus rules: order, bounds, shift, scale, shapes, and rounds worked by hand."""

import json
import math
import statistics
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from generators import blocks, committees
from hypothesis import given
from hypothesis import strategies as st
from reference import trimmed

from poq.aggregators import AGGREGATORS, leave_one_out, mean, median, trimmed_mean, weighted_mean
from poq.trust import TRUST_RULES

CASES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.glob("cases/*.json")}
ROUNDS = {name: case for name, case in CASES.items() if "expected" in case}
NAMED = {"mean": mean, "median": median, "trimmed_mean": trimmed_mean}
every_rule = pytest.mark.parametrize("rule", AGGREGATORS.values(), ids=list(AGGREGATORS))
paper_rule = pytest.mark.parametrize("rule", NAMED.values(), ids=list(NAMED))


def numbers(texts):
    """Fractions and decimals as they stand in a case."""
    return [float(Fraction(text)) for text in texts]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


# --- rounds worked by hand ---


def test_every_rule_has_a_case():
    """Adding a rule takes a case with its expected value."""
    assert set().union(*(case["expected"] for case in ROUNDS.values())) >= {*AGGREGATORS, "paper"}


def test_cases_tell_the_rules_apart():
    """A case on which two rules agree cannot show that one stands in for the other; from K = 5 on all can differ."""
    for name in ("k5", "k7", "k10"):
        values = [ROUNDS[name]["expected"][rule] for rule in (*NAMED, "paper")]
        assert len(set(numbers(values))) == len(values), name


@pytest.mark.parametrize("name", ROUNDS)
def test_case(name):
    case = ROUNDS[name]
    scores = np.array(case["scores"], dtype=float)
    for rule, expected in case["expected"].items():
        if rule in AGGREGATORS:
            for shape in [scores, np.tile(scores, (4, 1)), np.tile(scores, (2, 3, 1)), list(scores)]:
                found = AGGREGATORS[rule](shape)
                assert np.shape(found) == np.shape(shape)[:-1]
                close(found, float(Fraction(expected)))


@pytest.mark.parametrize("name", ROUNDS)
def test_case_with_weights(name):
    """The trust-weighted mean, as a plain function and inside Eq. 21, and what Eq. 21 makes of the weights."""
    case = ROUNDS[name]
    scores, weights = np.array(case["scores"], dtype=float), np.array(numbers(case["weights"]))
    expected = float(Fraction(case["expected"]["paper"]))
    close(weighted_mean(scores, weights), expected)
    close(weighted_mean(np.tile(scores, (2, 3, 1)), weights), np.full((2, 3), expected))
    state = TRUST_RULES["paper"].start(len(scores))
    state[0][:] = weights
    node = np.arange(len(scores), dtype=np.int32)[None]
    consensus, before, _ = TRUST_RULES["paper"].advance(state, scores[None], node, np.array([np.nan]))
    close(consensus, [expected])
    close(before, weights[None])
    if "updated" in case:
        close(state[0], numbers(case["updated"]))


@pytest.mark.parametrize("name", [name for name, case in ROUNDS.items() if "leave_one_out" in case])
def test_case_left_out(name):
    case = ROUNDS[name]
    scores, weights = np.array(case["scores"], dtype=float), np.array(numbers(case["weights"]))
    for rule, expected in case["leave_one_out"].items():
        if rule in AGGREGATORS:
            close(leave_one_out(scores, AGGREGATORS[rule]), numbers(expected))
            close(leave_one_out(np.tile(scores, (2, 3, 1)), AGGREGATORS[rule])[1, 2], numbers(expected))
        elif rule == "paper":
            kept = [np.delete(np.arange(len(scores)), k) for k in range(len(scores))]
            close([weighted_mean(scores[keep], weights[keep]) for keep in kept], numbers(expected))


@every_rule
@pytest.mark.parametrize("committee", [1, 2, 3, 5, 9, 16, 17, 30])
def test_an_unknown_score_leaves_its_round_without_consensus(rule, committee):
    """NaN is no score to be sorted somewhere; the other rounds do not notice."""
    scores = np.random.default_rng(0).uniform(0, 10, (40, committee))
    expected = rule(scores)
    gaps = scores.copy()
    gaps[::3, committee // 2] = np.nan
    found = rule(gaps)
    assert np.isnan(found[::3]).all()
    kept = np.arange(40) % 3 > 0
    close(found[kept], expected[kept])


# --- properties ---


@every_rule
@given(scores=committees(), rng=st.randoms(use_true_random=False))
def test_order_of_the_committee_does_not_matter(rule, scores, rng):
    shuffled = list(scores)
    rng.shuffle(shuffled)
    close(rule(shuffled), rule(scores))


@every_rule
@given(scores=committees())
def test_consensus_lies_between_the_scores(rule, scores):
    assert scores.min() - 1e-12 <= rule(scores) <= scores.max() + 1e-12


@paper_rule
@given(scores=committees(), shift=st.floats(-20, 20), scale=st.floats(-3, 3))
def test_consensus_shifts_and_scales_with_the_scores(rule, scores, shift, scale):
    """A negative scale too: none of the three prefers one end of the scale."""
    np.testing.assert_allclose(rule(scale * scores + shift), scale * rule(scores) + shift, rtol=1e-9, atol=1e-9)


@every_rule
@given(scores=blocks())
def test_one_round_a_trial_and_a_batch_agree(rule, scores):
    """Also when a seat, not a round, is contiguous in memory, as in the engine; and the input stays as it was."""
    before = scores.copy()
    rounds = np.array([rule(row) for row in scores])
    close(rule(scores), rounds)
    close(rule(np.asfortranarray(scores)), rounds)
    close(rule(np.stack([scores, 10 - scores])), np.stack([rounds, rule(10 - scores)]))
    np.testing.assert_array_equal(scores, before)


@given(scores=committees(most=80), cut=st.floats(0, 0.499))
def test_median_and_trimmed_mean_by_plain_python(scores, cut):
    """Sizes on both sides of the sorting network's limit."""
    assert median(scores) == statistics.median(scores.tolist())
    close(trimmed_mean(scores, cut=cut), trimmed(scores.tolist(), cut))


@pytest.mark.parametrize("committee", [*range(1, 41), 101, 300])
def test_every_committee_size_is_sorted(committee):
    """0-1 principle: a network that sorts every threshold of a permutation sorts the permutation."""
    rng = np.random.default_rng(committee)
    scores = rng.random((50, committee)) * 10
    np.testing.assert_array_equal(median(scores), np.median(scores, axis=1))
    zero_one = (scores > 5).astype(float)
    np.testing.assert_array_equal(median(zero_one), np.median(zero_one, axis=1))
    close(trimmed_mean(scores), [trimmed(row) for row in scores.tolist()])


@pytest.mark.parametrize(
    ("committee", "cut", "out"),
    [
        (1, 0.2, 0),
        (2, 0.2, 0),
        (2, 0.499, 0),
        (3, 0.2, 1),
        (3, 0.01, 1),
        (3, 0.0, 0),
        (4, 0.2, 1),
        (9, 0.2, 1),
        (10, 0.2, 2),
        (14, 0.2, 2),
        (15, 0.2, 3),
        (100, 0.29, 29),  # 0.29 * 100 is 28.999999999999996 in binary
        (50, 0.14, 7),  # 0.14 * 50 is 7.000000000000001
        (5, 0.4, 2),
        (6, 0.49, 2),
        (101, 0.2, 20),
        (2, np.nextafter(0.5, 0), 0),
        (4, np.nextafter(0.5, 0), 1),
    ],
)
def test_number_of_scores_cut(committee, cut, out):
    """Rounded down, at least one from K = 3 up, and something is always left."""
    scores = np.cumsum(np.arange(committee, dtype=float) ** 2)
    kept = scores[out : committee - out]
    close(trimmed_mean(scores[::-1], cut=cut), kept.sum() / len(kept))


@pytest.mark.parametrize("cut", [-0.1, 0.5, 0.7, math.nan, math.inf])
def test_bad_cut(cut):
    with pytest.raises(ValueError, match="cut"):
        trimmed_mean([1.0, 2.0, 3.0], cut=cut)


@given(scores=blocks(), data=st.data())
def test_weighted_mean_is_a_mean(scores, data):
    weight = st.one_of(st.just(0.0), st.floats(1e-6, 5))
    weights = np.array(data.draw(st.lists(weight, min_size=scores.shape[1], max_size=scores.shape[1])))
    found = weighted_mean(scores, weights)
    if weights.any():
        heard = scores[:, weights > 0]
        assert (heard.min(axis=1) - 1e-9 <= found).all()
        assert (found <= heard.max(axis=1) + 1e-9).all()
        np.testing.assert_allclose(found, (scores * weights).sum(axis=1) / weights.sum(), atol=1e-9)
    else:
        close(found, scores.mean(axis=1))
    close(weighted_mean(scores, np.full(scores.shape, 0.7)), scores.mean(axis=1))


def test_weighted_mean_without_any_weight_in_one_round():
    found = weighted_mean([[1.0, 5.0], [1.0, 5.0], [1.0, 5.0]], [[1.0, 3.0], [0.0, 0.0], [0.0, 2.0]])
    close(found, [4.0, 3.0, 5.0])


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="weights"):
        weighted_mean([1.0, 2.0], [1.0, -0.1])


@every_rule
@given(scores=blocks(least=2))
def test_leave_one_out_by_brute_force(rule, scores):
    expected = [[rule(np.array([*row[:k], *row[k + 1 :]])) for k in range(len(row))] for row in scores.tolist()]
    close(leave_one_out(scores, rule), expected)
    close(leave_one_out(scores[0], rule), expected[0])
    close(leave_one_out(np.stack([scores, scores]), rule)[1], expected)


@pytest.mark.parametrize("shape", [(1,), (4, 1), (2, 4, 1)])
def test_leave_one_out_of_one_is_an_error(shape):
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(np.ones(shape))


def test_a_committee_of_two_hears_the_other_one():
    np.testing.assert_array_equal(leave_one_out([[3.0, 8.0]]), [[8.0, 3.0]])


def test_weighted_mean_is_no_key():
    """It needs weights, so it is not a rule of its own."""
    assert "weighted_mean" not in AGGREGATORS
    assert {"mean", "median", "trimmed_mean"} <= set(AGGREGATORS)
