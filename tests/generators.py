"""What the tests of the engine draw from: hypothesis strategies, and small score logs with every kind of gap."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from poq.synthetic import synthetic_log

# The same examples on every machine; compiling a kernel may take longer than hypothesis' deadline.
settings.register_profile("poq", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("poq")

# Ends and middle of the scale come up often, so that ties do; a subnormal score would only test the float format.
scores = st.one_of(
    st.sampled_from([0.0, 2.5, 5.0, 10.0]),
    st.floats(0, 10, allow_subnormal=False).map(lambda score: score + 0.0),
)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)


def committees(*, least: int = 1, most: int = 40):
    """Scores of one committee, (K,)."""
    return st.integers(least, most).flatmap(lambda k: hnp.arrays(np.float64, k, elements=scores))


@st.composite
def blocks(draw, *, least: int = 1, most: int = 9):
    """Scores of several rounds, (R, K)."""
    shape = draw(st.integers(1, 8)), draw(st.integers(least, most))
    return draw(hnp.arrays(np.float64, shape, elements=scores))


@st.composite
def reports(draw):
    """Honest scores, (..., K) of one to three dimensions, and a mask of malicious ones."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=6))
    return draw(hnp.arrays(np.float64, shape, elements=scores)), draw(hnp.arrays(bool, shape))


@st.composite
def networks(draw):
    """(scores, node, n_nodes): a few rounds of committees, nodes of a round different."""
    n_nodes = draw(st.integers(1, 7))
    committee = draw(st.integers(1, n_nodes))
    n_rounds = draw(st.integers(1, 12))
    said = draw(hnp.arrays(np.float64, (n_rounds, committee), elements=scores))
    rows = st.permutations(range(n_nodes)).map(lambda order: order[:committee])
    return said, np.array(draw(st.lists(rows, min_size=n_rounds, max_size=n_rounds))), n_nodes


@st.composite
def score_logs(draw):
    """A small valid score log: arbitrary names, some cells missing, some rows absent, any scale."""
    items, models, evaluators = (draw(st.lists(texts, min_size=1, max_size=3, unique=True)) for _ in range(3))
    task = draw(texts)
    number = st.floats(-1e6, 1e6, allow_subnormal=False)
    truth = {(i, m): draw(number) for i in items for m in models}
    rows = [
        (task, i, m, e, draw(st.one_of(number, st.just(float("nan")))), truth[i, m])
        for i in items
        for m in models
        for e in evaluators
        if draw(st.integers(0, 3))
    ] or [(task, items[0], models[0], evaluators[0], 1.0, 2.0)]
    return pd.DataFrame(rows, columns=["task", "item", "model", "evaluator", "score", "truth"])


def dense_log(*, seed: int = 0, n_items: int = 25, n_models: int = 3, n_evaluators: int = 9) -> pd.DataFrame:
    """Every evaluator scored every output; they differ in bias, gain, noise and cost."""
    traits = {
        f"e{e}": {"bias": 0.4 * (e % 3 - 1), "gain": 1 - 0.15 * (e % 4), "noise": 0.5 + 0.2 * (e % 5), "cost": 1 + e}
        for e in range(n_evaluators)
    }
    rng = np.random.default_rng(seed)
    return synthetic_log(rng, n_items=n_items, n_models=n_models, evaluators=traits, task="qa")


def gappy_log(*, seed: int = 0, share: float = 0.35) -> pd.DataFrame:
    """Two tasks on odd scales, discrete scores with many ties, missing cells, absent rows, costs partly unknown."""
    rng = np.random.default_rng(seed)
    log = dense_log(seed=seed, n_items=30, n_evaluators=7)
    log["score"] = np.round(log["score"]) * 3 - 40
    log["truth"] = np.round(log["truth"], 1) / 10
    log.loc[rng.random(len(log)) < share, "score"] = np.nan
    log.loc[log["model"] == "model-01", "model_cost"] = np.nan
    log.loc[log["evaluator"] == log["evaluator"].iloc[0], "cost"] = np.nan
    log = log[rng.random(len(log)) > 0.1]
    other = dense_log(seed=seed + 1, n_items=12, n_evaluators=4).assign(task="summary", cost=np.nan, model_cost=np.nan)
    return pd.concat([log, other], ignore_index=True).sample(frac=1, random_state=seed, ignore_index=True)
