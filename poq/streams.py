"""Named random streams: every draw belongs to a (seed, trial, purpose, slot), whatever else is simulated beside it."""

from __future__ import annotations

import zlib

import numpy as np
from numba import njit


def stream(seed: int, trial: int, purpose: str, slot: int = 0) -> np.random.Generator:
    """The generator of one purpose in one trial.

    Parameters
    ----------
    seed : int
        The root seed, 0 or more.
    trial : int
        From 0.
    purpose : str
        What is drawn ("output", "committee", ...). Streams of different names are independent.
    slot : int
        For draws that come once per committee seat: the seat. A seat has its own stream, so that the committee of
        three is the beginning of the committee of five.
    """
    if seed < 0 or trial < 0:
        raise ValueError(f"seed and trial must be 0 or more, not {seed} and {trial}")
    key = np.random.SeedSequence([seed, trial, zlib.crc32(purpose.encode()), slot])
    return np.random.Generator(np.random.SFC64(key))


def uniform_state(seed: int, trial: int, purpose: str, n_slots: int = 1) -> np.ndarray:
    """The state, (S, 4), of the streams of slots 0 to S - 1, for :func:`fill_uniform`."""
    generators = [stream(seed, trial, purpose, slot) for slot in range(n_slots)]
    return np.array([rng.bit_generator.state["state"]["state"] for rng in generators], dtype=np.uint64)


@njit(cache=True)
def fill_uniform(state, drawn):
    """Fill row k of (S, B) with the numbers that ``rng.random(B)`` gives for stream k, whose state moves on.

    numpy's SFC64, and its double of the upper 53 bits, once more: compiled into the loop it takes half the time.
    """
    for k in range(len(state)):
        a, b, c, counter = state[k]
        for t in range(drawn.shape[1]):
            bits = a + b + counter
            counter += np.uint64(1)
            a = b ^ (b >> np.uint64(11))
            b = c + (c << np.uint64(3))
            c = ((c << np.uint64(24)) | (c >> np.uint64(40))) + bits
            drawn[k, t] = np.int64(bits >> np.uint64(11)) * 2.0**-53
        state[k, 0], state[k, 1], state[k, 2], state[k, 3] = a, b, c, counter


def standard_normal(rng: np.random.Generator, shape) -> np.ndarray:
    """The same numbers as ``rng.standard_normal(shape)``; the compiled loop takes half the time of numpy's own."""
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng must be a numpy Generator (numpy.random.default_rng(seed)), not {type(rng).__name__}")
    drawn = np.empty(shape)
    _fill_normal(rng, drawn.reshape(-1))
    return drawn


@njit(cache=True)
def _fill_normal(rng, drawn):
    for i in range(len(drawn)):
        drawn[i] = rng.standard_normal()
