"""A Yuma epoch in plain numpy, and Yuma's clip with stake that earns, for rounds of committees.

``yuma_epoch`` restates the published algorithm [yuma]: a matrix of weights that every validator sets on every miner is
clipped at a stake-weighted quantile, and bonds earn dividends. ``yuma_rounds`` is our reconstruction of it for a
network in which only a committee sees an output.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from poq.aggregators import quantile_clip


class YumaEpoch(NamedTuple):
    """consensus (M,), clipped (N, M), incentive (M,), bonds (N, M), dividends (N,)."""

    consensus: np.ndarray
    clipped: np.ndarray
    incentive: np.ndarray
    bonds: np.ndarray
    dividends: np.ndarray


def yuma_epoch(weights, stake, bonds=None, *, kappa: float = 0.5, bond_rate: float = 0.1) -> YumaEpoch:
    """One epoch [yuma]: consensus, clipping, incentives, bonds, dividends.

    Parameters
    ----------
    weights : (N, M) array, not negative
        What N validators set on M miners; rows are brought to the sum 1. A weight that was not set is 0, and counts as
        the opinion that the miner is worth nothing.
    stake : (N,) array
    bonds : (N, M) array, optional
        Bonds after the epoch before; the first epoch takes its own.
    kappa : float in (0, 1]
        A weight stands if validators with this share of all stake set at least as much.
    bond_rate : float in (0, 1]
        Weight of this epoch in the moving average of bonds.

    Returns
    -------
    YumaEpoch
        Consensus is a share of all weight, not a score: the level of a row is divided out.
    """
    weights, stake = np.asarray(weights, dtype=np.float64), np.asarray(stake, dtype=np.float64)
    if weights.ndim != 2 or stake.shape != weights.shape[:1]:
        raise ValueError(f"weights must be (N, M) and stake (N,), not {weights.shape} and {stake.shape}")
    if (weights < 0).any() or (stake < 0).any() or not stake.sum() > 0:
        raise ValueError("weights and stake must not be negative, and some stake must be there")
    if not 0 < kappa <= 1 or not 0 < bond_rate <= 1:
        raise ValueError(f"kappa and bond_rate must lie in (0, 1], not {kappa!r} and {bond_rate!r}")
    stake = stake / stake.sum()
    weights = _shares(weights, axis=1)
    order = np.argsort(-weights, axis=0, kind="stable")
    support = np.cumsum(stake[order], axis=0)
    enough = np.argmax(support >= kappa - 1e-12, axis=0)
    consensus = np.take_along_axis(np.take_along_axis(weights, order, axis=0), enough[None], axis=0)[0]
    clipped = np.minimum(weights, consensus)
    incentive = _shares(stake @ clipped, axis=0)
    earned = _shares(stake[:, None] * clipped, axis=0)
    bonds = earned if bonds is None else bond_rate * earned + (1 - bond_rate) * np.asarray(bonds, dtype=np.float64)
    bonds = _shares(bonds, axis=0)
    return YumaEpoch(consensus, clipped, incentive, bonds, _shares(bonds @ incentive, axis=0))


def yuma_rounds(
    scores,
    node,
    output,
    n_nodes: int,
    n_outputs: int,
    *,
    epoch: int = 100,
    kappa: float = 0.5,
    bond_rate: float = 0.1,
    emission: float = 0.05,
):
    """Consensus (R,) of rounds under Yuma's clip, with stake that grows by dividends (our reconstruction).

    Within a round the committee's scores are clipped at what a share kappa of *its* stake supports; the members' stake
    stays as it is until the epoch ends. Then each output takes the place of a miner, those who scored it hold bonds in
    it, and `emission` times all stake is shared out by dividends. Absent nodes have no opinion, where the original
    counts them as zeros.

    Parameters
    ----------
    scores, node : (R, K) arrays
    output : (R,) int array
    epoch : int
        Rounds per epoch.
    emission : float
        New stake per epoch, as a share of all stake.
    """
    scores, node, output = np.asarray(scores, dtype=np.float64), np.asarray(node), np.asarray(output)
    if scores.ndim != 2 or scores.shape != node.shape or output.shape != scores.shape[:1]:
        raise ValueError(f"scores and node must be (R, K), output (R,), not {scores.shape}, {node.shape}")
    if isinstance(epoch, bool) or epoch != int(epoch) or epoch < 1:
        raise ValueError(f"epoch must be a whole number of rounds, 1 or more, not {epoch!r}")
    if not (np.isfinite(emission) and emission >= 0):
        raise ValueError(f"emission must be 0 or more, not {emission!r}")
    stake = np.full(n_nodes, 1 / n_nodes)
    bonds = np.zeros((n_nodes, n_outputs))
    consensus = np.empty(len(scores))
    for begin in range(0, len(scores), int(epoch)):
        now = slice(begin, begin + int(epoch))
        members, seen = node[now], output[now]
        consensus[now] = quantile_clip(scores[now], kappa=kappa, weights=stake[members])
        earned = np.zeros_like(bonds)
        # No score beyond the consensus of its round earns a bond.
        held = stake[members] * np.minimum(scores[now], consensus[now, None])
        np.add.at(earned, (members, seen[:, None]), held)
        columns = np.unique(seen)
        earned = _shares(earned[:, columns], axis=0)
        before = bonds[:, columns]
        old = before.sum(axis=0) > 0  # an output that is new takes its first bonds as they are
        bonds[:, columns] = np.where(old, bond_rate * earned + (1 - bond_rate) * before, earned)
        rank = np.bincount(seen, weights=consensus[now], minlength=n_outputs)
        stake = stake + emission * stake.sum() * _shares(bonds @ _shares(rank, axis=0), axis=0)
    return consensus


def _shares(values: np.ndarray, *, axis: int) -> np.ndarray:
    """Values over their sum along an axis; zeros stay zeros."""
    total = values.sum(axis=axis, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)
