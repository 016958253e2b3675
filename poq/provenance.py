"""What a chapter leaves behind: tables with a run record beside them, and numbers glued into the prose.

A chapter calls :func:`start` once, right after its parameters, then :func:`save_table` and :func:`glue`. Nothing here
prints or displays anything that differs between two runs: the commit, the time and the machine stand in the JSON
records only, so that an executed notebook is the same file every time.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "scipy", "pandas", "numba", "matplotlib", "seaborn", "pyarrow")
RESULTS = "POQ_RESULTS"  # environment variable: the folder that takes the results of every chapter
PROFILE = "POQ_PROFILE"  # environment variable: the profile under which the book is executed


@dataclass(frozen=True)
class ChapterRun:
    """One execution of one chapter.

    Attributes
    ----------
    name : str
        The chapter's file stem, such as ``"06_sweep"``.
    parameters : dict
        Every parameter of the chapter with the value of this run.
    log : Path or None
        The score log, resolved; None for a chapter without a ``log`` parameter.
    folder : Path
        Where :func:`save_table` writes.
    """

    name: str
    parameters: Mapping[str, Any]
    log: Path | None
    folder: Path


def start(chapter: str, **parameters: Any) -> ChapterRun:
    """Begin the run of a chapter: find its log, make its results folder.

    Parameters
    ----------
    chapter : str
        The chapter's file stem.
    **parameters
        Every parameter of the chapter, by name. A parameter called ``log`` is a path to a score log, relative to the
        working directory.

    Raises
    ------
    FileNotFoundError
        If ``log`` does not exist.
    ValueError
        If the chapter's name is not a plain file stem.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", chapter):
        raise ValueError(f"chapter: {chapter!r} is not a file stem")
    log = None
    if parameters.get("log") is not None:
        log = Path(parameters["log"]).expanduser()
        if not log.is_file():
            raise FileNotFoundError(f"log: no such file: {parameters['log']}")
        log = log.resolve()
    folder = Path(os.environ.get(RESULTS, "results")).resolve() / chapter
    folder.mkdir(parents=True, exist_ok=True)
    # A warning's usual text names a temporary file and its line, which differ from run to run.
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    return ChapterRun(name=chapter, parameters=dict(parameters), log=log, folder=folder)


def save_table(
    run: ChapterRun, frame, name: str, *, trials_asked: int | None = None, trials_done: int | None = None
) -> None:
    """Write a table as ``<name>.csv`` and its run record as ``<name>.json``.

    Parameters
    ----------
    run : ChapterRun
        What :func:`start` returned.
    frame : DataFrame
        The table. A named index becomes columns, a plain numbering is dropped.
    name : str
        File stem of the table, such as ``"rmse_by_rule"``.
    trials_asked, trials_done : int, optional
        Repetitions that were asked for and that the table rests on. Fewer done than asked is warned about.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"table: {name!r} must be lower case letters, digits, _ or -")
    if trials_asked is not None and trials_done is not None and trials_done < trials_asked:
        warnings.warn(f"{run.name}: {name} rests on {trials_done} of {trials_asked} trials", stacklevel=2)
    named_index = any(level is not None for level in frame.index.names)
    _write(run.folder / f"{name}.csv", frame.to_csv(index=named_index, lineterminator="\n"))
    record = {
        "table": f"{name}.csv",
        "rows": len(frame),
        "chapter": run.name,
        "profile": os.environ.get(PROFILE),
        "parameters": plain(run.parameters),
        "seed": plain(run.parameters.get("seed")),
        "trials_asked": trials_asked,
        "trials_done": trials_done,
        "input": None if run.log is None else {"log": run.log.name, "sha256": file_hash(run.log)},
        **code_state(),
        "versions": versions(),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    _write(run.folder / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def glue(name: str, value: Any) -> None:
    """Store a number or a text under a name, for ``{glue:text}`` in the prose. Shows nothing in the notebook.

    A numpy number becomes a plain one, so that the prose can format it, as with ``name:.2f``.
    """
    from IPython.display import display

    prefix = "application/papermill.record/"
    bundle = {prefix + "text/plain": repr(plain(value))}
    display(bundle, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": prefix}})


def plain(value: Any) -> Any:
    """Turn numpy scalars, arrays, paths, tuples and mappings into what JSON can hold; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number can depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_state() -> dict[str, Any]:
    """Commit of the code and whether it was changed since: ``{"commit": str or None, "dirty": bool or None}``.

    None where there is no git metadata, as in an unpacked archive or an installed package.
    """
    root = Path(__file__).resolve().parent.parent
    unknown = {"commit": None, "dirty": None}
    # Without this check an installed copy would report the commit of whatever repository encloses it.
    if not (root / ".git").exists():
        return unknown
    try:
        commit = _git(root, "rev-parse", "HEAD")
        status = _git(root, "status", "--porcelain", "--", "poq", "book", "pyproject.toml", "requirements.lock")
    except (OSError, subprocess.SubprocessError):
        return unknown
    return {"commit": commit, "dirty": bool(status)}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _write(path: Path, text: str) -> None:
    """Write a file in one step, so that a reader never meets half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
