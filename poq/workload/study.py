"""The study file of a live network and its items, read and checked to the last key before anything is asked.

``poq collect`` reads a TOML file: the data, the inference nodes, the evaluators and where to put the results. Every
mistake is one `StudyError` that names the file and the key.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from poq.workload.evaluators import EVALUATORS, TASKS, Evaluator
from poq.workload.judge_parsing import FORMS, check_pattern, fill, placeholders

MIN_KEY = 8
PROMPTS = {
    "qa": "Answer the question from the passage, in as few words as possible. Reply with the answer only.\n\n"
    "Passage:\n{context}\n\nQuestion: {question}",
    "summarisation": "Summarise the text in at most three sentences. Reply with the summary only.\n\nText:\n{context}",
}
QA_WITHOUT_CONTEXT = (
    "Answer the question in as few words as possible. Reply with the answer only.\n\nQuestion: {question}"
)
DATASETS = {
    "squad": ("rajpurkar/squad", None, "validation"),
    "cnn_dailymail": ("abisee/cnn_dailymail", "3.0.0", "validation"),
}
ITEM_FIELDS = ("id", "task", "question", "context", "answers", "prompt")


class StudyError(ValueError):
    """A study that cannot be run; the message names the file and the key."""


@dataclass(frozen=True)
class Item:
    """One item of the data set.

    `answers` are all acceptable answers or reference summaries, the first is the reference; `prompt` is what a node is
    sent, whole.
    """

    id: str
    task: str
    question: str
    context: str
    answers: tuple[str, ...]
    prompt: str


@dataclass(frozen=True)
class Endpoint:
    """One OpenAI-compatible endpoint. Times in seconds; `temperature` None and `max_tokens` 0 are not sent."""

    name: str
    base_url: str
    model: str
    api_key_env: str = ""
    concurrency: int = 4
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 1.0
    give_up_after: int = 5
    max_tokens: int = 256
    temperature: float | None = None
    system: str = ""
    extra: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """A language model that scores answers: where it is, what it is told, and where in its reply the score stands."""

    endpoint: Endpoint
    template: str
    form: str
    pattern: str
    field: str
    low: float
    high: float
    tasks: tuple[str, ...]

    @property
    def reference_based(self) -> bool:
        """Whether the judge is shown the reference; that follows from its template."""
        return "reference" in placeholders(self.template)


@dataclass(frozen=True)
class Study:
    """All of a checked study; `metrics` maps the name in the score log to a program, `judges` are asked."""

    path: Path
    folder: Path
    items: tuple[Item, ...]
    nodes: tuple[Endpoint, ...]
    metrics: Mapping[str, Evaluator]
    encoder: str | None
    judges: tuple[Judge, ...]


# Tables of the file --------------------------------------------------------------------------------------------------

REQUIRED = object()
# key: (kind, default, low, high); the kinds are checked in `_value`.
_ENDPOINT = {
    "name": ("name", REQUIRED),
    "base_url": ("url", REQUIRED),
    "model": ("text", REQUIRED),
    "api_key_env": ("text", ""),
    "concurrency": ("int", 4, 1, 256),
    "timeout": ("number", 60.0, 0.1, 3600.0),
    "retries": ("int", 5, 0, 20),
    "backoff": ("number", 1.0, 0.0, 60.0),
    "give_up_after": ("int", 5, 1, 1_000_000),
    "max_tokens": ("int", 256, 0, 1_000_000),
    "temperature": ("number", None, 0.0, 2.0),
    "system": ("text", ""),
    "extra": ("table", {}),
}
_DATA = {
    "file": ("text", ""),
    "dataset": ("text", ""),
    "source": ("text", ""),
    "split": ("text", ""),
    "limit": ("int", 0, 1, 10_000_000),
    "seed": ("int", 0, 0, 2**32 - 1),
}
_METRIC = {"kind": ("text", REQUIRED), "names": ("names", REQUIRED)}
_MODEL = {"kind": ("text", REQUIRED), "name": ("name", "biencoder"), "model": ("text", "")}
_JUDGE = {
    "kind": ("text", REQUIRED),
    **_ENDPOINT,
    "template": ("text", REQUIRED),
    "score": ("text", "line"),
    "pattern": ("text", ""),
    "field": ("text", "score"),
    "range": ("range", REQUIRED),
    "tasks": ("names", "all"),
}
# What the body of a request holds already.
_OURS = {"messages", "model", "stream", "n", "max_tokens", "temperature"}


def read_study(path, *, environment: Mapping[str, str] = os.environ) -> Study:
    """Read and check a study file and its data; nothing is sent.

    Parameters
    ----------
    path : str or Path
        The TOML file. Paths in it are relative to its folder.
    environment : mapping
        Where the keys of the endpoints are looked for.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StudyError
        For anything wrong in the file, in its data, or missing in the environment.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no study file at {path}") from None
    except IsADirectoryError:
        raise StudyError(f"{path}: is a folder, not a study file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not readable as TOML in UTF-8: {error}") from None
    _check_keys(raw, {"data", "prompts", "nodes", "evaluators", "output"}, path, "")
    for key in ("data", "nodes", "evaluators"):
        if key not in raw:
            raise StudyError(f"{path}: lacks {'the table' if key == 'data' else 'an entry of'} {key}")
    prompts = _read_prompts(raw.get("prompts", {}), path)
    items = read_items(raw["data"], prompts, path)
    nodes = tuple(_read_endpoint(table, path, where) for where, table in _tables(raw, "nodes", path))
    _check_unique([node.name for node in nodes], path, "nodes")
    metrics, encoder, judges = _read_evaluators(raw, items, path)
    for where, endpoint in [
        *((f"nodes '{node.name}'", node) for node in nodes),
        *((f"evaluators '{judge.endpoint.name}'", judge.endpoint) for judge in judges),
    ]:
        _check_api_key(endpoint, environment, path, where)
    output = raw.get("output", {})
    _check_table(output, path, "output")
    chosen = _read(output, {"folder": ("text", "")}, path, "output")
    folder = path.parent / (chosen["folder"] or f"{path.stem}_collected")
    return Study(path, folder, items, nodes, metrics, encoder, judges)


