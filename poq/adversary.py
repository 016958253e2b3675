"""Best response: the attack that serves an attacker most against a given rule, found by search.

The search moves in the family of :func:`poq.attacks.affine` and starts from the attacks of the paper that the family
holds. The best of many noisy evaluations looks better than it is, so a shortlist is scored on seeds of its own, and its
winner again on fresh ones. The budget is reported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import optimize
from scipy.stats import qmc

from poq.simulate import Scenario, run

# Bounds of the search: options of the attack `affine`.
SPACE = {"gain": (-1.0, 2.0), "shift": (-10.0, 10.0), "sd": (0.0, 5.0), "probability": (0.0, 1.0)}
PARTNER_SPACE = {**SPACE, "partner_shift": (-10.0, 10.0)}

HONEST = {"gain": 1.0, "shift": 0.0, "sd": 0.0, "probability": 1.0, "partner_shift": 0.0}
# Where the search starts, beside random points: honesty, and what the simple attacks do.
KNOWN = (
    {},
    {"shift": 3.0},
    {"shift": -3.0},
    {"shift": 10.0},
    {"shift": -10.0},
    {"shift": 3.0, "probability": 0.3},
    {"sd": 3.0},
    {"gain": -1.0},
    {"gain": 0.0},
    {"partner_shift": 10.0},
    {"shift": -3.0, "partner_shift": 6.0},
)
POPULATION = 40  # candidates that are played side by side
SHORTLIST = 5  # candidates that are scored a second time

# What an attacker may want, as a column of the result; a minus sign means: as little as possible.
OBJECTIVES = {
    "error": "rmse",
    "misrank": "-pearson",
    "partner_pay": "inference_reward[{partner}]",
    "own_pay": "evaluator_reward_malicious",
    "rivals_pay": "-evaluator_reward_honest",
}


def best_response(
    log: pd.DataFrame,
    scenario: Scenario,
    *,
    objective: str = "error",
    partner: str | None = None,
    evaluations: int = 200,
    trials: int = 2,
    seed: int = 0,
    fresh_trials: int = 10,
    space: Mapping[str, tuple[float, float]] | None = None,
) -> dict:
    """Search the attack options that maximise an objective against the rule of a scenario.

    Parameters
    ----------
    log : DataFrame
        A score log.
    scenario : Scenario
        Rule, share, committee and sizes; its attack is replaced by ``affine``.
    objective : str
        A key of OBJECTIVES.
    partner : str, optional
        Name of the inference model that the attackers favour; needed for "partner_pay".
    evaluations : int
        Budget: at least so many candidates are simulated, `trials` trials each.
    seed : int
        Root seed of the search; the shortlist is scored with seed + 2, its winner with seed + 1.
    fresh_trials : int
        Trials of the shortlist, and of the winner.
    space : mapping, optional
        Option of ``affine`` -> (low, high).

    Returns
    -------
    dict
        objective, rule, options (of the winner), found (the best mean objective that the search saw), value and
        standard_error (of the winner on fresh seeds), honest (the objective without attack on the same fresh seeds),
        evaluations, trials, fresh_trials.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"unknown objective '{objective}': use one of {', '.join(OBJECTIVES)}")
    column = OBJECTIVES[objective]
    fixed = {}
    if "{partner}" in column:
        models = sorted(log.loc[log["task"] == scenario.task, "model"].unique())
        if partner not in models:
            raise ValueError(f"partner must be one of {', '.join(models)}, not {partner!r}")
        column = column.format(partner=partner)
        fixed = {"partner": models.index(partner)}
    space = dict(space or (PARTNER_SPACE if fixed else SPACE))
    sign, column = (-1.0, column[1:]) if column.startswith("-") else (1.0, column)

    log = log[log["task"] == scenario.task]

    def measure(attack: str, many_options: list[dict], *, trials: int, seed: int) -> np.ndarray:
        """The objective, (candidates, trials); all candidates play on the same rounds."""
        played = [dataclasses.replace(scenario, attack=attack, attack_options=options) for options in many_options]
        return sign * run(log, played, trials=trials, seed=seed, progress=False)[column].to_numpy().reshape(-1, trials)

    honest = measure("none", [{}], trials=fresh_trials, seed=seed + 1)[0]  # first, so that bad input is said at once
    seen: list[tuple[float, dict]] = []

    def cost(points: np.ndarray) -> np.ndarray:
        """Minus the objective of each column of `points`, (dimensions, candidates)."""
        candidates = [{**fixed, **{name: float(value) for name, value in zip(space, point)}} for point in points.T]
        values = np.nan_to_num(measure("affine", candidates, trials=trials, seed=seed).mean(axis=1), nan=-np.inf)
        seen.extend(zip(values.tolist(), candidates))
        return -values

    optimize.differential_evolution(
        cost,
        list(space.values()),
        init=_first_population(space, np.random.default_rng(seed)),
        maxiter=math.ceil(evaluations / POPULATION) - 1,
        tol=0.0,
        rng=np.random.default_rng(seed),
        polish=False,
        updating="deferred",
        vectorized=True,
    )
    seen.sort(key=lambda pair: -pair[0])
    shortlist = [options for _, options in seen[:SHORTLIST]]
    again = np.nan_to_num(measure("affine", shortlist, trials=fresh_trials, seed=seed + 2).mean(axis=1), nan=-np.inf)
    found, options = seen[0][0], shortlist[int(again.argmax())]
    fresh = measure("affine", [options], trials=fresh_trials, seed=seed + 1)[0]
    return {
        "objective": objective,
        "rule": scenario.rule,
        "options": options,
        "found": sign * found,
        "value": sign * float(fresh.mean()),
        "standard_error": float(fresh.std(ddof=1) / np.sqrt(fresh_trials)) if fresh_trials > 1 else float("nan"),
        "honest": sign * float(honest.mean()),
        "evaluations": len(seen),
        "trials": trials,
        "fresh_trials": fresh_trials,
    }


def _first_population(space: Mapping[str, tuple[float, float]], rng: np.random.Generator) -> np.ndarray:
    """Points (POPULATION, dimensions): the known attacks that lie in the space, the rest spread over it."""
    low, high = np.array(list(space.values()), dtype=float).T
    points = qmc.scale(qmc.LatinHypercube(len(space), rng=rng).random(POPULATION), low, high)
    known = [options for options in KNOWN if set(options) <= set(space)]
    for row, options in zip(points, known):
        row[:] = np.clip([{**HONEST, **options}[name] for name in space], low, high)
    return points
