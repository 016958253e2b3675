"""Errors and times of peers and of ours on the same rounds."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from poq import offline
from poq.claims import views
from poq.metrics import pearson, rmse
from poq.scorelog import read_score_log, score_matrix, tasks
from poq.simulate import Scenario
from poq.worlds import Rounds, consensus_of, replay, world_log
from poq.yuma import yuma_rounds
from tests.peers.adapters import PEERS, Peer, installed

LOG = Path(__file__).resolve().parents[2] / "book" / "data" / "score_log.csv.gz"
SETTINGS = {
    "attacks": ["none", "noise", "boost", "sabotage", "hide"],
    "malicious_share": 0.3,
    "committee": 5,
    "n_rounds": 1000,
    "trials": 4,
    "world_nodes": 20,
    "seed": 17,
}
WORLDS = "synthetic worlds"
# Pooled by output as well as round by round; the others take long or gain nothing from it.
POOLED = ("sureal: P.910", "sureal: P.913 bias removal", "crowd-kit: Dawid-Skene", "P.910")


def _rule(name):
    return lambda rounds, output, n_outputs: consensus_of(rounds, name)


# Ours on (rounds, output, n_outputs): what each sees, and the call.
OURS: dict[str, tuple[str, Callable]] = {
    **{name: ("round", _rule(name)) for name in ("mean", "median", "trimmed_mean", "mad_inlier_mean")},
    "quantile_clip": ("round", _rule("quantile_clip")),
    "Yuma, stake by dividends": (
        "past",
        lambda r, output, n: yuma_rounds(r.scores, r.node, r.output, len(r.malicious), int(r.output.max()) + 1),
    ),
    "paper": ("past", _rule("paper")),
    "calibrated": ("past", _rule("calibrated")),
    "audited": ("audits", _rule("audited")),
    "CRH": ("all", lambda r, output, n: offline.crh(r.scores, r.node)),
    "CATD": ("all", lambda r, output, n: offline.catd(r.scores, r.node)),
    "P.910": ("all", lambda r, output, n: offline.p910(r.scores, r.node, output)),
    "oracle": ("truth", lambda r, output, n: offline.oracle(r.scores, r.node, r.truth)),
}


def log_digest(log: pd.DataFrame) -> str:
    """Fingerprint of what the figures hang on: keys, scores, truth; not costs, which differ from run to run."""
    used = log[["task", "item", "model", "evaluator", "score", "truth"]]
    rows = used.sort_values(["task", "item", "model", "evaluator"]).to_csv(index=False, float_format="%.6g")
    return hashlib.sha256(rows.encode()).hexdigest()


def places(log: pd.DataFrame, *, trials: int, seed: int, world_nodes: int, **_) -> dict[str, list]:
    """Where rounds are drawn: each task of the log's headline pool, and synthetic worlds; (matrix, trial) per trial."""
    pool = next(iter(views(log, least=SETTINGS["committee"]).values()))
    found = {task: [(score_matrix(pool, task=task), trial) for trial in range(trials)] for task in tasks(pool)}
    made = world_log(["unequal"], worlds=trials, n_nodes=world_nodes, seed=seed)
    found[WORLDS] = [(score_matrix(made, task=task), 0) for task in tasks(made)]
    return found


def draw(matrix, trial: int, attack: str, *, malicious_share: float, committee: int, n_rounds: int, seed: int, **_):
    scenario = Scenario(
        matrix.task, attack=attack, malicious_share=malicious_share, committee=committee, n_rounds=n_rounds
    )
    return replay(matrix, scenario, seed=seed, trial=trial)


def units(name: str) -> tuple[str, ...]:
    return ("round", "output") if name in POOLED else ("round",)


def call(name: str, rounds: Rounds, unit: str) -> np.ndarray:
    """Estimate (R,) of a peer or of ours; unit "round" makes each round a thing of its own, "output" pools."""
    alone = unit == "round"
    output = np.arange(len(rounds.output)) if alone else rounds.output
    n_outputs = int(output.max()) + 1
    if name in OURS:
        return OURS[name][1](rounds, output, n_outputs)
    return PEERS[name].estimate(rounds.scores, rounds.node, output, len(rounds.malicious), n_outputs)


def contenders() -> list[str]:
    """Ours, and the peers whose package is here."""
    return [*OURS, *(name for name, peer in PEERS.items() if installed(peer.package))]


def describe(name: str) -> dict[str, str]:
    peer = PEERS.get(name)
    if isinstance(peer, Peer):
        return {"name": name, "package": peer.package, "sees": peer.sees, "ours": peer.ours}
    return {"name": name, "package": "ours", "sees": OURS[name][0], "ours": name}


def play(place: str, matrix, trial: int, number: int, attack: str, settings: dict) -> list[dict]:
    """All contenders on one set of rounds; what fails is a row that says so."""
    rounds = draw(matrix, trial, attack, **settings)
    rows = []
    for name in contenders():
        for unit in units(name):
            row = {"place": place, "attack": attack, "name": name, "unit": unit, "trial": number}
            try:
                found = call(name, rounds, unit)
                if not np.isfinite(found).all():
                    raise ValueError(f"{int((~np.isfinite(found)).sum())} of {len(found)} estimates are not finite")
                measured = {"rmse": rmse(found, rounds.truth), "pearson": pearson(found, rounds.truth), "failed": ""}
            except Exception as error:  # whatever another library raises is a finding, not the end of the run
                measured = {"rmse": None, "pearson": None, "failed": _first_line(error)}
            rows.append({**row, **measured})
    return rows


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def measure_times(rounds: Rounds, *, repeats: int = 3) -> list[dict]:
    """CPU seconds of each contender on one set of rounds, every repetition in turn; a first one warms up.

    Ratios are taken within a repetition: to the nearest of ours, and to ``calibrated``.
    """
    names = [(name, unit) for name in contenders() for unit in units(name)]
    spent: dict[tuple, list[float]] = {key: [] for key in names}
    often: dict[tuple, int] = {}
    for repeat in range(repeats + 1):
        for key in list(names):
            try:
                begun = time.process_time()
                for _ in range(often.get(key, 1)):
                    call(key[0], rounds, key[1])
                seconds = (time.process_time() - begun) / often.get(key, 1)
            except Exception:  # it is in the table of errors with its message
                names.remove(key)
                continue
            if repeat:
                spent[key].append(seconds)
            else:  # the quick ones are called until a tenth of a second has gone, for a clock that can tell
                call_again = partial(call, key[0], rounds, key[1])
                begun = time.process_time()
                call_again()
                often[key] = max(1, int(0.1 / max(time.process_time() - begun, 1e-5)))
    rows = []
    for (name, unit), seconds in spent.items():
        if not seconds:
            continue
        nearest = describe(name)["ours"]
        other = spent.get((nearest, unit)) or spent[nearest, "round"]
        rows.append(
            {
                "name": name,
                "unit": unit,
                "ours": nearest,
                "ratio": median(mine / theirs for mine, theirs in zip(seconds, other)),
                "to_calibrated": median(m / c for m, c in zip(seconds, spent["calibrated", "round"])),
                "microseconds_per_round": median(seconds) / len(rounds.output) * 1e6,
            }
        )
    return rows


def read_log() -> pd.DataFrame:
    return read_score_log(LOG)
