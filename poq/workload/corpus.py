"""The corpus: original passages with reference summaries, fact checklists, questions and acceptable answers."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
GENRES = ("dialogue", "instructions", "narrative", "news", "science")
_KEYS = {
    "passage": {"id", "genre", "title", "text", "summary", "facts", "questions"},
    "facts": {"statement", "needs"},
    "questions": {"question", "answers"},
}


class CorpusError(ValueError):
    """A passage that breaks the format; the message names the file and the key."""


@dataclass(frozen=True)
class Question:
    """One question; `answers` are all acceptable answers, the first one is the reference."""

    id: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One fact that a good summary covers; every inner tuple of `needs` must be met by one of its alternatives."""

    statement: str
    needs: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Passage:
    """One passage of the corpus."""

    id: str
    genre: str
    title: str
    text: str
    summary: str
    facts: tuple[Fact, ...]
    questions: tuple[Question, ...]


def load_corpus(folder: Path | str = CORPUS) -> list[Passage]:
    """All passages of `folder` (*.toml), sorted by id.

    Raises
    ------
    CorpusError
        If the folder holds no passage, or a passage breaks the format; the message names the file and the key.
    """
    paths = sorted(Path(folder).glob("*.toml"))
    if not paths:
        raise CorpusError(f"{folder}: no passage (*.toml) found")
    return [read_passage(path) for path in paths]


def read_passage(path: Path | str) -> Passage:
    """The passage in one TOML file, checked strictly."""
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path.name}: not readable as TOML in UTF-8: {error}") from None
    _check_keys(path, raw, "passage", "file")
    for key in ("id", "genre", "title", "text", "summary"):
        if not isinstance(raw[key], str) or not raw[key].strip():
            raise CorpusError(f"{path.name}: {key} must be text that is not blank")
    if raw["id"] != path.stem or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", raw["id"]):
        raise CorpusError(f"{path.name}: id must be the file's stem in lower case with hyphens, not {raw['id']!r}")
    if raw["genre"] not in GENRES:
        raise CorpusError(f"{path.name}: genre must be one of {', '.join(GENRES)}, not {raw['genre']!r}")
    _check_length(path, "text", raw["text"].split(), 150, 300, "words")
    _check_length(path, "summary", raw["summary"].split(), 25, 70, "words")
    for key, low, high in (("facts", 4, 6), ("questions", 3, 3)):
        if not isinstance(raw[key], list):
            raise CorpusError(f"{path.name}: {key} must be an array of tables")
        _check_length(path, key, raw[key], low, high, "entries")
    return Passage(
        id=raw["id"],
        genre=raw["genre"],
        title=raw["title"],
        text=raw["text"].strip(),
        summary=raw["summary"].strip(),
        facts=tuple(_read_fact(path, number, fact) for number, fact in enumerate(raw["facts"], 1)),
        questions=tuple(_read_question(path, number, entry) for number, entry in enumerate(raw["questions"], 1)),
    )


def _read_fact(path: Path, number: int, raw: object) -> Fact:
    where = f"facts[{number}]"
    _check_keys(path, raw, "facts", where)
    if not isinstance(raw["statement"], str) or not raw["statement"].strip():
        raise CorpusError(f"{path.name}: {where}.statement must be text that is not blank")
    needs = raw["needs"]
    if not isinstance(needs, list) or not needs or not all(_is_texts(alternatives) for alternatives in needs):
        raise CorpusError(f"{path.name}: {where}.needs must be a list of lists of texts, none empty")
    return Fact(raw["statement"], tuple(tuple(alternatives) for alternatives in needs))


def _read_question(path: Path, number: int, raw: object) -> Question:
    where = f"questions[{number}]"
    _check_keys(path, raw, "questions", where)
    if not isinstance(raw["question"], str) or not raw["question"].endswith("?"):
        raise CorpusError(f"{path.name}: {where}.question must be text that ends with a question mark")
    if not _is_texts(raw["answers"]):
        raise CorpusError(f"{path.name}: {where}.answers must be a list of texts, none empty")
    return Question(f"{path.stem}-q{number}", raw["question"], tuple(raw["answers"]))


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)


def _check_keys(path: Path, raw: object, kind: str, where: str) -> None:
    if not isinstance(raw, dict):
        raise CorpusError(f"{path.name}: {where} must be a table")
    missing, unknown = sorted(_KEYS[kind] - set(raw)), sorted(set(raw) - _KEYS[kind])
    if missing:
        raise CorpusError(f"{path.name}: {where} lacks the key {missing[0]}")
    if unknown:
        raise CorpusError(f"{path.name}: {where} has the unknown key {unknown[0]}")


def _check_length(path: Path, key: str, items: list, low: int, high: int, unit: str) -> None:
    if not low <= len(items) <= high:
        raise CorpusError(f"{path.name}: {key} has {len(items)} {unit}, allowed are {low} to {high}")
