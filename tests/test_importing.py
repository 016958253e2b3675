"""Importing tables: the page on own logs followed to the letter, and tables that cannot be imported."""

import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from poq import cli
from poq.importing import read_table, to_score_log, write_score_log
from poq.scorelog import ScoreLogError, read_score_log

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "book/own_log.md").read_text(encoding="utf-8")
WIDE = pd.DataFrame(
    {
        "item": ["1", "1", "2", "2"],
        "model": ["a", "b", "a", "b"],
        "human": ["3", "4", "1", "9"],
        "rouge": ["0.2", "0.5", "0.1", "0.9"],
        "judge": ["5", "", "3", "9"],
        "note": ["x", "y", "", ""],
    }
)


@pytest.fixture
def tables(tmp_path):
    """The reader's files that the page speaks of."""
    WIDE.to_csv(tmp_path / "scores.csv", index=False)
    records = [
        {"id": str(n), "task": "qa", "model": m, "truth": n, "scores": {"judge": n + 3, "rouge": 0.1 * n}}
        for n in range(4)
        for m in ("a", "b")
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    long = pd.DataFrame([{**r, "rater": e, "score": s} for r in records for e, s in r["scores"].items()])
    long = long.rename(columns={"truth": "gold", "id": "item"}).drop(columns="scores")
    long.to_parquet(tmp_path / "ratings.parquet", index=False)
    return tmp_path


def commands(page):
    """The shell commands of a page."""
    blocks = re.findall(r"```\n(.*?)```", page, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(".venv/bin/poq")]


def test_the_page_can_be_followed_to_the_letter(tables, monkeypatch, capsys):
    (tables / "book").symlink_to(ROOT / "book")
    monkeypatch.chdir(tables)
    written = set()
    for command in commands(PAGE):
        words = shlex.split(command)[1:]
        if words[0] == "import":
            if words[2] in written:  # the page gives two ways to make the same file
                Path(words[2]).unlink()
            written.add(words[2])
        assert cli.main(words) == 0, command
    assert len(written) == 2
    said = capsys.readouterr().out
    assert "columns left out: note" in said
    assert "a valid score log, 8 rows" in said


def test_the_page_s_python_runs(tables, monkeypatch):
    monkeypatch.chdir(tables)
    assert cli.main(shlex.split(commands(PAGE)[1])[1:]) == 0
    code = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pearson" in done.stdout


def test_wide_and_long_tables_give_the_same_log(tables):
    wide = to_score_log(
        read_table(tables / "answers.jsonl"),
        rename={"item": "id", "truth": "truth"},
        evaluators=["scores.judge", "scores.rouge"],
    )
    long = to_score_log(read_table(tables / "ratings.parquet"), rename={"evaluator": "rater", "truth": "gold"})
    wide["evaluator"] = wide["evaluator"].str.removeprefix("scores.")
    keys = ["item", "model", "evaluator"]
    columns = ["task", *keys, "score", "truth"]
    pd.testing.assert_frame_equal(
        wide.sort_values(keys)[columns].reset_index(drop=True), long.sort_values(keys)[columns].reset_index(drop=True)
    )


def test_values_of_a_wide_table():
    log = to_score_log(
        WIDE, rename={"truth": "human"}, constants={"task": "qa"}, evaluators=["rouge", "judge"], negate=["judge"]
    )
    cell = log.set_index(["item", "model", "evaluator"])["score"]
    assert cell["1", "a", "rouge"] == 0.2
    assert cell["2", "b", "judge"] == -9
    assert np.isnan(cell["1", "b", "judge"])
    assert set(log["task"]) == {"qa"}
    assert "note" not in log


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet"])
def test_what_is_written_is_read_again(tmp_path, name):
    log = to_score_log(WIDE, rename={"truth": "human"}, constants={"task": "NA"}, evaluators=["rouge", "judge"])
    write_score_log(log, tmp_path / name)
    pd.testing.assert_frame_equal(read_score_log(tmp_path / name), log)
    with pytest.raises(ScoreLogError, match="exists already"):
        write_score_log(log, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--wide", "rouge,jugde", "--rename", "truth=human", "--set", "task=qa"], "missing column 'jugde'"),
        (["--rename", "truth=human", "--set", "task=qa"], "missing column 'evaluator' (found: item, model, human,"),
        (["--wide", "rest", "--rename", "truth=human", "--set", "task=qa"], "column 'note' is not a number in row 1"),
        (["--wide", "rouge", "--rename", "truth=gold", "--set", "task=qa"], "missing column 'gold'"),
        (["--wide", "rouge", "--rename", "truth=human"], "missing column 'task'"),
        (["--wide", "rouge", "--rename", "truth=human", "--set", "item=5", "--set", "task=t"], "'item' is there alrea"),
        (["--wide", "rouge", "--rename", "model=human", "--set", "task=qa"], "there is a column 'model' already"),
        (["--wide", "rouge", "--rename", "truth"], "--rename takes NAME=VALUE"),
        (["--wide", "rouge", "--set", "tsak=qa"], "'tsak' is no column of a score log"),
        (["--wide", "rouge", "--set", "task=a", "--set", "task=b"], "'task' is given twice"),
        (
            ["--wide", "rouge", "--rename", "truth=human", "--set", "task=qa", "--negate", "judge"],
            "no evaluator 'judge'",
        ),
    ],
)
def test_a_bad_import_is_one_line_and_writes_nothing(tables, capsys, options, said):
    target = tables / "new.csv"
    assert cli.main(["import", str(tables / "scores.csv"), str(target), *options]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.xlsx", b"PK"),
        ("t.csv", b""),
        ("t.csv", b"a,b\n1,2,3\n"),
        ("t.csv", b"\xff\xfe\x00"),
        ("t.csv.gz", b"no gzip"),
        ("t.jsonl", b'{"a": 1}\n{"a":'),
        ("t.parquet", b"PAR1"),
    ],
)
def test_an_unreadable_table_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScoreLogError, match=re.escape(name)):
        read_table(tmp_path / name)


def test_compressed_json_lines_and_tabs(tmp_path):
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b'{"item": "01", "x": 2}\n'))
    assert read_table(tmp_path / "t.jsonl.gz").to_dict("records") == [{"item": "01", "x": 2}]
    (tmp_path / "t.tsv").write_text("item\tx\n01\t2\n", encoding="utf-8")
    assert read_table(tmp_path / "t.tsv").to_dict("records") == [{"item": "01", "x": "2"}]
