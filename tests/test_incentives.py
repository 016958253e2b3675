"""Pay rules and single deviations: hand-worked rounds, the engine's numbers, propriety and seeds."""

import numpy as np
import pytest
from generators import dense_log, scores
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from poq import incentives, simulate
from poq.engine import n_malicious
from poq.rewards import deviation
from poq.scorelog import score_matrix
from poq.synthetic import synthetic_log
from poq.trust import run_trust

N_ROUNDS, TRIAL, SEED = 400, 1, 5


@pytest.fixture(scope="module")
def matrix():
    return score_matrix(dense_log(), task="qa")


@pytest.fixture(scope="module")
def rounds(matrix):
    return incentives.draw_rounds(matrix, committee=5, n_rounds=N_ROUNDS, seed=SEED, trial=TRIAL)


def first_liars(rounds, share):
    liars = np.zeros(len(rounds.order), dtype=bool)
    liars[rounds.order[: n_malicious(share, len(liars))]] = True
    return liars


def by_hand(honest, *, truth, node=None, prior=5.0):
    """Rounds with these scores, without a log."""
    honest = np.array(honest, dtype=float)
    node = np.tile(np.arange(honest.shape[1]), (len(honest), 1)) if node is None else np.array(node)
    zeros = np.zeros(len(honest), dtype=int)
    size = node.max() + 1
    truth = np.array(truth, dtype=float)
    return incentives.Rounds(
        zeros,
        zeros,
        truth,
        np.ones(len(honest)),
        node,
        honest,
        honest,
        np.arange(size),
        np.zeros(size),
        np.ones(size),
        prior,
        5.0,
    )


def test_the_four_pays_of_a_round_by_hand():
    """Scores 2, 4, 9: mean 5, the others' means 6.5, 5.5, 3; the truth is 4."""
    rounds = by_hand([[2, 4, 9]], truth=[4])
    paid = incentives.pay(rounds, incentives.play(rounds, [False] * 3, "truthful"), alpha=1.0)
    assert paid["closeness"] == pytest.approx(np.array([[0.7, 0.9, 0.6]]))
    assert paid["leave_one_out"] == pytest.approx(np.array([[0.55, 0.85, 0.4]]))
    assert paid["trust_scaled"] == pytest.approx(paid["closeness"])  # in the first round all are trusted alike
    assert paid["audit_scored"] == pytest.approx(np.array([[0.96, 1.0, 0.75]]))


def test_trust_scales_pay_by_hand():
    found = incentives.trust_scaled_reward(np.array([[4.0, 6.0]]), np.array([5.0]), np.array([[1.0, 3.0]]), alpha=0.5)
    assert found == pytest.approx(np.array([[0.5 * 0.9 * 0.5, 0.5 * 0.9 * 1.5]]))


def test_an_audit_fines_by_hand():
    """An error of 2 points costs 0.04 alpha on average, so 2 alpha when one round of fifty is audited."""
    found = incentives.audit_reward([[6.0], [6.0]], np.array([4.0, 4.0]), [False, True], share=0.02, alpha=0.7)
    assert found == pytest.approx(np.array([[0.7], [0.7 * (1 - 2.0)]]))
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share"):
            incentives.audit_reward([[6.0]], np.array([4.0]), [True], share=share)


def test_audits_pay_the_proper_score_on_average(rounds):
    for share in (0.02, 0.3, 1.0):
        audited = np.random.default_rng(1).random((4000, N_ROUNDS)) < share
        paid = [incentives.audit_reward(rounds.honest, rounds.truth, lot, share=share).mean() for lot in audited]
        expected = 0.7 * incentives.proper_score(rounds.honest, rounds.truth[:, None]).mean()
        error = np.std(paid, ddof=1) / np.sqrt(len(paid))
        assert abs(np.mean(paid) - expected) <= 4 * error + 1e-12


@given(hnp.arrays(np.float64, 6, elements=scores), hnp.arrays(np.float64, 6, elements=st.floats(0.01, 1)), scores)
def test_the_audit_score_is_strictly_proper_for_the_mean(values, weights, report):
    """Against any belief over six values the mean earns most, and any other report less by its squared distance."""
    weights = weights / weights.sum()
    mean = weights @ values
    best = weights @ incentives.proper_score(mean, values)
    other = weights @ incentives.proper_score(report, values)
    assert best - other == pytest.approx(((report - mean) / 10) ** 2, abs=1e-12)
    assume(abs(report - mean) > 1e-3)
    assert other < best


def test_closeness_is_not_proper():
    """A belief of 0, 0 and 9 about the others pays 0 best, the median, and not the mean 3."""
    belief = np.array([0.0, 0.0, 9.0])
    paid = [1 - deviation(np.full(3, report), belief[:, None]).diagonal().mean() for report in (0.0, 3.0)]
    assert paid[0] > paid[1]


