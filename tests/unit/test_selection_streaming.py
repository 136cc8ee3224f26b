"""Facility location in one pass: hand-made streams, and what is refused."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, facility_objective, sieve, sieve_streaming


def rows(n=120, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_the_stream_is_read_once_and_a_chunk_at_a_time():
    x, taken = rows(6000, 4), []

    def stream():
        for start in range(0, 6000, 500):
            taken.append(start)
            yield np.arange(start, start + 500), x[start : start + 500]

    found = sieve_streaming(stream(), 5, reference=x[:50])
    assert taken == list(range(0, 6000, 500))
    assert found.n == 6000
    assert found.parameters["held"] < 500


def test_three_directions_are_found_late_in_the_stream():
    x = np.eye(4, dtype=np.float32)[[3] * 50 + [0] * 3 + [1] * 3 + [2] * 3]
    found = sieve_streaming([(np.arange(59), x)], 3, reference=np.eye(4)[[0, 0, 1, 1, 2, 2]])
    assert found.indices.tolist() == [50, 53, 56]
    assert found.gains.tolist() == [2, 2, 2]


def test_rows_that_represent_nothing_are_taken_only_to_fill_up():
    x = np.eye(3, dtype=np.float32)[[2, 2, 0, 2]]
    found = sieve_streaming([(np.array([8, 6, 4, 2]), x)], 3, reference=np.eye(3)[[0, 1]])
    assert found.indices.tolist() == [4, 6, 8]
    assert found.gains.tolist() == [1, 0, 0]
    assert found.parameters["filled"] == 2
    nothing = sieve_streaming([([8, 6], np.eye(3)[[2, 2]])], 1, reference=np.eye(3)[[0, 1]])
    assert (nothing.objective, nothing.indices.tolist(), nothing.parameters["sets"]) == (0, [8], 0)


def test_a_short_stream_is_taken_whole_and_noted():
    found = sieve_streaming([([5, 9], rows(2)), (np.empty(0, int), np.empty((0, 5)))], 4, reference=rows(3))
    assert sorted(found.indices) == [5, 9]
    assert found.parameters["note"] == "the stream has only 2 rows, 4 were asked for"
    assert found.n == 10


def test_a_sample_is_represented_by_the_seed():
    x = rows(400)
    found = [sieve(x, 5, represented=40, seed=seed) for seed in (1, 1, 2)]
    assert found[0].indices.tolist() == found[1].indices.tolist()
    assert found[0].gains.tolist() == found[1].gains.tolist() != found[2].gains.tolist()
    assert found[0].parameters["represented"] == 40
    assert sieve(x, 5).parameters["represented"] == 400


def test_the_order_of_the_stream_is_that_of_the_indices_or_shuffled():
    x = rows(300)
    plain, shuffled, again = (sieve(x, 5, shuffle=shuffle, seed=3) for shuffle in (False, True, True))
    assert plain.indices.tolist() != shuffled.indices.tolist()
    assert shuffled.indices.tolist() == again.indices.tolist()
    assert plain.seed == 3


def test_memory_mapped_features_of_any_modality(tmp_path):
    np.save(tmp_path / "x.npy", Features.from_arrays(rows(300)).vectors().astype(np.float16))
    image = Features.load(tmp_path / "x.npy")
    assert sieve(image, 5).objective == pytest.approx(facility_objective(image, sieve(image, 5).indices), rel=1e-9)
    features = Features.from_arrays(rows(50), rows(50, seed=1), info={"fingerprint": "abc"})
    both = sieve(features, 5, modality="both")
    assert both.objective == pytest.approx(facility_objective(features, both.indices, modality="both"), rel=1e-9)
    assert (both.method, both.fingerprint, both.n) == ("sieve", "abc", 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 of 120 pairs is not allowed"),
        ({"epsilon": 0.0}, "epsilon = 0.0 is not allowed: 0 < epsilon < 1/2"),
        ({"epsilon": 0.5}, "epsilon = 0.5 is not allowed"),
        ({"epsilon": float("nan")}, "epsilon = nan is not allowed"),
        ({"represented": 0}, "represented = 0 is not allowed: at least 1 pair"),
        ({"modality": "text"}, "hold no text embeddings"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        sieve(rows(), **({"k": 2} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 is not allowed: at least 1"),
        ({"chunks": []}, "the stream is empty"),
        ({"chunks": [([0, 1], rows(2)), ([2], rows(2))]}, r"chunk 1: 1 indices and rows of shape \(2, 5\)"),
        ({"chunks": [([0, 1], rows(2, 4))]}, "and 5 wide like the reference"),
        ({"chunks": [([0, -1], rows(2))]}, "chunk 0: indices: -1 is not one of"),
        ({"chunks": [([0, 0], rows(2))]}, "the stream has index 0 twice"),
        ({"chunks": [([0, 1], np.zeros((2, 5)))]}, "chunk 0: image embeddings: 2 of 2 rows are all zeros"),
        ({"reference": np.full((2, 5), np.inf)}, "reference: image embeddings: 2 of 2 rows are NaN or infinite"),
        ({"weights": np.ones(2)}, "weights must be 3 finite numbers"),
        ({"weights": -np.ones(3)}, "none negative"),
    ],
)
def test_wrong_streams_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        sieve_streaming(**({"chunks": [([0, 1], rows(2))], "k": 2, "reference": rows(3)} | arguments))
