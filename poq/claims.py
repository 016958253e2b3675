"""Claims: from simulated rows to numbers with intervals, and from those to verdicts.

A verdict rests on an interval that counts two kinds of chance: the draws (trials) and the items of the log. For the
second, whole items are resampled with replacement. Accuracy on a resample follows from sums over the rounds of each
item (:func:`bootstrap`); for other metrics each trial is played twice, on the log's items and on a resample of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from poq.scorelog import ScoreLogError, reference_free, tasks, with_truth
from poq.simulate import metric_columns

REPRODUCED, REFUTED, UNTESTABLE = "reproduced", "not reproduced", "not testable here"
UNDECIDED = "undecided at this size"
FREE, FULL = "reference-free", "full"


def views(log: pd.DataFrame, *, least: int = 1) -> dict[tuple[str, str], pd.DataFrame]:
    """The log under each of its truths and for each pool of evaluators: {(truth, pool): log}, the headline first.

    Parameters
    ----------
    log : DataFrame
        A score log. Without a column `truth_alt` there is one truth, without `reference_based` only the full pool.
    least : int
        A pool with fewer evaluators in some task is left out, unless it is the full one.
    """
    pools = {FULL: log}
    try:
        free = reference_free(log)
    except ScoreLogError:
        pass
    else:
        if all(free.loc[free["task"] == task, "evaluator"].nunique() >= least for task in tasks(log)):
            pools = {FREE: free, FULL: log}
    found = {("truth", pool): part for pool, part in pools.items()}
    if "truth_alt" in log:
        for pool, part in pools.items():
            try:
                found["truth_alt", pool] = with_truth(part, "truth_alt")
            except ScoreLogError:
                continue
    return found


def fitting(log: pd.DataFrame, sizes: Sequence[int], *, share: float = 0.5) -> list[int]:
    """The committee sizes that a log can fill: at least `share` of each task's outputs have so many scores.

    If none of the sizes fits, the largest that would is returned instead.
    """
    scored = log[log["score"].notna()].groupby(["task", "item", "model"], observed=True)["evaluator"].nunique()
    largest = int(scored.groupby("task").quantile(1 - share, interpolation="lower").min())
    return sorted({size for size in sizes if size <= largest}) or [largest]


def stability(cells: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Cells recast for the claim that a value stays within -tolerance and +tolerance: above zero where that holds."""
    low, high = cells["low"].abs(), cells["high"].abs()
    across = (cells["low"] < 0) & (cells["high"] > 0)
    nearest = np.where(across, 0.0, np.minimum(low, high))
    return cells.assign(low=tolerance - np.maximum(low, high), high=tolerance - nearest)


