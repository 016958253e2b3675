"""Print the whole book to one PDF, from its rendered pages, with a headless Chromium and without LaTeX.

The pages are joined into one, in the order of the table of contents, so that every link between them becomes a link
inside the PDF. Chromium renders the formulas first and prints afterwards; its outline (parts, chapters, sections) gets
its titles from the headings here. A link to a file beside the pages, such as a table, becomes plain text: no such file
travels with the PDF.
"""

from __future__ import annotations

import logging
import posixpath
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 300  # seconds for each of the two runs of the browser
STYLE = """
@page { size: A4; margin: 18mm 16mm 20mm;
  @bottom-center { content: counter(page); font: 9pt sans-serif; color: #444; } }
html { font-size: 13px; }
body { background: #fff; }
.bd-article { padding: 0 !important; overflow: visible !important; }
.leaf { break-before: page; }
.leaf:first-child { break-before: auto; }
.part { font-size: 1.1rem; font-weight: 400; letter-spacing: 0.08em; color: #444; margin: 0 0 1.5rem; }
h1, h2, h3, h4, h5, h6, p.caption { break-after: avoid; }
h2.title { font-size: 2.1rem; margin-top: 0; }
h3 { font-size: 1.5rem; } h4 { font-size: 1.2rem; } h5 { font-size: 1.05rem; }
.notice { border: 1px solid #444; padding: 0.5rem 0.8rem; }
figure, img, mjx-container[display="true"], tr { break-inside: avoid; }
figure img, .cell_output img { max-height: 230mm; width: auto; }
pre, code { white-space: pre-wrap !important; overflow-wrap: anywhere; }
.pst-scrollable-table-container, .cell_output, pre { overflow: visible !important; }
table { font-size: 0.72rem !important; max-width: 100%; }
table code { font-size: inherit; }
th, td { white-space: normal !important; overflow-wrap: anywhere; padding: 0.15rem 0.3rem !important; }
mjx-container[display="true"] svg { max-width: 100%; }
mjx-container path[data-c], mjx-container use[data-c] { stroke-width: 0 !important; }
a { color: #0b4f9e; }
"""
READY = """
window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  const lost = [...document.images].filter((image) => !image.naturalWidth).length;
  const drawn = document.querySelectorAll("mjx-container svg").length;
  document.querySelectorAll("script").forEach((script) => script.remove());
  document.documentElement.dataset.ready = `${drawn} ${lost}`;
});
"""


class PdfError(Exception):
    """The book cannot be printed; the message is one line for the user."""


