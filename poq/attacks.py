"""Attacks: what malicious nodes report instead of the honest score.

Every attack takes the honest scores and a mask of malicious entries, and returns a new array in which honest entries
are the same bit for bit. Boosting is Eq. 18 of [robust2026] as told by [promptfoo]; the other three are named in its
abstract, their form and all strengths are our reconstruction.

An attack that needs to know the round takes a keyword ``context``: see :class:`Context`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from poq.scorelog import SCORE_MAX
from poq.streams import standard_normal


class Context(NamedTuple):
    """What an attacker may look at: number of each round (R,), output (R,), model (R,), node (R, K)."""

    round: np.ndarray
    output: np.ndarray
    model: np.ndarray
    node: np.ndarray


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
    scores = np.asarray(scores, dtype=np.float64)
    drawn = sd * standard_normal(rng, scores.shape)
    return np.where(malicious, np.clip(scores + drawn, 0.0, SCORE_MAX), scores)


def boost(scores, malicious, rng, *, by: float = 3.0):
    """min(10, s + by) for malicious entries: Eq. 18 [robust2026, promptfoo]. Shapes as :func:`noise`; by in points."""
    _check_strength("by", by)
    return np.minimum(SCORE_MAX, np.asarray(scores, dtype=np.float64) + np.multiply(malicious, float(by)))


def sabotage(scores, malicious, rng, *, by: float = 3.0):
    """max(0, s - by) for malicious entries (our reconstruction). Shapes as :func:`noise`; by in points."""
    _check_strength("by", by)
    return np.maximum(0.0, np.asarray(scores, dtype=np.float64) - np.multiply(malicious, float(by)))


def intermittent(scores, malicious, rng, *, by: float = 3.0, probability: float = 0.3):
    """Boosting of each malicious entry with the given probability, else the honest score (our reconstruction)."""
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], not {probability!r}")
    strikes = rng.random(np.shape(scores)) < probability
    return boost(scores, malicious & strikes, rng, by=by)


def _check_strength(name: str, value: float) -> None:
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of points, 0 or more, not {value!r}")


def asks_for_context(attack: Callable) -> bool:
    """Whether an attack has the keyword ``context``."""
    return "context" in inspect.signature(attack).parameters


ATTACKS: dict[str, Callable] = {
    "none": none,
    "noise": noise,
    "boost": boost,
    "sabotage": sabotage,
    "intermittent": intermittent,
}
