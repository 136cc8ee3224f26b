"""What k-center and herding promise, beside their definitions written out."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.progress import Progress
from coreclip.selection import Features, herding, k_center
from coreclip.selection import farthest as farthest_module
from coreclip.selection import rows as rows_module
from coreclip.selection.rows import Nearest, in_pieces, plain_rows

SETTINGS = settings(deadline=None, max_examples=30)
SEEDS = st.integers(0, 2**32 - 1)


def make_points(seed, n, d=5, copies=0.3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 1
    x[rng.random(n) < copies] = x[0]
    return Features.from_arrays(x.astype(np.float32))


def naive_k_center(x, k):
    """Gonzalez 1985 from all distances: picks, their distances, and the radius that is left."""
    x = x.astype(np.float64)
    distances = np.linalg.norm(x[:, None] - x, axis=2)
    picks, gains = [int(np.argmin(np.round(np.linalg.norm(x - x.mean(axis=0), axis=1), 9)))], [2.0]
    while len(picks) < k:
        nearest = distances[picks].min(axis=0)
        nearest[picks] = -1
        picks.append(int(np.argmax(nearest)))
        gains.append(nearest[picks[-1]])
    return picks, gains, distances[picks].min(axis=0).max()


@given(SEEDS, st.integers(1, 40), st.sampled_from([1, 3, 64, 70, 130]))
@SETTINGS
def test_the_pruned_k_center_picks_what_the_definition_says(seed, n, d):
    features = make_points(seed, n, d)
    k = int(np.random.default_rng(seed + 1).integers(1, n + 1))
    subset = k_center(features, k)
    picks, gains, radius = naive_k_center(features.vectors(), k)
    if d > 1:  # on a line all unit vectors are one of two, and rounding decides which copies are farther
        assert subset.indices.tolist() == picks
    np.testing.assert_allclose(subset.gains, gains, atol=2e-6)
    assert subset.parameters["radius"] == pytest.approx(radius, abs=2e-6)


@given(SEEDS, st.integers(2, 10))
@SETTINGS
def test_the_radius_is_within_twice_the_best_and_the_lower_bound_holds(seed, n):
    features = make_points(seed, n, 3)
    k = int(np.random.default_rng(seed + 1).integers(1, n + 1))
    x = features.vectors().astype(np.float64)
    distances = np.linalg.norm(x[:, None] - x, axis=2)
    best = min(distances[list(chosen)].min(axis=0).max() for chosen in itertools.combinations(range(n), k))
    parameters = k_center(features, k).parameters
    assert parameters["radius_lower_bound"] - 1e-6 <= best <= parameters["radius"] + 1e-6 <= 2 * best + 2e-6


@given(SEEDS, st.integers(2, 60))
@SETTINGS
def test_the_radius_never_grows_and_prefixes_are_solutions(seed, n):
    features = make_points(seed, n)
    whole = k_center(features, n)
    assert (np.diff(whole.gains) <= 0).all()
    assert sorted(whole.indices) == list(range(n))
    assert whole.parameters["radius"] == 0
    k = 1 + seed % (n - 1)
    part = k_center(features, k)
    assert part.indices.tolist() == whole.indices[:k].tolist()
    assert part.parameters["radius"] == whole.gains[k]  # what the next pick would have been


def clustered(n=3000, d=48, n_clusters=30, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_clusters, d))[rng.integers(0, n_clusters, n)] + 0.1 * rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@given(SEEDS, st.integers(2, 120), st.sampled_from([2, 3, 70]), st.integers(1, 40), st.integers(1, 9))
@SETTINGS
def test_k_center_in_small_rounds_picks_what_one_round_of_all_does(seed, n, d, pool, block):
    features = make_points(seed, n, d)
    k = int(np.random.default_rng(seed + 1).integers(1, n + 1))
    whole = k_center(features, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(farthest_module, "_POOL", pool)
        patch.setattr(farthest_module, "_BLOCK", block)
        rounds = k_center(features, k)
    assert rounds.indices.tolist() == whole.indices.tolist()
    assert rounds.gains.tolist() == whole.gains.tolist()
    assert rounds.parameters["radius"] == whole.parameters["radius"]


def one_after_the_other(rows, first, k):
    """Farthest-first traversal that looks at every row after every pick: picks, their squared distances, distances computed."""
    nearest, picks, squares = Nearest(rows), [first], [np.inf]
    with in_pieces(*rows.values.shape) as run:
        nearest.add(run, first)
        while len(picks) < k:
            picks.append(int(np.argmax(nearest.squares)))
            squares.append(nearest.squares[picks[-1]])
            nearest.add(run, picks[-1])
    return picks, squares, nearest.evaluated


def test_rounds_pick_what_a_look_at_every_row_does_to_the_last_bit_with_fewer_comparisons():
    rows = plain_rows(clustered(20_000, 16, 300).astype(np.float32))
    found = farthest_module.farthest_first(rows, 7, 1000, Progress(1000, "picks"))
    picks, squares, _ = one_after_the_other(rows, 7, 1000)
    assert found.picks.tolist() == picks
    assert found.squares.tolist() == squares
    assert 0 < found.compared < 20_000 * 1000 / 2


def test_the_triangle_inequality_spares_most_distances_of_clustered_pairs():
    rows = plain_rows(clustered().astype(np.float32))
    evaluated = one_after_the_other(rows, 0, 300)[2]
    assert 0 < evaluated < 3000 * 300 / 5


def test_the_triangle_inequality_changes_no_distance(monkeypatch):
    rows = plain_rows(clustered(500).astype(np.float32))
    found = []
    for margin in (Nearest._MARGIN, 0.0):
        monkeypatch.setattr(Nearest, "_MARGIN", margin)
        nearest = Nearest(rows)
        with in_pieces(*rows.values.shape) as run:
            for index in range(0, 500, 5):
                nearest.add(run, index)
        found.append(nearest)
    np.testing.assert_array_equal(found[0].squares, found[1].squares)
    np.testing.assert_array_equal(found[0].owners, found[1].owners)
    assert found[0].evaluated < found[1].evaluated / 2


@pytest.mark.parametrize("method", [k_center, herding])
def test_the_number_of_threads_changes_nothing(method, monkeypatch):
    features = Features.from_arrays(clustered().astype(np.float32))
    runs = []
    for least in (1, 1 << 40):
        monkeypatch.setattr(rows_module, "_WORTH_A_THREAD", least)
        runs.append(method(features, 60))
    assert runs[0].indices.tolist() == runs[1].indices.tolist()
    assert runs[0].gains.tolist() == runs[1].gains.tolist()
    assert runs[0].parameters == runs[1].parameters


@pytest.mark.parametrize("method", [k_center, herding])
def test_halves_are_read_where_they_lie_and_mean_what_their_copy_does(method, tmp_path):
    halves = clustered(400).astype(np.float16)
    np.save(tmp_path / "halves.npy", halves)
    mapped = Features.load(tmp_path / "halves.npy")
    assert isinstance(mapped.image, np.memmap)
    copied = Features.from_arrays(halves.astype(np.float32))
    assert method(mapped, 50).indices.tolist() == method(copied, 50).indices.tolist()


@pytest.mark.parametrize("has_halves", [rows_module._HAS_HALVES, False])  # without them rows are copied as float32
def test_every_float16_is_read_exactly(has_halves, monkeypatch):
    monkeypatch.setattr(rows_module, "_HAS_HALVES", has_halves)
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = bits[np.isfinite(bits)][:, None]
    distances = rows_module.squared_distances(plain_rows(finite), np.zeros(1, np.float32))
    np.testing.assert_array_equal(distances, finite[:, 0].astype(np.float64) ** 2)


@given(SEEDS, st.integers(1, 30), st.sampled_from([2, 65]))
@SETTINGS
def test_herding_picks_what_the_definition_says(seed, n, d):
    features = make_points(seed, n, d)
    subset = herding(features, n)
    x = features.vectors().astype(np.float64)
    mean, total, free = x.mean(axis=0), np.zeros(d), np.ones(n, bool)
    for t, pick in enumerate(subset.indices):
        errors = np.linalg.norm((t + 1) * mean - total - x, axis=1)
        assert free[pick]
        assert errors[pick] <= errors[free].min() + 1e-5
        free[pick] = False
        total += x[pick]
    assert subset.gains.sum() == pytest.approx(subset.objective)
    assert subset.objective <= subset.upper_bound
    assert subset.parameters["mean_error"] == pytest.approx(0, abs=1e-6)  # all pairs are chosen


def test_the_mean_of_herding_is_nearer_than_that_of_random_pairs():
    features = Features.from_arrays(clustered(1000, 10).astype(np.float32))
    x = features.vectors().astype(np.float64)
    rng = np.random.default_rng(0)
    for k in (3, 20, 100):
        herded = herding(features, k).parameters["mean_error"]
        random = [np.linalg.norm(x[rng.permutation(1000)[:k]].mean(0) - x.mean(0)) for _ in range(50)]
        assert herded == pytest.approx(np.linalg.norm(x[herding(features, k).indices].mean(0) - x.mean(0)), abs=1e-6)
        assert herded < min(random)


def test_equal_pairs_are_taken_lowest_index_first():
    features = Features.from_arrays(np.repeat(np.eye(2, 4, dtype=np.float32), 3, axis=0))
    # The mean lies between the two: 0 comes first, then one of the others, then what is left at distance 0.
    assert k_center(features, 6).indices.tolist() == [0, 3, 1, 2, 4, 5]
    assert herding(features, 6).indices.tolist() == [0, 3, 1, 4, 2, 5]
    assert k_center(features, 3).gains.tolist() == pytest.approx([2, math.sqrt(2), 0])


def test_both_modalities_are_compared_together():
    rng = np.random.default_rng(0)
    features = Features.from_arrays(*rng.normal(size=(2, 40, 6)))
    both = Features.from_arrays(features.vectors("both"))
    assert k_center(features, 10, modality="both").indices.tolist() == k_center(both, 10).indices.tolist()
    assert k_center(features, 10, modality="text").indices.tolist() != k_center(features, 10).indices.tolist()
