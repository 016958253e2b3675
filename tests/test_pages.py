"""Pages that are made while the book is rendered say what their sources say, and nothing else."""

import importlib
import importlib.util
import inspect
import re
import tomllib

import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROOT

from book.build import build_book, toc_pages
from poq.chapters import list_chapters
from poq.cli import show_chapters

SPEC = importlib.util.spec_from_file_location("pages", ROOT / "book" / "_ext" / "pages.py")
made = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(made)

MODULES = [name for names in made.modules().values() for name in names]
# The street, as the README of the package lays it out.
STREET = ["scorelog", "rounds", "attacks", "aggregators", "trust", "rewards", "metrics", "simulate"]


@pytest.fixture(scope="module")
def read(fast_book):
    def read(name):
        return BeautifulSoup((fast_book / f"{name}.html").read_text(encoding="utf-8"), "html.parser")

    return read


def public(name: str) -> dict:
    """Public functions and classes that a module itself defines; compiled functions as the plain ones they wrap."""
    module = importlib.import_module(f"poq.{name}")
    own = {key: thing for key, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__}
    plain = {key: getattr(thing, "py_func", thing) for key, thing in own.items() if not key.startswith("_")}
    return {key: thing for key, thing in plain.items() if inspect.isfunction(thing) or inspect.isclass(thing)}


def words(text: str) -> str:
    """Text without mark-up, quotes and line breaks, to compare a source with its page."""
    return re.sub(r"[\W_]+", " ", text).strip().lower()


def test_every_module_has_a_place_and_the_street_its_order():
    there = {path.stem for path in (ROOT / "poq").glob("*.py")}
    assert sorted(MODULES) == sorted(there - set(made.INTERNAL))
    assert [name for name in made.modules()["street"] if name in STREET] == STREET
    text = (ROOT / "poq" / "README.md").read_text(encoding="utf-8")
    places = [text.index(f"`{name}`") for name in STREET]
    assert places == sorted(places)


def test_every_public_name_is_in_the_reference_and_no_private_one(read):
    pages = {"street": read("api"), "beside": read("api_more")}
    for page, names in made.modules().items():
        anchors = {tag["id"] for tag in pages[page].find_all(id=re.compile(r"^poq\."))}
        for name in names:
            assert {f"poq.{name}.{key}" for key in public(name)} <= anchors, name
            purpose = inspect.getdoc(importlib.import_module(f"poq.{name}")).split("\n")[0].partition(" [")[0]
            assert words(purpose) in words(pages[page].get_text()), name
        assert not [anchor for anchor in anchors if re.search(r"\._", anchor)]
    attacks = importlib.import_module("poq.attacks").ATTACKS
    line = next(tag.get_text() for tag in pages["street"].find_all("p") if tag.get_text().startswith("ATTACKS holds"))
    assert re.findall(r"\w+", line)[2:] == list(attacks)


def test_the_reference_shows_no_trace_of_mark_up(read):
    for page in ("api", "api_more"):
        article = read(page).find("article")
        assert not article.find_all(class_=["system-message", "problematic"])
        text = article.get_text()
        assert "Alias for field" not in text
        assert "``" not in text
        assert ":func:" not in text
    assert read("api").find("a", href=re.compile(r"bibliography|#id\d+")), "no citation became a link"


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_are_there_and_name_no_argument_that_is_not(name):
    for key, thing in public(name).items():
        if not inspect.isfunction(thing):
            continue
        text = inspect.getdoc(thing)
        assert text, f"{name}.{key} has no docstring"
        assert re.match(r".+?[.:]($|\s)", text, flags=re.DOTALL), f"{name}.{key}: the first line is no sentence"
        parts = re.split(r"^Parameters\n-+\n", text, flags=re.MULTILINE)[1:]
        body = re.split(r"^\w+\n-+$", parts[0], flags=re.MULTILINE)[0] if parts else ""
        heads = re.findall(r"^([*\w]+(?:, [*\w]+)*)(?: : .*)?$", body, flags=re.MULTILINE)
        named = {entry.strip("* ") for head in heads for entry in head.split(",")}
        assert named <= set(inspect.signature(thing).parameters), f"{name}.{key} documents {sorted(named)}"
        assert bool(named) == bool(parts), f"{name}.{key}: an empty section"


def test_the_page_of_parameters_is_what_the_command_says(read, capsys):
    assert show_chapters() == 0
    said, stem = {}, ""
    for line in capsys.readouterr().out.splitlines():
        if line and not line.startswith(" "):
            stem = line
        elif line:
            said.setdefault(stem, []).append(words(line))
    page = read("parameters")
    shown = {}
    for entry in page.find("article").find_all("dt"):
        stem = entry.find_previous("h2").get_text().strip("# \n")
        shown.setdefault(stem, []).append(words(f"{entry.get_text()} {entry.find_next_sibling('dd').get_text()}"))
    assert shown == said
    links = {tag.get("href", "") for tag in page.find("article").find_all("a")}
    assert {f"chapters/{stem}.html" for stem in list_chapters()} <= links


