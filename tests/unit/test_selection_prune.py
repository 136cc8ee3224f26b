"""Density-based pruning and D4 on data with a known structure."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, d4, density, semdedup
from coreclip.selection.clusters import spherical_kmeans
from coreclip.selection.prune import share_out


def blobs(sizes=(40, 40, 40), spreads=None, d=16, seed=0):
    spreads = spreads or [0.2] * len(sizes)
    rng = np.random.default_rng(seed)
    centres = np.eye(d)[: len(sizes)] * 3
    return np.vstack(
        [c + spread * rng.normal(size=(n, d)) for c, n, spread in zip(centres, sizes, spreads, strict=True)]
    ).astype(np.float32)


def clusters_of(x, n_clusters, seed=0):
    """The unit rows, their clusters and their distances to the centroids."""
    unit = Features.from_arrays(x).vectors()
    labels, centroids = spherical_kmeans(unit, n_clusters, seed)
    return labels, 1 - np.einsum("ij,ij->i", unit, centroids[labels]), centroids


def test_spread_out_clusters_keep_more():
    x = blobs(sizes=(60, 60), spreads=(0.1, 0.4))
    labels, *_ = clusters_of(x, 2)
    assert len(set(labels[:60])) == len(set(labels[60:])) == 1, "the clusters are not the blobs"
    by_temperature = {t: density(x, 40, eps=None, clusters=2, temperature=t) for t in (0.05, 100.0)}
    assert (by_temperature[0.05].indices >= 60).sum() > 25
    assert (by_temperature[100.0].indices >= 60).sum() == 20, "a high temperature makes equal shares"


def test_shares_are_the_softmax_of_spread_times_distance_to_the_nearest_centroids():
    """25 clusters, of which 20 count as near; no bound is active, so that budgets are the rounded shares."""
    x = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
    labels, distances, centroids = clusters_of(x, 25)
    complexities = []
    for c in range(25):
        apart = sorted(1 - float(centroids[c] @ centroids[other]) for other in range(25) if other != c)
        complexities.append(distances[labels == c].mean() * np.mean(apart[:20]))
    shares = np.exp(np.array(complexities) / 0.2)
    subset = density(x, 400, eps=None, clusters=25, temperature=0.2)
    counts = np.bincount(labels[subset.indices], minlength=25)
    assert np.abs(counts - 400 * shares / shares.sum()).max() < 1
    assert len(set(counts.tolist())) > 1, "all shares are equal: the test shows nothing"


@pytest.mark.parametrize("order", ["farthest", "nearest"])
def test_the_ends_of_each_cluster_are_kept(order):
    x = blobs()
    subset = density(x, 30, eps=None, clusters=3, order=order)
    labels, distances, _ = clusters_of(x, 3)
    kept = np.isin(np.arange(len(x)), subset.indices)
    for c in range(3):
        inside, outside = distances[(labels == c) & kept], distances[(labels == c) & ~kept]
        assert inside.min() >= outside.max() if order == "farthest" else inside.max() <= outside.min()
    np.testing.assert_allclose(subset.gains, distances[subset.indices], atol=1e-6)


def test_each_cluster_keeps_the_minimum():
    x = blobs(sizes=(60, 60, 60), spreads=(0.01, 0.01, 1.0))
    labels, *_ = clusters_of(x, 3)
    subset = density(x, 50, eps=None, clusters=3, temperature=0.01, minimum=7)
    assert min(np.bincount(labels[subset.indices], minlength=3)) == 7


def test_duplicates_go_first_and_all_that_is_left_can_be_fewer_than_asked_for():
    x = np.repeat(blobs(sizes=(10, 10)), 5, axis=0)
    subset = density(x, 90, eps=1e-4, clusters=2)
    assert subset.k == 20 == subset.parameters["left_by_semdedup"]
    assert len(set((subset.indices // 5).tolist())) == 20
    assert density(x, 90, eps=None, clusters=2).k == 90


def test_one_cluster_keeps_all_of_the_budget():
    assert density(blobs(), 11, eps=None, clusters=1).k == 11
    assert density(np.ones((5, 3)), 3, eps=None, clusters=1).indices.tolist() == [0, 1, 2]


def test_the_number_of_clusters_fits_a_small_budget():
    assert density(blobs(), 2, eps=None).parameters["clusters"] <= 2
    with pytest.raises(CoreclipError, match="2 pairs can't be shared out: the 3 clusters keep 3 to 120"):
        density(blobs(), 2, eps=None, clusters=3)
    assert density(blobs(), 2, eps=None, clusters=3, minimum=0).k == 2


def test_d4_drops_what_is_nearest_to_the_centroids_of_what_semdedup_leaves():
    x = blobs()
    subset = d4(x, eps=0.001, drop=0.5, clusters=3)
    left = np.sort(semdedup(x, eps=0.001).indices)
    _, distances, _ = clusters_of(x[left], 3)
    assert subset.k == len(left) - len(left) // 2
    assert sorted(subset.indices) == sorted(left[np.argsort(-distances, kind="stable")[: subset.k]])
    assert (np.diff(subset.gains) <= 0).all()


def test_d4_leaves_exactly_k_and_its_prefixes_are_smaller_choices():
    x = blobs()
    subset = d4(x, 50)
    assert subset.k == 50
    assert subset.parameters["left_by_semdedup"] == 90  # 75 %
    assert d4(x, 20).indices.tolist() == subset.indices[:20].tolist()
    assert d4(x, 110).k == 110
    assert d4(x, 110, drop=0.5).k == 55
    assert d4(x, 5, drop=0.5).k == 5


def test_d4_removes_duplicates_and_prototypes():
    """Copies of one pair, and pairs at the very centres: neither must stay."""
    x = blobs(spreads=(0.5, 0.5, 0.5))
    centres = (np.eye(16, dtype=np.float32)[:3]) * 3
    pool = np.vstack([x, centres, np.repeat(x[:1], 20, axis=0)])
    subset = d4(pool, eps=1e-3, drop=0.3, clusters=3)
    assert not np.isin([120, 121, 122], subset.indices).any()
    assert np.isin([0, *range(123, 143)], subset.indices).sum() <= 1


def test_shares_are_rounded_by_largest_remainder_within_the_bounds():
    target, lower, upper = np.array([7.6, 1.7, 0.7]), np.zeros(3, int), np.array([6, 9, 9])
    # What the first can't take is spread evenly: 6, 2.5, 1.5 - and of two equal remainders the first is rounded up.
    assert share_out(target, lower, upper, 10).tolist() == [6, 3, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 of 120 pairs"),
        ({"temperature": 0.0}, "temperature = 0.0 is not allowed: above 0"),
        ({"temperature": float("nan")}, "temperature = nan is not allowed"),
        ({"minimum": -1}, "minimum = -1 is not allowed"),
        ({"order": "middle"}, "unknown order 'middle'; known: farthest, nearest"),
        ({"clusters": 0}, "0 clusters of 120 pairs"),
        ({"eps": -1.0}, "eps = -1.0 is not allowed"),
        ({"modality": "text"}, "hold no text"),
    ],
)
def test_density_refuses(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        density(blobs(), **({"k": 5, "eps": None} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "d4 needs a number of pairs or drop"),
        ({"k": 121}, "k = 121 of 120 pairs"),
        ({"drop": 1.0}, "drop = 1.0 is not allowed: a share from 0 to below 1"),
        ({"drop": float("nan")}, "drop = nan is not allowed"),
        ({"drop": 0.1, "clusters": 500}, "500 clusters of 90 pairs"),
        ({"k": 3, "eps": 3.0}, "eps = 3.0 is not allowed"),
    ],
)
def test_d4_refuses(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        d4(blobs(), **arguments)
