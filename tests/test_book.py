"""The fast book, read in a real browser with the network cut off."""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

from book.build import toc_pages
from book.check import check_html
from poq.chapters import list_chapters, list_notebooks, read_parameters

CHAPTERS = list(list_chapters())
PAGES = {stem: f"{path.parent.name}/{stem}" for stem, path in list_notebooks().items()}  # readers' studies too
NAMES = toc_pages(ROOT / "book")


WIDTH = "document.documentElement.scrollWidth"
FORMULAS = "document.querySelectorAll('.math').length"
RENDERED = "document.querySelectorAll('mjx-container svg').length"
IMAGES = """[...document.querySelectorAll('article img, main img')].map(
    image => ({width: image.naturalWidth, alt: image.alt, source: image.getAttribute('src')}))"""


def test_the_pages_are_whole(fast_book):
    assert check_html(fast_book, NAMES) == []
    assert set(PAGES.values()) <= set(NAMES)
    assert CHAPTERS


@pytest.mark.parametrize("name", NAMES)
def test_a_page_reads_without_a_network_or_an_error_and_fits_a_phone(visit, name):
    page, complaints = visit(f"{name}.html")
    assert page.evaluate(RENDERED) >= page.evaluate(FORMULAS)
    images = page.evaluate(IMAGES)
    for image in images:
        assert image["width"] > 0, image
        assert image["alt"].strip(), image
        assert not re.search(r"[0-9a-f]{16}", image["alt"]), image
    assert page.locator("article h1").count() == 1
    assert "Fast profile" in page.locator(".bd-header-announcement").inner_text()
    if name in PAGES.values():
        assert images
    page.set_viewport_size({"width": 390, "height": 900})
    assert page.evaluate(WIDTH) <= 390
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    assert page.evaluate(WIDTH) <= 390
    assert complaints == []


def test_a_page_is_loaded_on_a_phone_at_night(visit):
    page, complaints = visit(f"{PAGES[CHAPTERS[-1]]}.html", width=390, dark=True)
    assert page.evaluate(WIDTH) <= 390
    assert complaints == []


def test_a_figure_keeps_its_ground_on_a_dark_page(visit):
    page, _ = visit(f"chapters/{CHAPTERS[-1]}.html", dark=True)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    ground = "getComputedStyle(document.querySelector('article img, main img')).backgroundColor"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"


def test_a_page_opened_as_a_file_shows_its_formulas(visit, fast_book):
    page, complaints = visit((fast_book / "notation.html").as_uri())
    assert complaints == []
    assert page.evaluate(RENDERED) >= page.evaluate(FORMULAS) > 0


def test_there_is_one_search_field_and_it_finds_a_word(visit):
    page, complaints = visit("search.html?q=committee")
    page.wait_for_selector("#search-results ul.search li", timeout=10_000)
    assert complaints == []
    page, _ = visit("intro.html")
    buttons = page.locator("button.search-button-field:visible, .search-button__button:visible, form.bd-search:visible")
    assert buttons.count() == 1


@pytest.mark.parametrize("stem", PAGES)
def test_a_chapter_leaves_tables_with_records(fast_book, stem):
    folder = fast_book / "results" / stem
    tables = sorted(folder.glob("*.csv"))
    assert folder / "claims.csv" in tables
    for table in tables:
        record = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
        assert record["profile"] == "fast"
        assert set(record["parameters"]) == set(read_parameters(list_notebooks()[stem]))


@pytest.mark.parametrize("stem", PAGES)
def test_an_executed_chapter_shows_nothing_that_changes(fast_book, stem):
    text = Path(fast_book, "_sources", f"{PAGES[stem]}.ipynb").read_text(encoding="utf-8")
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    warned = ["".join(output["text"]) for output in outputs if output.get("name") == "stderr"]
    assert warned == []
    shown = json.dumps([output for output in outputs if "text" in output or "text/html" in output.get("data", {})])
    assert not re.search(r" at 0x[0-9a-f]{6,}", shown)
    assert "/tmp/" not in shown


def test_the_status_page_tells_how_the_pages_were_made(fast_book):
    status = json.loads((fast_book / "status.json").read_text(encoding="utf-8"))
    assert status["profile"] == "fast"
    assert [run["chapter"] for run in status["chapters"]] == list(PAGES)
    text = (fast_book / "status.html").read_text(encoding="utf-8")
    for run in status["chapters"]:
        assert run["seconds"] > 0
        assert run["chapter"] in text
    assert status["versions"]["numpy"] in text
