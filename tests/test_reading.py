"""Reading with a keyboard or a screen reader, and finding a word, with the network cut off."""

import itertools
import re

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT

from book.build import toc_pages

PAGES = (
    ("intro.html", 1280, False),
    ("chapters/06_sweep.html", 1280, False),
    ("chapters/06_sweep.html", 390, True),
    ("chapters/11_explorer.html", 1280, True),
    ("chapters/11_explorer.html", 390, False),
    ("api.html", 1280, False),
    ("status.html", 390, False),
)
FOCUS = """() => {
  const box = document.activeElement, style = getComputedStyle(box);
  return {name: (box.innerText || box.getAttribute("aria-label") || box.className || box.tagName).slice(0, 60),
          body: box === document.body, outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2};
}"""


@pytest.mark.parametrize(("name", "width", "dark"), PAGES)
def test_a_page_breaks_no_rule_of_accessibility(visit, name, width, dark):
    from axe_playwright_python.sync_playwright import Axe

    page, complaints = visit(name, width=width, dark=dark)
    # Without its preload, which looks for style sheets where there are none.
    found = Axe().run(page, options={"preload": False}).response["violations"]
    broken = [(rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in found]
    assert broken == []
    assert complaints == []


def test_the_rules_are_looked_at(visit):
    from axe_playwright_python.sync_playwright import Axe

    page, _ = visit("howto.html")
    page.evaluate("document.querySelector('article').insertAdjacentHTML('beforeend', '<img src=\"_static/x.png\">')")
    assert "image-alt" in {rule["id"] for rule in Axe().run(page).response["violations"]}


def test_the_keyboard_shows_where_it_is(visit):
    page, _ = visit("chapters/11_explorer.html")
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUS))
    assert [stop["name"] for stop in seen if not stop["outline"] and not stop["body"]] == []
    assert seen[0]["name"] == "Skip to main content"
    assert len({stop["name"] for stop in seen}) > 30


def test_a_wide_figure_can_be_pushed_with_the_keyboard_on_a_phone(visit):
    page, _ = visit("chapters/06_sweep.html", width=390)
    page.wait_for_selector("article figure[tabindex='0']", timeout=10_000)
    figure = page.locator("article figure[tabindex='0']").first
    figure.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0", timeout=5_000)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function("!document.querySelector('article figure[tabindex]')", timeout=5_000)


def test_a_word_typed_into_the_search_field_leads_to_a_page(visit):
    page, complaints = visit("intro.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("trimmed")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results ul.search li a", timeout=20_000)
    titles = page.locator("#search-results ul.search li a").all_inner_texts()
    assert len(titles) > 2
    page.locator("#search-results ul.search li a").first.click()
    page.wait_for_load_state("load")
    assert "trimmed" in page.locator("article").inner_text().lower()
    assert complaints == []


def test_a_word_that_is_nowhere_is_not_found(visit):
    page, _ = visit("search.html?q=zyzzyvaxq")
    page.wait_for_selector("#search-results p", timeout=20_000)
    said = "document.querySelector('#search-results').innerText.includes('did not match')"
    page.wait_for_function(said, timeout=20_000)
    assert page.locator("#search-results ul.search li").count() == 0


def test_headings_go_down_one_step_at_a_time(fast_book):
    for name in toc_pages(ROOT / "book"):
        text = (fast_book / f"{name}.html").read_text(encoding="utf-8")
        article = BeautifulSoup(text, "html.parser").select_one("article.bd-article")
        levels = [int(tag.name[1]) for tag in article.find_all(re.compile("^h[1-6]$"))]
        assert levels[0] == 1, name
        assert levels.count(1) == 1, name
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), name
