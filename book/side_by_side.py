"""The page of a sweep: its runs in a table, their claims, numbers and figures side by side, their tables joined."""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import yaml

from book import build
from book.build import Job
from book.check import check_html

MEASURED = ("value", "low", "high", "n", "settings", "verdict", "test")  # columns of claims; the others name the claim
GLUED = "application/papermill.record/text/plain"  # under which a notebook keeps a glued number
STYLE = """<style>
.sweep { overflow-x: auto; margin-bottom: 1rem; }
.bd-article .sweep table { margin: 0; }
.sweep :is(th, td) { vertical-align: top; text-align: left; }
.sweep tbody th { position: sticky; left: 0; background: var(--pst-color-background); font-weight: 400; }
.sweep.long tbody th { min-width: 15rem; }
.sweep.long td { min-width: 8rem; }
.sweep td.number { text-align: right; }
.sweep small { display: block; font-weight: 400; color: var(--pst-color-text-muted); }
.sweep-figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.bd-article .sweep-figures figure { margin: 0; }
@media (min-width: 601px) { .bd-article .sweep-figures img { width: 100%; } }
@media (max-width: 600px) { .bd-article .sweep.long tbody th { min-width: 0; max-width: 9.5rem; } }
</style>"""


@dataclass(frozen=True)
class Sweep:
    """A sweep file that was read and checked: the chapter, its parameters, and the values of every run in order."""

    file: str
    chapter: str
    combine: str
    names: list[str]
    runs: list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """One run: its number from 1, its job and values, its folder in the cache, and its page or why there is none."""

    number: int
    job: Job
    given: dict[str, Any]
    entry: Path
    page: Path | None
    fault: str | None


