"""Simulation: scenarios in, one row of metrics per (scenario, trial) out.

``run`` checks everything first, plans jobs of scenarios that share their rounds, and plays them here, in processes or
on any executor. The rows depend on (log, scenario, seed, trial) only.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import numbers
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from poq import jobs
from poq.aggregators import AGGREGATORS
from poq.attacks import ATTACKS, Context, History, affine, asks_for, favour, target
from poq.engine import Attack, Case, Rule
from poq.matrix import SCORE_MAX, ScoreMatrix
from poq.rounds import make_pool
from poq.scorelog import check_log, matrix_of
from poq.trust import TRUST_RULES, TrustRule

CHOICES = {
    "malicious_nodes": ("random", "best", "worst"),
    "pay_reference": ("consensus", "leave_one_out"),
    "resample": ("none", "items"),
}
PAY = ("inference_alpha", "inference_beta", "evaluator_alpha", "evaluator_beta")
DRAW = ("committee", "n_nodes", "min_available", "jitter", "resample", "n_rounds", "burn_in")
MATRIX = ("task", "calibration", "truth_range")
OPTIONS = ("rule_options", "attack_options")
SEVERAL = (list, tuple, range, np.ndarray, pd.Series, pd.Index, pd.api.extensions.ExtensionArray)


@dataclass(frozen=True)
class Scenario:
    """One setting of the mechanism; field names are column names of the result.

    Parameters
    ----------
    task : str
        A task of the score log.
    rule : str
        A key of AGGREGATORS or TRUST_RULES.
    attack : str
        A key of ATTACKS.
    malicious_share : float in [0, 1]
        rho; floor(rho N + 0.5) nodes are malicious.
    committee : int
        K.
    n_nodes : int, optional
        N; one node per evaluator model of the log by default.
    n_rounds : int
        T.
    rule_options, attack_options : mapping
        Keyword options of the rule and the attack.
    calibration, truth_range
        As in :func:`poq.scorelog.score_matrix`.
    burn_in : int
        Rounds at the start that are played but left out of the metrics.
    jitter : float
        S.d. of a node's own noise, points, where several nodes run one evaluator model.
    min_available : int, optional
        Outputs that fewer nodes scored leave the draw; K by default.
    malicious_nodes : "random", "best" or "worst"
        Which nodes turn malicious: a random set, or by how well their evaluator tracks the truth.
    pay_reference : "consensus" or "leave_one_out"
        What an evaluator's score is compared with for its pay. Under a rule that corrects scores inside (calibrated,
        audited) the others' consensus is the weighted mean of their corrected scores, without what the rule adds of
        its own belief about the truth.
    resample : "none" or "items"
        "items": each trial plays on a bootstrap sample of the log's items, so that the spread between trials says how
        far a result hangs on the items at hand.
    inference_alpha, inference_beta, evaluator_alpha, evaluator_beta : float
        Factors of quality and cost in the pay of each role.

    Raises
    ------
    ValueError
        Names the field and the value at fault.
    """

    task: str
    rule: str = "mean"
    attack: str = "none"
    malicious_share: float = 0.0
    committee: int = 5
    n_nodes: int | None = None
    n_rounds: int = 5000
    rule_options: Mapping = field(default_factory=dict, hash=False)
    attack_options: Mapping = field(default_factory=dict, hash=False)
    calibration: str | tuple | Mapping = field(default="minmax", hash=False)
    truth_range: tuple | None = None
    burn_in: int = 0
    jitter: float = 0.5
    min_available: int | None = None
    malicious_nodes: str = "random"
    pay_reference: str = "consensus"
    resample: str = "none"
    inference_alpha: float = 0.7
    inference_beta: float = 0.3
    evaluator_alpha: float = 0.7
    evaluator_beta: float = 0.3

    def __post_init__(self):
        def keep(name, value):
            object.__setattr__(self, name, value)

        for name in ("task", "rule", "attack"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a text, not {getattr(self, name)!r}")
        for name in ("committee", "n_rounds", "burn_in"):
            keep(name, _whole(name, getattr(self, name), least=0 if name == "burn_in" else 1))
        for name in ("n_nodes", "min_available"):
            if getattr(self, name) is not None:
                keep(name, _whole(name, getattr(self, name), least=1))
        for name in ("malicious_share", "jitter", *PAY):
            keep(name, _real(name, getattr(self, name)))
        if not 0 <= self.malicious_share <= 1:
            raise ValueError(f"malicious_share must lie in [0, 1], not {self.malicious_share!r}")
        if self.jitter < 0:
            raise ValueError(f"jitter must be 0 or more, not {self.jitter!r}")
        if self.burn_in >= self.n_rounds:
            raise ValueError(f"burn_in ({self.burn_in}) must be smaller than n_rounds ({self.n_rounds})")
        if self.rule not in AGGREGATORS and self.rule not in TRUST_RULES:
            raise ValueError(f"unknown rule '{self.rule}': use one of {', '.join([*AGGREGATORS, *TRUST_RULES])}")
        if self.attack not in ATTACKS:
            raise ValueError(f"unknown attack '{self.attack}': use one of {', '.join(ATTACKS)}")
        for name, choices in CHOICES.items():
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} '{getattr(self, name)}': use one of {', '.join(choices)}")
        if self.pay_reference == "leave_one_out" and self.committee < 2:
            raise ValueError("pay_reference 'leave_one_out' needs committee 2 or more, not 1")
        for name in OPTIONS:
            options = getattr(self, name)
            if not isinstance(options, Mapping):
                raise ValueError(f"{name} must be a mapping, not {options!r}")
            keep(name, dict(options))
        for name in ("calibration", "truth_range"):
            if isinstance(getattr(self, name), list | np.ndarray):
                keep(name, tuple(getattr(self, name)))
        _check_function("rule", self.rule, _rule_function(self.rule), self.rule_options)
        _check_function("attack", self.attack, ATTACKS[self.attack], self.attack_options)
        self._try_functions()

    def _try_functions(self) -> None:
        """Call attack and rule once on committees of this size: what is wrong fails here, not after an hour."""
        committee = min(self.committee, 1000)  # whether so many nodes are at hand is asked later
        shape = (3 if committee == 2 else 2, committee)  # not square, so that a wrong axis shows
        scores = np.linspace(0, SCORE_MAX, shape[0] * shape[1]).reshape(shape)
        scores.flags.writeable = False
        malicious = np.arange(scores.size).reshape(shape) % 2 == 0
        malicious.flags.writeable = False
        node = np.tile(np.arange(committee), (shape[0], 1))
        options = dict(self.attack_options)
        if asks_for(ATTACKS[self.attack], "context"):
            options["context"] = Context(np.arange(len(node)), *np.zeros((2, len(node)), int), node)
        if asks_for(ATTACKS[self.attack], "history"):
            options["history"] = History(np.zeros(0), np.ones(node.shape))
        told = f" with {self.attack_options}" if self.attack_options else ""
        try:
            reported = ATTACKS[self.attack](scores, malicious, np.random.default_rng(0), **options)
            reported = np.asarray(reported, dtype=np.float64)
            if np.shape(reported) != shape:
                raise ValueError(f"returns shape {np.shape(reported)} for scores of shape {shape}")
            if (reported[~malicious] != scores[~malicious]).any():
                raise ValueError("changes the reports of honest nodes")
            _check_range(reported)
        except Exception as error:  # whatever a function of a reader's own may raise
            raise ValueError(f"attack '{self.attack}'{told}: {error}") from error
        told = f" with {self.rule_options}" if self.rule_options else ""
        try:
            if self.rule in TRUST_RULES:
                TRUST_RULES[self.rule].start(committee, **self.rule_options)
            else:
                consensus = np.asarray(AGGREGATORS[self.rule](scores, **self.rule_options), dtype=np.float64)
                if np.shape(consensus) != shape[:1]:
                    raise ValueError(f"returns shape {np.shape(consensus)} for scores of shape {shape}")
                _check_range(consensus)
        except Exception as error:  # whatever a function of a reader's own may raise
            raise ValueError(f"rule '{self.rule}'{told}: {error}") from error


def _check_range(scores) -> None:
    if not ((scores >= -1e-9) & (scores <= SCORE_MAX + 1e-9)).all():
        raise ValueError("gives scores outside [0, 10], or NaN")


def _whole(name: str, value, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")
    return int(value)


def _real(name: str, value) -> float:
    try:
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else np.nan
    except OverflowError:
        number = np.inf
    if not np.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return number


def _rule_function(rule: str) -> Callable | TrustRule:
    return TRUST_RULES[rule] if rule in TRUST_RULES else AGGREGATORS[rule]


def _check_function(what: str, name: str, function, options: Mapping) -> None:
    if not isinstance(function, Hashable):
        raise ValueError(f"{what} '{name}' is an object that has __eq__ but no __hash__; use a function, or add one")
    start = function.start if isinstance(function, TrustRule) else function
    parameters = inspect.signature(start).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    options_of = [p for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty]
    known = [p.name for p in options_of if p.name not in ("context", "history")]
    for option in options:
        if option not in known:
            raise ValueError(f"unknown option '{option}' of '{name}': it has {', '.join(known) or 'none'}")


def grid(**lists) -> list[Scenario]:
    """All combinations of the given field values, the last field fastest.

    A list, tuple, range, array, Series or Index varies its field; anything else is one value for all. For
    `calibration` and `truth_range`, where a tuple is one value, only a list varies.

    Examples
    --------
    >>> [s.rule for s in grid(task="qa", rule=["mean", "median"], committee=3)]
    ['mean', 'median']
    """
    names = {f.name for f in dataclasses.fields(Scenario)}
    for name in lists:
        if name not in names:
            raise ValueError(f"unknown field '{name}' of Scenario: it has {', '.join(sorted(names))}")

    def choices(name, value):
        varies = (list,) if name in ("calibration", "truth_range") else SEVERAL
        return list(value) if isinstance(value, varies) else [value]

    expanded = [choices(name, value) for name, value in lists.items()]
    return [Scenario(**dict(zip(lists, values))) for values in itertools.product(*expanded)]


def run(
    log: pd.DataFrame,
    scenarios: Sequence[Scenario] | Scenario,
    *,
    trials: int,
    seed: int,
    executor: Executor | None = None,
    out=None,
    progress: bool = True,
    item_sums: bool = False,
) -> pd.DataFrame:
    """Simulate scenarios.

    Parameters
    ----------
    log : DataFrame
        A score log.
    scenarios : sequence of Scenario
    trials : int
        Independent repetitions; trial i is the same whatever their number.
    seed : int
        Root seed, 0 or more.
    executor : concurrent.futures.Executor, optional
        Where jobs run. By default they run in this process when the work is estimated under ten seconds, and in one
        process per core above.
    out : path, optional
        A folder that keeps finished jobs as Parquet parts. The same call completes what is missing; a call with
        another log, scenario list, seed or number of trials is refused.
    progress : bool
        Show a progress bar on stderr.
    item_sums : bool
        Add a column `item_sums` with what :func:`poq.claims.bootstrap` needs to resample items afterwards.

    Returns
    -------
    DataFrame
        One row per (scenario, trial), in that order: the fields of the scenario (options as JSON text), trial,
        and the metrics described in :mod:`poq.metrics`.

    Raises
    ------
    ValueError
        Before any work starts, naming what does not fit.
    """
    if not isinstance(scenarios, Scenario | Iterable):
        raise ValueError(f"scenarios must be a list of Scenario, not {type(scenarios).__name__}")
    scenarios = [scenarios] if isinstance(scenarios, Scenario) else list(scenarios)
    trials, seed = _whole("trials", trials, least=1), _whole("seed", seed, least=0)
    for number, scenario in enumerate(scenarios):
        if not isinstance(scenario, Scenario):
            raise ValueError(f"scenarios[{number}] is no Scenario but {type(scenario).__name__}")
    if not scenarios:
        raise ValueError("scenarios must not be empty")
    log = check_log(log)
    if out is not None and not isinstance(out, str | os.PathLike):
        raise ValueError(f"out must be the path of a folder, not {out!r}")
    if item_sums and out is not None:
        raise ValueError("item_sums cannot be kept in a folder: leave out either item_sums or out")
    fields = [_text_fields(scenario) for scenario in scenarios]
    plan, matrices = _plan(log, scenarios, fields, trials=trials, seed=seed)
    for group in plan if item_sums else ():
        group.draw["item_sums"] = True
    where = {"executor": executor, "out": out, "progress": progress}
    measured = jobs.execute(plan, matrices, log=log, scenarios=fields, seed=seed, trials=trials, **where)
    return _frame(fields, measured)


def _plan(log: pd.DataFrame, scenarios: list[Scenario], their_fields: list[dict], *, trials: int, seed: int):
    """Groups of scenarios that share their rounds, and the matrices they play on; all input is checked here."""
    matrices: dict[str, ScoreMatrix] = {}
    groups: dict[str, jobs.Group] = {}
    attacks: dict[str, Attack] = {}
    rules: dict[str, Rule] = {}
    for number, (scenario, fields) in enumerate(zip(scenarios, their_fields)):
        matrix_key = json.dumps([fields[name] for name in MATRIX])
        if matrix_key not in matrices:
            matrices[matrix_key] = matrix_of(log, **{name: getattr(scenario, name) for name in MATRIX})
        key = json.dumps([matrix_key, *(fields[name] for name in DRAW)])
        _check_partner(matrices[matrix_key], scenario)
        if key not in groups:
            draw = {name: getattr(scenario, name) for name in DRAW}
            _check_pool(matrices[matrix_key], draw, trials=trials, seed=seed)
            groups[key] = jobs.Group(matrix_key, draw, [], [])
        attack_fields = ("attack", "attack_options", "malicious_share", "malicious_nodes")
        attack_key = json.dumps([fields[name] for name in attack_fields])
        rule_key = json.dumps([fields[name] for name in ("rule", "rule_options", "pay_reference")])
        if attack_key not in attacks:
            function = None if scenario.attack == "none" else ATTACKS[scenario.attack]
            attacks[attack_key] = Attack(
                function, scenario.attack_options, scenario.malicious_share, scenario.malicious_nodes
            )
        if rule_key not in rules:
            rules[rule_key] = Rule(_rule_function(scenario.rule), scenario.rule_options, scenario.pay_reference)
        pay = {name: getattr(scenario, name) for name in PAY}
        groups[key].cases.append(Case(attacks[attack_key], rules[rule_key], pay))
        groups[key].numbers.append(number)
    return list(groups.values()), matrices


def _check_partner(matrix: ScoreMatrix, scenario: Scenario) -> None:
    partner = scenario.attack_options.get("partner", 0)
    ours = ATTACKS[scenario.attack] in (target, favour, affine)  # another's option of this name may mean anything
    if ours and partner >= len(matrix.models):
        raise ValueError(
            f"attack '{scenario.attack}': partner must be one of the {len(matrix.models)} models of task "
            f"'{matrix.task}', counted from 0, not {partner}"
        )


def _check_pool(matrix: ScoreMatrix, draw: dict, *, trials: int, seed: int) -> None:
    shape = {name: draw[name] for name in ("committee", "n_nodes", "min_available")}
    # Which evaluators take part is drawn per trial only when there are fewer nodes than evaluators.
    varies = draw["n_nodes"] is not None and draw["n_nodes"] < matrix.values.shape[1] and np.isnan(matrix.values).any()
    for trial in range(trials if varies else 1):
        make_pool(matrix, seed=seed, trial=trial, **shape)


def _text_fields(scenario: Scenario) -> dict:
    """The fields as they stand in the frame: options, and ranges where stated, as JSON text."""
    fields = {f.name: getattr(scenario, f.name) for f in dataclasses.fields(scenario)}
    for name in (*OPTIONS, "calibration", "truth_range"):
        if fields[name] is not None and not isinstance(fields[name], str):
            try:
                fields[name] = json.dumps(fields[name], sort_keys=True, default=_plain)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: {error}") from error
    return fields


def _plain(value):
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise ValueError(f"must be made of numbers, texts or lists of them, not {value!r}")


def _frame(fields: list[dict], measured: pd.DataFrame) -> pd.DataFrame:
    settings = pd.DataFrame(fields).iloc[measured["scenario_number"]].reset_index(drop=True)
    frame = pd.concat([settings, measured.drop(columns="scenario_number")], axis=1)
    for name in ("n_nodes", "min_available"):
        frame[name] = frame[name].astype("Int64")
    frame["truth_range"] = frame["truth_range"].astype("str").where(frame["truth_range"].notna(), None)
    return frame


def metric_columns(frame: pd.DataFrame) -> list[str]:
    """Columns of a result that are measured, not set."""
    settings = {f.name for f in dataclasses.fields(Scenario)} | {"trial"}
    return [name for name in frame.columns if name not in settings and pd.api.types.is_numeric_dtype(frame[name])]


def summarize(frame: pd.DataFrame, by) -> pd.DataFrame:
    """Mean, standard error and n of every metric over trials.

    Parameters
    ----------
    frame : DataFrame
        As :func:`run` returns it.
    by : str or list of str
        Columns that tell rows apart, for example ["task", "rule", "malicious_share"]. Rows of one group count as
        independent: name every column that varies beside the trial, or average within trials first, because settings
        that share their rounds do not vary independently.

    Returns
    -------
    DataFrame
        Long: the columns of `by`, then metric, mean, standard_error, n. Undefined values are left out of mean and n;
        the standard error of one value is NaN.
    """
    by = [by] if isinstance(by, str) else list(by)
    for name in by:
        if name not in frame:
            raise ValueError(f"no column '{name}' in the frame")
    metrics = [name for name in metric_columns(frame) if name not in by]
    long = frame.melt(id_vars=by, value_vars=metrics, var_name="metric", value_name="value")
    long["value"] = long["value"].astype("float64")
    grouped = long.groupby([*by, "metric"], sort=False, dropna=False, observed=True)["value"]
    return grouped.agg(mean="mean", standard_error="sem", n="count").reset_index()


def compare(frame: pd.DataFrame, *, baseline: str = "mean", by=()) -> pd.DataFrame:
    """Paired differences between rules: rule minus baseline on the same rounds, attackers and draws.

    Parameters
    ----------
    frame : DataFrame
        As :func:`run` returns it, with rows of the baseline rule.
    baseline : str
        The rule that is subtracted, with its default options.
    by : list of str
        Columns to keep apart, beside rule and rule_options.

    Returns
    -------
    DataFrame
        Long: the columns of `by`, rule, rule_options, metric, difference, standard_error, n.
    """
    by = [by] if isinstance(by, str) else list(by)
    settings = [f.name for f in dataclasses.fields(Scenario) if f.name not in ("rule", "rule_options")]
    for name in ("rule", "rule_options", *settings, "trial", *by):
        if name not in frame:
            raise ValueError(f"no column '{name}' in the frame; rows are paired by all settings and the trial")
    pair = [*settings, "trial"]
    base = frame[(frame["rule"] == baseline) & (frame["rule_options"] == "{}")]
    if base.empty:
        raise ValueError(f"the frame has no rows of the baseline rule '{baseline}' with its default options")
    metrics = metric_columns(frame)
    keys = pd.MultiIndex.from_frame(frame[pair].astype("object").where(frame[pair].notna(), ""))
    base = base.drop_duplicates(pair)  # a scenario that stands twice in the list
    base_keys = pd.MultiIndex.from_frame(base[pair].astype("object").where(base[pair].notna(), ""))
    row = base_keys.get_indexer(keys)
    if (row < 0).any():
        raise ValueError(f"{int((row < 0).sum())} row(s) have no row of '{baseline}' with the same settings and trial")
    differences = frame[[*settings, "rule", "rule_options", "trial"]].copy()
    values = frame[metrics].to_numpy(dtype=float) - base[metrics].to_numpy(dtype=float)[row]
    differences = pd.concat([differences, pd.DataFrame(values, columns=metrics, index=frame.index)], axis=1)
    differences = differences[(differences["rule"] != baseline) | (differences["rule_options"] != "{}")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        summary = summarize(differences, [*by, "rule", "rule_options"])
    return summary.rename(columns={"mean": "difference"})
