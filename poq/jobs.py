"""Jobs: where and in which order the work of a sweep is done, kept and picked up again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import cloudpickle
import loky
import numpy as np
import pandas as pd
from tqdm import tqdm

import poq
from poq.attacks import asks_for
from poq.group import Failure, Group, play_group
from poq.matrix import ScoreMatrix
from poq.parts import Parts, hash_code, hash_log, warn

SERIAL_SECONDS = 10.0  # work estimated below this stays in the calling process
SHARE_OF_SWEEP = 1 / 256  # aimed length of a job: small enough to share out evenly ...
JOB_SECONDS = (0.1, 5.0)  # ... long enough to hide its start, short enough to lose little
IN_FLIGHT_BYTES = 2**28  # jobs handed over to an executor at one time
# Threads of BLAS that wait would spin on the core that this process needs while its workers start.
SLEEPY_BLAS = {"OPENBLAS_THREAD_TIMEOUT": "8"}


class Job(NamedTuple):
    """A group, or a piece of one, and the trials [first, stop) of it."""

    group: Group
    first: int
    stop: int

    @property
    def seconds(self) -> float:
        return estimate_seconds(self.group) * (self.stop - self.first)


def estimate_seconds(group: Group) -> float:
    """Rough time of one trial of a group on one core: measured constants, right within a factor of two or three."""
    attacks = {case.attack for case in group.cases if case.attack.function is not None}
    tracks = {(case.attack, case.rule) for case in group.cases} | {(None, case.rule) for case in group.cases}
    left_out = sum(rule.reference == "leave_one_out" for _, rule in tracks)
    reacting = sum(attack in attacks and asks_for(attack.function, "history") for attack, _ in tracks)
    committee = group.draw["committee"]
    seat = 10e-9 + 4e-9 * len(attacks) + 8e-9 * len(tracks) + 2e-9 * committee * left_out
    return group.draw["n_rounds"] * (committee * seat + 50e-6 * reacting) + 1e-3 + 0.3e-3 * len(tracks)


def split(plan: list[Group], trials: int) -> list[Job]:
    """Jobs of about equal length. The split hangs on the plan alone, so that parts of an earlier call fit."""
    seconds = [estimate_seconds(group) for group in plan]
    aim = float(np.clip(sum(seconds) * trials * SHARE_OF_SWEEP, *JOB_SECONDS))
    jobs = []
    for group, of_trial in zip(plan, seconds):
        step = int(np.clip(aim // of_trial, 1, trials))
        # Pieces of one trial draw the same rounds again, so only a trial that is much too long is cut.
        pieces = _cut(group, int(of_trial / (4 * aim)) + 1)
        jobs += [Job(piece, i, min(i + step, trials)) for i in range(0, trials, step) for piece in pieces]
    return jobs


def _cut(group: Group, n_pieces: int) -> list[Group]:
    """Up to n pieces of a group with about as many cases each; cases of one attack stay together where they can."""
    attacks = list(dict.fromkeys(case.attack for case in group.cases))
    order = sorted(range(len(group.cases)), key=lambda i: attacks.index(group.cases[i].attack))
    pieces = np.array_split(order, min(n_pieces, len(order)))
    return [
        group._replace(cases=[group.cases[i] for i in piece], numbers=[group.numbers[i] for i in piece])
        for piece in pieces
    ]


def execute(
    plan: list[Group],
    matrices: dict[str, ScoreMatrix],
    *,
    log: pd.DataFrame,
    scenarios: list[dict],
    seed: int,
    trials: int,
    executor: Executor | None,
    out,
    progress: bool,
) -> pd.DataFrame:
    """Do all jobs.

    Parameters
    ----------
    plan, matrices
        What to play, and on what.
    log, scenarios
        What was asked, to tell a call from another and to name a scenario that fails.
    seed, trials, executor, out, progress
        As in :func:`poq.simulate.run`.

    Returns
    -------
    DataFrame
        scenario_number, trial and the metrics, in that order of rows.

    Raises
    ------
    ValueError
        Before any work: for an executor that is none or is shut down, or a folder that does not fit.
    RuntimeError
        When a job fails; the message names its scenario and trial.
    """
    if executor is not None and not isinstance(executor, Executor):
        raise ValueError(
            f"executor must be a concurrent.futures.Executor (of a Dask client: client.get_executor()), "
            f"not {type(executor).__name__}"
        )
    jobs = split(plan, trials)
    parts = None
    if out is not None:
        played = {id(part): part for group in plan for case in group.cases for part in (case.rule, case.attack)}
        code = hash_code(part.function for part in played.values())
        identity = {"scenarios": scenarios, "seed": seed, "trials": trials, "log": hash_log(log), "code": code}
        parts = Parts(Path(out), {**identity, "version": poq.__version__})
    kept = {number: parts.read(number) for number in range(len(jobs))} if parts else {}
    done = {number: columns for number, columns in kept.items() if columns is not None}
    todo = [number for number in range(len(jobs)) if number not in done]
    todo.sort(key=lambda number: -jobs[number].seconds)  # the long ones first, so that all workers end together

    groups = {id(job.group): job.group for job in jobs}

    @lru_cache(maxsize=1)  # most jobs of a group follow one another
    def packed(key: int) -> bytes:
        return cloudpickle.dumps((matrices[groups[key].matrix], groups[key]))

    def work(number: int) -> tuple:
        job = jobs[number]
        return packed(id(job.group)), seed, job.first, job.stop

    with tqdm(total=len(jobs), initial=len(done), disable=not progress, delay=1.0, unit="job") as bar:

        def finish(number: int, result: dict[str, np.ndarray] | Failure) -> None:
            if isinstance(result, Failure):
                raise _error(result, scenarios[result.number])
            done[number] = result
            if parts:
                parts.write(number, result)
            bar.update()

        if executor is not None and todo:
            at_once = int(np.clip(IN_FLIGHT_BYTES // len(work(todo[0])[0]), 64, 4096))
            todo = _run_on(executor, todo, work, finish, at_once=at_once)
            if todo:
                warn(f"the executor broke; its {len(todo)} unfinished job(s) run on this machine")
        seconds = sum(jobs[number].seconds for number in todo)
        # A process of a standard pool, or a Dask worker, may have no children of its own.
        alone = n_cores() == 1 or multiprocessing.current_process().daemon
        if alone or len(todo) < 2 or seconds < SERIAL_SECONDS:
            for number in todo:
                finish(number, play_group(*work(number)))
        else:
            _run_on_own_pool(todo, work, finish)
    return _join([done[number] for number in range(len(jobs))])


def _join(results: list[dict[str, np.ndarray]]) -> pd.DataFrame:
    """Rows of all jobs in order. Jobs of one kind are joined first: tasks differ in columns or items, and are few."""
    kinds: dict[tuple, list[dict]] = {}
    for columns in results:
        kinds.setdefault(tuple((name, one.shape[1:]) for name, one in columns.items()), []).append(columns)
    tables = []
    for alike in kinds.values():
        joined = {name: np.concatenate([columns[name] for columns in alike]) for name in alike[0]}
        tables.append(pd.DataFrame({name: list(one) if one.ndim > 1 else one for name, one in joined.items()}))
    return pd.concat(tables).sort_values(["scenario_number", "trial"], ignore_index=True)


def _error(failure: Failure, scenario: dict) -> RuntimeError:
    names = ("task", "rule", "attack", "malicious_share", "committee")
    shown = ", ".join(f"{name} {scenario[name]!r}" for name in names)
    error = RuntimeError(f"scenarios[{failure.number}] ({shown}), trial {failure.trial} failed: {failure.error}")
    error.add_note(failure.trace)
    return error


def n_cores() -> int:
    """Cores that this process may use, limits of its container included."""
    return loky.cpu_count()


def _run_on(
    executor: Executor, todo: list[int], work: Callable, finish: Callable, *, at_once: int, helping: bool = False
) -> list[int]:
    """Do jobs on an executor; returns those that were lost because the executor broke.

    Only `at_once` jobs are handed over at a time, so that a long sweep is not held in memory twice. When `helping`,
    this process does jobs too, above all while the workers start.
    """
    waiting, running = list(reversed(todo)), {}
    left = dict.fromkeys(todo)
    done = SimpleQueue()
    try:
        while left:
            while waiting and len(running) < at_once:
                future = _submit(executor, *work(waiting[-1]))
                running[future] = waiting.pop()
                future.add_done_callback(done.put)
            if helping and waiting and done.empty():
                number = waiting.pop()
                result = play_group(*work(number))
            else:
                future = done.get()
                number = running.pop(future)
                result = future.result()
            finish(number, result)
            del left[number]
    except (BrokenExecutor, CancelledError):
        return list(left)
    finally:
        for future in running:
            future.cancel()
    return []


def _submit(executor: Executor, *work):
    try:
        return executor.submit(play_group, *work)
    except BrokenExecutor:
        raise
    except RuntimeError as error:
        raise ValueError(f"executor: {type(executor).__name__} takes no work ({error})") from error


def _run_on_own_pool(todo: list[int], work: Callable, finish: Callable) -> None:
    n_workers = n_cores() - 1  # this process is the other one
    while todo:
        # Unlike the standard pool it starts no copy of the caller's main module, and forks no threads.
        pool = loky.get_reusable_executor(n_workers, timeout=60, env=SLEEPY_BLAS)
        try:
            todo = _run_on(pool, todo, work, finish, at_once=2 * n_workers, helping=True)
        except BaseException:
            pool.shutdown(wait=False, kill_workers=True)
            raise
        if todo:
            warn(f"a worker process died; {len(todo)} unfinished job(s) go on in new ones")
