"""Run one chapter over several parameter sets and lay the results side by side on one page.

``python book/sweep.py FILE [--profile fast]``; ``make sweep`` calls it. A sweep file is TOML::

    chapter = "03_costs"
    combine = "product"  # every combination; "paired": the first values together, then the second ones, ...

    [parameters]
    committee = [3, 7]
    beta = [0.1, 0.3, 0.5]

Each run is what ``make chapter`` would make of the same values, in the same folder and from the same cache, so that a
sweep that was interrupted, or had a failing run, goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import math
import signal
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from book import build  # noqa: E402
from book.build import BOOK, OUT, BuildError, Job  # noqa: E402
from book.side_by_side import Outcome, Sweep, how, shown, words, write_page  # noqa: E402
from poq.chapters import ParameterError, check_parameters, find_chapter, read_parameters, suggest  # noqa: E402

KEYS = ("chapter", "combine", "parameters")
COMBINE = ("product", "paired")
MOST = 1000  # runs of one sweep; more of them are a slip


def run_sweep(file: Path, *, book: Path = BOOK, out: Path = OUT, profile: str = "full") -> Path:
    """Do what a sweep file says and return the page that lays the runs side by side.

    Raises
    ------
    ParameterError
        Before any work, naming the file and the key.
    BuildError
        When runs failed, after the others are done and on the page.
    """
    sweep = read_sweep(file, book)
    runs = [(f"{sweep.chapter}-run-{n}", sweep.chapter, given) for n, given in enumerate(sweep.runs, start=1)]
    try:
        jobs = build.plan_runs(book, profile, runs)
    except ParameterError as error:
        raise ParameterError(f"{sweep.file}: {error}") from None
    entries = [build._entry(out, job) for job in jobs]
    finished = [(entry / "run.json").is_file() for entry in entries]
    print(f"{sweep.file}: {len(jobs)} runs of {sweep.chapter} ({how(sweep)}), {sum(finished)} finished before")
    for number, (given, done) in enumerate(zip(sweep.runs, finished), start=1):
        print(f"  run {number}: {words(given)}{' (finished)' if done else ''}")
    sys.stdout.flush()
    faults = {}
    try:
        with build._stage(book) as stage:
            build.execute(jobs, stage, out)
    except BuildError as error:
        lines = str(error).splitlines()
        for job, entry in zip(jobs, entries):
            if not (entry / "run.json").is_file():
                start = f"chapter {job.label} failed: "
                said = next((line.removeprefix(start) for line in lines if line.startswith(start)), "it failed")
                faults[job.label] = said
    outcomes = []
    for number, (job, given, entry) in enumerate(zip(jobs, sweep.runs, entries), start=1):
        page = None
        if job.label not in faults:
            print(f"page of run {number} of {len(jobs)}", file=sys.stderr, flush=True)
            try:
                page = _page_of(job, given, entry, book=book, out=out)
            except BuildError as error:
                faults[job.label] = " ".join(str(error).split())
        outcomes.append(Outcome(number, job, given, entry, page, faults.get(job.label)))
    some = any(outcome.page for outcome in outcomes)
    page = write_page(sweep, outcomes, book=book, out=out, profile=profile) if some else None
    if faults:
        failed = [
            f"run {outcome.number} of {len(jobs)} ({words(outcome.given)}) failed: {outcome.fault}"
            for outcome in outcomes
            if outcome.fault
        ]
        raise BuildError("\n".join([*failed, *([f"the other runs stand on {page}"] if page else [])]))
    return page


def _page_of(job: Job, given: dict[str, Any], entry: Path, *, book: Path, out: Path) -> Path:
    """The page of one run; it is rendered unless it stands there and shows this very execution."""
    folder = build.alone_folder(out, job, given)
    page, record = folder / job.source.parent.name / f"{job.stem}.html", folder / "run.json"
    if page.is_file() and record.is_file() and record.read_bytes() == (entry / "run.json").read_bytes():
        return page
    return build.render_alone(job, given, entry, book=book, out=out)


# ------------------------------------------------------------------------------------------------------- the file


def read_sweep(file: Path, book: Path = BOOK) -> Sweep:
    """Read a sweep file and check all that can be checked without a score log.

    Raises
    ------
    ParameterError
        One line that names the file and the key at fault.
    """
    name = build._shown(file.resolve())
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"{name}: {error.strerror.lower() if error.strerror else error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParameterError(f"{name}: not a TOML file: {error}") from None
    for key in content:
        if key not in KEYS:
            raise ParameterError(f"{name}: unknown key {key!r}{suggest(key, KEYS)}")
    for key, kind, what in (("chapter", str, "a text"), ("combine", str, "a text"), ("parameters", dict, "a table")):
        if key not in content:
            raise ParameterError(f"{name}: the key {key!r} is missing")
        if not isinstance(content[key], kind):
            raise ParameterError(f"{name}: {key} must be {what}; got {content[key]!r}")
    if content["combine"] not in COMBINE:
        known = " or ".join(map(repr, COMBINE))
        raise ParameterError(f"{name}: combine must be {known}; got {content['combine']!r}")
    if not content["parameters"]:
        raise ParameterError(f"{name}: parameters: no parameter is given a list of values")
    try:
        notebook = find_chapter(content["chapter"], book)
    except ParameterError as error:
        raise ParameterError(f"{name}: chapter: {error}") from None
    values = {
        key: _checked_values(notebook, key, listed, f"{name}: parameters.{key}", file.resolve().parent)
        for key, listed in content["parameters"].items()
    }
    runs = _combined(values, content["combine"], name)
    return Sweep(name, notebook.stem, content["combine"], list(values), runs)


def _checked_values(notebook: Path, key: str, listed: Any, where: str, folder: Path) -> list:
    """The values of one parameter, each checked as the chapter's own cell says."""
    if not isinstance(listed, list):
        raise ParameterError(f"{where}: must be a list of values; got {listed!r}")
    if not listed:
        raise ParameterError(f"{where}: the list is empty")
    parameters = read_parameters(notebook)
    optional = key in parameters and "None" in parameters[key].kind
    values = []
    for value in listed:
        if optional and isinstance(value, str) and value.lower() in ("none", "null"):
            value = None  # which TOML cannot say
        try:
            [value] = check_parameters(notebook, {key: value}).values()
        except ParameterError as error:
            raise ParameterError(f"{where}: {error}") from None
        if key == "log" and isinstance(value, str):
            value = str((folder / Path(value).expanduser()).resolve())
        values.append(value)
    return values


