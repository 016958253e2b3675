"""The score log: what evaluators said about outputs, read, checked and brought to one scale.

A score log is a long table with one row per (task, item, model, evaluator). The columns ``score`` and ``truth``
may be on any scale; :func:`score_matrix` calibrates both to [0, 10]. A missing score is a missing cell (NaN).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from poq.matrix import ROUNDING, SCORE_MAX, ScoreMatrix

NARROW = 0.001  # points; the engine ranks a consensus in bins of about this width
KEYS = ("task", "item", "model", "evaluator")
REQUIRED = (*KEYS, "score", "truth")
COSTS = ("cost", "model_cost")
COLUMNS = (*REQUIRED, *COSTS, "truth_alt", "reference_based", "split")  # all that a log of ours has, in order
ENDINGS = (".csv", ".csv.gz", ".parquet")


class ScoreLogError(ValueError):
    """A score log that cannot be used; the message names the column and the row at fault."""


def read_score_log(path) -> pd.DataFrame:
    """Read and check a score log.

    Parameters
    ----------
    path : str or Path
        A file that ends in .csv, .csv.gz or .parquet, with the columns task, item, model, evaluator, score, truth,
        and where known cost and model_cost. Further columns are kept as they are.

    Returns
    -------
    DataFrame
        Keys as text, numbers as float64, rows in the order of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ScoreLogError
        If the file is no valid score log; the message names column and row (the first row of data is row 1).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no score log at {path}")
    if path.is_dir():
        raise ScoreLogError(f"{path}: is a folder, not a score log")
    if not path.name.lower().endswith(ENDINGS):
        raise ScoreLogError(f"{path}: unknown ending; a score log ends in {', '.join(ENDINGS)}")
    if path.stat().st_size == 0:
        raise ScoreLogError(f"{path}: empty file")
    try:
        table = _read_parquet(path) if path.name.lower().endswith(".parquet") else _read_csv(path)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ScoreLogError(f"{path}: cannot be read as {path.suffix.lstrip('.')}: {reason}") from error
    return check_log(table, where=str(path))


def _read_csv(path: Path) -> pd.DataFrame:
    # Everything as text first: "NA" is a name, and a number that is none must be named rather than guessed.
    # Arrow's reader refuses ragged rows and bytes that are not UTF-8, where others pad or replace.
    read = pa.csv.ReadOptions(block_size=1 << 22)
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    compression = "gzip" if path.name.lower().endswith(".gz") else None
    check_text(path)
    with pa.input_stream(str(path), compression=compression) as stream:
        names = pa.csv.open_csv(stream, read_options=read, parse_options=parse).schema.names
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=True
    )
    with pa.input_stream(str(path), compression=compression) as stream:
        table = pa.csv.read_csv(stream, read_options=read, parse_options=parse, convert_options=convert)
    _check_names(table.column_names, path)
    return table.to_pandas()


def check_text(path: Path) -> None:
    """Refuse what spreadsheets write in its own words: another encoding, or semicolons between columns.

    Raises
    ------
    ScoreLogError
        The message says what to save instead.
    """
    try:
        compression = "gzip" if path.name.lower().endswith(".gz") else None
        with pa.input_stream(str(path), compression=compression) as stream:
            first = stream.read(1 << 16).split(b"\n")[0]
    except (pa.ArrowException, OSError):
        return  # the reader says it better
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ScoreLogError(f"{path}: is written in UTF-16; save it as CSV in UTF-8")
    if b";" in first and b"," not in first and b"\t" not in first:
        raise ScoreLogError(
            f"{path}: columns are separated by semicolons; save it with commas between columns and points in numbers"
        )


def _read_parquet(path: Path) -> pd.DataFrame:
    table = pa.parquet.read_table(path)
    _check_names(table.column_names, path)
    return table.to_pandas(ignore_metadata=True)


def _check_names(names, where) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ScoreLogError(f"{where}: duplicate column '{repeated[0]}'")


