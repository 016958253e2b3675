"""Synthetic logs: the world that was asked for."""

import numpy as np
import pytest

from poq.scorelog import check_log, score_matrix
from poq.synthetic import synthetic_log


def cells(log):
    """Truth (O,) and scores (O, E) as they stand in the log."""
    matrix = score_matrix(log, task=log["task"][0], calibration=(0, 10), truth_range=(0, 10))
    return matrix.truth, matrix.values


def test_traits_come_out():
    """Intercept, slope and residual s.d. of each evaluator, in a world that clipping hardly touches."""
    traits = {
        "plain": {},
        "biased": {"bias": 0.8, "noise": 0.3},
        "flat": {"gain": 0.4, "noise": 0.6},
        "inverted": {"gain": -0.5, "noise": 0.2},
    }
    rng = np.random.default_rng(1)
    log = synthetic_log(rng, n_items=4000, n_models=3, evaluators=traits, truth_mean=4.6, truth_sd=0.8, model_sd=0.5)
    truth, values = cells(log)
    names = sorted(traits)
    for name, column in zip(names, values.T):
        slope, intercept = np.polyfit(truth - 5, column - 5, 1)
        expected = {"bias": 0.0, "gain": 1.0, "noise": 1.0, **traits[name]}
        error = 4 * expected["noise"] / np.sqrt(len(truth))
        assert intercept == pytest.approx(expected["bias"], abs=error)
        assert slope == pytest.approx(expected["gain"], abs=error / 0.8)
        assert np.std(column - 5 - intercept - slope * (truth - 5)) == pytest.approx(expected["noise"], abs=error)


def test_truth_has_the_mean_and_spread_asked_for():
    """model_sd lies between models; the rest lies within."""
    rng = np.random.default_rng(2)
    log = synthetic_log(rng, n_items=5000, n_models=4, evaluators=1, truth_mean=4.5, truth_sd=1.0, model_sd=0.6)
    outputs = log.drop_duplicates(["item", "model"])
    between = outputs.groupby("model")["truth"].mean()
    assert outputs["truth"].mean() == pytest.approx(4.5, abs=0.03)
    assert outputs["truth"].std() == pytest.approx(1.0, abs=0.03)
    assert between.std(ddof=0) == pytest.approx(0.6, abs=0.03)
    assert between.is_monotonic_increasing
    assert outputs.groupby("model")["model_cost"].first().is_monotonic_increasing


def test_clusters_share_their_errors():
    traits = {
        name: {"noise": 0.3, "cluster": cluster, "cluster_noise": 0.4}
        for name, cluster in [("a", 1), ("b", 1), ("c", 2)]
    }
    truth, values = cells(synthetic_log(np.random.default_rng(3), n_items=6000, n_models=1, evaluators=traits))
    error = (values - truth[:, None])[(values > 0).all(axis=1) & (values < 10).all(axis=1)]
    correlation = np.corrcoef(error.T)
    assert correlation[0, 1] == pytest.approx(0.16 / 0.25, abs=0.03)
    assert abs(correlation[0, 2]) < 0.05


def test_log_is_valid_and_repeatable():
    logs = [
        synthetic_log(np.random.default_rng(seed), n_items=3, n_models=2, evaluators=4, truth_sd=9, task="t")
        for seed in (0, 0, 1)
    ]
    assert logs[0].equals(logs[1])
    assert not logs[0].equals(logs[2])
    assert len(check_log(logs[0])) == 24
    assert logs[0][["score", "truth"]].min().min() >= 0
    assert logs[0][["score", "truth"]].max().max() <= 10
    assert set(logs[0]["task"]) == {"t"}


def test_names_sort_in_order_of_number():
    log = synthetic_log(np.random.default_rng(0), n_items=12, n_models=11, evaluators=120)
    for column in ("item", "model", "evaluator"):
        names = log[column].unique()
        assert list(names) == sorted(names)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"n_items": 0}, "n_items"),
        ({"n_models": 0}, "n_models"),
        ({"evaluators": 0}, "evaluators"),
        ({"evaluators": {"e": {"biass": 1}}}, "biass"),
        ({"model_sd": 3}, "model_sd"),
        ({"model_sd": -1}, "model_sd"),
    ],
)
def test_bad_worlds(options, part):
    with pytest.raises(ValueError, match=part):
        synthetic_log(np.random.default_rng(0), **{"n_items": 2, "n_models": 2, "evaluators": 2, **options})