def api_key(endpoint: Endpoint, environment: Mapping[str, str] = os.environ) -> str | None:
    """The endpoint's key from the environment; None where it needs none."""
    return environment[endpoint.api_key_env] if endpoint.api_key_env else None


def _check_api_key(endpoint: Endpoint, environment: Mapping[str, str], path: Path, where: str) -> None:
    name = endpoint.api_key_env
    if not name:
        return
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        # Not repeated: somebody may have put the key itself here.
        raise StudyError(f"{path}: {where}: api_key_env must be the name of an environment variable, not a key")
    key = environment.get(name, "")
    if not key:
        raise StudyError(f"{path}: {where}: api_key_env: the environment has no variable {name}")
    if len(key) < MIN_KEY or not all("!" <= letter <= "~" for letter in key):
        raise StudyError(
            f"{path}: {where}: api_key_env: {name} must hold at least {MIN_KEY} visible ASCII characters, no space"
        )


def _read_prompts(raw: object, path: Path) -> dict[str, str]:
    _check_table(raw, path, "prompts")
    _check_keys(raw, set(TASKS), path, "prompts.")
    for task, template in raw.items():
        if not isinstance(template, str) or not template.strip():
            raise StudyError(f"{path}: prompts.{task} must be text that is not blank")
        _check_placeholders(template, {"question", "context"}, path, f"prompts.{task}")
    return dict(raw)


def _check_placeholders(template: str, allowed: set[str], path: Path, where: str) -> None:
    unknown = sorted(placeholders(template) - allowed)
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in sorted(allowed))
        raise StudyError(f"{path}: {where} has the unknown placeholder {{{unknown[0]}}}; known are {known}")


def _read_endpoint(table: dict, path: Path, where: str) -> Endpoint:
    values = _read(table, _ENDPOINT, path, where)
    taken = sorted(set(values["extra"]) & _OURS)
    if taken:
        raise StudyError(f"{path}: {where}.extra must not hold {taken[0]}, which the collector sets")
    try:
        json.dumps(values["extra"], allow_nan=False)
    except (TypeError, ValueError):
        raise StudyError(f"{path}: {where}.extra holds a value that JSON cannot carry") from None
    return Endpoint(**values)


