"""Sweep files: what is refused before any work, what a failing or interrupted run leaves, and the page of the runs."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import PARAMETERS, ROOT, START, write_chapter, write_notebook

from book import build, side_by_side, sweep
from book.build import BuildError, build_chapter, plan_runs
from book.check import check_html
from book.sweep import read_sweep, run_sweep
from poq.chapters import ParameterError

GOOD = 'chapter = "01_one"\ncombine = "product"\n\n[parameters]\nn_rounds = [5, 7]\nseed = [1, 2]\n'


def _file(book: Path, text: str = GOOD) -> Path:
    path = book / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_product_runs_every_combination_the_last_parameter_fastest(tiny_book):
    read = read_sweep(_file(tiny_book), tiny_book)
    assert read.runs == [{"n_rounds": n, "seed": s} for n in (5, 7) for s in (1, 2)]
    assert (read.chapter, read.combine, read.names) == ("01_one", "product", ["n_rounds", "seed"])
    assert side_by_side.how(read) == "every combination of n_rounds (2) and seed (2)"


def test_paired_values_go_together(tiny_book):
    text = GOOD.replace("product", "paired").replace("[5, 7]", "[5, 5]")
    assert read_sweep(_file(tiny_book, text), tiny_book).runs == [
        {"n_rounds": 5, "seed": 1},
        {"n_rounds": 5, "seed": 2},
    ]


def test_values_are_read_as_the_chapter_types_them(tiny_book):
    parameters = 'log: str = "x.csv"\nn_nodes: int | None = 3\nshare: float = 0.5\nrules: list[str] | None = None'
    write_chapter(tiny_book, "03_three", "1", parameters=parameters)
    text = """chapter = "03_three"