def find_browser() -> str | None:
    """Path of a Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def need_browser() -> str:
    """Path of a Chromium or Chrome; without one a :class:`PdfError` that says what to install."""
    found = find_browser()
    if found is None:
        raise PdfError(f"printing needs a browser; install Chromium or Chrome (looked for {', '.join(BROWSERS)})")
    return found


def print_book(html: Path, target: Path) -> Path:
    """Print rendered pages to one PDF file, which appears in one step.

    Parameters
    ----------
    html : Path
        Folder of the pages, with ``intro.html`` as the first one.
    target : Path
        The PDF file.

    Raises
    ------
    PdfError
        If there is no browser, or if it lost a formula, a figure or a heading.
    """
    browser = need_browser()
    soup = join_pages(html)
    wanted = len(soup.select(".math"))
    headings = [" ".join(tag.get_text().split()) for tag in soup.find_all(re.compile("^h[1-6]$"))]
    with tempfile.TemporaryDirectory(prefix="poq-pdf-") as name:
        folder = Path(name)
        page, printed = folder / "book.html", folder / "book.pdf"
        page.write_text(str(soup), encoding="utf-8")
        # First the formulas: the page as it stands once MathJax is done.
        drawn = _run(browser, folder, "--virtual-time-budget=600000", "--dump-dom", page.as_uri())
        ready = re.search(r'<html[^>]* data-ready="(\d+) (\d+)"', drawn)
        if ready is None:
            raise PdfError("the browser did not finish the formulas of the book")
        if int(ready[1]) < wanted or int(ready[2]):
            raise PdfError(f"the browser drew {ready[1]} of {wanted} formulas and lost {ready[2]} figures")
        page.write_text(drawn, encoding="utf-8")
        switches = ("--no-pdf-header-footer", "--generate-pdf-document-outline", f"--print-to-pdf={printed}")
        _run(browser, folder, *switches, page.as_uri())
        if not printed.is_file():
            raise PdfError("the browser wrote no PDF")
        _finish(printed, headings)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        shutil.copy(printed, part)
        part.replace(target)
    return target


def _run(browser: str, folder: Path, *arguments: str) -> str:
    """Run the browser once, with a profile of its own, and return what it wrote."""
    command = [browser, "--headless", *SWITCHES, f"--user-data-dir={folder / 'profile'}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise PdfError(f"the browser {browser} did not finish within {PATIENCE} s") from None
    if done.returncode != 0:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise PdfError(f"the browser {browser} failed: {last}")
    return done.stdout.decode("utf-8")


def _finish(printed: Path, headings: list[str]) -> None:
    """Write the headings into the outline; Chromium doubles a title that it had moved to the next page."""
    from pypdf import PdfWriter
    from pypdf.generic import NameObject, TextStringObject

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it remarks on how Chromium counts objects
    writer = PdfWriter(clone_from=printed)
    entries = list(_entries(writer.root_object.get("/Outlines")))
    if len(entries) != len(headings):
        raise PdfError(f"the browser made {len(entries)} bookmarks for {len(headings)} headings")
    for entry, title in zip(entries, headings):
        entry[NameObject("/Title")] = TextStringObject(title)
    writer.root_object[NameObject("/PageMode")] = NameObject("/UseOutlines")
    writer.write(printed)


def _entries(parent) -> Iterator:
    """Entries of an outline in reading order."""
    entry = parent.get("/First") if parent else None
    while entry is not None:
        entry = entry.get_object()
        yield entry
        yield from _entries(entry)
        entry = entry.get("/Next")


# ------------------------------------------------------------------------------------------------- one joined page


def contents(html: Path) -> list[tuple[str | None, str, str]]:
    """The table of contents as rendered: (part or None, page, title), in reading order, from the side bar."""
    navigation = _soup(html / "intro.html").select_one("nav.bd-links")
    found, part = [], None
    for tag in navigation.select("p.caption, a.reference.internal"):
        title = " ".join(tag.get_text().split())
        if tag.name == "p":
            part = title
        else:
            page = tag["href"].partition("#")[0] or "intro.html"
            found.append((part, page, title))
    return found


def join_pages(html: Path) -> BeautifulSoup:
    """One page with everything that the table of contents lists, for print."""
    html = html.resolve()
    listed = contents(html)
    pages = {page for _, page, _ in listed}
    whole = _soup(html / "intro.html")
    sheets = [tag for tag in whole.head.find_all("link", rel="stylesheet")]
    scripts = [tag for tag in whole.head.find_all("script") if "MathJax" in str(tag) or "mathjax" in tag.get("src", "")]
    for tag in [*sheets, *scripts]:
        name = "href" if tag.name == "link" else "src"
        if tag.has_attr(name):
            tag[name] = _file(html, "intro.html", tag[name])
    notice = whole.select_one(".bd-header-announcement")
    body = whole.new_tag("main", attrs={"class": "bd-main"})
    before = None
    for part, page, _ in listed:
        leaf = whole.new_tag("section", attrs={"class": "leaf bd-article", "id": _anchor(page)})
        if part != before:
            leaf.append(_element(whole, "h1", "part", part))
            before = part
        article = _article(html, page, pages, shift=part is not None)
        if part is None and notice is not None:
            leaf.append(_element(whole, "p", "notice", " ".join(notice.get_text().split())))
        leaf.append(article)
        body.append(leaf)
    head = whole.new_tag("head")
    head.append(whole.new_tag("meta", attrs={"charset": "utf-8"}))
    head.append(_element(whole, "title", None, listed[0][2]))
    for tag in [*sheets, *scripts]:
        head.append(tag.extract())
    head.append(_element(whole, "style", None, STYLE))
    head.append(_element(whole, "script", None, READY))
    whole.html.attrs = {"lang": "en", "data-theme": "light", "data-mode": "light"}
    whole.head.replace_with(head)
    whole.body.clear()
    whole.body.attrs = {}
    whole.body.append(body)
    return whole


def _article(html: Path, page: str, pages: set[str], *, shift: bool) -> Tag:
    """The text of one page, with names of its own, whole addresses, and headings one step down below a part."""
    article = _soup(html / page).select_one("article.bd-article")
    article.name = "div"
    article["class"] = "text"
    # What only a screen can use: anchors of headings, folded plumbing, controls.
    for tag in article.select("a.headerlink, details.above-input, details.below-input, script, .poq-download, .app"):
        tag.decompose()
    for tag in article.select("[role=heading]"):  # a caption in the list of contents is no bookmark
        del tag["role"]
    for tag in article.find_all("details"):
        tag["open"] = ""
    for tag in article.find_all(id=True):
        tag["id"] = _anchor(page, tag["id"])
    for tag in article.find_all(["a", "img", "label"]):
        if tag.has_attr("src"):
            tag["src"] = _file(html, page, tag["src"])
        if tag.has_attr("href"):
            address = _address(page, tag["href"], pages)
            if address is None:
                tag.replace_with(" ".join(tag.get_text().split()))
            else:
                tag["href"] = address
    if shift:
        for tag in article.find_all(re.compile("^h[1-5]$")):
            if tag.name == "h1":
                tag["class"] = "title"
            tag.name = f"h{int(tag.name[1]) + 1}"
    return article


def _address(page: str, address: str, pages: set[str]) -> str | None:
    """Where a link of a page leads in print; None for a file that is not printed."""
    parts = urlsplit(address)
    if parts.scheme:
        return address if parts.scheme in ("http", "https", "mailto") else None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))) if parts.path else page
    return f"#{_anchor(target, unquote(parts.fragment))}" if target in pages else None


def _anchor(page: str, name: str = "") -> str:
    return f"{page.removesuffix('.html').replace('/', '-')}--{name}"


def _file(html: Path, page: str, address: str) -> str:
    """A file beside a page as an address from anywhere."""
    if urlsplit(address).scheme:
        return address
    return (html / page).parent.joinpath(unquote(urlsplit(address).path)).resolve().as_uri()


def _element(soup: BeautifulSoup, name: str, kind: str | None, text: str) -> Tag:
    tag = soup.new_tag(name, attrs={"class": kind} if kind else {})
    tag.string = text
    return tag


def _soup(path: Path) -> BeautifulSoup:
    from bs4 import BeautifulSoup

    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
