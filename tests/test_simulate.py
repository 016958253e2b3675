"""Simulation: errors before any work, seeds, gaps in a log, theory against simulation, summaries."""

import math

import numpy as np
import pandas as pd
import pytest
from generators import dense_log, gappy_log
from scipy import stats

from poq import jobs, simulate
from poq.aggregators import AGGREGATORS
from poq.attacks import ATTACKS
from poq.scorelog import ScoreLogError
from poq.simulate import Scenario, compare, grid, summarize
from poq.synthetic import synthetic_log
from poq.trust import TRUST_RULES


def run(log, scenarios, *, trials=2, seed=0, **options):
    return simulate.run(log, scenarios, trials=trials, seed=seed, progress=False, **options)


def small(**fields):
    return Scenario(**{"task": "qa", "n_rounds": 300, "committee": 3, **fields})


@pytest.fixture(scope="module")
def log():
    return dense_log()


@pytest.fixture
def no_work(monkeypatch):
    """Playing a trial, or handing one over, fails."""

    def play(*args, **options):
        raise AssertionError("work began")

    monkeypatch.setattr(jobs, "play_group", play)
    monkeypatch.setattr(jobs, "execute", play)


# --- bad input: one clear error that names field and value, before any work ---

BAD_FIELDS = [
    ({"task": "zz"}, "task 'zz'"),
    ({"task": 3}, "task .*3"),
    ({"rule": "average"}, "rule 'average'"),
    ({"rule": None}, "rule .*None"),
    ({"rule": "weighted_mean"}, "rule 'weighted_mean'"),
    ({"attack": "flood"}, "attack 'flood'"),
    ({"malicious_share": 1.01}, r"malicious_share .*1\.01"),
    ({"malicious_share": -0.1}, r"malicious_share .*-0\.1"),
    ({"malicious_share": math.nan}, "malicious_share .*nan"),
    ({"malicious_share": "0.3"}, "malicious_share .*'0.3'"),
    ({"committee": 0}, "committee .*0"),
    ({"committee": 2.5}, r"committee .*2\.5"),
    ({"committee": True}, "committee .*True"),
    ({"committee": 10}, "committee 10 .*9 nodes.*'qa'"),
    ({"committee": 10**9}, "committee 1000000000"),
    ({"committee": 5, "n_nodes": 4}, "committee 5 .*4 nodes.*'qa'"),
    ({"n_nodes": 0}, "n_nodes .*0"),
    ({"n_rounds": 0}, "n_rounds .*0"),
    ({"n_rounds": 1e3}, r"n_rounds .*1000\.0"),
    ({"burn_in": -1}, "burn_in .*-1"),
    ({"burn_in": 300}, "burn_in .*300"),
    ({"jitter": -0.5}, r"jitter .*-0\.5"),
    ({"jitter": math.inf}, "jitter .*inf"),
    ({"min_available": 0}, "min_available .*0"),
    ({"min_available": 10}, "'qa' has 0 output.* 10 "),
    ({"malicious_nodes": "tallest"}, "malicious_nodes 'tallest'"),
    ({"pay_reference": "truth"}, "pay_reference 'truth'"),
    ({"pay_reference": "leave_one_out", "committee": 1}, "leave_one_out.*committee.*1"),
    ({"resample": "rows"}, "resample 'rows'"),
    ({"calibration": "zscore"}, "calibration 'zscore'"),
    ({"calibration": (0, 3)}, r"evaluator 'e\d'.*\[0, 3\]"),
    ({"truth_range": (0, 3)}, r"truth.*\[0, 3\]"),
    ({"truth_range": (3, 0)}, r"truth_range .*\(3, 0\)"),
    ({"inference_alpha": "much"}, "inference_alpha .*'much'"),
    ({"evaluator_beta": math.nan}, "evaluator_beta .*nan"),
    ({"rule_options": "cut"}, "rule_options .*'cut'"),
    ({"attack_options": 3}, "attack_options .*3"),
    ({"rule_options": {"cut": 0.1}}, "option 'cut' of 'mean'"),
    ({"attack_options": {"by": 1}}, "option 'by' of 'none'"),
    ({"rule": "trimmed_mean", "rule_options": {"cuts": 0.1}}, "option 'cuts' of 'trimmed_mean'.*cut"),
    ({"rule": "trimmed_mean", "rule_options": {"cut": 0.5}}, r"cut .*0\.5"),
    ({"rule": "trimmed_mean", "rule_options": {"cut": "few"}}, "cut.*few"),
    ({"rule": "paper", "rule_options": {"low": 2}}, "low.*2"),
    ({"rule": "paper", "rule_options": {"rate": "fast"}}, "rate.*fast"),
    ({"attack": "boost", "attack_options": {"by": -3}}, "by .*-3"),
    ({"attack": "boost", "attack_options": {"by": "3"}}, "by.*'3'"),
    ({"attack": "noise", "attack_options": {"sd": math.inf}}, "sd .*inf"),
    ({"attack": "intermittent", "attack_options": {"probability": 1.5}}, r"probability .*1\.5"),
    ({"attack": "boost", "attack_options": {"context": None}}, "option 'context'"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[str(fields) for fields, _ in BAD_FIELDS])
def test_bad_field(log, no_work, tmp_path, fields, message):
    """Also when good scenarios stand before it, and without a trace on disk."""
    with pytest.raises(ValueError, match=message) as caught:
        run(log, [small(), small(**fields)], out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unknown_field(log):
    with pytest.raises(ValueError, match=r"'committe'.*committee"):
        grid(task="qa", committe=[3])
    with pytest.raises(TypeError, match="committe"):
        Scenario("qa", committe=3)


@pytest.mark.parametrize(
    ("scenarios", "options", "message"),
    [
        ([], {}, "scenarios"),
        (None, {}, "scenarios must be a list .*NoneType"),
        (["mean"], {}, r"scenarios\[0\].*str"),
        ([small(), {"task": "qa"}], {}, r"scenarios\[1\].*dict"),
        (small(), {"trials": 0}, "trials .*0"),
        (small(), {"trials": 2.0}, r"trials .*2\.0"),
        (small(), {"seed": -1}, "seed .*-1"),
        (small(), {"seed": None}, "seed .*None"),
        (small(), {"seed": 1.5}, r"seed .*1\.5"),
        (small(), {"out": 3}, "out must be the path of a folder, not 3"),
    ],
)
def test_bad_call(log, no_work, scenarios, options, message):
    with pytest.raises(ValueError, match=message):
        run(log, scenarios, **options)


def test_bad_log(log, no_work):
    for bad, part in [(log.drop(columns="truth"), "truth"), (pd.concat([log, log[:1]]), "duplicate"), ("a.csv", "str")]:
        with pytest.raises(ScoreLogError, match=part):
            run(bad, small())


def rule_off_the_scale(scores):
    return np.mean(scores, axis=-1) * 2 - 5


def attack_rarely_off_the_scale(scores, malicious, rng):
    return np.where(malicious & (scores > 9) & (scores < 9.5), 11.0, scores)


def rule_sometimes_nan(scores):
    consensus = np.mean(scores, axis=-1)
    return np.where((consensus > 7) & (consensus < 7.1), np.nan, consensus)


def rule_of_the_wrong_axis(scores):
    return np.mean(scores, axis=0)


def rule_in_place(scores):
    scores.sort(axis=-1)
    return scores[..., 0]


def attack_off_the_scale(scores, malicious, rng):
    return np.where(malicious, scores + 5, scores)


def attack_in_place(scores, malicious, rng):
    scores[malicious] = 10
    return scores


def attack_on_honest_nodes(scores, malicious, rng):
    return np.full_like(scores, 5)


def attack_of_the_wrong_shape(scores, malicious, rng):
    return np.full(scores.shape[0], 5.0)


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (rule_off_the_scale, r"\[0, 10\]"),
        (rule_sometimes_nan, "NaN"),
        (rule_of_the_wrong_axis, "shape"),
        (rule_in_place, "read-only"),
        (attack_off_the_scale, r"\[0, 10\]"),
        (attack_rarely_off_the_scale, r"attack 'attack_rarely_off_the_scale' gives scores outside \[0, 10\]"),
        (attack_in_place, "read-only"),
        (attack_on_honest_nodes, "honest"),
        (attack_of_the_wrong_shape, "shape"),
    ],
)
@pytest.mark.parametrize("committee", [2, 3])
def test_faulty_rule_or_attack_of_ones_own(log, monkeypatch, function, part, committee):
    """A reader's own function is told what it did wrong; it neither crashes nor spoils the scores of others."""
    name = function.__name__
    kind = "attack" if name.startswith("attack") else "rule"
    monkeypatch.setitem(ATTACKS if kind == "attack" else AGGREGATORS, name, function)
    with pytest.raises((ValueError, RuntimeError), match=part) as caught:
        run(log, small(**{"rule": "median", kind: name}, malicious_share=0.3, n_rounds=3000, committee=committee))
    assert name in str(caught.value)


