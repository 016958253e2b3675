"""Rounds: which output is answered, which committee scores it, and what its honest members report.

In a round one output is drawn uniformly, then a committee of K different nodes among those that scored it.
Arrays that leave this module are (R, K); inside, a seat is contiguous in memory, so that (R, K) is the transpose of
a (K, R) array and whole seats go through one vector instruction.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import njit

from poq.matrix import SCORE_MAX, ScoreMatrix
from poq.streams import fill_uniform, stream, uniform_state

SMALL_COMMITTEE = 9  # up to here the shuffle that looks back is the faster one


class Pool(NamedTuple):
    """The nodes of a network and the outputs they can be asked about.

    Attributes
    ----------
    values : (O, E) float array
        Calibrated scores.
    evaluator : (N,) int array
        Evaluator model of each node.
    output : (D,) int array
        The outputs in the draw; an output may stand there more than once when items are resampled.
    first, size : (O,) int arrays
        Where the list of nodes that scored an output begins in `nodes`, and its length.
    nodes : (L,) int array
        Those lists, one after the other.
    jitter : float
        Standard deviation of a node's own noise, points.
    dropped : int
        Outputs left out because fewer than `min_available` nodes scored them.
    """

    values: np.ndarray
    evaluator: np.ndarray
    output: np.ndarray
    first: np.ndarray
    size: np.ndarray
    nodes: np.ndarray
    jitter: float
    dropped: int


def make_pool(
    matrix: ScoreMatrix,
    *,
    committee: int,
    n_nodes: int | None = None,
    min_available: int | None = None,
    jitter: float = 0.5,
    resample: str = "none",
    seed: int = 0,
    trial: int = 0,
) -> Pool:
    """The pool of one trial.

    Parameters
    ----------
    matrix : ScoreMatrix
    committee : int
        K.
    n_nodes : int, optional
        N; by default one node per evaluator model. With more nodes than models, node n runs model n mod E and adds
        noise of its own; with fewer, the trial draws which models take part.
    min_available : int, optional
        An output stays in the draw when at least so many nodes scored it; K by default, never fewer.
    jitter : float
        S.d. of the noise that a node adds to its model's score, points; used only where models are shared (N > E).
    resample : "none" or "items"
        "items" draws a bootstrap sample of whole items per trial, so that the spread between trials shows how far a
        result hangs on the items at hand.

    Raises
    ------
    ValueError
        If K exceeds the nodes, or fewer than two outputs are left; the message names the task.
    """
    if resample not in ("none", "items"):
        raise ValueError(f"unknown resample '{resample}': use none or items")
    n_evaluators = matrix.values.shape[1]
    n_nodes = n_evaluators if n_nodes is None else n_nodes
    if committee > n_nodes:
        raise ValueError(
            f"committee {committee} is larger than the {n_nodes} nodes at hand for task '{matrix.task}' "
            f"({n_evaluators} evaluators in the log)"
        )
    if n_nodes < n_evaluators:
        evaluator = stream(seed, trial, "subset").permutation(n_evaluators)[:n_nodes]
    else:
        evaluator = np.arange(n_nodes) % n_evaluators

    # Outputs that the same evaluators scored share one list of nodes.
    known, pattern = matrix.patterns
    scored = known[:, evaluator]
    size = scored.sum(axis=1)
    first = np.cumsum(size) - size
    least = committee if min_available is None else max(committee, min_available)
    available = size[pattern] >= least
    output = np.flatnonzero(available)
    if len(output) < 2:
        raise ValueError(
            f"task '{matrix.task}' has {len(output)} output(s) that at least {least} of {n_nodes} nodes scored; "
            f"a simulation needs 2 or more"
        )
    dropped = int((~available).sum())
    if resample == "items":
        output = _resample_items(matrix.item, output, stream(seed, trial, "items"))
    return Pool(
        values=matrix.values,
        evaluator=evaluator.astype(np.int32),
        output=output.astype(np.int32),
        first=first[pattern].astype(np.int32),
        size=size[pattern].astype(np.int32),
        nodes=np.nonzero(scored)[1].astype(np.int32),
        jitter=float(jitter) if n_nodes > n_evaluators else 0.0,
        dropped=dropped,
    )


def _resample_items(item: np.ndarray, output: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    items, code = np.unique(item[output], return_inverse=True)
    times = np.bincount(rng.integers(len(items), size=len(items)), minlength=len(items))
    return np.repeat(output, times[code])


def block_length(committee: int) -> int:
    """Rounds that are worked on at once: small enough for the cache, large enough to hide the cost of a call.

    No power of two, because seats at such distances fall on the same cache lines (measured: four times slower).
    """
    return int(np.clip(60_000 // committee, 2_000, 12_000))


def count_outputs(pool: Pool, edges, *, skip: int = 0, seed: int, trial: int) -> np.ndarray:
    """How often each output is answered, (O,), from round `skip` on, where a block must begin."""
    state = uniform_state(seed, trial, "output")
    count = np.zeros(len(pool.first))
    for begin, end in pairwise(edges):
        uniform = np.empty((1, end - begin))
        fill_uniform(state, uniform)
        if begin >= skip:
            _count(uniform[0], pool.output, count)
    return count


def iter_rounds(pool: Pool, committee: int, edges, *, seed: int, trial: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Blocks of rounds: output (B,), node (B, K), honest scores (B, K); `edges` are the rounds where blocks meet."""
    outputs = uniform_state(seed, trial, "output")
    seats = uniform_state(seed, trial, "committee", committee)
    noises = [stream(seed, trial, "jitter", seat) for seat in range(committee)] if pool.jitter else []
    scratch = pool.nodes.copy()
    for begin, end in pairwise(edges):
        output = np.empty(end - begin, dtype=np.int32)
        uniform = np.empty((committee, len(output)))
        fill_uniform(outputs, uniform[:1])
        _pick(uniform[0], pool.output, output)
        fill_uniform(seats, uniform)
        node = np.empty((committee, len(output)), dtype=np.int32)
        if committee <= SMALL_COMMITTEE:
            _draw_small_committees(uniform, output, pool.first, pool.size, pool.nodes, node)
        else:
            _draw_committees(uniform, output, pool.first, pool.size, pool.nodes, scratch, node)
        honest = np.empty((committee, len(output)))
        _gather(pool.values, pool.evaluator, output, node, honest)
        for rng, row in zip(noises, honest):
            _add_noise(rng, pool.jitter, row)
        yield output, node.T, honest.T


