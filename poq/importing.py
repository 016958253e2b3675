"""Other people's tables as score logs: wide tables, JSON lines, renamed columns.

The steps are those of ``poq import``: read a table as it is, bring it to the schema of a score log, check it, write it.
Nothing is guessed that would change a result: what is an evaluator and what is the truth is said by the user.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from poq.scorelog import COSTS, REQUIRED, ScoreLogError, as_numbers, check_log, check_text

SOURCES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
TARGETS = (".csv", ".csv.gz", ".parquet")
KNOWN = (*REQUIRED, *COSTS, "reference_based", "truth_alt", "split")


def read_table(path) -> pd.DataFrame:
    """A table as it stands in a file, all of it text except in Parquet and JSON lines.

    Nested records of JSON lines become columns with dotted names: ``{"scores": {"rouge": 0.3}}`` is `scores.rouge`.

    Raises
    ------
    FileNotFoundError, ScoreLogError
        The message names the file, and the line where it can.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise FileNotFoundError(f"no table at {path}")
    if path.is_dir() or not name.endswith(SOURCES):
        raise ScoreLogError(f"{path}: not a table that can be imported; it must end in {', '.join(SOURCES)}")
    if ".csv" in name:
        check_text(path)
    try:
        if name.endswith(".parquet"):
            return pa.parquet.read_table(path).to_pandas(ignore_metadata=True)
        if ".jsonl" in name:
            return _read_json_lines(path)
        separator = "\t" if ".tsv" in name else ","
        parse = pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
        with pa.input_stream(str(path), compression="detect") as stream:
            names = pa.csv.open_csv(stream, parse_options=parse).schema.names
        convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        with pa.input_stream(str(path), compression="detect") as stream:
            return pa.csv.read_csv(stream, parse_options=parse, convert_options=convert).to_pandas()
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise ScoreLogError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from error


def _read_json_lines(path: Path) -> pd.DataFrame:
    records = []
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} is no JSON: {error}") from error
                if not isinstance(record, dict):
                    raise ValueError(f"line {number} is no JSON object")
                records.append(record)
    return pd.json_normalize(records)


def to_score_log(
    table: pd.DataFrame,
    *,
    rename: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    evaluators: Sequence[str] | None = None,
    negate: Sequence[str] = (),
    where: str = "table",
) -> pd.DataFrame:
    """Bring a table to the schema of a score log and check it.

    Parameters
    ----------
    table : DataFrame
    rename : mapping, optional
        Column of a score log -> the table's name for it, for example {"truth": "human_score"}.
    constants : mapping, optional
        Columns that the table lacks and that have one value throughout, for example {"task": "qa"}.
    evaluators : sequence of str, optional
        For a wide table: the columns that hold one evaluator's scores each.
    negate : sequence of str
        Evaluators for which less is better; their scores change sign.
    where : str
        Opens error messages.

    Raises
    ------
    ScoreLogError
        Names the column that is missing, doubled or no evaluator.
    """
    rename, constants = dict(rename or {}), dict(constants or {})
    table = table.copy(deep=False)
    found = ", ".join(map(str, table.columns))
    for new, old in rename.items():
        if old not in table:
            raise ScoreLogError(f"{where}: missing column '{old}', which should become '{new}' (found: {found})")
        if new in table and new != old:
            raise ScoreLogError(f"{where}: column '{old}' should become '{new}', but there is a column '{new}' already")
    table = table.rename(columns={old: new for new, old in rename.items()})
    for name, value in constants.items():
        if name in table:
            raise ScoreLogError(f"{where}: column '{name}' is there already and cannot be set to '{value}'")
        table[name] = value
    if evaluators is not None:
        table = _melt(table, list(evaluators), where)
    for name in REQUIRED:
        if name not in table:
            hint = "; a table with one column per evaluator needs --wide" if name in ("evaluator", "score") else ""
            raise ScoreLogError(f"{where}: missing column '{name}' (found: {found}){hint}")
    checked = check_log(table[[name for name in KNOWN if name in table]], where=where)
    absent = [name for name in negate if not (checked["evaluator"] == name).any()]
    if absent:
        raise ScoreLogError(f"{where}: no evaluator '{absent[0]}' whose scores could be negated")
    turned = checked["evaluator"].isin(negate)
    checked.loc[turned, "score"] = -checked.loc[turned, "score"]
    return checked


