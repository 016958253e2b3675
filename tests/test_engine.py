"""The engine against a slow second reading of the mechanism, and the rows it makes."""

import numpy as np
import pandas as pd
import pytest
import reference
from generators import dense_log, gappy_log

from poq import engine, fused, metrics
from poq.aggregators import AGGREGATORS
from poq.attacks import ATTACKS
from poq.rounds import make_pool, sample_rounds
from poq.scorelog import score_matrix
from poq.simulate import Scenario, grid, run
from poq.streams import stream
from poq.synthetic import synthetic_log
from poq.trust import TRUST_RULES, TrustRule, run_trust

# Each world differs from the others in several ways at once; together they cover what a scenario can say.
BASE = dict(n_rounds=603, committee=3)  # no quarter of it is a whole number
SCENARIOS = {
    "mean": dict(task="qa"),
    "median, noise": dict(task="qa", rule="median", attack="noise", malicious_share=0.3, committee=4),
    "trimmed, boost": dict(task="qa", rule="trimmed_mean", attack="boost", malicious_share=0.34, committee=5),
    "paper, intermittent": dict(
        task="qa",
        rule="paper",
        attack="intermittent",
        malicious_share=0.4,
        attack_options={"by": 4.5, "probability": 0.6},
        evaluator_alpha=1.5,
        evaluator_beta=0.1,
    ),
    "paper, burn-in, left out, sabotage": dict(
        task="qa",
        rule="paper",
        attack="sabotage",
        malicious_share=0.3,
        pay_reference="leave_one_out",
        burn_in=77,
        committee=5,
        rule_options={"rate": 0.4, "low": 0.5, "high": 2.0},
        inference_alpha=0.9,
        inference_beta=0.6,
    ),
    "committee of one": dict(task="qa", rule="paper", attack="boost", malicious_share=0.5, committee=1),
    "committee of two, left out": dict(
        task="qa", rule="median", attack="noise", malicious_share=0.3, committee=2, pay_reference="leave_one_out"
    ),
    "everybody sits": dict(
        task="qa",
        rule="trimmed_mean",
        attack="sabotage",
        malicious_share=0.2,
        committee=7,
        pay_reference="leave_one_out",
        rule_options={"cut": 0.3},
    ),
    "more nodes": dict(
        task="qa", rule="paper", attack="noise", malicious_share=0.3, n_nodes=23, committee=7, jitter=0.9, burn_in=300
    ),
    "more nodes, no jitter": dict(task="qa", rule="median", n_nodes=15, jitter=0, malicious_share=0.3, committee=4),
    "fewer nodes": dict(task="qa", rule="paper", attack="boost", malicious_share=0.4, n_nodes=5),
    "bootstrap of items": dict(
        task="qa", rule="median", attack="intermittent", malicious_share=0.3, resample="items", calibration="rank"
    ),
    "stated ranges": dict(
        task="qa", attack="boost", malicious_share=0.3, calibration=(-100, 100), truth_range=(-1, 12), min_available=4
    ),
    "no costs": dict(task="summary", rule="paper", attack="noise", malicious_share=0.25, committee=4),
    "everybody malicious": dict(task="qa", rule="paper", attack="sabotage", malicious_share=1.0, committee=3),
    "traitor": dict(task="qa", rule="paper", attack="traitor", malicious_share=0.4, burn_in=50, resample="items"),
    "traitor under a rule without memory": dict(task="qa", attack="traitor", malicious_share=0.3),
    "copycat": dict(task="qa", rule="median", attack="copycat", malicious_share=0.3, pay_reference="leave_one_out"),
    "two blocks": dict(
        task="qa", rule="paper", attack="noise", malicious_share=0.3, n_rounds=8600, burn_in=8100, committee=3
    ),
}
LOGS = {"dense": lambda: pd.concat([dense_log(), dense_log(seed=5).assign(task="summary")]), "gaps": gappy_log}


@pytest.fixture(scope="module", params=LOGS)
def log(request):
    return LOGS[request.param]()


