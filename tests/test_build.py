"""The pipeline on tiny books: what is executed, what is refused, and what survives a failure."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_chapter

from book import build
from book.build import BuildError, build_book, build_chapter, execute, plan
from book.check import check_html
from book.execute import normalise
from poq.chapters import ParameterError
from poq.synthetic import synthetic_log

FIGURE = """import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from poq import plotting

plotting.use_theme()
frame = pd.DataFrame({"x": np.random.default_rng(seed).random(5)})
provenance.save_table(run, frame, "numbers")
for part in range(3):
    print("part", part, flush=True)
figure, axes = plotting.panel_grid()
plotting.line_band(axes[0, 0], frame.index, frame["x"], error=0.1, rule="mean")
plt.show()
frame"""


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_book_is_built_cached_and_never_lost(tiny_book, launched, monkeypatch):
    monkeypatch.setattr(build, "_code_files", lambda: [ROOT / "book" / "execute.py"])  # code may change meanwhile
    out = tiny_book / "_build"
    page = build_book(book=tiny_book, out=out)
    assert page == out / "html" / "intro.html"
    assert sorted(launched) == ["01_one", "02_two"]
    text = (out / "html" / "chapters" / "01_one.html").read_text(encoding="utf-8")
    assert "It played" in text
    assert "first 5" in text
    assert "Fast profile" not in text
    status = json.loads((out / "html" / "status.json").read_text(encoding="utf-8"))
    assert [run["parameters"] for run in status["chapters"]] == [{"n_rounds": 5, "seed": 1}] * 2
    assert "01_one" in (out / "html" / "status.html").read_text(encoding="utf-8")

    # Nothing changed: nothing is executed. Saved outputs and other files are no change.
    launched.clear()
    source = tiny_book / "chapters" / "02_two.ipynb"
    notebook = json.loads(source.read_text(encoding="utf-8"))
    notebook["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["old"]}]
    source.write_text(json.dumps(notebook), encoding="utf-8")
    build_book(book=tiny_book, out=out)
    assert launched == []

    # The fast profile has a place of its own and says on every page what it is.
    before = _snapshot(out / "html")
    assert build_book(book=tiny_book, out=out, profile="fast") == out / "fast" / "html" / "intro.html"
    assert sorted(launched) == ["01_one", "02_two"]
    for name in ("intro", "chapters/01_one", "notation"):
        assert "Fast profile" in (out / "fast" / "html" / f"{name}.html").read_text(encoding="utf-8")
    assert "first 2" in (out / "fast" / "html" / "chapters" / "01_one.html").read_text(encoding="utf-8")
    assert _snapshot(out / "html") == before

    # One changed chapter fails in the middle, the other is changed and good: no page is lost, the good one is kept.
    launched.clear()
    write_chapter(tiny_book, "01_one", "print('half way')\nraise ValueError('broken\\nin two lines')")
    write_chapter(tiny_book, "02_two", "print('changed')")
    with pytest.raises(BuildError) as caught:
        build_book(book=tiny_book, out=out)
    assert "chapter 01_one failed: code cell 3: ValueError: broken (see" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(launched) == ["01_one", "02_two"]
    assert _snapshot(out / "html") == before
    assert "raise ValueError" in (out / "logs" / "01_one.log").read_text(encoding="utf-8")

    # Mended, only the mended chapter is executed.
    launched.clear()
    write_chapter(tiny_book, "01_one", "print('mended')")
    build_book(book=tiny_book, out=out)
    assert launched == ["01_one"]
    assert "changed" in (out / "html" / "chapters" / "02_two.html").read_text(encoding="utf-8")

    # A page that Sphinx warns about is refused, and the last good book stays.
    before = _snapshot(out / "html")
    (tiny_book / "howto.md").write_text("# How\n\n{cite:p}`nobody1900`\n", encoding="utf-8")
    with pytest.raises(BuildError, match="nobody1900"):
        build_book(book=tiny_book, out=out)
    (tiny_book / "howto.md").write_text("# How\n\n<img src='https://example.org/x.png' alt='x'>\n", encoding="utf-8")
    with pytest.raises(BuildError, match=r"howto\.html: fetches https://example\.org/x\.png from outside"):
        build_book(book=tiny_book, out=out)
    assert _snapshot(out / "html") == before


def test_two_executions_give_the_same_bytes(tiny_book):
    write_chapter(tiny_book, "02_two", FIGURE)
    jobs = plan(tiny_book, "full", {"01_one": {"n_rounds": 7}, "02_two": {}})
    found = []
    for name in ("a", "b"):
        entries = execute(jobs, tiny_book, tiny_book / name)
        found.append([(entries[stem] / "notebook.ipynb").read_bytes() for stem in ("01_one", "02_two")])
        csv = (entries["02_two"] / "results" / "numbers.csv").read_bytes()
        found[-1].append(csv)
    assert found[0] == found[1]
    assert b"first 7" in found[0][0]
    assert b"image/png" in found[0][1]
    assert str(tiny_book).encode() not in found[0][1]


def test_one_chapter_runs_on_its_own(tiny_book, launched):
    out = tiny_book / "_build"
    path = write_chapter(tiny_book, "02_two", "print('second', n_rounds)")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    words = "\n\nSee [the first](01_one.ipynb), [how](../howto.md#how) and [the symbols](../notation.md)."
    notebook["cells"][0]["source"].append(words)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    page = build_chapter("02_two", "n_rounds=77 seed=0", book=tiny_book, out=out)
    assert page.is_relative_to(out / "chapters" / "02_two")
    assert "n-rounds-77-seed-0" in str(page)
    text = page.read_text(encoding="utf-8")
    assert "second 77" in text
    assert "One chapter on its own, with n_rounds = 77, seed = 0" in text
    assert "See the first, how and <a" in text  # no link to a page that is not there
    assert "WARNING" not in (out / "logs" / "render.log").read_text(encoding="utf-8")
    assert launched == ["02_two"]
    assert not (out / "html").exists()
    again = build_chapter("02_two", "", book=tiny_book, out=out)
    assert again != page
    assert page.exists()


@pytest.mark.parametrize(
    ("stem", "text", "said"),
    [
        ("03_three", "", "unknown chapter '03_three'; known: 01_one, 02_two"),
        ("01_one", "n_roundz=5", "01_one has no parameter 'n_roundz'; did you mean 'n_rounds'?"),
        ("01_one", "n_rounds=abc", "01_one: n_rounds must be int; got 'abc'"),
        ("01_one", "n_rounds=0", "01_one: n_rounds must be at least 2; got 0"),
    ],
)
def test_bad_input_ends_before_any_work(tiny_book, launched, stem, text, said):
    with pytest.raises(ParameterError) as caught:
        build_chapter(stem, text, book=tiny_book, out=tiny_book / "_build")
    assert said in str(caught.value)
    assert launched == []
    assert not (tiny_book / "_build" / "chapters").exists()


LOG_PARAMETERS = """log: str = "../data/log.csv"  # score log
task: str = "qa"  # task
committee: int = 2  # committee size
n_rounds: int = 5
seed: int = 1"""
LOG = "task,item,model,evaluator,score,truth\n" + "".join(
    f"qa,{item},m,{evaluator},{item + 1},{item}\n" for item in range(3) for evaluator in "ab"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("committee=3", "a committee of 3 is larger than the 2 evaluators of task 'qa' in ../data/log.csv"),
        ("task=nope", "task 'nope' is not in ../data/log.csv; known: qa"),
        ("log=gone.csv", "log: no such file:"),
        ("log=bad.csv", "missing column 'truth'"),
        ("log=text.csv", "column 'score' is not a number in row 1"),
    ],
)
def test_a_log_is_checked_before_any_work(tiny_book, launched, monkeypatch, text, said):
    (tiny_book / "data").mkdir()
    (tiny_book / "data" / "log.csv").write_text(LOG, encoding="utf-8")
    (tiny_book / "bad.csv").write_text(LOG.replace("truth", "t"), encoding="utf-8")
    (tiny_book / "text.csv").write_text(LOG.replace(",1,", ",one,"), encoding="utf-8")
    write_chapter(tiny_book, "01_one", "1", parameters=LOG_PARAMETERS)
    monkeypatch.chdir(tiny_book)  # a log is meant as the caller sees it
    with pytest.raises(ParameterError) as caught:
        build_chapter("01_one", text, book=tiny_book, out=tiny_book / "_build")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert launched == []


def test_a_log_of_ones_own_is_passed_as_an_absolute_path(tiny_book, monkeypatch):
    (tiny_book / "my log.csv").write_text(LOG, encoding="utf-8")
    write_chapter(tiny_book, "01_one", "1", parameters=LOG_PARAMETERS)
    monkeypatch.chdir(tiny_book)
    given = []
    monkeypatch.setattr(build, "execute", lambda jobs, *_: given.extend(jobs) or {})
    with pytest.raises(KeyError):
        build_chapter("01_one", "log='my log.csv'", book=tiny_book, out=tiny_book / "_build")
    assert given[0].given == {"log": str(tiny_book / "my log.csv")}


def test_the_key_of_a_chapter_follows_everything_it_depends_on(tiny_book, tmp_path, monkeypatch):
    names = {path.name for path in build._code_files()}
    assert {"simulate.py", "trust.py", "execute.py", "requirements.lock"} <= names
    code = tmp_path / "code.py"
    code.write_text("1", encoding="utf-8")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "_code_files", lambda: [code])

    def key(**given) -> str:
        return plan(tiny_book, "full", {"01_one": given})[0].key

    first = key()
    assert key() == first
    assert key(n_rounds=6) != first
    (tiny_book / "data").mkdir()
    (tiny_book / "data" / "log.csv").write_text(LOG, encoding="utf-8")
    second = key()
    assert second != first
    write_chapter(tiny_book, "01_one", "print('other')")
    third = key()
    assert third != second
    code.write_text("2", encoding="utf-8")
    assert key() != third


def test_a_run_record_must_tell_the_truth(tiny_book):
    start = 'from poq import provenance\nrun = provenance.start("{stem}", n_rounds=n_rounds, seed=2)'
    code = "import pandas as pd\nprovenance.save_table(run, pd.DataFrame({'x': [1]}), 'x')"
    write_chapter(tiny_book, "01_one", code, start=start)
    jobs = plan(tiny_book, "full", {"01_one": {}})
    with pytest.raises(BuildError, match=r"run record x\.json differs from the chapter's parameters in: seed"):
        execute(jobs, tiny_book, tiny_book / "_build")
    assert not list((tiny_book / "_build").rglob("run.json"))


def test_profiles_are_checked_too(tiny_book):
    (tiny_book / "profiles.yml").write_text("fast: {chapters: {01_one: {n_roundz: 3}}}", encoding="utf-8")
    with pytest.raises(ParameterError, match="n_roundz"):
        plan(tiny_book, "fast", {"01_one": {}})
    (tiny_book / "profiles.yml").write_text("fast: {chapters: {09_gone: {n_rounds: 3}}}", encoding="utf-8")
    with pytest.raises(BuildError, match="there is no chapter '09_gone'"):
        plan(tiny_book, "fast", {"01_one": {}})
    with pytest.raises(BuildError, match="unknown profile 'quick'; known: full, fast"):
        plan(tiny_book, "quick", {})


@pytest.mark.parametrize(("evaluators", "committees"), [(3, [3]), (2, None), (6, [3, 5])])
def test_sizes_of_a_profile_give_way_to_a_small_log(tmp_path, evaluators, committees):
    log = tmp_path / "log.csv"
    synthetic_log(np.random.default_rng(0), n_items=3, n_models=2, evaluators=evaluators).to_csv(log, index=False)
    [job] = plan(ROOT / "book", "fast", {"11_explorer": {"log": str(log)}})
    assert job.values["committees"] == committees
    if evaluators < 5:
        with pytest.raises(ParameterError, match="a committee of 5 is larger than the"):
            plan(ROOT / "book", "fast", {"11_explorer": {"log": str(log), "committees": [3, 5]}})


@pytest.mark.parametrize("text", ["", "n_rounds=3"])
def test_an_error_names_the_cell_that_its_author_counts(tiny_book, text):
    write_chapter(tiny_book, "01_one", "raise ValueError('broken')")
    with pytest.raises(BuildError, match="code cell 3: ValueError: broken"):
        build_chapter("01_one", text, book=tiny_book, out=tiny_book / "_build")


def test_a_notebook_that_is_left_half_way_is_no_success(tiny_book):
    """Its later tables and figures would be missing on a page that looks whole."""
    path = write_chapter(tiny_book, "01_one", "raise SystemExit")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"].append({**notebook["cells"][-1], "source": "print('never')", "id": "later"})
    path.write_text(json.dumps(notebook), encoding="utf-8")
    for text in ("", "n_rounds=3"):
        with pytest.raises(BuildError, match="ended before code cell 4, by SystemExit"):
            build_chapter("01_one", text, book=tiny_book, out=tiny_book / "_build")


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_ends_all_it_started_and_keeps_the_pages(tiny_book, blow):
    mark = tiny_book / "processes"
    code = f"""import os, pathlib, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(mark) + ".part"!r}).write_text(f"{{os.getpid()}} {{worker.pid}}")
