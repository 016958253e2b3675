"""The printed book: everything that the pages hold, in their order, in one file that leans on nothing else."""

import re
import shutil
import subprocess
import sys
import unicodedata

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT

from book.pdf import contents, find_browser, print_book

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome to print with")


@pytest.fixture(scope="module")
def printed(fast_book, tmp_path_factory):
    from pypdf import PdfReader

    return PdfReader(print_book(fast_book, tmp_path_factory.mktemp("pdf") / "book.pdf"))


@pytest.fixture(scope="module")
def texts(printed):
    """What each printed page says."""
    return [page.extract_text() for page in printed.pages]


@pytest.fixture(scope="module")
def bookmarks(printed):
    """(depth, title, page from 0) of every bookmark, in order."""
    found = []

    def walk(entries, depth):
        for entry in entries:
            if isinstance(entry, list):
                walk(entry, depth + 1)
            else:
                found.append((depth, entry.title, printed.get_destination_page_number(entry)))

    walk(printed.outline, 0)
    return found


@pytest.fixture(scope="module")
def leaves(fast_book, printed, bookmarks):
    """Page file to (title, first printed page, one past its last), by its bookmark."""
    listed = contents(fast_book)
    # The first page of the book stands at the top of the outline, every other one below its part.
    places = [(title, page) for depth, title, page in bookmarks if depth == 1]
    first = bookmarks[0]
    starts = [(first[1], first[2])]
    titles = {title for part, _, title in listed if part}
    starts += [(title, page) for title, page in places if title in titles]
    assert [title for title, _ in starts] == [title for _, _, title in listed]
    ends = [page for _, page in starts[1:]] + [len(printed.pages)]
    return {page: (title, begin, end) for (_, page, title), (_, begin), end in zip(listed, starts, ends)}


def _article(fast_book, page):
    return BeautifulSoup((fast_book / page).read_text(encoding="utf-8"), "html.parser").select_one("article.bd-article")


def _squeezed(text):
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))  # print joins letters such as ff


def test_the_outline_is_the_table_of_contents(fast_book, bookmarks, leaves):
    parts = list(dict.fromkeys(part for part, _, _ in contents(fast_book) if part))
    assert [title for depth, title, _ in bookmarks if depth == 0][1:] == parts
    assert len(leaves) == len(contents(fast_book))
    starts = [begin for _, begin, _ in leaves.values()]
    assert starts == sorted(set(starts))


def test_every_section_is_a_bookmark_to_the_page_where_it_stands(fast_book, texts, bookmarks):
    sections = 0
    squeezed = [_squeezed(text) for text in texts]
    for _, title, page in bookmarks:
        sections += 1
        assert _squeezed(title) in squeezed[page], title
    wanted = 0
    for _, page, _ in contents(fast_book):
        wanted += len(_article(fast_book, page).find_all(re.compile("^h[1-6]$")))
    assert sections == wanted + len({part for part, _, _ in contents(fast_book) if part})


def test_every_figure_is_there(fast_book, printed, leaves):
    figures = 0
    for page, (title, begin, end) in leaves.items():
        images = set()
        for sheet in printed.pages[begin:end]:
            for entry in (sheet["/Resources"].get("/XObject") or {}).values():
                if entry.get_object()["/Subtype"] == "/Image":
                    images.add(entry.indirect_reference.idnum if hasattr(entry, "indirect_reference") else id(entry))
        wanted = len(_article(fast_book, page).select("img"))
        assert len(images) >= wanted, title
        figures += wanted
    assert figures > 10


def test_text_formulas_and_page_numbers(texts, leaves):
    _, begin, end = leaves["notation.html"]
    text = "\n".join(texts[begin:end])
    assert "Eq. 21" in text
    assert not re.search(r"\\\(|\\\[|\\frac|\\sum", text)
    assert len(texts) > len(leaves)
    for number, lines in enumerate(map(str.splitlines, texts), start=1):
        assert str(number) in lines[-1] + lines[0]


def test_a_link_stays_inside_the_file_or_goes_to_the_web(printed):
    inside = outside = 0
    for page in printed.pages:
        for note in page.get("/Annots") or []:
            note = note.get_object()
            if note["/Subtype"] != "/Link":
                continue
            action = note["/A"].get_object() if "/A" in note else {}
            if "/URI" in action:
                assert str(action["/URI"]).startswith(("https://", "http://", "mailto:")), action["/URI"]
                outside += 1
            else:
                name = note.get("/Dest", action.get("/D"))
                assert name is not None
                assert isinstance(name, list) or str(name) in printed.named_destinations
                inside += 1
    assert inside > 50
    assert outside > 0


def test_without_a_browser_one_line_says_what_to_install_and_nothing_is_built(tmp_path):
    begun = "import book.build as b; b.build_book = lambda **_: print('built'); raise SystemExit(b.main(['pdf']))"
    done = subprocess.run(
        [sys.executable, "-c", begun], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "install Chromium or Chrome" in done.stderr


def test_a_lost_figure_is_an_error(fast_book, tmp_path):
    from book.pdf import PdfError

    html = tmp_path / "html"
    shutil.copytree(fast_book, html, ignore=shutil.ignore_patterns("results", "_downloads", "_sources"))
    next((html / "_images").glob("*.png")).unlink()
    with pytest.raises(PdfError, match="lost 1 figures"):
        print_book(html, tmp_path / "book.pdf")
    assert not (tmp_path / "book.pdf").exists()
