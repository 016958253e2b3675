"""Studies: made from the template, part of the book, and the page on them followed to the letter."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_project
from conftest import ROOT, write_chapter, write_notebook

from book import build
from book.build import build_book, build_chapter, toc_pages
from book.check import check_html
from poq import chapters, cli
from poq.chapters import ParameterError, create_study, find_chapter, list_chapters, list_notebooks, list_studies

TEMPLATE = ROOT / "book/studies/template.ipynb"
PAGE = (ROOT / "book/study.md").read_text(encoding="utf-8")


@pytest.fixture
def shelf(tmp_path):
    """A book with the template and nothing else."""
    (tmp_path / "studies").mkdir()
    shutil.copy(TEMPLATE, tmp_path / "studies")
    return tmp_path


def _cells(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def test_a_study_bears_its_name_wherever_the_template_does(shelf):
    path = create_study("my-network", shelf)
    assert path == shelf / "studies" / "my-network.ipynb"
    text = path.read_text(encoding="utf-8")
    assert "template" not in text
    assert text == TEMPLATE.read_text(encoding="utf-8").replace("template", "my-network")
    assert any('provenance.start(\n    "my-network",' in cell for cell in _cells(path))
    assert _cells(path)[0].startswith("(study-my-network)=\n# Study my-network\n")


def test_the_template_is_short_and_its_rule_and_attack_take_five_lines(shelf):
    code = [cell for cell in _cells(TEMPLATE) if cell.startswith("def ")]
    assert len(code) == 2
    assert all(len([line for line in cell.splitlines() if line.strip()]) <= 5 for cell in code)
    assert len(_cells(TEMPLATE)) <= 20


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "a study needs a name"),
        ("My", "'My': a name begins with"),
        ("06_sweep", "a name begins with"),
        ("../x", "a name begins with"),
        ("a/b", "a name begins with"),
        ("/tmp/x", "a name begins with"),
        (".x", "a name begins with"),
        ("x.ipynb", "a name begins with"),
        ("x y", "a name begins with"),
        ("x\n", "a name begins with"),
        ("ä", "a name begins with"),
        ("-x", "a name begins with"),
        ("x" * 61, "at most 60 of them"),
        ("template", "the name of the template"),
        ("there", "is there already"),
        ("dangling", "is there already"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_line_and_changes_nothing(shelf, monkeypatch, capsys, name, said):
    (shelf / "studies" / "there.ipynb").write_text("mine", encoding="utf-8")
    (shelf / "studies" / "dangling.ipynb").symlink_to(shelf / "elsewhere")
    before = {path: path.is_symlink() or path.read_bytes() for path in (shelf / "studies").iterdir()}
    monkeypatch.setattr(cli, "create_study", lambda name: create_study(name, shelf))
    assert cli.main(["study", "--", name]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert {path: path.is_symlink() or path.read_bytes() for path in (shelf / "studies").iterdir()} == before
    assert sorted(path.name for path in shelf.iterdir()) == ["studies"]


def test_a_missing_template_is_named(tmp_path):
    with pytest.raises(ParameterError, match=r"template\.ipynb: the template cannot be read"):
        create_study("x", tmp_path)


def test_studies_are_listed_after_chapters_and_the_template_is_none(shelf, monkeypatch, capsys):
    write_chapter(shelf, "01_one", "1")
    assert list_studies(shelf) == {}
    create_study("my-network", shelf)
    (shelf / "studies" / "My Own.ipynb").write_text("{}", encoding="utf-8")
    assert list(list_notebooks(shelf)) == ["01_one", "my-network"]
    assert list(list_chapters(shelf)) == ["01_one"]
    with pytest.raises(ParameterError, match="unknown chapter 'my-netwrk'; did you mean 'my-network'"):
        find_chapter("my-netwrk", shelf)
    monkeypatch.setattr(cli, "list_notebooks", lambda: chapters.list_notebooks(shelf))
    assert cli.main(["chapters"]) == 0
    said = capsys.readouterr().out
    assert "\nmy-network\n" in said
    assert "share of malicious nodes" not in said.partition("my-network")[0]


@pytest.mark.parametrize("path", [TEMPLATE, *list_studies().values()], ids=lambda path: path.stem)
def test_a_study_has_the_parts_of_a_chapter(path, monkeypatch):
    monkeypatch.setattr(test_project, "CHAPTERS", {path.stem: path})
    test_project.test_a_chapter_has_its_parts(path.stem)


def test_a_study_with_outputs_is_refused_as_a_chapter_is(shelf, monkeypatch):
    path = create_study("my-network", shelf)
    monkeypatch.setattr(test_project, "_tracked", lambda: [path])
    test_project.test_notebooks_are_committed_without_outputs(path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["x"]}]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    with pytest.raises(AssertionError):
        test_project.test_notebooks_are_committed_without_outputs(path)
    committed = test_project.test_notebooks_are_committed_without_outputs.pytestmark[0].args[1]
    assert TEMPLATE in committed  # the folder of the studies is among those that the check reads


def test_no_study_is_ignored_by_git_or_removed_by_make_clean(tmp_path):
    ignored = subprocess.run(["git", "-C", ROOT, "check-ignore", "book/studies/my-network.ipynb"], capture_output=True)
    assert ignored.returncode != 0
    for name in ("Makefile", "setup.sh"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("book/studies/my-network.ipynb", "book/studies/results/my-network/sweep.csv", "book/_build/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "poq").mkdir()
    (tmp_path / "tests").mkdir()
    subprocess.run(["make", "-C", tmp_path, "-s", "clean"], check=True, timeout=30)
    kept = {str(path.relative_to(tmp_path / "book")) for path in (tmp_path / "book").rglob("*") if path.is_file()}
    assert kept == {"studies/my-network.ipynb", "studies/results/my-network/sweep.csv"}


def test_a_study_is_part_of_the_book_while_there_is_one(tiny_book):
    out = tiny_book / "_build"
    (tiny_book / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nparts:\n"
        "  - caption: Chapters\n    chapters: [{glob: 'chapters/[0-9][0-9]_*'}]\n"
        "  - caption: Studies\n    chapters: [{glob: 'studies/[a-z]*'}]\n"
        "  - caption: Rest\n    chapters: [{file: howto}, {file: status}, {file: notation}, {file: bibliography}]\n",
        encoding="utf-8",
    )
    write_notebook(tiny_book / "studies" / "template.ipynb", ["# The pattern"])
    # The book as it is has no study; that its empty part warns of nothing is seen wherever it is built.
    with build._stage(tiny_book) as stage:
        assert not (stage / "studies" / "template.ipynb").exists()
        assert "Studies" not in (stage / "_toc.yml").read_text(encoding="utf-8")
        assert "Chapters" in (stage / "_toc.yml").read_text(encoding="utf-8")

    chapter = write_chapter(tiny_book, "03_three", "print('own', n_rounds)").read_text(encoding="utf-8")
    (tiny_book / "chapters" / "03_three.ipynb").unlink()
    own = tiny_book / "studies" / "my-network.ipynb"
    save = "import pandas as pd\\nprovenance.save_table(run, pd.DataFrame({'x': [n_rounds]}), 'x')\\n"
    own.write_text(
        chapter.replace("03_three", "my-network").replace("print('own", save + "print('own"), encoding="utf-8"
    )
    build_book(book=tiny_book, out=out)
    html = out / "html"
    assert "Studies" in (html / "intro.html").read_text(encoding="utf-8")
    assert "own 5" in (html / "studies" / "my-network.html").read_text(encoding="utf-8")
    assert (html / "results" / "my-network" / "x.csv").read_text(encoding="utf-8") == "x\n5\n"
    assert not list(html.rglob("template*"))
    assert toc_pages(tiny_book)[-1] == "studies/my-network"
    assert check_html(html, toc_pages(tiny_book)) == []
    status = json.loads((html / "status.json").read_text(encoding="utf-8"))
    assert [run["chapter"] for run in status["chapters"]] == ["01_one", "02_two", "my-network"]
    assert 'href="studies/my-network.html"' in (html / "status.html").read_text(encoding="utf-8")

    with pytest.raises(ParameterError, match="my-network has no parameter 'n_roundz'; did you mean 'n_rounds'"):
        build_chapter("my-network", "n_roundz=3", book=tiny_book, out=out)


OWN = """
import concurrent.futures
import sys

