"""Pages whose content is made while the book is rendered, from the source that it describes.

A line such as ``<!-- made: parameters -->`` in a page of the book is replaced by what stands for that name in ``MADE``
below; further words on the line are its arguments. So the reference cannot disagree with the code, nor a page with the
file at the root that it repeats.
"""

from __future__ import annotations

import ast
import base64
import importlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from sphinx.errors import ExtensionError

from poq.chapters import list_notebooks, read_parameters

PACKAGE = Path(importlib.import_module("poq").__file__).resolve().parent
ROOT = PACKAGE.parent

# The way through the simulator; a module that is new in the package appears among the others by itself.
STREET = (
    *("scorelog", "matrix", "synthetic", "rounds", "streams", "attacks", "aggregators", "trust", "calibrated"),
    *("rewards", "metrics", "simulate"),
)
BESIDE = ("adversary", "offline", "theory", "association", "claims", "ledger", "plotting", "provenance")
# What runs behind `simulate.run`, the command line and the pages: no name in there is meant to be called by readers.
INTERNAL = ("__init__", "cli", "engine", "escape", "fused", "group", "jobs", "parts")


def setup(app):
    """Register the replacement of placeholders, and what makes docstrings read well."""
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _read_well, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill(app, name: str, source: list[str]) -> None:
    def made(match: re.Match) -> str:
        kind, *arguments = match[1].split()
        return MADE[kind](Path(app.srcdir), *arguments)

    source[0] = re.sub(r"^<!-- made: (.+) -->$", made, source[0], flags=re.MULTILINE)


# ------------------------------------------------------------------------------------------------------ reference


def modules() -> dict[str, list[str]]:
    """The modules of each page of the reference, in the order of the page."""
    there = {path.stem for path in PACKAGE.glob("*.py")} - set(INTERNAL)
    street = [name for name in STREET if name in there]
    beside = [name for name in BESIDE if name in there]
    return {"street": street, "beside": [*beside, *sorted(there - {*street, *beside})]}


def _street(book: Path) -> str:
    return "\n\n".join(map(_module, modules()["street"]))


def _beside(book: Path) -> str:
    return "\n\n".join(map(_module, modules()["beside"]))


