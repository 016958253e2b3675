"""The score matrix: what the simulation sees of a score log, one task on the scale 0 to 10.

Apart from :mod:`poq.scorelog`, which makes it of a table, so that a worker process need not load what reads tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SCORE_MAX = 10.0
ROUNDING = 1e-12  # product of two standard deviations; less is what rounding leaves of a constant


@dataclass(frozen=True)
class ScoreMatrix:
    """The calibrated scores of one task.

    Attributes
    ----------
    task : str
    values : (O, E) float array in [0, 10]
        Score of evaluator e for output o; NaN where the evaluator did not score it.
    truth : (O,) float array in [0, 10]
    model, item : (O,) int arrays
        Index of each output's model in `models` and of its item in `items`.
    models, items, evaluators : tuple of str
        Names, sorted.
    model_cost : (M,) float array
    evaluator_cost : (E,) float array
        Mean cost in the unit of the log (seconds in the shipped one); NaN where the log does not say.
    """

    task: str
    values: np.ndarray
    truth: np.ndarray
    model: np.ndarray
    item: np.ndarray
    models: tuple[str, ...]
    items: tuple[str, ...]
    evaluators: tuple[str, ...]
    model_cost: np.ndarray
    evaluator_cost: np.ndarray

    # What every trial needs of the matrix and none changes is worked out once.
    @cached_property
    def skill(self) -> np.ndarray:
        """As :func:`correlations`."""
        return correlations(self)

    @cached_property
    def truth_tie(self) -> np.ndarray:
        """Number of each output's truth among the distinct truths, (O,), from the least."""
        return np.unique(self.truth, return_inverse=True)[1]

    @cached_property
    def patterns(self) -> tuple[np.ndarray, np.ndarray]:
        """Which evaluators scored an output: the distinct sets, (P, E) bool, and the number of each output's, (O,)."""
        known = ~np.isnan(self.values)
        if known.all():
            return known[:1], np.zeros(len(known), dtype=np.intp)
        sets, number = np.unique(known, axis=0, return_inverse=True)
        return sets, number.ravel()


def correlations(matrix: ScoreMatrix) -> np.ndarray:
    """Pearson correlation of each evaluator with the truth, (E,); NaN where undefined."""
    known = ~np.isnan(matrix.values)
    n = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.where(known, matrix.values, 0.0)
        x = np.where(known, x - x.sum(axis=0) / n, 0.0)
        y = np.where(known, matrix.truth[:, None], 0.0)
        y = np.where(known, y - y.sum(axis=0) / n, 0.0)
        spread = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
        spread[spread < ROUNDING * np.maximum(n, 1)] = np.nan
        return (x * y).sum(axis=0) / spread


def best_evaluator(matrix: ScoreMatrix) -> int:
    """Column of the evaluator with the highest Pearson correlation; the first one where none is defined."""
    return int(np.argmax(np.nan_to_num(matrix.skill, nan=-2.0)))
