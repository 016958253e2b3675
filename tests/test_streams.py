"""Named random streams: one for each (seed, trial, purpose, slot), and no two alike."""

import itertools

import numpy as np
import pytest
from scipy import stats

from poq.streams import fill_uniform, standard_normal, stream, uniform_state

PURPOSES = ("output", "committee", "jitter", "malicious", "subset", "items", "attack", "audit")


def test_same_name_same_numbers():
    np.testing.assert_array_equal(stream(3, 1, "output").random(9), stream(3, 1, "output").random(9))


def test_different_names_differ():
    """Seeds 0 and 1, neighbouring trials, every purpose and slot; swapping two numbers is another stream too."""
    names = [
        *itertools.product((0, 1, 2), (0, 1, 2), PURPOSES, (0, 1, 2)),
        (2**32, 0, "output", 0),
        (2**64, 0, "output", 0),
    ]
    first = [tuple(stream(*name).integers(2**63, size=2)) for name in names]
    assert len(set(first)) == len(names)


def test_streams_are_uncorrelated():
    """Neighbouring trials and seats share nothing."""
    drawn = np.array([stream(0, trial, "committee", seat).random(20_000) for trial in range(4) for seat in range(4)])
    correlation = np.corrcoef(drawn)[np.triu_indices(16, 1)]
    assert np.abs(correlation).max() < 4 / np.sqrt(20_000)
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 0.001


@pytest.mark.parametrize("rng", [0, None, np.random.RandomState(0)])
def test_what_is_no_generator_is_refused(rng):
    with pytest.raises(ValueError, match=f"rng must be a numpy Generator .*not {type(rng).__name__}"):
        standard_normal(rng, 3)


@pytest.mark.parametrize(("seed", "trial"), [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(seed, trial):
    with pytest.raises(ValueError, match="-1"):
        stream(seed, trial, "output")


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (2, 0, 3)])
@pytest.mark.parametrize("bits", [np.random.SFC64, np.random.PCG64, np.random.MT19937])
def test_compiled_normals_are_those_of_numpy(shape, bits):
    """And the generator stands where numpy would have left it."""
    ours, numpys = np.random.Generator(bits(5)), np.random.Generator(bits(5))
    np.testing.assert_array_equal(standard_normal(ours, shape), numpys.standard_normal(shape))
    assert ours.random() == numpys.random()


@pytest.mark.parametrize("lengths", [[0], [1], [5000], [1, 0, 777, 3]])
def test_compiled_uniforms_are_those_of_numpy(lengths):
    """To the last bit, for every slot, also when they are drawn piece by piece."""
    state = uniform_state(7, 2, "committee", 4)
    pieces = [np.empty((4, length)) for length in lengths]
    for piece in pieces:
        fill_uniform(state, piece)
    numpys = [stream(7, 2, "committee", slot).random(sum(lengths)) for slot in range(4)]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), numpys)