def _melt(table: pd.DataFrame, evaluators: list[str], where: str) -> pd.DataFrame:
    for name in evaluators:
        if name not in table:
            found = ", ".join(map(str, table.columns))
            raise ScoreLogError(f"{where}: missing column '{name}', which should be an evaluator (found: {found})")
    for name in ("evaluator", "score", "cost"):
        if name in table:
            raise ScoreLogError(f"{where}: a wide table has one column per evaluator, but there is a column '{name}'")
    table = table.assign(**{name: as_numbers(table[name], name, where) for name in evaluators})
    kept = [name for name in KNOWN if name in table]
    return table.melt(id_vars=kept, value_vars=evaluators, var_name="evaluator", value_name="score")


def write_score_log(log: pd.DataFrame, path) -> None:
    """Write a score log; the file is complete or not there, and one that exists is never overwritten."""
    path = Path(path)
    if not path.name.lower().endswith(TARGETS):
        raise ScoreLogError(f"{path}: a score log ends in {', '.join(TARGETS)}")
    if path.exists():
        raise ScoreLogError(f"{path}: exists already; choose another name")
    if not path.parent.is_dir():
        raise ScoreLogError(f"{path}: there is no folder {path.parent}")
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        if path.name.lower().endswith(".parquet"):
            log.to_parquet(temporary, index=False)
        elif path.name.lower().endswith(".gz"):
            log.to_csv(temporary, index=False, compression={"method": "gzip", "mtime": 0})
        else:
            log.to_csv(temporary, index=False)
        os.link(temporary, path)  # unlike a rename, this fails when somebody has made the file meanwhile
    finally:
        temporary.unlink(missing_ok=True)


def add_arguments(parser) -> None:
    """Arguments of ``poq import``."""
    parser.add_argument("source", metavar="SOURCE", help=f"a table that ends in {', '.join(SOURCES)}")
    parser.add_argument("target", metavar="TARGET", help=f"the score log to write; ends in {', '.join(TARGETS)}")
    parser.add_argument(
        "--rename", action="append", default=[], metavar="NEW=OLD", help="a column of the schema and the table's name"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="COLUMN=VALUE", help="a column with one value, such as task=qa"
    )
    parser.add_argument("--wide", metavar="A,B,...", help="columns that hold one evaluator's scores each, or 'rest'")
    parser.add_argument(
        "--negate", action="append", default=[], metavar="EVALUATOR", help="an evaluator for which less is better"
    )


def import_log(options) -> str:
    """Do what ``poq import`` was asked; returns a sentence for the user."""
    rename, constants = (_pairs(pairs, flag) for pairs, flag in ((options.rename, "--rename"), (options.set, "--set")))
    table = read_table(options.source)
    evaluators = None
    if options.wide == "rest":
        named = {*KNOWN, *rename.values()}
        evaluators = [name for name in table.columns if name not in named]
    elif options.wide:
        evaluators = [name.strip() for name in options.wide.split(",")]
    log = to_score_log(
        table,
        rename=rename,
        constants=constants,
        evaluators=evaluators,
        negate=options.negate,
        where=str(options.source),
    )
    write_score_log(log, options.target)
    used = {*log.columns, *rename.values(), *(evaluators or ())}
    left_out = [str(name) for name in table.columns if name not in used]
    tail = f"; columns left out: {', '.join(left_out)}" if left_out else ""
    names = list(map(str, log["evaluator"].unique()))
    more = ", ..." if len(names) > 12 else ""
    return f"{options.target}: {len(log):,} rows, {len(names):,} evaluators ({', '.join(names[:12])}{more}){tail}"


def _pairs(texts: Sequence[str], flag: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ScoreLogError(f"{flag} takes NAME=VALUE, not '{text}'")
        if name not in KNOWN:
            raise ScoreLogError(f"{flag}: '{name}' is no column of a score log ({', '.join(KNOWN)})")
        if name in pairs:
            raise ScoreLogError(f"{flag}: '{name}' is given twice")
        pairs[name] = value
    return pairs