def _read_evaluators(raw: dict, items: Sequence[Item], path: Path):
    tasks = {item.task for item in items}
    metrics: dict[str, Evaluator] = {}
    names: list[str] = []
    judges: list[Judge] = []
    encoder, encoders = None, 0
    for where, table in _tables(raw, "evaluators", path):
        kind = table.get("kind")
        if kind == "metric":
            found = _read_metrics(table, items, path, where)
        elif kind == "model":
            values = _read(table, _MODEL, path, where)
            encoder, encoders = values["model"] or None, encoders + 1
            found = {
                f"{values['name']}_{entry.name.removeprefix('biencoder_')}": entry
                for entry in EVALUATORS
                if entry.needs_model
            }
            if encoders > 1:
                raise StudyError(f"{path}: {where}: only one evaluator of kind 'model' is possible")
        elif kind == "judge":
            judge = _read_judge(table, tasks, path, where)
            judges.append(judge)
            names.append(judge.endpoint.name)
            continue
        else:
            raise StudyError(f"{path}: {where}.kind must be one of metric, model, judge, not {kind!r}")
        names += found
        metrics |= found
    _check_unique(names, path, "evaluators")
    for task in sorted(tasks):
        if not any(task in entry.tasks for entry in metrics.values()) and not any(
            task in judge.tasks for judge in judges
        ):
            raise StudyError(f"{path}: evaluators: none works for the task {task}")
    return metrics, encoder, tuple(judges)


def _read_metrics(table: dict, items: Sequence[Item], path: Path, where: str) -> dict[str, Evaluator]:
    names = _read(table, _METRIC, path, where)["names"]
    usable = {entry.name: entry for entry in EVALUATORS if not entry.needs_model}
    if names == "all":
        fitting = {name: e for name, e in usable.items() if not e.learned and _obstacle(e, items) is None}
        return fitting
    found = {}
    for name in names:
        if name not in usable:
            hint = (
                " (it is of kind 'model')" if name in {entry.name for entry in EVALUATORS} else _suggest(name, usable)
            )
            raise StudyError(f"{path}: {where}.names: no metric is called {name!r}{hint}")
        obstacle = _obstacle(usable[name], items)
        if obstacle:
            raise StudyError(f"{path}: {where}.names: {name} {obstacle}")
        found[name] = usable[name]
    _check_unique(names, path, f"{where}.names")
    return found


def _obstacle(evaluator: Evaluator, items: Sequence[Item]) -> str | None:
    """Why a metric cannot score the answers to `items`; None if it can."""
    if evaluator.learned:
        return "learns from a training split, which a collection does not have"
    mine = [item for item in items if item.task in evaluator.tasks]
    if not mine:
        return f"works for {', '.join(evaluator.tasks)} only, and the data have none of it"
    for item in mine:
        if item.task == "qa" and "passage" in evaluator.reads and not item.context:
            return f"reads the passage, but item {item.id!r} has no context"
        if item.task != "qa" and "title" in evaluator.reads and not item.question:
            return f"reads the title, but item {item.id!r} has no question (the title)"
    return None


def _read_judge(table: dict, present: set[str], path: Path, where: str) -> Judge:
    values = _read(table, _JUDGE, path, where)
    endpoint = _read_endpoint({key: table[key] for key in _ENDPOINT if key in table}, path, where)
    template, form = values["template"], values["score"]
    _check_placeholders(template, {"question", "context", "reference", "answer", "code"}, path, f"{where}.template")
    if "answer" not in placeholders(template):
        raise StudyError(f"{path}: {where}.template lacks {{answer}}")
    if form not in FORMS:
        raise StudyError(f"{path}: {where}.score must be one of {', '.join(FORMS)}, not {form!r}")
    if (form == "regex") != bool(values["pattern"]):
        raise StudyError(f"{path}: {where}.pattern goes with score = 'regex', and only with it")
    if form == "regex":
        fault = check_pattern(values["pattern"])
        if fault:
            raise StudyError(f"{path}: {where}.pattern {fault}")
        if "code" not in placeholders(template):
            raise StudyError(f"{path}: {where}.template lacks {{code}}, which the judge must repeat with its score")
    if "field" in table and (form != "json" or values["field"] == "code"):
        raise StudyError(f"{path}: {where}.field goes with score = 'json' only, and cannot be 'code'")
    tasks = TASKS if values["tasks"] == "all" else tuple(values["tasks"])
    for task in tasks:
        if task not in TASKS:
            raise StudyError(f"{path}: {where}.tasks: unknown task {task!r}; known are {', '.join(TASKS)}")
    if not present & set(tasks):
        raise StudyError(f"{path}: {where}.tasks: the data have none of {', '.join(tasks)}")
    low, high = values["range"]
    return Judge(endpoint, template, form, values["pattern"], values["field"], low, high, tasks)


# Keys and values -----------------------------------------------------------------------------------------------------


def _tables(raw: dict, key: str, path: Path):
    entries = raw[key]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise StudyError(f"{path}: {key} must be one or more tables, each headed [[{key}]]")
    return [(f"{key}[{number}]", entry) for number, entry in enumerate(entries, 1)]


