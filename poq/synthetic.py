"""Score logs with a known truth: worlds in which every evaluator's bias, gain and noise are set by hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from poq.matrix import SCORE_MAX


def synthetic_log(
    rng: np.random.Generator,
    *,
    n_items: int,
    n_models: int,
    evaluators: int | Mapping[str, Mapping[str, float]],
    task: str = "synthetic",
    truth_mean: float = 5.0,
    truth_sd: float = 2.0,
    model_sd: float = 1.0,
) -> pd.DataFrame:
    """A score log in which evaluator e reports clip(5 + bias + gain * (q - 5) + noise * z + cluster_noise * u, 0, 10).

    Parameters
    ----------
    rng : numpy Generator
    n_items, n_models : int
    evaluators : int or mapping
        A number of equal evaluators (bias 0, gain 1, noise 1, cost 1), or for each name a mapping with any of
        ``bias`` (points), ``gain``, ``noise`` (s.d., points), ``cost``, and for errors that evaluators share
        ``cluster`` (any label) with ``cluster_noise`` (s.d., points): u is one draw per output and cluster.
    task : str
    truth_mean, truth_sd : float
        Mean and s.d. of the truth over outputs, points; the truth is clipped to [0, 10].
    model_sd : float
        The part of `truth_sd` that lies between models; the rest lies within.

    Returns
    -------
    DataFrame
        A score log with cost and model_cost (better models cost more).
    """
    if n_items < 1 or n_models < 1:
        raise ValueError(f"n_items and n_models must be at least 1, not {n_items} and {n_models}")
    if not 0 <= model_sd <= truth_sd:
        raise ValueError(f"model_sd must lie between 0 and truth_sd ({truth_sd:g}), not {model_sd:g}")
    if isinstance(evaluators, int):
        evaluators = {f"evaluator-{number:03d}": {} for number in range(evaluators)}
    if not evaluators:
        raise ValueError("evaluators must not be empty")
    known = {"bias", "gain", "noise", "cost", "cluster", "cluster_noise"}
    for name, traits in evaluators.items():
        if set(traits) - known:
            raise ValueError(f"evaluator '{name}' has the unknown trait '{min(set(traits) - known)}'")

    quality = np.linspace(-1, 1, n_models) if n_models > 1 else np.zeros(1)
    if n_models > 1:
        quality = quality / quality.std()
    within = np.sqrt(truth_sd**2 - model_sd**2)
    truth = truth_mean + model_sd * quality + within * rng.standard_normal((n_items, n_models))
    truth = np.clip(truth, 0, SCORE_MAX).ravel()
    shared: dict[object, np.ndarray] = {}
    frames = []
    item = np.repeat([f"item-{i:05d}" for i in range(n_items)], n_models)
    model = np.tile([f"model-{m:02d}" for m in range(n_models)], n_items)
    model_cost = np.tile(np.linspace(0.5, 2.0, n_models), n_items)
    for name, traits in evaluators.items():
        score = 5 + traits.get("bias", 0.0) + traits.get("gain", 1.0) * (truth - 5)
        score = score + traits.get("noise", 1.0) * rng.standard_normal(truth.shape)
        if "cluster" in traits:
            label = traits["cluster"]
            if label not in shared:
                shared[label] = rng.standard_normal(truth.shape)
            score = score + traits.get("cluster_noise", 1.0) * shared[label]
        frames.append(
            pd.DataFrame(
                {
                    "task": task,
                    "item": item,
                    "model": model,
                    "evaluator": name,
                    "score": np.clip(score, 0, SCORE_MAX),
                    "truth": truth,
                    "cost": float(traits.get("cost", 1.0)),
                    "model_cost": model_cost,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
