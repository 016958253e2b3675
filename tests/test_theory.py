"""Theory against simulation, within the Monte Carlo margin."""

import numpy as np
import pytest

from poq import simulate, theory
from poq.aggregators import leave_one_out
from poq.rewards import deviation
from poq.scorelog import score_matrix
from poq.synthetic import synthetic_log


@pytest.mark.parametrize("committee", [1, 2, 5, 9])
@pytest.mark.parametrize("left_out", [False, True])
def test_expected_deviation(committee, left_out):
    if left_out and committee == 1:
        assert np.isnan(theory.expected_deviation(1, leave_one_out=True)).all()
        return
    scores = 5 + 0.8 * np.random.default_rng(committee).standard_normal((100_000, committee))
    reference = leave_one_out(scores) if left_out else scores.mean(axis=1)
    found = 10 * deviation(scores, reference)
    mean, variance = theory.expected_deviation(committee, sd=0.8, leave_one_out=left_out)
    assert found.mean() == pytest.approx(mean, abs=0.006)
    assert found.var() == pytest.approx(variance, abs=0.01)


def test_pool_error_is_exact_for_any_scores():
    evaluators = {f"e{n}": {"bias": n - 2, "gain": n / 3, "noise": 1 + n} for n in range(6)}
    log = synthetic_log(np.random.default_rng(0), n_items=30, n_models=3, evaluators=evaluators)
    log = log[(log.index % 17 != 0)]  # some cells are missing
    matrix = score_matrix(log, task="synthetic")
    scenarios = simulate.grid(task="synthetic", committee=[1, 2, 4], n_rounds=50_000)
    frame = simulate.run(log, scenarios, trials=4, seed=1, progress=False)
    found = simulate.summarize(frame, "committee").query("metric == 'rmse'")
    expected = theory.pool_error(matrix.values, matrix.truth, [1, 2, 4])
    assert found["mean"].to_numpy() == pytest.approx(expected, rel=0.01)


def test_honest_spread():
    values = np.array([[1.0, 3.0, np.nan], [5.0, np.nan, np.nan], [0.0, 0.0, 6.0]])
    assert theory.honest_spread(values) == pytest.approx(np.sqrt((2 + 12) / 2))
    assert np.isnan(theory.honest_spread(values[1:2]))


@pytest.mark.parametrize("committee", [3, 5, 9])
def test_consensus_error(committee):
    n_nodes, bad, shift, n = 20, 6, 2.5, 200_000
    rng = np.random.default_rng(committee)
    held = rng.hypergeometric(bad, n_nodes - bad, committee, n)
    scores = rng.standard_normal((n, committee)) + shift * (np.arange(committee) < held[:, None])
    seats = theory.seats_held(committee, bad, n_nodes)
    assert seats.sum() == pytest.approx(1)
    for rule, moments in ((np.mean, theory.mean_moments), (np.median, theory.median_moments)):
        found = rule(scores, axis=1)
        error = theory.consensus_error(moments(committee, shift), seats)
        assert found.mean() == pytest.approx(error.bias, abs=0.01)
        assert found.var() == pytest.approx(error.variance, rel=0.02)
        assert error.mse == pytest.approx(error.bias**2 + error.variance)


def test_median_of_an_even_committee_is_refused():
    with pytest.raises(ValueError, match="odd"):
        theory.median_moments(4, 1.0)


@pytest.mark.parametrize("of", ["mse", "variance"])
@pytest.mark.parametrize("committee", [3, 5, 9])
def test_border_and_capture(committee, of):
    """On the border both errors are the same; beyond the wall a huge attack leaves the mean the better rule."""
    bad = np.arange(20, 500, 20)
    for count, attack in zip(bad, theory.border(committee, bad, 1000, of=of)):
        seats = theory.seats_held(committee, count, 1000)
        far = [
            getattr(theory.consensus_error(moments(committee, 200.0), seats), of)
            for moments in (theory.mean_moments, theory.median_moments)
        ]
        assert theory.captured(committee, count, 1000, of=of) == (far[1] > far[0])
        if np.isfinite(attack):
            pair = [
                getattr(theory.consensus_error(moments(committee, attack), seats), of)
                for moments in (theory.mean_moments, theory.median_moments)
            ]
            assert pair[0] == pytest.approx(pair[1], rel=0.01)


def test_capture_of_three_seats_has_a_closed_form():
    """In a large pool 3 r^2 - 2 r^3 = r^2 + r (1 - r) / 3 at r = 1/6."""
    assert not theory.captured(3, 16_600, 100_000)
    assert theory.captured(3, 16_700, 100_000)


def test_border_refuses_an_unknown_error():
    with pytest.raises(ValueError, match="of must be"):
        theory.border(3, [1], 10, of="bias")