combine = "paired"
parameters.log = ["my log.csv", "/a/b.csv"]
parameters.n_nodes = ["none", 4]
parameters.share = [1, 0.25]
parameters.rules = [["mean"], "None"]
"""
    first, second = read_sweep(_file(tiny_book, text), tiny_book).runs
    assert first == {"log": str(tiny_book / "my log.csv"), "n_nodes": None, "share": 1.0, "rules": ["mean"]}
    assert second == {"log": "/a/b.csv", "n_nodes": 4, "share": 0.25, "rules": None}
    assert isinstance(first["share"], float)
    assert side_by_side.words(second) == "log = /a/b.csv, n_nodes = 4, share = 0.25, rules = none"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("chapter =", "chaptr =", "unknown key 'chaptr'; did you mean 'chapter'?"),
        ('chapter = "01_one"', "", "the key 'chapter' is missing"),
        ("01_one", "01_on", "chapter: unknown chapter '01_on'; did you mean '01_one'?"),
        ('"01_one"', "1", "chapter must be a text; got 1"),
        ('combine = "product"', "", "the key 'combine' is missing"),
        ("product", "all", "combine must be 'product' or 'paired'; got 'all'"),
        ("[parameters]\nn_rounds = [5, 7]\nseed = [1, 2]", "", "the key 'parameters' is missing"),
        ("n_rounds = [5, 7]\nseed = [1, 2]", "", "parameters: no parameter is given a list of values"),
        ("[parameters]\nn_rounds = [5, 7]\nseed = [1, 2]", "parameters = [1]", "parameters must be a table; got [1]"),
        (
            "n_rounds =",
            "n_roundz =",
            "parameters.n_roundz: 01_one has no parameter 'n_roundz'; did you mean 'n_rounds'",
        ),
        ("[5, 7]", "5", "parameters.n_rounds: must be a list of values; got 5"),
        ("[5, 7]", "[]", "parameters.n_rounds: the list is empty"),
        ("[5, 7]", "[5, 'x']", "parameters.n_rounds: 01_one: n_rounds must be int; got 'x'"),
        ("[5, 7]", "[5, 0]", "parameters.n_rounds: 01_one: n_rounds must be at least 2; got 0"),
        ("[5, 7]", "[5, 7, 5]", "parameters.n_rounds: 5 stands there twice"),
        ("[5, 7]", f"{list(range(2, 601))}", "parameters: 1,198 runs are more than 1,000"),
        ('product"', 'paired"\nx = 1', "unknown key 'x'"),
        ("= [5", "= [5,,", "not a TOML file: "),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(tiny_book, launched, capsys, monkeypatch, old, new, said):
    assert old in GOOD
    path = _file(tiny_book, GOOD.replace(old, new))
    monkeypatch.setattr(sweep.run_sweep, "__kwdefaults__", {"book": tiny_book, "out": tiny_book / "_build"})
    monkeypatch.setitem(sweep.run_sweep.__kwdefaults__, "profile", "full")
    assert sweep.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert said in error
    assert error.count("\n") == 1
    assert launched == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            "n_rounds = [5, 7]\nseed = [1]",
            "paired lists must have the same number of values, but parameters.n_rounds has 2",
        ),
        ("n_rounds = [5, 7, 5]\nseed = [1, 2, 1]", "parameters: runs 1 and 3 are the same (n_rounds = 5, seed = 1)"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(tiny_book, values, said):
    text = f'chapter = "01_one"\ncombine = "paired"\n[parameters]\n{values}\n'
    with pytest.raises(ParameterError, match=re.escape(said)):
        read_sweep(_file(tiny_book, text), tiny_book)


def test_a_file_that_is_not_there_or_no_text_is_named(tiny_book, capsys):
    (tiny_book / "x.toml").write_bytes(b"\xff\xfe")
    for name, said in (("gone.toml", "no such file"), ("x.toml", "not a TOML file"), (".", "is a directory")):
        assert sweep.main([str(tiny_book / name)]) == 1
        assert said in capsys.readouterr().err
    assert sweep.main([""]) == 1
    assert "a sweep needs a file" in capsys.readouterr().err


def test_values_that_do_not_fit_the_log_name_the_file_and_the_run(tiny_book, launched):
    log = "task,item,model,evaluator,score,truth\n" + "".join(f"qa,{i},m,{e},{i},{i}\n" for i in range(3) for e in "ab")
    (tiny_book / "log.csv").write_text(log, encoding="utf-8")
    parameters = 'log: str = "../log.csv"\ncommittee: int = 2'
    write_chapter(tiny_book, "03_three", "1", parameters=parameters)
    text = 'chapter = "03_three"\ncombine = "product"\nparameters.committee = [1, 2, 3]\n'
    path = _file(tiny_book, text)
    with pytest.raises(ParameterError) as caught:
        run_sweep(path, book=tiny_book, out=tiny_book / "_build")
    assert str(caught.value).startswith(f"{path}: 03_three-run-3: a committee of 3 is larger than the 2 evaluators")
    path.write_text(text + 'parameters.log = ["gone.csv"]\n', encoding="utf-8")
    with pytest.raises(ParameterError, match=r"my\.toml: 03_three: log: no such file: .*gone\.csv"):
        run_sweep(path, book=tiny_book, out=tiny_book / "_build")
    assert launched == []


def test_the_shipped_files_can_be_run():
    files = sorted((ROOT / "book" / "sweeps").glob("*.toml"))
    assert files
    for file in files:
        read = read_sweep(file)
        assert 2 <= len(read.runs) <= 12
        jobs = plan_runs(ROOT / "book", "full", [(str(n), read.chapter, run) for n, run in enumerate(read.runs)])
        assert len({job.key for job in jobs}) == len(read.runs)


CODE = """import matplotlib.pyplot as plt
import pandas as pd

if n_rounds == 7:
    raise ValueError("seven")
