"""Trust rules: Eq. 21 worked by hand, how fast weights grow, and what every rule with a memory must keep."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from generators import dense_log, networks
from hypothesis import given
from hypothesis import strategies as st

from poq.rewards import deviation
from poq.rounds import make_pool, sample_rounds
from poq.scorelog import score_matrix
from poq.synthetic import synthetic_log
from poq.trust import TRUST_RULES, run_trust, updated_weight

every_rule = pytest.mark.parametrize("rule", TRUST_RULES)


def drawn(n_rounds=400, committee=5, n_nodes=20, seed=0):
    """Honest scores and nodes of a few rounds, and their truth."""
    matrix = score_matrix(dense_log(), task="qa")
    pool = make_pool(matrix, committee=committee, n_nodes=n_nodes, seed=seed)
    output, node, scores = sample_rounds(pool, n_rounds=n_rounds, committee=committee, seed=seed)
    return scores, node, matrix.truth[output]


# --- Eq. 21 ---


def test_three_rounds_by_hand():
    case = json.loads((Path(__file__).parent / "cases" / "trust_three_rounds.json").read_text(encoding="utf-8"))
    run = run_trust(np.array(case["scores"], float), case["node"], case["n_nodes"], **case["options"])
    fractions = np.vectorize(lambda text: float(Fraction(text)))
    np.testing.assert_allclose(run.consensus, fractions(case["consensus"]), rtol=1e-13)
    np.testing.assert_allclose(run.weights, fractions(case["weights"]), rtol=1e-13)
    np.testing.assert_allclose(run.final, fractions(case["final"]), rtol=1e-13)


@given(network=networks(), rate=st.floats(0, 1.99), low=st.floats(0.01, 1), high=st.floats(1, 9))
def test_eq_21_by_plain_python(network, rate, low, high):
    """Only the committee's weights move, by the deviation from the consensus that holds their own score."""
    scores, node, n_nodes = network
    run = run_trust(scores, node, n_nodes, rate=rate, low=low, high=high)
    weights = dict.fromkeys(range(n_nodes), 1.0)
    for t, (row, who) in enumerate(zip(scores.tolist(), node.tolist())):
        before = [weights[n] for n in who]
        c = sum(w * s for w, s in zip(before, row)) / sum(before)
        np.testing.assert_allclose(run.weights[t], before, rtol=1e-9)
        assert run.consensus[t] == pytest.approx(c, abs=1e-9)
        for s, n, w in zip(row, who, before):
            weights[n] = min(high, max(low, w * (1 + rate * (0.5 - abs(s - c) / 10))))
    np.testing.assert_allclose(run.final, list(weights.values()), rtol=1e-9)


def test_one_formula():
    """The compiled update is Eq. 21 and its deviation that of the rewards."""
    d = deviation(np.array([2.0]), 7.0)[0]
    assert updated_weight(2.0, d, 0.1, 0.1, 5.0) == 2.0 * (1 + 0.1 * (0.5 - d))
    assert updated_weight(4.99, 0.0, 0.1, 0.1, 5.0) == 5.0
    assert updated_weight(0.1, 1.0, 0.1, 0.1, 5.0) == 0.1


def test_growth_of_agreeing_nodes():
    """d = 0: each participation multiplies a weight by 1 + rate/2, exactly, until it reaches the upper bound."""
    _, node, _ = drawn()
    run = run_trust(np.full(node.shape, 6.0), node, 20, high=1e9)
    times = np.bincount(node.ravel(), minlength=20)
    np.testing.assert_allclose(run.final, 1.05**times, rtol=1e-9)
    bounded = run_trust(np.full(node.shape, 6.0), node, 20)
    np.testing.assert_allclose(bounded.final, np.minimum(5, 1.05**times), rtol=1e-9)


