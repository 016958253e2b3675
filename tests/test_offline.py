"""Offline references: what is known exactly, and that each does what it is for."""

import numpy as np
import pytest

from poq.aggregators import mean
from poq.metrics import rmse
from poq.offline import catd, crh, oracle, p910


def world(seed=0, n=10, rounds=4000, committee=5):
    rng = np.random.default_rng(seed)
    bias, gain, noise = rng.normal(0, 0.7, n), rng.uniform(0.5, 1.1, n), rng.uniform(0.2, 2.0, n)
    output = rng.integers(200, size=rounds)
    truth = rng.normal(5, 1.2, 200)[output]
    node = np.argsort(rng.random((rounds, n)), axis=1)[:, :committee]
    scores = 5 + bias[node] + gain[node] * (truth[:, None] - 5) + noise[node] * rng.standard_normal(node.shape)
    return scores, node, truth, output, (bias, gain, noise)


def test_oracle_is_the_posterior_mean_worked_out_node_by_node():
    scores, node, truth, _, _ = world(rounds=300)
    expected = np.empty(len(truth))
    fits = {}
    for n in range(10):
        rows, seats = np.nonzero(node == n)
        gain, bias = np.polyfit(truth[rows], scores[rows, seats], 1)
        fits[n] = (bias, gain, np.mean((scores[rows, seats] - bias - gain * truth[rows]) ** 2))
    for t in range(len(truth)):
        top, bottom = truth.mean() / truth.var(), 1 / truth.var()
        for s, n in zip(scores[t], node[t]):
            bias, gain, noise = fits[n]
            top += gain * (s - bias) / noise
            bottom += gain**2 / noise
        expected[t] = min(max(top / bottom, 0), 10)
    np.testing.assert_allclose(oracle(scores, node, truth), expected, rtol=1e-9)


def test_oracle_beats_every_rule_that_has_to_learn():
    scores, node, truth, _, _ = world()
    best = rmse(oracle(scores, node, truth), truth)
    for found in (mean(scores), crh(scores, node), catd(scores, node)):
        assert best < rmse(found, truth)


@pytest.mark.parametrize("rule", [crh, catd])
def test_truth_discovery_leaves_a_noisy_node_behind(rule):
    rng = np.random.default_rng(1)
    truth = rng.uniform(2, 8, 3000)
    node = np.tile(np.arange(5), (3000, 1))
    noise = np.array([0.3, 0.3, 0.3, 0.3, 3.0])
    scores = truth[:, None] + noise * rng.standard_normal(node.shape)
    assert rmse(rule(scores, node), truth) < 0.5 * rmse(mean(scores), truth)


def test_p910_takes_bias_away_exactly_where_there_is_no_noise():
    rng = np.random.default_rng(2)
    quality = rng.uniform(3, 7, 40)
    bias = np.array([1.0, -0.5, 0.25, -0.75])
    output = np.repeat(np.arange(40), 3)
    node = np.argsort(rng.random((120, 4)), axis=1)[:, :3]
    scores = quality[output][:, None] + bias[node]
    np.testing.assert_allclose(p910(scores, node, output, steps=400), quality[output], atol=1e-3)


def test_arrays_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="scores and node"):
        crh(np.zeros((3, 2)), np.zeros((3, 3), dtype=int))
    with pytest.raises(ValueError, match="truth or output"):
        oracle(np.zeros((3, 2)), np.zeros((3, 2), dtype=int), np.zeros(2))
    with pytest.raises(ValueError, match="confidence"):
        catd(np.zeros((3, 2)), np.zeros((3, 2), dtype=int), confidence=1)


def test_nodes_that_never_sat_change_nothing():
    """Numbers may have gaps: those who never sat have no error and no weight."""
    rng = np.random.default_rng(2)
    scores, node = rng.uniform(0, 10, (30, 3)), np.array([rng.permutation(6)[:3] for _ in range(30)])
    for rule in (crh, catd):
        found = rule(scores, node)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(rule(scores, node * 3), found, atol=1e-9)
