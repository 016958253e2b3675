"""The rivals play the engine's mechanism, and the page says what the figures say."""

import importlib.util
import json
from functools import partial

import numpy as np
import pytest

from tests.benchmarks import measure, page, rivals

BOOK = measure.ROOT / "book"
PLAYERS = {
    "python": (rivals.play_python, 60_000),
    "numpy_floyd": (partial(rivals.play_numpy, replicates=16, draw=rivals.draw_floyd), 160_000),
    "numpy_argpartition": (partial(rivals.play_numpy, replicates=16, draw=rivals.draw_argpartition), 160_000),
    "mesa": (rivals.play_mesa, 40_000),
    "radcad": (rivals.play_radcad, 40_000),
}


@pytest.fixture(scope="module")
def log():
    return measure.make_log()


@pytest.mark.parametrize("jitter", [0.0, 0.5])
@pytest.mark.parametrize("name", PLAYERS)
def test_rivals_play_the_same_mechanism(name, jitter, log):
    if name in ("mesa", "radcad") and not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed")
    play, n_rounds = PLAYERS[name]
    ours = measure.play_engine(log, measure.make_scenario(5, jitter, 200_000)).iloc[0]
    theirs = play(measure.make_world(log, measure.make_scenario(5, jitter, 10)), n_rounds)
    assert set(theirs) == set(rivals.RESULTS)
    # Five standard errors of 40,000 rounds: points vary by about 2, pay by about 0.15.
    for result in rivals.RESULTS:
        tolerance = 0.05 if result in ("rmse", "mae", "bias") else 0.006
        assert theirs[result] == pytest.approx(ours[result], abs=tolerance), result


@pytest.mark.parametrize("draw", [rivals.draw_floyd, rivals.draw_argpartition])
def test_samplers_draw_without_replacement_and_evenly(draw):
    node = draw(np.random.default_rng(0), 12, 5, (30, 1000)).reshape(5, -1)
    assert (np.diff(np.sort(node, axis=0), axis=0) > 0).all()
    counts = np.bincount(node.ravel(), minlength=12)
    assert len(counts) == 12
    assert np.abs(counts - 12_500).max() < 5 * np.sqrt(30_000 * 5 / 12 * 7 / 12)


def test_the_page_shows_the_figures():
    """Both are written by ``make bench``; neither is edited by hand."""
    figures = json.loads((BOOK / "data" / "benchmarks.json").read_text(encoding="utf-8"))
    assert not figures["quick"]
    assert (BOOK / "benchmarks.md").read_text(encoding="utf-8") == page.markdown(figures)