def sample_rounds(pool: Pool, *, n_rounds: int, committee: int, seed: int = 0, trial: int = 0):
    """All rounds of one trial at once.

    Returns
    -------
    output : (R,) int array
    node : (R, K) int array
    scores : (R, K) float array
        What the committee members report when they are honest.
    """
    least = int(pool.size[pool.output].min())
    if committee > least:
        raise ValueError(f"committee {committee} is larger than the {least} nodes that scored an output of this pool")
    step = block_length(committee)
    edges = [*range(0, n_rounds, step), n_rounds]
    blocks = list(iter_rounds(pool, committee, edges, seed=seed, trial=trial))
    return tuple(np.concatenate(parts) for parts in zip(*blocks))


def gather(pool: Pool, output: np.ndarray, node: np.ndarray) -> np.ndarray:
    """Score of each committee member's evaluator model for the round's output, (R, K), without a node's own noise."""
    return pool.values[np.asarray(output)[:, None], pool.evaluator[node]]


def mark_nodes(marked, node):
    """Which committee members are marked: (N,) bool and (R, K) node numbers to (R, K) bool."""
    seats = np.ascontiguousarray(node.T)
    hit = np.empty(seats.shape, dtype=bool)
    _mark(marked, seats, hit)
    return hit.T


def malicious_nodes(pool: Pool, matrix: ScoreMatrix, *, who: str = "random", seed: int = 0, trial: int = 0):
    """The order, (N,), in which nodes turn malicious: the first n of it are the malicious ones, so sets are nested.

    Parameters
    ----------
    who : "random", "best" or "worst"
        A random order, or by the Pearson correlation of a node's evaluator with the truth.
    """
    if who not in ("random", "best", "worst"):
        raise ValueError(f"unknown who '{who}': use random, best or worst")
    order = stream(seed, trial, "malicious").permutation(len(pool.evaluator))
    if who == "random":
        return order
    skill = np.nan_to_num(matrix.skill, nan=-2.0)[pool.evaluator]
    return order[np.argsort(-skill[order] if who == "best" else skill[order], kind="stable")]


