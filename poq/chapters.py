"""Chapters, studies and their parameters: read them from the notebooks, check values before anything runs.

A chapter is a notebook ``chapters/NN_noun.ipynb``; a study, ``studies/my-network.ipynb``, is a reader's own. Each has
one code cell tagged ``parameters``. That cell holds literals only, one assignment per line; the annotation gives the
type and the trailing comment the meaning::

    n_rounds: int = 5000  # rounds per trial
    tasks: list[str] | None = None  # tasks to show; None means all of them
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import os
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEM = re.compile(r"\d\d_[a-z0-9_]+")
# A study begins with a letter, so that it never bears a chapter's name; capitals would meet on some file systems.
STUDY = re.compile(r"[a-z][a-z0-9_-]*")
TEMPLATE = "template"  # the stem of the notebook that new studies are copied from; itself no study
LONGEST = 60  # letters of a study's name, which becomes part of file names
BOOK = Path(__file__).resolve().parent.parent / "book"
_SCALARS = {"int": int, "float": float, "bool": bool, "str": str}

# What a parameter may hold, by its name, also in the plural: (low, high), ends included. _LAST_WORDS count also where
# they end a longer name, such as search_rounds or wrong_share; first_round may well be 0, and per_round anything.
_LAST_WORDS = ("rounds", "trials", "nodes", "worlds", "committee", "share", "task", "attack")
_COUNTS = "rounds trials nodes worlds committee min_available n_boot n_bin n_draw n_random window window_end size"
_COUNTS += " pool_size evaluation focal turn"
_SHARES = "share probability shade published_saving"
_AMOUNTS = "seed burn_in warm_up jitter sd by strength lift lag copy_lag alpha beta price audit_cost evaluator_cost"
_AMOUNTS += " half_width tolerance modest"
_RANGES = {
    **dict.fromkeys(_COUNTS.split(), (1, math.inf)),
    **dict.fromkeys(_SHARES.split(), (0, 1)),
    **dict.fromkeys(_AMOUNTS.split(), (0, math.inf)),
    "n_rounds": (2, math.inf),  # of one round no correlation is defined
    "cut": (0, 0.5),
    "rate": (0, 2),
}
_OPEN = ("cut", "rate")  # whose upper end is not included
_CHOICES = (
    *("rule", "attack", "collusion", "calibration", "objective"),
    *("malicious_nodes", "pay_reference", "resample"),
)


class ParameterError(ValueError):
    """A chapter, a parameter or a value that cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a chapter: name, type, default value, meaning, and its line in the parameters cell."""

    name: str
    kind: str
    default: Any
    help: str
    line: int


def list_chapters(book: Path = BOOK) -> dict[str, Path]:
    """Chapters by file stem, in reading order."""
    return {path.stem: path for path in sorted((book / "chapters").glob("*.ipynb")) if STEM.fullmatch(path.stem)}


def list_studies(book: Path = BOOK) -> dict[str, Path]:
    """Readers' studies by file stem, in alphabetical order. The template is none."""
    found = sorted((book / "studies").glob("*.ipynb"))
    return {path.stem: path for path in found if STUDY.fullmatch(path.stem) and path.stem != TEMPLATE}


def list_notebooks(book: Path = BOOK) -> dict[str, Path]:
    """Everything that the book executes: its chapters, then the studies."""
    return {**list_chapters(book), **list_studies(book)}


def find_chapter(stem: str, book: Path = BOOK) -> Path:
    """Path of a chapter or study; an unknown one is a :class:`ParameterError` that suggests the nearest name."""
    notebooks = list_notebooks(book)
    if stem not in notebooks:
        raise ParameterError(f"unknown chapter {stem!r}{suggest(stem, notebooks)}")
    return notebooks[stem]


