"""Trust that learns bias, gain and noise: where it starts, what it learns, what audits add."""

import itertools
import warnings

import numpy as np
import pytest
import reference

from poq.aggregators import mean, median
from poq.attacks import ATTACKS
from poq.metrics import pearson, rmse
from poq.rounds import make_pool, malicious_nodes, mark_nodes, sample_rounds
from poq.scorelog import score_matrix
from poq.streams import stream
from poq.synthetic import synthetic_log
from poq.trust import TRUST_RULES, run_trust

LEARNING = ["calibrated", "audited"]


def reports(
    *, committee=5, n_rounds=4000, share=0.0, attack="none", seed=0, n=20, calibration="minmax", clusters=False
):
    """A world of unequal evaluators: scores, node, truth of each round, number of nodes."""
    rng = np.random.default_rng(seed)
    evaluators = {}
    for number in range(n):
        traits = {"bias": rng.normal(0, 1), "gain": rng.uniform(0.4, 1.2), "noise": rng.uniform(0.4, 2.5)}
        if clusters and number < n / 2:
            traits |= {"cluster": number % 2, "cluster_noise": 1.0}
        evaluators[f"e{number:02d}"] = traits
    log = synthetic_log(rng, n_items=200, n_models=5, evaluators=evaluators)
    matrix = score_matrix(log, task="synthetic", calibration=calibration)
    pool = make_pool(matrix, committee=committee, seed=seed)
    output, node, honest = sample_rounds(pool, n_rounds=n_rounds, committee=committee, seed=seed)
    bad = np.zeros(n, dtype=bool)
    bad[malicious_nodes(pool, matrix, seed=seed)[: round(share * n)]] = True
    scores = ATTACKS[attack](honest, mark_nodes(bad, node), stream(seed, 0, "attack"))
    return scores, node, matrix.truth[output], n


def audited_rounds(truth, share, seed=0):
    return np.where(stream(seed, 0, "audit").random(len(truth)) < share, truth, np.nan)


def play(rule, scores, node, n, truth, share=0.02):
    audit = audited_rounds(truth, share) if rule == "audited" else None
    return run_trust(scores, node, n, rule=rule, audit=audit).consensus


def test_before_it_knows_anything_the_consensus_is_the_mean():
    scores, node, truth, n = reports()
    np.testing.assert_allclose(play("calibrated", scores, node, n, truth)[:50], mean(scores)[:50], atol=1e-4)
    audit = audited_rounds(truth, 0.02)
    first = int(np.flatnonzero(~np.isnan(audit))[0])
    run = run_trust(scores, node, n, rule="audited", audit=audit)
    np.testing.assert_allclose(run.consensus[: first + 1], mean(scores)[: first + 1], atol=1e-12)
    assert abs(run.consensus - mean(scores)).max() > 0.1
    never = run_trust(scores, node, n, rule="audited").consensus
    np.testing.assert_allclose(never, mean(scores), atol=1e-12)


@pytest.mark.parametrize("rule", LEARNING)
def test_consensus_stays_on_the_scale_and_ignores_the_names_of_nodes(rule):
    scores, node, truth, n = reports(share=0.3, attack="noise")
    consensus = play(rule, scores, node, n, truth)
    assert consensus.min() >= 0
    assert consensus.max() <= 10
    renamed = np.random.default_rng(1).permutation(n)
    np.testing.assert_allclose(play(rule, scores, renamed[node], n, truth), consensus, atol=1e-9)


def test_nodes_that_all_say_the_same_are_alike():
    """What rounding leaves of a constant hangs on the order of nodes, and must not become a weight."""
    rng = np.random.default_rng(0)
    node = np.array([rng.permutation(5)[:2] for _ in range(2000)])
    for score in (10.0, 1 / 3):
        final = run_trust(np.full(node.shape, score), node, 5, rule="calibrated").final
        np.testing.assert_allclose(final, final[0], rtol=1e-3)


@pytest.mark.parametrize("rule", [*LEARNING, "recentred", "ema"])
def test_rounds_may_come_in_pieces(rule):
    scores, node, truth, n = reports(n_rounds=500)
    audit = audited_rounds(truth, 0.1) if rule == "audited" else np.full(len(truth), np.nan)
    whole, parts = (TRUST_RULES[rule].start(n) for _ in range(2))
    expected = TRUST_RULES[rule].advance(whole, scores, node.astype(np.int32), audit)[0]
    found = [
        TRUST_RULES[rule].advance(parts, scores[now], node[now].astype(np.int32), audit[now])[0]
        for now in (slice(0, 33), slice(33, 34), slice(34, 500))
    ]
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_calibrated_learns_bias_gain_and_noise():
    """Up to the common level and scale, which no consensus can know."""
    rng = np.random.default_rng(5)
    n, rounds = 12, 20_000
    bias, gain, noise = rng.normal(0, 0.8, n), rng.uniform(0.6, 1.1, n), rng.uniform(0.3, 1.5, n)
    truth = rng.normal(5, 1.2, rounds)
    node = np.argsort(rng.random((rounds, n)), axis=1)[:, :5]
    scores = 5 + bias[node] + gain[node] * (truth[:, None] - 5) + noise[node] * rng.standard_normal(node.shape)
    state = TRUST_RULES["calibrated"].start(n)
    TRUST_RULES["calibrated"].advance(state, scores, node.astype(np.int32), np.full(rounds, np.nan))
    level = state.bias + state.gain * state.world[0]
    assert np.corrcoef(level, 5 + bias)[0, 1] > 0.99
    assert np.corrcoef(state.gain, gain)[0, 1] > 0.97
    np.testing.assert_allclose(np.sqrt(state.noise), np.maximum(noise, np.sqrt(0.25 * np.median(noise**2))), rtol=0.15)


