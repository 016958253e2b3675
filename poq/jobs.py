"""Jobs: where and in which order the work of a sweep is done, kept and picked up again."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from tqdm import tqdm

import poq
from poq.engine import Case, play_trial

SERIAL_SECONDS = 10.0  # work estimated below this stays in the calling process
JOB_SECONDS = 1.0  # aimed length of one job: short enough to lose little, long enough to hide its start
RESTARTS = 3  # times that a pool of our own is started again after a worker died


class Group(NamedTuple):
    """Scenarios that share their rounds: the matrix they play on, what fixes the draw, their cases and numbers."""

    matrix: str
    draw: dict
    cases: list[Case]
    numbers: list[int]


class Job(NamedTuple):
    """A group and the trials [first, stop) of it."""

    group: int
    first: int
    stop: int


def estimate_seconds(group: Group) -> float:
    """Rough time of one trial of a group on one core."""
    tracks = len({(case.attack, case.rule) for case in group.cases}) + len({case.rule for case in group.cases})
    committee = group.draw["committee"]
    slow = 1 + committee * any(case.rule.reference == "leave_one_out" for case in group.cases) / 2
    return group.draw["n_rounds"] * (20e-9 + 10e-9 * committee) * (1 + slow * tracks) + 1e-3 * tracks


def split(plan: list[Group], trials: int) -> list[Job]:
    """Jobs of about equal length. The split hangs on the plan alone, so that parts of an earlier call fit."""
    jobs = []
    for number, group in enumerate(plan):
        step = max(1, min(trials, round(JOB_SECONDS / estimate_seconds(group))))
        jobs += [Job(number, first, min(first + step, trials)) for first in range(0, trials, step)]
    return jobs


def execute(plan, matrices, *, seed, trials, executor, out, identity, progress) -> dict[tuple[int, int], dict]:
    """Do all jobs and return a row of metrics per (scenario number, trial)."""
    jobs = split(plan, trials)
    parts = Parts(Path(out), {**identity, "seed": seed, "trials": trials, "version": poq.__version__}) if out else None
    rows: dict[tuple[int, int], dict] = {}
    todo = []
    for number, job in enumerate(jobs):
        kept = parts.read(number, _expected(plan, job)) if parts else None
        if kept is None:
            todo.append(number)
        else:
            rows.update(kept)
    payloads = {}

    def payload(number: int) -> bytes:
        job = jobs[number]
        group = plan[job.group]
        return cloudpickle.dumps((matrices[group.matrix], group, seed, job.first, job.stop))

    seconds = sum(estimate_seconds(plan[jobs[n].group]) * (jobs[n].stop - jobs[n].first) for n in todo)
    del payloads
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), disable=not progress, delay=1.0, unit="job") as bar:

        def finish(number: int, result) -> None:
            if parts:
                parts.write(number, result)
            rows.update(result)
            bar.update()

        if executor is None and (seconds < SERIAL_SECONDS or n_cores() == 1 or len(todo) == 1):
            for number in todo:
                finish(number, _do(payload(number)))
        elif executor is None:
            _run_on_own_pool(todo, payload, finish)
        else:
            _run_here_after_break(_run_on(executor, todo, payload, finish), payload, finish)
    return rows


def _do(payload: bytes) -> dict[tuple[int, int], dict]:
    """One job, in whichever process."""
    matrix, group, seed, first, stop = cloudpickle.loads(payload)
    rows = {}
    for trial in range(first, stop):
        for number, row in zip(group.numbers, play_trial(matrix, group.cases, draw=group.draw, seed=seed, trial=trial)):
            rows[number, trial] = row
    return rows


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_on(executor: Executor, todo, payload, finish) -> list[int]:
    """Do jobs on an executor; returns those that were lost because the executor broke.

    Only a window of jobs is handed over at a time, so that a long sweep is not held in memory twice.
    """
    waiting, running = list(reversed(todo)), {}
    try:
        while waiting or running:
            while waiting and len(running) < 64:
                future = executor.submit(_do, payload(waiting[-1]))
                running[future] = waiting.pop()  # only now, so that a job whose submission fails still counts as lost
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                number = running[future]
                result = future.result()
                del running[future]
                finish(number, result)
    except BrokenExecutor:
        lost = set(running.values()) | set(waiting)
        return [number for number in todo if number in lost]
    finally:
        for future in running:
            future.cancel()
    return []


def _run_on_own_pool(todo, payload, finish) -> None:
    from loky import get_reusable_executor  # starts no copy of the caller's main module, unlike the standard pool

    for _ in range(RESTARTS + 1):
        pool = get_reusable_executor(max_workers=n_cores(), timeout=60)
        try:
            todo = _run_on(pool, todo, payload, finish)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, kill_workers=True)
            raise
        if not todo:
            return
    _run_here_after_break(todo, payload, finish)


def _run_here_after_break(todo, payload, finish) -> None:
    if todo:
        warnings.warn(f"the executor broke; its {len(todo)} unfinished job(s) run in this process", stacklevel=4)
    for number in todo:
        finish(number, _do(payload(number)))


def _expected(plan: list[Group], job: Job) -> set[tuple[int, int]]:
    return {(number, trial) for number in plan[job.group].numbers for trial in range(job.first, job.stop)}


def hash_log(log: pd.DataFrame) -> str:
    """SHA-256 of what a simulation reads of a log."""
    digest = hashlib.sha256()
    for name in ("task", "item", "model", "evaluator", "score", "truth", "cost", "model_cost"):
        if name in log:
            column = log[name]
            digest.update(name.encode())
            if pd.api.types.is_float_dtype(column):
                digest.update(np.ascontiguousarray(column.to_numpy(dtype=np.float64)).tobytes())
            else:
                digest.update("\x1f".join(column).encode())
    return digest.hexdigest()


class Parts:
    """Finished jobs on disk: a manifest that says which call they belong to, and one Parquet file per job."""

    def __init__(self, folder: Path, identity: dict):
        self.folder = folder
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        manifest = folder / "manifest.json"
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out: {folder} is a file, not a folder")
        if not manifest.exists():
            if folder.exists() and any(path for path in folder.iterdir() if not path.name.endswith(".tmp")):
                raise ValueError(f"out: folder {folder} holds other files and no manifest.json; choose an empty one")
            folder.mkdir(parents=True, exist_ok=True)
            with _atomic(manifest) as temporary:
                temporary.write_text(json.dumps(identity, sort_keys=True, indent=1), encoding="utf-8")
            return
        try:
            known = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"out: {manifest} cannot be read ({error}); choose another folder") from error
        changed = [name for name in sorted(set(known) | set(identity)) if known.get(name) != identity.get(name)]
        if changed:
            raise ValueError(
                f"out: {folder} belongs to a call with different {', '.join(changed)}; choose another folder"
            )

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def write(self, number: int, rows: dict[tuple[int, int], dict]) -> None:
        keys = sorted(rows)
        table = pa.Table.from_pylist(
            [{"scenario_number": key[0], "trial_number": key[1], "row": json.dumps(rows[key])} for key in keys]
        ).replace_schema_metadata({"poq": f"{self.fingerprint}:{number}"})
        with _atomic(self.path(number)) as temporary:
            pa.parquet.write_table(table, temporary, write_page_checksum=True)

    def read(self, number: int, expected: set[tuple[int, int]]) -> dict[tuple[int, int], dict] | None:
        path = self.path(number)
        if not path.exists():
            return None
        try:
            table = pa.parquet.read_table(path, page_checksum_verification=True)
            if (table.schema.metadata or {}).get(b"poq") != f"{self.fingerprint}:{number}".encode():
                raise ValueError("it belongs to another call")
            rows = {(row["scenario_number"], row["trial_number"]): json.loads(row["row"]) for row in table.to_pylist()}
            if set(rows) != expected:
                raise ValueError("its rows are not those of the job")
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            aside = path.with_suffix(".parquet.unusable")
            os.replace(path, aside)
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"out: {path} is unusable ({reason}); kept as {aside.name}, recomputed", stacklevel=5)
            return None
        return rows


@contextmanager
def _atomic(path: Path):
    """A temporary file beside `path` that takes its place when the block ends well."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