@pytest.mark.parametrize(("rule", "attack"), [("rule_sometimes_nan", "copycat"), ("mean", "attack_that_reacts_badly")])
def test_where_attackers_react_the_one_at_fault_is_named(log, monkeypatch, rule, attack):
    def attack_that_reacts_badly(scores, malicious, rng, *, history):
        return np.where(malicious & (scores > 9) & (scores < 9.5), np.nan, scores)

    monkeypatch.setitem(AGGREGATORS, "rule_sometimes_nan", rule_sometimes_nan)
    monkeypatch.setitem(ATTACKS, "attack_that_reacts_badly", attack_that_reacts_badly)
    fault = attack if rule == "mean" else rule
    with pytest.raises(RuntimeError, match=f"'{fault}' gives scores outside"):
        run(log, small(rule=rule, attack=attack, malicious_share=0.3, n_rounds=3000))


def test_own_rule_and_attack_work_at_once(log, monkeypatch):
    """One function and one line in a mapping; options are checked by their signature."""

    def midrange(scores, *, weight=0.5):
        return weight * scores.min(axis=-1) + (1 - weight) * scores.max(axis=-1)

    def flip(scores, malicious, rng):
        return np.where(malicious, 10 - scores, scores)

    monkeypatch.setitem(AGGREGATORS, "midrange", midrange)
    monkeypatch.setitem(ATTACKS, "flip", flip)
    scenarios = [small(rule="midrange", attack="flip", malicious_share=0.3, rule_options={"weight": w}) for w in (0, 1)]
    frame = run(log, scenarios)
    assert frame.loc[0, "bias"] > 1 > -1 > frame.loc[2, "bias"]
    with pytest.raises(ValueError, match=r"'weigth' of 'midrange'.*weight"):
        small(rule="midrange", rule_options={"weigth": 1})


