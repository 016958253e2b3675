"""The project as a whole: files that must agree, and what must never be committed."""

import doctest
import itertools
import json
import os
import re
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import poq
from poq.chapters import list_chapters, read_parameters

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHAPTERS = list_chapters()


def _tracked() -> list[Path]:
    """Files that git tracks; where there is no git, everything that is not built or installed."""
    try:
        listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True, text=True)
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        skipped = {
            ".venv",
            ".venv-models",
            ".venv-peers",
            ".git",
            "_build",
            "__pycache__",
            ".pytest_cache",
            ".ruff_cache",
        } | {".hypothesis"}
        files = [path for path in ROOT.rglob("*") if not skipped & set(path.relative_to(ROOT).parts)]
        files = [path for path in files if ".egg-info" not in str(path)]
    return [path for path in files if path.is_file()]


def _requirements() -> set[str]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return {_normal(line) for group in groups for line in group if not line.startswith(PROJECT["name"])}


def _normal(requirement: str) -> str:
    return requirement.replace(" ", "").lower()


def test_conda_users_get_what_pyproject_says():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    listed = {_normal(entry) for entry in [*plain, *pip]}
    python = {entry for entry in listed if re.match(r"python[<>=]", entry)}
    assert python == {f"python{PROJECT['requires-python'].replace(' ', '')}"}
    assert listed - python - {"pip", "-e."} == _requirements() - _heavy()
    assert "-e." in listed


def _heavy() -> set[str]:
    """Extras that neither the book nor its tests need."""
    needed = PROJECT["optional-dependencies"]["dev"][0].partition("[")[2].partition("]")[0].split(",")
    kept = {"dev", *needed}
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in kept}
    used = {_normal(line) for name in kept for line in PROJECT["optional-dependencies"][name]}
    return {_normal(line) for lines in extras.values() for line in lines} - used


def test_the_lock_holds_every_requirement_with_hashes():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([a-z0-9_.-]+)==", text, flags=re.MULTILINE))
    names = {re.split(r"[<>=\[]", requirement)[0] for requirement in _requirements() - _heavy()}
    assert {name.replace("_", "-") for name in names} <= {name.replace("_", "-") for name in pinned}
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)
    assert all("--hash=sha256:" in block for block in blocks if "==" in block.partition("\n")[0])


def test_no_registry_address_is_committed():
    words = [r"pypi\.org", r"files\.pythonhosted\.org", r"--(extra-)?index-url", r"/simple/", r"conda\.anaconda\.org"]
    pattern = re.compile("|".join(words))
    allowed = {ROOT / "tests" / "test_project.py"}
    for path in _tracked():
        if path in allowed or path.suffix in {".gz", ".parquet", ".png"}:
            continue
        found = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
        assert found is None, f"{path.relative_to(ROOT)}: {found.group()}"


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    if path not in _tracked():
        pytest.skip("not committed")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identities)) == len(identities)
    assert not any({"papermill", "execution"} & set(cell["metadata"]) for cell in notebook["cells"])


@pytest.mark.parametrize("stem", CHAPTERS)
def test_a_chapter_has_its_parts(stem):
    notebook = json.loads(CHAPTERS[stem].read_text(encoding="utf-8"))
    prose = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    headings = re.findall(r"^(#+) (.+)$", prose, flags=re.MULTILINE)
    levels = [len(marks) for marks, _ in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert [title for _, title in headings][-2:] == ["Claims checked", "Limits"]
    for parameter in read_parameters(CHAPTERS[stem]).values():
        assert parameter.help, f"{parameter.name} has no meaning beside it"
    for cell in notebook["cells"]:
        figure = cell["metadata"].get("mystnb", {})
        if "figure" in figure:
            assert figure["figure"]["caption"]
            assert figure["image"]["alt"]


def test_the_readme_does_what_it_says():
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False, verbose=False)
    assert result.attempted >= 5
    assert result.failed == 0


def test_the_readme_names_chapters_and_commands_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "book" / "howto.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
    assert set(re.findall(r"CHAPTER=(\d\w+)", text)) <= set(CHAPTERS)
    for name in re.findall(r"\]\(((?:book|poq|LICENSE|CITATION)[^)#]*)\)", text):
        assert (ROOT / name).exists(), name


def test_make_lists_its_commands():
    done = subprocess.run(["make", "-C", ROOT, "-s"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    listed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("make ")}
    building = {"help", "setup", "book", "pdf", "chapter"}
    assert listed == building | {"test", "test-models", "sweep", "study", "lab", "workload", "bench", "peers", "clean"}
    assert all(len(line.split()) > 2 for line in done.stdout.splitlines() if line.startswith("make "))


def test_the_citation_file_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["license"] == ["MIT", "CC-BY-4.0"]


@pytest.mark.parametrize("version", ["2.7", "3.10", "3.14"])
def test_set_up_refuses_another_python_in_one_line(tmp_path, version):
    fake = tmp_path / "python-fake"
    fake.write_text(f"#!/bin/sh\necho {version}\n", encoding="utf-8")
    fake.chmod(0o755)
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("setup.sh", "Makefile", "pyproject.toml", "requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    for python, said in ((str(fake), f"is {version}; name another"), ("no-such-python", "cannot be run")):
        done = subprocess.run(
            ["sh", "setup.sh"],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "PYTHON": python},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (folder / ".venv").exists()


def test_compiled_code_that_is_older_than_the_package_is_dropped(tmp_path):
    compiled = tmp_path / "__pycache__"
    compiled.mkdir()
    ages = {tmp_path / "old.py": 300, tmp_path / "changed.py": 100}
    ages |= {compiled / f"{age}.{end}": age for age in (200, 50) for end in ("nbi", "nbc", "pyc")}
    for path, age in ages.items():
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    poq._drop_stale_code(tmp_path)
    assert {path.name for path in compiled.iterdir()} == {"200.pyc", "50.nbc", "50.nbi", "50.pyc"}
