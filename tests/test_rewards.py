"""Rewards: the linear pay of both roles, worked by hand."""

import numpy as np
import pytest
from generators import blocks
from hypothesis import given
from hypothesis import strategies as st

from poq.aggregators import leave_one_out, mean
from poq.rewards import deviation, distance, evaluator_reward, inference_reward, normalise_cost, reward


def test_pay_by_hand():
    """R_M = 0.7 (1 - d) - 0.3 C and R_F = 0.07 c - 0.3 C with the default factors."""
    scores = np.array([[2.0, 7.0, 9.0], [0.0, 10.0, 5.0]])
    consensus = np.array([6.0, 5.0])
    cost = np.array([0.0, 0.5, 1.0])
    expected = [[0.42, 0.63 - 0.15, 0.49 - 0.3], [0.35, 0.35 - 0.15, 0.7 - 0.3]]
    np.testing.assert_allclose(evaluator_reward(scores, consensus, cost), expected, atol=1e-12)
    np.testing.assert_allclose(inference_reward(consensus, [0.0, 1.0]), [0.42, 0.05], atol=1e-12)
    np.testing.assert_allclose(inference_reward(10.0, 0.0, alpha=1, beta=0), 1.0)
    np.testing.assert_allclose(evaluator_reward([[10.0]], [0.0], 1.0, alpha=2, beta=3), [[-3.0]])


def test_leave_one_out_pay_by_hand():
    """Others' means of (2, 7, 9) are 8, 5.5, 4.5."""
    scores = np.array([[2.0, 7.0, 9.0]])
    expected = 0.7 * (1 - np.array([[0.6, 0.15, 0.45]]))
    np.testing.assert_allclose(evaluator_reward(scores, leave_one_out(scores), 0.0), expected)


def test_as_many_rounds_as_seats():
    """A reference of (R,) belongs to rounds even when R = K."""
    found = deviation([[0.0, 10.0], [5.0, 5.0]], [0.0, 5.0])
    np.testing.assert_allclose(found, [[0, 1], [0, 0]])


@given(scores=blocks(least=2))
def test_deviation_of_every_shape(scores):
    consensus = mean(scores)
    found = deviation(scores, consensus)
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_array_max_ulp(found, np.abs(scores - consensus[:, None]) / 10, maxulp=1)
    np.testing.assert_array_equal(deviation(np.stack([scores, scores]), np.stack([consensus, consensus]))[1], found)
    np.testing.assert_array_equal(deviation(scores[0], consensus[0]), found[0])
    own = leave_one_out(scores)
    np.testing.assert_array_max_ulp(deviation(scores, own), np.abs(scores - own) / 10, maxulp=1)


@given(score=st.floats(0, 10), reference=st.floats(0, 10))
def test_compiled_distance_is_the_same_formula(score, reference):
    assert distance(score, reference) == distance.py_func(score, reference) == deviation(score, reference)


@given(scores=blocks(), alpha=st.floats(0, 2), beta=st.floats(0, 2))
def test_pay_is_linear_in_quality_and_cost(scores, alpha, beta):
    consensus = scores.max(axis=1)
    cost = np.linspace(0, 1, scores.shape[1])
    found = evaluator_reward(scores, consensus, cost, alpha=alpha, beta=beta)
    np.testing.assert_allclose(found, alpha * (1 - deviation(scores, consensus)) - beta * cost, atol=1e-12)
    np.testing.assert_allclose(reward(consensus / 10, 0.4, alpha=alpha, beta=beta), alpha * consensus / 10 - beta * 0.4)
    np.testing.assert_allclose(
        inference_reward(consensus, 0.4, alpha=alpha, beta=beta),
        reward(consensus / 10, 0.4, alpha=alpha, beta=beta),
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ([1.0, 3.0, 2.0], [0, 1, 0.5]),
        ([-2.0, 0.0, 2.0], [0, 0.5, 1]),
        ([4.0, 4.0], [0, 0]),
        ([7.0], [0]),
        ([np.nan, np.nan], [0, 0]),
        ([np.nan, 5.0], [0, 0]),
        ([1.0, np.nan, 3.0, 2.5], [0, 0.75, 1, 0.75]),  # the median of 1, 3, 2.5
        ([1.0, np.nan, np.nan, 5.0], [0, 0.5, 0.5, 1]),
        ([], []),
    ],
)
def test_costs_by_hand(cost, expected):
    given_cost = np.array(cost)
    np.testing.assert_allclose(normalise_cost(given_cost), expected)
    np.testing.assert_array_equal(given_cost, cost)
