"""The measurements. All figures of one table come from one run, repetition by repetition in turn, because a machine
that others use too changes its speed from minute to minute; what is compared is compared within a repetition."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from poq import aggregators, jobs, simulate
from poq.engine import n_malicious
from poq.rewards import normalise_cost
from poq.rounds import make_pool, malicious_nodes
from poq.scorelog import score_matrix
from poq.synthetic import synthetic_log
from tests.benchmarks import rivals

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.3
TASKS = ("question answering", "summarisation")
POOLS = {5: 50, 21: 50, 101: 202}  # K: N
GRID = {
    "task": TASKS,
    "malicious_share": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
    "committee": [3, 5, 7, 9],
    "attack": ["none", "noise", "boost", "sabotage", "intermittent"],
    "rule": ["mean", "median", "trimmed_mean", "paper"],
}


def make_log() -> pd.DataFrame:
    """A score log of the size of a small study: 2 tasks, 60 items, 6 models, 12 evaluators of unequal skill."""
    rng = np.random.default_rng(20)
    traits = {f"evaluator-{i:02d}": {"bias": i / 4 - 1.5, "noise": 0.5 + i / 6, "cost": 1.0 + i} for i in range(12)}
    logs = [synthetic_log(rng, n_items=60, n_models=6, evaluators=traits, task=task) for task in TASKS]
    return pd.concat(logs, ignore_index=True)


def make_scenario(
    committee: int, jitter: float, n_rounds: int, n_nodes: int | None = None, attack: str = "boost"
) -> simulate.Scenario:
    """Boosting by 30 % of the nodes, or no attack, against the paper's trust rule."""
    return simulate.Scenario(
        TASKS[0],
        rule="paper",
        attack=attack,
        malicious_share=0.0 if attack == "none" else SHARE,
        committee=committee,
        n_nodes=n_nodes or POOLS[committee],
        jitter=jitter,
        n_rounds=n_rounds,
    )


def make_world(log: pd.DataFrame, scenario: simulate.Scenario, *, seed: int = 0) -> rivals.World:
    """What the rivals play: the values, the nodes and the malicious set of the scenario's first trial."""
    matrix = score_matrix(log, task=scenario.task)
    pool = make_pool(matrix, committee=scenario.committee, n_nodes=scenario.n_nodes, seed=seed)
    malicious = np.zeros(scenario.n_nodes, dtype=bool)
    order = malicious_nodes(pool, matrix, seed=seed)
    malicious[order[: n_malicious(scenario.malicious_share, scenario.n_nodes)]] = True
    return rivals.World(
        values=matrix.values,
        truth=matrix.truth,
        model=matrix.model,
        evaluator=pool.evaluator.astype(np.int64),
        malicious=malicious,
        node_cost=normalise_cost(matrix.evaluator_cost)[pool.evaluator],
        model_cost=normalise_cost(matrix.model_cost),
        committee=scenario.committee,
        jitter=scenario.jitter,
    )


def play_engine(log: pd.DataFrame, scenario: simulate.Scenario, *, trials: int = 1) -> pd.DataFrame:
    """One scenario through the public door, in this process."""
    jobs.SERIAL_SECONDS = float("inf")
    return simulate.run(log, scenario, trials=trials, seed=0, progress=False)