@pytest.mark.parametrize("name", SCENARIOS)
def test_row_equals_the_reference(log, name):
    scenario = Scenario(**{**BASE, **SCENARIOS[name]})
    seed, trial = 11, 1
    found = run(log, scenario, trials=2, seed=seed, progress=False).iloc[trial].to_dict()
    expected = reference.row(log, scenario, seed=seed, trial=trial)
    assert set(expected) <= set(found)
    for metric, value in expected.items():
        # Ranks come from a histogram, see test_metrics; a standard deviation is the root of a difference of sums.
        margin = 1e-4 if metric == "spearman" else 1e-7 if metric.endswith("_sd") else 1e-9
        assert found[metric] == pytest.approx(value, rel=1e-9, abs=margin, nan_ok=True), metric


def test_reference_covers_every_metric():
    """A metric that nobody worked out by hand would go unchecked here."""
    log = dense_log()
    scenario = Scenario("qa", **BASE)
    fields = {*scenario.__dataclass_fields__, "trial", "audits"}
    frame = run(log, scenario, trials=1, seed=0, progress=False)
    assert set(frame.columns) - fields == set(reference.row(log, scenario, seed=0, trial=0))


@pytest.mark.parametrize("rule", TRUST_RULES)
def test_trust_rules_in_the_engine(rule):
    """The engine's blocks under a rule with a memory are one call of run_trust; audits come from their own stream."""
    log, n_rounds = dense_log(), 9001
    fields = {"committee": 4, "n_rounds": n_rounds, "burn_in": 4003, "n_nodes": 30}
    row = run(log, Scenario("qa", rule, **fields), trials=2, seed=5, progress=False).iloc[1]
    matrix = score_matrix(log, task="qa")
    pool = make_pool(matrix, committee=4, n_nodes=30, seed=5, trial=1)
    output, node, scores = sample_rounds(pool, n_rounds=n_rounds, committee=4, seed=5, trial=1)
    shown = stream(5, 1, "audit").random(n_rounds) < (0.02 if rule == "audited" else 0)
    truth = matrix.truth[output]
    trust = run_trust(scores, node, 30, rule=rule, audit=np.where(shown, truth, np.nan))
    consensus, truth = trust.consensus[4003:], truth[4003:]
    for metric in ("pearson", "rmse", "mae", "bias"):
        assert row[metric] == pytest.approx(getattr(metrics, metric)(consensus, truth), abs=1e-9), metric
    assert row["audits"] == shown.sum()


@pytest.mark.parametrize("rule", [name for name, rule in TRUST_RULES.items() if rule in fused.PLAY])
@pytest.mark.parametrize("committee", [1, 2, 5, 21])
def test_one_pass_and_stage_by_stage_are_the_same(monkeypatch, rule, committee):
    """With the honest run in the same loop, with each run in a loop of its own, and in stages."""
    log = pd.concat([dense_log(), dense_log(seed=5).assign(task="summary")])
    attacks = ["none", "boost", "noise"]  # the honest run is shown, or runs beside one of two attacks
    shares = [0.0, 0.3]
    grid_ = grid(
        task=["qa", "summary"],
        rule=rule,
        attack=attacks,
        malicious_share=shares,
        committee=committee,
        n_nodes=25,
        burn_in=[0, 100],
        n_rounds=13_000,
        rule_options={"rate": 0.3},
    )
    attacked = [scenario for scenario in grid_ if scenario.attack != "none" and scenario.malicious_share]

    def play():
        return [run(log, part, trials=2, seed=4, progress=False, item_sums=True) for part in (grid_, attacked)]

    taken = []
    for name, function in fused.PLAY_TWICE.items():
        monkeypatch.setitem(engine.PLAY_TWICE, name, lambda *a, f=function, **k: taken.append(1) or f(*a, **k))
    in_one_loop = play()
    assert taken
    monkeypatch.setattr(engine, "PLAY_TWICE", {})
    alone = play()
    monkeypatch.setattr(engine, "PLAY", {})
    for one, two, three in zip(in_one_loop, alone, play()):
        pd.testing.assert_frame_equal(one, three, rtol=1e-9, atol=1e-9)
        pd.testing.assert_frame_equal(two, three, rtol=1e-9, atol=1e-9)


