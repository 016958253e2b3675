"""Rounds: who is drawn, how often, and what an honest committee reports."""

import math
from itertools import combinations

import numpy as np
import pytest
from generators import dense_log, gappy_log
from scipy import stats

from poq import rounds
from poq.engine import n_malicious
from poq.matrix import correlations
from poq.rounds import block_length, gather, iter_rounds, make_pool, malicious_nodes, mark_nodes, sample_rounds
from poq.scorelog import score_matrix
from poq.streams import stream


def matrix_of(log=None, task="qa"):
    return score_matrix(dense_log() if log is None else log, task=task)


def rounds_of(matrix, *, n_rounds=2000, committee=3, seed=0, trial=0, **options):
    pool = make_pool(matrix, committee=committee, seed=seed, trial=trial, **options)
    return pool, *sample_rounds(pool, n_rounds=n_rounds, committee=committee, seed=seed, trial=trial)


def uniform(counts, *, at_once=1):
    """p-value of equal chances; drawing several at once without repetition makes counts less unequal by a factor."""
    n = len(counts)
    return stats.chi2(n - 1).sf(stats.chisquare(counts).statistic * (n - 1) / (n - at_once))


# --- draws ---


def test_outputs_and_committees_are_uniform():
    """Each output, each of the 56 committees of 3 out of 8, and each node on each seat is as likely as another."""
    matrix = matrix_of(dense_log(n_evaluators=8))
    _, output, node, _ = rounds_of(matrix, n_rounds=40_000)
    assert uniform(np.bincount(output, minlength=len(matrix.truth))) > 0.001
    sets = {committee: number for number, committee in enumerate(combinations(range(8), 3))}
    drawn = [sets[tuple(row)] for row in np.sort(node, axis=1).tolist()]
    assert uniform(np.bincount(drawn, minlength=56)) > 0.001
    for seat in node.T:
        assert uniform(np.bincount(seat, minlength=8)) > 0.001
    together = np.zeros((len(matrix.truth), 8))
    np.add.at(together, (output, node[:, 0]), 1)
    assert stats.chi2_contingency(together).pvalue > 0.001


def test_committees_are_uniform_among_those_who_scored():
    matrix = matrix_of(gappy_log())
    _, output, node, _ = rounds_of(matrix, n_rounds=60_000)
    crowded = [o for o in np.unique(output) if (~np.isnan(matrix.values[o])).sum() > 3]
    for o in crowded[:12]:
        seats = np.bincount(node[output == o].ravel(), minlength=7)
        present = ~np.isnan(matrix.values[o])
        assert (seats[~present] == 0).all()
        assert uniform(seats[present], at_once=3) > 0.001


@pytest.mark.parametrize("committee", [1, 2, 7, 9])
def test_nobody_sits_twice(committee):
    _, _, node, _ = rounds_of(matrix_of(), committee=committee, n_rounds=3000)
    assert (np.diff(np.sort(node, axis=1), axis=1) > 0).all()