def check_log(log: pd.DataFrame, *, where: str = "log") -> pd.DataFrame:
    """Check a score log in memory and return it with keys as text and numbers as float64.

    Raises
    ------
    ScoreLogError
        As :func:`read_score_log`; `where` opens the message.
    """
    if not isinstance(log, pd.DataFrame):
        raise ScoreLogError(f"{where}: is no table but {type(log).__name__}; read_score_log reads files")
    _check_names(list(log.columns), where)
    for name in REQUIRED:
        if name not in log.columns:
            found = ", ".join(map(str, log.columns)) or "none"
            raise ScoreLogError(f"{where}: missing column '{name}' (found: {found})")
    if len(log) == 0:
        raise ScoreLogError(f"{where}: no rows")
    checked = log.reset_index(drop=True).copy(deep=False)
    codes = {}
    for name in KEYS:
        checked[name], codes[name] = _key(checked[name], name, where)
    for name in ("score", "truth", *(cost for cost in COSTS if cost in log.columns)):
        checked[name] = as_numbers(checked[name], name, where)
    # Columns that only chapters read are kept as they are, but a value that cannot be read is no silent loss.
    if "reference_based" in log.columns:
        _marks(checked["reference_based"], where)
    if "truth_alt" in log.columns:
        as_numbers(checked["truth_alt"], "truth_alt", where)
    missing = np.flatnonzero(checked["truth"].isna())
    if len(missing):
        raise ScoreLogError(f"{where}: column 'truth' has no value in row {missing[0] + 1}")

    output = codes["task"]
    for name in ("item", "model"):
        output = _combine(output, codes[name])
    cell = _combine(output, codes["evaluator"])
    again = np.flatnonzero(pd.Series(cell).duplicated())
    if len(again):
        rows = np.flatnonzero(cell == cell[again[0]])[:2] + 1
        names = ", ".join(f"{name} '{checked[name].iloc[rows[0] - 1]}'" for name in KEYS)
        raise ScoreLogError(f"{where}: duplicate rows {rows[0]} and {rows[1]} ({names})")
    truth = checked["truth"].to_numpy()
    first = np.unique(output, return_index=True)[1]
    differs = np.flatnonzero(truth != truth[first][output])
    if len(differs):
        row, earlier = differs[0], first[output[differs[0]]]
        raise ScoreLogError(
            f"{where}: column 'truth' is {float(truth[row])!r} in row {row + 1} but {float(truth[earlier])!r} in row "
            f"{earlier + 1} of the same output"
        )
    return checked


def _combine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Codes 0..n-1 of pairs, recoded at each step so that products cannot overflow."""
    pair = first.astype(np.int64) * (int(second.max()) + 1) + second
    return pd.factorize(pair)[0]


def _key(column: pd.Series, name: str, where: str) -> tuple[pd.Series, np.ndarray]:
    """The column as text and its codes; only the distinct values are converted, which keeps large logs quick."""
    try:
        codes, values = pd.factorize(column, use_na_sentinel=True)
    except TypeError:  # lists and the like
        raise ScoreLogError(f"{where}: column '{name}' holds something else than text") from None
    blank = codes < 0
    texts = []
    for code, value in enumerate(values):
        if isinstance(value, (bytes, bytearray, list, dict, tuple, np.ndarray)):
            row = int(np.flatnonzero(codes == code)[0]) + 1
            raise ScoreLogError(f"{where}: column '{name}' holds no text in row {row}")
        texts.append(str(value))
    stripped = np.array([not text.strip() for text in texts], dtype=bool)
    if len(stripped):
        blank = blank | stripped[codes]
    if blank.any():
        raise ScoreLogError(f"{where}: column '{name}' is blank in row {int(np.flatnonzero(blank)[0]) + 1}")
    for code, text in enumerate(texts):
        if "\x00" in text:
            row = int(np.flatnonzero(codes == code)[0]) + 1
            raise ScoreLogError(f"{where}: column '{name}' holds binary data in row {row}")
    if column.dtype == "str":
        return column, codes
    # Two values may read the same as text (1 and "1"); then they are one name.
    recode, names = pd.factorize(np.array(texts, dtype=object))
    text = pd.Series(np.asarray(names, dtype=object)[recode][codes], index=column.index, name=name)
    return text.astype("str"), recode[codes]


def as_numbers(column: pd.Series, name: str, where: str) -> pd.Series:
    """The column as float64; empty cells become NaN, text and infinities are refused."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        # The distinct values are converted, once each. As objects, so that dates are refused rather than counted in
        # nanoseconds.
        try:
            codes, distinct = pd.factorize(column, use_na_sentinel=True)
        except TypeError:  # lists and the like
            codes, distinct = np.where(column.isna(), -1, np.arange(len(column))), column
        distinct = pd.Series(distinct).astype("object")
        blank = distinct.map(lambda value: isinstance(value, str) and not value.strip())
        numbers = pd.to_numeric(distinct.where(~blank.astype("bool"), None), errors="coerce")
        if numbers.dtype.kind == "c":
            raise ScoreLogError(f"{where}: column '{name}' holds complex numbers")
        # The last one stands for cells that hold nothing, whose code is -1.
        values = np.append(numbers.to_numpy(dtype=np.float64, na_value=np.nan), np.nan)[codes]
        lost = np.isnan(values) & ~np.append(blank.to_numpy(dtype=bool), True)[codes]
        for row in np.flatnonzero(lost):
            value = column.iloc[row]
            if not (isinstance(value, (float, str)) and str(value).strip().lower() == "nan"):
                raise ScoreLogError(f"{where}: column '{name}' is not a number in row {row + 1}: {str(value)[:40]!r}")
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise ScoreLogError(f"{where}: column '{name}' is infinite in row {infinite[0] + 1}")
    return pd.Series(values, index=column.index, name=name)