@pytest.mark.parametrize("committee", [2, 5, 9])
def test_growth_of_noisy_nodes_meets_theory(committee):
    """log w grows per participation by rate (1/2 - E d), E d = sd sqrt(2/pi) sqrt(1 - 1/K) / 10, to first order."""
    rate, n_nodes, n_rounds = 1e-4, 30, 20_000
    rng = np.random.default_rng(committee)
    scores = 5 + 1.2 * rng.standard_normal((n_rounds, committee))
    node = np.argsort(rng.random((n_rounds, n_nodes)), axis=1)[:, :committee]
    run = run_trust(scores, node, n_nodes, rate=rate, high=1e9)
    growth = np.log(run.final).sum() / node.size / rate
    spread = 1.2 * np.sqrt(1 - 1 / committee) / 10
    theory = 0.5 - spread * np.sqrt(2 / np.pi)
    # Weights differ by a few per cent at most, and log(1 + x) is x to 1e-9: the margin is that of Monte Carlo.
    margin = 4 * spread * np.sqrt(1 - 2 / np.pi) / np.sqrt(n_rounds)
    assert growth == pytest.approx(theory, abs=margin)


def test_saturation():
    """Every node nearer than 5 points to the consensus drifts to the bound, after which the rule is the mean."""
    scores, node, _ = drawn(n_rounds=4000)
    run = run_trust(scores, node, 20)
    assert (run.final == 5).all()
    np.testing.assert_allclose(run.consensus[-50:], scores[-50:].mean(axis=1), rtol=1e-12)
    assert np.abs(run.consensus[:50] - scores[:50].mean(axis=1)).max() > 1e-3


def test_paper_ignores_audits():
    scores, node, truth = drawn()
    plain, audited = run_trust(scores, node, 20), run_trust(scores, node, 20, audit=truth)
    for one, other in zip(plain, audited):
        np.testing.assert_array_equal(one, other)


def weigh(rows, nodes, weights, update):
    """Consensus of each round in plain Python; `update(who, d)` sees the committee's deviations after each."""
    found = []
    for row, who in zip(rows.tolist(), nodes.tolist()):
        total = sum(weights[n] for n in who)
        found.append(sum(weights[n] * s for s, n in zip(row, who)) / total)
        update(who, [abs(s - found[-1]) / 10 for s in row])
    return found


def test_moving_average_by_plain_python():
    """D <- (1 - 1/m) D + d/m from 0.2, weight 1 / (D^2 + 0.05^2)."""
    scores, node, _ = drawn()
    average, weights = [0.2] * 20, [1 / 0.0425] * 20

    def update(who, d):
        for n, x in zip(who, d):
            average[n] += (x - average[n]) / 30
            weights[n] = 1 / (average[n] ** 2 + 0.05**2)

    run = run_trust(scores, node, 20, rule="ema", memory=30)
    np.testing.assert_allclose(weigh(scores, node, weights, update), run.consensus, rtol=1e-9)
    np.testing.assert_allclose(weights, run.final, rtol=1e-9)


def test_recentred_by_plain_python():
    """Eq. 21 about the usual deviation u: w <- clip(w (1 + rate (0.5 - d')), low, high), d' = d / (2 u) up to 1.5."""
    scores, node, _ = drawn(n_rounds=1500)
    usual, weights = [0.1], [1.0] * 20

    def update(who, d):
        for n, x in zip(who, d):
            step = 0.2 * (0.5 - min(1.5, 0.5 + (x - usual[0]) / (2 * max(usual[0], 0.01))))
            weights[n] = min(5.0, max(0.1, weights[n] * (1 + step)))
        usual[0] = max(0.001, usual[0] + 0.001 * sum(1 if x > usual[0] else -1 for x in d))

    run = run_trust(scores, node, 20, rule="recentred", rate=0.2)
    np.testing.assert_allclose(weigh(scores, node, weights, update), run.consensus, rtol=1e-9)
    np.testing.assert_allclose(weights, run.final, rtol=1e-9)
    assert len(set(run.final)) > 5  # not all at one bound


# --- every rule with a memory ---


@every_rule
@given(network=networks(), data=st.data())
def test_relabelled_nodes(rule, network, data):
    """New names for the nodes change no consensus, only whose weight is whose."""
    scores, node, n_nodes = network
    audit = np.where(np.arange(len(scores)) % 2, scores.mean(axis=1), np.nan)
    name = np.array(data.draw(st.permutations(range(n_nodes))))
    run = run_trust(scores, node, n_nodes, rule=rule, audit=audit)
    renamed = run_trust(scores, name[node], n_nodes, rule=rule, audit=audit)
    np.testing.assert_allclose(renamed.consensus, run.consensus, atol=1e-9)
    np.testing.assert_allclose(renamed.weights, run.weights, atol=1e-9)
    np.testing.assert_allclose(renamed.final[name], run.final, atol=1e-9)


