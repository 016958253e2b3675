"""Launch, source and issue buttons: none while the address of the repository is unset, good ones when it is set."""

import re
import subprocess
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROOT, write_chapter

from book.build import BuildError, build_book, toc_pages
from poq.chapters import list_chapters

STEM = next(iter(list_chapters()))
ADDRESSES = ("https://example.org/someone/poq", "https://github.com/someone/poq", "https://gitlab.com/someone/poq")


def _buttons(path):
    """Words to address of every button in the head of a page."""
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    return {link.get_text().strip(): link["href"] for link in page.select(".article-header-buttons a[href]")}


def test_by_default_no_button_leads_out(fast_book):
    settings = yaml.safe_load((ROOT / "book" / "_config.yml").read_text(encoding="utf-8"))
    assert settings["repository"]["url"] == ""
    for name in toc_pages(ROOT / "book"):
        path = fast_book / f"{name}.html"
        assert not any(urlsplit(address).scheme for address in _buttons(path).values()), name
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"launch-buttons|source-buttons|mybinder|colab", text), name


@pytest.mark.parametrize("address", ADDRESSES)
def test_buttons_lead_to_files_that_are_committed(tiny_book, tmp_path, monkeypatch, address):
    monkeypatch.setenv("REPOSITORY_URL", f"{address}.git")
    for path in (tiny_book / "chapters").iterdir():
        path.unlink()
    write_chapter(tiny_book, STEM, "print('tiny')")
    html = build_book(book=tiny_book, out=tmp_path / "out").parent

    buttons = _buttons(html / "chapters" / f"{STEM}.html")
    assert buttons["Repository"] == address
    issue = urlsplit(buttons["Open issue"])
    assert f"{issue.scheme}://{issue.netloc}{issue.path}".startswith(f"{address}/")
    assert issue.path.endswith("/issues/new")

    binder = urlsplit(buttons["Binder"])
    assert binder.netloc == "mybinder.org"
    pieces = binder.path.strip("/").split("/")
    assert pieces[0] == "v2"
    assert pieces[-1] == "main"
    assert len(pieces) == (5 if pieces[1] == "gh" else 4)
    assert "/".join(map(unquote, pieces[2:-1])) in (address, "someone/poq")
    assert (pieces[1] == "git") == ("example" in address)
    opened = binder.query.removeprefix("urlpath=lab/tree/")

    shown = buttons["Show source"]
    assert shown.startswith(f"{address}/")
    shown = shown.partition("/main/")[2].removesuffix("?plain=1")
    assert shown == opened
    page = _buttons(html / "notation.html")
    assert "Binder" not in page
    note = page["Show source"].partition("/main/")[2].removesuffix("?plain=1")
    assert note == "book/notation.md"
    for name in (opened, note, "environment.yml"):  # the last is what Binder sets the notebooks up from
        done = subprocess.run(["git", "-C", ROOT, "ls-files", "--error-unmatch", name], capture_output=True)
        assert done.returncode == 0, name


def test_an_address_that_is_none_is_refused_before_any_work(tiny_book, tmp_path, monkeypatch):
    monkeypatch.setenv("REPOSITORY_URL", "someone/poq")
    with pytest.raises(BuildError, match="repository url: 'someone/poq' is not of the form"):
        build_book(book=tiny_book, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
