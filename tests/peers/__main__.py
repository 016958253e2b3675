"""Measure all peers that are installed on the same rounds and rewrite their figures: ``python -m tests.peers``."""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from tests.benchmarks.__main__ import describe_machine
from tests.peers import measure
from tests.peers.adapters import LICENCES, PEERS, installed

OUT = measure.LOG.with_name("peers.json")
BESIDE = ("numpy", "pandas", "scipy", "scikit-learn", "numba", "torch")


def find_versions() -> dict[str, str]:
    found = {}
    for name in (*LICENCES, *BESIDE):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gather(rows: list[dict]) -> list[dict]:
    """One row per place, attack, method and unit, with the value of every trial, so that differences can be paired."""
    table: dict[tuple, dict] = {}
    for row in sorted(rows, key=lambda row: row["trial"]):
        key = tuple(row[name] for name in ("place", "attack", "name", "unit"))
        entry = table.setdefault(
            key, {**dict(zip(("place", "attack", "name", "unit"), key)), "rmse": [], "pearson": []}
        )
        for metric in ("rmse", "pearson"):
            value = row[metric]
            entry[metric].append(None if value is None or not np.isfinite(value) else round(value, 6))
        if row["failed"]:
            entry["failed"] = row["failed"]
    for entry in table.values():
        for metric in ("rmse", "pearson"):
            values = np.array([value for value in entry[metric] if value is not None])
            entry[f"{metric}_mean"] = round(float(values.mean()), 6) if len(values) else None
            entry[f"{metric}_se"] = (
                round(float(values.std(ddof=1) / len(values) ** 0.5), 6) if len(values) > 1 else None
            )
        entry["n"] = len(values)
    return list(table.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written: does it run at all?")
    quick = parser.parse_args().quick
    settings = {**measure.SETTINGS, **({"trials": 1, "n_rounds": 200, "attacks": ["none", "boost"]} if quick else {})}
    log = measure.read_log()
    absent = sorted({peer.package for peer in PEERS.values() if not installed(peer.package)})
    if absent:
        print(f"note: not installed, so not measured: {', '.join(absent)}", file=sys.stderr)
    load = os.getloadavg()[0]
    drawn = measure.places(log, **settings)
    jobs = [
        (place, matrix, trial, number, attack, settings)
        for (place, worlds), attack in itertools.product(drawn.items(), settings["attacks"])
        for number, (matrix, trial) in enumerate(worlds)
    ]
    rows = []
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for done, found in enumerate(pool.map(measure.play, *zip(*jobs)), 1):
            rows += found
            print(f"[{done}/{len(jobs)}] {found[0]['place']}, {found[0]['attack']}", file=sys.stderr, flush=True)
    first = next(place for place in drawn if place != measure.WORLDS)
    print("times", file=sys.stderr, flush=True)
    times = measure.measure_times(measure.draw(*drawn[first][0], "boost", **settings), repeats=1 if quick else 3)
    figures = {
        "quick": quick,
        "load": round(load, 1),
        "machine": describe_machine(),
        "versions": find_versions(),
        "licences": LICENCES,
        "absent": absent,
        "log": measure.log_digest(log),
        "settings": settings,
        "methods": [measure.describe(name) for name in measure.contenders()],
        "errors": gather(rows),
        "times": [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in times],
        "times_where": first,
    }
    for entry in figures["errors"]:
        said = (
            entry.get("failed") or f"rmse {entry['rmse_mean']:.3f}  pearson {entry['pearson_mean'] or float('nan'):.3f}"
        )
        print(f"{entry['place']:<17} {entry['attack']:<9} {entry['name']:<28} {entry['unit']:<7} {said}")
    if quick:
        return 0
    OUT.write_text(_compact(figures), encoding="utf-8")
    print(f"\nwritten: {OUT}")
    return 0


def _compact(figures: dict) -> str:
    """JSON with one line per row of a table."""
    parts = []
    for key, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines = ",\n  ".join(json.dumps(row) for row in value)
            parts.append(f" {json.dumps(key)}: [\n  {lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