def _module(name: str) -> str:
    """One module: its own words, the keys of its mappings, its public functions and classes as in the source."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    module = importlib.import_module(f"poq.{name}")
    lines = [f".. automodule:: poq.{name}", ""]
    for key, value in vars(module).items():
        if key in _assigned(tree) and isinstance(value, Mapping) and all(map(_is_entry, value.values())):
            lines += [f"``{key}`` holds {', '.join(f'``{entry}``' for entry in value)}.", ""]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            kind, options = ("class", ["   :members:"]) if isinstance(node, ast.ClassDef) else ("function", [])
            lines += [f".. auto{kind}:: poq.{name}.{node.name}", *options, ""]
    return "\n".join([f"## poq.{name}", "", "```{eval-rst}", *lines, "```"])


def _is_entry(value) -> bool:
    return callable(value) or (isinstance(value, tuple) and callable(value[0]))


def _assigned(tree: ast.Module) -> set[str]:
    """Public constants that a module itself defines."""
    targets = [getattr(node, "targets", [getattr(node, "target", None)])[0] for node in tree.body]
    return {target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper()}


def _read_well(app, what, name, thing, options, lines: list[str]) -> None:
    """Turn ``[yin2018]`` in a docstring into a citation, and keep "K." from being the start of a list."""
    known = set(
        re.findall(r"^@\w+\{([^,\s]+),", (Path(app.srcdir) / "references.bib").read_text("utf-8"), re.MULTILINE)
    )

    def cited(match: re.Match) -> str:
        keys = [key.strip() for key in match[1].split(",")]
        return f":cite:p:`{','.join(keys)}`" if known.issuperset(keys) else match[0]

    lines[:] = [re.sub(r"\[([a-z][a-z0-9_, ]+)\]", cited, line) for line in lines]
    lines[:] = [re.sub(r"^(\s*)(\w\.)", r"\1\\\2", line) for line in lines]


def _skip(app, what, name: str, thing, skip: bool, options) -> bool | None:
    """Fields of a named tuple stand in its signature; "Alias for field number 0" says nothing."""
    return True if type(thing).__name__ == "_tuplegetter" else None


# ----------------------------------------------------------------------------------------------------- parameters


def _parameters(book: Path) -> str:
    """Every notebook of the book with its parameters, as ``poq chapters`` lists them."""
    parts = []
    for stem, path in list_notebooks(book).items():
        page = path.relative_to(book).as_posix()
        parts += [f"## {stem}", f"[{_title(path)}]({page})", _listed(path)]
    return "\n\n".join(parts)


def _listed(path: Path) -> str:
    """Name, type, default, and below them the meaning: a table of four columns would not fit a phone."""
    entries = read_parameters(path).values()
    return "\n\n".join(f"`{entry.name}: {entry.kind} = {entry.default!r}`\n: {entry.help}" for entry in entries)


def _title(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    title = re.search(r"^# (.+)$", prose, re.MULTILINE)
    return title[1].strip() if title else path.stem


# -------------------------------------------------------------------------------------------------------- figures


def _figure(book: Path, stem: str, name: str) -> str:
    """A figure of an executed chapter once more, with its caption and alt text: it is drawn in one place only."""
    cells = json.loads((book / "chapters" / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    cell = next((cell for cell in cells if _figure_of(cell).get("name") == name), None)
    shown = [output.get("data", {}) for output in (cell or {}).get("outputs", [])]
    images = [data["image/png"] for data in shown if "image/png" in data]
    if not images:
        raise ExtensionError(f"chapter {stem} shows no figure {name}")
    target = book / "made" / f"{name}.png"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(base64.b64decode("".join(images[0])))
    alt = cell["metadata"]["mystnb"]["image"]["alt"]
    caption = f"{_figure_of(cell)['caption']} From [the chapter](chapters/{stem}.ipynb)."
    return f"```{{figure}} /made/{name}.png\n:name: {name}-again\n:alt: {alt}\n\n{caption}\n```"


def _figure_of(cell: dict) -> dict:
    return cell["metadata"].get("mystnb", {}).get("figure", {})


# -------------------------------------------------------------------------------------------- files at the root


def _root_file(name: str) -> Callable[[Path], str]:
    """The text of a file at the root without its title; links lead to pages of the book, or are words."""

    def read(book: Path) -> str:
        text = (ROOT / name).read_text(encoding="utf-8").partition("\n")[2]

        def link(match: re.Match) -> str:
            if re.match(r"(?:https?:|#)", match[2]):
                return match[0]
            page = match[2].removeprefix("book/")
            return f"[{match[1]}]({page})" if page != match[2] and _is_page(book, page) else match[1]

        return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text).strip()

    return read


def _is_page(book: Path, name: str) -> bool:
    return (book / name).is_file() and "/" not in name and name.endswith(".md")


def _cite_page(book: Path) -> str:
    """How to cite, in words, as BibTeX, and as the citation file itself."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    cited = yaml.safe_load(text)
    authors = [
        entry.get("name") or ", ".join(filter(None, [entry.get("family-names"), entry.get("given-names")]))
        for entry in cited["authors"]
    ]
    year = str(cited.get("date-released", ""))[:4]
    where = cited.get("doi") or cited.get("url") or cited.get("repository-code") or ""
    words = f"{'; '.join(authors)}{f' ({year})' if year else ''}. *{cited['title']}* (version {cited['version']})."
    fields = {
        "title": f"{{{cited['title']}}}",
        "author": " and ".join(f"{{{name}}}" for name in authors),
        "version": cited["version"],
        "year": year,
        "doi" if cited.get("doi") else "url": where,
    }
    entry = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
    return "\n\n".join(
        [
            f"> {words}{f' {where}' if where else ''}",
            f"As BibTeX:\n\n```bibtex\n@software{{proof_of_quality_tested,\n{entry}\n}}\n```",
            f"The file `CITATION.cff`, which this page is made from:\n\n```yaml\n{text.strip()}\n```",
        ]
    )


MADE: dict[str, Callable[..., str]] = {
    "figure": _figure,
    "street": _street,
    "beside": _beside,
    "parameters": _parameters,
    "cite": _cite_page,
    "changelog": _root_file("CHANGELOG.md"),
    "contributing": _root_file("CONTRIBUTING.md"),
}
