"""Metrics: whole arrays against SciPy, streamed sums against whole arrays, pay by hand."""

import numpy as np
import pytest
from scipy import stats

from poq import metrics
from poq.rewards import deviation

WIDTH = 10 / metrics.RANK_BINS


def shapes():
    """Consensus and truth of rounds that are continuous, heavily tied, piled up at the ends, inverted, or few."""
    rng = np.random.default_rng(0)
    truth = np.clip(rng.normal(5, 2, 60), 0, 10)
    output = rng.integers(0, 60, 3000)
    q = truth[output]
    smooth = np.clip(q + rng.normal(0, 1.5, 3000), 0, 10)
    return {
        "continuous": (smooth, truth, output),
        "inverted": (10 - smooth, truth, output),
        "unrelated": (rng.random(3000) * 10, truth, output),
        "whole numbers": (np.round(smooth), truth, output),
        "tied truth": (smooth, np.round(truth / 3) * 3, output),
        "at the ends": (np.where(smooth > 5, 10.0, 0.0), truth, output),
        "ends and between": (np.clip(3 * (smooth - 5) + 5, 0, 10), truth, output),
        "near the top": (10 - (10 - smooth) * 1e-2, truth, output),
        "two rounds": (np.array([3.0, 4.0]), truth, np.array([0, 1])),
    }


def streamed(consensus, truth, output, *, cuts=(0,)):
    """The row of accuracy from sums added up block by block."""
    count = np.bincount(output, minlength=len(truth)).astype(float)
    q = truth[output]
    rank = np.array([(q < value).sum() + (q == value).sum() / 2 for value in truth]) / len(q) - 0.5
    sums = metrics.start_sums(1, 1, n_rounds=len(output))
    for part in np.split(np.arange(len(output)), cuts):
        metrics.add_accuracy(sums, output[part], consensus[part], truth, rank)
    return metrics.accuracy_row(metrics.finish(sums, rank), rank, count)


@pytest.mark.parametrize("name", shapes())
def test_accuracy_against_scipy(name):
    consensus, truth, output = shapes()[name]
    q = truth[output]
    error = consensus - q
    expected = {
        "pearson": stats.pearsonr(consensus, q).statistic,
        "spearman": stats.spearmanr(consensus, q).statistic,
        "rmse": np.sqrt((error**2).mean()),
        "mae": np.abs(error).mean(),
        "bias": error.mean(),
    }
    for metric, value in expected.items():
        assert getattr(metrics, metric)(consensus, q) == pytest.approx(value, abs=1e-10), metric
    row = streamed(consensus, truth, output)
    assert set(row) == set(expected)
    for metric in ("pearson", "rmse", "mae", "bias"):
        assert row[metric] == pytest.approx(expected[metric], abs=1e-10), metric
    # Scores in one bin count as tied; with the scores rounded down to their bins SciPy agrees to the last digits.
    binned = np.minimum(np.floor(consensus / WIDTH), metrics.RANK_BINS - 1)
    assert row["spearman"] == pytest.approx(stats.spearmanr(binned, q).statistic, abs=1e-10)
    # "near the top" spreads over 0.1 points, 160 bins; the others over the whole scale.
    resolution = 1e-4 if name == "near the top" else 1e-5
    assert row["spearman"] == pytest.approx(expected["spearman"], abs=resolution)


def test_rounding_does_not_part_ties():
    """5 is where a bin begins: what rounding makes of it on either side is still one score."""
    rng = np.random.default_rng(2)
    truth, output = rng.random(50) * 10, rng.integers(0, 50, 5000)
    meant = rng.choice([2.5, 5.0, 7.5], 5000)
    rounded = np.nextafter(meant, rng.choice([0.0, 10.0], 5000))
    exact = stats.spearmanr(meant, truth[output]).statistic
    assert streamed(rounded, truth, output)["spearman"] == pytest.approx(exact, abs=1e-10)