os.rename({str(mark) + ".part"!r}, {str(mark)!r})
time.sleep(600)"""
    write_chapter(tiny_book, "01_one", code)
    out = tiny_book / "_build"
    (out / "html").mkdir(parents=True)
    (out / "html" / "intro.html").write_text("last good", encoding="utf-8")
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pathlib; from book import build\n"
        f"book = pathlib.Path({str(tiny_book)!r})\n"
        "build.build_book.__kwdefaults__.update(book=book, out=book / '_build')\n"
        "sys.exit(build.main(['book']))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, cwd=tiny_book)
    assert _wait(lambda: mark.exists() and list(out.rglob("02_two/*/run.json")), 90)
    processes = [int(number) for number in mark.read_text().split()]
    process.send_signal(blow)
    _, said = process.communicate(timeout=30)
    assert _wait(lambda: not any(_alive(number) for number in processes), 15)
    assert (out / "html" / "intro.html").read_text(encoding="utf-8") == "last good"
    assert "Traceback" not in said
    if blow != signal.SIGKILL:
        assert process.returncode == 130
        assert said.strip().splitlines()[-1].startswith("interrupted; finished chapters are kept")


def _wait(done, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(done())


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True


def test_where_nothing_can_be_written_is_said_in_one_line(monkeypatch, capsys):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device", "book/_build/x")

    monkeypatch.setattr(build, "build_book", full)
    assert build.main(["book"]) == 1
    assert capsys.readouterr().err == "error: book/_build/x: no space left on device\n"
    monkeypatch.setattr(build, "build_book", lambda **_: Path("/").read_text())  # a fault of ours is raised
    with pytest.raises(IsADirectoryError):
        build.main(["book"])


def test_only_one_build_writes_at_a_time(tmp_path):
    path = tmp_path / ".lock"
    with build._lock(path), pytest.raises(BuildError, match="another build writes to"), build._lock(path):
        pass
    with build._lock(path):
        pass


def test_pages_come_back_after_a_kill_between_the_renames(tmp_path):
    target = tmp_path / "html"
    (tmp_path / "html.old").mkdir()
    (tmp_path / "html.old" / "intro.html").write_text("last good", encoding="utf-8")
    build._finish_swap(target)
    assert (target / "intro.html").read_text(encoding="utf-8") == "last good"
    new = tmp_path / "new"
    new.mkdir()
    (new / "intro.html").write_text("better", encoding="utf-8")
    build._swap(new, target)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["html", "new"]
    assert (target / "intro.html").read_text(encoding="utf-8") == "better"


def test_different_parameters_have_different_folders():
    slugs = {
        build._slug({}, "full"),
        build._slug({}, "fast"),
        build._slug({"rules": ["a", "b"]}, "full"),
        build._slug({"rules": ["a-b"]}, "full"),
        build._slug({"log": "/x/" + "y" * 300 + "1"}, "full"),
        build._slug({"log": "/x/" + "y" * 300 + "2"}, "full"),
    }
    assert len(slugs) == 6
    assert all(len(slug) < 80 and "/" not in slug for slug in slugs)


def test_what_differs_between_runs_is_dropped_from_a_notebook():
    stream = [{"output_type": "stream", "name": "stdout", "text": [text]} for text in ("a\n", "b", "c\n")]
    other = {"output_type": "stream", "name": "stderr", "text": ["d\n"]}
    cell = {"cell_type": "code", "id": "x", "source": [], "outputs": [*stream, other]}
    cell["metadata"] = {"papermill": {"duration": 1}, "execution": {"at": 2}, "tags": [], "mystnb": {"image": {}}}
    made = normalise({"cells": [cell], "metadata": {"papermill": {}, "language_info": {"version": "3.11.7"}}})
    assert made["cells"][0]["metadata"] == {"mystnb": {"image": {}}}
    assert [output["text"] for output in made["cells"][0]["outputs"]] == [["a\n", "bc\n"], ["d\n"]]
    assert set(made["metadata"]) == {"kernelspec", "language_info"}
    assert "version" not in made["metadata"]["language_info"]


GOOD = '<html><body><h1 id="top">x</h1><a href="b.html#here">b</a><a href="https://example.org">out</a></body></html>'


@pytest.mark.parametrize(
    ("markup", "said"),
    [
        ('<script src="https://cdn.example.org/x.js"></script>', "fetches https://cdn.example.org/x.js"),
        ('<script src="//cdn.example.org/x.js"></script>', "fetches //cdn.example.org/x.js"),
        ('<link rel="stylesheet" href="http://example.org/x.css">', "fetches http://example.org/x.css"),
        ('<img srcset="x.png 1x, https://example.org/y.png 2x">', "fetches https://example.org/y.png"),
        ("<style>@font-face{src:url('https://example.org/f.woff')}</style>", "fetches https://example.org/f.woff"),
        ('<p style="background:url(https://example.org/p.png)">', "fetches https://example.org/p.png"),
        ('<img src="gone.png">', "gone.png is missing"),
        ('<a href="gone.html">x</a>', "broken link gone.html"),
        ('<a href="b.html#nowhere">x</a>', "broken link b.html#nowhere: no such place"),
        ('<a href="#nowhere">x</a>', "broken link #nowhere: no such place"),
    ],
)
def test_faults_of_pages_are_found(tmp_path, markup, said):
    (tmp_path / "a.html").write_text(GOOD.replace("</body>", markup + "</body>"), encoding="utf-8")
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>', encoding="utf-8")
    (tmp_path / "x.png").write_bytes(b"")
    [fault] = check_html(tmp_path, ["a", "b"])
    assert fault.startswith("a.html: ")
    assert said in fault


def test_a_good_page_has_no_fault_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "a.html").write_text(GOOD, encoding="utf-8")
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>', encoding="utf-8")
    assert check_html(tmp_path, ["a", "b"]) == []
    assert check_html(tmp_path, ["a", "c"]) == ["c: the page is missing"]
    (tmp_path / "x.css").write_text("@import 'https://example.org/y.css';", encoding="utf-8")
    assert check_html(tmp_path, ["a"]) == ["x.css: fetches https://example.org/y.css from outside"]
