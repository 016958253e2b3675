"""Parameters of chapters: read from the notebooks, checked before anything runs."""

import pytest
from conftest import write_notebook

from poq.chapters import (
    ParameterError,
    check_parameters,
    check_together,
    find_chapter,
    list_chapters,
    parse_assignments,
    parse_parameters,
    read_parameters,
)

CELL = """
# a comment of its own
log: str = "../data/x.csv"  # the score log
n_rounds: int = 5_000  # rounds; # counts
n_nodes: int | None = None
malicious_shares: list[float] = [0, 0.5]  # shares
rules: list[str] | None = None  # rules
careful: bool = False
jitter = 1e-3  # no annotation: the literal tells
committees: list[int] = [
    3,
    5,
]  # sizes
"""


@pytest.fixture
def chapter(tmp_path):
    return write_notebook(tmp_path / "01_x.ipynb", ["# X", (CELL, {"tags": ["parameters"]}), ("y = 1", {})])


def test_names_types_defaults_and_meanings_are_read(chapter):
    found = read_parameters(chapter)
    assert {name: (entry.kind, entry.default, entry.help) for name, entry in found.items()} == {
        "log": ("str", "../data/x.csv", "the score log"),
        "n_rounds": ("int", 5000, "rounds; # counts"),
        "n_nodes": ("int | None", None, ""),
        "malicious_shares": ("list[float]", [0.0, 0.5], "shares"),
        "rules": ("list[str] | None", None, "rules"),
        "careful": ("bool", False, ""),
        "jitter": ("float", 0.001, "no annotation: the literal tells"),
        "committees": ("list[int]", [3, 5], "sizes"),
    }


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a: int = 1\nb: int = a + 1", "line 2: b must be a literal"),
        ("a: int = 2 ** 3", "line 1: a must be a literal"),
        ("import os", "line 1: only assignments"),
        ("a: int", "line 1: only assignments"),
        ("a: int = 1\n\na: int = 2", "line 3: a is assigned twice"),
        ("a: int = 1.5", "line 1: a must be int; got 1.5"),
        ("a: dict = {}", "line 1: a has the unknown type 'dict'"),
        ("a: list[int] = []", "line 1: a must not be empty"),
        ("a = (", "parameters cell"),
    ],
)
def test_a_bad_parameters_cell_is_named_with_its_line(source, said):
    with pytest.raises(ParameterError) as caught:
        parse_parameters(source, name="01_x.ipynb")
    assert said in str(caught.value)
    assert str(caught.value).startswith("01_x.ipynb")
    assert "\n" not in str(caught.value)