def test_rank_resolution_is_the_width_of_a_bin():
    """Scores on a grid as fine as 0.001 points are told apart, ties among them included."""
    assert WIDTH < 0.001
    rng = np.random.default_rng(1)
    truth = rng.random(50) * 10
    output = rng.integers(0, 50, 5000)
    consensus = np.round(5 + rng.normal(0, 0.02, 5000) + 0.004 * truth[output], 3)
    exact = stats.spearmanr(consensus, truth[output]).statistic
    assert streamed(consensus, truth, output)["spearman"] == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("cuts", [[1], [1500], [1, 2, 3, 2999], list(range(100, 3000, 100))])
def test_streamed_sums_do_not_hang_on_blocks(cuts):
    consensus, truth, output = shapes()["continuous"]
    whole, parts = streamed(consensus, truth, output), streamed(consensus, truth, output, cuts=cuts)
    assert parts == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("length", [300, 301, 999, 2999, 3000])
def test_ranks_do_not_hang_on_the_list_in_which_rounds_wait(monkeypatch, length):
    """A list that fills often, in the middle of a block, at the end of one, just before the last, or never."""
    consensus, truth, output = shapes()["whole numbers"]
    whole = streamed(consensus, truth, output)
    monkeypatch.setattr(metrics, "RANK_LIST", length)
    for step in (100, 299, 300):
        assert streamed(consensus, truth, output, cuts=range(step, 3000, step)) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(("announced", "added"), [(10, 11), (0, 1), (70_000, 40_000)])
def test_rounds_that_do_not_fit_are_refused(announced, added):
    """More than announced, and a block longer than the list."""
    sums = metrics.start_sums(1, 1, n_rounds=announced)
    with pytest.raises(ValueError, match=f"a block of {added} rounds does not fit"):
        metrics.add_accuracy(sums, np.zeros(added, dtype=int), np.zeros(added), np.ones(1), np.zeros(1))


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7, 10.0])
def test_undefined_correlations_are_nan(value):
    """A constant consensus, a constant truth, and a single round; what rounding leaves is no variation."""
    _, truth, output = shapes()["continuous"]
    rng = np.random.default_rng(0)
    flat = np.full(len(output), value)
    for consensus, q in [(flat, truth), (rng.random(len(output)) * 10, np.full(60, value))]:
        row = streamed(consensus, q, output, cuts=[7, 1000])
        for metric in ("pearson", "spearman"):
            assert np.isnan(row[metric])
            assert np.isnan(getattr(metrics, metric)(consensus, q[output]))
        assert row["rmse"] == pytest.approx(metrics.rmse(consensus, q[output]))
    single = streamed(flat[:1], truth, output[:1])
    assert np.isnan(single["pearson"])
    assert np.isnan(single["spearman"])
    assert single["mae"] == pytest.approx(abs(value - truth[output[0]]))


def test_correlation_never_leaves_its_range():
    truth = np.array([1 / 3, 1 / 7, 9.9])
    output = np.arange(3)
    assert streamed(truth, truth, output)["pearson"] == pytest.approx(1, abs=1e-12)
    assert streamed(truth, truth, output)["pearson"] <= 1
    assert streamed(10 - truth, truth, output)["spearman"] == -1