def tasks(log: pd.DataFrame) -> list[str]:
    """Names of the tasks in a log, sorted."""
    return sorted(log["task"].unique())


def with_truth(log: pd.DataFrame, column: str) -> pd.DataFrame:
    """The log with another column of numbers in the place of its truth; rows where that is empty are left out.

    Raises
    ------
    ScoreLogError
        If the log has no such column, or no number in it.
    """
    if column not in log:
        raise ScoreLogError(f"log: missing column '{column}' (found: {', '.join(map(str, log.columns))})")
    value = as_numbers(log[column].reset_index(drop=True), column, "log").to_numpy()
    return check_log(log.assign(truth=value)[~np.isnan(value)])


def reference_free(log: pd.DataFrame) -> pd.DataFrame:
    """The rows of evaluators that read no reference answer, where the log marks them in a column `reference_based`.

    Raises
    ------
    ScoreLogError
        If the log has no such column, or marks every evaluator of a task.
    """
    if "reference_based" not in log:
        raise ScoreLogError("log: missing column 'reference_based', which marks evaluators that read the reference")
    free = log[~_marks(log["reference_based"], "log")]
    lost = sorted(set(log["task"]) - set(free["task"]))
    if lost:
        raise ScoreLogError(f"log: task '{lost[0]}' has no evaluator with 'reference_based' false")
    return free.reset_index(drop=True)


def _marks(column: pd.Series, where: str) -> np.ndarray:
    """A column of true and false, as booleans, texts or 0 and 1."""
    codes, values = pd.factorize(column, use_na_sentinel=False)
    meaning = {"true": 1, "1": 1, "1.0": 1, "yes": 1, "false": 0, "0": 0, "0.0": 0, "no": 0}
    marks = np.array([meaning.get(str(value).strip().lower(), -1) for value in values])[codes]
    unknown = np.flatnonzero(marks < 0)
    if len(unknown):
        value = str(column.iloc[unknown[0]])[:40]
        raise ScoreLogError(
            f"{where}: column '{column.name}' is neither true nor false in row {unknown[0] + 1}: {value!r}"
        )
    return marks > 0


def score_matrix(log: pd.DataFrame, *, task: str, calibration="minmax", truth_range=None) -> ScoreMatrix:
    """The scores of one task as a matrix on the scale 0 to 10.

    Parameters
    ----------
    log : DataFrame
        A score log, as :func:`read_score_log` returns it.
    task : str
    calibration : "minmax", "rank", (low, high), or a mapping from evaluator to (low, high)
        How raw scores come to [0, 10], evaluator by evaluator: the least and largest score of the log become 0 and 10;
        or the midrank does; or a stated range does. Our reconstruction: the papers do not say how they calibrate.
    truth_range : (low, high), optional
        Range of the truth; by default its least and largest value in this task.

    Raises
    ------
    ValueError
        For an unknown task or calibration, and for a value outside a stated range.

    Warns
    -----
    UserWarning
        For an evaluator whose scores are all the same; it calibrates to 5.
    """
    return matrix_of(check_log(log), task=task, calibration=calibration, truth_range=truth_range)


