"""What CRAIG, SemDeDup and shared-out budgets promise, on random data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.selection import Features, clip_gradients, semdedup
from coreclip.selection.clusters import apportion, canonical_order, share_equally, spherical_kmeans, take_turns
from coreclip.selection.coresets import craig_of_gradients

SETTINGS = settings(deadline=None, max_examples=30)
SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 40), st.integers(1, 4))
@SETTINGS
def test_weighted_gradients_miss_the_sum_by_at_most_the_distances(seed, n, n_classes):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(n, 5)) * 3 + 1
    gradients[rng.random(n) < 0.3] = gradients[0]
    classes = rng.integers(0, n_classes, n)
    k = int(rng.integers(1, n + 1))
    found = craig_of_gradients(gradients, k, classes)
    assert found.gamma.sum() == n
    assert len(set(found.indices.tolist())) == k
    distances = np.linalg.norm(gradients[:, None] - gradients[found.indices], axis=2)
    same = classes[:, None] == classes[found.indices]
    # Within the class; where it has no share, any representative.
    own = np.where(same | ~same.any(axis=1, keepdims=True), distances, np.inf).min(axis=1)
    missed = np.linalg.norm(gradients.sum(axis=0) - found.gamma @ gradients[found.indices])
    assert missed <= own.sum() + 1e-9
    assert found.objective <= found.upper_bound


@given(SEEDS, st.integers(1, 30))
@SETTINGS
def test_shares_sum_to_k_and_fit(seed, n_classes):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 50, n_classes) + (np.arange(n_classes) == 0)
    k = int(rng.integers(0, sizes.sum() + 1))
    shares = apportion(sizes, k)
    assert shares.sum() == k
    assert (shares <= sizes).all()
    assert (np.abs(shares - k * sizes / sizes.sum()) < 1).all()


@given(SEEDS, st.integers(1, 30))
@SETTINGS
def test_equal_shares_differ_only_where_a_group_is_full(seed, n_classes):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 50, n_classes)
    k = int(rng.integers(0, sizes.sum() + 1))
    shares = share_equally(sizes, k)
    assert shares.sum() == k
    assert (shares <= sizes).all()
    level = shares.max(initial=0)
    assert (shares[shares < sizes] >= level - 1).all()


@given(SEEDS, st.integers(1, 12))
@SETTINGS
def test_every_prefix_of_turns_is_balanced(seed, n_groups):
    counts = np.random.default_rng(seed).integers(1, 20, n_groups)
    group = np.repeat(np.arange(n_groups), counts)
    order = take_turns(counts)
    taken = np.cumsum(group[order][:, None] == np.arange(n_groups), axis=0)
    # Row i of a group comes at the time (i + 1/2) / count, so that each group has its share of the time to within a row.
    time = ((np.concatenate([np.arange(count) for count in counts]) + 0.5) / np.repeat(counts, counts))[order]
    assert (np.abs(taken - time[:, None] * counts) <= 1 + 1e-9).all()
    assert all((np.diff(order[group[order] == g]) == 1).all() for g in range(n_groups))


def near_duplicates(seed, n):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 6))
    copies = rows[rng.integers(0, n, n // 2)] + 0.05 * rng.normal(size=(n // 2, 6))
    return np.vstack([rows, copies, rows[: n // 4]]).astype(np.float32)


@given(SEEDS, st.integers(4, 40), st.sampled_from([0.01, 0.05, 0.3]))
@SETTINGS
def test_survivors_of_a_cluster_are_unlike(seed, n, eps):
    features = Features.from_arrays(near_duplicates(seed, n))
    x = features.vectors()
    subset = semdedup(features, eps=eps, n_clusters=3, seed=seed)
    labels, _ = spherical_kmeans(x, 3, seed)
    kept = subset.indices
    cosines = x[kept] @ x[kept].T
    np.fill_diagonal(cosines, -1)
    assert cosines[labels[kept][:, None] == labels[kept]].max() <= 1 - eps + 1e-6


@given(SEEDS, st.integers(4, 40))
@SETTINGS
def test_survivors_do_not_depend_on_the_order_of_the_data(seed, n):
    x = near_duplicates(seed, n)
    order = np.random.default_rng(seed + 1).permutation(len(x))
    one, other = semdedup(x, eps=0.05, n_clusters=3), semdedup(x[order], eps=0.05, n_clusters=3)
    # Compared by content: of identical rows either may stay.
    assert sorted(map(tuple, x[one.indices])) == sorted(map(tuple, x[order][other.indices]))


@given(SEEDS, st.integers(1, 50))
@SETTINGS
def test_the_canonical_order_follows_the_rows(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x[rng.random(n) < 0.3] = x[0]
    order = rng.permutation(n)
    np.testing.assert_array_equal(x[canonical_order(x)], x[order][canonical_order(x[order])])
    assert sorted(canonical_order(x)) == list(range(n))


def test_gradients_do_not_depend_on_the_rows_beside():
    """More rows than one block."""
    rng = np.random.default_rng(0)
    features = Features.from_arrays(rng.normal(size=(4200, 6)), rng.normal(size=(4200, 6)))
    image, text = clip_gradients(features, bank=20, temperature=0.1)
    for gradients, vectors in ((image, features.vectors("image")), (text, features.vectors("text"))):
        assert np.abs(np.einsum("ij,ij->i", gradients, vectors)).max() == pytest.approx(0, abs=1e-4)
        assert np.isfinite(gradients).all()
