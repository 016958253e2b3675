"""What several tests share: the fast book, and tiny books to break."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from poq.chapters import ParameterError

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

PARAMETERS = """n_rounds: int = 5  # rounds per trial
seed: int = 1  # root seed"""
START = """from poq import provenance

run = provenance.start("{stem}", n_rounds=n_rounds, seed=seed)
provenance.glue("{stem}_rounds", n_rounds)"""


@pytest.fixture(scope="session")
def fast_book():
    """Folder with the pages of the fast book, built once; what did not change is not executed again."""
    from book.build import BuildError, build_book

    try:
        return build_book(profile="fast").parent
    except (BuildError, ParameterError) as error:
        pytest.fail(f"the fast book cannot be built: {error}", pytrace=False)


def write_notebook(path: Path, cells: list) -> Path:
    """Write a notebook from cells: a text is Markdown, a pair (code, metadata) is code."""
    made = []
    for number, cell in enumerate(cells):
        source, metadata = (cell, None) if isinstance(cell, str) else cell
        entry = {"id": f"c{number}", "metadata": metadata or {}, "source": source.splitlines(keepends=True)}
        if metadata is None:
            made.append({**entry, "cell_type": "markdown"})
        else:
            made.append({**entry, "cell_type": "code", "execution_count": None, "outputs": []})
    notebook = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def write_chapter(book: Path, stem: str, code: str, *, parameters: str = PARAMETERS, start: str = START) -> Path:
    """Write a chapter with the usual parts around ``code``."""
    cells = [
        f"# Chapter {stem}\n\nIt played {{glue:text}}`{stem}_rounds` rounds of $x^2$.",
        (parameters, {"tags": ["parameters"]}),
        (start.format(stem=stem), {}),
        (code, {}),
    ]
    return write_notebook(book / "chapters" / f"{stem}.ipynb", cells)


@pytest.fixture
def tiny_book(tmp_path):
    """A book of two one-line chapters with the real settings, and its output folder."""
    book = tmp_path / "book"
    for name in (
        "_config.yml",
        "_toc.yml",
        "references.bib",
        "bibliography.md",
        "notation.md",
        "howto.md",
        "collect.md",
        "status.md",
    ):
        book.mkdir(exist_ok=True)
        shutil.copy(ROOT / "book" / name, book / name)
    for name in ("_ext", "assets"):
        shutil.copytree(ROOT / "book" / name, book / name, ignore=shutil.ignore_patterns("__pycache__"))
    (book / "intro.md").write_text("# A tiny book\n\nRead [the notation](notation.md).\n", encoding="utf-8")
    (book / "profiles.yml").write_text("full: {}\nfast: {all: {n_rounds: 2, trials: 9}}\n", encoding="utf-8")
    write_chapter(book, "01_one", "print('first', n_rounds)")
    write_chapter(book, "02_two", "print('second', n_rounds)")
    return book