@every_rule
@given(network=networks(), data=st.data())
def test_order_of_seats(rule, network, data):
    scores, node, n_nodes = network
    seats = np.array(data.draw(st.permutations(range(scores.shape[1]))))
    run = run_trust(scores, node, n_nodes, rule=rule)
    shuffled = run_trust(scores[:, seats], node[:, seats], n_nodes, rule=rule)
    np.testing.assert_allclose(shuffled.consensus, run.consensus, atol=1e-9)
    np.testing.assert_allclose(shuffled.weights, run.weights[:, seats], atol=1e-9)


@every_rule
def test_order_of_seats_in_a_long_run(rule):
    """Seats shuffled anew in each of 3,000 rounds; an update that goes seat by seat would drift."""
    scores, node, truth = drawn(n_rounds=3000)
    seats = np.argsort(np.random.default_rng(0).random(node.shape), axis=1)
    audit = np.where(np.arange(3000) % 50 == 0, truth, np.nan)
    run = run_trust(scores, node, 20, rule=rule, audit=audit)
    shuffled = [np.take_along_axis(array, seats, axis=1) for array in (scores, node)]
    np.testing.assert_allclose(run_trust(*shuffled, 20, rule=rule, audit=audit).consensus, run.consensus, atol=1e-6)


@every_rule
@given(network=networks())
def test_consensus_and_weights_stay_in_bounds(rule, network):
    """A reweighting rule stays between the scores; one that corrects them stays on the scale. Input is untouched."""
    scores, node, n_nodes = network
    before = scores.copy(), node.copy()
    run = run_trust(scores, node, n_nodes, rule=rule)
    assert (run.consensus >= -1e-9).all()
    assert (run.consensus <= 10 + 1e-9).all()
    if rule == "paper":
        assert (run.consensus >= scores.min(axis=1) - 1e-9).all()
        assert (run.consensus <= scores.max(axis=1) + 1e-9).all()
        assert ((run.final >= 0.1) & (run.final <= 5)).all()
    assert (run.weights >= 0).all()
    assert np.isfinite(run.final).all()
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(node, before[1])


@every_rule
@pytest.mark.parametrize("committee", [1, 2, 5])
@pytest.mark.parametrize("score", [0.0, 4.0, 10.0])
def test_all_equal(rule, committee, score):
    """Everybody always says the same: so does the consensus (nearly, where a rule starts from a very flat prior)."""
    _, node, _ = drawn(committee=committee, n_rounds=300)
    run = run_trust(np.full(node.shape, score), node, 20, rule=rule)
    np.testing.assert_allclose(run.consensus, score, atol=1e-9 if rule == "paper" else 1e-4)


@every_rule
def test_the_past_only(rule):
    """Neither later rounds nor the truth of this round or a later one reach a consensus or the weights behind it."""
    scores, node, truth = drawn()
    whole = run_trust(scores, node, 20, rule=rule, audit=truth)
    now = 211
    changed, other_truth = scores.copy(), truth.copy()
    changed[now + 1 :] = 10 - scores[now + 1 :]
    other_truth[now:] = 10 - truth[now:]
    part = run_trust(changed, node, 20, rule=rule, audit=other_truth)
    np.testing.assert_array_equal(part.consensus[: now + 1], whole.consensus[: now + 1])
    np.testing.assert_array_equal(part.weights[: now + 1], whole.weights[: now + 1])
    assert (part.consensus[now + 1 :] != whole.consensus[now + 1 :]).mean() > 0.9


@every_rule
def test_rounds_may_come_in_blocks(rule):
    """The engine plays a run in blocks; where they end does not matter."""
    scores, node, truth = drawn(n_rounds=700)
    audit = np.where(np.arange(700) % 7 == 0, truth, np.nan)
    whole = run_trust(scores, node, 20, rule=rule, audit=audit)
    state = TRUST_RULES[rule].start(20)
    blocks = zip(*(np.split(array, [1, 2, 50, 333]) for array in (scores, node.astype(np.int32), audit)))
    parts = [TRUST_RULES[rule].advance(state, *block) for block in blocks]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), whole.consensus)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), whole.weights)
    np.testing.assert_array_equal(state[0], whole.final)


