"""The score log: what is read, what is refused and how, calibration, reliability."""

import gzip
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from generators import dense_log, gappy_log, score_logs
from hypothesis import HealthCheck, given, settings
from scipy import stats

from poq.importing import read_table
from poq.matrix import best_evaluator, correlations
from poq.scorelog import (
    ScoreLogError,
    check_log,
    read_score_log,
    reference_free,
    reliability,
    score_matrix,
    tasks,
    weighted_correlation,
    with_truth,
)
from poq.simulate import Scenario, run
from poq.synthetic import synthetic_log

HEADER = "task,item,model,evaluator,score,truth\n"
GOOD = ["qa,1,m,e,1,2", "qa,1,m,f,3,2", "qa,2,m,e,4,5"]
REAL = Path(os.environ.get("POQ_REAL_LOGS", Path(__file__).resolve().parent.parent / ".." / "shared" / "data"))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def csv(*rows):
    return HEADER + "\n".join(rows) + "\n"


def frame(**columns):
    return pd.DataFrame(
        {
            "task": "qa",
            "item": ["1", "1", "2"],
            "model": "m",
            "evaluator": ["e", "f", "e"],
            "score": [1.0, 3.0, 4.0],
            "truth": [2.0, 2.0, 5.0],
            **columns,
        }
    )


# --- what is refused ---

BAD_ROWS = {
    "missing column": (csv(*GOOD).replace("score", "scores"), "score"),
    "other separator": (csv(*GOOD).replace(",", ";"), "semicolons"),
    "header only": (HEADER, "no rows"),
    "header without an end": (HEADER.strip(), ""),
    "two columns of one name": (csv(*GOOD).replace("item,model", "item,item"), "duplicate"),
    "duplicate row": (csv(*GOOD, GOOD[1]), "duplicate"),
    "duplicate cell with another score": (csv(*GOOD, "qa,1,m,f,9,2"), "duplicate"),
    "duplicate far away": (csv(*[f"qa,{i},m,e,1,2" for i in range(500)], "qa,0,m,e,1,2"), "duplicate"),
    "no truth": (csv(*GOOD, "qa,3,m,e,1,"), "truth"),
    "NaN truth": (csv(*GOOD, "qa,3,m,e,1,nan"), "truth"),
    "text truth": (csv(*GOOD, "qa,3,m,e,1,good"), "truth"),
    "infinite truth": (csv(*GOOD, "qa,3,m,e,1,-inf"), "truth"),
    "text score": (csv(*GOOD, "qa,3,m,e,good,1"), "score"),
    "NA score": (csv(*GOOD, "qa,3,m,e,NA,1"), "score"),
    "decimal comma": (csv(*GOOD, 'qa,3,m,e,"1,5",1'), "score"),
    "digits with underscores": (csv(*GOOD, "qa,3,m,e,1_000,1"), "score"),
    "true": (csv(*GOOD, "qa,3,m,e,True,1"), "score"),
    "infinite score": (csv(*GOOD, "qa,3,m,e,inf,1"), "score"),
    "overflowing score": (csv(*GOOD, "qa,3,m,e,1e999,1"), "score"),
    "truth differs within an output": (csv(*GOOD, "qa,2,m,f,1,5.5"), "truth"),
    "blank task": (csv(*GOOD, ",3,m,e,1,2"), "task"),
    "blank item": (csv(*GOOD, "qa,,m,e,1,2"), "item"),
    "item of spaces": (csv(*GOOD, "qa,   ,m,e,1,2"), "item"),
    "blank model": (csv(*GOOD, "qa,3,,e,1,2"), "model"),
    "blank evaluator": (csv(*GOOD, "qa,3,m,,1,2"), "evaluator"),
    "zero byte in a key": (csv(*GOOD, "qa,3\x00,m,e,1,2"), "item"),
    "text cost": (HEADER.strip() + ",cost\n" + GOOD[0] + ",cheap\n", "cost"),
    "infinite cost": (HEADER.strip() + ",model_cost\n" + GOOD[0] + ",inf\n", "model_cost"),
    "too many fields": (csv(*GOOD, "qa,3,m,e,1,2,3"), ""),
    "too few fields": (csv(*GOOD, "qa,3,m,e,1"), ""),
    "open quote": (csv(*GOOD, 'qa,"3,m,e,1,2'), ""),
    "not UTF-8": (csv(*GOOD).replace("qa", "qä").encode("latin-1"), ""),
    "header not UTF-8": (csv(*GOOD).replace("score", "scöre").encode("latin-1"), ""),
    "UTF-16": (csv(*GOOD).encode("utf-16"), ""),
    "binary": (bytes(range(256)) * 20, ""),
    "blank lines only": ("\n\n\n", ""),
}


