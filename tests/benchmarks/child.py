"""One measurement in a process of its own: ``python -m tests.benchmarks.child grid CORES TRIALS ROUNDS`` or
``... child memory ROUNDS``; prints JSON."""

import json
import resource
import sys
import time

from poq import jobs, simulate
from tests.benchmarks.measure import GRID, make_log, make_scenario, play_engine


def play_grid(n_cores: int, trials: int, n_rounds: int) -> dict:
    jobs.n_cores = lambda: n_cores
    log, scenarios = make_log(), simulate.grid(**GRID, n_rounds=n_rounds)
    plan, _ = simulate._plan(log, scenarios, trials=trials, seed=0)
    times = []
    for _ in range(2):
        begun = time.monotonic()
        frame = simulate.run(log, scenarios, trials=trials, seed=0, progress=False)
        times.append(time.monotonic() - begun)
    estimate = sum(jobs.estimate_seconds(group) for group in plan) * trials
    return {"rows": len(frame), "run": times[0], "again": times[1], "estimate": estimate}


def play_long(n_rounds: int) -> dict:
    play_engine(make_log(), make_scenario(5, 0.5, n_rounds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"megabytes": peak / (1e6 if sys.platform == "darwin" else 1e3)}


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    print(json.dumps({"grid": play_grid, "memory": play_long}[what](*map(int, numbers))))
