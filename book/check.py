"""Check rendered pages: every page is there, every internal link leads somewhere, nothing is fetched from outside."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes that make a browser fetch something. A plain <a href> fetches nothing until the reader asks for it.
_FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "track": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "input": ("src",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
_LINK_RELATIONS = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "modulepreload",
    "manifest",
    "preconnect",
    "dns-prefetch",
}
_CSS_FETCH = re.compile(r"""(?:url\(\s*|@import\s+)['"]?\s*((?:https?:)?//[^'")\s]+)""", re.IGNORECASE)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self._style = False

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and _LINK_RELATIONS & set(values.get("rel", "").lower().split()):
            self.fetched.append(values.get("href", ""))
        for name in _FETCHED.get(tag, ()):
            if values.get(name):
                pieces = values[name].split(",") if name == "srcset" else [values[name]]
                self.fetched.extend(piece.split()[0] for piece in pieces if piece.split())
        self.fetched.extend(_CSS_FETCH.findall(values.get("style", "")))
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if self._style:
            self.fetched.extend(_CSS_FETCH.findall(data))


def check_html(html: Path, pages: Iterable[str], *, links: bool = True) -> list[str]:
    """Faults of a rendered book, one line each; an empty list is a good book.

    Parameters
    ----------
    html : Path
        The folder with the pages.
    pages : iterable of str
        Pages that must be there, as in the table of contents (no ending).
    links : bool
        Whether to follow internal links. A chapter on its own may point at pages of the book that are not with it.
    """
    html = html.resolve()
    faults = [f"{page}: the page is missing" for page in pages if not (html / f"{page}.html").is_file()]
    sources = [path for path in sorted(html.rglob("*.html")) if "_static" not in path.relative_to(html).parts]
    parsed = {path: _read(path) for path in sources}
    for path, page in parsed.items():
        where = path.relative_to(html).as_posix()
        for address in page.fetched:
            if _is_outside(address):
                faults.append(f"{where}: fetches {address[:120]} from outside")
            elif not address.startswith(("data:", "#")) and not _target(path, address).exists():
                faults.append(f"{where}: {address[:120]} is missing")
        for address in page.links if links else []:
            fault = _broken(path, address, parsed)
            if fault:
                faults.append(f"{where}: {fault}")
    for sheet in sorted(html.rglob("*.css")):
        for address in _CSS_FETCH.findall(sheet.read_text(encoding="utf-8", errors="replace")):
            faults.append(f"{sheet.relative_to(html).as_posix()}: fetches {address[:120]} from outside")
    return faults


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def _is_outside(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https", "ftp", "ws", "wss")


def _target(page: Path, address: str) -> Path:
    return (page.parent / unquote(urlsplit(address).path)).resolve()


def _broken(page: Path, address: str, parsed: dict[Path, _Page]) -> str | None:
    """What is wrong with a link, or None."""
    parts = urlsplit(address)
    if parts.scheme or address.startswith("//"):
        return None
    target = _target(page, address) if parts.path else page
    if not target.exists():
        return f"broken link {address}"
    fragment = unquote(parts.fragment)
    if fragment not in ("", "top") and target in parsed and fragment not in parsed[target].anchors:
        return f"broken link {address}: no such place on the page"
    return None
