"""Peers on clean rounds: where one computes what one of ours computes, the two agree; and the committed figures."""

import inspect
import json
import math
import re

import numpy as np
import pytest

from poq import aggregators, offline
from poq.metrics import pearson
from tests.peers import measure
from tests.peers.__main__ import OUT, gather
from tests.peers.adapters import BINS, LICENCES, MODULES, PEERS, bin_scores, crowdkit_labels, installed


def clean_rounds(seed=3, n_nodes=6, n_outputs=60, committee=4, n_rounds=400):
    """Honest nodes with unequal bias and noise; no clipping."""
    rng = np.random.default_rng(seed)
    output = rng.integers(n_outputs, size=n_rounds)
    truth = rng.normal(5, 1, n_outputs)
    node = np.argsort(rng.random((n_rounds, n_nodes)), axis=1)[:, :committee]
    bias, noise = rng.normal(0, 0.4, n_nodes), rng.uniform(0.2, 0.6, n_nodes)
    reports = truth[output][:, None] + bias[node] + noise[node] * rng.standard_normal(node.shape)
    return reports, node, output, truth[output]


def play(name, reports, node, output):
    if not installed(PEERS[name].package):
        pytest.skip(f"{PEERS[name].package} is not installed; make peers has it in .venv-peers")
    return PEERS[name].estimate(reports, node, output, int(node.max()) + 1, int(output.max()) + 1)


@pytest.mark.parametrize("pooled", [True, False], ids=["by output", "by round"])
def test_sureal_finds_the_same_qualities_as_our_p910(pooled):
    reports, node, output, _ = clean_rounds()
    output = output if pooled else np.arange(len(output))
    ours = offline.p910(reports, node, output, steps=500)
    # Round by round the noise of one node falls to its floor, and the floors differ: 1e-3 here, 1e-8 there.
    found = play("sureal: P.910", reports, node, output)
    np.testing.assert_allclose(found, ours, atol=2e-3 if pooled else 0.03)
    assert np.abs(found - aggregators.mean(reports)).max() > 0.3


def test_sureal_without_rejection_is_the_mean():
    reports, node, output, _ = clean_rounds()
    found = play("sureal: BT.500 rejection", reports, node, np.arange(len(output)))
    np.testing.assert_allclose(found, aggregators.mean(reports), atol=1e-9)


def test_rasa_weighs_like_our_catd():
    """RASA takes the upper chi-squared quantile where CATD takes the lower: the same weights with equal shares."""
    rng = np.random.default_rng(4)
    node = np.tile(np.arange(5), (300, 1))
    noise = np.array([0.3, 0.5, 0.7, 0.9, 1.1])
    reports = 5 + rng.normal(0, 1, (300, 1)) + noise * rng.standard_normal(node.shape)
    found = play("crowd-kit: RASA", reports, node, np.arange(300))
    # RASA stops when a step moves the whole by less than 1e-9 of its size, a little before the end.
    np.testing.assert_allclose(found, offline.catd(reports, node, steps=200), atol=0.02)
    assert np.abs(found - aggregators.mean(reports)).max() > 0.3


@pytest.mark.parametrize(
    ("name", "ours"), [("ByzFL: median", aggregators.median), ("ByzFL: trimmed mean", aggregators.trimmed_mean)]
)
def test_byzfl_has_our_median_and_trimmed_mean(name, ours):
    rng = np.random.default_rng(5)
    reports = rng.uniform(0, 10, (200, 5))
    found = play(name, reports, np.tile(np.arange(5), (200, 1)), np.arange(200))
    np.testing.assert_allclose(found, ours(reports), atol=1e-9)


@pytest.mark.parametrize("name", [name for name in PEERS if name != "crowd-kit: Wawa"])
def test_every_peer_follows_the_truth_of_honest_rounds(name):
    reports, node, output, truth = clean_rounds()
    found = play(name, reports, node, output)
    assert found.shape == truth.shape
    assert np.isfinite(found).all()
    if name == "ByzFL: geometric median":  # three steps from zero: not there yet
        assert pearson(found, truth) > 0.3
    else:
        assert pearson(found, truth) > (0.75 if name.startswith("ByzFL") or "sureal" in name else 0.6)


