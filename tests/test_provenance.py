"""Run records: what they hold, and that nothing in a notebook depends on the moment of its run."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest

from poq import provenance

FRAME = pd.DataFrame({"rule": ["mean", "median"], "rmse": [1 / 3, np.nan]})


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv(provenance.RESULTS, str(tmp_path / "results"))
    log = tmp_path / "log.csv"
    log.write_text("task\nqa\n", encoding="utf-8")
    return provenance.start("01_x", log=str(log), seed=0, shares=[0.1, 0.2])


def test_a_table_has_its_record_beside_it(run):
    provenance.save_table(run, FRAME, "errors", trials_asked=20, trials_done=20)
    back = pd.read_csv(run.folder / "errors.csv")
    pd.testing.assert_frame_equal(back, FRAME, check_exact=True, check_dtype=False)
    record = json.loads((run.folder / "errors.json").read_text(encoding="utf-8"))
    assert record["parameters"] == {"log": str(run.log), "seed": 0, "shares": [0.1, 0.2]}
    assert record["seed"] == 0
    assert (record["trials_asked"], record["trials_done"], record["rows"]) == (20, 20, 2)
    assert record["input"]["sha256"] == provenance.file_hash(run.log)
    assert {"commit", "dirty", "written"} <= set(record)
    assert record["versions"]["numpy"] == np.__version__
    assert sorted(path.name for path in run.folder.iterdir()) == ["errors.csv", "errors.json"]


def test_lost_trials_are_never_silent(run):
    with pytest.warns(UserWarning, match="errors rests on 19 of 20 trials"):
        provenance.save_table(run, FRAME, "errors", trials_asked=20, trials_done=19)


def test_a_named_index_is_kept_and_a_numbering_is_not(run):
    provenance.save_table(run, FRAME.set_index("rule"), "indexed")
    provenance.save_table(run, FRAME, "numbered")
    assert (run.folder / "indexed.csv").read_bytes() == (run.folder / "numbered.csv").read_bytes()


@pytest.mark.parametrize("name", ["../escape", "Upper", "", "a b", "x/y"])
def test_a_table_name_is_a_plain_stem(run, name):
    with pytest.raises(ValueError, match="table"):
        provenance.save_table(run, FRAME, name)


def test_a_chapter_opened_by_hand_writes_beside_itself(tmp_path, monkeypatch):
    monkeypatch.delenv(provenance.RESULTS, raising=False)
    monkeypatch.chdir(tmp_path)
    run = provenance.start("01_x", seed=1)
    assert run.folder == tmp_path / "results" / "01_x"
    assert run.log is None
    with pytest.raises(FileNotFoundError, match=r"log: no such file: nope\.csv"):
        provenance.start("01_x", log="nope.csv")


def test_glue_stores_plain_values(capsys):
    provenance.glue("key", np.float64(0.5))
    assert "key" not in capsys.readouterr().out
    assert repr(provenance.plain(np.float64(0.5))) == "0.5"
    assert provenance.plain({"a": np.arange(2), "b": (np.nan, np.int64(3)), "c": None}) == {
        "a": [0, 1],
        "b": [None, 3],
        "c": None,
    }


def test_the_code_state_is_that_of_this_project(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "poq" / "provenance.py"))
    assert provenance.code_state() == {"commit": None, "dirty": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except OSError:
        pytest.skip("git is not installed")
    (tmp_path / "poq").mkdir()
    (tmp_path / "poq" / "x.py").write_text("1\n", encoding="utf-8")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    state = provenance.code_state()
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "poq" / "x.py").write_text("2\n", encoding="utf-8")
    assert provenance.code_state()["dirty"] is True
