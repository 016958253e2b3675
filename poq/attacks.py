"""Attacks: what malicious nodes report instead of the honest score.

Every attack takes the honest scores and a mask of malicious entries, and returns a new array in which honest entries
are the same bit for bit. Boosting is Eq. 18 of [robust2026] as told by [promptfoo]; the other three are named in its
abstract, their form and all strengths are our reconstruction.

All attacks share their first arguments: honest ``scores`` (..., K) in [0, 10], the mask ``malicious`` (..., K), and a
numpy Generator ``rng``. ``by`` is a shift in points, ``probability`` that of a strike.

An attack that needs to know the round takes a keyword ``context``: see :class:`Context`. One that reacts to what the
rule did takes a keyword ``history``: see :class:`History`; it is called round by round. Attackers who adapt are ours.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numba import njit

from poq.matrix import SCORE_MAX
from poq.streams import standard_normal

MEMORY = 1000  # past consensus values that a reacting attacker is shown


class Context(NamedTuple):
    """What an attacker may look at: number of each round (R,), output (R,), model (R,), node (R, K)."""

    round: np.ndarray
    output: np.ndarray
    model: np.ndarray
    node: np.ndarray


class History(NamedTuple):
    """What a reacting attacker knows before a round: past consensus (t,), the committee's trust weights (1, K).

    Of the past it remembers at most MEMORY rounds.
    Weights are relative to the mean weight of all nodes; they are 1 under a rule without memory.
    """

    consensus: np.ndarray
    weights: np.ndarray


def none(scores, malicious, rng):
    """No attack: a copy of the scores."""
    return np.array(scores, dtype=np.float64)


def noise(scores, malicious, rng, *, sd: float = 3.0):
    """clip(s + N(0, sd^2), 0, 10) for malicious entries (our reconstruction).

    Parameters
    ----------
    scores : (..., K) float array in [0, 10]
    malicious : (..., K) bool array
    rng : numpy Generator
    sd : float
        Standard deviation, points.
    """
    _check_strength("sd", sd)
    drawn = sd * standard_normal(rng, np.shape(scores))
    return _replace(scores, malicious, scores + drawn)


def boost(scores, malicious, rng, *, by: float = 3.0):
    """min(10, s + by) for malicious entries: Eq. 18 [robust2026, promptfoo]. Shapes as :func:`noise`; by in points."""
    _check_strength("by", by)
    return _moved(_lift, scores, malicious, by)


def sabotage(scores, malicious, rng, *, by: float = 3.0):
    """max(0, s - by) for malicious entries (our reconstruction). Shapes as :func:`noise`; by in points."""
    _check_strength("by", by)
    return _moved(_lower, scores, malicious, by)


def _moved(move: Callable, scores, malicious, by: float) -> np.ndarray:
    """A compiled loop over all scores, in whichever order they lie in memory; with numpy it would be three passes."""
    scores = np.asarray(scores, dtype=np.float64)
    malicious = np.broadcast_to(np.asarray(malicious, dtype=bool), scores.shape)
    order = "F" if scores.flags.f_contiguous else "C"
    reported = np.empty(scores.shape, order=order)
    move(scores.ravel(order), malicious.ravel(order), float(by), reported.ravel(order))
    return reported


@njit(cache=True)
def _lift(scores, malicious, by, reported):
    for i in range(len(scores)):
        reported[i] = min(scores[i] + by, SCORE_MAX) if malicious[i] else scores[i]


@njit(cache=True)
def _lower(scores, malicious, by, reported):
    for i in range(len(scores)):
        reported[i] = max(scores[i] - by, 0.0) if malicious[i] else scores[i]


def intermittent(scores, malicious, rng, *, by: float = 3.0, probability: float = 0.3):
    """Boosting of each malicious entry with the given probability, else the honest score (our reconstruction)."""
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], not {probability!r}")
    strikes = rng.random(np.shape(scores)) < probability
    return boost(scores, malicious & strikes, rng, by=by)


def _check_strength(name: str, value: float) -> None:
    if not (_is_finite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of points, 0 or more, not {value!r}")


def target(scores, malicious, rng, *, context: Context, by: float = 3.0, partner: int = 0):
    """Targeted collusion: lift the outputs of one inference model by `by` points and lower those of all others.

    `partner` is the number of that model in the order of names.
    """
    _check_strength("by", by)
    _check_whole("partner", partner, least=0)
    side = np.where(np.asarray(context.model) == partner, by, -by)[..., None]
    return _replace(scores, malicious, np.asarray(scores, dtype=np.float64) + side)


def favour(scores, malicious, rng, *, context: Context, by: float = 3.0, partner: int = 0):
    """Targeted collusion without sabotage: lift the outputs of one inference model only."""
    _check_strength("by", by)
    _check_whole("partner", partner, least=0)
    side = np.where(np.asarray(context.model) == partner, by, 0.0)[..., None]
    return _replace(scores, malicious, np.asarray(scores, dtype=np.float64) + side)


def sleeper(scores, malicious, rng, *, context: Context, by: float = 3.0, wake: int = 1000):
    """Honest for `wake` rounds, then boost."""
    _check_whole("wake", wake, least=0)
    return boost(scores, malicious & (np.asarray(context.round) >= wake)[..., None], rng, by=by)


def oscillate(scores, malicious, rng, *, context: Context, by: float = 3.0, period: int = 500):
    """Honest in the first half of every `period` rounds, boosting in the second."""
    _check_whole("period", period, least=2)
    strikes = np.asarray(context.round) % period >= period / 2
    return boost(scores, malicious & strikes[..., None], rng, by=by)


def traitor(scores, malicious, rng, *, history: History, by: float = 3.0, trusted: float = 1.0):
    """Boost whenever one's own trust is at least `trusted` times the mean trust of all nodes, else be honest."""
    _check_strength("trusted", trusted)
    return boost(scores, malicious & (history.weights >= trusted), rng, by=by)


