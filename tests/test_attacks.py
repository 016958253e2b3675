"""Attacks: honest reports untouched, malicious ones in range and distributed as their formula says."""

import numpy as np
import pytest
from generators import reports
from hypothesis import given
from hypothesis import strategies as st
from reference import attacked
from scipy import stats

from poq.attacks import ATTACKS, Context, History, asks_for, boost, intermittent, noise, none, sabotage
from poq.simulate import Scenario

PAPER = {"noise": noise, "boost": boost, "sabotage": sabotage, "intermittent": intermittent}
every_attack = pytest.mark.parametrize("attack", [none, *PAPER.values()], ids=["none", *PAPER])
STRENGTH = {"noise": "sd", "boost": "by", "sabotage": "by", "intermittent": "by"}


def rounds_reported():
    """Scores (R, K) and a mask."""
    return reports().map(lambda data: tuple(array.reshape(-1, array.shape[-1]) for array in data))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_names():
    assert {"none", *PAPER} <= set(ATTACKS)
    assert all(ATTACKS[name] is attack for name, attack in PAPER.items())
    assert not any(asks_for(attack, "context") for attack in PAPER.values())


@every_attack
@given(data=reports(), strength=st.sampled_from([0.0, 0.5, 3.0, 10.0, 1e300]))
def test_honest_reports_stay_bit_for_bit(attack, data, strength):
    """In any memory order; the input stays as it was, the result is new and within the scale."""
    scores, malicious = data
    before = scores.copy(), malicious.copy()
    options = {} if attack is none else {STRENGTH[attack.__name__]: strength}
    found = attack(scores, malicious, rng(), **options)
    assert found.shape == scores.shape
    assert found.dtype == np.float64
    assert found[~malicious].tobytes() == scores[~malicious].tobytes()
    assert ((found >= 0) & (found <= 10)).all()
    assert not np.shares_memory(found, scores)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(malicious, before[1])
    fortran = attack(np.asfortranarray(scores), np.asfortranarray(malicious), rng(), **options)
    np.testing.assert_array_equal(fortran, found)


@every_attack
@given(data=rounds_reported())
def test_attacks_by_plain_python(attack, data):
    scores, malicious = data
    nodes = np.where(malicious, 1, 0)
    expected = attacked(attack.__name__, {}, scores, {1}, nodes, rng())
    np.testing.assert_allclose(attack(scores, malicious, rng()), expected, atol=1e-12)


def played(name, scores, malicious, *, start=0, past=(), trust=1.0, **options):
    """Any attack of the mapping on scores (R, K): odd rounds answered by model 1, even ones by model 0."""
    attack = ATTACKS[name]
    number = np.arange(start, start + len(scores))
    known = {
        "context": Context(number, number % 3, number % 2, np.tile(np.arange(scores.shape[1]), (len(scores), 1))),
        "history": History(np.array(past, dtype=float), np.full((1, scores.shape[1]), trust)),
    }
    asked = {keyword: value for keyword, value in known.items() if asks_for(attack, keyword)}
    return attack(scores, malicious, rng(), **asked, **options)


@pytest.mark.parametrize("name", ATTACKS)
@given(data=rounds_reported(), start=st.integers(0, 3000), past=st.lists(st.floats(0, 10), max_size=3))
def test_every_attack_leaves_honest_nodes_alone(name, data, start, past):
    """Whoever the attacker is and whatever it knows."""
    scores, malicious = data
    before = scores.copy()
    for trust in (0.1, 3.0):
        found = played(name, scores, malicious, start=start, past=past, trust=trust)
        assert found.shape == scores.shape
        assert found[~malicious].tobytes() == scores[~malicious].tobytes()
        assert ((found >= 0) & (found <= 10)).all()
        np.testing.assert_array_equal(scores, before)
        arrays = np.asfortranarray(scores), np.asfortranarray(malicious)
        np.testing.assert_array_equal(played(name, *arrays, start=start, past=past, trust=trust), found)