def create_study(name: str, book: Path = BOOK) -> Path:
    """Make ``studies/<name>.ipynb`` from the template and return its path.

    The name stands wherever the template says the word "template": in its title, labels, names and links.

    Raises
    ------
    ParameterError
        For a name that cannot be used, a file that is there already, or a missing template. Nothing is overwritten.
    """
    if not name:
        raise ParameterError("a study needs a name, as in: make study NAME=my-network")
    if not STUDY.fullmatch(name) or len(name) > LONGEST:
        raise ParameterError(
            f"study {name!r}: a name begins with a lower-case letter and holds only a-z, 0-9, - and _, "
            f"at most {LONGEST} of them"
        )
    if name == TEMPLATE:
        raise ParameterError(f"study {name!r}: this is the name of the template itself")
    source = book / "studies" / f"{TEMPLATE}.ipynb"
    target = source.with_name(f"{name}.ipynb")
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise ParameterError(f"{source}: the template cannot be read ({error.strerror})") from None
    try:
        # "x" never opens a file that exists, nor a link to one.
        with open(target, "x", encoding="utf-8") as handle:
            handle.write(text.replace(TEMPLATE, name))
    except FileExistsError:
        raise ParameterError(f"{_shown(target)} is there already; nothing was changed") from None
    except OSError as error:
        raise ParameterError(f"{_shown(target)} cannot be written ({error.strerror})") from None
    return target


def read_parameters(path: Path) -> dict[str, Parameter]:
    """Parameters of a notebook, by name, in order.

    Raises
    ------
    ParameterError
        If the file is no notebook, has not exactly one cell tagged ``parameters``, or if that cell holds anything but
        assignments of literals that fit their annotations. The message names the notebook and the line.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [
            cell
            for cell in cells
            if cell["cell_type"] == "code" and "parameters" in cell.get("metadata", {}).get("tags", [])
        ]
        sources = ["".join(cell["source"]) for cell in tagged]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParameterError(f"{path.name}: not a readable notebook ({error})") from None
    if len(sources) != 1:
        raise ParameterError(f"{path.name}: needs exactly one code cell tagged 'parameters', found {len(sources)}")
    return parse_parameters(sources[0], name=path.name)


def parse_parameters(source: str, *, name: str) -> dict[str, Parameter]:
    """Parameters of the source of one parameters cell; ``name`` is how errors call the notebook."""
    try:
        statements = ast.parse(source).body
        comments = {
            token.start[0]: token.string.lstrip("# ").rstrip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
    except (SyntaxError, tokenize.TokenError) as error:
        raise ParameterError(f"{name}: parameters cell: {error}") from None
    found: dict[str, Parameter] = {}
    for statement in statements:
        where = f"{name}: parameters cell, line {statement.lineno}"
        match statement:
            case ast.AnnAssign(target=ast.Name(id=variable), annotation=annotation, value=ast.expr() as value):
                kind = ast.unparse(annotation)
            case ast.Assign(targets=[ast.Name(id=variable)], value=value):
                kind = ""
            case _:
                raise ParameterError(f"{where}: only assignments of literals may stand there")
        try:
            default = ast.literal_eval(value)
        except ValueError:
            message = f"{where}: {variable} must be a literal; derive values in a later cell"
            raise ParameterError(message) from None
        kind = kind or _infer_kind(default)
        if variable in found:
            raise ParameterError(f"{where}: {variable} is assigned twice")
        try:
            default = _checked_type(default, kind)
        except ValueError as error:
            raise ParameterError(f"{where}: {variable} {error}") from None
        found[variable] = Parameter(variable, kind, default, comments.get(statement.end_lineno, ""), statement.lineno)
    return found


def check_parameters(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check values against a chapter's own parameters.

    Parameters
    ----------
    path : Path
        The chapter.
    given : mapping
        Values by name, such as :func:`parse_assignments` makes; text stands for itself.

    Returns
    -------
    dict
        The same names with values of the right type. Parameters that were not given are not in it.

    Raises
    ------
    ParameterError
        Unknown name (with the nearest one), wrong type, or out of range. The chapter's defaults are checked as well.
    """
    parameters = read_parameters(path)
    checked = {}
    for name, value in given.items():
        if name not in parameters:
            raise ParameterError(f"{path.stem} has no parameter {name!r}{suggest(name, parameters)}")
        try:
            checked[name] = _checked_type(value, parameters[name].kind)
        except ValueError as error:
            raise ParameterError(f"{path.stem}: {name} {error}") from None
    for name, value in {**{name: entry.default for name, entry in parameters.items()}, **checked}.items():
        _check_range(path.stem, name, value)
    return checked