def hide(scores, malicious, rng, *, z: float = 1.0):
    """A little is enough [baruch2019]: report the committee's honest mean plus z of its standard deviations.

    The attackers know all honest scores of the round; `z` may be negative.
    """
    _check_number("z", z)
    scores = np.asarray(scores, dtype=np.float64)
    return _replace(scores, malicious, scores.mean(axis=-1, keepdims=True) + z * scores.std(axis=-1, keepdims=True))


def inverse(scores, malicious, rng):
    """10 - s for malicious entries."""
    return _replace(scores, malicious, SCORE_MAX - np.asarray(scores, dtype=np.float64))


def constant(scores, malicious, rng, *, value: float = 10.0):
    """The same value whatever the output; at the prior mean of scores this is the lazy node that does no work."""
    if not 0 <= value <= SCORE_MAX:
        raise ValueError(f"value must lie in [0, 10], not {value!r}")
    return _replace(scores, malicious, np.full(np.shape(scores), float(value)))


def lazy(scores, malicious, rng, *, value: float = 5.0):
    """No work: report the value that one expects of any output."""
    return constant(scores, malicious, rng, value=value)


def copycat(scores, malicious, rng, *, history: History, lag: int = 1, value: float = 5.0):
    """No work: report the consensus of `lag` rounds ago, and `value` before there is one.

    Commit-reveal hides the consensus for longer than a copy is worth; the copycat is then :func:`lazy`.
    """
    _check_whole("lag", lag, least=1)
    if lag > MEMORY:
        raise ValueError(f"lag must be {MEMORY} rounds or fewer, not {lag}")
    past = history.consensus
    if len(past) >= lag:
        value = min(max(float(past[-lag]), 0.0), SCORE_MAX)  # a rule of one's own may round past the ends
    return constant(scores, malicious, rng, value=value)


def coordinated(scores, malicious, rng, *, by: float = 3.0, probability: float = 0.3):
    """Intermittent boosting in which all malicious members strike in the same rounds."""
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], not {probability!r}")
    strikes = rng.random(np.shape(scores)[:-1]) < probability
    return boost(scores, malicious & strikes[..., None], rng, by=by)


def sybil(scores, malicious, rng, *, by: float = 3.0):
    """One operator behind all malicious nodes: each reports the first one's score plus `by` points."""
    _check_strength("by", by)
    scores, malicious = np.asarray(scores, dtype=np.float64), np.asarray(malicious)
    first = np.take_along_axis(scores, np.argmax(malicious, axis=-1)[..., None], axis=-1)
    return _replace(scores, malicious, np.broadcast_to(first + by, scores.shape))


def affine(
    scores,
    malicious,
    rng,
    *,
    context: Context,
    gain: float = 1.0,
    shift: float = 0.0,
    sd: float = 0.0,
    probability: float = 1.0,
    partner: int = 0,
    partner_shift: float = 0.0,
):
    """A family that holds most attacks: with `probability`, 5 + gain (s - 5) + shift + N(0, sd^2), clipped.

    For outputs of the model `partner` the shift is `shift + partner_shift`. All malicious members of a round strike
    together. The search for a best response moves in this family.
    """
    for name, number in (("gain", gain), ("shift", shift), ("partner_shift", partner_shift)):
        _check_number(name, number)
    _check_strength("sd", sd)
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], not {probability!r}")
    _check_whole("partner", partner, least=0)
    scores = np.asarray(scores, dtype=np.float64)
    # A round takes its draws together, so that rounds do not hang on how they are cut into blocks: the first says
    # whether the committee strikes.
    first, drawn = np.split(standard_normal(rng, (*scores.shape[:-1], scores.shape[-1] + 1)), [1], axis=-1)
    level = NormalDist().inv_cdf(probability) if 0 < probability < 1 else np.inf if probability else -np.inf
    side = shift + partner_shift * (np.asarray(context.model) == partner)[..., None]
    middle = SCORE_MAX / 2
    return _replace(scores, malicious & (first < level), middle + gain * (scores - middle) + side + sd * drawn)


def _replace(scores, malicious, reported):
    """Reports, clipped to [0, 10], for malicious entries; the honest ones as they are."""
    return np.where(malicious, np.clip(reported, 0.0, SCORE_MAX), scores)


def _check_number(name: str, value: float) -> None:
    if not _is_finite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")


def _is_finite(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and bool(np.isfinite(value))


def _check_whole(name: str, value: int, *, least: int) -> None:
    whole = isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value).is_integer()
    if not whole or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, not {value!r}")


@lru_cache(maxsize=256)
def asks_for(attack: Callable, keyword: str) -> bool:
    """Whether an attack has the keyword "context" or "history"."""
    return keyword in inspect.signature(attack).parameters


ATTACKS: dict[str, Callable] = {
    "none": none,
    "noise": noise,
    "boost": boost,
    "sabotage": sabotage,
    "intermittent": intermittent,
    "target": target,
    "favour": favour,
    "sleeper": sleeper,
    "oscillate": oscillate,
    "traitor": traitor,
    "hide": hide,
    "inverse": inverse,
    "constant": constant,
    "lazy": lazy,
    "copycat": copycat,
    "coordinated": coordinated,
    "sybil": sybil,
    "affine": affine,
}
