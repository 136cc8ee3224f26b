"""Grouping rows: spherical k-means that does not depend on the order of the rows, and their budgets, in proportion or equal."""

from collections.abc import Sequence

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.randomness import hash64, mix64

_ITERATIONS = 20
_FEW_ITERATIONS, _ROWS_PER_CLUSTER = 10, 64  # where clusters only say where to look
_BLOCK = 1 << 16  # rows
_STREAM_HASH = 103


def canonical_order(x: np.ndarray) -> np.ndarray:
    """Return an order of the rows that depends on their contents only; equal rows keep theirs.

    Parameters
    ----------
    x : float32 (n, d)

    Returns
    -------
    int64 (n,)
    """
    factors = hash64(0, 0, np.arange(x.shape[1]), _STREAM_HASH) | np.uint64(1)
    keys = np.empty(len(x), np.uint64)
    for start in range(0, len(x), _BLOCK):
        words = np.ascontiguousarray(x[start : start + _BLOCK], np.float32).view(np.uint32).astype(np.uint64)
        keys[start : start + _BLOCK] = mix64((mix64(words) * factors).sum(axis=1, dtype=np.uint64))
    return np.argsort(keys, kind="stable")


def spherical_kmeans(x: np.ndarray, n_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster unit rows by their cosine to the centroids (Dhillon & Modha 2001), by faiss.

    Parameters
    ----------
    x : float32 (n, d)
        Unit rows.
    n_clusters : int
        1 to n.
    seed : int

    Returns
    -------
    labels : int64 (n,)
        The same for every order of the rows.
    centroids : float32 (n_clusters, d)

    Raises
    ------
    CoreclipError
        For a number of clusters that is not 1 to n.
    """
    import faiss

    if not 1 <= n_clusters <= len(x):
        raise CoreclipError(f"{n_clusters} clusters of {len(x)} pairs are not possible: 1 to {len(x)}")
    order = canonical_order(x)
    rows = x[order]
    kmeans = faiss.Kmeans(
        x.shape[1], n_clusters, niter=_ITERATIONS, spherical=True, seed=seed % 2**31, min_points_per_centroid=1
    )
    kmeans.train(rows)
    labels = np.empty(len(x), np.int64)
    labels[order] = kmeans.index.search(rows, 1)[1][:, 0]
    return labels, np.asarray(kmeans.centroids)


def nearest_centroids(x: np.ndarray, n_clusters: int, nearest: int, seed: int) -> np.ndarray:
    """Return the clusters whose centroids are nearest to each unit row, the nearest first, int32 (n, nearest).

    The spherical k-means looks at some of the rows, 64 for each cluster at most.
    """
    import faiss

    kmeans = faiss.Kmeans(
        x.shape[1], n_clusters, niter=_FEW_ITERATIONS, spherical=True, seed=seed % 2**31, min_points_per_centroid=1,
        max_points_per_centroid=_ROWS_PER_CLUSTER,
    )  # fmt: skip
    kmeans.train(x)
    found = np.empty((len(x), nearest), np.int32)
    for start in range(0, len(x), _BLOCK):
        found[start : start + _BLOCK] = kmeans.index.search(x[start : start + _BLOCK], nearest)[1]
    return found


def groups(labels: np.ndarray) -> list[np.ndarray]:
    """Return each label's rows (int64, ascending), labels ascending."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return np.split(order, starts)


def apportion(sizes: np.ndarray, k: int) -> np.ndarray:
    """Share k out in proportion to the sizes, by largest remainder; ties go to the first.

    Parameters
    ----------
    sizes : int64 (c,)
    k : int
        0 to the sum of the sizes.

    Returns
    -------
    int64 (c,)
        Sums to k; no share exceeds its size.
    """
    sizes = np.asarray(sizes, np.int64)
    total = int(sizes.sum())
    shares, remainders = sizes * k // total, sizes * k % total
    shares[np.argsort(-remainders, kind="stable")[: k - shares.sum()]] += 1
    return shares


def share_equally(sizes: np.ndarray, k: int) -> np.ndarray:
    """Share k out equally; what a full group can't take goes to the others, what is left over to the first of them.

    Parameters
    ----------
    sizes : int64 (c,)
    k : int
        0 to the sum of the sizes.

    Returns
    -------
    int64 (c,)
        Sums to k; no share exceeds its size; shares below their sizes differ by at most 1.
    """
    sizes = np.asarray(sizes, np.int64)
    shares = np.zeros(len(sizes), np.int64)
    while left := k - int(shares.sum()):
        room = np.flatnonzero(shares < sizes)
        if left < len(room):
            shares[room[:left]] += 1
        else:
            shares[room] = np.minimum(sizes[room], shares[room] + left // len(room))
    return shares


def take_turns(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return an order of the rows of groups that stand one after the other, so that every prefix is balanced.

    Parameters
    ----------
    counts : int (c,)
        Rows of each group, in order of choice; there may be none.

    Returns
    -------
    int64 (sum of counts,)
        Keeps the order within a group; ties go to the first group.
    """
    return np.argsort(np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count]), kind="stable")
