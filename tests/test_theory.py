"""Theory against simulation, within the Monte Carlo margin."""

import itertools
from functools import partial

import numpy as np
import pytest
from scipy import stats

from poq import simulate, theory
from poq.aggregators import AGGREGATORS, leave_one_out
from poq.rewards import deviation
from poq.scorelog import score_matrix
from poq.synthetic import synthetic_log
from poq.trust import TRUST_RULES, run_trust


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


def test_a_shift_downwards_mirrors_one_upwards():
    for moments, committee in ((theory.mean_moments, 4), (theory.median_moments, 5)):
        up, down = moments(committee, 12.0), moments(committee, -12.0)
        np.testing.assert_allclose(down, up * [-1, 1], atol=1e-3)
        assert up[-1, 0] == pytest.approx(12.0, abs=1e-3)


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


def test_capture_by_hand_and_by_draws():
    """Three of five nodes malicious, committee of three: 1 - P(0) - P(1) = 1 - 0 - 3 / 10."""
    assert theory.capture_probability(3, 3, 5) == pytest.approx(0.7)
    assert theory.capture_probability(3, 3, 5, seats=3) == pytest.approx(0.1)
    assert theory.capture_probability(5, 0, 9) == 0
    order = np.random.default_rng(1).permuted(np.tile(np.arange(20), (100_000, 1)), axis=1)[:, :7]
    for seats in (1, 4, 6):
        found = ((order < 6).sum(axis=1) >= seats).mean()
        assert found == pytest.approx(theory.capture_probability(7, 6, 20, seats=seats), abs=0.006)
    assert theory.capture_probability(7, 6, 20) == pytest.approx(theory.seats_held(7, 6, 20)[4:].sum())


@pytest.mark.parametrize("risk", [0.0, 0.01, 0.3, 1.0])
def test_the_largest_safe_pool_is_safe_and_one_more_node_is_not(risk):
    bad = theory.largest_safe_pool(5, 30, risk=risk)
    assert theory.capture_probability(5, bad, 30) <= risk
    assert bad == 30 or theory.capture_probability(5, bad + 1, 30) > risk


def _brute_force(rule, honest, held, steps=11):
    """Furthest consensus down and up over all malicious reports on a grid."""
    grid = np.array(list(itertools.combinations_with_replacement(np.linspace(0, 10, steps), held)))
    moved = rule(np.column_stack([np.tile(honest, (len(grid), 1)), grid])) - rule(np.asarray(honest))
    return moved.min(), moved.max()