def subtract(frame: pd.DataFrame, base: pd.DataFrame, *, on: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Rows of `frame` minus the row of `base` that agrees in the columns `on`, metric by metric.

    Raises
    ------
    ValueError
        If a row has no counterpart, or several.
    """
    on, metrics = list(on), list(metrics)
    keys, base_keys = pd.MultiIndex.from_frame(frame[on]), pd.MultiIndex.from_frame(base[on])
    if base_keys.has_duplicates:
        raise ValueError(f"base has several rows for one value of {', '.join(on)}")
    row = base_keys.get_indexer(keys)
    if (row < 0).any():
        raise ValueError(f"{int((row < 0).sum())} row(s) have no counterpart in base")
    difference = frame.copy()
    difference[metrics] = frame[metrics].to_numpy(dtype=float) - base[metrics].to_numpy(dtype=float)[row]
    return difference


def bootstrap(frame: pd.DataFrame, *, n_boot: int, seed: int) -> pd.DataFrame:
    """Accuracy on resampled items, without playing again.

    The rounds of all trials are taken together, and whole items are drawn with replacement; every setting of a task
    sees the same resamples, so that differences between settings are paired.

    Parameters
    ----------
    frame : DataFrame
        Rows of :func:`poq.simulate.run` with `item_sums`.
    n_boot : int
        Number of resamples.
    seed : int

    Returns
    -------
    DataFrame
        Per setting and resample the settings, `resample` = "bootstrap", `trial` = number of the resample, and pearson,
        rmse, bias.
    """
    measured = set(metric_columns(frame))
    settings = [name for name in frame if name not in measured | {"trial", "item_sums", "resample"}]
    parts = []
    for task, rows in frame.groupby("task", sort=False):
        n_items = len(rows["item_sums"].iloc[0]) // 6
        rng = np.random.default_rng(np.random.SeedSequence([seed, *str(task).encode()]))
        times = rng.multinomial(n_items, np.full(n_items, 1 / n_items), size=n_boot)
        for _, group in rows.groupby(settings, sort=False, dropna=False):
            sums = np.sum(np.stack(group["item_sums"].to_list()), axis=0).reshape(n_items, 6)
            part = pd.DataFrame(_accuracy(times @ sums))
            first = group[settings].iloc[[0] * n_boot].reset_index(drop=True)
            parts.append(first.assign(resample="bootstrap", trial=range(n_boot), **part))
    return pd.concat(parts, ignore_index=True)


def _accuracy(sums: np.ndarray) -> dict[str, np.ndarray]:
    """pearson, rmse, bias from (B, 6) sums of rounds, c, q, c^2, q^2, c q."""
    n, *means = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        c, q, cc, qq, cq = (part / n for part in means)
        spread = np.sqrt(np.maximum(cc - c * c, 0) * np.maximum(qq - q * q, 0))
        pearson = np.where(spread > 1e-9, (cq - c * q) / spread, np.nan)
    return {"pearson": pearson, "rmse": np.sqrt(np.maximum(cc - 2 * cq + qq, 0)), "bias": c - q}


def intervals(frame: pd.DataFrame, by: Sequence[str], metrics: Sequence[str], *, level: float = 0.95) -> pd.DataFrame:
    """Mean over trials with an interval for trials and items.

    Parameters
    ----------
    frame : DataFrame
        Rows of :func:`poq.simulate.run`, or differences of them, with `trial` and `resample`: "none" for the trials
        themselves; for the part of the items, rows of :func:`bootstrap` ("bootstrap"), or the same trials on resampled
        items ("items"). Where a group has several rows per trial, such as several attacks, they are averaged first.
    by : sequence of str
        Columns that tell groups apart.
    metrics : sequence of str
    level : float
        Of the interval; Student's t with n - 1 degrees of freedom.

    Returns
    -------
    DataFrame
        Long: the columns of `by`, metric, value, low, high, se_trials, se_items, n. Without rows for the items the
        interval counts the trials alone and se_items is NaN.
    """
    by, metrics = list(by), list(metrics)
    columns = [*by, "metric", "value", "low", "high", "se_trials", "se_items", "n"]
    if not frame[metrics].notna().any(axis=None):
        return pd.DataFrame(columns=columns)
    each = frame.groupby([*by, "resample", "trial"], sort=False, dropna=False, observed=True)[metrics].mean()
    long = each.rename_axis(columns="metric").stack().unstack("resample")
    empty = pd.Series(np.nan, index=long.index)
    rows = []
    # Of a trial on resampled items the same trial on the log's items is taken away: what they share is no chance of
    # the items.
    chance = {"bootstrap": long.get("bootstrap", empty), "items": long.get("items", empty) - long["none"]}
    table = pd.DataFrame({"none": long["none"], **chance})
    for key, part in table.groupby([*by, "metric"], sort=False, dropna=False):
        trials = part["none"].dropna()
        n = len(trials)
        se_trials = trials.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        spreads = [part[name].dropna().std(ddof=1) for name in chance]
        se_items = next((spread for spread in spreads if np.isfinite(spread)), np.nan)
        error = np.sqrt(np.nansum([se_trials**2, se_items**2])) if n > 1 else np.nan
        half = stats.t.ppf((1 + level) / 2, n - 1) * error if n > 1 else np.nan
        value = trials.mean()
        rows.append((*key, value, value - half, value + half, se_trials, se_items, n))
    return pd.DataFrame(rows, columns=columns)


def not_told_apart(frame: pd.DataFrame, best: str, *, on: Sequence[str], metric: str) -> list[str]:
    """Rules that cannot be told from the best one, the nearest first.

    These are the rules whose paired difference to the best has an interval (:func:`intervals`) that reaches zero, or
    none at all, as from one trial.

    Parameters
    ----------
    frame : DataFrame
        Rows for :func:`intervals`, with a column `rule`; of a metric of which more is better.
    best : str
        The rule with the highest mean.
    on : sequence of str
        Columns that pair a row with the one of the best rule, such as task and trial; a row without partner is left
        out.
    metric : str

    Raises
    ------
    ValueError
        If the best rule has no row, or several for one value of `on`.
    """
    its = frame["rule"] == best
    if not its.any():
        raise ValueError(f"the frame has no row of rule '{best}'")
    pair = pd.MultiIndex.from_frame(frame[list(on)])
    others = frame[~its & pair.isin(pair[its])]
    behind = intervals(subtract(others, frame[its], on=on, metrics=[metric]), ["rule"], [metric])
    behind = behind.sort_values("value", ascending=False, kind="stable")
    return behind.loc[~(behind["high"] < 0), "rule"].tolist()


def support(cells: pd.DataFrame, *, sign: int = 1) -> np.ndarray:
    """+1 where the interval supports a claim of this sign, -1 where it speaks against, 0 where it holds both."""
    low, high = (cells["low"], cells["high"]) if sign > 0 else (-cells["high"], -cells["low"])
    return np.where(low > 0, 1, np.where(high < 0, -1, 0))


def verdict(cells: pd.DataFrame, *, factors: Sequence[str] = (), sign: int = 1) -> str:
    """The verdict on a claim from its cells, one per setting in which it was tried.

    Parameters
    ----------
    cells : DataFrame
        With the columns low and high, and those of `factors`.
    factors : sequence of str
        Columns in which a condition may be told: "only if attack is noise". If none of them tells it, the verdict
        says in how many settings the claim holds and in how many the opposite does; if those are not fewer, the claim
        is not reproduced.
    sign : +1 or -1
        Whether the claim says that the value is above or below zero.
    """
    held = support(cells, sign=sign)
    if len(held) == 0:
        return UNTESTABLE
    if (held > 0).all():
        return REPRODUCED
    if not (held > 0).any():
        return REFUTED if (held < 0).any() else UNDECIDED
    for factor in factors:
        levels = [level for level in cells[factor].unique() if (held[(cells[factor] == level).to_numpy()] > 0).all()]
        if levels and ((held > 0) == cells[factor].isin(levels).to_numpy()).all():
            *first, last = map(str, levels)
            return f"only if {factor} is {', '.join(first)} or {last}" if first else f"only if {factor} is {last}"
    count = f"({(held > 0).sum()} of {len(held)}; {(held < 0).sum()} against)"
    return f"only if the setting suits {count}" if held.sum() > 0 else f"{REFUTED} {count}"


def in_words(row, *, digits: int = 3) -> str:
    """Value and interval of a row of :func:`intervals`, for a page: "+0.006 [+0.003, +0.010]"."""
    if not np.isfinite(row.value):
        return "no number"

    def figure(value: float) -> str:
        places = 0 if abs(value) >= 100 else digits
        return f"{round(value, places) + 0.0:+,.{places}f}"  # + 0.0: there is no minus zero on a page

    if not (np.isfinite(row.low) and np.isfinite(row.high)):
        return f"{figure(row.value)} (no interval from one trial)"
    return f"{figure(row.value)} [{figure(row.low)}, {figure(row.high)}]"