def write_page(sweep: Sweep, outcomes: list[Outcome], *, book: Path, out: Path, profile: str) -> Path:
    """Lay the runs side by side on one page, with joined tables beside it, and return the page."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(sweep.file).stem).strip("-.") or "sweep"
    file = Path(sweep.file).resolve()
    # Files of one name in different folders keep a page each.
    own = "" if file.parent == book / "sweeps" else f"-{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    target = out / "sweeps" / f"{name}{own}{'' if profile == 'full' else f'-{profile}'}"
    good = [outcome for outcome in outcomes if outcome.page]
    with build._stage(book) as stage:
        beside = stage.parent / "beside"
        beside.mkdir()
        tables = join_tables(sweep, good, beside / "tables")
        parts = [
            f"# Sweep {name}",
            _summary(sweep, outcomes),
            STYLE,
            "## Runs",
            _runs(sweep, outcomes, target),
            *_claims(sweep, good),
            *_numbers(sweep, good, beside / "numbers.csv"),
            *_tables(tables),
            *_figures(sweep, good, beside / "figures"),
        ]
        (stage / "sweep.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        (stage / "_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "sweep"}), encoding="utf-8")
        pages = build.render(stage, out, banner=build.FAST_BANNER if profile == "fast" else "", strict=False)
        shutil.copytree(beside, pages, dirs_exist_ok=True)
        build._refuse(check_html(pages, ["sweep"], links=False))
        with build._lock(out / ".lock-sweeps", wait=True):
            build._finish_swap(target)
            build._swap(pages, target)
    build._refuse(check_html(target, ["sweep"]))  # its links lead to the runs' own pages, so only now
    return target / "sweep.html"


# ------------------------------------------------------------------------------------------------- what runs left


def join_tables(sweep: Sweep, good: list[Outcome], folder: Path) -> dict[str, int]:
    """Write every table of the runs as one, the run and its parameters in front; return names and numbers of rows.

    A parameter whose name a table uses for something else is called ``parameter_<name>`` there. Cells stay the text
    that they are.
    """
    folder.mkdir()
    names = sorted({path.name for outcome in good for path in (outcome.entry / "results").glob("*.csv")})
    rows = {}
    for name in names:
        parts = [
            (outcome, pd.read_csv(path, dtype=str, keep_default_na=False))
            for outcome in good
            if (path := outcome.entry / "results" / name).is_file()
        ]
        front = {}
        for key in ("run", *sweep.names):
            same = all(key not in part or _is_all(part[key], _front(outcome, key)) for outcome, part in parts)
            front[key] = key if same else f"parameter_{key}"
        joined = []
        for outcome, part in parts:
            kept = part.drop(columns=[column for column in front.values() if column in part])
            first = {column: [_front(outcome, key)] * len(part) for key, column in front.items()}
            joined.append(pd.concat([pd.DataFrame(first, index=part.index), kept], axis=1))
        table = pd.concat(joined, ignore_index=True).fillna("")
        table.to_csv(folder / name, index=False, lineterminator="\n")
        rows[name] = len(table)
    return rows


def _front(outcome: Outcome, key: str) -> str:
    return str(outcome.number) if key == "run" else shown(outcome.given[key])


def _is_all(column: pd.Series, said: str) -> bool:
    """Whether every cell of a column says the same as a parameter, as text or as a number."""
    if (column == said).all():
        return True
    try:
        return bool((column.astype(float) == float(said)).all())
    except ValueError:
        return False


def _notebook(outcome: Outcome) -> Iterator[tuple[dict, dict]]:
    """The outputs of an executed notebook, each with the metadata of its cell."""
    for cell in build._read_json(outcome.entry / "notebook.ipynb")["cells"]:
        for output in cell.get("outputs", []):
            yield cell["metadata"], output


def glued_numbers(outcome: Outcome) -> dict[str, int | float]:
    """Numbers that a run glued into its prose, by name."""
    found = {}
    for _, output in _notebook(outcome):
        name = output.get("metadata", {}).get("scrapbook", {}).get("name")
        if name is not None and GLUED in output["data"]:
            try:
                value = ast.literal_eval("".join(output["data"][GLUED]))
            except (ValueError, SyntaxError):  # such as nan
                continue
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = value
    return found


# -------------------------------------------------------------------------------------------- the parts of the page


def _summary(sweep: Sweep, outcomes: list[Outcome]) -> str:
    failed = sum(outcome.fault is not None for outcome in outcomes)
    said = f"{len(outcomes)} runs of the chapter `{sweep.chapter}`, {how(sweep)}."
    if failed:
        said += f" **{failed} of them failed** and {'is' if failed == 1 else 'are'} missing from what follows."
    return f"{said} Each run has a page of its own; here they stand side by side."


def _runs(sweep: Sweep, outcomes: list[Outcome], target: Path) -> str:
    rows = []
    for outcome in outcomes:
        cells = [html.escape(shown(value)) for value in outcome.given.values()]
        if outcome.page is None:
            cells += [f"<strong>failed</strong>: {html.escape(outcome.fault or '')}", ""]
        else:
            tables = sorted((outcome.page.parent.parent / "results" / sweep.chapter).glob("*.csv"))
            links = "<br>".join(_link(os.path.relpath(table, target), table.name) for table in tables)
            folded = f"<details><summary>{len(tables)} CSV</summary>{links}</details>" if tables else "none"
            cells += [_link(os.path.relpath(outcome.page, target), f"page of run {outcome.number}"), folded]
        rows.append((f"run {outcome.number}", cells))
    head = ["run", *map(html.escape, sweep.names), "result", "tables"]
    return _table(head, rows, label="The runs with their parameters")


def _claims(sweep: Sweep, good: list[Outcome]) -> list[str]:
    """Verdicts of the runs, claim by claim; those that differ between runs come first."""
    found: dict[tuple, dict[int, str]] = {}
    verdicts: dict[tuple, set] = {}
    for outcome in good:
        path = outcome.entry / "results" / "claims.csv"
        if not path.is_file():
            continue
        table = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in ("value", "low", "high")})
        for row in table.to_dict("records"):
            key = tuple((name, str(value)) for name, value in row.items() if name not in MEASURED)
            while outcome.number in found.get(key, {}):
                key = (*key, ("", "again"))
            found.setdefault(key, {})[outcome.number] = _verdict(row)
            verdicts.setdefault(key, set()).add(str(row.get("verdict", "")))
    if not found:
        return []

    def rows(keys: list[tuple]) -> list[tuple[str, list[str]]]:
        return [(_claim(key), [found[key].get(outcome.number, "none") for outcome in good]) for key in keys]

    differ = [key for key in found if len(verdicts[key]) > 1 or len(found[key]) < len(good)]
    same = [key for key in found if key not in differ]
    head = ["claim", *_heads(sweep, good)]
    parts = ["## Claims"]
    if differ:
        parts += [
            f"{len(differ)} of {len(found)} verdicts differ between the runs:",
            _table(head, rows(differ), label="Claims whose verdicts differ between the runs", kind="long"),
        ]
    if same:
        table = _table(head, rows(same), label="Claims whose verdicts are the same in every run", kind="long")
        said = "1 verdict is" if len(same) == 1 else f"{len(same)} verdicts are"
        parts.append(
            f"<details{'' if differ else ' open'}><summary>{said} the same in every run</summary>{table}</details>"
        )
    return parts


def _claim(key: tuple) -> str:
    fields = dict(key)
    first = ": ".join(fields.pop(name) for name in ("claim", "sentence") if name in fields)
    rest = ", ".join(value for value in fields.values() if value)
    return html.escape(first) + (f"<small>{html.escape(rest)}</small>" if rest else "")


def _verdict(row: dict) -> str:
    from poq.claims import in_words  # late: it takes a second to import

    said = html.escape(str(row.get("verdict", "")))
    try:
        numbers = pd.Series({name: float(row.get(name, "nan")) for name in ("value", "low", "high")})
    except (TypeError, ValueError):
        return said
    return f"{said}<small>{html.escape(in_words(numbers))}</small>"


def _numbers(sweep: Sweep, good: list[Outcome], file: Path) -> list[str]:
    """Glued numbers of the runs, those that differ first, and all of them as a CSV file."""
    found = {outcome.number: glued_numbers(outcome) for outcome in good}
    names = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    if not names:
        return []
    records = [
        {
            "run": outcome.number,
            **{key: shown(value) for key, value in outcome.given.items()},
            "number": name,
            "value": v,
        }
        for outcome in good
        for name, v in found[outcome.number].items()
    ]
    pd.DataFrame(records, dtype=object).to_csv(file, index=False, lineterminator="\n")
    rows = {name: [found[outcome.number].get(name) for outcome in good] for name in names}
    differ = [name for name in names if len(set(rows[name])) > 1]
    parts = ["## Numbers", 'Numbers of the prose, as <a href="numbers.csv">numbers.csv</a> has them in full.']
    head = ["number", *_heads(sweep, good)]
    for chosen, title in ((differ, "differ between the runs"), ([n for n in names if n not in differ], "are the same")):
        if not chosen:
            continue
        cells = [(f"<code>{html.escape(name)}</code>", list(map(_figure, rows[name]))) for name in chosen]
        table = _table(head, cells, label=f"Numbers that {title}", kind="numbers")
        folded = f"<details><summary>{len(chosen)} numbers {title} in every run</summary>{table}</details>"
        parts.append(table if chosen is differ else folded)
    return parts


def _figure(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _tables(tables: dict[str, int]) -> list[str]:
    if not tables:
        return []
    said = "Every table of the chapter, all runs one below the other, with the run and its parameters in front:"
    links = [
        f'<li><a href="tables/{quote(name)}">{html.escape(name)}</a> ({rows:,} rows)</li>'
        for name, rows in tables.items()
    ]
    return ["## Joined tables", said, f"<ul>{''.join(links)}</ul>"]


def _figures(sweep: Sweep, good: list[Outcome], folder: Path) -> list[str]:
    """Every figure of the chapter: one picture per run, or a single one where all runs drew the same."""
    folder.mkdir()
    drawn: dict[str, list[tuple[Outcome, str]]] = {}
    about: dict[str, dict] = {}
    for outcome in good:
        for metadata, output in _notebook(outcome):
            cell, png = metadata.get("mystnb", {}), output.get("data", {}).get("image/png")
            name = cell.get("figure", {}).get("name")
            if png is not None and name is not None:
                about.setdefault(name, cell)
                drawn.setdefault(name, []).append((outcome, "".join(png)))
    if not drawn:
        return []
    parts = ["## Figures", "A picture leads to itself in full size."]
    for number, (name, pictures) in enumerate(drawn.items(), start=1):
        same = len(pictures) > 1 and len({png for _, png in pictures}) == 1
        alt = about[name].get("image", {}).get("alt", "")
        figures = []
        for outcome, png in pictures[:1] if same else pictures:
            file = f"run-{outcome.number}-{re.sub(r'[^A-Za-z0-9-]+', '-', name)}.png"
            (folder / file).write_bytes(base64.b64decode(png))
            whose = "the same in every run" if same else f"run {outcome.number}: {_label(sweep, outcome)}"
            figures.append(_picture(f"figures/{file}", f"{whose[0].upper()}{whose[1:]}. {alt}", whose))
        # Roles of the book's Markdown mean nothing here; their words do.
        caption = re.sub(r"\{[\w:]+\}`([^`]*)`", r"\1", about[name]["figure"].get("caption", ""))
        parts += [f"### Figure {number}", caption, f'<div class="sweep-figures">{"".join(figures)}</div>']
    return parts


def _picture(file: str, alt: str, caption: str) -> str:
    image = f'<a href="{file}"><img src="{file}" alt="{html.escape(alt)}"></a>'
    return f'<figure>{image}<figcaption><span class="caption-text">{html.escape(caption)}</span></figcaption></figure>'


# ---------------------------------------------------------------------------------------------------- small things


def _table(head: list[str], rows: list[tuple[str, list[str]]], *, label: str, kind: str = "") -> str:
    """A table that scrolls inside the page, with a heading per row; one line, so that Markdown leaves it alone."""
    first = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    number = ' class="number"' if kind == "numbers" else ""
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td{number}>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    return (
        f'<div class="sweep {kind}" role="region" tabindex="0" aria-label="{html.escape(label)}">'
        f'<table class="table dataframe"><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _heads(sweep: Sweep, good: list[Outcome]) -> list[str]:
    return [f"run {outcome.number}<small>{html.escape(_label(sweep, outcome))}</small>" for outcome in good]


def _label(sweep: Sweep, outcome: Outcome) -> str:
    """The values of a run that are not the same in all."""
    varied = [name for name in sweep.names if any(given[name] != sweep.runs[0][name] for given in sweep.runs)]
    return words({name: outcome.given[name] for name in varied or sweep.names})


def _link(path: str, text: str) -> str:
    return f'<a href="{html.escape(quote(Path(path).as_posix()))}">{html.escape(text)}</a>'


def how(sweep: Sweep) -> str:
    """Which runs a sweep has, in words."""
    if sweep.combine == "paired":
        return f"paired values of {_and(sweep.names)}"
    counts = {name: len({shown(given[name]) for given in sweep.runs}) for name in sweep.names}
    varied = [f"{name} ({count})" for name, count in counts.items() if count > 1]
    fixed = words({name: sweep.runs[0][name] for name, count in counts.items() if count == 1})
    return ", ".join(filter(None, [varied and f"every combination of {_and(varied)}", fixed and f"with {fixed}"]))


def _and(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def words(given: dict[str, Any]) -> str:
    """Values as a reader would say them: "beta = 0.1, trials = 20"."""
    return ", ".join(f"{name} = {shown(value)}" for name, value in given.items())


def shown(value: Any) -> str:
    """A value as it is written in ``PARAMS``."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)
