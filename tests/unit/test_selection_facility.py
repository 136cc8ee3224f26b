"""Facility location on hand-made data, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, facility_location
from coreclip.selection.greedy import maximise


def two_directions():
    """Six rows along x, three along y, one along -x."""
    return np.array([[1, 0]] * 6 + [[0, 1]] * 3 + [[-1, 0]], np.float32)


def test_it_covers_the_largest_group_first():
    subset = facility_location(two_directions(), 4)
    assert subset.indices.tolist() == [0, 6, 9, 1]  # the last adds nothing: the lowest index
    assert subset.gains.tolist() == [6, 3, 1, 0]
    assert subset.objective == subset.upper_bound == 10
    assert subset.weights.tolist() == [1, 1, 1, 1]


def test_opposite_vectors_are_not_alike():
    assert facility_location(two_directions(), 1).objective == 6


def test_row_weights_count():
    weights = np.ones(10)
    weights[6:9] = 5
    subset = facility_location(two_directions(), 2, weights=weights)
    assert subset.indices.tolist() == [6, 0]
    assert subset.gains.tolist() == [15, 6]


def test_a_precomputed_similarity_may_be_asymmetric():
    similarity = np.array([[0.0, 0.0, 0.0], [2.0, 1.0, 3.0], [9.0, 0.0, 0.0]])
    subset = facility_location(similarity, 2, metric="precomputed")
    assert subset.indices.tolist() == [2, 1]
    assert subset.gains.tolist() == [9, 4]


def test_the_modality_decides():
    image, text = np.eye(4, dtype=np.float32), np.ones((4, 4), np.float32)
    features = Features.from_arrays(image, text, info={"fingerprint": "abc"})
    assert facility_location(features, 1).objective == pytest.approx(1)
    assert facility_location(features, 1, modality="text").objective == pytest.approx(4)
    assert facility_location(features, 1, modality="both").objective == pytest.approx(2.5)
    assert facility_location(features, 1).fingerprint == "abc"


def test_importing_the_registry_compiles_nothing():
    code = "import sys, coreclip.selection.registry; sys.exit(bool({'numba', 'faiss', 'pyarrow', 'apricot'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 of 10 pairs is not allowed"),
        ({"k": 11}, "k = 11 of 10 pairs is not allowed"),
        ({"metric": "euclidean"}, "unknown metric 'euclidean'; known: cosine, precomputed"),
        ({"neighbors": 0}, "neighbors = 0 is not allowed"),
        ({"optimizer": "magic"}, "unknown optimizer 'magic'; known: lazy, naive, stochastic"),
        ({"optimizer": "stochastic", "epsilon": 0.9}, "epsilon = 0.9 is not allowed"),
        ({"weights": np.ones(3)}, "weights must be 10 finite numbers"),
        ({"weights": -np.ones(10)}, "none negative"),
        ({"metric": "precomputed"}, r"shape \(10, 2\); it must be \(n, n\)"),
        ({"metric": "precomputed", "neighbors": 3}, "neighbors has no meaning"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        facility_location(two_directions(), **({"k": 2} | arguments))


def test_wrong_similarities_are_refused():
    with pytest.raises(CoreclipError, match="finite and not negative"):
        facility_location(-np.eye(3), 1, metric="precomputed")
    with pytest.raises(CoreclipError, match="not features"):
        facility_location(Features.from_arrays(np.eye(3)), 1, metric="precomputed")


def test_stochastic_greedy_is_a_function_of_the_seed():
    similarity = np.random.default_rng(0).random((200, 200)).astype(np.float32)
    runs = [maximise(similarity, np.ones(200), 20, optimizer="stochastic", seed=seed) for seed in (1, 1, 2)]
    assert runs[0].picks.tolist() == runs[1].picks.tolist() != runs[2].picks.tolist()
    assert len(set(runs[0].picks)) == 20