SCORES = np.array([[2.0, 5.0, 8.0], [1.0, 6.0, 9.0]])
MALICIOUS = np.array([[True, False, True], [True, True, False]])
ADAPTIVE = [
    ("target", {}, [[5, 5, 10], [0, 3, 9]]),  # model 0 answers round 0, model 1 round 1
    ("target", {"partner": 1, "by": 1.0}, [[1, 5, 7], [2, 7, 9]]),
    ("favour", {}, [[5, 5, 10], [1, 6, 9]]),
    ("sleeper", {"wake": 1}, [[2, 5, 8], [4, 9, 9]]),
    ("sleeper", {"wake": 1, "start": 1}, [[5, 5, 10], [4, 9, 9]]),
    ("oscillate", {"period": 2}, [[2, 5, 8], [4, 9, 9]]),
    ("oscillate", {"period": 4, "start": 1}, [[2, 5, 8], [4, 9, 9]]),
    ("traitor", {"trust": 1.0}, [[5, 5, 10], [4, 9, 9]]),
    ("traitor", {"trust": 0.9}, [[2, 5, 8], [1, 6, 9]]),
    ("hide", {"z": 0.0}, [[5, 5, 5], [16 / 3, 16 / 3, 9]]),
    ("hide", {"z": -1.0}, [[5 - np.sqrt(6), 5, 5 - np.sqrt(6)], [16 / 3 - np.sqrt(98 / 9)] * 2 + [9]]),
    ("inverse", {}, [[8, 5, 2], [9, 4, 9]]),
    ("constant", {}, [[10, 5, 10], [10, 10, 9]]),
    ("lazy", {}, [[5, 5, 5], [5, 5, 9]]),
    ("copycat", {"past": [3.0, 7.0]}, [[7, 5, 7], [7, 7, 9]]),
    ("copycat", {"past": [3.0, 7.0], "lag": 2}, [[3, 5, 3], [3, 3, 9]]),
    ("copycat", {"past": [3.0, 7.0], "lag": 3}, [[5, 5, 5], [5, 5, 9]]),
    ("coordinated", {"probability": 1.0}, [[5, 5, 10], [4, 9, 9]]),
    ("coordinated", {"probability": 0.0}, SCORES),
    ("sybil", {"by": 1.0}, [[3, 5, 3], [2, 2, 9]]),
    ("affine", {}, SCORES),
    ("affine", {"gain": -1.0}, [[8, 5, 2], [9, 4, 9]]),
    ("affine", {"shift": 1.0, "partner_shift": 2.0}, [[5, 5, 10], [2, 7, 9]]),
]


@pytest.mark.parametrize(("name", "options", "expected"), ADAPTIVE)
def test_adaptive_attacks_by_hand(name, options, expected):
    np.testing.assert_allclose(played(name, SCORES, MALICIOUS, **options), expected, atol=1e-6)


def test_every_adaptive_attack_has_a_case():
    assert {name for name, _, _ in ADAPTIVE} == set(ATTACKS) - {"none", *PAPER}


def test_coordinated_members_strike_together():
    scores = np.full((4000, 5), 4.0)
    struck = played("coordinated", scores, np.ones(scores.shape, dtype=bool)) == 7
    assert (struck.all(axis=1) == struck.any(axis=1)).all()
    assert struck[:, 0].mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 4000))


def test_attacks_by_hand():
    """Eq. 18 and its mirror, clipped at the ends of the scale."""
    scores = np.array([[0.0, 5.0, 8.0], [10.0, 1.0, 2.0]])
    malicious = np.array([[True, False, True], [True, True, False]])
    np.testing.assert_array_equal(boost(scores, malicious, rng()), [[3, 5, 10], [10, 4, 2]])
    np.testing.assert_array_equal(boost(scores, malicious, rng(), by=0.5), [[0.5, 5, 8.5], [10, 1.5, 2]])
    np.testing.assert_array_equal(sabotage(scores, malicious, rng()), [[0, 5, 5], [7, 0, 2]])
    np.testing.assert_array_equal(sabotage(scores, malicious, rng(), by=20), [[0, 5, 0], [0, 0, 2]])
    np.testing.assert_array_equal(none(scores, malicious, rng()), scores)
    for attack in (noise, boost, sabotage, intermittent):
        strength = {STRENGTH[attack.__name__]: 0.0}
        np.testing.assert_array_equal(attack(scores, malicious, rng(), **strength), scores)
    certain = intermittent(scores, malicious, rng(), probability=1.0, by=2.0)
    np.testing.assert_array_equal(certain, boost(scores, malicious, rng(), by=2.0))
    np.testing.assert_array_equal(intermittent(scores, malicious, rng(), probability=0.0), scores)