@pytest.mark.parametrize("kind", [".csv", ".csv.gz"])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_csv(tmp_path, name, kind):
    """Exactly ScoreLogError, which names the file, and the column or `duplicate`, in one line."""
    content, part = BAD_ROWS[name]
    content = content if isinstance(content, bytes) else content.encode("utf-8")
    path = write(tmp_path / f"log{kind}", gzip.compress(content) if kind.endswith("gz") else content)
    with pytest.raises(ScoreLogError) as caught:
        read_score_log(path)
    assert type(caught.value) is ScoreLogError
    message = str(caught.value)
    assert part in message.replace(str(path), "")
    assert str(path) in message
    assert "\n" not in message


BAD_COLUMNS = {
    "missing column": (lambda log: log.drop(columns="truth"), "truth"),
    "duplicate row": (lambda log: pd.concat([log, log[:1]]), "duplicate"),
    "NaN truth": (lambda log: log.assign(truth=[2.0, 2.0, np.nan]), "truth"),
    "infinite truth": (lambda log: log.assign(truth=[2.0, 2.0, np.inf]), "truth"),
    "text score": (lambda log: log.assign(score=["1", "2", "x"]), "score"),
    "infinite score": (lambda log: log.assign(score=[1, -np.inf, 2]), "score"),
    "dates for scores": (lambda log: log.assign(score=pd.to_datetime(["2020", "2021", "2022"])), "score"),
    "truth differs": (lambda log: log.assign(truth=[2.0, 2.1, 3.0]), "truth"),
    "no item": (lambda log: log.assign(item=[1.0, 1.0, np.nan]), "item"),
    "empty item": (lambda log: log.assign(item=["1", "1", ""]), "item"),
    "item of lists": (lambda log: log.assign(item=[[1], [1], [2]]), "item"),
    "item of bytes": (lambda log: log.assign(item=[b"1", b"1", b"2"]), "item"),
    "no rows": (lambda log: log[:0], "no rows"),
}


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_bad_parquet(tmp_path, name):
    change, part = BAD_COLUMNS[name]
    change(frame()).to_parquet(tmp_path / "log.parquet")
    with pytest.raises(ScoreLogError) as caught:
        read_score_log(tmp_path / "log.parquet")
    assert type(caught.value) is ScoreLogError
    assert part in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet"])
@pytest.mark.parametrize("content", [b"", b"PAR1 or not", gzip.compress(b"")[:12], gzip.compress(b"PAR1")], ids=len)
def test_bad_file(tmp_path, name, content):
    with pytest.raises(ScoreLogError):
        read_score_log(write(tmp_path / name, content))


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_cut_off_files(tmp_path, kept):
    log = dense_log(n_items=200)
    log.to_parquet(tmp_path / "log.parquet")
    log.to_csv(tmp_path / "log.csv.gz", index=False)
    for path in [tmp_path / "log.parquet", tmp_path / "log.csv.gz"]:
        content = path.read_bytes()
        with pytest.raises(ScoreLogError):
            read_score_log(write(path, content[: int(kept * len(content))]))