provenance.save_table(run, pd.DataFrame({"seed": [seed, seed], "n_rounds": [1, 2], "x": ["0.10", "NA"]}), "numbers")
claim = {"claim": "C1", "sentence": "a < b", "value": n_rounds, "low": 1, "high": 9, "n": 3}
verdicts = ["reproduced", "not reproduced" if n_rounds > 5 else "reproduced"]
claims = pd.DataFrame([{**claim, "task": t, "verdict": v} for t, v in zip(("qa", "<i>"), verdicts)])
provenance.save_table(run, claims, "claims")
provenance.glue("one_half", n_rounds / 2)
provenance.glue("one_seed", seed)
provenance.glue("one_word", "text")
plt.plot([0, n_rounds])
plt.show()"""
SAME = """plt.plot([0, 1])
plt.show()"""


def _chapter_with_everything(book: Path) -> None:
    figure = {"mystnb": {"figure": {"name": "fig-one", "caption": "A {cite:p}`poq2024` line."}, "image": {"alt": "Up"}}}
    same = {"mystnb": {"figure": {"name": "fig-same", "caption": "Another"}, "image": {"alt": '"Flat"'}}}
    parts = ["# One", (PARAMETERS, {"tags": ["parameters"]}), (START.format(stem="01_one"), {})]
    parts += [(CODE, figure), (SAME, same)]
    write_notebook(book / "chapters" / "01_one.ipynb", parts)


@pytest.fixture
def quick_pages(monkeypatch):
    """Runs get pages of one line, which takes no time; the page of the sweep is rendered in earnest."""
    render = build.render

    def quick(stage, out, **options):
        if (stage / "sweep.md").is_file():
            return render(stage, out, **options)
        pages = stage.parent / "pages"
        (pages / "chapters").mkdir(parents=True)
        (pages / "chapters" / "01_one.html").write_text("<h1>One</h1>", encoding="utf-8")
        return pages

    monkeypatch.setattr(build, "render", quick)


@pytest.mark.usefixtures("quick_pages")
def test_runs_stand_side_by_side_and_a_failing_one_spoils_no_other(tiny_book, launched, monkeypatch, capsys, request):
    monkeypatch.setattr(build, "_code_files", lambda: [ROOT / "book" / "execute.py"])  # code may change meanwhile
    _chapter_with_everything(tiny_book)
    out = tiny_book / "_build"
    path = _file(tiny_book, GOOD.replace("[5, 7]", "[5, 7, 9]").replace("[1, 2]", "[1]"))
    with pytest.raises(BuildError) as caught:
        run_sweep(path, book=tiny_book, out=out)
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == (
        f"{path}: 3 runs of 01_one (every combination of n_rounds (3), with seed = 1), 0 finished before"
    )
    assert "01_one-run-3: done in" in said.err  # progress
    first, *_ = str(caught.value).splitlines()
    assert first.startswith("run 2 of 3 (n_rounds = 7, seed = 1) failed: code cell ")
    assert "ValueError: seven (see " in first
    assert sorted(launched) == ["01_one-run-1", "01_one-run-2", "01_one-run-3"]

    (page,) = (out / "sweeps").glob("my-*/sweep.html")  # with a mark of its own: another folder may hold a my.toml too
    assert str(page) in str(caught.value)
    assert check_html(page.parent, ["sweep"]) == []
    html = page.read_text(encoding="utf-8")
    assert "1 of them failed" in html
    assert "ValueError: seven" in html
    links = re.findall(r'href="(\.\./\.\./chapters/[^"]+)"', html)
    assert sum(link.endswith("/chapters/01_one.html") for link in links) == 2
    assert sum(link.endswith("/results/01_one/claims.csv") for link in links) == 2
    assert all((page.parent / link).resolve().is_file() for link in links)
    assert "1 of 2 verdicts differ" in html
    assert "a &lt; b<small>&lt;i&gt;</small>" in html
    assert "+9.000 [+1.000, +9.000]" in html
    assert re.search(r"<code>one_half</code></th><td[^>]*>2\.5</td><td[^>]*>4\.5</td>", html)
    assert "one_word" not in html
    assert re.findall(r'<img src="figures/[^"]+" alt="([^"]+)"', html) == [
        "Run 1: n_rounds = 5. Up",
        "Run 3: n_rounds = 9. Up",
        "The same in every run. &quot;Flat&quot;",
    ]

    joined = pd.read_csv(page.parent / "tables" / "numbers.csv", dtype=str, keep_default_na=False)
    # The table's own n_rounds means something else; its seed is the parameter.
    assert list(joined.columns) == ["run", "parameter_n_rounds", "seed", "n_rounds", "x"]
    assert joined.to_numpy().tolist() == [
        [run, n, "1", own, x] for run, n in (("1", "5"), ("3", "9")) for own, x in (("1", "0.10"), ("2", "NA"))
    ]
    claims = pd.read_csv(page.parent / "tables" / "claims.csv")
    assert list(claims.columns[:4]) == ["run", "n_rounds", "seed", "claim"]
    numbers = pd.read_csv(page.parent / "numbers.csv")
    assert numbers[numbers["number"] == "one_half"]["value"].tolist() == [2.5, 4.5]

    # A run is what `make chapter` makes of the same values: the same folder and the same execution.
    launched.clear()
    with monkeypatch.context() as patch:
        patch.setattr(build, "render_alone", lambda job, given, entry, *, out, **_: build.alone_folder(out, job, given))
        folder = build_chapter("01_one", "n_rounds=5 seed=1", book=tiny_book, out=out)
    assert (page.parent / links[0]).resolve().is_relative_to(folder)
    assert launched == []

    # The same command again executes only what failed, and renders no page that stands there.
    with monkeypatch.context() as patch:
        patch.setattr(build, "render_alone", None)
        patch.setattr(sweep, "write_page", lambda *_, **__: page)
        with pytest.raises(BuildError, match="seven"):
            run_sweep(path, book=tiny_book, out=out)
    assert launched == ["01_one-run-2"]
    assert "2 finished before" in capsys.readouterr().out

    visit = request.getfixturevalue("visit")
    for width in (1280, 390):
        browser_page, complaints = visit(page.as_uri(), width=width)
        assert complaints == []
        assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
        images = "[...document.querySelectorAll('.sweep-figures img')].map(image => image.naturalWidth)"
        assert all(size > 0 for size in browser_page.evaluate(images))


def test_an_interrupted_sweep_keeps_what_is_finished(tiny_book):
    mark = tiny_book / "mark"
    code = f"""if n_rounds == 7:
    import pathlib, time
    pathlib.Path({str(mark)!r}).touch()
    time.sleep(600)"""
    write_chapter(tiny_book, "01_one", code)
    out = tiny_book / "_build"
    path = _file(tiny_book, GOOD.replace("[1, 2]", "[1]"))
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pathlib; from book import sweep\n"
        f"book = pathlib.Path({str(tiny_book)!r})\n"
        "sweep.run_sweep.__kwdefaults__.update(book=book, out=book / '_build')\n"
        f"sys.exit(sweep.main([{str(path)!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 90
    while not (mark.exists() and list(out.rglob("01_one/*/run.json"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "interrupted; finished runs are kept, run the same command again to go on"
    assert "Traceback" not in said
    [finished] = out.rglob("01_one/*/run.json")
    assert json.loads(finished.read_text(encoding="utf-8"))["parameters"] == {"n_rounds": 5, "seed": 1}


def test_a_long_sweep_loses_none_of_its_own_runs(tmp_path):
    entries = [tmp_path / str(number) for number in range(build.KEPT_PER_CHAPTER + 5)]
    for entry in entries:
        entry.mkdir()
    build._prune(tmp_path, keep=entries)
    assert all(entry.is_dir() for entry in entries)
    build._prune(tmp_path, keep=[])
    assert len(list(tmp_path.iterdir())) == build.KEPT_PER_CHAPTER
