"""A group of scenarios that share their rounds, as a job plays it in whichever process.

A worker imports this module and what stands before it, nothing that reads tables: it is ready the sooner.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import traceback
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import NamedTuple

import cloudpickle
import numpy as np
import scipy

from poq.engine import Case, play_trial


class Group(NamedTuple):
    """Scenarios that share their rounds: the matrix they play on, what fixes the draw, their cases and numbers."""

    matrix: str
    draw: dict
    cases: list[Case]
    numbers: list[int]


class Failure(NamedTuple):
    """What went wrong in a job, as texts: not every exception survives the way back from another process."""

    number: int
    trial: int
    error: str
    trace: str


def load_blas() -> None:
    """Load SciPy's entry to BLAS alone.

    numba asks for it before it runs any kernel, and would import all of scipy.linalg: a quarter of a worker's start.
    What is imported later finds it there.
    """
    name = "scipy.linalg.cython_blas"
    spec = PathFinder.find_spec(name, [str(Path(scipy.__file__).parent / "linalg")])
    if spec is not None and name not in sys.modules:
        with contextlib.suppress(ImportError):  # numba does without it too
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[name] = module


def play_group(packed: bytes, seed: int, first: int, stop: int) -> dict[str, np.ndarray] | Failure:
    """Play some trials of a group: the columns of its rows (scenario_number, trial, metrics), or what failed.

    Parameters
    ----------
    packed : bytes
        Pickled (matrix, group).
    seed, first, stop : int
        Trials first to stop - 1 are played.
    """
    if multiprocessing.parent_process() is not None:  # a worker, of whichever pool; the reader's process stays as it is
        load_blas()
    matrix, group = cloudpickle.loads(packed)
    played = []
    for trial in range(first, stop):
        play = {"draw": group.draw, "seed": seed, "trial": trial}
        failed = None
        try:
            columns = play_trial(matrix, group.cases, **play)
        except Exception as error:
            failed = error
        if failed is not None:
            number, error = _culprit(matrix, group, play, failed)
            trace = "".join(traceback.format_exception(error))
            return Failure(number, trial, f"{type(error).__name__}: {error}", trace)
        played.append({"scenario_number": group.numbers, "trial": np.full(len(group.numbers), trial), **columns})
    return {name: np.concatenate([columns[name] for columns in played]) for name in played[0]}


def _culprit(matrix, group: Group, play: dict, error: Exception) -> tuple[int, Exception]:
    """The scenario that fails on its own too, and its error."""
    for case, number in zip(group.cases, group.numbers):
        try:
            play_trial(matrix, [case], **play)
        except Exception as its_error:
            return number, its_error
    return group.numbers[0], error