def test_folder_unknown_ending_and_absent_file(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    write(tmp_path / "log.txt", csv(*GOOD))
    write(tmp_path / "log", csv(*GOOD))
    for name in ("folder.csv", "log.txt", "log"):
        with pytest.raises(ScoreLogError) as caught:
            read_score_log(tmp_path / name)
        assert name in str(caught.value)
    for name in ("absent.csv", "absent.txt"):
        with pytest.raises(FileNotFoundError, match="absent"):
            read_score_log(tmp_path / name)
    with pytest.raises(ScoreLogError, match="str"):
        check_log("log.csv")


def test_message_names_the_row(tmp_path):
    """Rows count from 1, the header aside."""
    with pytest.raises(ScoreLogError, match="row 4"):
        read_score_log(write(tmp_path / "log.csv", csv(*GOOD, "qa,3,m,e,x,1")))
    with pytest.raises(ScoreLogError, match="rows 2 and 4"):
        read_score_log(write(tmp_path / "log.csv", csv(*GOOD, GOOD[1])))


# --- what is read ---


def test_names_stay_names(tmp_path):
    """Only an empty score is a missing cell; no name is taken for one, and numbers in key columns become text."""
    names = ["NA", "nan", "None", "null", "N/A", "007", "1e5", "True", " x ", "-inf"]
    log = read_score_log(write(tmp_path / "log.csv", csv(*[f"{name},{name},{name},{name},,1" for name in names])))
    for column in ("task", "item", "model", "evaluator"):
        assert log[column].tolist() == names
    assert log["score"].isna().all()
    frame(item=[1, 1, 2], task=[7, 7, 7]).to_parquet(tmp_path / "log.parquet")
    assert read_score_log(tmp_path / "log.parquet")["item"].tolist() == ["1", "1", "2"]
    frame(item=pd.Categorical(["b", "b", "a"])).to_parquet(tmp_path / "log.parquet")
    assert read_score_log(tmp_path / "log.parquet")["item"].tolist() == ["b", "b", "a"]
    assert tasks(check_log(frame(task=[3, 3, 3]))) == ["3"]


def test_one_name_in_two_types_is_one_name():
    """1 and "1" read the same, so these rows are duplicates."""
    with pytest.raises(ScoreLogError, match="duplicate"):
        check_log(frame(item=[1, "1", "2"], evaluator="e"))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: (text + "\n\n").encode(),
        lambda text: text.replace("qa", '"qa"').encode(),
    ],
    ids=["byte order mark", "CRLF", "no last newline", "blank lines", "quotes"],
)
def test_dialects_of_csv(tmp_path, change):
    plain = read_score_log(write(tmp_path / "plain.csv", csv(*GOOD)))
    pd.testing.assert_frame_equal(read_score_log(write(tmp_path / "log.csv", change(csv(*GOOD)))), plain)


def test_quoted_commas_quotes_and_newlines(tmp_path):
    path = write(tmp_path / "log.csv", csv('qa,"a, ""b""\nc",m,e,1,2', "qa,2,m,e,3,4"))
    assert read_score_log(path)["item"].tolist() == ['a, "b"\nc', "2"]


def test_newlines_in_a_file_of_many_blocks(tmp_path):
    """6 MB of names with line breaks: a reader that cuts blocks at any line break would tear rows apart."""
    rows = [f'qa,"{i}\n{"long " * 30}\n",m,e,{i},2' for i in range(36_000)]
    log = read_score_log(write(tmp_path / "log.csv", csv(*rows)))
    assert log["score"].tolist() == list(range(36_000))
    assert log["item"].str.count("\n").eq(2).all()


def test_further_columns_and_row_order_are_kept(tmp_path):
    text = HEADER.strip() + ",note,cost\n" + "qa,2,m,e,4,5,NA,\nqa,1,m,e,1,2,x,0.5\n"
    log = read_score_log(write(tmp_path / "log.csv", text))
    assert log["item"].tolist() == ["2", "1"]
    assert log["note"].tolist() == ["NA", "x"]
    np.testing.assert_array_equal(log["cost"], [np.nan, 0.5])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(log=score_logs())
def test_csv_gzip_and_parquet_hold_the_same_log(tmp_path, log):
    paths = [tmp_path / name for name in ("log.csv", "log.csv.gz", "log.CSV.GZ", "log.parquet")]
    for path in paths[:2]:
        log.to_csv(path, index=False, lineterminator="\n", compression="infer")
    paths[2].write_bytes(paths[1].read_bytes())
    log.to_parquet(paths[3])
    before = log.copy(deep=True)
    for path in paths:
        pd.testing.assert_frame_equal(read_score_log(path), check_log(log), check_dtype=False)
    pd.testing.assert_frame_equal(log, before)


def test_large_log(tmp_path):
    """300,000 rows, half of the evaluators far apart in the file."""
    n_outputs, evaluators = 5000, 60
    rng = np.random.default_rng(0)
    log = pd.DataFrame(
        {
            "task": "qa",
            "item": np.repeat(np.arange(n_outputs), evaluators),
            "model": "m",
            "evaluator": np.tile([f"e{e}" for e in range(evaluators)], n_outputs),
            "score": rng.normal(size=n_outputs * evaluators),
            "truth": np.repeat(rng.normal(size=n_outputs), evaluators),
        }
    ).sample(frac=1, random_state=0)
    log.to_csv(tmp_path / "log.csv.gz", index=False, compression={"method": "gzip", "compresslevel": 1})
    read = read_score_log(tmp_path / "log.csv.gz")
    assert len(read) == 300_000
    matrix = score_matrix(read, task="qa", calibration="rank")
    assert matrix.values.shape == (n_outputs, evaluators)
    np.testing.assert_allclose(matrix.values.mean(axis=0), 5)