def test_the_glossary_explains_in_a_sentence_or_two_and_hangs_together(read):
    page = read("glossary")
    terms = {tag["id"]: tag for tag in page.find_all("dt", id=re.compile(r"^term-"))}
    assert len(terms) >= 35
    for tag in terms.values():
        text = tag.find_next_sibling("dd").get_text(" ", strip=True)
        assert 1 <= len(re.findall(r"\.(?:\s|$)", text)) <= 3, tag.get_text()
    links = {
        tag["href"].partition("#")[2] for tag in read("notation").find_all("a", href=re.compile(r"glossary.*#term-"))
    }
    assert len(links) >= 5
    assert links <= set(terms)


def test_the_first_sentence_of_the_findings_is_what_its_figure_shows(fast_book, read):
    """Under the worst attack, no rule gains as much over the mean as the best evaluator has over the best rule."""
    table = pd.read_csv(fast_book / "results" / "06_sweep" / "worst_case.csv")
    table = table[(table["metric"] == "pearson") & (table["malicious_share"] == table["malicious_share"].max())]
    for _, part in table.groupby(["task", "committee"]):
        value = part.set_index("rule")["value"]
        assert value.max() - value["mean"] < part["best_single"].mean() - value.max()
    [image] = read("intro").find("article").find_all("img")
    assert "worst Pearson correlation" in image["alt"]
    assert (fast_book / image["src"]).read_bytes()[:4] == b"\x89PNG"


def test_how_to_cite_is_the_citation_file(read):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    article = read("cite").find("article")
    for wanted in (cited["title"], cited["version"], *(author["name"] for author in cited["authors"])):
        assert article.get_text().count(wanted) >= 3, wanted  # in words, as BibTeX, in the file
    assert words((ROOT / "CITATION.cff").read_text(encoding="utf-8")) in words(article.get_text())


def test_changed_citation_details_reach_the_page(tmp_path, monkeypatch):
    changed = {
        "authors": [{"family-names": "Grey", "given-names": "Ada"}, {"name": "A group"}],
        "title": "Another title",
        "version": "9.8.7",
        "date-released": "2031-02-03",
        "doi": "10.1/x",
    }
    (tmp_path / "CITATION.cff").write_text(yaml.safe_dump(changed), encoding="utf-8")
    monkeypatch.setattr(made, "ROOT", tmp_path)
    text = made.MADE["cite"](tmp_path)
    assert "> Grey, Ada; A group (2031). *Another title* (version 9.8.7). 10.1/x" in text
    assert "author = {{Grey, Ada} and {A group}}" in text
    assert "year = {2031}" in text
    assert "doi = {10.1/x}" in text


@pytest.mark.parametrize(("page", "name"), [("changelog", "CHANGELOG.md"), ("contributing", "CONTRIBUTING.md")])
def test_a_page_repeats_its_file_at_the_root(read, page, name):
    text = read(page).find("article").get_text()
    shown = words(text)
    source = (ROOT / name).read_text(encoding="utf-8")
    for block in re.split(r"\n\s*\n|\n(?=[-|])", re.sub(r"\]\([^)]*\)", "]", source))[1:]:
        for piece in block.split("|") if block.startswith("|") else [block]:
            assert words(piece) in shown, piece
    named = re.findall(r"\]\((?!http)([^)#]+)\)", source)
    assert all((ROOT / target).exists() for target in named)
    assert name in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_changelog_knows_the_version_and_whether_it_is_out():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (.+)$", text, flags=re.MULTILINE)[1]
    released = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")).get("date-released")
    assert newest == (f"{version}, {released}" if released else f"{version}, not released yet")


def test_every_chapter_has_one_place_and_a_part_may_be_empty(tiny_book):
    toc = (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8")
    pages = [page for page in toc_pages(ROOT / "book") if page.startswith("chapters/")]
    assert pages == [f"chapters/{stem}" for stem in list_chapters()]
    globs = re.findall(r"glob: (chapters/\S+)", toc)
    found = [path for pattern in globs for path in (ROOT / "book").glob(pattern)]
    assert len(found) == len(set(found))
    parts = [
        {"caption": name, "chapters": [{"glob": pattern}]}
        for name, pattern in [("Here", "chapters/0[1-9]_*"), ("Not yet", "chapters/1[2-9]_*")]
    ]
    parts.append(
        {"caption": "Rest", "chapters": [{"file": name} for name in ("howto", "status", "notation", "bibliography")]}
    )
    tree = {"format": "jb-book", "root": "intro", "parts": parts}
    (tiny_book / "_toc.yml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    page = build_book(book=tiny_book, out=tiny_book / "_build").read_text(encoding="utf-8")
    assert "Here" in page
    assert "Not yet" not in page
