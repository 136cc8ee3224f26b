"""Highest cosines among rows that share a cluster, or a neighbouring one: what an inverted file is for in nearest-neighbour search.

Each query looks only into the clusters whose centroids are nearest to it (Jégou et al. 2011, Product Quantization for Nearest
Neighbor Search). Left out: compressed rows; all of them lie in memory.
"""

from collections.abc import Iterator

import numpy as np

from coreclip.selection.clusters import groups

_QUERIES, _MEMBERS = 2048, 8192  # rows of a tile; its float32 cosines are 64 MiB


def nearest_lists(x: np.ndarray, centroids: np.ndarray, probes: int) -> np.ndarray:
    """Return the numbers of the ``probes`` centroids with the highest cosine to each row, int64 (n, probes), in no order."""
    if probes >= len(centroids):
        return np.broadcast_to(np.arange(len(centroids)), (len(x), len(centroids)))
    found = np.empty((len(x), probes), np.int64)
    for start in range(0, len(x), _MEMBERS):
        cosines = x[start : start + _MEMBERS] @ centroids.T
        found[start : start + _MEMBERS] = np.argpartition(-cosines, probes - 1, axis=1)[:, :probes]
    return found


def highest_earlier(
    x: np.ndarray,
    labels: np.ndarray,
    rank: np.ndarray,
    queries: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Return each row's highest cosine to a row that comes before it, over the comparisons that the queries make.

    Parameters
    ----------
    x : float32 (n, d)
        Unit rows.
    labels : int64 (n,)
        The cluster that a row lies in.
    rank : int64 (n,)
        All different; the row of lower rank comes before.
    queries : iterator of (owners int64 (m,), vectors float32 (m, d), lists int64 (m, p))
        A query stands for the row ``owners`` and is compared with all rows of its ``lists``, clusters.

    Returns
    -------
    float64 (n,)
        A comparison counts for the later one of the two rows; -1 where there is none.
    """
    members = {int(labels[rows[0]]): rows for rows in groups(labels)}
    result = np.full(len(x), -1.0)
    for owners, vectors, lists in queries:
        if not len(owners):
            continue
        asked = np.argsort(lists, axis=None, kind="stable")
        for entries in np.split(asked, np.flatnonzero(np.diff(lists.ravel()[asked])) + 1):
            rows = members.get(int(lists.flat[entries[0]]), np.empty(0, np.int64))
            chosen = entries // lists.shape[1]
            for i in range(0, len(chosen), _QUERIES):
                part = chosen[i : i + _QUERIES]
                for j in range(0, len(rows), _MEMBERS):
                    _compare(result, x, rank, rows[j : j + _MEMBERS], owners[part], vectors[part])
    return np.clip(result, -1, 1)


def _compare(
    result: np.ndarray, x: np.ndarray, rank: np.ndarray, rows: np.ndarray, owners: np.ndarray, vectors: np.ndarray
) -> None:
    cosines = vectors @ x[rows].T
    before = rank[rows] < rank[owners][:, None]
    same = rows == owners[:, None]
    np.maximum.at(result, owners, np.where(before, cosines, -1).max(axis=1))
    # The rows are all different, so that no entry is written twice.
    result[rows] = np.maximum(result[rows], np.where(before | same, -1, cosines).max(axis=0))