# --- calibration ---

SCORES = [[-3.0, 10.0], [1.0, np.nan], [5.0, 30.0], [1.0, 20.0]]  # by item and evaluator
TRUTH = [0.2, 0.4, 0.6, 0.3]


def small_log():
    rows = [
        ("qa", f"i{i}", "m", f"e{e}", SCORES[i][e], TRUTH[i], 2.0 + e, [1.0, 2.0, np.nan, 6.0][i])
        for i in (2, 0, 3, 1)
        for e in (1, 0)
    ]
    return pd.DataFrame(
        rows, columns=["task", "item", "model", "evaluator", "score", "truth", "cost", "model_cost"]
    ).pipe(lambda log: pd.concat([log, log.assign(task="other", score=7.0, truth=99.0)]))


@pytest.mark.parametrize(
    ("calibration", "expected"),
    [
        ("minmax", [[0, 0], [5, np.nan], [10, 10], [5, 5]]),
        ("rank", [[0, 0], [5, np.nan], [10, 10], [5, 5]]),
        ((-5, 35), [[0.5, 3.75], [1.5, np.nan], [2.5, 8.75], [1.5, 6.25]]),
        ({"e0": (-3, 5), "e1": (0, 40)}, [[0, 2.5], [5, np.nan], [10, 7.5], [5, 5]]),
    ],
    ids=["minmax", "rank", "range", "range per evaluator"],
)
def test_calibration_by_hand(calibration, expected):
    """Task by task, evaluator by evaluator; a missing cell stays missing."""
    matrix = score_matrix(small_log(), task="qa", calibration=calibration)
    np.testing.assert_allclose(matrix.values, expected, atol=1e-12)
    np.testing.assert_allclose(matrix.truth, [0, 5, 10, 2.5])
    assert (matrix.evaluators, matrix.items, matrix.models) == (("e0", "e1"), ("i0", "i1", "i2", "i3"), ("m",))


def test_rank_calibration_gives_midranks():
    log = pd.DataFrame({"task": "t", "item": list("abcde"), "model": "m", "evaluator": "e", "truth": range(5)})
    matrix = score_matrix(log.assign(score=[3.0, -1e6, 3.0, 1e9, 2.0]), task="t", calibration="rank")
    np.testing.assert_allclose(matrix.values[:, 0], [6.25, 0, 6.25, 10, 2.5])


def test_truth_range_and_costs_by_hand():
    matrix = score_matrix(small_log(), task="qa", truth_range=(0, 1))
    np.testing.assert_allclose(matrix.truth, [2, 4, 6, 3])
    np.testing.assert_allclose(matrix.evaluator_cost, [2, 3])
    np.testing.assert_allclose(matrix.model_cost, [3.0])


def test_matrix_places_every_cell():
    """Each cell of the matrix belongs to the row of the log that its names say, in any order of rows."""
    log = gappy_log()
    matrix = score_matrix(log, task="qa", calibration=(-100, 100), truth_range=(0, 10))
    shuffled = score_matrix(log.sample(frac=1, random_state=3), task="qa", calibration=(-100, 100), truth_range=(0, 10))
    np.testing.assert_array_equal(matrix.values, shuffled.values)
    found = {
        (matrix.items[i], matrix.models[m], matrix.evaluators[e]): (matrix.values[o, e], matrix.truth[o])
        for o, (i, m) in enumerate(zip(matrix.item, matrix.model))
        for e in range(len(matrix.evaluators))
        if not np.isnan(matrix.values[o, e])
    }
    rows = log[(log["task"] == "qa") & log["score"].notna()]
    assert len(found) == len(rows)
    for row in rows.itertuples():
        value, truth = found[row.item, row.model, row.evaluator]
        assert value == pytest.approx((row.score + 100) / 20)
        assert truth == pytest.approx(row.truth)


def test_heavy_tails_and_huge_scores_lose_no_cell():
    log = frame(item=list("123"), evaluator="e", truth=[1.0, 2.0, 3.0], score=[-1.7e308, 0.0, 1.7e308])
    np.testing.assert_allclose(score_matrix(log, task="qa").values[:, 0], [0, 5, 10])
    tiny = score_matrix(log.assign(score=[0.0, 5e-324, 1e-323]), task="qa").values[:, 0]
    np.testing.assert_allclose(tiny, [0, 5, 10])


