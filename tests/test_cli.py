"""The command line: exit statuses, one-line errors, and what is said about a log."""

import gzip
import subprocess
import sys

import pytest
from conftest import write_notebook

from poq import chapters, cli

LOG = "task,item,model,evaluator,score,truth,cost\n" + "".join(
    f"qa,{item},{model},{evaluator},{(item * 7 + len(model) * 3) % 5},{item},{cost}\n"
    for item in range(6)
    for model in ("m", "mm")
    for evaluator, cost in (("first", 0.5), ("second", ""))
)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOG, encoding="utf-8")
    return path


def test_a_valid_log_is_summarised(log, capsys):
    assert cli.main(["check", str(log)]) == 0
    said = capsys.readouterr().out
    assert "a valid score log, 24 rows" in said
    assert "task qa: 6 items, 2 models, 12 outputs, 2 evaluators, 0 of 24 cells missing" in said
    assert "note: column 'cost' is known in 12 rows" in said
    assert "note: column 'model_cost' is not there" in said
    assert "first" in said


def test_missing_cells_and_constant_evaluators_are_warnings(log, capsys):
    lines = LOG.splitlines(keepends=True)
    text = "".join([lines[0], *lines[2:], "qa,0,m,third,7,0,\n"])
    log.write_text(text, encoding="utf-8")
    assert cli.main(["check", str(log)]) == 0
    said = capsys.readouterr().out
    assert "3 evaluators, 12 of 36 cells missing" in said
    assert "warning: evaluator 'third' gives every output the same score" in said


def test_a_compressed_log_is_read(log, capsys):
    packed = log.with_name("log.csv.gz")
    packed.write_bytes(gzip.compress(LOG.encode()))
    assert cli.main(["check", str(packed)]) == 0
    assert "24 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LOG.replace("truth", "t"), "missing column 'truth'"),
        (LOG + LOG.splitlines()[1], "duplicate"),
        (LOG.replace("qa,0,m,first,", "qa,0,m,first,x"), "column 'score' is not a number in row 1"),
        ("", "empty file"),
    ],
)
def test_an_invalid_log_is_one_line_and_status_1(log, capsys, text, said):
    log.write_text(text, encoding="utf-8")
    assert cli.main(["check", str(log)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_an_absent_log_is_one_line_and_status_1(capsys):
    assert cli.main(["check", "nowhere.csv"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["check"], ["check", "a", "b"], ["nonsense"], ["check", "--fast", "a"]])
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: poq" in capsys.readouterr().err


def test_text_from_a_log_cannot_rewrite_the_terminal(log, capsys):
    log.write_text(LOG.replace("first", "fi\x1b[2Jrst"), encoding="utf-8")
    cli.main(["check", str(log)])
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err


def test_chapters_are_listed_from_the_notebooks(tmp_path, monkeypatch, capsys):
    cell = ("n_rounds: int = 5000  # rounds per trial\ntasks: list[str] | None = None", {"tags": ["parameters"]})
    write_notebook(tmp_path / "chapters" / "01_x.ipynb", [cell])
    write_notebook(tmp_path / "chapters" / "02_y.ipynb", [cell])
    for name in ("list_notebooks", "find_chapter"):
        function = getattr(chapters, name)
        monkeypatch.setattr(cli, name, lambda *rest, function=function: function(*rest, tmp_path))
    assert cli.main(["chapters"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("0")] == ["01_x", "02_y"]
    assert ["n_rounds: int = 5000", "rounds per trial"] in [line.strip().split("            ") for line in lines]
    assert cli.main(["chapters", "02_y"]) == 0
    assert "01_x" not in capsys.readouterr().out
    assert cli.main(["chapters", "02_z"]) == 1
    assert "unknown chapter '02_z'; did you mean '02_y'?" in capsys.readouterr().err


def test_the_command_is_installed_and_stops_quietly_when_its_reader_does(log):
    command = f"'{sys.executable}' -m poq.cli check '{log}' | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