def _check_table(raw: object, path: Path, where: str) -> None:
    if not isinstance(raw, dict):
        raise StudyError(f"{path}: {where} must be a table, headed [{where}]")


def _check_keys(raw: Mapping, known, path: Path, prefix: str) -> None:
    for key in raw:
        if key in ("api_key", "key", "token", "authorization") and key not in known:
            raise StudyError(f"{path}: {prefix}{key}: keys never stand in a file; name a variable in api_key_env")
        if key not in known:
            raise StudyError(f"{path}: unknown key {prefix}{key}{_suggest(key, known)}")


def _check_unique(names: Sequence[str], path: Path, where: str) -> None:
    again = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if again is not None:
        raise StudyError(f"{path}: {where}: the name {again!r} stands twice")


def _suggest(word: str, known) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _read(table: Mapping, fields: Mapping, path: Path, where: str) -> dict:
    """The values of a table after `fields`, checked, with defaults filled in."""
    _check_keys(table, list(fields), path, f"{where}.")
    values = {}
    for key, (kind, default, *bounds) in fields.items():
        if key not in table:
            if default is REQUIRED:
                raise StudyError(f"{path}: {where} lacks the key {key}")
            values[key] = default
            continue
        fault = _fault(table[key], kind, bounds)
        if fault:
            raise StudyError(f"{path}: {where}.{key} must be {fault}")
        values[key] = table[key]
        if kind == "number":
            values[key] = float(table[key])
        elif kind == "range":
            values[key] = tuple(float(bound) for bound in table[key])
        elif kind == "url":
            values[key] = table[key].rstrip("/")
    return values


def _fault(value: object, kind: str, bounds: Sequence[float]) -> str | None:
    """What `value` should be, if it is not; the value itself is not shown, as it may be a key in the wrong place."""
    if kind == "text":
        return None if isinstance(value, str) and value.strip() else "text that is not blank"
    if kind == "name":
        good = isinstance(value, str) and value == value.strip() and 0 < len(value) <= 100 and is_plain(value)
        return None if good else "text of at most 100 characters without control characters"
    if kind == "names":
        good = value == "all" or (isinstance(value, list) and value and all(isinstance(name, str) for name in value))
        return None if good else "a list of names, or 'all'"
    if kind == "table":
        return None if isinstance(value, dict) else "a table"
    if kind == "url":
        return (
            None
            if isinstance(value, str) and _is_url(value)
            else ("an address like http://127.0.0.1:8000/v1, without user, password, query or fragment")
        )
    if kind == "range":
        good = isinstance(value, list) and len(value) == 2 and all(_is_number(bound) for bound in value)
        return None if good and value[0] < value[1] else "[low, high] with low < high"
    low, high = bounds
    good = _is_number(value) and low <= value <= high and (kind == "number" or isinstance(value, int))
    return None if good else f"{'a whole number' if kind == 'int' else 'a number'} from {low:g} to {high:g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        return False
    bare = not (parts.username or parts.password or parts.query or parts.fragment)
    visible = all("!" <= letter <= "~" for letter in text)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and bare and port_is_fine and visible


def is_plain(text: str) -> bool:
    """Whether `text` has no control, format, surrogate, private or unassigned character: fit to be a name."""
    return not any(unicodedata.category(letter)[0] == "C" for letter in text)


# Items ---------------------------------------------------------------------------------------------------------------


def read_items(raw: object, prompts: Mapping[str, str], path: Path) -> tuple[Item, ...]:
    """The items of the table `data` with their prompts, in order; `limit` keeps a seeded choice of them."""
    _check_table(raw, path, "data")
    data = _read(raw, _DATA, path, "data")
    if bool(data["file"]) == bool(data["dataset"]):
        raise StudyError(f"{path}: data needs one of the keys file and dataset, and not both")
    for key in ("source", "split"):
        if data["file"] and key in raw:
            raise StudyError(f"{path}: data.{key} goes with dataset, not with file")
    if data["file"]:
        where, rows = f"{path.parent / data['file']}", read_lines(path.parent / data["file"], path)
    else:
        where, rows = f"{path}: data.dataset", load_rows(data, path)
    if 0 < data["limit"] < len(rows):
        chosen = np.random.default_rng(data["seed"]).choice(len(rows), data["limit"], replace=False)
        rows = [rows[place] for place in sorted(chosen)]
    items, seen = [], {}
    for label, row in rows:
        item = _as_item(row, prompts, f"{where}: {label}")
        first = seen.setdefault((item.task, item.id), label)
        if first != label:
            raise StudyError(f"{where}: {label}: the id {item.id!r} stands already in {first}")
        items.append(item)
    if not items:
        raise StudyError(f"{where}: no items")
    return tuple(items)