def test_constant_evaluator_warns_and_calibrates_to_5():
    log = dense_log()
    log.loc[log["evaluator"] == "e3", "score"] = 0.37
    for calibration in ("minmax", "rank"):
        with pytest.warns(UserWarning, match="'e3'"):
            matrix = score_matrix(log, task="qa", calibration=calibration)
        assert (matrix.values[:, 3] == 5).all()
        assert np.isnan(correlations(matrix)[3])
    stated = score_matrix(log, task="qa", calibration=(0, 10))
    assert (stated.values[:, 3] == 0.37).all()
    assert np.isnan(correlations(stated)[3])
    assert best_evaluator(stated) != 3


def test_constant_truth_calibrates_to_5():
    matrix = score_matrix(dense_log().assign(truth=3.3), task="qa")
    assert (matrix.truth == 5).all()
    assert np.isnan(correlations(matrix)).all()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"task": "zz"}, "zz"),
        ({"calibration": "zscore"}, "zscore"),
        ({"calibration": (3, 3)}, "calibration"),
        ({"calibration": (0, np.inf)}, "calibration"),
        ({"calibration": 7}, "calibration"),
        ({"calibration": {"e0": (-3, 5)}}, "e1"),
        ({"calibration": (0, 35)}, "e0"),
        ({"truth_range": (0, 0.5)}, "truth"),
        ({"truth_range": "ab"}, "truth_range"),
    ],
)
def test_bad_calibration(options, part):
    """A value outside a stated range is an error, not clipped in silence."""
    with pytest.raises(ValueError, match=part):
        score_matrix(small_log(), **{"task": "qa", **options})


# --- another truth, fewer evaluators ---


def test_with_truth():
    log = small_log().assign(human=[1.0, 1.0, 2.0, 2.0, np.nan, np.nan, 3.0, 3.0] * 2)
    other = with_truth(log, "human")
    assert len(other) == 12
    assert sorted(other["truth"].unique()) == [1, 2, 3]
    for bad, part in [(log.drop(columns="human"), "human"), (log.assign(human="x"), "human")]:
        with pytest.raises(ScoreLogError, match=part):
            with_truth(bad, "human")