def test_scenarios_side_by_side_change_nothing():
    """All scenarios of this file in one call, in two orders, against one call each."""
    log = LOGS["gaps"]()
    scenarios = [Scenario(**{**BASE, **options, "n_rounds": 300, "burn_in": 9}) for options in SCENARIOS.values()]
    together = run(log, scenarios, trials=2, seed=3, progress=False)
    backwards = run(log, scenarios[::-1], trials=2, seed=3, progress=False)
    alone = pd.concat([run(log, s, trials=2, seed=3, progress=False) for s in scenarios], ignore_index=True)
    # Rows of one scenario stand together, so turning the list round turns blocks of two rows round.
    turned = [row for block in range(len(scenarios) - 1, -1, -1) for row in (2 * block, 2 * block + 1)]
    pd.testing.assert_frame_equal(backwards.iloc[turned].reset_index(drop=True), together, check_exact=True)
    columns = sorted(set(together) & set(alone))
    pd.testing.assert_frame_equal(alone[columns], together[columns], check_exact=True, check_dtype=False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("rule", TRUST_RULES)
@pytest.mark.parametrize("reference", ["consensus", "leave_one_out"])
def test_pay_is_measured_on_the_scale(monkeypatch, rule, reference):
    """Also when a rule that corrects scores believes in reports beyond its ends."""
    traits = {
        f"e{e}": {"gain": [1, 0.1, -0.5, 1.5][e % 4], "noise": 0.5, "bias": [0, 2, -2, 1][e % 4]} for e in range(9)
    }
    log = synthetic_log(np.random.default_rng(0), n_items=100, n_models=3, evaluators=traits, task="qa")
    seen = []

    def note(sums, node, scores, compared, *args):
        seen.append((compared.min(), compared.max()))

    monkeypatch.setattr(engine, "PLAY", {})  # stage by stage, so that the reference of the pay is seen
    monkeypatch.setattr(metrics, "add_evaluator_pay", note)
    run(log, Scenario("qa", rule, pay_reference=reference, calibration=(0, 10)), trials=1, seed=0, progress=False)
    assert 0 <= np.min(seen) <= np.max(seen) <= 10


@pytest.mark.parametrize(("n_rounds", "burn_in"), [(32_768, 0), (32_769, 0), (32_769, 1), (65_538, 1), (100_000, 7)])
def test_ranks_of_long_runs(n_rounds, burn_in):
    """Around the length of the list in which rounds wait to be counted; bins are told from SciPy's ranks by 1e-5."""
    log = dense_log()
    fields = {"committee": 3, "n_rounds": n_rounds, "burn_in": burn_in}
    row = run(log, Scenario("qa", "median", **fields), trials=1, seed=5, progress=False).iloc[0]
    matrix = score_matrix(log, task="qa")
    pool = make_pool(matrix, committee=3, seed=5)
    output, _, scores = sample_rounds(pool, n_rounds=n_rounds, committee=3, seed=5)
    consensus, truth = np.median(scores, axis=1)[burn_in:], matrix.truth[output][burn_in:]
    binned = np.minimum(np.floor(consensus * metrics.RANK_BINS / 10 + 1e-6), metrics.RANK_BINS - 1)
    assert row["spearman"] == pytest.approx(metrics.spearman(binned, truth), abs=1e-9)
    assert row["spearman"] == pytest.approx(metrics.spearman(consensus, truth), abs=1e-5)


@pytest.mark.parametrize("n_rounds", [1, 2, 3, 7, 7999, 8000, 8001, 16_001])
def test_any_number_of_rounds(n_rounds):
    """Around the length of a block, and so few that the marks of trust fall together."""
    log = synthetic_log(np.random.default_rng(0), n_items=9, n_models=2, evaluators=4, task="qa")
    for burn_in in {0, n_rounds // 2, n_rounds - 1}:
        scenario = Scenario(
            "qa", "paper", "boost", malicious_share=0.25, committee=3, n_rounds=n_rounds, burn_in=burn_in
        )
        row = run(log, scenario, trials=1, seed=0, progress=False).iloc[0]
        assert row["rmse"] + 1e-12 >= row["mae"] >= abs(row["bias"]) - 1e-12
        assert row["malicious_trust_0"] == 0.25
        assert np.isnan(row["pearson"]) == np.isnan(row["spearman"])
        assert not np.isnan(row["pearson"]) or n_rounds - burn_in < 3


def too_few(scores):
    return scores[np.ptp(scores, axis=-1) > 1.5].mean(axis=-1)


def writes_late(scores, malicious, rng, *, context):
    if (context.round >= 100).any():
        scores[malicious] = 10.0
    return scores


def marks_itself(scores, malicious, rng):
    malicious &= rng.random(malicious.shape) < 0.3
    return np.where(malicious, 10.0, scores)


def frames_the_honest(scores, malicious, rng, *, context):
    struck = malicious | (context.round >= 100)[:, None]
    return np.where(struck, 10.0, scores)


def frames_the_honest_later(scores, malicious, rng, *, history):
    return np.full_like(scores, 10.0) if len(history.consensus) > 100 else np.where(malicious, 10.0, scores)


def loses_rounds(scores, malicious, rng, *, context):
    return scores[context.round < 100]


def weighs_too_few(state, scores, node, audit):
    return scores.mean(axis=1)[-1:], np.ones(scores.shape), scores


MISFITS = {
    "too few values": (AGGREGATORS, too_few, "rule 'too_few' returns shape"),
    "one value per block": (TRUST_RULES, TrustRule(lambda n: (np.ones(n),), weighs_too_few), "returns shape"),
    "writes into the scores": (ATTACKS, writes_late, "assignment destination is read-only"),
    "changes honest reports": (ATTACKS, frames_the_honest, "'frames_the_honest' changes the reports of honest nodes"),
    "reacts on honest reports": (ATTACKS, frames_the_honest_later, "changes the reports of honest nodes"),
    "loses rounds": (ATTACKS, loses_rounds, "attack 'loses_rounds' returns shape"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_only_in_later_rounds_is_named(log, monkeypatch, misfit):
    """A try on two rounds finds nothing; compiled loops would read past the end, or other scenarios be changed."""
    table, function, said = MISFITS[misfit]
    monkeypatch.setitem(table, "mine", function)
    what = "attack" if table is ATTACKS else "rule"
    scenario = Scenario("qa", **{"malicious_share": 0.4, "committee": 3, "n_rounds": 500, what: "mine"})
    with pytest.raises(RuntimeError, match=said):
        run(log, scenario, trials=1, seed=0, progress=False)


def test_an_attack_must_not_choose_who_is_malicious(monkeypatch):
    monkeypatch.setitem(ATTACKS, "mine", marks_itself)
    with pytest.raises(ValueError, match=r"attack 'mine': .*read-only"):
        Scenario("qa", attack="mine")


@pytest.mark.parametrize("rule", ["mean", "median", "paper", "recentred", "ema"])
def test_a_constant_consensus_has_no_correlation(rule):
    """Where all say 5 rounding must not make ranks; nor where all say 10 lift what a copycat copies off the scale."""
    log = synthetic_log(np.random.default_rng(0), n_items=20, n_models=3, evaluators=5)
    for score in (5.0, 10.0, 1 / 3):
        same = {"rule": rule, "committee": 3, "n_rounds": 200, "calibration": (0, 10), "malicious_share": 0.4}
        scenarios = [
            Scenario("synthetic", **same),
            Scenario("synthetic", attack="copycat", attack_options={"value": score}, **same),
        ]
        frame = run(log.assign(score=score), scenarios, trials=3, seed=0, progress=False)
        assert frame[["pearson", "spearman"]].isna().all(axis=None), score