@pytest.mark.parametrize("reference", ["consensus", "leave_one_out"])
@pytest.mark.parametrize("rule", ["mean", "median", "huber", "paper", "calibrated", "audited"])
@pytest.mark.parametrize("strategy", ["lazy", "shaded", "copy_hidden", "lift", "constant"])
def test_pay_is_the_engines(matrix, rounds, rule, reference, strategy):
    lag = 7
    attack, options = {
        "lazy": ("lazy", {"value": rounds.prior}),
        "shaded": ("affine", {"gain": 0.5, "shift": 0.5 * (rounds.prior - 5)}),
        "copy_hidden": ("copycat", {"lag": lag, "value": rounds.prior}),
        "lift": ("favour", {"by": 3.0, "partner": 2}),
        "constant": ("constant", {"value": 10.0}),
    }[strategy]
    scenario = simulate.Scenario(
        task="qa",
        rule=rule,
        attack=attack,
        attack_options=options,
        malicious_share=0.4,
        committee=5,
        n_rounds=N_ROUNDS,
        pay_reference=reference,
        evaluator_beta=0.0,
    )
    row = simulate.run(dense_log(), scenario, trials=TRIAL + 1, seed=SEED, progress=False).iloc[TRIAL]
    liars = first_liars(rounds, 0.4)
    played = incentives.play(rounds, liars, strategy, rule=rule, lag=lag, partner=2)
    name = "closeness" if reference == "consensus" else reference
    paid, hit = incentives.pay(rounds, played)[name], liars[rounds.node]
    assert paid[hit].mean() == pytest.approx(row["evaluator_reward_malicious"], abs=1e-9)
    assert paid[~hit].mean() == pytest.approx(row["evaluator_reward_honest"], abs=1e-9)
    assert np.sqrt(np.mean((played.consensus - rounds.truth) ** 2)) == pytest.approx(row["rmse"], abs=1e-9)


@pytest.mark.parametrize("rule", ["mean", "median"])
@pytest.mark.parametrize("population", ["truthful", "lazy", "copy_open", "lift"])
@pytest.mark.parametrize("strategy", incentives.STRATEGIES)
def test_moving_one_member_is_a_run_of_its_own(rounds, rule, population, strategy):
    """What deviation_pay says of all members at once is what each node earns in a run in which it alone deviates."""
    liars = first_liars(rounds, 0.4)
    options = {"rule": rule, "lag": 9, "partner": 1, "by": 2.0}
    played = incentives.play(rounds, liars, population, **options)
    found = incentives.deviation_pay(rounds, played, strategy, **options)
    for node in rounds.order[[0, -1]]:
        run = incentives.play(rounds, liars, population, deviant=int(node), deviation_to=strategy, **options)
        expected = incentives.pay(rounds, run)
        sat = rounds.node == node
        for name in ("closeness", "leave_one_out", "audit_scored"):
            # A hidden copy in the run also sees what the node's own earlier copies did to the consensus.
            near = 0.02 if strategy == "copy_hidden" else 1e-9
            assert found[name][sat].mean() == pytest.approx(expected[name][sat].mean(), abs=near), name
        trusted = found["trust_scaled"][sat].mean()
        assert trusted == pytest.approx(expected["trust_scaled"][sat].mean(), abs=0.02)


def test_playing_ones_own_part_changes_nothing(rounds):
    liars = first_liars(rounds, 0.4)
    hit = liars[rounds.node]
    for population in incentives.STRATEGIES:
        played = incentives.play(rounds, liars, population, rule="median")
        paid = incentives.pay(rounds, played)
        for strategy, group in ((population, hit), ("truthful", ~hit)):
            found = incentives.deviation_pay(rounds, played, strategy, rule="median")
            for name in incentives.PAY_RULES:
                assert found[name][group] == pytest.approx(paid[name][group], abs=1e-12)


def test_trust_beside_a_rule_is_eq_21(rounds):
    """Where the consensus is that of Eq. 21 itself, the weights beside it are the rule's."""
    run = run_trust(rounds.honest, rounds.node, len(rounds.order), rule="paper")
    beside = incentives.eq21_beside(deviation(rounds.honest, run.consensus), rounds.node, len(rounds.order))
    assert np.array_equal(beside, run.weights)


def test_copies_by_hand():
    reported = np.array([[1.0, 2.0, 6.0], [1.0, 2.0, 6.0]])
    copying = np.array([[True, False, False], [True, True, True]])
    assert incentives.fill_copies(reported, copying, 5.0).tolist() == [[4.0, 2.0, 6.0], [5.0, 5.0, 5.0]]