# --- the frame ---


def test_frame_has_every_field_and_metric(log):
    scenarios = grid(
        task="qa",
        n_rounds=200,
        rule=["mean", "paper"],
        committee=(3, 4),
        rule_options={},
        calibration=["minmax", (-5, 15)],
        n_nodes=[None, 5],
        malicious_share=np.array([0.0, 0.2]),
        attack="boost",
    )
    frame = run(log, scenarios, trials=3)
    assert len(frame) == len(scenarios) * 3 == 2 * 2 * 2 * 2 * 2 * 3
    metrics = {"n_malicious", "outputs_dropped", "cost_known", "pearson", "spearman", "rmse", "mae", "bias"}
    metrics |= {"evaluator_reward_honest", "evaluator_reward_malicious", "evaluator_reward_sd"}
    metrics |= {"inference_reward", "inference_reward_sd"}
    assert {*Scenario.__dataclass_fields__, "trial", *metrics} <= set(frame.columns)
    assert frame["trial"].tolist() == [0, 1, 2] * len(scenarios)
    for number, scenario in enumerate(scenarios):
        row = frame.iloc[3 * number]
        assert (row["rule"], row["committee"]) == (scenario.rule, scenario.committee)
        assert row["malicious_share"] == scenario.malicious_share
        assert row["calibration"] == ("minmax" if scenario.calibration == "minmax" else "[-5, 15]")
        assert pd.isna(row["n_nodes"]) == (scenario.n_nodes is None)
    assert set(frame["rule_options"]) == {"{}"}
    assert (frame.loc[frame["malicious_share"] == 0, "n_malicious"] == 0).all()


def test_options_stand_as_json(log):
    scenario = small(rule="paper", rule_options={"rate": np.float64(0.2), "low": 0.5}, truth_range=[-1, 11])
    row = run(log, scenario, trials=1).iloc[0]
    assert row["rule_options"] == '{"low": 0.5, "rate": 0.2}'
    assert row["truth_range"] == "[-1, 11]"


def test_grid_order_and_single_values():
    scenarios = grid(task="qa", rule=["mean", "median"], committee=[3, 5], truth_range=(0, 1))
    assert [(s.rule, s.committee) for s in scenarios] == [("mean", 3), ("mean", 5), ("median", 3), ("median", 5)]
    assert {s.truth_range for s in scenarios} == {(0, 1)}
    assert grid(task="qa") == [Scenario("qa")]
    for several in (pd.Series(["qa", "b"]), pd.Index(["qa", "b"]), pd.Series(["qa", "b"], dtype="string").array):
        assert grid(task=several) == [Scenario("qa"), Scenario("b")]
    assert Scenario("qa", rule_options={}) == Scenario("qa")
    assert hash(Scenario("qa")) == hash(Scenario("qa"))