@every_rule
def test_memory_order_does_not_matter(rule):
    scores, node, _ = drawn()
    one = run_trust(np.ascontiguousarray(scores), np.ascontiguousarray(node), 20, rule=rule)
    other = run_trust(np.asfortranarray(scores), np.asfortranarray(node), 20, rule=rule)
    np.testing.assert_array_equal(one.consensus, other.consensus)


@every_rule
def test_first_round_is_the_mean(rule):
    """Nothing is known yet, so all rules start there."""
    scores, node, _ = drawn(n_rounds=1)
    run = run_trust(scores, node, 20, rule=rule)
    np.testing.assert_allclose(run.consensus, scores.mean(axis=1), atol=1e-5)


@every_rule
def test_no_rounds_at_all(rule):
    run = run_trust(np.empty((0, 3)), np.empty((0, 3), dtype=int), 4, rule=rule)
    assert run.consensus.shape == (0,)
    assert len(set(run.final)) == 1


def test_audits_help():
    """An inverted majority misleads every rule but the one that is shown some truth."""
    traits = {f"e{e}": {"gain": -0.8 if e < 6 else 1.0, "noise": 0.5} for e in range(9)}
    log = synthetic_log(np.random.default_rng(0), n_items=300, n_models=2, evaluators=traits)
    matrix = score_matrix(log, task="synthetic")
    pool = make_pool(matrix, committee=5)
    output, node, scores = sample_rounds(pool, n_rounds=6000, committee=5)
    truth = matrix.truth[output]
    shown = np.where(np.random.default_rng(1).random(6000) < 0.05, truth, np.nan)
    reached = {
        rule: np.corrcoef(run_trust(scores, node, 9, rule=rule, audit=shown).consensus[2000:], truth[2000:])[0, 1]
        for rule in ("paper", "audited")
    }
    assert reached["paper"] < 0
    assert reached["audited"] > 0.8


# --- errors ---

SCORES, NODE = [[1.0, 2.0], [3.0, 4.0]], [[0, 1], [1, 2]]


@pytest.mark.parametrize(
    ("arguments", "options", "part"),
    [
        ((SCORES, NODE, 3), {"rule": "zz"}, "zz"),
        ((SCORES[0], NODE[0], 3), {}, "scores"),
        ((SCORES, [[0, 1]], 3), {}, "node"),
        ((SCORES, NODE, 2), {}, "node"),
        ((SCORES, [[0, 1], [1, -1]], 3), {}, "node"),
        ((SCORES, NODE, 3), {"audit": [1.0]}, "audit"),
        ((SCORES, NODE, 3), {"rate": -0.1}, "rate"),
        ((SCORES, NODE, 3), {"rate": 2}, "rate"),
        ((SCORES, NODE, 3), {"rate": np.nan}, "rate"),
        ((SCORES, NODE, 3), {"low": 0}, "low"),
        ((SCORES, NODE, 3), {"low": 2}, "low"),
        ((SCORES, NODE, 3), {"high": 0.5}, "high"),
        ((SCORES, NODE, 3), {"high": np.inf}, "high"),
        ((SCORES, NODE, 3), {"start": np.nan}, "start"),
        ((SCORES, NODE, 3), {"start": 9}, "start"),
    ],
)
def test_bad_input(arguments, options, part):
    with pytest.raises(ValueError, match=part):
        run_trust(*arguments, **options)


def test_unknown_option():
    with pytest.raises(TypeError, match="speed"):
        run_trust(SCORES, NODE, 3, speed=1)


@pytest.mark.parametrize(
    ("scores", "node", "said"),
    [
        ([[1.0, np.nan]], [[0, 1]], "none of them NaN"),
        ([[1.0, np.inf]], [[0, 1]], "scores must be finite"),
        ([[1.0, 2.0]], [[0, 0.7]], "whole numbers, not float64"),
        ([[1.0, 2.0]], [[0, np.nan]], "whole numbers"),
        (np.zeros((2, 0)), np.zeros((2, 0), int), "a member in each round"),
        ([[1.0, 2.0]], [[0, 5]], "from 0 to 4"),
    ],
)
def test_what_a_compiled_loop_cannot_read_is_refused(scores, node, said):
    with pytest.raises(ValueError, match=said):
        run_trust(scores, node, 5)
