"""The workflow that tests and publishes: it runs the commands of the Makefile on the Pythons of pyproject.toml."""

import re
import tomllib

import pytest
import yaml
from conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEXT = (ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
FLOW = yaml.load(TEXT, Loader=yaml.BaseLoader)  # the base loader reads the key "on" as a text
STEPS = {name: job["steps"] for name, job in FLOW["jobs"].items()}


def _commands(steps):
    return [line.strip() for step in steps for line in step.get("run", "").splitlines() if line.strip()]


def test_every_command_is_a_target_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {
        name: re.findall(r"^make ([a-z-]+)$", "\n".join(_commands(steps)), re.MULTILINE)
        for name, steps in STEPS.items()
    }
    assert {target for used in named.values() for target in used} <= targets
    assert "test" in named["test"]
    assert {"book", "pdf"} <= set(named["book"])
    others = [line for steps in STEPS.values() for line in _commands(steps) if not line.startswith("make ")]
    assert others == ["cp book/_build/proof-of-quality.pdf book/_build/html/"]


def test_the_tests_run_on_every_python_that_the_package_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    low, below = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"].replace(" ", "")).groups()
    versions = [f"3.{minor}" for minor in range(int(low), int(below))]
    assert FLOW["jobs"]["test"]["strategy"]["matrix"]["python"] == versions
    used = [step["with"]["python-version"] for step in STEPS["book"] if "setup-python" in step.get("uses", "")]
    assert len(used) == 1
    assert set(used) <= set(versions)


def test_jobs_may_do_no_more_than_they_need():
    assert FLOW["permissions"] == {"contents": "read"}
    assert FLOW["concurrency"]["group"]
    more = {name: job["permissions"] for name, job in FLOW["jobs"].items() if "permissions" in job}
    assert more == {"publish": {"pages": "write", "id-token": "write"}}
    assert FLOW["jobs"]["publish"]["needs"] == "book"
    assert FLOW["jobs"]["book"]["needs"] == "test"
    assert "pull_request" in FLOW["jobs"]["publish"]["if"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_major_version(path):
    used = re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))
    assert used
    for name in used:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", name), name


def test_the_published_folder_is_the_one_that_make_book_fills():
    [upload] = [step for step in STEPS["book"] if "upload-pages-artifact" in step.get("uses", "")]
    from book.build import OUT

    assert ROOT / upload["with"]["path"] == OUT / "html"