def test_nothing_given_is_changed(log):
    given = log.copy(deep=True)
    options = {"rate": 0.2}
    run(log, small(rule="paper", rule_options=options, attack="boost", malicious_share=0.3))
    pd.testing.assert_frame_equal(log, given)
    assert options == {"rate": 0.2}


# --- seeds ---

MIXED = [
    small(),
    small(rule="median", attack="noise", malicious_share=0.3, n_nodes=20),
    small(rule="paper", attack="intermittent", malicious_share=0.4, resample="items"),
    small(rule="trimmed_mean", attack="boost", malicious_share=0.4, n_nodes=5, burn_in=20),
    small(rule="audited", attack="copycat", malicious_share=0.2, committee=4),
]


def test_first_trials_of_a_longer_run(log):
    short, long = run(log, MIXED, trials=5), run(log, MIXED, trials=50)
    kept = long[long["trial"] < 5].reset_index(drop=True)
    pd.testing.assert_frame_equal(short, kept, check_exact=True)


def test_seed_zero_is_a_seed(log):
    zero, again, one = (run(log, MIXED, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(zero, again, check_exact=True)
    assert (zero["rmse"] != one["rmse"]).all()
    assert (zero["rmse"][::2].to_numpy() != zero["rmse"][1::2].to_numpy()).all()


def test_global_random_state_plays_no_part(log):
    np.random.seed(1)  # noqa: NPY002
    first = run(log, MIXED)
    np.random.seed(2)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    pd.testing.assert_frame_equal(first, run(log, MIXED), check_exact=True)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


SEEN = []


def spy(scores):
    """The mean, with a note of what it saw."""
    SEEN.append(np.array(scores))
    return np.mean(scores, axis=-1)


def reports_seen(log, **fields):
    """All reports that a rule saw, (R, K): honest ones and attacked ones, which come first, in turn, block by block."""
    scenario = small(rule="spy", **fields)
    SEEN.clear()
    run(log, scenario, trials=1)
    return np.concatenate(SEEN[1::2]), np.concatenate(SEEN[::2])


@pytest.fixture
def spied(monkeypatch):
    monkeypatch.setitem(AGGREGATORS, "spy", spy)


@pytest.mark.parametrize("n_nodes", [None, 20, 6])
def test_nested_across_committees_and_shares(log, spied, n_nodes):
    """The committee of 3 begins that of 5; who is malicious at 0.2 is so at 0.4; honest scores never move."""
    fields = {"attack": "boost", "attack_options": {"by": 2.5}, "n_nodes": n_nodes, "min_available": 5}
    honest, changed = {}, {}
    for committee in (3, 5):
        for share in (0.2, 0.4, 0.8):
            one, other = reports_seen(log, committee=committee, malicious_share=share, **fields)
            honest[committee, share], changed[committee, share] = one, one != other
    for committee in (3, 5):
        for share in (0.2, 0.4):
            np.testing.assert_array_equal(honest[committee, share], honest[5, 0.8][:, :committee])
            assert not (changed[committee, share] & ~changed[committee, 2 * share]).any()
            assert changed[committee, share].sum() < changed[committee, 2 * share].sum()
            np.testing.assert_array_equal(changed[3, share], changed[5, share][:, :3])


def test_strength_of_an_attack_uses_the_same_draws(log, spied):
    """Noise of double s.d. is the same noise, doubled: dose curves are smooth."""
    fields = dict(attack="noise", malicious_share=0.4)
    honest, weak = reports_seen(log, **fields, attack_options={"sd": 0.01})
    _, strong = reports_seen(log, **fields, attack_options={"sd": 0.02})
    inside = (honest > 1) & (honest < 9)
    np.testing.assert_allclose((strong - honest)[inside], 2 * (weak - honest)[inside], atol=1e-12)


def test_all_rules_see_the_same_rounds(log, monkeypatch):
    """What does not hang on the rule is the same in every row, and a rule under two names gets the same row twice."""
    monkeypatch.setitem(AGGREGATORS, "mean again", lambda scores: np.mean(scores, axis=-1))
    rules = ["mean", "mean again", "median", "paper", "audited"]
    frame = run(log, grid(task="qa", n_rounds=500, rule=rules, attack="noise", malicious_share=0.3, n_nodes=12))
    shared = ["n_malicious", "n_outputs", "attack_shift", "best_single_rmse", "constant_rmse", "verification_cost"]
    for name in shared:
        assert (frame.groupby("trial")[name].nunique() == 1).all(), name
    twins = [frame[frame["rule"] == rule].drop(columns="rule").reset_index(drop=True) for rule in rules[:2]]
    pd.testing.assert_frame_equal(*twins, check_exact=True)


def test_pay_factors_change_pay_alone(log):
    plain, other = (
        run(log, small(rule="paper", attack="boost", malicious_share=0.3, evaluator_alpha=a, inference_beta=b))
        for a, b in [(0.7, 0.3), (1.4, 0.0)]
    )
    same = ["pearson", "spearman", "rmse", "mae", "bias", "attack_shift", "malicious_trust_100"]
    pd.testing.assert_frame_equal(plain[same], other[same], check_exact=True)
    assert (plain["evaluator_reward"] < other["evaluator_reward"]).all()


def test_burn_in_only_leaves_rounds_out(log):
    """Trust goes on as before: its path is that of the run without burn-in."""
    whole = run(log, small(rule="paper", attack="sabotage", malicious_share=0.3, n_rounds=1000))
    later = run(log, small(rule="paper", attack="sabotage", malicious_share=0.3, n_rounds=1000, burn_in=600))
    trust = [name for name in whole if name.startswith("malicious_trust")]
    pd.testing.assert_frame_equal(whole[trust], later[trust], check_exact=True)
    assert (whole["rmse"] != later["rmse"]).all()


# --- gaps in a log ---


def test_dropped_outputs_are_counted():
    log = gappy_log()
    cells = log[(log["task"] == "qa") & log["score"].notna()].groupby(["item", "model"]).size()
    n_outputs = len(log[log["task"] == "qa"].drop_duplicates(["item", "model"]))
    frame = run(log, grid(task="qa", n_rounds=100, committee=[2, 4, 6], min_available=[None, 5]), trials=1)
    for row in frame.itertuples():
        least = max(row.committee, 0 if pd.isna(row.min_available) else row.min_available)
        assert row.n_outputs == (cells >= least).sum()
        assert row.outputs_dropped == n_outputs - row.n_outputs > 0


def test_a_subset_that_cannot_play_is_found_before_work_starts(no_work):
    """N < E: some trial draws two evaluators that scored no output in common."""
    rows = [
        ("qa", f"i{i}", "m", f"e{e}", float(i % 3 + e), float(i)) for i in range(12) for e in range(4) if (i + e) % 2
    ]
    log = pd.DataFrame(rows, columns=["task", "item", "model", "evaluator", "score", "truth"])
    with pytest.raises(ValueError, match="'qa' has 0 output"):
        run(log, small(committee=2, n_nodes=2), trials=20)


def test_constant_evaluator_warns_and_runs(log):
    flat = log.copy()
    flat.loc[flat["evaluator"] == "e4", "score"] = 3.0
    with pytest.warns(UserWarning, match="'e4'"):
        frame = run(flat, small(rule="paper", attack="boost", malicious_share=0.3, malicious_nodes="worst"))
    assert frame[["pearson", "rmse", "random_single_pearson"]].notna().all(axis=None)


@pytest.mark.parametrize(
    ("cost", "model_cost", "known"),
    [("drop", "drop", False), ("nan", "nan", False), ("keep", "keep", True), ("part", "part", True)],
)
def test_costs(log, cost, model_cost, known):
    """No costs cost nothing, and the row says so; an unknown one among known ones is the median of its role."""
    changed = log.copy()
    for name, what, key, first in [("cost", cost, "evaluator", "e0"), ("model_cost", model_cost, "model", "model-00")]:
        if what == "drop":
            changed = changed.drop(columns=name)
        elif what == "nan":
            changed[name] = np.nan
        elif what == "part":
            changed.loc[changed[key] == first, name] = np.nan
    frame = run(changed, small(committee=9))
    assert (frame["cost_known"] == known).all()
    free = run(changed, small(committee=9, evaluator_beta=0, inference_beta=0))
    paid = free["evaluator_reward"] - frame["evaluator_reward"]
    # Everybody sits in every round; costs 1 to 9 are normalised over 0..1, or 2 to 9 with their median for the first.
    parts = [3.5 / 7, *np.arange(8) / 7]
    expected = {"drop": 0, "nan": 0, "keep": 0.3 * np.mean(np.arange(9) / 8), "part": 0.3 * np.mean(parts)}
    np.testing.assert_allclose(paid, expected[cost], atol=1e-12)
    assert ((free["inference_reward"] - frame["inference_reward"]).abs() > 1e-3).eq(known).all()


def test_costs_without_spread(log):
    frame = run(log.assign(cost=2.0, model_cost=7.0), small())
    free = run(log.assign(cost=2.0, model_cost=7.0), small(evaluator_beta=0, inference_beta=0))
    np.testing.assert_array_equal(frame["evaluator_reward"], free["evaluator_reward"])
    np.testing.assert_array_equal(frame["inference_reward"], free["inference_reward"])
    np.testing.assert_allclose(frame["verification_cost"], 6.0)


@pytest.mark.parametrize(
    ("n_models", "n_evaluators", "committee"), [(1, 3, 3), (1, 3, 1), (4, 300, 21), (2, 300, 101), (2, 1, 1)]
)
def test_small_and_large_logs(n_models, n_evaluators, committee):
    """One model, one task, three evaluators, three hundred, or one."""
    world = dict(n_items=12, n_models=n_models, evaluators=n_evaluators, task="only")
    log = synthetic_log(np.random.default_rng(0), **world).drop(columns=["cost", "model_cost"])
    scenarios = grid(
        task="only", n_rounds=400, rule=["mean", "median", "trimmed_mean", "paper"], attack="noise", committee=committee
    )
    frame = run(log, scenarios)
    assert frame[["pearson", "spearman", "rmse"]].notna().all(axis=None)


def test_undefined_correlation_is_nan(log):
    """A truth that never varies; the errors stay defined."""
    for truth_range in (None, (0, 11)):
        frame = run(log.assign(truth=1.1), small(truth_range=truth_range))
        assert frame[["pearson", "spearman", "best_single_pearson", "random_single_pearson"]].isna().all(axis=None)
        assert frame[["rmse", "evaluator_reward"]].notna().all(axis=None)
    summary = summarize(frame, "rule").set_index("metric")
    assert summary.loc["pearson", "n"] == 0
    assert np.isnan(summary.loc["pearson", "mean"])


def test_nobody_is_malicious(log):
    """Without malicious nodes an attack changes nothing, and what it did to them is undefined."""
    plain, attacked = (run(log, small(attack=attack, malicious_share=0.05)) for attack in ("none", "boost"))
    assert (attacked["n_malicious"] == 0).all()
    assert attacked[["evaluator_reward_malicious", "attack_shift"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(plain.drop(columns="attack"), attacked.drop(columns="attack"), check_exact=True)


# --- theory against simulation ---


def normal_log(sd=1.0, n_items=6000, n_evaluators=30, seed=0):
    """Equal evaluators with independent normal errors, never clipped: a stated range keeps points points."""
    rng = np.random.default_rng(seed)
    traits = {f"e{e:02d}": {"noise": sd} for e in range(n_evaluators)}
    return synthetic_log(rng, n_items=n_items, n_models=1, evaluators=traits, task="qa", truth_sd=0.3, model_sd=0)


@pytest.mark.parametrize("reference", ["consensus", "leave_one_out"])
def test_distance_to_the_consensus_meets_theory(reference):
    """E|s - c| = sd sqrt(2/pi) g and Var|s - c| = sd^2 (1 - 2/pi) g^2 with g^2 = 1 - 1/K, left out 1 + 1/(K - 1).

    So pay per participation falls with K from K = 1 on when the own score is inside the consensus, and rises with K
    when it is left out.
    """
    sd, log = 1.0, normal_log()
    sizes = [k for k in (1, 2, 3, 4, 5, 7, 9, 15) if k > 1 or reference == "consensus"]
    scenarios = grid(
        task="qa",
        committee=sizes,
        n_rounds=30_000,
        calibration=(0, 10),
        truth_range=(0, 10),
        pay_reference=reference,
        evaluator_alpha=1.0,
        evaluator_beta=0.0,
    )
    frame = run(log, scenarios, trials=2).groupby("committee")
    distance = 10 * (1 - frame["evaluator_reward"].mean())
    spread = 10 * frame["evaluator_reward_sd"].mean()
    for k in sizes:
        factor = np.sqrt(1 - 1 / k if reference == "consensus" else 1 + 1 / (k - 1))
        # The log has 6,000 outputs: rounds on one output share some of their scores, so outputs are what counts.
        margin = 4 * sd * factor * np.sqrt(1 - 2 / np.pi) / np.sqrt(6000)
        assert distance[k] == pytest.approx(sd * np.sqrt(2 / np.pi) * factor, abs=margin + 1e-6)
        assert spread[k] == pytest.approx(sd * np.sqrt(1 - 2 / np.pi) * factor, abs=margin + 1e-6)
    assert (distance.diff().dropna() > 0).all() == (reference == "consensus")
    assert (distance.diff().dropna() < 0).all() == (reference == "leave_one_out")


def test_error_of_the_mean_meets_theory():
    """RMSE = sd / sqrt(K) for independent errors; Pearson follows from the spread of truth and consensus."""
    log = normal_log(n_items=8000)
    truth_sd = log.drop_duplicates("item")["truth"].std()
    stated = dict(calibration=(0, 10), truth_range=(0, 10), n_rounds=40_000)
    frame = run(log, grid(task="qa", committee=[1, 4, 9, 30], **stated), trials=1).set_index("committee")
    for k in (1, 4, 9, 30):
        assert frame.loc[k, "rmse"] == pytest.approx(1 / np.sqrt(k), rel=4 / np.sqrt(2 * 8000))
        expected = truth_sd / np.hypot(truth_sd, 1 / np.sqrt(k))
        assert frame.loc[k, "pearson"] == pytest.approx(expected, abs=4 / np.sqrt(8000))


def test_shift_of_the_mean_is_share_times_strength():
    """Boosting by b lifts the mean consensus by b times the share of malicious nodes, and inference pay by alpha/10."""
    log = normal_log(n_items=500, n_evaluators=20)
    fields = dict(task="qa", committee=5, n_rounds=20_000, calibration=(0, 10), truth_range=(0, 10))
    options = dict(attack="boost", attack_options={"by": 1.0}, inference_alpha=0.6)
    frame = (
        run(log, grid(**fields, **options, malicious_share=[0.25, 0.5]), trials=2)
        .groupby("malicious_share")
        .mean(numeric_only=True)
    )
    for share in (0.25, 0.5):
        margin = 4 * np.sqrt(share * (1 - share) / (5 * 40_000))
        assert frame.loc[share, "attack_shift"] == pytest.approx(1, abs=1e-3)
        assert frame.loc[share, "attack_shift_all"] == pytest.approx(share, abs=margin)
        assert frame.loc[share, "inflation_inference"] == pytest.approx(0.06 * share, abs=0.06 * margin + 1e-4)


def test_median_breaks_with_a_malicious_majority():
    """Everybody honest says 5 and every attacker 10: the median is 10 exactly when attackers hold the majority."""
    rows = [("qa", f"i{i}", "m", f"e{e}", 5.0, float(i)) for i in range(4) for e in range(21)]
    log = pd.DataFrame(rows, columns=["task", "item", "model", "evaluator", "score", "truth"])
    fields = dict(task="qa", calibration=(0, 10), n_rounds=20_000, attack="boost", attack_options={"by": 5.0})
    for committee, share in [(5, 0.3), (7, 0.4), (9, 0.5)]:
        row = run(log, Scenario(rule="median", committee=committee, malicious_share=share, **fields), trials=1).iloc[0]
        bad = row["n_malicious"]
        chance = stats.hypergeom(21, bad, committee).sf(committee // 2)
        # Inference pay is linear in the consensus: 0.35 + 0.35 with probability `chance`.
        found = row["inflation_inference"] / 0.35
        assert found == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / 20_000))


@pytest.mark.parametrize("resample", ["none", "items"])
def test_spread_between_trials(resample):
    """Bootstrap trials differ as samples of items do; others only as rounds do."""
    log = normal_log(n_items=40, n_evaluators=5)
    frame = run(log, small(committee=5, n_rounds=4000, resample=resample, truth_range=(0, 10)), trials=60)
    by_items = frame["bias"].std()
    errors = run(log, small(committee=5, n_rounds=4000, truth_range=(0, 10)), trials=1)["rmse"][0] / np.sqrt(40)
    assert (by_items > errors / 2) == (resample == "items")


# --- summaries ---


def toy_frame():
    frame = run(dense_log(n_items=4), grid(task="qa", n_rounds=50, rule=["mean", "median"], committee=[2, 3]), trials=3)
    frame["rmse"] = [1.0, 2.0, 6.0, 4.0, 4.0, 4.0, 3.0, 2.0, 1.0, 5.0, np.nan, 7.0]
    return frame


def test_summarize_by_hand():
    """Undefined values are left out of mean and n; standard error is s / sqrt(n)."""
    summary = summarize(toy_frame(), ["rule", "committee"])
    assert list(summary.columns) == ["rule", "committee", "metric", "mean", "standard_error", "n"]
    found = summary[summary["metric"] == "rmse"].set_index(["rule", "committee"])[["mean", "standard_error", "n"]]
    expected = {
        ("mean", 2): (3, np.sqrt(7 / 3), 3),
        ("mean", 3): (4, 0, 3),
        ("median", 2): (2, 1 / np.sqrt(3), 3),
        ("median", 3): (6, 1, 2),
    }
    for key, values in expected.items():
        np.testing.assert_allclose(found.loc[key], values)
    whole = summarize(toy_frame(), "rule").set_index(["rule", "metric"]).loc[("mean", "rmse")]
    np.testing.assert_allclose(whole, [3.5, np.std([1, 2, 6, 4, 4, 4], ddof=1) / np.sqrt(6), 6])
    single = summarize(toy_frame()[:1], "rule").set_index("metric").loc["rmse"]
    assert single["n"] == 1
    assert np.isnan(single["standard_error"])
    with pytest.raises(ValueError, match="colour"):
        summarize(toy_frame(), ["colour"])


def test_settings_are_no_metrics():
    """Neither fields nor the trial are averaged; a missing field is a group of its own."""
    summary = summarize(toy_frame(), ["rule", "n_nodes"])
    assert not {"committee", "trial", "n_rounds", "jitter"} & set(summary["metric"])
    assert (summary[summary["metric"] == "rmse"]["n"] == [6, 5]).all()


def test_compare_by_hand():
    """Rule minus baseline on the same trial, whatever the order of rows; an undefined side drops the pair."""
    frame = toy_frame()
    for rows in (frame, frame.sample(frac=1, random_state=0)):
        found = compare(rows, by="committee")
        rmse = found[found["metric"] == "rmse"].set_index("committee")
        np.testing.assert_allclose(rmse["difference"], [-1, 2] if rmse.index[0] == 2 else [2, -1])
        # Committee 2: 3 - 1, 2 - 2, 1 - 6. Committee 3: 5 - 4, none, 7 - 4.
        np.testing.assert_allclose(rmse.loc[2, "standard_error"], np.std([2, 0, -5], ddof=1) / np.sqrt(3))
        np.testing.assert_allclose(rmse.loc[3, "standard_error"], 1)
        assert rmse["n"].to_dict() == {2: 3, 3: 2}
        assert set(found["rule"]) == {"median"}


def test_compare_is_paired(log):
    """The standard error of a difference is far below that of two independent means."""
    frame = run(
        log, grid(task="qa", rule=["mean", "median"], n_rounds=300, attack="noise", malicious_share=0.3), trials=20
    )
    paired = compare(frame).set_index("metric").loc["bias", "standard_error"]
    apart = summarize(frame, "rule").set_index(["metric", "rule"]).loc["bias", "standard_error"]
    assert paired < 0.75 * np.hypot(*apart)


def test_compare_needs_its_baseline(log):
    frame = run(log, [small(rule=rule) for rule in ("median", "paper")])
    with pytest.raises(ValueError, match="'mean'"):
        compare(frame)
    other = run(log, [small(), small(rule="median", committee=5)])
    with pytest.raises(ValueError, match="no row of 'mean'"):
        compare(other)
    twice = run(log, [small(), small(), small(rule="median")])
    assert compare(twice).set_index("metric").loc["rmse", "n"] == 2
    # The baseline's rule with options of its own is a rule like any other.
    options = run(log, [small(rule="trimmed_mean"), small(rule="trimmed_mean", rule_options={"cut": 0.4})])
    assert set(compare(options, baseline="trimmed_mean")["rule_options"]) == {'{"cut": 0.4}'}


def test_compare_names_a_missing_column(log):
    """Without a setting that varies, rows would be paired with the wrong partner."""
    frame = run(log, [small(), small(rule="median")])
    for lost in ("committee", "trial", "rule_options"):
        with pytest.raises(ValueError, match=f"no column '{lost}'"):
            compare(frame.drop(columns=lost))
    with pytest.raises(ValueError, match="no column 'colour'"):
        compare(frame, by="colour")


@pytest.mark.parametrize("what", ["rule", "attack"])
def test_objects_without_a_hash_are_refused_at_once(monkeypatch, what):
    """The engine keeps rules and attacks apart by identity, in mappings."""

    class Odd:
        def __eq__(self, other):
            return self is other

        def __call__(self, scores, *rest):
            return scores

    monkeypatch.setitem(AGGREGATORS if what == "rule" else ATTACKS, "odd", Odd())
    with pytest.raises(ValueError, match=f"{what} 'odd' is an object that has __eq__ but no __hash__"):
        Scenario("qa", **{what: "odd"})


def test_trust_rules_are_rules():
    assert "paper" in TRUST_RULES
    assert not set(TRUST_RULES) & set(AGGREGATORS)


@pytest.mark.parametrize("attack", ["target", "favour", "affine"])
def test_a_partner_must_be_in_the_log(log, attack):
    scenario = small(attack=attack, malicious_share=0.3, attack_options={"partner": 99})
    with pytest.raises(ValueError, match=r"partner must be one of the \d+ models of task"):
        run(log, scenario)
