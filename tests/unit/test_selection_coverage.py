"""Coverage: counts by brute force, a Gini coefficient with known values, clusters that are the nearest centroids'."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.selection import Features
from coreclip.selection import coverage as module
from coreclip.selection.coverage import cluster, coverage, most_similar


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_sizes_and_kept_are_those_of_a_count(seed, n):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-2, 6, n)
    indices = rng.permutation(n)[: rng.integers(1, n + 1)]
    found = coverage(labels, indices)
    for group, size, kept in zip(found.groups, found.sizes, found.kept, strict=True):
        assert size == (labels == group).sum() > 0
        assert kept == (labels[indices] == group).sum()
    assert found.sizes.sum() == n
    assert found.kept.sum() == len(indices)
    assert (np.diff(found.shares[found.order]) <= 0).all()


def test_gini_is_zero_in_proportion_and_near_one_for_a_single_small_group():
    labels = np.repeat([0, 1, 2], [10, 20, 70])
    proportional = np.concatenate([np.arange(1), np.arange(10, 12), np.arange(30, 37)])
    assert coverage(labels, proportional).gini == pytest.approx(0, abs=1e-12)
    assert coverage(labels, np.arange(100)).gini == pytest.approx(0, abs=1e-12)
    assert coverage(labels, np.arange(5)).gini == pytest.approx(0.9)
    assert coverage(labels, np.arange(10, 20)).gini == pytest.approx(0.8)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_gini_is_half_the_mean_difference_of_shares(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 40)
    found = coverage(labels, rng.permutation(40)[:13])
    of_pair = found.shares[np.searchsorted(found.groups, labels)]
    expected = np.abs(of_pair[:, None] - of_pair[None]).mean() / (2 * of_pair.mean())
    assert found.gini == pytest.approx(expected, abs=1e-12)


def blobs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 4, n)
    return np.eye(6)[groups] + rng.normal(scale=0.05, size=(n, 6)), groups


def test_clusters_are_within_the_groups_that_are_there():
    rows, groups = blobs(300)
    labels, central = cluster(Features.from_arrays(rows), seed=0)
    assert len(central) == 17
    for label in np.unique(labels):
        assert len(set(groups[labels == label])) == 1
        assert labels[central[label]] == label
    assert set(np.flatnonzero(central < 0)) == set(range(17)) - set(labels)


def test_blocks_do_not_change_clusters_and_a_sample_finds_the_same_groups(monkeypatch):
    rows, groups = blobs(300)
    features = Features.from_arrays(rows)
    labels, central = cluster(features, seed=0)
    monkeypatch.setattr(module, "_BLOCK", 7)
    again = cluster(features, seed=0)
    assert np.array_equal(labels, again[0])
    assert np.array_equal(central, again[1])
    monkeypatch.setattr(module, "_SAMPLE", 60)
    sampled = cluster(features, seed=0)[0]
    assert all(len(set(groups[sampled == label])) == 1 for label in np.unique(sampled))


def test_the_first_of_equally_central_pairs_stands_for_a_cluster(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 7)
    groups = np.arange(40) % 4
    central = cluster(Features.from_arrays(np.eye(6)[groups]), seed=0)[1]
    assert sorted(central[central >= 0].tolist()) == [0, 1, 2, 3]


def test_texts_are_clustered_where_there_are_no_images():
    rows, _ = blobs(50)
    by_text, by_image = cluster(Features.from_arrays(text=rows), 0), cluster(Features.from_arrays(rows), 0)
    assert np.array_equal(by_text[0], by_image[0])


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_most_similar_is_the_argmax_with_ties_to_the_lowest_index(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    rows, _ = blobs(60)
    rows[41] = rows[7]
    features = Features.from_arrays(rows)
    among = np.array([41, 50, 7, 3, 22, 9])
    queries = np.array([7, 0, 1, 2])
    found, cosines = most_similar(features, queries, among)
    similarity = features.vectors()[queries] @ features.vectors()[np.sort(among)].T
    assert found.tolist() == np.sort(among)[similarity.argmax(axis=1)].tolist()
    assert found[0] == 7
    assert cosines == pytest.approx(similarity.max(axis=1), abs=1e-6)