@pytest.mark.parametrize("rule", theory.MONOTONE)
@pytest.mark.parametrize("committee", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("score", [0.0, 3.0, 5.0, 10.0])
def test_worst_bias_on_agreeing_members_is_what_brute_force_finds(rule, committee, score):
    for held in range(1, committee):
        down, up = _brute_force(AGGREGATORS[rule], np.full(committee - held, score), held)
        assert theory.unanimous_bias(rule, committee, held, score) == pytest.approx(up, abs=1e-9)
        assert theory.unanimous_bias(rule, committee, held, score, up=False) == pytest.approx(down, abs=1e-9)


def test_worst_bias_with_other_options():
    for cut, kappa in itertools.product((0.0, 0.3, 0.45), (0.3, 0.8)):
        for rule, options in (("trimmed_mean", {"cut": cut}), ("quantile_clip", {"kappa": kappa})):
            for held in range(1, 7):
                down, up = _brute_force(partial(AGGREGATORS[rule], **options), np.full(7 - held, 4.0), held, 5)
                for found, side in ((up, True), (down, False)):
                    assert theory.unanimous_bias(rule, 7, held, 4.0, up=side, **options) == pytest.approx(found)


def test_breakdown_by_hand():
    """Of five seats, one breaks the mean, two the trimmed mean that cuts one, three the median; the clip only up."""
    assert [theory.breakdown_seats(rule, 5) for rule in theory.MONOTONE] == [1, 3, 2, 2, 3]
    assert [theory.breakdown_seats(rule, 5, up=False) for rule in theory.MONOTONE] == [1, 3, 2, 2, 1]
    assert theory.breakdown_seats("median", 4) == 2


@pytest.mark.parametrize("rule", list(AGGREGATORS))
def test_worst_bias_on_any_honest_scores(rule):
    rng = np.random.default_rng(3)
    for held in (1, 2, 3):
        for honest in (rng.uniform(0, 10, 3), np.round(rng.uniform(3, 6, 5))):
            known = rule in theory.MONOTONE
            found = theory.worst_bias(AGGREGATORS[rule], honest, held, monotone=known, steps=51)
            brute = _brute_force(AGGREGATORS[rule], honest, held)
            if known:
                assert found == pytest.approx(brute, abs=1e-9)
            else:  # the grid of the search holds that of the brute force, but it moves one seat at a time
                assert found[0] <= brute[0] + 0.1
                assert found[1] >= brute[1] - 0.1


@pytest.mark.parametrize("rule", theory.MONOTONE)
@pytest.mark.parametrize("held", [1, 2, 3])
def test_the_widest_bias_is_what_brute_force_over_honest_scores_finds(rule, held):
    function, committee = AGGREGATORS[rule], 5
    honest = np.array(list(itertools.combinations_with_replacement(np.linspace(0, 10, 6), committee - held)))
    for up, end in ((True, 10.0), (False, 0.0)):
        moved = function(np.column_stack([honest, np.full((len(honest), held), end)])) - function(honest)
        furthest = moved.max() if up else moved.min()
        assert theory.widest_bias(function, committee, held, up=up) == pytest.approx(furthest, abs=1e-9)
        assert abs(furthest) >= abs(theory.unanimous_bias(rule, committee, held, 10.0 - end, up=up)) - 1e-9


def test_two_seats_of_five_turn_the_median_of_a_divided_committee():
    """Of the honest scores 0, 0, 10 the median is 0; two malicious tens make it 10."""
    assert theory.widest_bias(AGGREGATORS["median"], 5, 2) == 10
    assert theory.widest_bias(AGGREGATORS["mean"], 5, 2) == pytest.approx(4)
    assert theory.widest_bias(AGGREGATORS["mean"], 5, 0) == 0
    with pytest.raises(ValueError, match="held"):
        theory.widest_bias(AGGREGATORS["mean"], 5, 5)


def test_worst_bias_without_malicious_seats_and_without_a_closed_form():
    assert theory.worst_bias(np.mean, [1.0, 2.0], 0, monotone=True) == (0.0, 0.0)
    with pytest.raises(ValueError, match="huber"):
        theory.unanimous_bias("huber", 5, 1, 5.0)
    with pytest.raises(ValueError, match="held"):
        theory.unanimous_bias("mean", 5, 6, 5.0)


@pytest.mark.parametrize("rule", [*AGGREGATORS, *TRUST_RULES])
def test_no_rule_on_reports_alone_is_right_in_both_mirrored_worlds(rule):
    """Audits are what tells them apart; without them "audited" cannot either."""
    world = theory.mirrored_worlds(np.random.default_rng(5), n_outputs=400, n_nodes=9, aligned_share=5 / 9)
    other = theory.mirrored_worlds(np.random.default_rng(5), n_outputs=400, n_nodes=9, aligned_share=4 / 9)
    assert (world.aligned.sum(), other.aligned.sum()) == (5, 4)
    assert np.array_equal(world.mirrored, 10 - world.truth)
    assert np.corrcoef(world.reports[:, 0], world.truth)[0, 1] > 0.9
    assert np.corrcoef(world.reports[:, -1], world.mirrored)[0, 1] > 0.9
    if rule in AGGREGATORS:
        consensus = AGGREGATORS[rule](world.reports)
    else:
        consensus = run_trust(world.reports, np.tile(np.arange(9), (400, 1)), 9, rule=rule).consensus
    errors = [np.abs(consensus - truth).mean() for truth in (world.truth, world.mirrored)]
    assert max(errors) >= theory.mirror_bound(world.truth) - 1e-12
    assert sum(errors) >= 2 * theory.mirror_bound(world.truth) - 1e-12


def test_mirrored_worlds_have_the_same_reports():
    """With the roles of the nodes exchanged, the mirrored truth gives reports of the same distribution."""
    rng = np.random.default_rng(6)
    first = theory.mirrored_worlds(rng, n_outputs=60_000, n_nodes=3, aligned_share=2 / 3)
    second = theory.mirrored_worlds(rng, n_outputs=60_000, n_nodes=3, aligned_share=1 / 3)
    reports = second.reports[:, ::-1]  # its last two nodes are the mirrored ones
    assert first.reports.mean(axis=0) == pytest.approx(reports.mean(axis=0), abs=0.06)
    assert np.cov(first.reports.T) == pytest.approx(np.cov(reports.T), abs=0.2)
    for left, right in zip(first.reports.T, reports.T):
        assert stats.ks_2samp(left, right).statistic < 0.012
    assert stats.ks_2samp(first.reports.sum(axis=1), reports.sum(axis=1)).statistic < 0.012


@pytest.mark.parametrize("skill", [-0.5, 0.1, 0.3, 0.8])
@pytest.mark.parametrize("audits", [1, 3, 12])
def test_the_sign_after_some_audits(skill, audits):
    rng = np.random.default_rng(audits)
    q, e = rng.standard_normal((2, 100_000, audits))
    z = skill * q + np.sqrt(1 - skill**2) * e
    right = ((z * q).sum(axis=1) * np.sign(skill) > 0).mean()
    assert right == pytest.approx(theory.sign_known(skill, audits), abs=0.006)


def test_one_audit_by_hand():
    """The sign of one product of normals is right with probability 1/2 + asin(r) / pi."""
    skill = np.array([0.0, 0.2, 0.9])
    assert theory.sign_known(skill, 1) == pytest.approx(0.5 + np.arcsin(skill) / np.pi)


@pytest.mark.parametrize("skill", [0.7, -0.3, 0.05])
def test_audits_needed_are_the_fewest(skill):
    least = theory.audits_needed(skill, confidence=0.9)
    assert theory.sign_known(skill, least) >= 0.9
    assert least == 1 or theory.sign_known(skill, least - 1) < 0.9
    with pytest.raises(ValueError, match="skill"):
        theory.audits_needed(0.0)


@pytest.mark.parametrize("audits", [2, 10, 50])
def test_the_precision_after_some_audits(audits):
    estimate = (np.random.default_rng(audits).standard_normal((50_000, audits)) ** 2).mean(axis=1)
    found = ((estimate < 1.5) & (estimate > 1 / 1.5)).mean()
    assert found == pytest.approx(theory.precision_known(audits), abs=0.008)


@pytest.mark.parametrize("left_out", [False, True])
def test_what_a_lift_costs(left_out):
    scores = 5 + 0.8 * np.random.default_rng(8).standard_normal((200_000, 5))
    for lift in (0.3, 1.5):
        lifted = scores.copy()
        lifted[:, 0] += lift
        off = [
            np.abs(said - (leave_one_out(said) if left_out else said.mean(axis=1, keepdims=True)))[:, 0].mean()
            for said in (scores, lifted)
        ]
        expected = theory.lift_loss(lift, committee=5, sd=0.8, leave_one_out=left_out)
        assert off[1] - off[0] == pytest.approx(expected, abs=0.006)
    small = theory.lift_loss(np.array([0.01, 0.02]), committee=5, sd=0.8, leave_one_out=left_out)
    assert small[1] / small[0] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("left_out", [False, True])
def test_what_shading_does_to_the_distance(left_out):
    rng = np.random.default_rng(9)
    scores = rng.normal(5, 0.8, (200_000, 1)) + rng.normal(0, 1.1, (200_000, 5))
    weights = np.array([0.0, 0.35, 1.0])
    for weight in weights:
        said = scores.copy()
        said[:, 0] = 5 + weight * (said[:, 0] - 5)
        reference = leave_one_out(said)[:, 0] if left_out else said.mean(axis=1)
        expected = theory.shaded_deviation(weight, committee=5, signal=0.8, noise=1.1, leave_one_out=left_out)
        assert np.abs(said[:, 0] - reference).mean() == pytest.approx(expected, abs=0.006)
    fine = np.linspace(0, 1, 1001)
    found = fine[np.argmin(theory.shaded_deviation(fine, committee=5, signal=0.8, noise=1.1, leave_one_out=left_out))]
    assert found == pytest.approx(0.8**2 / (0.8**2 + 1.1**2), abs=0.001)


@pytest.mark.parametrize(("noise", "lazy_wins"), [(0.9, False), (1.1, True)])
def test_no_work_beats_ones_own_score_where_noise_exceeds_the_signal(noise, lazy_wins):
    lazy, own = theory.shaded_deviation([0, 1], committee=5, signal=1.0, noise=noise)
    assert (lazy < own) == lazy_wins
