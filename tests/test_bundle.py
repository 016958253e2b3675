"""The download of a chapter: it runs from a bare folder, on what lies in it, and gives the book's numbers."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT

from book.bundle import read_files, write_bundle
from poq.chapters import list_chapters, read_parameters

CHAPTERS = list_chapters()
RUN = ("02_scores", "11_explorer")  # a chapter that reads more than the log, and one with markup of the package


@pytest.mark.parametrize("stem", CHAPTERS)
def test_a_chapter_offers_its_bundle(fast_book, stem):
    page = BeautifulSoup((fast_book / "chapters" / f"{stem}.html").read_text(encoding="utf-8"), "html.parser")
    [link] = page.select("article .poq-download a")
    assert link.get_text() == "Download this chapter"
    archive = zipfile.ZipFile((fast_book / "chapters" / link["href"]).resolve())
    names = {name.removeprefix(f"{stem}/") for name in archive.namelist()}
    assert len(names) == len(archive.namelist())
    assert {"README.md", "LICENSE", "pyproject.toml", "requirements.lock", f"book/chapters/{stem}.ipynb"} <= names
    committed = json.loads(CHAPTERS[stem].read_text(encoding="utf-8"))
    assert json.loads(archive.read(f"{stem}/book/chapters/{stem}.ipynb")) == committed
    parameters = read_parameters(CHAPTERS[stem])
    if "log" in parameters:
        assert f"book/data/{Path(parameters['log'].default).name}" in names
    # Every file that the code names is there: it is either made by the chapter or travels with it.
    for path in read_files(CHAPTERS[stem], ROOT / "book"):
        assert path.relative_to(ROOT).as_posix() in names
    for name in names:
        assert "__pycache__" not in name
        if (ROOT / name).is_file() and name not in ("README.md", f"book/chapters/{stem}.ipynb"):
            assert archive.read(f"{stem}/{name}") == (ROOT / name).read_bytes(), name


def test_a_file_beside_the_log_travels_with_it():
    names = {path.name for path in read_files(CHAPTERS["02_scores"], ROOT / "book")}
    assert names == {"score_log.csv.gz", "outputs.csv.gz"}


def test_the_same_files_give_the_same_bytes(tmp_path):
    source = CHAPTERS[RUN[0]]
    one = write_bundle(source, tmp_path / "one.zip", book=ROOT / "book")
    notebook = json.loads(source.read_text(encoding="utf-8"))
    book = tmp_path / "book"
    (book / "chapters").mkdir(parents=True)
    (book / "data").symlink_to(ROOT / "book" / "data")
    for cell in notebook["cells"]:  # a reader's saved outputs and a later time on the file change nothing
        if cell["cell_type"] == "code":
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "saved"}]
    copied = book / "chapters" / source.name
    copied.write_text(json.dumps(notebook), encoding="utf-8")
    other = write_bundle(copied, tmp_path / "other.zip", book=book)
    with zipfile.ZipFile(one) as first, zipfile.ZipFile(other) as second:
        inside = f"{source.stem}/book/chapters/{source.name}"
        assert first.read(inside) == second.read(inside)
    again = write_bundle(source, tmp_path / "again.zip", book=ROOT / "book")
    assert one.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("stem", RUN)
def test_a_bundle_runs_from_a_bare_folder_as_its_readme_says(fast_book, tmp_path, stem):
    with zipfile.ZipFile(fast_book / "downloads" / f"{stem}.zip") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / stem
    blocks = re.findall(r"```\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    make, lock, install = blocks[0].splitlines()
    changed = ("PYTHON", "POQ_", "JUPYTER", "VIRTUAL_ENV", "IPYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(changed)}

    def run(command: str) -> str:
        done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(make.replace("python3", sys.executable))
    # Instead of the locked packages from a registry, those of this environment; its own poq is not among them.
    assert lock.endswith("-m pip install --require-hashes -r requirements.lock")
    own = Path(run(".venv/bin/python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))'").strip())
    # A venv of Python 3.11 brings an old setuptools, which the lock replaces.
    for pattern in ("setuptools*", "_distutils_hack", "pkg_resources", "distutils-precedence.pth"):
        for path in own.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (own / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    run(install + " --no-index")
    where = run("cd book/chapters; ../../.venv/bin/python -c 'import poq; print(poq.__file__)'").strip()
    assert Path(where).is_relative_to(folder)

    parameters = json.loads((fast_book / "results" / stem / "claims.json").read_text(encoding="utf-8"))["parameters"]
    chosen = {name: value for name, value in parameters.items() if name != "log"}
    (folder / "parameters.yml").write_text(json.dumps(chosen), encoding="utf-8")
    steps = blocks[1].strip().replace("\n", " && ")
    run(f"{steps} -f ../../parameters.yml")

    made = folder / "book" / "chapters"
    tables = {path.name: path.read_text(encoding="utf-8") for path in (made / "results" / stem).glob("*.csv")}
    wanted = {path.name: path.read_text(encoding="utf-8") for path in (fast_book / "results" / stem).glob("*.csv")}
    assert tables == wanted
    assert "claims.csv" in tables
    record = json.loads((made / "results" / stem / "claims.json").read_text(encoding="utf-8"))
    assert record["parameters"] == parameters
    assert record["commit"] is None


def test_the_readme_of_a_bundle_names_what_is_there(tmp_path):
    for stem, source in CHAPTERS.items():
        with zipfile.ZipFile(write_bundle(source, tmp_path / f"{stem}.zip", book=ROOT / "book")) as archive:
            text = archive.read(f"{stem}/README.md").decode()
            names = archive.namelist()
        for name in re.findall(r"`((?:book/|LICENSE|requirements)[^`]*)`", text):
            if "run.ipynb" not in name and "results" not in name:
                assert f"{stem}/{name}" in names, name
        for name, value in re.findall(r"-p (\w+) (\w+)", text):
            assert name in read_parameters(source)
            assert value.isdigit()
        for name, parameter in read_parameters(source).items():
            assert f"- `{name}` " in text
            assert parameter.help in text
