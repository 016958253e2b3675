"""One function per peer, all with one signature.

    estimate(reports (R, K), node (R, K), output (R,), n_nodes, n_outputs) -> (R,)

Reports lie in [0, 10]. A peer that knows "stimuli" or "tasks" takes an output for one, and pools all reports on it; to
make it judge each round alone, number the rounds: ``output=np.arange(R), n_outputs=R``. Packages are imported inside
the functions, so that this file can be read where none is installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import signal
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

BINS = 5  # labels that scores are binned into for crowd-kit; a label stands for the middle of its bin
SCORE_MAX = 10.0


class Peer(NamedTuple):
    """How a method is called, whose it is, what it sees, and which of ours it can be compared with.

    sees : "round", this round's reports only; "past", also earlier rounds; "all", all rounds at once.
    ours : the name of our method that computes the same or the nearest thing.
    """

    estimate: Callable
    package: str
    sees: str
    ours: str


def installed(package: str) -> bool:
    """Whether a package can be imported here."""
    return importlib.util.find_spec(MODULES[package]) is not None


@contextlib.contextmanager
def cpu_limit(seconds: float):
    """Raise TimeoutError after so much processor time: some code of others does not end on some rounds."""

    def stop(signum, frame):
        raise TimeoutError(f"no answer within {seconds:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def bin_scores(reports) -> np.ndarray:
    """Labels 0 to BINS - 1 of scores in [0, 10]."""
    return np.minimum((np.asarray(reports) / SCORE_MAX * BINS).astype(int), BINS - 1)


# ----------------------------------------------------------------------------------------------------------- sureal


def sureal_model(name, reports, node, output, n_nodes, n_outputs):
    """Quality scores of a class of sureal.subjective_model, each round getting that of its output."""
    from sureal import subjective_model
    from sureal.dataset_reader import RawDatasetReader

    said: list[dict] = [{} for _ in range(n_outputs)]
    for o, nodes, scores in zip(output.tolist(), node.tolist(), reports.tolist()):
        for n, score in zip(nodes, scores):
            said[o].setdefault(n, []).append(score)
    seen = [o for o in range(n_outputs) if said[o]]
    data = type("Dataset", (), {})()
    data.ref_videos = [{"content_id": 0, "path": ""}]
    data.dis_videos = [{"content_id": 0, "asset_id": i, "path": "", "os": said[o]} for i, o in enumerate(seen)]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        result = getattr(subjective_model, name)(RawDatasetReader(data)).run_modeling()
    quality = np.full(n_outputs, np.nan)
    quality[seen] = result["quality_scores"]
    return np.clip(quality, 0.0, SCORE_MAX)[output]


# --------------------------------------------------------------------------------------------------------- crowd-kit


def crowdkit_labels(name, reports, node, output, n_nodes, n_outputs, **options):
    """Posterior mean over the middles of the bins, of a classifier in crowdkit.aggregation."""
    from crowdkit import aggregation

    data = pd.DataFrame(
        {
            "task": np.repeat(output, reports.shape[1]),
            "worker": node.ravel(),
            "label": bin_scores(reports).ravel(),
        }
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = getattr(aggregation, name)(**options).fit_predict_proba(data)
    middles = (found.columns.to_numpy(dtype=float) + 0.5) * SCORE_MAX / BINS
    posterior = found.fillna(0.0).to_numpy()
    quality = pd.Series(posterior @ middles / posterior.sum(axis=1), index=found.index)
    return quality.reindex(output).to_numpy()


def crowdkit_rasa(reports, node, output, n_nodes, n_outputs):
    """RASA, which weighs annotators of sentence embeddings, on scores as embeddings of one dimension."""
    from crowdkit.aggregation import RASA

    data = pd.DataFrame(
        {
            "task": np.repeat(output, reports.shape[1]),
            "worker": node.ravel(),
            "output": reports.ravel(),
            "embedding": [np.array([score]) for score in reports.ravel()],
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = RASA().fit(data).aggregated_embeddings_
    return found.map(lambda vector: float(vector[0])).reindex(output).to_numpy()


# ------------------------------------------------------------------------------------------------------------- ByzFL


def byzfl_rule(name, reports, node, output, n_nodes, n_outputs, *, tolerates=True):
    """A robust aggregator of ByzFL on the K reports of each round as vectors of one dimension.

    The number of liars to tolerate is that which our trimmed mean cuts from each end.
    """
    import byzfl

    from poq.aggregators import _n_cut

    committee = reports.shape[1]
    rule = getattr(byzfl, name)(**({"f": _n_cut(committee, 0.2)} if tolerates else {}))
    # CAF draws the start of its power iteration from numpy's global source.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        with np.errstate(all="ignore"), cpu_limit(5.0):  # CAF may never return where most reports coincide
            found = np.array([rule(row[:, None]).item() for row in reports])
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return found


MODULES = {"sureal": "sureal", "crowd-kit": "crowdkit", "byzfl": "byzfl"}
LICENCES = {"sureal": "Apache-2.0", "crowd-kit": "Apache-2.0", "byzfl": "MIT"}
PEERS: dict[str, Peer] = {
    "sureal: P.910": Peer(partial(sureal_model, "SubjectMLEModelProjectionSolver2"), "sureal", "all", "P.910"),
    "sureal: P.913 bias removal": Peer(partial(sureal_model, "BiasremvMosModel"), "sureal", "all", "P.910"),
    "sureal: BT.500 rejection": Peer(partial(sureal_model, "SubjrejMosModel"), "sureal", "all", "mean"),
    "crowd-kit: RASA": Peer(crowdkit_rasa, "crowd-kit", "all", "CATD"),
    "crowd-kit: majority vote": Peer(partial(crowdkit_labels, "MajorityVote"), "crowd-kit", "round", "mean"),
    "crowd-kit: Wawa": Peer(partial(crowdkit_labels, "Wawa"), "crowd-kit", "all", "CRH"),
    "crowd-kit: Dawid-Skene": Peer(partial(crowdkit_labels, "DawidSkene"), "crowd-kit", "all", "P.910"),
    "crowd-kit: one-coin": Peer(partial(crowdkit_labels, "OneCoinDawidSkene"), "crowd-kit", "all", "CRH"),
    # Its restarts all begin at the same seed, so that one gives what the default of ten gives.
    "crowd-kit: MACE": Peer(partial(crowdkit_labels, "MACE", n_restarts=1), "crowd-kit", "all", "CRH"),
    # Ten of its hundred iterations: all of them take a quarter of a minute for a thousand rounds.
    "crowd-kit: GLAD": Peer(partial(crowdkit_labels, "GLAD", n_iter=10), "crowd-kit", "all", "CRH"),
    "ByzFL: median": Peer(partial(byzfl_rule, "Median", tolerates=False), "byzfl", "round", "median"),
    "ByzFL: trimmed mean": Peer(partial(byzfl_rule, "TrMean"), "byzfl", "round", "trimmed_mean"),
    "ByzFL: geometric median": Peer(
        partial(byzfl_rule, "GeometricMedian", tolerates=False), "byzfl", "round", "median"
    ),
    "ByzFL: Krum": Peer(partial(byzfl_rule, "Krum"), "byzfl", "round", "median"),
    "ByzFL: Multi-Krum": Peer(partial(byzfl_rule, "MultiKrum"), "byzfl", "round", "trimmed_mean"),
    "ByzFL: MDA": Peer(partial(byzfl_rule, "MDA"), "byzfl", "round", "mad_inlier_mean"),
    "ByzFL: Meamed": Peer(partial(byzfl_rule, "Meamed"), "byzfl", "round", "mad_inlier_mean"),
    "ByzFL: CAF": Peer(partial(byzfl_rule, "CAF"), "byzfl", "round", "mad_inlier_mean"),
}
