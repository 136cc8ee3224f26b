"""What a search in several clusters promises, against all comparisons."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.selection import semdedup
from coreclip.selection.clusters import canonical_order, spherical_kmeans
from coreclip.selection.deduplicate import _highest_probed, novelty
from coreclip.selection.probing import highest_earlier, nearest_lists

SETTINGS = settings(deadline=None, max_examples=25)
SEEDS = st.integers(0, 2**32 - 1)


def rows_with_copies(seed, n):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 4))
    near = rows[rng.integers(0, n, n // 2)] + 0.1 * rng.normal(size=(n // 2, 4))
    x = np.vstack([rows, near]).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@given(SEEDS, st.integers(2, 40), st.integers(1, 5), st.integers(1, 5))
@SETTINGS
def test_what_is_compared_is_what_the_lists_name(seed, n, n_lists, probes):
    rng = np.random.default_rng(seed)
    x = rows_with_copies(seed, n)
    labels, rank = rng.integers(0, n_lists, len(x)), rng.permutation(len(x))
    lists = np.argsort(rng.random((len(x), n_lists)), axis=1)[:, : min(probes, n_lists)]
    parts = np.array_split(np.arange(len(x)), 3)
    found = highest_earlier(x, labels, rank, ((rows, x[rows], lists[rows]) for rows in parts if len(rows)))
    asks = (lists[:, :, None] == labels).any(axis=1)  # (query, row)
    compared = (asks | asks.T) & (rank[None, :] < rank[:, None])
    expected = np.where(compared, x @ x.T, -1).max(axis=1)
    np.testing.assert_allclose(found, np.clip(expected, -1, 1), atol=1e-6)


@given(SEEDS, st.integers(4, 40), st.integers(1, 6))
@SETTINGS
def test_one_probe_is_the_papers_rule(seed, n, n_clusters):
    x = rows_with_copies(seed, n)
    labels, centroids = spherical_kmeans(x, n_clusters, seed)
    probed = 1 - _highest_probed(x, labels, centroids, canonical_order(x), 1)
    np.testing.assert_allclose(probed, novelty(x, n_clusters, seed), atol=1e-6)


@given(SEEDS, st.integers(4, 40))
@SETTINGS
def test_more_probes_find_no_fewer_copies(seed, n):
    x = rows_with_copies(seed, n)
    found = [novelty(x, 4, seed, probes) for probes in (1, 2, 3, 4)]
    assert all((more <= fewer + 1e-6).all() for fewer, more in itertools.pairwise(found))
    np.testing.assert_array_equal(novelty(x, 4, seed, 9), found[-1])


@given(SEEDS, st.integers(4, 40), st.sampled_from([0.01, 0.05, 0.3]))
@SETTINGS
def test_with_all_probes_no_two_survivors_are_alike(seed, n, eps):
    x = rows_with_copies(seed, n)
    kept = semdedup(x, eps=eps, n_clusters=4, probes=4, seed=seed).indices
    cosines = x[kept] @ x[kept].T
    np.fill_diagonal(cosines, -1)
    assert cosines.max() <= 1 - eps + 1e-6


@given(SEEDS, st.integers(4, 40))
@SETTINGS
def test_survivors_of_several_probes_do_not_depend_on_the_order_of_the_data(seed, n):
    x = rows_with_copies(seed, n)
    order = np.random.default_rng(seed + 1).permutation(len(x))
    one, other = (semdedup(rows, eps=0.05, n_clusters=3, probes=2) for rows in (x, x[order]))
    assert sorted(one.indices.tolist()) == sorted(order[other.indices].tolist())


@given(SEEDS, st.integers(1, 30), st.integers(1, 8), st.integers(1, 8))
@SETTINGS
def test_lists_are_those_of_the_nearest_centroids(seed, n, n_lists, probes):
    rng = np.random.default_rng(seed)
    x, centroids = rng.normal(size=(n, 3)), rng.normal(size=(n_lists, 3))
    found = nearest_lists(x, centroids, probes)
    expected = np.argsort(-(x @ centroids.T), axis=1)[:, : min(probes, n_lists)]
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(expected, axis=1))