def test_strategies_by_hand():
    rounds = by_hand([[2, 9]], truth=[4], prior=6.0)
    said = {name: incentives.reports(rounds, name, by=2.0).tolist() for name in incentives.STRATEGIES}
    assert said == {
        "truthful": [[2.0, 9.0]],
        "belief": [[2.0, 9.0]],
        "lazy": [[6.0, 6.0]],
        "lazy_truth": [[5.0, 5.0]],
        "shaded": [[4.0, 7.5]],
        "copy_open": [[6.0, 6.0]],
        "copy_hidden": [[6.0, 6.0]],
        "lift": [[4.0, 10.0]],
        "constant": [[10.0, 10.0]],
    }
    assert incentives.reports(rounds, "lift", partner=1).tolist() == [[2.0, 9.0]]


def test_a_belief_is_the_best_linear_estimate():
    """Of a judge with gain 2, bias and little noise the estimate undoes both; of one without signal it is the mean."""
    traits = {"good": {"gain": 0.5, "bias": 2, "noise": 0.05}, "blind": {"gain": 0, "noise": 1}, "other": {}}
    log = synthetic_log(np.random.default_rng(0), n_items=400, n_models=2, evaluators=traits, truth_sd=1.5)
    matrix = score_matrix(log, task="synthetic", calibration=(0.0, 10.0), truth_range=(0.0, 10.0))
    rounds = incentives.draw_rounds(matrix, committee=3, n_rounds=300, seed=0)
    for name, spread in (("good", 0.12), ("blind", None)):
        mine = rounds.node == matrix.evaluators.index(name)
        error = rounds.belief[mine] - np.broadcast_to(rounds.truth[:, None], mine.shape)[mine]
        assert error.std() < spread if spread else np.ptp(rounds.belief[mine]) < 1.0
    better = incentives.proper_score(rounds.belief, rounds.truth[:, None]).mean()
    assert better > incentives.proper_score(rounds.honest, rounds.truth[:, None]).mean()


def test_under_audits_nothing_beats_the_belief_but_the_knowledge_of_others(matrix):
    table = incentives.deviations(matrix, rules=["mean"], states={"truthful": [0.0]}, n_rounds=2000, trials=3, seed=2)
    gain = incentives.gains(table, base="belief")
    gain = gain[gain["pay_rule"] == "audit_scored"].groupby("strategy")["gain"].mean()
    assert (gain.drop(["belief", "copy_open"]) < 0).all()
    assert gain["copy_open"] > 0  # these evaluators are good enough that the mean of four beats any of them


def test_lying_pays_against_equals_under_closeness(matrix):
    """Where all others report the same constant, to do so too earns the most that closeness can pay."""
    table = incentives.deviations(
        matrix, rules=["mean", "calibrated"], states={"constant": [1.0]}, n_rounds=200, trials=1, seed=2
    )
    for _, part in table.groupby("rule"):
        best = part.set_index("strategy")
        assert best.loc["constant", "closeness"] == pytest.approx(0.7, abs=0.02)
        assert best["closeness"].idxmax() in ("constant", "copy_open")
        assert best.loc["constant", "audit_scored"] < best.loc["truthful", "audit_scored"]


def test_the_first_trials_do_not_depend_on_the_others(matrix):
    options = {"states": {"truthful": [0.0], "lift": [0.5]}, "n_rounds": 150, "seed": 0, "partner": 0}
    strategies = ["truthful", "lift"]
    both = incentives.deviations(matrix, rules=["median", "calibrated"], trials=3, **options)
    one = incentives.deviations(matrix, rules=["calibrated"], strategies=strategies, trials=2, **options)
    same = both[(both["rule"] == "calibrated") & (both["trial"] < 2) & both["strategy"].isin(strategies)]
    assert one.equals(same.reset_index(drop=True))
    other = incentives.deviations(matrix, rules=["calibrated"], trials=2, **{**options, "seed": 1})
    assert not other["closeness"].equals(both[(both["rule"] == "calibrated") & (both["trial"] < 2)]["closeness"])


def test_inputs_are_left_alone(rounds):
    copies = [np.array(field) for field in rounds]
    for strategy in incentives.STRATEGIES:
        incentives.play(rounds, first_liars(rounds, 0.5), strategy, rule="calibrated")
        played = incentives.play(rounds, first_liars(rounds, 0.5), strategy)
        incentives.deviation_pay(rounds, played, "copy_open", rule="mean")
    for before, after in zip(copies, rounds):
        assert np.array_equal(before, after)