def in_turn(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each contender, every repetition after the other; a first round warms up and is not counted."""
    times = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, play in contenders.items():
            begun = time.process_time()
            play()
            if repeat:
                times[name].append(time.process_time() - begun)
    return times


def measure_throughput(log: pd.DataFrame, *, quick: bool) -> list[dict]:
    """Rounds per second of one core, ours and theirs; ratio: ours over theirs, median over repetitions."""
    rows = []
    size = 0.1 if quick else 1.0
    for committee, n_nodes in POOLS.items():
        for jitter, attack in ((0.0, "boost"), (0.5, "boost"), (0.0, "none")):
            world = make_world(log, make_scenario(committee, jitter, 10, attack=attack))
            n_rounds = {"ours": int(6e7 * size / committee)}
            scenario = make_scenario(committee, jitter, n_rounds["ours"], attack=attack)
            contenders = {"ours": partial(play_engine, log, scenario)}
            for name, (play, rounds) in _rivals(committee, size).items():
                n_rounds[name] = rounds
                contenders[name] = partial(play, world, rounds)
            times = in_turn(contenders, 3 if quick else 5)
            for name, seconds in times.items():
                ratios = [
                    theirs / n_rounds[name] * n_rounds["ours"] / ours for ours, theirs in zip(times["ours"], seconds)
                ]
                rate = n_rounds[name] / median(seconds)
                row = {"name": name, "committee": committee, "n_nodes": n_nodes, "jitter": jitter, "attack": attack}
                rows.append({**row, "rounds_per_second": rate, "ratio": median(ratios)})
    return rows


def _rivals(committee: int, size: float) -> dict[str, tuple[Callable, int]]:
    """Name: what plays, and how many rounds make some tenths of a second."""
    batched = max(20_480, int(4e6 * size / committee) // 1024 * 1024)
    found = {
        "plain Python": (rivals.play_python, int(2e5 * size / committee)),
        "numpy, Floyd": (partial(rivals.play_numpy, draw=rivals.draw_floyd), batched),
        "numpy, argpartition": (partial(rivals.play_numpy, draw=rivals.draw_argpartition), batched),
    }
    for name, module, play in (("Mesa", "mesa", rivals.play_mesa), ("radCAD", "radcad", rivals.play_radcad)):
        if importlib.util.find_spec(module):
            found[name] = (play, int(1e5 * size / committee))
    return found


def measure_aggregation(*, quick: bool) -> list[dict]:
    """Rules alone on (100000, K) scores, rows contiguous as a reader holds them; ratio: theirs over ours."""
    rng = np.random.default_rng(0)
    rows = []
    for committee in (5, 9, 21):
        scores = rng.uniform(0, 10, (100_000, committee))
        for rule, functions in _aggregators(committee).items():
            expected = functions["ours"](scores)
            for function in functions.values():
                np.testing.assert_allclose(function(scores), expected, rtol=1e-12)
            contenders = {name: partial(function, scores) for name, function in functions.items()}
            # As the engine holds them: a seat is contiguous.
            contenders["ours, seats"] = partial(functions["ours"], np.ascontiguousarray(scores.T).T)
            times = in_turn(contenders, 5 if quick else 21)
            for name, seconds in times.items():
                ratios = [theirs / ours for ours, theirs in zip(times["ours"], seconds)]
                row = {"rule": rule, "committee": committee, "name": name}
                rows.append({**row, "ns_per_round": median(seconds) / len(scores) * 1e9, "ratio": median(ratios)})
    return rows


def _aggregators(committee: int) -> dict[str, dict[str, Callable]]:
    from scipy import stats  # not above: the grid is timed from the start of a process, and needs none of it

    out = aggregators._n_cut(committee, 0.2)
    share = (out + 0.01) / committee  # a little over the share, so that SciPy, which rounds down, cuts as many
    return {
        "mean": {"ours": aggregators.mean, "numpy": lambda s: s.mean(axis=-1)},
        "median": {
            "ours": aggregators.median,
            "numpy": lambda s: np.median(s, axis=-1),
            "SciPy": lambda s: stats.quantile(s, 0.5, axis=-1),
        },
        "trimmed_mean": {
            "ours": aggregators.trimmed_mean,
            "numpy": lambda s: np.sort(s, axis=-1)[:, out : committee - out].mean(axis=-1),
            "SciPy": lambda s: stats.trim_mean(s, share, axis=-1),
        },
    }


def measure_linearity(log: pd.DataFrame, *, quick: bool) -> list[dict]:
    """CPU time per round, over that of the smallest size, as rounds and as trials grow."""
    size = 0.1 if quick else 1.0
    rounds = [int(size * n) for n in (250_000, 500_000, 1_000_000, 2_000_000)]
    trials = [10, 20, 40, 80]
    short = make_scenario(5, 0.5, int(size * 25_000))
    cases = {
        "rounds": {n: partial(play_engine, log, make_scenario(5, 0.5, n)) for n in rounds},
        "trials": {n: partial(play_engine, log, short, trials=n) for n in trials},
    }
    rows = []
    for what, contenders in cases.items():
        times = in_turn(contenders, 3 if quick else 5)
        first = next(iter(contenders))
        for n, seconds in times.items():
            ratios = [(mine / n) / (base / first) for base, mine in zip(times[first], seconds)]
            rows.append({"what": what, "n": n, "seconds": median(seconds), "per_unit": median(ratios)})
    return rows


def run_child(*arguments: object, environment: dict[str, str] | None = None) -> dict:
    """Run one measurement in a fresh process; adds its wall time from start to end."""
    command = [sys.executable, "-m", "tests.benchmarks.child", *map(str, arguments)]
    begun = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command[1:])} failed:\n{done.stderr}")
    return {**json.loads(done.stdout), "wall": time.monotonic() - begun}


def measure_grid(*, quick: bool) -> dict:
    """Wall time of the reference grid on two cores and on one: from the start of a fresh process to its end, of the
    call of `run` in it, the same with five times the trials, and of later calls, when the workers are there; of two
    processes that share nothing, which is what the machine's second core is worth; and without compiled code on
    disk."""
    sizes = ("2", "1000") if quick else ("20", "5000")
    pairs = 1 if quick else 7
    times = {what: {"one core": [], "two cores": []} for what in ("wall", "run", "apart", "longer")}
    for pair in range(pairs):
        for name, n_cores in (("one core", 1), ("two cores", 2)):
            child = run_child("grid", n_cores, *sizes)
            for what in ("wall", "run"):
                times[what][name].append(child[what])
            if pair < 3:
                longer = run_child("grid", n_cores, 5 * int(sizes[0]), sizes[1])
                times["longer"][name].append(longer["run"])
        with ThreadPoolExecutor(2) as both:
            beside = list(both.map(lambda _: run_child("grid", 1, *sizes)["run"], range(2)))
        times["apart"]["one core"].append(times["run"]["one core"][-1])
        times["apart"]["two cores"].append(sum(beside) / 4)  # half of their mean time: two calls are done in it
    later = run_child("pairs", pairs, *sizes)
    times["again"] = {name: later[name] for name in ("one core", "two cores")}
    with tempfile.TemporaryDirectory() as empty:
        cold = run_child("grid", 2, *sizes, environment={"NUMBA_CACHE_DIR": empty})
    found = {}
    for what, its_times in times.items():
        ratios = [one / two for one, two in zip(its_times["one core"], its_times["two cores"])]
        found[what] = {"speed_up": median(ratios), "speed_up_low": min(ratios), "speed_up_high": max(ratios)}
        found[what] |= {name.replace(" ", "_"): median(seconds) for name, seconds in its_times.items()}
    shape = {"rows": cold["rows"], "trials": int(sizes[0]), "n_rounds": int(sizes[1])}
    return {**shape, **found, "two_cores_cold": cold["wall"], "estimate": cold["estimate"]}


def measure_memory(*, quick: bool) -> list[dict]:
    """Peak memory of a process that plays one trial, everything that it imports included."""
    sizes = (10_000, 1_000_000) if quick else (10_000, 10_000_000)
    return [{"n_rounds": n, "megabytes": run_child("memory", n)["megabytes"]} for n in sizes]
