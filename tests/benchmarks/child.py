"""One measurement in a process of its own: ``python -m tests.benchmarks.child grid CORES TRIALS ROUNDS``,
``... child pairs PAIRS TRIALS ROUNDS`` or ``... child memory ROUNDS``; prints JSON."""

import json
import resource
import sys
import time

from poq import jobs, simulate
from tests.benchmarks.measure import GRID, make_log, make_scenario, play_engine


def play_grid(n_cores: int, trials: int, n_rounds: int) -> dict:
    jobs.n_cores = lambda: n_cores
    log, scenarios = make_log(), simulate.grid(**GRID, n_rounds=n_rounds)
    begun = time.monotonic()
    frame = simulate.run(log, scenarios, trials=trials, seed=0, progress=False)
    seconds = time.monotonic() - begun
    fields = [simulate._text_fields(scenario) for scenario in scenarios]
    plan, _ = simulate._plan(log, scenarios, fields, trials=trials, seed=0)
    return {
        "rows": len(frame),
        "run": seconds,
        "estimate": sum(jobs.estimate_seconds(group) for group in plan) * trials,
    }


def play_pairs(pairs: int, trials: int, n_rounds: int) -> dict:
    """The grid on one core and on two in turn; a first pair, which starts the workers, is not counted."""
    log, scenarios = make_log(), simulate.grid(**GRID, n_rounds=n_rounds)
    times = {1: [], 2: []}
    for pair in range(pairs + 1):
        for n_cores in (1, 2) if pair % 2 else (2, 1):
            jobs.n_cores = lambda n=n_cores: n
            begun = time.monotonic()
            simulate.run(log, scenarios, trials=trials, seed=0, progress=False)
            if pair:
                times[n_cores].append(time.monotonic() - begun)
    return {"one core": times[1], "two cores": times[2]}


def play_long(n_rounds: int) -> dict:
    play_engine(make_log(), make_scenario(5, 0.5, n_rounds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"megabytes": peak / (1e6 if sys.platform == "darwin" else 1e3)}


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    print(json.dumps({"grid": play_grid, "pairs": play_pairs, "memory": play_long}[what](*map(int, numbers))))