def test_a_notebook_needs_exactly_one_parameters_cell(tmp_path):
    tagged = ("a: int = 1", {"tags": ["parameters"]})
    for number, cells in enumerate(([("a = 1", {})], [tagged, tagged])):
        path = write_notebook(tmp_path / f"0{number}_x.ipynb", cells)
        with pytest.raises(ParameterError, match="exactly one code cell tagged 'parameters'"):
            read_parameters(path)
    (tmp_path / "03_x.ipynb").write_text("not json", encoding="utf-8")
    with pytest.raises(ParameterError, match=r"03_x\.ipynb: not a readable notebook"):
        read_parameters(tmp_path / "03_x.ipynb")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("n_rounds=20000", {"n_rounds": 20000}),
        ("n_rounds=20_000  n_nodes=none", {"n_rounds": 20000, "n_nodes": None}),
        ("n_nodes=7", {"n_nodes": 7}),
        ("jitter=1e-3", {"jitter": 0.001}),
        ("jitter=2", {"jitter": 2.0}),
        ("careful=true", {"careful": True}),
        ("malicious_shares=[0,.25,1]", {"malicious_shares": [0.0, 0.25, 1.0]}),
        ("rules=[mean, 'median'] careful=False", {"rules": ["mean", "median"], "careful": False}),
        ('log="my log.csv"', {"log": "my log.csv"}),
        ("log=a=b.csv", {"log": "a=b.csv"}),
        ("committees=[ 3 ]", {"committees": [3]}),
        ("", {}),
    ],
)
def test_values_are_read_as_their_type_says(chapter, text, wanted):
    kinds = {name: entry.kind for name, entry in read_parameters(chapter).items()}
    checked = check_parameters(chapter, parse_assignments(text, kinds))
    assert checked == wanted
    assert {name: type(value) for name, value in checked.items()} == {n: type(v) for n, v in wanted.items()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n_roundz=5", "01_x has no parameter 'n_roundz'; did you mean 'n_rounds'?"),
        ("zzz=5", "01_x has no parameter 'zzz'; known: log, n_rounds"),
        ("n_rounds=abc", "01_x: n_rounds must be int; got 'abc'"),
        ("n_rounds=1e4", "n_rounds must be int; got '1e4'"),
        ("n_rounds=true", "n_rounds must be int; got 'true'"),
        ("n_rounds=none", "n_rounds must be int; got 'none'"),
        ("n_rounds=", "n_rounds must be int; got ''"),
        ("n_rounds=0", "n_rounds must be at least 2; got 0"),
        ("n_rounds=-5", "n_rounds must be at least 2; got -5"),
        ("careful=1", "careful must be bool; got '1'"),
        ("jitter=nan", "jitter must be float; got nan"),
        ("jitter=-0.1", "jitter must be at least 0; got -0.1"),
        ("malicious_shares=0.3", "malicious_shares must be list[float], as in [3,5]; got '0.3'"),
        ("malicious_shares=[]", "malicious_shares must not be empty"),
        ("malicious_shares=[0.1,1.5]", "malicious_shares must be between 0 and 1; got 1.5"),
        ("committees=[3,0]", "committees must be at least 1; got 0"),
        ("committees=[3,4.5]", "committees must be list[int]"),
        ("rules=[mean,medain]", "rules: unknown rule 'medain'; did you mean 'median'?"),
        ("n_rounds", "'n_rounds' is not of the form name=value"),
        ("n_rounds=5 n_rounds=6", "parameter 'n_rounds' is given twice"),
        ("rules=[mean", "a quote or bracket is left open"),
    ],
)
def test_bad_values_end_with_one_line_that_names_them(chapter, text, said):
    kinds = {name: entry.kind for name, entry in read_parameters(chapter).items()}
    with pytest.raises(ParameterError) as caught:
        check_parameters(chapter, parse_assignments(text, kinds))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("search_rounds: int = 0", "search_rounds must be at least 1; got 0"),
        ("n_rounds: int = 0", "n_rounds must be at least 2; got 0"),
        ("trials: int = 0", "trials must be at least 1; got 0"),
        ("window_ends: list[int] = [0]", "window_ends must be at least 1; got 0"),
        ("wrong_shares: list[float] = [0.5, 2]", "wrong_shares must be between 0 and 1; got 2"),
        ("probabilities: list[float] = [-1]", "probabilities must be between 0 and 1; got -1"),
        ("world_committees: list[int] = [0]", "world_committees must be at least 1; got 0"),
        ("extreme_attacks: list[str] = ['bost']", "unknown attack 'bost'; did you mean 'boost'"),
        ("objectives: list[str] = ['eror']", "unknown objective 'eror'; did you mean 'error'"),
        ("cut: float = -1", "cut must be at least 0 and less than 0.5; got -1"),
        ("cut: float = 0.5", "cut must be at least 0 and less than 0.5; got 0.5"),
        ("rates: list[float] = [0.1, 2.0]", "rates must be at least 0 and less than 2; got 2.0"),
    ],
)
def test_a_name_is_known_in_the_plural_and_by_its_last_word(tmp_path, source, said):
    path = write_notebook(tmp_path / "01_x.ipynb", [(source, {"tags": ["parameters"]})])
    with pytest.raises(ParameterError, match="01_x") as caught:
        check_parameters(path, {})
    assert said in str(caught.value)


