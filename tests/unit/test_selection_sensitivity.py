"""Importance-sampled coresets as subsets, and what they refuse; their promises are tested with the properties."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, StreamCoreset, lightweight_sample, merge_and_reduce, sensitivity_sample

SAMPLES = [sensitivity_sample, lightweight_sample]


def make_features(n=40, d=6, **info):
    return Features.from_arrays(np.random.default_rng(0).normal(size=(n, d)), info=info)


@pytest.mark.parametrize("sample", SAMPLES)
def test_weights_have_mean_one_and_the_scale_makes_them_those_of_the_coreset(sample):
    subset = sample(make_features(fingerprint="abc"), 15, seed=2)
    assert subset.weights.mean() == pytest.approx(1)
    once = subset.weights * subset.parameters["scale"] * 15 * subset.gains  # draws: w = draws / (k p)
    np.testing.assert_allclose(once, np.round(once))
    assert round(once.sum()) == subset.parameters["draws"] == 15
    assert (subset.n, subset.seed, subset.fingerprint) == (40, 2, "abc")
    assert subset.objective is subset.upper_bound is None


@pytest.mark.parametrize("sample", SAMPLES)
def test_repeated_draws_are_told_of(sample):
    subset = sample(make_features(), 40)
    assert subset.k < 40
    assert subset.parameters["note"].startswith(f"40 draws met {subset.k} pairs")
    assert "note" not in sample(make_features(), 1).parameters


@pytest.mark.parametrize("sample", SAMPLES)
def test_seeds_differ_and_repeat(sample):
    runs = [sample(make_features(), 10, seed=seed).indices.tolist() for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_the_clusters_are_noted_and_at_most_all_pairs():
    assert sensitivity_sample(make_features(4), 2).parameters["n_clusters"] == 4
    assert sensitivity_sample(make_features(), 2, n_clusters=3).parameters["n_clusters"] == 3
    assert merge_and_reduce([np.eye(5)], 2, n_clusters=3).parameters["n_clusters"] == 3
    assert "n_clusters" not in merge_and_reduce([np.eye(5)], 2, coreset="lightweight").parameters


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 of 40 pairs is not allowed"),
        ({"k": 41}, "k = 41 of 40 pairs is not allowed"),
        ({"modality": "sound"}, "unknown modality 'sound'"),
        ({"modality": "text"}, "these features hold no text embeddings"),
    ],
)
def test_wrong_arguments_are_refused(sample, arguments, message):
    with pytest.raises(CoreclipError, match=message):
        sample(make_features(), **({"k": 5} | arguments))


@pytest.mark.parametrize("n_clusters", [0, 41])
def test_a_wrong_number_of_clusters_is_refused(n_clusters):
    with pytest.raises(CoreclipError, match=f"n_clusters = {n_clusters} is not allowed: 1 to 40; the default is 10"):
        sensitivity_sample(make_features(), 5, n_clusters=n_clusters)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 is not allowed: at least 1 draw"),
        ({"coreset": "heavy"}, "unknown coreset 'heavy'; known: sensitivity, lightweight"),
        ({"buffer": 4}, "buffer = 4 is not allowed: at least k = 5 rows; the default is 4 k"),
        ({"n_clusters": 0}, "n_clusters = 0 is not allowed: 1 or more"),
    ],
)
def test_wrong_streams_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        StreamCoreset(**({"k": 5} | arguments))


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([np.eye(3), np.array([[0.0, np.nan, 0.0]])], "chunk at row 3: row 0 is NaN or infinite; leave it out"),
        ([np.eye(3), np.eye(4)], "chunk at row 3 has 4 dimensions, those before 3"),
        ([np.zeros((20, 3)), np.eye(4)], "chunk at row 20 has 4 dimensions, those before 3"),
        ([np.zeros(3)], r"chunk at row 0: float64 of shape \(3,\)"),
        ([np.eye(3)], "k = 5 draws of a stream of 3 rows; at most as many as there are"),
        ([], "k = 5 draws of a stream of 0 rows"),
    ],
)
def test_wrong_chunks_are_refused(chunks, message):
    with pytest.raises(CoreclipError, match=message):
        merge_and_reduce(chunks, 5, buffer=10)
