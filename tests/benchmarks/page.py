"""The page of the book: the figures of benchmarks.json as MyST tables, and no code."""

from __future__ import annotations

WORLD = "30 % of the nodes boost, the paper's trust rule, scores replayed from a log"
PLAYS = {(0.0, "boost"): "no noise", (0.5, "boost"): "with noise of each node's own, s.d. 0.5 points"}
ALIKE = (0.0, "none")


def number(value: float) -> str:
    """A figure with the digits that a shared machine lets one believe."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, first column left, the others right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def targets(figures: dict) -> list[tuple[str, float, float, bool]]:
    """What the engine is meant to reach: text, aim, measured, reached."""

    def ratio(committee, *names):
        found = [
            row["ratio"]
            for row in figures["throughput"]
            if (row["committee"], row["jitter"], row["attack"]) == (committee, 0.0, "boost") and row["name"] in names
        ]
        return min(found)

    numpy = ("numpy, Floyd", "numpy, argpartition")
    grid = figures["grid"]
    at_least = [
        ("times plain Python, K = 5", 60, ratio(5, "plain Python")),
        ("times plain Python, K = 21", 40, ratio(21, "plain Python")),
        ("times the better numpy, K = 5", 1.5, ratio(5, *numpy)),
        ("two cores over one, reference grid, workers started", 1.7, grid["again"]["speed_up"]),
        ("two cores over one, five times the trials, first call of run", 1.7, grid["longer"]["speed_up"]),
        ("two cores over one, reference grid, first call of run", 1.7, grid["run"]["speed_up"]),
        ("two cores over one, reference grid, from start to end", 1.7, grid["wall"]["speed_up"]),
    ]
    at_most = [
        ("seconds for the reference grid, nothing compiled", 60, grid["two_cores_cold"]),
        ("MB for the longest trial", 600, max(row["megabytes"] for row in figures["memory"])),
        ("time per round, largest over smallest run", 1.2, _worst(figures, "rounds")),
        ("time per trial, largest over smallest run", 1.2, _worst(figures, "trials")),
    ]
    return [(f"at least {aim:g} {text}", aim, value, value >= aim) for text, aim, value in at_least] + [
        (f"at most {aim:g} {text}", aim, value, value <= aim) for text, aim, value in at_most
    ]


def _worst(figures: dict, what: str) -> float:
    return max(row["per_unit"] for row in figures["linearity"] if row["what"] == what)


def throughput_table(figures: dict, jitter: float, attack: str) -> str:
    rows = [row for row in figures["throughput"] if (row["jitter"], row["attack"]) == (jitter, attack)]
    sizes = list(dict.fromkeys((row["committee"], row["n_nodes"]) for row in rows))
    header = ["", *(f"K = {k}, N = {n}" for k, n in sizes)]
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = [
            row for size in sizes for row in rows if row["name"] == name and (row["committee"], row["n_nodes"]) == size
        ]
        if name == "ours":
            lines.append(
                ["ours, million rounds per second", *(number(row["rounds_per_second"] / 1e6) for row in cells)]
            )
        else:
            lines.append([f"ours over {name}", *(number(row["ratio"]) for row in cells)])
    return table(header, lines)


def aggregation_table(figures: dict) -> str:
    rows = figures["aggregation"]
    sizes = list(dict.fromkeys(row["committee"] for row in rows))
    lines = []
    for rule in dict.fromkeys(row["rule"] for row in rows):
        for name in dict.fromkeys(row["name"] for row in rows if row["rule"] == rule):
            cells = [row for row in rows if (row["rule"], row["name"]) == (rule, name)]
            if name == "ours":
                lines.append([f"{rule}, ours, ns per round", *(number(row["ns_per_round"]) for row in cells)])
            else:
                label = "ours on seats that are contiguous" if name == "ours, seats" else name
                lines.append([f"{rule}, {label} over ours", *(number(row["ratio"]) for row in cells)])
    return table(["", *(f"K = {k}" for k in sizes)], lines)


def plain_text(figures: dict) -> str:
    """What ``make bench`` prints."""
    grid = figures["grid"]
    parts = []
    for play, words in PLAYS.items():
        parts += [f"Ours over theirs, {WORLD}, {words}:", throughput_table(figures, *play)]
    parts += ["The same without an attack, so that ours plays one run as the others do:"]
    parts += [throughput_table(figures, *ALIKE)]
    parts += ["Aggregation alone, time over ours:", aggregation_table(figures), _grid_text(grid)]
    parts += [
        f"Estimated for the grid on one core: {grid['estimate']:.1f} s, measured {grid['run']['one_core']:.1f} s."
    ]
    marks = [f"{'reached' if ok else 'MISSED '}  {text}: {number(value)}" for text, _, value, ok in targets(figures)]
    return "\n\n".join([*parts, "\n".join(marks)])


def _grid_text(grid: dict) -> str:
    lines = {
        "wall": "from the start of a fresh process to its end, s",
        "run": "the call of `run` in it, start of the workers included, s",
        "longer": "the same with five times the trials, s",
        "again": "later calls of `run`, when the workers are there, s",
        "apart": "for comparison: two such calls at once in processes that share nothing, s for each",
    }
    rows = []
    for what, words in lines.items():
        found = grid[what]
        between = f"{number(found['speed_up'])} ({number(found['speed_up_low'])} to {number(found['speed_up_high'])})"
        rows.append([words, f"{found['one_core']:.1f}", f"{found['two_cores']:.1f}", between])
    return f"""The reference grid: {grid["rows"]:,} rows of 6 shares, 4 committee sizes, 5 attacks, 4 rules and 2 tasks, with
{grid["trials"]} trials of {grid["n_rounds"]:,} rounds. Median of pairs that were measured in turn, and their range:

{table(["", "one core", "two cores", "times as fast"], rows)}

With nothing compiled on disk the first line is {grid["two_cores_cold"]:.1f} s on two cores. Python and its libraries
are loaded by one core, and a worker loads them once more: that does not grow with the work."""  # noqa: E501


def markdown(figures: dict) -> str:
    """The page."""
    machine, versions = figures["machine"], figures["versions"]
    reached = [["yes" if ok else "**no**", text, number(value)] for text, _, value, ok in targets(figures)]
    reached = [[text, measured, ok] for ok, text, measured in reached]
    longest = max(figures["memory"], key=lambda row: row["n_rounds"])
    plain = next(
        row["ratio"]
        for row in figures["throughput"]
        if (row["name"], row["committee"], row["jitter"], row["attack"]) == ("plain Python", 5, 0.0, "boost")
    )
    absent = [name for name in ("Mesa", "radCAD") if name not in {row["name"] for row in figures["throughput"]}]
    missing = f" Not installed when this was measured: {', '.join(absent)}." if absent else ""
    busy = figures["load"] / machine["cores"] > 0.25
    load = (
        f" The machine did other work beside (load {figures['load']:g}): times on the clock are too long."
        if busy
        else ""
    )
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"""# Benchmarks

The engine plays {number(plain)} times as many rounds per second as a plain Python loop of the same mechanism. All
figures come from one run on one machine; what is compared was measured in turn, and a ratio is the median over
repetitions.

A round is: draw an output, sample K of N nodes, attack, consensus, trust update, pay for both roles, sums. Here
{WORLD}, one core, CPU time. *numpy* plays 1,024 replicates at once, in two ways of sampling without replacement; *Mesa*
and *radCAD* are models written in those libraries.{missing} The engine does more than its rivals: it also plays the
honest run beside the attacked one, and reports rank correlation, pay per node and model, and the pay of a round. A test
holds the results of all of them equal within Monte Carlo error.

## Rounds per second

Scores replayed as they stand in the log:

{throughput_table(figures, 0.0, "boost")}

With noise of each node's own, s.d. 0.5 points:

{throughput_table(figures, 0.5, "boost")}

Like for like: nobody attacks, so that the engine plays a single run as its rivals always do; no noise:

{throughput_table(figures, *ALIKE)}

## Rules alone

Scores of shape (100,000, K). The last rows of each rule are times over ours; SciPy and numpy get the same array.

{aggregation_table(figures)}

## A whole sweep

{_grid_text(figures["grid"])}

One trial of {longest["n_rounds"]:,} rounds peaks at {longest["megabytes"]:.0f} MB, all
imported libraries included.

## What was aimed at

{table(["Aim", "Measured", "Reached"], reached)}

## Where this was measured

{machine["processor"]}, {machine["cores"]} cores, {machine["system"]}, Python {machine["python"]}; {listed}.{load}
The figures stand in [benchmarks.json](data/benchmarks.json); `make bench` measures them again and rewrites this page.
"""