def _combined(values: dict[str, list], combine: str, name: str) -> list[dict[str, Any]]:
    """The values of every run, the last parameter fastest."""
    lengths = {key: len(listed) for key, listed in values.items()}
    if combine == "paired":
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"parameters.{key} has {length}" for key, length in lengths.items())
            raise ParameterError(f"{name}: paired lists must have the same number of values, but {said}")
        sets: Iterable[tuple] = zip(*values.values())
        count = min(lengths.values())
    else:
        for key, listed in values.items():
            twice = [value for n, value in enumerate(listed) if value in listed[:n]]
            if twice:
                raise ParameterError(f"{name}: parameters.{key}: {shown(twice[0])} stands there twice")
        sets = itertools.product(*values.values())
        count = math.prod(lengths.values())
    if count > MOST:
        raise ParameterError(f"{name}: parameters: {count:,} runs are more than {MOST:,}")
    runs = [dict(zip(values, chosen)) for chosen in sets]
    for number, given in enumerate(runs):
        if given in runs[:number]:
            first = runs.index(given) + 1
            raise ParameterError(f"{name}: parameters: runs {first} and {number + 1} are the same ({words(given)})")
    return runs


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0, 1 (bad input or a failed run), 2 (wrong usage) or 130 (interrupted)."""
    parser = argparse.ArgumentParser(prog="book/sweep.py", description="Run one chapter over several parameter sets.")
    parser.add_argument("--profile", default="full", help=f"one of: {', '.join(build.PROFILES)}")
    parser.add_argument("file", metavar="FILE", help="such as book/sweeps/example.toml")
    options = parser.parse_args(arguments)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, build._interrupt)
    try:
        if not options.file:
            raise ParameterError("a sweep needs a file, as in: make sweep FILE=book/sweeps/example.toml")
        page = run_sweep(Path(options.file), profile=options.profile)
    except (BuildError, ParameterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        return build.refuse_place(error)
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, run the same command again to go on", file=sys.stderr)
        return 130
    print(f"sweep: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
