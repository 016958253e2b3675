"""Parts: finished jobs of a sweep on disk, and how a later call knows that they are its own."""

from __future__ import annotations

import ast
import hashlib
import inspect
import itertools
import json
import os
import re
import sys
import time
import types
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

MANIFEST = "manifest.json"
DATA = (types.NoneType, bool, int, float, complex, str, bytes, tuple, list, set, frozenset, dict)
DATA += (np.generic, np.ndarray, pd.Series, pd.DataFrame, pd.Index, types.SimpleNamespace)
PACKAGE = Path(__file__).parent
DECIDING = ("scorelog", "engine")  # with all that they import: from a log to its matrix, and from there to a row
ABANDONED_SECONDS = 3600  # a temporary file this old has lost its writer


class Parts:
    """A folder with one Parquet file per finished job, and a manifest that says which call they belong to.

    Parameters
    ----------
    folder : Path
        Made if absent. A folder that holds other things, or the parts of another call, is refused.
    identity : dict
        Everything that decides on the result, as JSON values.

    Raises
    ------
    ValueError
        Names the folder and what differs.
    """

    def __init__(self, folder: Path, identity: dict):
        self.folder = folder
        text = json.dumps(identity, sort_keys=True, indent=1)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        manifest = folder / MANIFEST
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out: {folder} is a file, not a folder")
        if manifest.exists():
            _compare(manifest, json.loads(text))
        else:
            if folder.exists() and any(not path.name.endswith(".tmp") for path in folder.iterdir()):
                raise ValueError(f"out: folder {folder} holds other files and no {MANIFEST}; choose an empty one")
            folder.mkdir(parents=True, exist_ok=True)
            _replace(manifest, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
        self._sweep()

    def path(self, number: int) -> Path:
        """Where the part of a job stands."""
        return self.folder / f"part-{number:05d}.parquet"

    def write(self, number: int, columns: dict[str, np.ndarray]) -> None:
        """Keep the columns of a finished job."""
        table = pa.table(columns)
        table = table.replace_schema_metadata({"poq": f"{self.fingerprint}:{number}:{_digest(table)}"})
        _replace(self.path(number), lambda temporary: pa.parquet.write_table(table, temporary))

    def read(self, number: int) -> dict[str, np.ndarray] | None:
        """The columns of a job, or None if they are not there; what cannot be trusted is set aside with a warning."""
        path = self.path(number)
        if not os.path.lexists(path):
            return None
        try:
            table = pa.parquet.ParquetFile(path).read()
            fingerprint, its_number, digest = (table.schema.metadata or {})[b"poq"].decode().split(":")
            if (fingerprint, its_number) != (self.fingerprint, str(number)):
                raise ValueError("it belongs to another call or job")
            if digest != _digest(table):
                raise ValueError("its content has changed")
        # Whatever a damaged file makes the reader raise, the answer is the same: compute the job again.
        except Exception as error:
            aside = _free_name(path.with_name(path.name + ".unusable"))
            os.replace(path, aside)
            reason = "it bears no mark of this call" if isinstance(error, KeyError) else " ".join(str(error).split())
            warn(f"out: {path} is unusable ({reason[:200]}); kept as {aside.name}, computed again")
            return None
        return {name: table[name].to_numpy() for name in table.column_names}

    def _sweep(self) -> None:
        """Remove what a killed writer left half written."""
        for path in self.folder.iterdir():
            ours = re.fullmatch(r"(part-\d+\.parquet|manifest\.json)\.\d+\.tmp", path.name)
            if ours and path.is_file() and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink(missing_ok=True)


def _compare(manifest: Path, identity: dict) -> None:
    try:
        known = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"out: {manifest} cannot be read ({error}); choose another folder") from error
    if not isinstance(known, dict) or not set(identity) & set(known):
        raise ValueError(f"out: {manifest} is no manifest of a simulation; choose another folder")
    changed = [name for name in sorted(set(known) | set(identity)) if known.get(name) != identity.get(name)]
    if changed:
        raise ValueError(
            f"out: {manifest.parent} belongs to a call with different {', '.join(changed)}; choose another folder"
        )


