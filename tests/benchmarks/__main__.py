"""Measure everything, print the table, and rewrite the figures and their page: ``python -m tests.benchmarks``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

from poq.jobs import n_cores
from tests.benchmarks import measure, page

BOOK = measure.ROOT / "book"
PACKAGES = ("numpy", "numba", "scipy", "pandas", "mesa", "radcad")


def describe_machine() -> dict[str, object]:
    """Processor, cores, system, Python; no name of the machine."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": n_cores(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def find_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written: does it run at all?")
    quick = parser.parse_args().quick
    load = os.getloadavg()[0]
    if load > 0.5:
        print(
            f"note: the machine is busy (load {load:.1f}); ratios of CPU time hold, wall times do not", file=sys.stderr
        )
    log = measure.make_log()
    figures = {"quick": quick, "load": round(load, 1), "machine": describe_machine(), "versions": find_versions()}
    steps = {
        "throughput": lambda: measure.measure_throughput(log, quick=quick),
        "aggregation": lambda: measure.measure_aggregation(quick=quick),
        "linearity": lambda: measure.measure_linearity(log, quick=quick),
        "grid": lambda: measure.measure_grid(quick=quick),
        "memory": lambda: measure.measure_memory(quick=quick),
    }
    for number, (name, step) in enumerate(steps.items(), 1):
        print(f"[{number}/{len(steps)}] {name}", file=sys.stderr, flush=True)
        figures[name] = step()
    print(page.plain_text(figures))
    if quick:
        return 0
    (BOOK / "data" / "benchmarks.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (BOOK / "benchmarks.md").write_text(page.markdown(figures), encoding="utf-8")
    print(f"\nwritten: {BOOK / 'data' / 'benchmarks.json'}, {BOOK / 'benchmarks.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