def check_together(stem: str, values: Mapping[str, Any], tasks: Mapping[str, int] | None, log: str) -> None:
    """Check a chapter's values against each other and against what its log holds.

    Parameters
    ----------
    stem : str
        The chapter.
    values : mapping
        All its parameters, defaults included.
    tasks : mapping of str to int or None
        Number of evaluators per task of the log; None for a chapter without a log.
    log : str
        How errors call the log.

    Raises
    ------
    ParameterError
        If the burn-in leaves no round, a committee is larger than the pool of a task in use or than the nodes of its
        kind, bounds are the wrong way round, all attacks are none, a malicious share is not one node, or a task is not
        in the log.
    """
    if "burn_in" in values and "n_rounds" in values and values["burn_in"] >= values["n_rounds"]:
        message = f"burn_in={values['burn_in']} leaves none of n_rounds={values['n_rounds']}"
        raise ParameterError(f"{stem}: {message}")
    low, high = values.get("low"), values.get("high")
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        raise ParameterError(f"{stem}: low={low} is above high={high}")
    for name in values:
        kind = name.removesuffix("s").removesuffix("committee")  # such as world_, whose committees sit in world_nodes
        nodes = values.get(f"{kind}nodes")
        if name in (f"{kind}committee", f"{kind}committees") and isinstance(nodes, int):
            largest = max(_as_list(values[name]), default=0)
            if largest > nodes:
                raise ParameterError(f"{stem}: {name} of {largest} is larger than {kind}nodes={nodes}")
    if values.get("attacks") and set(values["attacks"]) == {"none"}:
        raise ParameterError(f"{stem}: attacks must name another one than none")
    if tasks is None:
        return
    named = [entry for name, value in values.items() if _find(name, ("task",)) for entry in _as_list(value)]
    wanted = [task for task in named if isinstance(task, str)]  # n_tasks is a number
    for task in wanted:
        if task not in tasks:
            raise ParameterError(f"{stem}: task {task!r} is not in {log}{suggest(task, tasks)}")
    nodes = values.get("n_nodes")
    committees = [size for name in ("committee", "committees") for size in _as_list(values.get(name))]
    for task in wanted or tasks:
        pool = tasks[task] if nodes is None else min(_as_list(nodes))
        if committees and max(committees) > pool:
            whose = f"the {pool} evaluators of task {task!r} in {log}" if nodes is None else f"n_nodes={pool}"
            raise ParameterError(f"{stem}: a committee of {max(committees)} is larger than {whose}")
        share = values.get("malicious_share")
        if isinstance(share, int | float) and 0 < share * pool < 1:
            from poq.engine import n_malicious  # late: it takes a second to import

            if n_malicious(share, pool) == 0:
                raise ParameterError(
                    f"{stem}: malicious_share={share:g} of {pool} nodes (task {task!r}) is not one node; "
                    f"from {math.ceil(500 / pool) / 1000:g} on it is"
                )


def parse_assignments(text: str, kinds: Mapping[str, str]) -> dict[str, Any]:
    """Read ``"n_rounds=20000 rules=[mean,median] log='my log.csv'"`` into values.

    Parameters
    ----------
    text : str
        Assignments separated by blanks; blanks inside brackets and quotes do not separate.
    kinds : mapping of str to str
        Type of each known parameter, as :class:`Parameter` has it. What does not fit stays text, for
        :func:`check_parameters` to refuse with the right message.

    Raises
    ------
    ParameterError
        If a piece is no assignment, a name comes twice, or a bracket or quote is left open.
    """
    values = {}
    for piece in _split(text, " \t\n"):
        name, equals, raw = piece.partition("=")
        if not equals or not name.isidentifier():
            raise ParameterError(f"{piece!r} is not of the form name=value")
        if name in values:
            raise ParameterError(f"parameter {name!r} is given twice")
        values[name] = _read_value(raw, kinds.get(name, ""))
    return values


def _read_value(raw: str, kind: str) -> Any:
    """Read one value as its type says; what does not fit comes back as text."""
    accepted = [part.strip() for part in kind.split("|")]
    if "None" in accepted and raw.lower() in ("none", "null"):
        return None
    element = next((re.fullmatch(r"list\[(\w+)\]", part) for part in accepted if part.startswith("list[")), None)
    if element:
        if not (raw.startswith("[") and raw.endswith("]")):
            return raw
        return [_read_value(part.strip(), element.group(1)) for part in _split(raw[1:-1], ",")]
    if len(raw) >= 2 and raw[0] == raw[-1] and raw[0] in "'\"":
        return raw[1:-1]
    for part in accepted:
        if part == "bool" and raw.lower() in ("true", "false"):
            return raw.lower() == "true"
        if part == "int" and re.fullmatch(r"[+-]?\d+(_\d+)*", raw):
            return int(raw)
        if part == "float":
            try:
                return float(raw)
            except ValueError:
                continue
    return raw