def _replace(path: Path, write) -> None:
    """Write a temporary file beside `path` and let it take its place: a reader sees all of it or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while os.path.lexists(free):
        number, free = number + 1, path.with_name(f"{path.name}-{number + 1}")
    return free


def _digest(table: pa.Table) -> str:
    """SHA-256 of names, types and values: a flipped bit anywhere in the file cannot pass as another number."""
    content = [[str(kind) for kind in table.schema.types], table.to_pydict()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


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


def hash_code(functions: Iterable) -> str:
    """SHA-256 of what calibrates a log and plays a trial, and of rules and attacks from outside this package, so that
    a rule rewritten under its old name does not pick up the results of the former one."""
    digest = hashlib.sha256()
    for source in _sources(*DECIDING):
        digest.update(source)
    for function in functions:
        digest.update(_describe(function, set()).encode())
    return digest.hexdigest()


def _sources(*names: str) -> Iterator[bytes]:
    """The text of modules of this package and of those that they import."""
    names = list(names)
    for name in names:
        source = (PACKAGE / f"{name}.py").read_bytes()
        yield source
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module:
                package, _, module = node.module.partition(".")
                found = [module] if module else [alias.name for alias in node.names]
                names += [new for new in found if package == __package__ and new not in names]


def _describe(thing, seen: set) -> str:
    """A text that changes when a function changes: its code, defaults, closure, and what its own module gives it."""
    thing = getattr(getattr(thing, "_dispatcher", thing), "py_func", thing)  # a function compiled by numba
    if isinstance(thing, partial):
        thing = (thing.func, thing.args, thing.keywords)
    if isinstance(thing, types.MethodType):
        thing = (thing.__func__, thing.__self__)
    if isinstance(thing, tuple | list):
        return f"({', '.join(_describe(part, seen) for part in thing)})"
    if isinstance(thing, set | frozenset):
        return f"{{{', '.join(sorted(_describe(part, seen) for part in thing))}}}"
    if isinstance(thing, dict):
        return f"{{{', '.join(f'{key!r}: {_describe(value, seen)}' for key, value in thing.items())}}}"
    if isinstance(thing, np.ndarray):
        return f"array({thing.dtype}, {thing.shape}, {hashlib.sha256(thing.tobytes()).hexdigest()})"
    if isinstance(thing, pd.Series | pd.DataFrame | pd.Index):
        return f"{type(thing).__name__} {_describe(pd.util.hash_pandas_object(thing).to_numpy(), seen)}"
    if thing is None or isinstance(thing, str | bytes | bool | int | float | complex | np.generic):
        return repr(thing)
    if isinstance(thing, types.CodeType):
        return _describe((thing.co_code, thing.co_names, thing.co_varnames, thing.co_consts), seen)
    if not isinstance(thing, types.FunctionType):
        return _describe_object(thing, seen)
    name = f"{thing.__module__}.{thing.__qualname__}"
    if id(thing) in seen or (thing.__module__ or "").partition(".")[0] == __package__:
        return name
    seen.add(id(thing))
    known = {name: thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__}
    given = {name: value for name, value in known.items() if _is_own(value, thing)}
    given |= inspect.getclosurevars(thing).nonlocals
    return f"{name} {_describe((thing.__code__, thing.__defaults__, thing.__kwdefaults__, given), seen)}"


def _describe_object(thing, seen: set) -> str:
    """Of an object that is called: its class with those that it comes from, and what it holds."""
    kind = thing if isinstance(thing, type) else type(thing)
    name = f"{kind.__module__}.{kind.__qualname__} {getattr(thing, '__qualname__', '')}"
    if id(thing) in seen or isinstance(thing, types.ModuleType) or kind.__module__.partition(".")[0] == __package__:
        return name
    seen.add(id(thing))
    classes = [parent for parent in kind.__mro__ if parent.__module__ == kind.__module__]
    own = [(key, _unwrapped(value)) for parent in classes for key, value in vars(parent).items()]
    # Python's own notes on a class, such as __firstlineno__, decide on nothing.
    said = [isinstance(it, types.FunctionType) or (isinstance(it, DATA) and key[:2] != "__") for key, it in own]
    own = list(itertools.compress(own, said))
    slots = [slot for parent in classes for slot in np.atleast_1d(vars(parent).get("__slots__", []))]
    held = {slot: getattr(thing, slot) for slot in slots if hasattr(thing, slot)} | getattr(thing, "__dict__", {})
    return f"{name} {_describe((own, {} if isinstance(thing, type) else held), seen)}"


def _unwrapped(value):
    """The function behind a static method, a class method or a property."""
    return getattr(value, "fget", getattr(value, "__func__", value))


def _names(code: types.CodeType) -> list[str]:
    """Global names that a function reads, also in functions and comprehensions inside it, in a fixed order."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _is_own(value, function) -> bool:
    """Whether a global is plain data, or of the function's own module; libraries are not followed."""
    return isinstance(value, DATA) or getattr(value, "__module__", None) == function.__module__


def warn(message: str) -> None:
    """Warn at the line of the caller outside this package."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__package__") == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