def test_pay_by_hand():
    """Two rounds of two seats among three nodes, costs 0, 1/2, 1, the third node malicious, factors 1.

    Round 1: nodes 0, 1 report 4, 8; c = 6; d = 0.2, 0.2; pay 0.8, 0.3.
    Round 2: nodes 1, 2 report 2, 10; c = 6; d = 0.4, 0.4; pay 0.1, -0.4.
    """
    sums = metrics.start_sums(3, 2, n_rounds=0)
    consensus, cost, malicious = np.array([6.0, 6.0]), np.array([0.0, 0.5, 1.0]), np.array([False, False, True])
    metrics.add_inference_pay(sums, np.array([0, 1]), consensus, np.array([1, 0]))
    metrics.add_evaluator_pay(sums, np.array([[0, 1], [1, 2]]), np.array([[4.0, 8.0], [2.0, 10.0]]), consensus, cost)
    totals = metrics.finish(sums, np.zeros(1))
    row = metrics.evaluator_pay_row(totals, malicious, cost, 2, alpha=1.0, beta=1.0)
    pays = np.array([0.8, 0.3, 0.1, -0.4])
    expected = {
        "evaluator_reward": 0.2,
        "evaluator_reward_sd": pays.std(),
        "evaluator_reward_honest": 0.4,
        "evaluator_reward_honest_sd": pays[:3].std(),
        "evaluator_reward_malicious": -0.4,
        "evaluator_reward_malicious_sd": 0.0,
        "evaluator_pay_round": 0.4,  # rounds paid 1.1 and -0.3
        "evaluator_pay_round_sd": 0.7,
        "evaluator_pay_node": 0.8 / 3,  # nodes earned 0.8, 0.4, -0.4
        "evaluator_pay_node_sd": np.std([0.8, 0.4, -0.4]),
        "evaluator_reward_between_sd": np.std([0.8, 0.2, -0.4]),
    }
    assert row == pytest.approx(expected, abs=1e-7)
    # Model 1 answered round 1, model 0 round 2; their costs are 1 and 0.
    inference = metrics.inference_pay_row(totals, np.array([0.0, 1.0]), ("a", "b"), alpha=1.0, beta=1.0)
    expected = {
        "inference_reward": 0.1,
        "inference_reward_sd": 0.5,
        "inference_reward[a]": 0.6,
        "inference_reward[b]": -0.4,
    }
    assert inference == pytest.approx(expected, abs=1e-12)
    pay = {"evaluator_alpha": 1.0, "evaluator_beta": 1.0, "inference_alpha": 1.0, "inference_beta": 1.0}
    per_round = metrics.pay_per_round(totals, malicious, cost, np.array([0.0, 1.0]), pay=pay)
    assert per_round == pytest.approx({"inference": 0.1, "honest": 0.6, "malicious": -0.2, "total": 0.5}, abs=1e-12)


def test_pay_is_measured_by_the_deviation_of_rewards():
    """The compiled loop repeats deviation: per node sums, with one reference per round or one per seat."""
    rng = np.random.default_rng(0)
    scores, consensus = rng.random((500, 4)) * 10, rng.random(500) * 10
    node = np.argsort(rng.random((500, 9)), axis=1)[:, :4]
    output, model = rng.integers(0, 5, 500), np.array([0, 1, 0, 1, 1])
    for reference in (consensus, rng.random((500, 4)) * 10):
        sums = metrics.start_sums(9, 2, n_rounds=0)
        for part in np.split(np.arange(500), [3, 200]):
            metrics.add_inference_pay(sums, output[part], consensus[part], model)
            metrics.add_evaluator_pay(sums, node[part], scores[part], reference[part], np.zeros(9))
        d = deviation(scores, reference)
        for n in range(9):
            np.testing.assert_allclose(sums.node[n], [(node == n).sum(), d[node == n].sum(), (d[node == n] ** 2).sum()])
        for m in range(2):
            own = consensus[model[output] == m]
            np.testing.assert_allclose(sums.model[m], [len(own), own.sum(), (own**2).sum()])


