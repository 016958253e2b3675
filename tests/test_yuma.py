"""Yuma in plain numpy: an epoch worked by hand, its contracts, and rounds."""

import numpy as np
import pytest
import reference

from poq.aggregators import quantile_clip
from poq.yuma import yuma_epoch, yuma_rounds


def test_an_epoch_worked_by_hand():
    """Three validators with stake 1/2, 1/4, 1/4; the third overrates miner 0.

    Half of the stake sets at least 1/2 on miner 0 and on miner 1, so the third validator's 1 is cut to 1/2.
    """
    done = yuma_epoch([[1, 1], [2, 2], [1, 0]], [2, 1, 1])
    np.testing.assert_allclose(done.consensus, [0.5, 0.5])
    np.testing.assert_allclose(done.clipped, [[0.5, 0.5], [0.5, 0.5], [0.5, 0.0]])
    # Ranks 1/2 and 3/8; bonds by stake times clipped weight.
    np.testing.assert_allclose(done.incentive, [4 / 7, 3 / 7])
    np.testing.assert_allclose(done.bonds, [[1 / 2, 2 / 3], [1 / 4, 1 / 3], [1 / 4, 0]])
    np.testing.assert_allclose(done.dividends, [4 / 7, 2 / 7, 1 / 7])


def test_bonds_are_a_moving_average():
    weights, stake = [[1, 1], [1, 3]], [1, 1]
    first = yuma_epoch(weights, stake)
    before = np.array([[1.0, 0.0], [0.0, 1.0]])
    again = yuma_epoch(weights, stake, before, bond_rate=0.1)
    np.testing.assert_allclose(again.bonds, 0.1 * first.bonds + 0.9 * before)


def test_a_minority_cannot_lift_a_miner_and_a_level_does_not_count():
    rng = np.random.default_rng(0)
    weights = rng.uniform(1, 2, (7, 4))
    lifted = weights.copy()
    lifted[:3, 0] = 100
    honest, hit = yuma_epoch(weights, np.ones(7)), yuma_epoch(lifted, np.ones(7))
    shares = weights / weights.sum(axis=1, keepdims=True)
    assert hit.consensus[0] <= shares[3:, 0].max()
    scaled = yuma_epoch(weights * rng.uniform(1, 5, (7, 1)), np.ones(7))
    for name in honest._fields:
        np.testing.assert_allclose(getattr(scaled, name), getattr(honest, name))


def test_a_weight_that_was_not_set_counts_as_nothing():
    """With fewer than half of the validators on a miner, its consensus is zero: the epoch needs dense opinions."""
    weights = np.array([[5.0, 5.0], [5.0, 5.0], [0.0, 5.0], [0.0, 5.0], [0.0, 5.0]])
    assert yuma_epoch(weights, np.ones(5)).consensus[0] == 0


def test_rounds_begin_as_the_clip_and_stake_moves_later_ones_only():
    rng = np.random.default_rng(1)
    node = np.argsort(rng.random((300, 8)), axis=1)[:, :5]
    scores, output = rng.uniform(0, 10, (300, 5)), rng.integers(40, size=300)
    plain = quantile_clip(scores)
    found = yuma_rounds(scores, node, output, 8, 40, epoch=100, emission=0.5)
    np.testing.assert_allclose(found[:100], plain[:100])
    assert np.abs(found[100:] - plain[100:]).max() > 1e-3
    np.testing.assert_allclose(yuma_rounds(scores, node, output, 8, 40, emission=0.0), plain)
    assert ((found >= scores.min(axis=1)) & (found <= scores.max(axis=1))).all()


@pytest.mark.parametrize("seed", range(3))
def test_rounds_are_their_second_reading(seed):
    """Outputs come and go, so that new bonds stand beside old ones."""
    rng = np.random.default_rng(seed)
    node = np.argsort(rng.random((90, 7)), axis=1)[:, :4]
    scores, output = rng.uniform(0, 10, (90, 4)), rng.integers(12, size=90)
    options = {"epoch": 8, "bond_rate": 0.3, "emission": 0.4}
    found = yuma_rounds(scores, node, output, 7, 12, **options)
    expected = reference.yuma(scores.tolist(), node.tolist(), output.tolist(), 7, **options)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_who_reports_low_loses_stake():
    """Bonds are paid on clipped scores, so whoever stays below the consensus earns less and weighs less."""
    rng = np.random.default_rng(2)
    node = np.tile(np.arange(5), (2000, 1))
    truth = rng.uniform(3, 7, 2000)
    scores = truth[:, None] + 0.2 * rng.standard_normal((2000, 5))
    scores[:, 0] -= 2.5
    output = np.arange(2000) % 50
    found = yuma_rounds(scores, node, output, 5, 50, emission=0.2)
    early, late = (found - truth)[:100].mean(), (found - truth)[-100:].mean()
    assert late > early + 0.05


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: yuma_epoch([[1, -1]], [1]), "negative"),
        (lambda: yuma_epoch([[1, 1]], [0]), "stake"),
        (lambda: yuma_epoch([[1, 1]], [1, 1]), "stake"),
        (lambda: yuma_epoch([[1, 1]], [1], kappa=0), "kappa"),
        (lambda: yuma_epoch([[1, 1]], [1], bond_rate=2), "bond_rate"),
        (lambda: yuma_rounds(np.ones((2, 3)), np.ones((2, 3), int), [0], 2, 1), "output"),
        (lambda: yuma_rounds(np.ones((1, 2)), [[0, 1]], [0], 2, 1, epoch=0), "epoch"),
        (lambda: yuma_rounds(np.ones((1, 2)), [[0, 1]], [0], 2, 1, emission=-1), "emission"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