# Indices in these loops are unsigned: a signed one might be negative and count from the end, and the compiled code
# would look for that at every access (measured: 1.3 to 2 times slower).


@njit(cache=True)
def _draw_committees(uniform, output, first, size, nodes, scratch, node):
    """Partial Fisher-Yates shuffle of the nodes that scored each round's output; `scratch` equals `nodes` again after.

    A shuffle that starts afresh in every round makes the committee of K - 1 the beginning of the committee of K.
    """
    committee, n_rounds = uniform.shape
    swapped = np.empty(committee, dtype=np.uint64)
    for t in range(n_rounds):
        start = np.uint64(first[np.uint64(output[t])])
        n = size[np.uint64(output[t])]
        for k in range(committee):
            j = start + np.uint64(k + int(uniform[k, t] * (n - k)))
            swapped[k] = j
            node[k, t] = scratch[j]
            scratch[j] = scratch[start + np.uint64(k)]  # where the shuffle will not look again, nothing is kept
        for j in swapped:
            scratch[j] = nodes[j]


@njit(cache=True)
def _draw_small_committees(uniform, output, first, size, nodes, node):
    """The same shuffle without a list of the nodes: what stands at a place is looked for among the swaps so far.

    That is quadratic in K, but no round waits for another, so that a seat of many rounds is drawn at once.
    """
    committee, n_rounds = uniform.shape
    drawn = np.empty((committee, n_rounds), dtype=np.int32)  # the place that a seat was drawn from ...
    moved = np.empty((committee, n_rounds), dtype=np.int32)  # ... and which of the list was put there instead
    available = np.empty(n_rounds, dtype=np.int32)
    for t in range(n_rounds):
        available[t] = size[np.uint64(output[t])]
    for k in range(committee):
        for t in range(n_rounds):
            drawn[k, t] = node[k, t] = k + int(uniform[k, t] * (available[t] - k))
            moved[k, t] = k
        for i in range(k):
            for t in range(n_rounds):
                if drawn[i, t] == drawn[k, t]:
                    node[k, t] = moved[i, t]
                if drawn[i, t] == k:
                    moved[k, t] = moved[i, t]
    for k in range(committee):
        for t in range(n_rounds):
            node[k, t] = nodes[np.uint64(first[np.uint64(output[t])] + node[k, t])]


@njit(cache=True)
def _choose(uniform, choices):
    return choices[np.uint64(int(uniform * len(choices)))]


@njit(cache=True)
def _pick(uniform, choices, picked):
    for t in range(len(uniform)):
        picked[t] = _choose(uniform[t], choices)


@njit(cache=True)
def _count(uniform, choices, count):
    for u in uniform:
        count[np.uint64(_choose(u, choices))] += 1.0


@njit(cache=True)
def _mark(marked, node, hit):
    committee, n_rounds = node.shape
    for k in range(committee):
        for t in range(n_rounds):
            hit[k, t] = marked[np.uint64(node[k, t])]


@njit(cache=True)
def _gather(values, evaluator, output, node, honest):
    committee, n_rounds = node.shape
    for k in range(committee):
        for t in range(n_rounds):
            honest[k, t] = values[np.uint64(output[t]), np.uint64(evaluator[np.uint64(node[k, t])])]


@njit(cache=True)
def _add_noise(rng, sd, scores):
    for t in range(len(scores)):
        scores[t] = min(max(scores[t] + sd * rng.standard_normal(), 0.0), SCORE_MAX)