import loky
import numpy as np
import pandas as pd

from poq import simulate
from poq.aggregators import AGGREGATORS
from poq.attacks import ATTACKS
from poq.scorelog import read_score_log

exec(sys.argv[2])
log = read_score_log(sys.argv[1])
settings = {"task": "qa", "attack": "lift", "malicious_share": [0.2, 0.4], "committee": 3, "n_rounds": 300}
scenarios = simulate.grid(rule=["mean", "mine"], **settings)


def play(**options):
    return simulate.run(log, scenarios, trials=3, seed=1, progress=False, **options)


if __name__ == "__main__":
    serial = play()
    assert serial.groupby("rule")["rmse"].mean().nunique() == 2
    with loky.get_reusable_executor(max_workers=2) as pool:
        pd.testing.assert_frame_equal(play(executor=pool), serial)
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        pd.testing.assert_frame_equal(play(executor=pool), serial)
"""


def _python(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def test_a_rule_and_an_attack_of_a_notebook_reach_every_process(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(OWN, encoding="utf-8")
    command = [sys.executable, script, ROOT / "book/data/score_log.csv.gz", "\n".join(_python(PAGE))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def copy(tmp_path):
    """A copy of the project, whose environment is this one."""
    folder = tmp_path / "project"
    left_out = shutil.ignore_patterns("_build", "__pycache__", "results", ".ipynb_checkpoints")
    for name in ("book", "poq"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for path in list_studies(folder / "book").values():
        path.unlink()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "setup.sh").write_text("exit 0\n", encoding="utf-8")
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, words in (("python", '"$@"'), ("poq", '-m poq.cli "$@"')):
        path = commands / name
        path.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}\n", encoding="utf-8")
        path.chmod(0o755)
    return folder


def test_the_page_can_be_followed_to_the_letter(copy):
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    for name in ("NAME", "FILE", "CHAPTER", "PARAMS", "PROFILE", "MAKEFLAGS", "MAKELEVEL"):
        environment.pop(name, None)

    def follow(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=copy, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, command + done.stdout + done.stderr
        return done.stdout

    study = copy / "book" / "studies" / "my-network.ipynb"
    verdicts = []
    for kind, block in re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.DOTALL):
        if kind == "python":
            _replace_cell(study, block)
        elif kind == "text":
            (copy / "scores.csv").write_text(block, encoding="utf-8")
        for command in block.splitlines() if kind == "" else ():
            said = follow(command)
            if command.startswith("make study"):
                assert f"study: {study}" in said
            if command.startswith("make chapter"):
                page = Path(said.strip().splitlines()[-1].removeprefix("chapter: "))
                assert page.is_relative_to(copy)
                assert "Study my-network" in page.read_text(encoding="utf-8")
                results = page.parent.parent / "results" / "my-network"
                record = json.loads((results / "sweep.json").read_text(encoding="utf-8"))
                assert record["parameters"]["n_rounds"] == 500
                assert "mine" in (results / "sweep.csv").read_text(encoding="utf-8")
                verdicts.append((results / "claims.csv").read_text(encoding="utf-8"))
    assert len(verdicts) == 2
    assert len(_python(PAGE)) == 2
    assert record["input"]["log"] == "my_log.csv.gz"
    text = study.read_text(encoding="utf-8")
    assert "reach: float" in text
    assert "strikes = malicious" in text
    assert not list_studies().keys() & {"my-network"} or (ROOT / "book/studies/my-network.ipynb").read_text() != text


def _replace_cell(path: Path, block: str) -> None:
    """Put a block in the place of the one cell that begins with the same function."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    start = block[: block.index("(") + 1]
    [cell] = [cell for cell in notebook["cells"] if "".join(cell["source"]).startswith(start)]
    cell["source"] = block.rstrip("\n").splitlines(keepends=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")
