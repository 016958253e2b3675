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
from collections.abc import Callable, Iterable, Iterator, Mapping
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
        forms |= {"".join(map(_spellings, key)), re.escape(key.encode().hex())}
        forms |= {re.escape(text) for text in _base64_parts(key.encode())}
    if not forms:
        return lambda text: text
    pattern = re.compile("|".join(sorted(forms, key=len, reverse=True)), re.IGNORECASE)
    return lambda text: pattern.sub(MASK, text)


def _spellings(char: str) -> str:
    """A pattern for one character as it is, or escaped as in JSON, a URL or HTML, by any writer of these."""
    code = f"{ord(char):x}"
    quoted = "".join(f"%{byte:02x}" for byte in char.encode())
    forms = [re.escape(char), rf"\\{re.escape(char)}", rf"\\u0*{code}", quoted]
    forms += [rf"&#x0*{code};", rf"&#0*{ord(char)};", re.escape(html.escape(char))]
    return f"(?:{'|'.join(dict.fromkeys(forms))})"


def _base64_parts(secret: bytes) -> Iterator[str]:
    """What base64 makes of the secret wherever it begins in a longer text, in both alphabets."""
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + secret).decode().rstrip("=")
        if not shift:
            yield from {text, text.replace("+", "-").replace("/", "_")}  # the secret alone
        # The ends hang on the neighbours too.
        part = text[(0, 2, 3)[shift] : len(text) - (1 if (shift + len(secret)) % 3 else 0)]
        if len(part) >= 8:
            yield part
            yield part.replace("+", "-").replace("/", "_")