def test_gains_by_hand():
    table = incentives.pd.DataFrame(
        {
            "trial": 0,
            "rule": "mean",
            "population": "lazy",
            "share": 0.5,
            "strategy": ["truthful", "lazy"],
            **{name: [0.4, 0.3] for name in incentives.PAY_RULES},
            "saved": [0.0, 0.25],
        }
    )
    gain = incentives.gains(table)
    lazy = gain[(gain["strategy"] == "lazy") & (gain["pay_rule"] == "closeness")].iloc[0]
    assert (lazy["gain"], lazy["gain_saved"]) == pytest.approx((-0.1, 0.15))
    assert (gain[gain["strategy"] == "truthful"][["gain", "gain_saved"]] == 0).all(axis=None)


def test_a_crossing_by_hand():
    assert incentives.crossing([0, 0.2, 0.4], [-1, -0.5, 0.5]) == pytest.approx(0.3)
    assert incentives.crossing([0.1, 0.2], [0.5, -1]) == 0.1
    assert incentives.crossing([0, 1], [-1, 0]) == np.inf
    value, low, high = incentives.crossing_interval([0, 1], [[-1, 1], [-1, 3]], n_boot=200, seed=0)
    assert value == pytest.approx(1 / 3)
    assert (low, high) == (0.25, 0.5)


def test_bribes_by_hand(matrix):
    """One lifted seat of five moves the mean by a fifth of the lift, and the partner's pay with it."""
    log = synthetic_log(np.random.default_rng(1), n_items=60, n_models=2, evaluators=8, truth_sd=0.5, model_sd=0.2)
    calm = score_matrix(log, task="synthetic", calibration=(0.0, 10.0), truth_range=(0.0, 10.0))
    table = incentives.bribes(calm, rules=["mean"], shares=[0.0, 1.0], lifts=[0.5], n_rounds=800, trials=1, seed=0)
    one, all_ = table.iloc[0], table.iloc[1]
    assert one["partner"] == pytest.approx(0.7 * one["seats"] * 0.5 / 5 / 10, rel=1e-6)
    assert (all_["seats"], all_["partner"]) == (5, pytest.approx(0.035))
    assert all_["closeness"] == pytest.approx(0, abs=1e-9)  # who lifts with everybody stays as close
    assert one["closeness"] > 0
    # Unbiased nodes lose alpha (b / 10)^2 each under the proper score, on average.
    assert all_["audit_scored"] == pytest.approx(5 * 0.7 * 0.0025, rel=0.35)
    estimates = incentives.bribes(
        calm, rules=["mean"], shares=[1.0], lifts=[0.5], n_rounds=800, trials=1, seed=0, base="belief"
    ).iloc[0]
    assert estimates["partner"] == pytest.approx(0.035)
    assert estimates["audit_scored"] == pytest.approx(5 * 0.7 * 0.0025, rel=0.15)
    with pytest.raises(ValueError, match="unknown base 'lazy'"):
        incentives.bribes(calm, rules=["mean"], shares=[1.0], lifts=[0.5], trials=1, seed=0, base="lazy")


def test_pay_ranks_follow_the_majority_under_closeness_and_the_truth_under_audits():
    traits = {f"wrong-{n}": {"gain": -0.6 - 0.02 * n, "noise": 0.5} for n in range(7)}
    traits |= {f"right-{n}": {"gain": 1.0, "noise": 0.4 + 0.3 * n} for n in range(4)}
    log = synthetic_log(np.random.default_rng(4), n_items=200, n_models=3, evaluators=traits)
    found = incentives.pay_ranks(score_matrix(log, task="synthetic"), trials=2, n_rounds=1500, seed=0)
    plain = found[(found["reports"] == "truthful") & (found["audit_share"] != 0.02)]
    mean = plain.groupby("pay_rule")["spearman"].mean()
    assert mean["closeness"] < -0.2
    assert mean["leave_one_out"] < -0.2
    assert mean["audit_scored"] > 0.6


def test_a_mask_of_another_length_is_refused(rounds):
    with pytest.raises(ValueError, match=r"liars must be \(N,\)"):
        incentives.play(rounds, np.ones(1, dtype=bool), "constant")


def test_names_are_checked_before_any_work(matrix):
    with pytest.raises(ValueError, match="unknown strategy 'honest'"):
        incentives.deviations(matrix, rules=["mean"], states={"honest": [0.1]}, trials=1, seed=0)
    with pytest.raises(ValueError, match="unknown rule 'mode'"):
        incentives.bribes(matrix, rules=["mode"], shares=[0.1], lifts=[1.0], trials=1, seed=0)
    with pytest.raises(ValueError, match="committee"):
        incentives.deviations(matrix, rules=["mean"], states={"lazy": [0.1]}, trials=1, seed=0, committee=1)