def _split(text: str, separators: str) -> list[str]:
    """Split at separators outside quotes and square brackets; empty pieces are dropped."""
    pieces, current, quote, depth = [], "", "", 0
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "[":
            depth += 1
        elif character == "]":
            depth -= 1
        if character in separators and not quote and depth == 0:
            pieces.append(current)
            current = ""
        else:
            current += character
    if quote or depth:
        raise ParameterError(f"a quote or bracket is left open in {text!r}")
    return [piece for piece in [*pieces, current] if piece.strip()]


def _infer_kind(default: Any) -> str:
    if isinstance(default, list) and default:
        return f"list[{type(default[0]).__name__}]"
    return type(default).__name__


def _checked_type(value: Any, kind: str) -> Any:
    """Return the value as the annotation wants it; ValueError when it does not fit."""
    for part in (part.strip() for part in kind.split("|")):
        if part == "None" and value is None:
            return None
        if part in _SCALARS and _is_scalar(value, part):
            return float(value) if part == "float" else value
        element = re.fullmatch(r"list\[(\w+)\]", part)
        if element and element.group(1) in _SCALARS and isinstance(value, list):
            if not value:
                raise ValueError("must not be empty")
            if all(_is_scalar(entry, element.group(1)) for entry in value):
                return [float(entry) for entry in value] if element.group(1) == "float" else value
        if part not in ("None", *_SCALARS) and not (element and element.group(1) in _SCALARS):
            raise ValueError(f"has the unknown type {part!r}; known: int, float, bool, str, lists of these, None")
    example = f", as in {'[mean,median]' if 'list[str]' in kind else '[3,5]'}" if "list[" in kind else ""
    raise ValueError(f"must be {kind}{example}; got {value!r}")


def _is_scalar(value: Any, kind: str) -> bool:
    if isinstance(value, bool):  # a bool is an int to Python, but not to a reader
        return kind == "bool"
    if kind == "float":
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, _SCALARS[kind])


def _check_range(stem: str, name: str, value: Any) -> None:
    span, choice = _find(name, _RANGES), _find(name, _CHOICES)
    for entry in _as_list(value):
        if span and isinstance(entry, int | float) and not isinstance(entry, bool):
            low, high = _RANGES[span]
            if not low <= entry <= high or (entry == high and span in _OPEN):
                words = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                words = f"at least {low} and less than {high}" if span in _OPEN else words
                raise ParameterError(f"{stem}: {name} must be {words}; got {entry}")
        if choice and isinstance(entry, str):
            known = _known(choice)
            if entry not in known:
                raise ParameterError(f"{stem}: {name}: unknown {choice} {entry!r}{suggest(entry, known)}")


def _find(name: str, known) -> str | None:
    """The known name that a parameter bears: the whole of it, also in the plural, or its last word."""
    one = name.removesuffix("ies") + "y" if name.endswith("ies") else name.removesuffix("s")
    lasts = [word.rpartition("_")[2] for word in (name, one)]
    fields = [name, one, *(last for last in lasts if last in _LAST_WORDS)]
    return next((field for field in fields if field in known), None)


def _known(field: str) -> list[str]:
    """Names that a rule, attack or calibration can bear; asked late, because the engine takes a second to import."""
    if field == "calibration":
        return ["minmax", "rank"]
    if field in ("attack", "collusion"):
        from poq.attacks import ATTACKS

        return list(ATTACKS)
    if field == "objective":
        from poq.adversary import OBJECTIVES

        return list(OBJECTIVES)
    if field != "rule":
        from poq.simulate import CHOICES

        return list(CHOICES[field])
    from poq.aggregators import AGGREGATORS
    from poq.trust import TRUST_RULES

    return [*AGGREGATORS, *TRUST_RULES]


def _shown(path: Path) -> str:
    """A path as the caller would type it."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near


def _as_list(value: Any) -> list:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def suggest(name: str, known) -> str:
    """The end of an error about an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else "; there is none"