def matrix_of(log: pd.DataFrame, *, task: str, calibration="minmax", truth_range=None) -> ScoreMatrix:
    """As :func:`score_matrix`, of a log that :func:`check_log` has returned."""
    if not (log["task"] == task).any():
        raise ValueError(f"unknown task '{task}': the log has {', '.join(tasks(log))}")
    rows = log[log["task"] == task]
    item_code, items = pd.factorize(rows["item"], sort=True)
    model_code, models = pd.factorize(rows["model"], sort=True)
    evaluator_code, evaluators = pd.factorize(rows["evaluator"], sort=True)
    pair, output = np.unique(item_code.astype(np.int64) * len(models) + model_code, return_inverse=True)
    truth = np.empty(len(pair))
    truth[output] = rows["truth"].to_numpy()
    values = np.full((len(pair), len(evaluators)), np.nan)
    values[output, evaluator_code] = rows["score"].to_numpy()
    return ScoreMatrix(
        task=task,
        values=_calibrate(values, list(evaluators), calibration),
        truth=_calibrate_truth(truth, task, truth_range),
        model=pair % len(models),
        item=pair // len(models),
        models=tuple(models),
        items=tuple(items),
        evaluators=tuple(evaluators),
        model_cost=_mean_by_code(rows, "model_cost", model_code, len(models)),
        evaluator_cost=_mean_by_code(rows, "cost", evaluator_code, len(evaluators)),
    )


def _mean_by_code(rows: pd.DataFrame, column: str, code: np.ndarray, size: int) -> np.ndarray:
    if column not in rows:
        return np.full(size, np.nan)
    value = rows[column].to_numpy()
    known = ~np.isnan(value)
    count = np.bincount(code[known], minlength=size)
    total = np.bincount(code[known], weights=value[known], minlength=size)
    return np.divide(total, count, out=np.full(size, np.nan), where=count > 0)


def _stated_range(bounds, what: str) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be two numbers (low, high), not {bounds!r}") from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"{what} must be (low, high) with low < high, not {bounds!r}")
    return low, high


def _scale(values: np.ndarray, low: float, high: float, what: str) -> np.ndarray:
    outside = values[(values < low) | (values > high)]
    if len(outside):
        raise ValueError(f"{what} has the value {outside[0]:g}, outside the stated range [{low:g}, {high:g}]")
    # Divide first: (high - low) of a heavy-tailed raw score may be so large that the product would overflow.
    if np.isinf(float(high) - float(low)):
        values, low, high = values / 2, low / 2, high / 2
    return np.clip((values - low) / (high - low) * SCORE_MAX, 0.0, SCORE_MAX)


def _calibrate(values: np.ndarray, evaluators: list[str], calibration) -> np.ndarray:
    if isinstance(calibration, str) and calibration not in ("minmax", "rank"):
        raise ValueError(f"unknown calibration '{calibration}': use 'minmax', 'rank' or a range (low, high)")
    if isinstance(calibration, Mapping):
        absent = sorted(set(evaluators) - set(calibration))
        if absent:
            raise ValueError(f"calibration states no range for evaluator '{absent[0]}'")
    calibrated = np.full_like(values, np.nan)
    for column, name in enumerate(evaluators):
        known = ~np.isnan(values[:, column])
        raw = values[known, column]
        if not isinstance(calibration, str):
            bounds = calibration[name] if isinstance(calibration, Mapping) else calibration
            low, high = _stated_range(bounds, "calibration")
            calibrated[known, column] = _scale(raw, low, high, f"evaluator '{name}'")
        elif len(raw) == 0:
            continue
        elif raw.min() == raw.max():
            warnings.warn(
                f"evaluator '{name}' gives every output the same score; calibrated to 5", UserWarning, stacklevel=3
            )
            calibrated[known, column] = SCORE_MAX / 2
        elif calibration == "minmax":
            calibrated[known, column] = _scale(raw, raw.min(), raw.max(), name)
        else:
            from scipy.stats import rankdata  # not above: it takes a second to load, in every worker too

            calibrated[known, column] = (rankdata(raw) - 1) / (len(raw) - 1) * SCORE_MAX
        if _parked(calibrated[known, column]):
            warnings.warn(
                f"evaluator '{name}': a tenth of its distinct scores lie within {NARROW} points of each other on the "
                f"scale of 0 to 10, so that rank correlations are coarse; use calibration='rank'",
                UserWarning,
                stacklevel=3,
            )
    return calibrated