@pytest.mark.parametrize("marks", [(True, False), ("True", "false"), (1, 0), ("yes", "No ")])
def test_reference_free(marks):
    log = small_log()
    log["reference_based"] = log["evaluator"].map({"e0": marks[0], "e1": marks[1]})
    assert set(reference_free(log)["evaluator"]) == {"e1"}
    for bad in [log.assign(reference_based="maybe"), log.assign(reference_based=True), small_log()]:
        with pytest.raises(ScoreLogError, match="reference_based"):
            reference_free(bad)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("reference_based", "Y?", "'reference_based' is neither true nor false in row 2: 'Y?'"),
        ("reference_based", None, "'reference_based' is neither true nor false in row 2"),
        ("truth_alt", "0,5", "'truth_alt' is not a number in row 2: '0,5'"),
    ],
)
def test_columns_that_chapters_read_are_not_lost_in_silence(column, value, said):
    good = {"reference_based": "true", "truth_alt": "0.5"}[column]
    log = small_log().assign(**{column: good})
    assert check_log(log)[column].tolist() == [good] * len(log)
    log.loc[1, column] = value
    with pytest.raises(ScoreLogError, match=re.escape(said)):
        check_log(log)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task;item;model;evaluator;score;truth\nqa;1;a;e;0,5;1\n".encode("utf-8-sig"), "separated by semicolons"),
        ("task,item\nqa,1\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_what_spreadsheets_write_is_named(tmp_path, content, said):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    for read in (read_score_log, read_table):
        with pytest.raises(ScoreLogError, match=f"^{path}: .*{said}"):
            read(path)


@pytest.mark.parametrize(("outlier", "warned"), [(10.0, 0), (1e3, 0), (1e5, 1)])
def test_scores_parked_by_an_outlier_are_named(outlier, warned):
    log = synthetic_log(np.random.default_rng(0), n_items=60, n_models=4, evaluators=3)
    log.loc[log.index[log["evaluator"] == "evaluator-001"][0], "score"] = outlier
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        score_matrix(log, task="synthetic")
        score_matrix(log, task="synthetic", calibration="rank")
        score_matrix(log.round(0), task="synthetic")  # few distinct scores are what they are
    assert [str(one.message).partition(":")[0] for one in caught] == ["evaluator 'evaluator-001'"] * warned


# --- reliability ---


@pytest.mark.parametrize(("method", "kind"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_reliability_equals_scipy(method, kind):
    log = gappy_log()
    found = reliability(log, method=method, n_boot=50).set_index(["task", "evaluator"])
    assert len(found) == 11
    for (task, evaluator), row in found.iterrows():
        cells = log[(log["task"] == task) & (log["evaluator"] == evaluator) & log["score"].notna()]
        assert row["n"] == len(cells)
        assert row["correlation"] == pytest.approx(kind(cells["score"], cells["truth"]).statistic, abs=1e-9)
        assert row["low"] < row["correlation"] < row["high"]


@pytest.mark.parametrize(("method", "kind"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_weighted_correlation_is_that_of_repeated_cases(method, kind):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
    times = rng.integers(0, 4, (20, 40))
    expected = [kind(np.repeat(x, n), np.repeat(y, n)).statistic for n in times]
    np.testing.assert_allclose(weighted_correlation(x, y, times, method=method), expected, atol=1e-12)


def test_reliability_resamples_whole_items():
    """Copies of an item add no information: the interval is as wide as without them."""
    log = dense_log(n_models=1, n_items=40, n_evaluators=2)
    copied = pd.concat([log.assign(model=f"m{copy}") for copy in range(5)])
    one, five = (reliability(part, n_boot=400, seed=2) for part in (log, copied))
    pd.testing.assert_frame_equal(one.drop(columns="n"), five.drop(columns="n"))


def test_reliability_seed_and_no_resample():
    log = dense_log()
    first, again, other = (reliability(log, n_boot=60, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert (first["low"] != other["low"]).any()
    assert reliability(log, n_boot=0)[["low", "high"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="kendall"):
        reliability(log, method="kendall")
    with pytest.raises(ValueError, match="n_boot"):
        reliability(log, n_boot=-1)


def test_undefined_reliability_is_nan():
    log = dense_log(n_evaluators=3)
    log.loc[log["evaluator"] == "e0", "score"] = 0.1
    log.loc[log["evaluator"] == "e1", "score"] = np.nan
    found = reliability(log, n_boot=20).set_index("evaluator")
    assert found.loc[["e0", "e1"], ["correlation", "low", "high"]].isna().all(axis=None)
    assert found.loc["e1", "n"] == 0
    assert found.loc["e2"].notna().all()


def test_reliability_interval_covers_the_truth():
    """60 worlds of 80 items whose true correlation is known: a 95 % interval misses it in few of them."""
    noise = 1.5
    true = 2 / np.hypot(2, noise)  # truth s.d. 2, no clipping to speak of
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        log = synthetic_log(rng, n_items=80, n_models=2, model_sd=0, truth_sd=2, evaluators={"e": {"noise": noise}})
        z = rng.standard_normal((80, 2))  # the same world without clipping
        log = log.assign(truth=(5 + 2 * z).ravel(), score=(5 + 2 * z + noise * rng.standard_normal((80, 2))).ravel())
        row = reliability(log, n_boot=200, seed=seed).iloc[0]
        covered += row["low"] <= true <= row["high"]
    assert 60 * 0.95 - 4 * np.sqrt(60 * 0.95 * 0.05) <= covered < 60


# --- real logs ---


@pytest.mark.parametrize("name", ["realsumm", "frank", "evouna"])
def test_real_log(name):
    path = REAL / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"no {path.name}: POQ_REAL_LOGS names no folder that holds it")
    log = read_score_log(path)
    for task in tasks(log):
        matrix = score_matrix(log, task=task)
        assert np.nanmin(matrix.values) >= 0
        assert np.nanmax(matrix.values) <= 10
        assert (np.nan_to_num(np.abs(correlations(matrix))) <= 1).all()
        scenarios = [
            Scenario(task, rule=rule, attack=attack, malicious_share=0.3, n_rounds=500, resample="items")
            for rule in ("mean", "median", "trimmed_mean", "paper")
            for attack in ("none", "boost")
        ]
        frame = run(log, scenarios, trials=2, seed=0, progress=False)
        assert len(frame) == 16
        assert frame[["pearson", "spearman", "rmse", "evaluator_reward", "inference_reward"]].notna().all(axis=None)
