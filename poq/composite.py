"""Quality signals from a score log: a composite of dimensions (multidim2026), a cheap-first cascade (judge2026).

Each function takes a score log and returns it with one more evaluator, so that everything downstream (reliability, the
simulator) takes the new signal for an evaluator like any other. The papers publish the names of five dimensions and
what a cascade saved; the default weights reach us second-hand. How parts are calibrated, which evaluators stand for a
dimension, and when a cascade asks its costly evaluator is our reconstruction. `composite` and `cascade` read no truth.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from poq.matrix import SCORE_MAX
from poq.scorelog import check_log, matrix_of, tasks

OUTPUT = ["task", "item", "model"]
# Published defaults, second-hand (multidim2026); they add to 0.90, so they are renormalised wherever they are used.
WEIGHTS = {"priors": 0.15, "structure": 0.20, "semantic": 0.25, "alignment": 0.15, "agreement": 0.15}
# Which evaluators of the shipped log stand for a dimension: by what each reads, not by how well it does.
DIMENSIONS = {
    "priors": ("model_prior", "cost_prior"),
    "structure": ("brevity", "readability", "sentence_form", "char_lm", "diversity"),
    "semantic": ("biencoder_ref",),
    "alignment": ("biencoder_source", "prompt_cosine", "source_cosine", "context_match", "answer_type"),
    "agreement": ("agreement", "evaluator_agreement"),
}
# In operation there is no reference to be similar to; judge2026 puts a trained judge in that place.
REFERENCE_FREE = {**DIMENSIONS, "semantic": ("judge",)}
# For logs with other names: the first dimension whose pattern is found in the name takes the evaluator.
PATTERNS = {
    "priors": r"prior",
    "structure": r"len|brev|readab|fluen|form(?!er)|gramm|divers|lm$|structur|coheren",
    "agreement": r"agree|consensus|uncertain|self.?check",
    "alignment": r"align|prompt|question|source|context|relevan|answer.?type|entail|nli|faith|summac|factcc|feqa|dae",
    "semantic": r"bert|bart|encoder|embed|mover|judge|llm|gpt|semantic|simil|cos|rouge|bleu|meteor|chrf|cider|f1|fuzz"
    r"|precision|recall|contains|match|em$|ratio|qa",
}


def shares(weights: Mapping[str, float], dimensions: Collection[str]) -> dict[str, float]:
    """The weights of `dimensions`, renormalised to add to one.

    Raises
    ------
    ValueError
        For a dimension without a weight, a weight below zero or not finite, or weights that are all zero.
    """
    for name in dimensions:
        if name not in weights:
            raise ValueError(f"weights has no entry for dimension '{name}' (it has {', '.join(weights) or 'none'})")
        if not np.isfinite(weights[name]) or weights[name] < 0:
            raise ValueError(f"the weight of dimension '{name}' must be a number of 0 or more, not {weights[name]!r}")
    total = sum(weights[name] for name in dimensions)
    if not total > 0:
        raise ValueError(f"the weights of {', '.join(dimensions) or 'no dimension'} add to nothing")
    return {name: weights[name] / total for name in dimensions}


def choose_dimensions(
    evaluators: Sequence[str], *, named: Mapping[str, Sequence[str]] = DIMENSIONS
) -> dict[str, tuple[str, ...]]:
    """Which of a log's evaluators stand for which dimension.

    The named ones, if that fills two dimensions beside the priors; else by `PATTERNS` in the evaluators' names.
    Dimensions without an evaluator are not in the result; evaluators that fit nowhere are left out of it.
    """
    found = {name: tuple(part for part in parts if part in evaluators) for name, parts in named.items()}
    if sum(bool(parts) for name, parts in found.items() if name != "priors") < 2:
        found = {name: () for name in WEIGHTS}
        for part in sorted(evaluators):
            home = next((name for name, words in PATTERNS.items() if re.search(words, part, re.IGNORECASE)), None)
            if home:
                found[home] += (part,)
    return {name: parts for name, parts in found.items() if parts}


def dimension_log(log: pd.DataFrame, *, dimensions: Mapping[str, Sequence[str]], calibration="rank") -> pd.DataFrame:
    """The score log whose evaluators are the dimensions: the mean of each one's calibrated parts, in [0, 10].

    Parameters
    ----------
    log : DataFrame
        A score log.
    dimensions : mapping of str to sequence of str
        Evaluators of each dimension. A part that did not score an output is left out of that output's mean and not
        paid for; an evaluator that a task does not have at all counts for nothing there.
    calibration
        As in :func:`poq.scorelog.score_matrix`. Ranks by default: min-max would let one extreme output decide how much
        a part weighs.

    Returns
    -------
    DataFrame
        A score log; the cost of a dimension is the sum of its parts', unknown if one of them is.

    Raises
    ------
    ValueError
        For an evaluator that the log does not have or that stands in two dimensions, and for an empty mapping.
    """
    log = check_log(log)
    _check_dimensions(log, dimensions)
    return _dimension_log(log, dimensions, calibration)


def composite(
    log: pd.DataFrame,
    *,
    dimensions: Mapping[str, Sequence[str]],
    weights: Mapping[str, float] = WEIGHTS,
    calibration="rank",
    name: str = "composite",
) -> pd.DataFrame:
    """The log with one more evaluator: the weighted mean of the dimensions (multidim2026; our reconstruction).

    Every dimension is the mean of its calibrated parts and is calibrated once more, so that a weight means the same
    for a dimension of one part as for one of five. An output that lacks one of its task's dimensions is not scored.

    Parameters
    ----------
    log : DataFrame
        A score log.
    dimensions : mapping of str to sequence of str
        Evaluators of each dimension.
    weights : mapping of str to float
        Weight of each dimension, renormalised over the dimensions that a task has.
    calibration
        As in :func:`poq.scorelog.score_matrix`.
    name : str
        What the new evaluator is called.

    Returns
    -------
    DataFrame
        The rows of `log`, then those of the composite: score in [0, 10], cost the sum of its parts'.

    Raises
    ------
    ValueError
        As :func:`dimension_log` and :func:`shares`; for a name that is taken, and for fewer than two dimensions.

    Warns
    -----
    UserWarning
        For a task that lacks a dimension.
    """
    log = check_log(log)
    _check_name(log, name)
    _check_dimensions(log, dimensions)
    shares(weights, dimensions)
    if len(dimensions) < 2:
        raise ValueError(f"a composite needs at least two dimensions, not {len(dimensions)}")
    parts = _dimension_log(log, dimensions, calibration)
    values, costs = score_table(parts, calibration), _wide(parts, "cost")
    score, cost = [], []
    for task, rows in values.groupby(level="task"):
        used = [dimension for dimension in dimensions if rows[dimension].notna().any()]
        absent = [dimension for dimension in dimensions if dimension not in used]
        if absent:
            told = f"task '{task}' has no evaluator for {', '.join(absent)}: the other weights are renormalised"
            warnings.warn(told, UserWarning, stacklevel=2)
        share = shares(weights, used)
        score.append(sum(share[dimension] * rows[dimension] for dimension in used).dropna())
        if costs is not None:
            cost.append(costs.loc[score[-1].index, used].sum(axis=1, skipna=False))
    members = [part for parts in dimensions.values() for part in parts]
    return _extended(log, pd.concat(score), pd.concat(cost) if cost else None, name=name, members=members)


def cascade(
    log: pd.DataFrame,
    cheap: str,
    costly: str,
    *,
    band: tuple[float, float],
    calibration="rank",
    name: str = "cascade",
) -> pd.DataFrame:
    """The log with one more evaluator: the cheap score, or the costly one where the cheap one is unsure (judge2026).

    Our reconstruction: "unsure" is a calibrated cheap score inside a middle band. Ranks by default, so that
    band = (5 - h, 5 + h) asks the costly evaluator about a share h / 5 of the outputs, whatever the raw scale.

    Parameters
    ----------
    log : DataFrame
        A score log.
    cheap, costly : str
        Two of its evaluators.
    band : (low, high)
        Calibrated cheap scores from low to high, ends included, are unsure; points in [0, 10].
    calibration
        As in :func:`poq.scorelog.score_matrix`.
    name : str
        What the new evaluator is called.

    Returns
    -------
    DataFrame
        The rows of `log`, then those of the cascade for the outputs that both scored: score in [0, 10], cost that of
        the cheap evaluator plus, where it was asked, that of the costly one.

    Raises
    ------
    ValueError
        For an unknown evaluator, one that is both, a band that is none, a name that is taken, or no output that both
        scored.
    """
    log = check_log(log)
    _check_name(log, name)
    for role, evaluator in (("cheap", cheap), ("costly", costly)):
        if not (log["evaluator"] == evaluator).any():
            raise ValueError(f"{role}: the log has no evaluator '{evaluator}'")
    if cheap == costly:
        raise ValueError(f"cheap and costly must differ; both are '{cheap}'")
    low, high = band
    if not 0 <= low <= high <= SCORE_MAX:
        raise ValueError(f"band must be (low, high) with 0 <= low <= high <= {SCORE_MAX:g}, not {band!r}")
    both = log[log["evaluator"].isin([cheap, costly])]
    scored = both[both["score"].notna()].groupby(OUTPUT)["evaluator"].transform("size")
    # Only what both scored is calibrated, so that both scales stand for the same outputs.
    both = both.loc[scored.index[scored == 2]].reset_index(drop=True)
    if both.empty:
        raise ValueError(f"there is no output that both '{cheap}' and '{costly}' scored")
    values, costs = score_table(both, calibration), _wide(both, "cost")
    asked = values[cheap].between(low, high)
    cost = None if costs is None else costs[cheap] + costs[costly].where(asked, 0.0)
    return _extended(log, values[costly].where(asked, values[cheap]), cost, name=name, members=[cheap, costly])


# Parts that a log may lack --------------------------------------------------------------------------------------------


def model_prior(log: pd.DataFrame, *, train, name: str = "model_prior") -> pd.DataFrame:
    """The log with one more evaluator: how good the model's other outputs were, by the truth of the training items.

    An output outside the training items gets the mean truth of its model's outputs inside; one inside gets the mean
    over the half of the training items that it does not belong to, so that none reads its own truth.

    Parameters
    ----------
    log : DataFrame
        A score log.
    train : (rows,) bool
        Rows of the log whose truth may be read; all rows of an item, or none.
    """
    log = check_log(log)
    _check_name(log, name)
    outputs = log[[*OUTPUT, "truth"]].assign(train=np.asarray(train, dtype=bool)).drop_duplicates(OUTPUT)
    items = outputs.loc[outputs["train"], ["task", "item"]].drop_duplicates().sort_values(["task", "item"])
    # Halves 0 and 1 of the training items, 2 for the others.
    halves = items.assign(half=items.groupby("task").cumcount() % 2)
    outputs = outputs.merge(halves, how="left", on=["task", "item"]).fillna({"half": 2})
    score = pd.Series(np.nan, index=outputs.index)
    for half in (0, 1, 2):
        taught = outputs[outputs["train"] & (outputs["half"] != half)].groupby(["task", "model"])["truth"].mean()
        mine = outputs["half"] == half
        score[mine] = taught.reindex(pd.MultiIndex.from_frame(outputs.loc[mine, ["task", "model"]])).to_numpy()
    score.index = pd.MultiIndex.from_frame(outputs[OUTPUT])
    score = score.dropna()
    return _extended(log, score, score * 0.0, name=name, members=[])


def cost_prior(log: pd.DataFrame, *, name: str = "cost_prior") -> pd.DataFrame:
    """The log with one more evaluator: minus the cost of the output, where the log knows it."""
    log = check_log(log)
    _check_name(log, name)
    if "model_cost" not in log or log["model_cost"].isna().all():
        raise ValueError("log: column 'model_cost' is absent or empty, so there is no prior from cost")
    score = -log.groupby(OUTPUT)["model_cost"].mean().dropna()
    return _extended(log, score, score * 0.0, name=name, members=[])


def evaluator_agreement(
    log: pd.DataFrame, evaluators: Sequence[str], *, calibration="rank", name: str = "evaluator_agreement"
) -> pd.DataFrame:
    """The log with one more evaluator: minus the spread of `evaluators` over the output, for at least two scores.

    It reads scores that have been paid for already, so it costs nothing; use it beside those evaluators only.
    """
    log = check_log(log)
    _check_name(log, name)
    values = score_table(log[log["evaluator"].isin(evaluators)], calibration)
    score = -values.std(axis=1, ddof=0)[values.notna().sum(axis=1) >= 2].round(9)
    if score.empty:
        raise ValueError(f"no output has scores of two of the evaluators {', '.join(evaluators)}")
    return _extended(log, score, score * 0.0, name=name, members=evaluators)


# Weights from a truth; the only functions here, with model_prior, that read one ---------------------------------------


def fit_weights(values, truth) -> np.ndarray:
    """Weights of 0 or more, adding to one, whose sum follows the truth best in squares: (D,).

    values : (n, D) calibrated dimensions; truth : (n,). Rows with a gap are left out; equal weights if nothing helps.
    """
    values, truth = _complete(values, truth)
    found = nnls(values - values.mean(axis=0), truth - truth.mean())[0] if len(truth) else np.zeros(values.shape[1])
    return found / found.sum() if found.sum() > 0 else np.full(values.shape[1], 1 / values.shape[1])


def prune(values, truth, weights) -> np.ndarray:
    """Which dimensions to keep, (D,) bool: drop one at a time while that raises the correlation with the truth.

    values : (n, D) calibrated dimensions; truth : (n,); weights : (D,), renormalised over what is kept.
    """
    values, truth = _complete(values, truth)
    weights = np.asarray(weights, dtype=np.float64)
    keep = weights > 0

    def fit(kept):
        signal = values @ np.where(kept, weights, 0.0)
        if len(signal) < 2 or np.ptp(signal) < 1e-9 or np.ptp(truth) < 1e-9:
            return -np.inf
        return np.corrcoef(signal, truth)[0, 1]

    best = fit(keep)
    while keep.sum() > 1:
        trials = [(fit(keep & (np.arange(len(keep)) != d)), d) for d in np.flatnonzero(keep)]
        value, drop = max(trials)
        if value <= best:
            break
        best, keep[drop] = value, False
    return keep


def _complete(values, truth):
    values, truth = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    known = ~np.isnan(values).any(axis=1)
    return values[known], truth[known]


# Log to table and back ------------------------------------------------------------------------------------------------


def _check_name(log: pd.DataFrame, name: str) -> None:
    if (log["evaluator"] == name).any():
        raise ValueError(f"name: the log has an evaluator '{name}' already")


def _check_dimensions(log: pd.DataFrame, dimensions: Mapping[str, Sequence[str]]) -> None:
    known, seen = set(log["evaluator"]), {}
    if not dimensions:
        raise ValueError("dimensions must not be empty")
    for name, parts in dimensions.items():
        if isinstance(parts, str) or not len(parts):
            raise ValueError(f"dimension '{name}' must be a list of evaluators, at least one, not {parts!r}")
        for part in parts:
            if part not in known:
                raise ValueError(f"dimension '{name}': the log has no evaluator '{part}'")
            if part in seen:
                raise ValueError(f"evaluator '{part}' stands twice, in dimensions '{seen[part]}' and '{name}'")
            seen[part] = name


def _dimension_log(log: pd.DataFrame, dimensions: Mapping[str, Sequence[str]], calibration) -> pd.DataFrame:
    members = [part for parts in dimensions.values() for part in parts]
    log = log[log["evaluator"].isin(members)].reset_index(drop=True)
    values, costs = score_table(log, calibration), _wide(log, "cost")
    made = []
    for name, parts in dimensions.items():
        part = values[list(parts)]
        # Rounded, so that what rounding leaves of a constant is not ranked afterwards.
        score = part.mean(axis=1).round(9).dropna()
        cost = None
        if costs is not None:
            paid = costs.reindex(index=values.index, columns=list(parts)).where(part.notna(), 0.0)
            cost = paid.sum(axis=1, skipna=False).loc[score.index]
        made.append(_rows(log, score, cost, name=name, members=parts))
    return pd.concat(made, ignore_index=True)


def score_table(log: pd.DataFrame, calibration="rank") -> pd.DataFrame:
    """Calibrated scores as a table: one row per output (task, item, model), one column per evaluator, NaN = missing."""
    tables = []
    for task in tasks(log):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a constant part adds the same to every output
            matrix = matrix_of(log, task=task, calibration=calibration)
        names = [np.array(matrix.items, dtype=object)[matrix.item], np.array(matrix.models, dtype=object)[matrix.model]]
        index = pd.MultiIndex.from_arrays([np.full(len(matrix.item), task, dtype=object), *names], names=OUTPUT)
        tables.append(pd.DataFrame(matrix.values, index=index, columns=list(matrix.evaluators)))
    return pd.concat(tables)


def _wide(log: pd.DataFrame, column: str) -> pd.DataFrame | None:
    """A column of the log as a table like that of the scores; None where the log has no such column."""
    return log.pivot(index=OUTPUT, columns="evaluator", values=column) if column in log else None


def _rows(log: pd.DataFrame, score: pd.Series, cost: pd.Series | None, *, name: str, members) -> pd.DataFrame:
    """Rows of a new evaluator; what belongs to the output is copied from its first row."""
    first = log.drop_duplicates(OUTPUT).set_index(OUTPUT).loc[score.index].reset_index()
    made = first.assign(evaluator=name, score=score.to_numpy())
    if "cost" in log:
        made["cost"] = np.nan if cost is None else cost.loc[score.index].to_numpy()
    if "reference_based" in log:
        marks = log.loc[log["evaluator"].isin(list(members)), "reference_based"].unique()
        reads = any(str(mark).lower() in ("1", "1.0", "true") for mark in marks)
        made["reference_based"] = pd.Series(int(reads), index=made.index).astype(log["reference_based"].dtype)
    return made[list(log.columns)]


def _extended(log: pd.DataFrame, score: pd.Series, cost: pd.Series | None, *, name: str, members) -> pd.DataFrame:
    return pd.concat([log, _rows(log, score, cost, name=name, members=members)], ignore_index=True)
