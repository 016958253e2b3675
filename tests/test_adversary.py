"""The search for a best response: its budget, its gain, its honesty."""

import dataclasses

import numpy as np
import pytest

from poq.adversary import OBJECTIVES, best_response
from poq.simulate import Scenario, run
from poq.synthetic import synthetic_log

LOG = synthetic_log(np.random.default_rng(0), n_items=40, n_models=3, evaluators=9)
SETTING = Scenario("synthetic", rule="median", malicious_share=0.34, committee=5, n_rounds=300, n_nodes=18)
SMALL = {"evaluations": 40, "trials": 1, "fresh_trials": 4}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_best_response_serves_its_objective_better_than_honesty(objective):
    found = best_response(LOG, SETTING, objective=objective, partner="model-00", **SMALL)
    assert found["evaluations"] >= 40
    gain = found["value"] - found["honest"]
    gain = -gain if OBJECTIVES[objective].startswith("-") else gain
    # Equal evaluators can hardly earn more than by honesty, which is in the family; harm is always possible.
    assert gain >= 0 if objective == "own_pay" else gain > 2 * found["standard_error"] > 0


def test_the_winner_is_at_least_as_bad_as_the_paper_s_boost():
    found = best_response(LOG, SETTING, objective="error", **SMALL)
    boost = Scenario(
        "synthetic", rule="median", attack="boost", malicious_share=0.34, committee=5, n_rounds=300, n_nodes=18
    )
    assert found["value"] > run(LOG, boost, trials=4, seed=1, progress=False)["rmse"].mean()


def test_the_value_comes_from_fresh_seeds_and_can_be_had_again():
    found = best_response(LOG, SETTING, **SMALL)
    again = Scenario(
        "synthetic",
        rule="median",
        attack="affine",
        attack_options=found["options"],
        malicious_share=0.34,
        committee=5,
        n_rounds=300,
        n_nodes=18,
    )
    assert run(LOG, again, trials=4, seed=1, progress=False)["rmse"].mean() == pytest.approx(found["value"])
    assert best_response(LOG, SETTING, **SMALL) == found


@pytest.mark.parametrize("known", [{"gain": -1.0}, {"shift": 10.0}, {"sd": 3.0}])
def test_the_search_starts_from_what_is_known(known):
    """So it cannot find less than a simple attack does on the seeds of the search."""
    found = best_response(LOG, SETTING, objective="misrank", **SMALL)
    played = dataclasses.replace(SETTING, attack="affine", attack_options=known)
    assert found["found"] <= run(LOG, played, trials=1, seed=0, progress=False)["pearson"][0]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"objective": "chaos"}, "unknown objective"), ({"objective": "partner_pay"}, "partner must be one of model-00")],
)
def test_bad_questions_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        best_response(LOG, SETTING, **options)


def test_what_the_rounds_refuse_is_said_as_it_is():
    with pytest.raises(ValueError, match="committee 50 is larger than the"):
        best_response(LOG, dataclasses.replace(SETTING, committee=50))
