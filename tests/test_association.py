"""Correlations on resampled items, against numpy on the repeated cases."""

import numpy as np
import pytest

from poq.association import bins, correlate, correlate_pairs, interval, resample_items


@pytest.fixture
def world():
    rng = np.random.default_rng(4)
    item = np.repeat(np.arange(12), 4)
    truth = rng.normal(size=48)
    values = truth[:, None] * [1.0, -0.5, 0.0, 100.0] + rng.normal(size=(48, 4)) + [0, 0, 0, 1e6]
    values[rng.random((48, 4)) < 0.15] = np.nan
    return values, truth, item, resample_items(12, n_boot=5, rng=rng)


def repeated(item, times):
    return np.repeat(np.arange(len(item)), times[item].astype(int))


def test_first_sample_is_the_log(world):
    times = world[3]
    assert (times[0] == 1).all()
    assert (times.sum(axis=1) == 12).all()


def test_correlate_equals_numpy_on_repeated_cases(world):
    values, truth, item, times = world
    result = correlate(values, truth, item, times)
    for b, row in enumerate(times):
        cases = repeated(item, row)
        for e in range(values.shape[1]):
            known = cases[~np.isnan(values[cases, e])]
            assert result[b, e] == pytest.approx(np.corrcoef(values[known, e], truth[known])[0, 1], abs=1e-9)


def test_correlate_pairs_equals_numpy_on_repeated_cases(world):
    values, _, item, times = world
    result = correlate_pairs(values, item, times)
    for b, row in enumerate(times):
        cases = repeated(item, row)
        for e in range(4):
            for f in range(4):
                known = cases[~np.isnan(values[cases, e]) & ~np.isnan(values[cases, f])]
                assert result[b, e, f] == pytest.approx(np.corrcoef(values[known, e], values[known, f])[0, 1], abs=1e-9)


def test_correlate_within_strata_takes_stratum_means_away(world):
    values, truth, item, times = world
    values = np.nan_to_num(values)
    stratum = np.arange(48) % 3
    result = correlate(values, truth, item, times, stratum=stratum)
    for b, row in enumerate(times):
        cases = repeated(item, row)
        x, y = values[cases].copy(), truth[cases].copy()
        for label in range(3):
            here = stratum[cases] == label
            x[here] -= x[here].mean(axis=0)
            y[here] -= y[here].mean()
        for e in range(4):
            assert result[b, e] == pytest.approx(np.corrcoef(x[:, e], y)[0, 1], abs=1e-9)


def test_a_common_cause_vanishes_when_it_is_held_fixed():
    rng = np.random.default_rng(0)
    cause = rng.integers(8, size=4000)
    values, truth = (cause + rng.normal(size=4000) for _ in range(2))
    item, times = np.arange(4000), np.ones((1, 4000))
    assert correlate(values[:, None], truth, item, times)[0, 0] > 0.7
    assert abs(correlate(values[:, None], truth, item, times, stratum=cause)[0, 0]) < 0.05


def test_no_spread_is_undefined():
    item, times = np.arange(6), np.ones((1, 6))
    values = np.column_stack([np.full(6, 0.1), np.full(6, np.nan), np.arange(6)])
    found = correlate(values, np.arange(6.0), item, times)[0]
    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx(1)
    assert np.isnan(correlate(values, np.ones(6), item, times)).all()
    assert np.isnan(correlate_pairs(values, item, times)[0, 0]).all()


def test_bins_keep_ties_together_and_cover_all():
    values = np.array([1, 1, 1, 1, 2, 3, 4, 5, 5, 9.0])
    found = bins(values, n=5)
    assert all(len(set(found[values == v])) == 1 for v in values)
    assert (np.diff(found[np.argsort(values, kind="stable")]) >= 0).all()
    assert set(bins(np.full(7, 3.0))) == {0}
    assert np.bincount(bins(np.arange(1000), n=10)).tolist() == [100] * 10


def test_interval_is_the_estimate_and_the_quantiles_of_the_rest():
    draws = np.vstack([[0.5, np.nan], np.column_stack([np.arange(101) / 100, np.full(101, np.nan)])])
    estimate, low, high = interval(draws)
    assert [estimate[0], low[0], high[0]] == pytest.approx([0.5, 0.025, 0.975])
    assert np.isnan([estimate[1], low[1], high[1]]).all()
    assert [float(part) for part in interval(draws[:, 0])] == pytest.approx([0.5, 0.025, 0.975])
    assert np.isnan(interval(np.array([0.3]))[1])