@pytest.mark.parametrize(
    ("reports", "error"),
    [([3.0] * 5, AttributeError), ([2.0] + [5.8922327356047255] * 4, TimeoutError)],
    ids=["none", "endless"],
)
def test_caf_has_no_answer_where_nearly_all_agree(reports, error):
    """The book says so of this version; when it changes, this says it."""
    if not installed("byzfl"):
        pytest.skip("byzfl is not installed; make peers has it in .venv-peers")
    with pytest.raises(error):
        play("ByzFL: CAF", np.array([reports]), np.arange(5)[None], np.zeros(1, int))


def test_wawa_fails_inside_the_locked_scikit_learn():
    """The book says so of this version; when it changes, this says it."""
    if not installed("crowd-kit"):
        pytest.skip("crowd-kit is not installed; make peers has it in .venv-peers")
    reports, node, output, _ = clean_rounds()
    with pytest.raises(AttributeError, match="__sklearn_tags__"):
        play("crowd-kit: Wawa", reports, node, output)


def test_bins_cover_the_scale():
    assert bin_scores([0.0, 1.99, 2.0, 9.99, 10.0]).tolist() == [0, 0, 1, BINS - 1, BINS - 1]


def test_a_failure_is_a_row_not_a_hole():
    rows = [
        {"place": "a", "attack": "b", "name": "c", "unit": "round", "trial": t, "rmse": r, "pearson": r, "failed": f}
        for t, r, f in ((0, 2.0, ""), (1, None, "ValueError: no"), (2, 4.0, ""))
    ]
    [entry] = gather(rows)
    assert (entry["n"], entry["rmse_mean"], entry["failed"]) == (2, 3.0, "ValueError: no")
    assert entry["rmse_se"] == pytest.approx(1.0)


def test_every_peer_has_a_licence_and_ours_beside_it():
    assert {peer.package for peer in PEERS.values()} == set(LICENCES) == set(MODULES)
    assert not any("GPL" in licence for licence in LICENCES.values())
    assert {peer.ours for peer in PEERS.values()} <= set(measure.OURS)


def test_the_committed_figures_are_of_the_shipped_log_and_these_settings():
    figures = json.loads(OUT.read_text(encoding="utf-8"))
    assert not figures["quick"]
    assert figures["log"] == measure.log_digest(measure.read_log()), "the log has changed: make peers"
    assert figures["settings"] == measure.SETTINGS
    for row in figures["errors"]:
        values = [value for value in row["rmse"] if value is not None]
        assert len(row["rmse"]) == figures["settings"]["trials"]
        if values:
            assert row["rmse_mean"] == pytest.approx(sum(values) / len(values), abs=1e-5)
        else:
            assert row["failed"]


def test_the_chapter_takes_the_file_for_this_log_and_plays_the_same_methods():
    notebook = json.loads((measure.LOG.parents[1] / "chapters" / "17_peers.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert any(inspect.getsource(measure.log_digest) in cell for cell in code)
    [settings] = [cell for cell in code if "seed: int" in cell]
    for name, value in measure.SETTINGS.items():
        if name != "committee":  # there: what the log can fill
            assert re.search(rf"^{name}: \S+ = {re.escape(json.dumps(value))}  #", settings, flags=re.MULTILINE), name
    assert all(any(f'"{name}"' in cell for cell in code) for name in measure.OURS)


def test_ours_comes_out_as_committed():
    """One trial per place again: what needs no extra must be what the file says."""
    figures = json.loads(OUT.read_text(encoding="utf-8"))
    settings = figures["settings"]
    for place, drawn in measure.places(measure.read_log(), **settings).items():
        rounds = measure.draw(*drawn[0], "hide", **settings)
        for row in figures["errors"]:
            if (row["place"], row["attack"], row["unit"]) != (place, "hide", "round") or row[
                "name"
            ] not in measure.OURS:
                continue
            found = measure.call(row["name"], rounds, "round")
            error = math.sqrt(np.mean((found - rounds.truth) ** 2))
            assert error == pytest.approx(row["rmse"][0], rel=1e-4), row["name"]


def test_restarts_of_mace_all_begin_at_the_same_place():
    """Why one restart stands for the default of ten."""
    if not installed("crowd-kit"):
        pytest.skip("crowd-kit is not installed; make peers has it in .venv-peers")
    reports, node, output, _ = clean_rounds(n_rounds=100)
    rounds = (reports, node, output, 6, 60)
    thrice = crowdkit_labels("MACE", *rounds, n_restarts=3)
    np.testing.assert_array_equal(thrice, crowdkit_labels("MACE", *rounds, n_restarts=1))