def test_committee_majorities_are_hypergeometric():
    """The number of malicious members, and with it the chance of a malicious majority."""
    matrix = matrix_of(dense_log(n_evaluators=9))
    for committee, n_nodes, bad in [(3, 9, 3), (5, 50, 15), (7, 50, 20)]:
        pool, _, node, _ = rounds_of(matrix, committee=committee, n_nodes=n_nodes, n_rounds=40_000)
        marked = np.zeros(n_nodes, dtype=bool)
        marked[malicious_nodes(pool, matrix)[:bad]] = True
        found = np.bincount(mark_nodes(marked, node).sum(axis=1), minlength=committee + 1)
        chance = stats.hypergeom(n_nodes, bad, committee).pmf(np.arange(committee + 1))
        likely = chance * 40_000 > 5
        expected = np.append(chance[likely], chance[~likely].sum()) * 40_000
        merged = np.append(found[likely], found[~likely].sum())
        keep = expected > 0
        assert stats.chisquare(merged[keep], expected[keep]).pvalue > 0.001
        majority = chance[committee // 2 + 1 :].sum()
        margin = 4 * math.sqrt(majority * (1 - majority) / 40_000)
        assert found[committee // 2 + 1 :].sum() / 40_000 == pytest.approx(majority, abs=margin)


def test_draws_do_not_depend_on_their_cutting():
    """Any block boundaries, the engine's own included, give the same rounds; so do more rounds after them."""
    matrix = matrix_of(gappy_log())
    for committee, n_nodes in [(3, None), (5, 21)]:
        options = dict(committee=committee, n_nodes=n_nodes, min_available=3)
        n_rounds = block_length(committee) + 7
        pool, *whole = rounds_of(matrix, n_rounds=n_rounds, **options)
        edges = [0, 1, 2, 40, 41, n_rounds - 1, n_rounds]
        parts = [np.concatenate(part) for part in zip(*iter_rounds(pool, committee, edges, seed=0, trial=0))]
        _, *longer = rounds_of(matrix, n_rounds=n_rounds + 500, **options)
        for one, other, third in zip(whole, parts, longer):
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(one, third[:n_rounds])


@pytest.mark.parametrize("log", [dense_log(), gappy_log()], ids=["dense", "gaps"])
def test_small_committee_is_the_beginning_of_a_large_one(log):
    """On the same outputs: min_available holds the draw fixed across K."""
    matrix = matrix_of(log)
    drawn = [rounds_of(matrix, committee=k, min_available=5, n_nodes=14) for k in (1, 3, 5)]
    for k, (_, output, node, scores) in zip((1, 3, 5), drawn):
        np.testing.assert_array_equal(output, drawn[2][1])
        np.testing.assert_array_equal(node, drawn[2][2][:, :k])
        np.testing.assert_array_equal(scores, drawn[2][3][:, :k])


@pytest.mark.parametrize("committee", [1, 2, 5, rounds.SMALL_COMMITTEE, rounds.SMALL_COMMITTEE + 1])
@pytest.mark.parametrize("log", [dense_log(), gappy_log()], ids=["dense", "gaps"])
def test_both_shuffles_draw_the_same(monkeypatch, log, committee):
    """Also where everybody who scored an output sits."""
    matrix = matrix_of(log)
    for n_nodes in (committee, 25):
        options = {"committee": committee, "n_nodes": n_nodes}
        try:
            make_pool(matrix, **options)
        except ValueError:
            continue
        drawn = []
        for limit in (0, committee):
            monkeypatch.setattr(rounds, "SMALL_COMMITTEE", limit)
            drawn.append(rounds_of(matrix, **options)[2])
        np.testing.assert_array_equal(*drawn)
        assert n_nodes == committee or len(np.unique(drawn[0])) == n_nodes


def test_seeds_and_trials_differ():
    matrix = matrix_of()
    drawn = [rounds_of(matrix, seed=seed, trial=trial) for seed in (0, 1) for trial in (0, 1)]
    for one, other in combinations(drawn, 2):
        assert (one[1] != other[1]).mean() > 0.9
        assert (one[2] != other[2]).mean() > 0.7


# --- honest scores ---


def test_honest_scores_are_those_of_the_log():
    matrix = matrix_of(gappy_log())
    pool, output, node, scores = rounds_of(matrix)
    np.testing.assert_array_equal(scores, matrix.values[output[:, None], node])
    np.testing.assert_array_equal(scores, gather(pool, output, node))
    assert not np.isnan(scores).any()


def test_more_nodes_than_evaluators():
    """Node n runs evaluator n mod E and adds noise of its own, clipped to the scale."""
    matrix = matrix_of()
    pool, output, node, scores = rounds_of(matrix, n_nodes=31, jitter=0.8, n_rounds=6000)
    assert node.max() == 30
    said = matrix.values[output[:, None], node % 9]
    np.testing.assert_array_equal(gather(pool, output, node), said)
    noise = (scores - said)[(said > 3) & (said < 7)]
    assert stats.kstest(noise / 0.8, "norm").pvalue > 0.001
    assert (scores >= 0).all()
    assert (scores <= 10).all()
    quiet = rounds_of(matrix, n_nodes=31, jitter=0)
    np.testing.assert_array_equal(quiet[3], matrix.values[quiet[1][:, None], quiet[2] % 9])
    # As many nodes as evaluators: no noise, whatever jitter says.
    same = rounds_of(matrix, n_nodes=9, jitter=3.0)
    np.testing.assert_array_equal(same[3], matrix.values[same[1][:, None], same[2]])


def test_fewer_nodes_than_evaluators():
    """A seeded subset per trial; over trials every evaluator takes part about equally often."""
    matrix = matrix_of()
    subsets = []
    for trial in range(60):
        pool, output, node, scores = rounds_of(matrix, n_nodes=4, n_rounds=50, trial=trial)
        assert len(set(pool.evaluator)) == 4
        np.testing.assert_array_equal(scores, matrix.values[output[:, None], pool.evaluator[node]])
        subsets.append(frozenset(pool.evaluator.tolist()))
    assert len(set(subsets)) > 30
    assert uniform(np.bincount([e for subset in subsets for e in subset], minlength=9), at_once=4) > 0.001


def test_subset_with_gaps_counts_its_own_nodes():
    matrix = matrix_of(gappy_log())
    for trial in range(5):
        pool = make_pool(matrix, committee=2, n_nodes=4, trial=trial)
        available = (~np.isnan(matrix.values[:, pool.evaluator])).sum(axis=1)
        np.testing.assert_array_equal(pool.output, np.flatnonzero(available >= 2))
        assert pool.dropped == (available < 2).sum() > 0


# --- gaps ---


@pytest.mark.parametrize("min_available", [None, 2, 4, 6])
def test_outputs_with_too_few_scores_leave_the_draw(min_available):
    matrix = matrix_of(gappy_log())
    pool, output, _, _ = rounds_of(matrix, min_available=min_available)
    least = max(3, min_available or 0)
    available = (~np.isnan(matrix.values)).sum(axis=1) >= least
    assert pool.dropped == (~available).sum() > 0
    assert set(output) == set(np.flatnonzero(available))


@pytest.mark.filterwarnings("ignore:evaluator")
def test_too_few_outputs_is_an_error_with_the_task():
    log = gappy_log()
    with pytest.raises(ValueError, match=r"'qa'.* 8 "):
        make_pool(matrix_of(log), committee=3, min_available=8)
    one = dense_log(n_items=2, n_models=1, n_evaluators=4).assign(task="summary")
    kept = one[(one["item"] == "item-00000") | (one["evaluator"] < "e2")]
    with pytest.raises(ValueError, match=r"'summary' has 1 output"):
        make_pool(matrix_of(kept, "summary"), committee=3)
    with pytest.raises(ValueError, match=r"committee 8 .* 7 .*'qa'"):
        make_pool(matrix_of(log), committee=8)
    with pytest.raises(ValueError, match=r"committee 5 .* 4 .*'qa'"):
        make_pool(matrix_of(log), committee=5, n_nodes=4)


def test_what_a_pool_cannot_do_is_named():
    matrix = matrix_of(gappy_log())
    pool = make_pool(matrix, committee=2)
    with pytest.raises(ValueError, match="committee 5 is larger than the 2 nodes"):
        sample_rounds(pool, n_rounds=10, committee=5)
    with pytest.raises(ValueError, match="unknown who 'bset': use random, best or worst"):
        malicious_nodes(pool, matrix, who="bset")
    with pytest.raises(ValueError, match="unknown resample 'item': use none or items"):
        make_pool(matrix, committee=2, resample="item")


def test_resampled_items_stay_together():
    """A bootstrap of whole items: all outputs of an item come the same number of times, n items in all."""
    matrix = matrix_of(gappy_log())
    plain = make_pool(matrix, committee=2)
    times = []
    for trial in range(200):
        pool = make_pool(matrix, committee=2, resample="items", trial=trial)
        assert pool.dropped == plain.dropped
        count = np.bincount(pool.output, minlength=len(matrix.truth))
        by_item = [set(count[plain.output[matrix.item[plain.output] == i]]) for i in np.unique(matrix.item)]
        assert all(len(counts) <= 1 for counts in by_item)
        times.append([counts.pop() for counts in by_item if counts])
    times = np.array(times)
    assert (times.sum(axis=1) == times.shape[1]).all()
    n = times.shape[1]
    chance = stats.binom(n, 1 / n).pmf([0, 1, 2])
    expected = np.append(chance, 1 - chance.sum()) * times.size
    found = np.bincount(np.minimum(times, 3).ravel(), minlength=4)
    assert stats.chisquare(found, expected).pvalue > 0.001


def test_output_counted_twice_is_drawn_twice_as_often():
    matrix = matrix_of()
    pool = make_pool(matrix, committee=1, resample="items", trial=3)
    output, _, _ = sample_rounds(pool, n_rounds=40_000, committee=1, trial=3)
    weight = np.bincount(pool.output, minlength=len(matrix.truth))
    found = np.bincount(output, minlength=len(matrix.truth))
    assert (found[weight == 0] == 0).all()
    used = weight > 0
    assert stats.chisquare(found[used], weight[used] / weight.sum() * 40_000).pvalue > 0.001


# --- malicious nodes ---


@pytest.mark.parametrize(
    ("share", "n_nodes", "expected"),
    [(0, 9, 0), (1, 9, 9), (0.3, 9, 3), (0.25, 10, 3), (0.05, 10, 1), (0.04, 10, 0), (0.145, 100, 15), (0.5, 7, 4)],
)
def test_number_of_malicious_nodes(share, n_nodes, expected):
    """floor(share N + 0.5): halves go up, also where 0.145 * 100 is 14.499999999999998 in binary."""
    assert n_malicious(share, n_nodes) == expected


def test_malicious_order_is_a_random_permutation():
    """So the set of a smaller share lies inside that of a larger one."""
    matrix = matrix_of()
    pool = make_pool(matrix, committee=3, n_nodes=20)
    orders = np.array([malicious_nodes(pool, matrix, trial=trial) for trial in range(400)])
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(20), (400, 1)))
    assert uniform(np.bincount(orders[:, :6].ravel(), minlength=20), at_once=6) > 0.001
    wider = make_pool(matrix, committee=7, n_nodes=20)
    np.testing.assert_array_equal(orders[5], malicious_nodes(wider, matrix, trial=5))
    np.testing.assert_array_equal(orders[5], stream(0, 5, "malicious").permutation(20))


def test_best_and_worst_nodes_turn_first():
    """By the Pearson correlation of a node's evaluator; nodes of one evaluator in random order."""
    log = dense_log()
    log.loc[log["evaluator"] == "e2", "score"] = 4.2  # no correlation at all: the least skilled
    matrix = score_matrix(log, task="qa", calibration=(0, 10))
    skill = np.nan_to_num(correlations(matrix), nan=-2)
    pool = make_pool(matrix, committee=3, n_nodes=18)
    best, worst = (malicious_nodes(pool, matrix, who=who) for who in ("best", "worst"))
    assert (np.diff(skill[best % 9]) <= 0).all()
    assert (np.diff(skill[worst % 9]) >= 0).all()
    assert (worst[:2] % 9 == 2).all()
    first = [malicious_nodes(pool, matrix, who="best", trial=trial)[0] for trial in range(40)]
    assert len(set(first)) == 2


def test_mark_nodes():
    marked = np.array([True, False, False, True])
    node = np.array([[0, 1], [3, 0], [2, 1]])
    np.testing.assert_array_equal(mark_nodes(marked, node), [[True, False], [True, True], [False, False]])
    np.testing.assert_array_equal(mark_nodes(marked, np.asfortranarray(node)), marked[node])