def test_other_names_are_the_authors_own(tmp_path):
    """A longer name that merely ends like a known one may mean anything."""
    own = {"effect_by": -1.0, "heat_rate": -2.0, "my_seed": -1, "nodes_left": 0, "first_round": 0, "per_round": False}
    own |= {"n_tasks": 2, "per_task": True, "shares_known": True}
    source = "\n".join(f"{name}: {type(value).__name__} = {value}" for name, value in own.items())
    path = write_notebook(tmp_path / "01_x.ipynb", [(source, {"tags": ["parameters"]})])
    assert check_parameters(path, {}) == {}
    check_together("01_x", own, {"qa": 9}, "my.csv")


@pytest.mark.parametrize("name", ["rule", "attack", "calibration"])
def test_choices_come_from_the_engine(name, tmp_path):
    source = f'{name}: str = "nonsense"'
    path = write_notebook(tmp_path / "01_x.ipynb", [(source, {"tags": ["parameters"]})])
    with pytest.raises(ParameterError, match=f"unknown {name} 'nonsense'"):
        check_parameters(path, {})


TASKS = {"qa": 9, "summarisation": 12}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"committee": 10}, "a committee of 10 is larger than the 9 evaluators of task 'qa' in my.csv"),
        ({"committees": [3, 13], "tasks": ["summarisation"]}, "a committee of 13 is larger than the 12 evaluators"),
        ({"committee": 8, "n_nodes": 7}, "a committee of 8 is larger than n_nodes=7"),
        ({"task": "qb"}, "task 'qb' is not in my.csv; known: qa, summarisation"),
        ({"tasks": ["qa", "summarization"]}, "task 'summarization' is not in my.csv; did you mean 'summarisation'?"),
        ({"search_task": "qb"}, "task 'qb' is not in my.csv"),
        ({"burn_in": 50, "n_rounds": 50}, "burn_in=50 leaves none of n_rounds=50"),
        ({"world_committees": [3, 21], "world_nodes": 20}, "world_committees of 21 is larger than world_nodes=20"),
        ({"world_committee": 21, "world_nodes": 20}, "world_committee of 21 is larger than world_nodes=20"),
        ({"low": 6.0, "high": 5.0}, "low=6.0 is above high=5.0"),
        ({"attacks": ["none"]}, "attacks must name another one than none"),
        ({"malicious_share": 0.05}, "malicious_share=0.05 of 9 nodes (task 'qa') is not one node; from 0.056 on it is"),
        ({"malicious_share": 0.05, "n_nodes": 7}, "of 7 nodes (task 'qa') is not one node; from 0.072 on it is"),
    ],
)
def test_values_must_fit_the_log(values, said):
    with pytest.raises(ParameterError) as caught:
        check_together("01_x", values, TASKS, "my.csv")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"committee": 9},
        {"committee": 12, "task": "summarisation"},
        {"committee": 40, "n_nodes": 50},
        {"world_committees": [3, 20], "world_nodes": 20, "synthetic_nodes": 4, "low": 1.0, "high": 1.0},
        {"low": None, "high": [1.0], "world_committee": None, "world_nodes": 3, "my_committees": [4], "my_nodes": [5]},
        {"committee": None, "tasks": None, "n_nodes": None},
        {"malicious_share": 0.072, "n_nodes": 7},
        {"malicious_share": 0.0},
        {},
    ],
)
def test_values_that_fit_the_log_pass(values):
    check_together("01_x", values, TASKS, "my.csv")
    check_together("01_x", {name: value for name, value in values.items() if name != "task"}, None, "")


def test_an_unknown_chapter_suggests_the_nearest(tmp_path):
    for stem in ("01_primer", "02_scores", "draft", "Untitled"):
        write_notebook(tmp_path / "chapters" / f"{stem}.ipynb", [])
    assert list(list_chapters(tmp_path)) == ["01_primer", "02_scores"]
    with pytest.raises(ParameterError, match="unknown chapter '02_score'; did you mean '02_scores'"):
        find_chapter("02_score", tmp_path)
    with pytest.raises(ParameterError, match="unknown chapter ''; known: 01_primer, 02_scores"):
        find_chapter("", tmp_path)