def test_nobody_in_a_group():
    """No malicious node, a node that never sat, a model that never answered: NaN, not a number made up."""
    sums = metrics.start_sums(3, 2, n_rounds=0)
    consensus = np.array([5.0])
    metrics.add_inference_pay(sums, np.array([0]), consensus, np.array([0]))
    metrics.add_evaluator_pay(sums, np.array([[0, 1]]), np.array([[4.0, 6.0]]), consensus, np.zeros(3))
    totals = metrics.finish(sums, np.zeros(1))
    row = metrics.evaluator_pay_row(totals, np.zeros(3, dtype=bool), np.zeros(3), 2, alpha=0.7, beta=0.3)
    assert np.isnan(row["evaluator_reward_malicious"])
    assert np.isnan(row["evaluator_reward_malicious_sd"])
    assert row["evaluator_reward_between_sd"] == pytest.approx(0, abs=1e-12)
    # Who never sat earned nothing; over all three nodes that is 0.63, 0.63, 0.
    assert row["evaluator_pay_node"] == pytest.approx(0.42)
    assert row["evaluator_pay_node_sd"] == pytest.approx(np.std([0.63, 0.63, 0]))
    inference = metrics.inference_pay_row(totals, np.zeros(2), ("a", "b"), alpha=0.7, beta=0.3)
    assert np.isnan(inference["inference_reward[b]"])


def test_many_runs_at_once_are_each_as_alone():
    """Rows of stacked totals, to the last bit, with other factors and other malicious nodes in each.

    From eight numbers on numpy adds up pairwise where they lie side by side: there are more nodes and models than that.
    """
    rng = np.random.default_rng(0)
    truth, cost, model_cost = rng.random(40) * 10, rng.random(60), rng.random(20)
    output, model = rng.integers(0, 40, 400), np.arange(40) % 20
    node = np.argsort(rng.random((400, 60)), axis=1)[:, :3]
    count = np.bincount(output, minlength=40).astype(float)
    rank = metrics.truth_ranks(np.argsort(np.argsort(truth)), count)
    totals = []
    for _ in range(7):
        sums, scores = metrics.start_sums(60, 20, n_rounds=400), rng.random((400, 3)) * 10
        metrics.add_accuracy(sums, output, scores.mean(axis=1), truth, rank)
        metrics.add_inference_pay(sums, output, scores.mean(axis=1), model)
        metrics.add_evaluator_pay(sums, node, scores, scores.mean(axis=1), cost)
        totals.append(metrics.finish(sums, rank))
    malicious = np.arange(60) < np.array([0, 0, 1, 20, 40, 59, 60])[:, None]
    pay = {f"{role}_{name}": rng.random(7) for role in ("evaluator", "inference") for name in ("alpha", "beta")}

    def rows(totals, malicious, pay):
        evaluator = {"alpha": pay["evaluator_alpha"], "beta": pay["evaluator_beta"]}
        return {
            **metrics.accuracy_row(totals, rank, count),
            **metrics.evaluator_pay_row(totals, malicious, cost, 3, **evaluator),
            **metrics.inference_pay_row(
                totals, model_cost, [f"m{m}" for m in range(20)], alpha=pay["inference_alpha"], beta=0.3
            ),
            **metrics.pay_per_round(totals, malicious, cost, model_cost, pay=pay),
        }

    together = rows(metrics.Totals(*map(np.stack, zip(*totals))), malicious, pay)
    for run in range(7):
        alone = rows(totals[run], malicious[run], {name: value[run] for name, value in pay.items()})
        for name, value in alone.items():
            np.testing.assert_array_equal(together[name][run], value, err_msg=name)


def test_baselines_by_hand():
    """Three outputs, answered 1, 2 and 0 times; the second evaluator missed one, the third never varies."""
    values = np.array([[1.0, np.nan, 4.0], [4.0, 8.0, 4.0], [9.0, 9.0, 4.0]])
    row = metrics.baseline_row(values, np.array([2.0, 5.0, 0.0]), np.array([1.0, 2.0, 0.0]), 0)
    expected = {
        "best_single_pearson": 1.0,
        "best_single_rmse": 1.0,
        "random_single_pearson": 1.0,
        "random_single_rmse": np.mean([1.0, 3.0, np.sqrt((4 + 1 + 1) / 3)]),
        "constant_rmse": np.sqrt(2.0),
    }
    assert row == pytest.approx(expected, abs=1e-12)
