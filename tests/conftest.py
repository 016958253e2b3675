"""What several tests share: the fast book, and tiny books to break."""

import functools
import http.server
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from poq.chapters import ParameterError

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from book.pdf import BROWSERS, SWITCHES, find_browser  # noqa: E402

PARAMETERS = """n_rounds: int = 5  # rounds per trial
seed: int = 1  # root seed"""
TINY_TOC = """format: jb-book
root: intro
chapters:
  - glob: chapters/[0-9][0-9]_*
  - file: howto
  - file: status
  - file: notation
  - file: bibliography
"""
START = """from poq import provenance

run = provenance.start("{stem}", n_rounds=n_rounds, seed=seed)
provenance.glue("{stem}_rounds", n_rounds)"""


def pytest_configure():
    """Where the tests run in the background, SIGINT is ignored, and so would every process that they start and stop."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Mark what reads the fast book or does what readers do: `python -m tests` runs these tests beside the others."""
    readers = {"test_launch", "test_pages", "test_study", "test_sweep"}
    for item in items:
        if {"fast_book", "visit"} & set(item.fixturenames) or item.module.__name__ in readers:
            item.add_marker("book")


@pytest.fixture(scope="session")
def fast_book():
    """Folder with the pages of the fast book, built once; what did not change is not executed again."""
    from book.build import BuildError, build_book

    if "FAST_BOOK" in os.environ:  # `python -m tests` has built it just now
        return Path(os.environ["FAST_BOOK"])
    try:
        return build_book(profile="fast").parent
    except (BuildError, ParameterError) as error:
        pytest.fail(f"the fast book cannot be built: {error}", pytrace=False)


@pytest.fixture(scope="session")
def site(fast_book):
    """Address of the book on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(fast_book)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


# One browser per test file: while it is open, its event loop runs in this thread, where others need theirs.
@pytest.fixture(scope="module")
def browser():
    executable = find_browser()
    if executable is None:
        pytest.skip(f"none of these browsers is installed: {', '.join(BROWSERS)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=executable, args=list(SWITCHES))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, request):
    """Open a page with every outside request aborted; return the page and the list of complaints."""
    contexts = []

    def visit(address: str, *, width: int = 1280, dark: bool = False, script: bool = True):
        address = address if "://" in address else f"{request.getfixturevalue('site')}/{address}"
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            service_workers="block",
            java_script_enabled=script,
        )
        contexts.append(context)
        complaints = []

        def route(request):
            if request.request.url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")):
                request.continue_()
            else:
                complaints.append(f"outside request: {request.request.url}")
                request.abort()

        page = context.new_page()
        page.route("**/*", route)
        page.on("console", lambda said: complaints.append(f"console: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        page.on("response", lambda got: complaints.append(f"{got.status}: {got.url}") if got.status >= 400 else None)
        page.goto(address, wait_until="load")
        if script:
            page.evaluate("() => window.MathJax?.startup?.promise")
        return page, complaints

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture
def launched(monkeypatch):
    """Labels of the runs that were really executed; a chapter of the book has its stem for a label."""
    from book import build

    labels = []
    launch = build._launch

    def note(job, *rest):
        labels.append(job.label)
        return launch(job, *rest)

    monkeypatch.setattr(build, "_launch", note)
    return labels


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
    book.mkdir()
    for name in ("_config.yml", "references.bib", "bibliography.md", "status.md"):
        shutil.copy(ROOT / "book" / name, book / name)
    (book / "_toc.yml").write_text(TINY_TOC, encoding="utf-8")
    for name in ("notation", "howto"):
        (book / f"{name}.md").write_text(f"# The page {name}\n\nAs {{cite:t}}`poq2024` say.\n", encoding="utf-8")
    for name in ("_ext", "assets"):
        shutil.copytree(ROOT / "book" / name, book / name, ignore=shutil.ignore_patterns("__pycache__"))
    (book / "intro.md").write_text("# A tiny book\n\nRead [the notation](notation.md).\n", encoding="utf-8")
    (book / "profiles.yml").write_text("full: {}\nfast: {all: {n_rounds: 2, trials: 9}}\n", encoding="utf-8")
    write_chapter(book, "01_one", "print('first', n_rounds)")
    write_chapter(book, "02_two", "print('second', n_rounds)")
    return book