def read_lines(file: Path, path: Path) -> list[tuple[str, object]]:
    """The objects of a file of JSON lines with a label each ("line 3"); blank lines are passed over."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise StudyError(f"{path}: data.file: {file} cannot be read: {reason}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((f"line {number}", json.loads(line)))
        except (ValueError, RecursionError):
            raise StudyError(f"{file}: line {number} is not JSON") from None
    return rows


def load_rows(data: Mapping, path: Path) -> list[tuple[str, dict]]:
    """The rows of a known data set through the library `datasets`, in the form of our JSON lines."""
    name = data["dataset"]
    if name not in DATASETS:
        raise StudyError(f"{path}: data.dataset: unknown data set {name!r}{_suggest(name, DATASETS)}")
    try:
        from datasets import load_dataset
    except ImportError:
        raise StudyError(
            f"{path}: data.dataset needs the package datasets; install the extra: pip install -e '.[models]'"
        ) from None
    source, configuration, split = DATASETS[name]
    if data["source"]:
        # A copy on disk, relative to the study as every path in it, or another hub id.
        local = path.parent / data["source"]
        source, configuration = (str(local), None) if local.exists() else (data["source"], configuration)
    try:
        table = load_dataset(source, configuration, split=data["split"] or split)
    except Exception as error:  # whatever the loader raises, the user needs one line that names the key
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StudyError(f"{path}: data.dataset: cannot load {source!r}: {reason}") from None
    convert = squad_row if name == "squad" else cnn_row
    try:
        return [(f"row {number}", convert(row)) for number, row in enumerate(table, 1)]
    except (KeyError, TypeError) as error:
        raise StudyError(f"{path}: data.dataset: {source!r} has not the columns of {name}: {error}") from None


def squad_row(row: Mapping) -> dict:
    """A row of SQuAD as one of our items; the annotators' answers without repetitions, in order."""
    answers = list(dict.fromkeys(row["answers"]["text"]))
    return {
        "id": row["id"], "task": "qa", "question": row["question"], "context": row["context"], "answers": answers
    }  # fmt: skip


def cnn_row(row: Mapping) -> dict:
    """A row of CNN/DailyMail as one of our items; the highlights are the reference summary."""
    return {"id": row["id"], "task": "summarisation", "context": row["article"], "answers": [row["highlights"]]}


def _as_item(row: object, prompts: Mapping[str, str], where: str) -> Item:
    if not isinstance(row, dict):
        raise StudyError(f"{where} must be a JSON object")
    for key in row:
        if key not in ITEM_FIELDS:
            raise StudyError(f"{where}: unknown field {key!r}{_suggest(key, ITEM_FIELDS)}")
    values = {key: row.get(key, "") for key in ITEM_FIELDS}
    if isinstance(values["id"], int) and not isinstance(values["id"], bool):
        values["id"] = str(values["id"])
    for key in ("id", "task", "question", "context", "prompt"):
        if not isinstance(values[key], str):
            raise StudyError(f"{where}: {key} must be text")
        if any("\ud800" <= letter <= "\udfff" for letter in values[key]):
            raise StudyError(f"{where}: {key} holds half a character (a lone surrogate)")
    if not values["id"].strip() or not is_plain(values["id"]):
        raise StudyError(f"{where}: id must be text that is not blank, without control characters")
    task = values["task"]
    if task not in TASKS:
        raise StudyError(f"{where}: task must be one of {', '.join(TASKS)}, not {task!r}")
    needed = "question" if task == "qa" else "context"
    if not values[needed].strip():
        raise StudyError(f"{where}: {needed} must not be blank for task {task}")
    answers = values["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise StudyError(f"{where}: answers must be a list of texts, at least one, none blank")
    if not values["prompt"]:
        default = QA_WITHOUT_CONTEXT if task == "qa" and not values["context"].strip() else PROMPTS[task]
        template = prompts.get(task, default)
        absent = sorted(name for name in placeholders(template) if not values[name].strip())
        if absent:
            raise StudyError(f"{where}: {absent[0]} is blank, but prompts.{task} uses {{{absent[0]}}}")
        values["prompt"] = fill(template, values)
    return Item(values["id"], task, values["question"], values["context"], tuple(answers), values["prompt"])


def digest_items(items: Sequence[Item]) -> str:
    """Fingerprint of all items with their prompts."""
    text = json.dumps([dataclasses.astuple(item) for item in items])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
