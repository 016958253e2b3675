"""The explorer: a whole sweep in one page, with controls that choose what is shown, and nothing to fetch.

:func:`tabulate` turns simulated rows into one row per setting, which a chapter saves as CSV; :func:`page` puts the same
numbers into HTML. Markup, style and script stand in ``explorer.html`` beside this module.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from poq import plotting
from poq.claims import subtract
from poq.escape import reveal

SETTING = ["task", "attack", "malicious_share", "committee", "rule"]
DECIMALS = 4  # of the table and of the page, so that both hold the same numbers

# Measure: heading of its column, what a chart of it shows, unit, and whether it is a difference.
MEASURES = {
    "pearson": ("Pearson", "Pearson correlation with the truth", "", False),
    "pearson_minus_mean": ("Pearson minus mean's", "Pearson correlation minus the mean's", "", True),
    "rmse": ("RMSE (points)", "RMSE of the consensus", "points", False),
    "evaluator_reward_honest": ("honest pay", "Pay of honest evaluators", "per participation", False),
    "evaluator_reward_malicious": ("malicious pay", "Pay of malicious evaluators", "per participation", False),
    "inflation_inference": ("inflation (inference)", "Payout inflation, inference nodes", "per round", True),
    "inflation_total": ("inflation (all roles)", "Payout inflation, all roles", "per round", True),
}
# What one has without a committee, and without any attack: label, then per measure a column of the table.
BASELINES = {
    "best single evaluator": {"pearson": "best_single_pearson", "rmse": "best_single_rmse"},
    "random single evaluator": {"pearson": "random_single_pearson", "rmse": "random_single_rmse"},
    "constant: mean truth": {"rmse": "constant_rmse"},
}
_BASELINE_COLUMNS = [column for columns in BASELINES.values() for column in columns.values()]


def tabulate(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: mean and standard error of each measure over trials.

    Parameters
    ----------
    frame : DataFrame
        Rows of :func:`poq.simulate.run`, with rows of the rule "mean" for every setting of the others.

    Returns
    -------
    DataFrame
        The columns of SETTING, n_malicious, n (defined trials; the least over the measures that are defined at all),
        and mean and standard error (`<name>_se`) of each measure, of the realised shift of a malicious report, of the
        baselines and of the verification cost per output. Rounded to DECIMALS, but not the cost, whose unit is the
        log's.

    Raises
    ------
    ValueError
        If a setting has several rows for one trial, or no row of the mean.
    """
    if frame.duplicated([*SETTING, "trial"]).any():
        raise ValueError("several rows for one setting and trial: give each rule and attack one set of options")
    frame = frame.assign(pearson_minus_mean=frame["pearson"])
    same = [name for name in (*SETTING, "trial") if name != "rule"]
    frame = subtract(frame, frame[frame["rule"] == "mean"], on=same, metrics=["pearson_minus_mean"])
    frame.loc[frame["rule"] == "mean", "pearson_minus_mean"] = np.nan
    groups = frame.groupby(SETTING, sort=False)
    names = [*MEASURES, "attack_shift", *_BASELINE_COLUMNS, "verification_cost"]
    mean, error, count = groups[names].mean(), groups[names].sem(), groups[list(MEASURES)].count()
    table = pd.DataFrame({"n_malicious": groups["n_malicious"].first()})
    table["n"] = count.where(count > 0).min(axis=1).fillna(0).astype(int)
    for name in names:
        table[name], table[f"{name}_se"] = mean[name], error[name]
    rounded = [column for column in table if not column.startswith("verification_cost")]
    # Adding zero turns -0.0 into 0.0.
    return table.round(dict.fromkeys(rounded, DECIMALS)).add(0).reset_index()


def page(table: pd.DataFrame, *, start: Mapping[str, object], labels: Mapping[str, str] | None = None) -> str:
    """HTML of the explorer over a table of :func:`tabulate`.

    Parameters
    ----------
    table : DataFrame
        Every task, committee and rule without attack, and under every attack at every share above 0.
    start : mapping
        Values of SETTING that are shown first.
    labels : mapping, optional
        How readers see an attack, such as ``{"boost": "boost (by 3)"}``.

    Raises
    ------
    ValueError
        If a combination has no row, or the start is none of them.
    """
    values = {name: list(dict.fromkeys(table[name].tolist())) for name in SETTING}
    values["attack"] = ["none", *(name for name in values["attack"] if name != "none")]
    values["malicious_share"] = sorted({0.0, *values["malicious_share"]})
    values["committee"] = sorted(values["committee"])
    for name in SETTING:
        if start[name] not in values[name]:
            raise ValueError(f"start: {name} {start[name]!r} is not in the table")
    tasks, attacks, shares, committees, rules = values.values()
    # The script finds a row by its place in this order.
    conditions = [("none", 0.0), *itertools.product(attacks[1:], shares[1:])]
    order = [
        (task, *condition, committee, rule)
        for task, condition, committee, rule in itertools.product(tasks, conditions, committees, rules)
    ]
    rows = table.set_index(SETTING)
    missing = [setting for setting in order if setting not in rows.index]
    if missing:
        raise ValueError(f"{len(missing)} setting(s) have no row, the first is {missing[0]}")
    rows = rows.loc[order]
    honest = rows.loc[[(task, "none", 0.0, committee, rules[0]) for task in tasks for committee in committees]]
    fields = {
        "task": [_choice(task) for task in tasks],
        "attack": [_choice(attack, (labels or {}).get(attack)) for attack in attacks],
        "share": [_choice(f"{share:g}") for share in shares],
        "committee": [_choice(committee) for committee in committees],
        "rule": [_choice(rule, plotting.rule_label(rule)) | _colour(rule) for rule in rules],
        "measure": [
            {"name": name, "heading": heading, "label": label, "unit": unit, "signed": signed}
            for name, (heading, label, unit, signed) in MEASURES.items()
        ],
    }
    at = [values[name].index(start[name]) for name in SETTING]
    data = {
        "scale": 10**DECIMALS,
        "fields": fields,
        "start": dict(zip(fields, [*at, 0])),
        "rows": _whole(rows, [*MEASURES, "attack_shift"], first=["n", "n_malicious"]),
        "baselines": [
            {
                "label": label,
                "column": [_BASELINE_COLUMNS.index(columns[name]) if name in columns else None for name in MEASURES],
            }
            for label, columns in BASELINES.items()
        ],
        "baselineRows": _whole(honest, _BASELINE_COLUMNS),
    }
    markup = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
    return markup.replace("<!-- data -->", _script_safe(data))


def _choice(name, label: str | None = None) -> dict[str, str]:
    """A value of a control: as the address bar holds it, and as readers see it."""
    return {"name": str(name), "label": reveal(label or str(name), limit=60)}


def _colour(rule: str) -> dict[str, str]:
    return {"colour": plotting.rule_style(rule)["color"]}


def _whole(rows: pd.DataFrame, names: list[str], first: list[str] = ()) -> list[list[int | None]]:
    """Per row the columns of `first`, then mean and standard error of each name in units of the last decimal."""
    columns = [column for name in names for column in (name, f"{name}_se")]
    scaled = (rows[columns] * 10**DECIMALS).round().to_numpy()
    return [
        [*map(int, counts), *(int(value) if np.isfinite(value) else None for value in row)]
        for counts, row in zip(rows[list(first)].to_numpy(), scaled)
    ]


def _script_safe(value) -> str:
    """JSON that can stand in an HTML script element, whatever texts it holds: no markup can begin in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
