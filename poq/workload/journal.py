"""The journal of a collection: every reply on disk the moment it arrives, and no key in it."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import html
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

JOURNAL = "journal.jsonl"
FORMAT = "poq collect 1"
MASK = "[key removed]"
KEPT = ("ok", "malformed", "unparsable")  # what is not asked again


class JournalError(RuntimeError):
    """A results folder that cannot be used; the message names it."""


@dataclass
class Journal:
    """The open journal: `records` holds the last record of each key, `torn` counts unreadable lines."""

    handle: object
    records: dict[str, dict]
    torn: int

    def add(self, record: Mapping) -> None:
        """Append one record; it is on disk when this returns."""
        self.handle.write(json.dumps(record).encode("ascii") + b"\n")
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.records[record["key"]] = dict(record)


@contextlib.contextmanager
def open_journal(folder: Path, *, study: str):
    """Open or begin the journal in `folder`, for this process alone.

    A last line that a kill has torn is left where it is, ended, counted, and its question asked again.

    Raises
    ------
    JournalError
        If the folder is in use by another collection, or holds something else than a collection.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise JournalError(f"{folder}: is not empty and holds no {JOURNAL}; name another folder in output.folder")
        begun = folder / f".{JOURNAL}.{os.getpid()}"
        begun.write_text(json.dumps({"format": FORMAT, "study": study}) + "\n", encoding="ascii")
        os.replace(begun, path)
    with path.open("r+b") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(f"{folder}: another collection is running in this folder") from None
        content = handle.read()
        header, *lines = content.split(b"\n")
        if (_as_record(header) or {}).get("format") != FORMAT:
            raise JournalError(f"{path}: is not a journal of this version of poq collect")
        if not content.endswith(b"\n"):
            handle.write(b"\n")
        records, torn = {}, 0
        for line in lines:
            record = _as_record(line)
            if record is not None and isinstance(record.get("key"), str) and record.get("status") in (*KEPT, "failed"):
                records[record["key"]] = record
            elif line.strip():
                torn += 1
        yield Journal(handle, records, torn)


def _as_record(line: bytes) -> dict | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def hash_key(**parts: object) -> str:
    """The key of a request: a fingerprint of all that decides what is asked, and of whom."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def make_redact(keys: Iterable[str]) -> Callable[[str], str]:
    """A function that removes the keys from a text, also where they come back encoded."""
    forms = set()
    for key in keys:
        bare = base64.b64encode(key.encode()).decode().rstrip("=")
        forms |= {key, urllib.parse.quote(key, safe=""), json.dumps(key)[1:-1], html.escape(key), bare}
    if not forms:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)), re.IGNORECASE)
    return lambda text: pattern.sub(MASK, text)
