"""The package's own README: its code runs as it stands, and what it says of names and numbers is so."""

import importlib
import inspect
import json
import re

import pytest
from conftest import ROOT

from poq import metrics, simulate
from poq.aggregators import AGGREGATORS
from poq.attacks import ATTACKS

README = (ROOT / "poq" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def mappings():
    """The mappings as they were, whatever a block adds to them."""
    kept = [(mapping, dict(mapping)) for mapping in (AGGREGATORS, ATTACKS)]
    yield
    for mapping, before in kept:
        mapping.clear()
        mapping.update(before)


def test_a_rule_and_an_attack_in_fifteen_lines(mappings):
    assert len([line for line in BLOCKS[0].splitlines() if line]) == 15
    names = {"__name__": "__main__"}
    exec(BLOCKS[0], names)
    frame = names["frame"]
    assert len(frame) == 40
    rmse = frame.groupby(["rule", "malicious_share"])["rmse"].mean()
    assert rmse["midrange", 0.3] > rmse["midrange", 0.0]  # the attack bites
    assert rmse["midrange", 0.3] != rmse["mean", 0.3]  # and the rule is not the mean
    assert frame.loc[frame["malicious_share"] == 0.0, "attack_shift_all"].eq(0).all()

    # The case is one line of JSON, and right for the scores of its file.
    name, expected = re.search(r'```json\n"(\w+)": "(\d+)"\n```', README).groups()
    scores = json.loads((ROOT / "tests" / "cases" / "k5.json").read_text(encoding="utf-8"))["scores"]
    assert ", ".join(map(str, scores)) in README
    assert AGGREGATORS[name](scores) == float(expected)


def test_the_cluster_example_uses_what_is_there():
    distributed = pytest.importorskip("distributed")
    [block] = BLOCKS[1:]
    compile(block, "README.md", "exec")
    assert hasattr(distributed.Client, "get_executor")
    keywords = inspect.signature(simulate.run).parameters
    assert set(re.findall(r"(\w+)=", block)) <= set(keywords)


def test_names_of_the_street_exist():
    rows = re.findall(r"^\| [\w ]+ \| (`.+?`) \| (.+) \|$", README, flags=re.MULTILINE)
    assert len(rows) == 7
    for modules, given in rows:
        found = [importlib.import_module(f"poq.{name}") for name in re.findall(r"`(\w+)`", modules)]
        for name in re.findall(r"`(\w+)`", given):
            assert any(hasattr(module, name) for module in found), name


def test_the_histogram_is_as_fine_as_stated():
    assert f"{metrics.RANK_BINS:,} bins of {10 / metrics.RANK_BINS:.4f} points" in README