@pytest.mark.parametrize("sd", [0.5, 1.2])
def test_noise_is_normal(sd):
    """Away from the ends, by Kolmogorov-Smirnov; every entry has a draw of its own."""
    scores = np.full((5000, 4), 5.0)
    malicious = rng(1).random(scores.shape) < 0.5
    shift = (noise(scores, malicious, rng(2), sd=sd) - scores)[malicious]
    assert stats.kstest(shift / sd, "norm").pvalue > 0.001
    assert len(np.unique(shift)) == len(shift)


def test_noise_piles_up_at_the_ends():
    """At a score of 8 and s.d. 3 the share that lands on 10 is P(z > 2/3)."""
    found = noise(np.full(40_000, 8.0), np.ones(40_000, dtype=bool), rng(3))
    for end, chance in [(10.0, stats.norm.sf(2 / 3)), (0.0, stats.norm.cdf(-8 / 3))]:
        margin = 4 * np.sqrt(chance * (1 - chance) / 40_000)
        assert (found == end).mean() == pytest.approx(chance, abs=margin)
    inside = found[(found > 0) & (found < 10)]
    truncated = stats.truncnorm(-8 / 3, 2 / 3, loc=8, scale=3)
    assert stats.kstest(inside, truncated.cdf).pvalue > 0.001


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.8])
def test_intermittent_strikes_with_its_probability(probability):
    """Report by report, independent of the other seats."""
    scores = np.full((10_000, 4), 4.0)
    found = intermittent(scores, np.ones(scores.shape, dtype=bool), rng(4), probability=probability)
    struck = found == 7
    assert (struck | (found == 4)).all()
    low, high = stats.binom(scores.size, probability).interval(0.9999)
    assert low <= struck.sum() <= high
    at_least_one = 1 - (1 - probability) ** 4
    margin = 4 * np.sqrt(at_least_one * (1 - at_least_one) / 10_000)
    assert struck.any(axis=1).mean() == pytest.approx(at_least_one, abs=margin)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("value", [-1, -1e-9, np.nan, np.inf, -np.inf, "3", [1, 2], True, None])
def test_bad_strength(name, value):
    with pytest.raises(ValueError, match=STRENGTH[name]):
        PAPER[name](np.ones(3), np.ones(3, dtype=bool), rng(), **{STRENGTH[name]: value})


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
def test_bad_probability(value):
    with pytest.raises(ValueError, match="probability"):
        intermittent(np.ones(3), np.ones(3, dtype=bool), rng(), probability=value)


@every_attack
def test_whole_numbers_are_scores_too(attack):
    found = attack(np.array([0, 5, 10]), np.array([True, False, False]), rng())
    assert found.dtype == np.float64
    assert found[1:].tolist() == [5, 10]


def test_affine_adds_noise_and_strikes_as_often_as_it_says():
    rng, scores = np.random.default_rng(0), np.full((40_000, 3), 5.0)
    malicious = np.array([[True, True, False]]).repeat(len(scores), axis=0)
    context = Context(np.arange(len(scores)), *np.zeros((2, len(scores)), int), np.zeros(scores.shape, int))
    moved = ATTACKS["affine"](scores, malicious, rng, context=context, sd=0.5, probability=0.3, shift=1.0)
    struck = moved[:, 0] != 5.0
    assert (struck == (moved[:, 1] != 5.0)).all()  # together
    assert struck.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / len(scores)))
    drawn = moved[struck, :2] - 6.0
    assert abs(drawn.mean()) < 4 * 0.5 / np.sqrt(drawn.size)
    assert drawn.std() == pytest.approx(0.5, rel=0.03)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 4 / np.sqrt(len(drawn))
    for probability, share in ((0.0, 0.0), (1.0, 1.0)):
        moved = ATTACKS["affine"](scores, malicious, rng, context=context, probability=probability, shift=1.0)
        assert (moved[:, 0] == 6.0).mean() == share


@pytest.mark.parametrize("partner", [-1, 1.5, "model-00", True])
@pytest.mark.parametrize("attack", ["target", "favour", "affine"])
def test_a_partner_is_a_number(attack, partner):
    with pytest.raises(ValueError, match="partner must be a whole number"):
        Scenario("qa", attack=attack, attack_options={"partner": partner})


def test_a_copycat_remembers_no_more_than_it_is_shown():
    with pytest.raises(ValueError, match="lag must be 1000 rounds or fewer, not 1001"):
        Scenario("qa", attack="copycat", attack_options={"lag": 1001})