def _parked(scores: np.ndarray) -> bool:
    """Whether a tenth of the distinct scores lie closer together than ranks of the consensus are told apart."""
    distinct = np.unique(scores)
    step = len(distinct) // 10
    return step >= 5 and bool((distinct[step:] - distinct[:-step]).min() < NARROW)


def _calibrate_truth(truth: np.ndarray, task: str, truth_range) -> np.ndarray:
    what = f"the truth of task '{task}'"
    if truth_range is not None:
        return _scale(truth, *_stated_range(truth_range, "truth_range"), what)
    if truth.min() == truth.max():
        return np.full_like(truth, SCORE_MAX / 2)
    return _scale(truth, truth.min(), truth.max(), what)


def reliability(log: pd.DataFrame, *, method: str = "pearson", seed: int = 0, n_boot: int = 1000) -> pd.DataFrame:
    """How well each evaluator tracks the truth, with a 95 % interval that resamples items.

    Items are the sample of the world, so whole items are resampled with replacement: the outputs of one item stay
    together (item-cluster bootstrap, percentile interval).

    Parameters
    ----------
    log : DataFrame
        A score log. Correlations do not depend on calibration by min-max, so raw scores are used.
    method : "pearson" or "spearman"
    seed : int
    n_boot : int
        Number of resamples; 0 leaves the interval NaN.

    Returns
    -------
    DataFrame
        One row per (task, evaluator): task, evaluator, correlation, low, high, n (outputs scored).
        An undefined correlation is NaN.
    """
    if method not in ("pearson", "spearman"):
        raise ValueError(f"unknown method '{method}': use 'pearson' or 'spearman'")
    if n_boot < 0:
        raise ValueError(f"n_boot must be 0 or more, not {n_boot}")
    log = check_log(log)
    rows = []
    for task in tasks(log):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a constant evaluator shows here as an undefined correlation
            matrix = score_matrix(log, task=task)
        rng = np.random.default_rng(np.random.SeedSequence([seed, *task.encode()]))
        n_items = len(matrix.items)
        times = rng.multinomial(n_items, np.full(n_items, 1 / n_items), size=n_boot)
        for column, name in enumerate(matrix.evaluators):
            known = ~np.isnan(matrix.values[:, column])
            score, truth = matrix.values[known, column], matrix.truth[known]
            item = matrix.item[known]
            estimate = weighted_correlation(score, truth, np.ones((1, len(score))), method=method)[0]
            resampled = np.concatenate(
                [
                    weighted_correlation(score, truth, chunk[:, item], method=method)
                    for chunk in np.array_split(times, max(1, n_boot * len(score) // 4_000_000 + 1))
                ]
            )
            resampled = resampled[~np.isnan(resampled)]
            defined = len(resampled) > 0 and not np.isnan(estimate)
            low, high = np.quantile(resampled, [0.025, 0.975]) if defined else (np.nan, np.nan)
            rows.append((task, name, estimate, low, high, int(known.sum())))
    return pd.DataFrame(rows, columns=["task", "evaluator", "correlation", "low", "high", "n"])


def weighted_correlation(x: np.ndarray, y: np.ndarray, times: np.ndarray, *, method: str = "pearson") -> np.ndarray:
    """Correlation of x and y, (n,), when case i counts times[b, i] times: one value per row b of times, (B, n).

    Spearman's midranks are those of the resample, so that the result equals the correlation of the repeated cases.
    """
    times = np.asarray(times, dtype=np.float64)
    if x.size == 0:
        return np.full(len(times), np.nan)
    if method == "spearman":
        x, y = _weighted_midrank(x, times), _weighted_midrank(y, times)
    total = times.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = x - (times * x).sum(axis=1, keepdims=True) / total
        y = y - (times * y).sum(axis=1, keepdims=True) / total
        spread = np.sqrt((times * x * x).sum(axis=1) * (times * y * y).sum(axis=1))
        spread[spread < ROUNDING * np.maximum(total[:, 0], 1)] = np.nan
        return np.clip((times * x * y).sum(axis=1) / spread, -1.0, 1.0)


def _weighted_midrank(x: np.ndarray, times: np.ndarray) -> np.ndarray:
    _, tie = np.unique(x, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(tie[order]) > 0])
    count = np.add.reduceat(times[:, order], starts, axis=1)
    return (np.cumsum(count, axis=1) - (count - 1) / 2)[:, tie]