@pytest.mark.parametrize(("committee", "most"), [(3, 0.85), (5, 0.80), (9, 0.80)])
@pytest.mark.parametrize("calibration", ["minmax", "rank"])
def test_calibrated_against_the_better_of_mean_and_median(committee, most, calibration):
    """RMSE over the smaller of the two, over worlds, shares and the attacks of the paper, from the first round."""
    ratios = []
    for seed, share in itertools.product(range(8), (0.1, 0.3)):
        for attack in ("noise", "boost", "sabotage", "intermittent"):
            world = {"committee": committee, "calibration": calibration, "seed": seed, "clusters": seed % 2 == 1}
            scores, node, truth, n = reports(n_rounds=20_000, share=share, attack=attack, **world)
            best = min(rmse(mean(scores), truth), rmse(median(scores), truth))
            ratios.append(rmse(play("calibrated", scores, node, n, truth), truth) / best)
    assert np.mean(ratios) <= most


def test_an_audit_is_read_only_after_its_round():
    scores, node, truth, n = reports(n_rounds=300)
    audit = audited_rounds(truth, 0.1)
    at = int(np.flatnonzero(~np.isnan(audit))[8])
    other = audit.copy()
    other[at] = 10 - audit[at]
    one, two = (run_trust(scores, node, n, rule="audited", audit=a).consensus for a in (audit, other))
    np.testing.assert_array_equal(one[: at + 1], two[: at + 1])
    assert (one[at + 1 :] != two[at + 1 :]).any()


@pytest.mark.parametrize(("committee", "share"), [(3, 0.3), (5, 0.1), (4, 1.0)])
def test_the_audited_rule_is_its_second_reading(committee, share):
    """Of reports that differ in level, spread and skill, one node turned round."""
    rng = np.random.default_rng(committee)
    n_rounds, n_nodes = 150, 8
    truth = rng.uniform(1, 9, n_rounds)
    node = np.argsort(rng.random((n_rounds, n_nodes)), axis=1)[:, :committee]
    noise = np.linspace(0.2, 4.0, n_nodes)[node] * rng.standard_normal(node.shape)
    scores = np.clip(truth[:, None] + np.linspace(-2, 2, n_nodes)[node] + noise, 0, 10)
    scores = np.where(node == 1, 10 - scores, scores)
    audit = np.where(rng.random(n_rounds) < share, truth, np.nan)
    options = {"memory": 60.0, "prior": 5.0, "blend": 10.0}
    found = run_trust(scores, node, n_nodes, rule="audited", audit=audit, **options)
    expected = reference.audited(scores.tolist(), node.tolist(), audit.tolist(), **options)
    np.testing.assert_allclose(found.consensus, expected, atol=1e-9)


def test_audits_survive_a_lying_majority_and_consensus_does_not():
    scores, node, truth, n = reports(n_rounds=10_000, share=0.7, attack="inverse", seed=3)
    assert pearson(mean(scores), truth) < 0
    assert pearson(play("calibrated", scores, node, n, truth), truth) < 0
    assert pearson(play("audited", scores, node, n, truth), truth) > 0.5


def test_audits_find_the_accurate_among_those_who_agree():
    """Half of the evaluators share their errors; agreement looks like skill to all but the audits."""
    rng = np.random.default_rng(2)
    cluster = {f"c{k}": {"noise": 0.2, "cluster": "c", "cluster_noise": 2.5} for k in range(6)}
    alone = {f"a{k}": {"noise": 1.5} for k in range(6)}
    log = synthetic_log(rng, n_items=300, n_models=5, evaluators=cluster | alone)
    matrix = score_matrix(log, task="synthetic")
    pool = make_pool(matrix, committee=5)
    output, node, scores = sample_rounds(pool, n_rounds=10_000, committee=5)
    truth = matrix.truth[output]
    found = {rule: pearson(play(rule, scores, node, 12, truth), truth) for rule in LEARNING}
    assert found["audited"] > pearson(mean(scores), truth) > found["calibrated"]


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        ("calibrated", {"memory": 0}, "memory"),
        ("calibrated", {"memory": 1}, "memory"),
        ("calibrated", {"prior": -1}, "prior"),
        ("calibrated", {"refit": 2.5}, "refit"),
        ("audited", {"audit_share": 1.5}, "audit_share"),
        ("audited", {"memory": 5}, "memory"),
        ("audited", {"blend": float("nan")}, "blend"),
    ],
)
def test_bad_options_are_named(rule, options, said):
    with pytest.raises(ValueError, match=said):
        TRUST_RULES[rule].start(5, **options)


@pytest.mark.parametrize("rule", LEARNING)
@pytest.mark.parametrize("committee", [1, 2])
def test_small_committees_and_tied_scores_give_numbers(rule, committee):
    scores, node, truth, n = reports(committee=committee, n_rounds=2000)
    for tied in (scores, np.zeros_like(scores), np.full_like(scores, 10.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            consensus = play(rule, tied, node, n, truth)
        assert np.isfinite(consensus).all()
        assert ((consensus >= 0) & (consensus <= 10)).all()
