"""SemDeDup (Abbas et al. 2023, arXiv 2303.09540): drop pairs that look like another one.

Within each k-means cluster the pairs are ordered from far to near the centroid; a pair is dropped when an earlier one's cosine to
it is above 1 - eps. The outcome does not depend on the order of the data set. Left out: duplicates across clusters.
"""

import math
import time

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.clusters import canonical_order, groups, spherical_kmeans
from coreclip.selection.facility import check_k
from coreclip.selection.features import Features, as_features
from coreclip.selection.subset import Subset

DEFAULT_EPS = 0.05
_BLOCK = 2048  # rows


def semdedup(
    features: Features | np.ndarray,
    k: int | None = None,
    *,
    eps: float | None = None,
    n_clusters: int | None = None,
    modality: str = "image",
    seed: int = 0,
) -> Subset:
    """Choose the pairs that are no near-duplicates of another.

    Parameters
    ----------
    features : Features or float (n, d)
    k : int or None
        Keep at most the k most novel. Without ``eps`` exactly k: the eps that leaves k is in ``parameters``.
    eps : float or None
        A pair is dropped when its cosine to an earlier one exceeds 1 - eps; 0 to 2. None for 0.05 where there is no k.
    n_clusters : int or None
        None for the square root of n.
    modality : {"image", "text", "both"}
    seed : int
        Of the clusters.

    Returns
    -------
    Subset
        The survivors, most novel first, ties to the lowest index. Gains are 1 - the highest cosine to an earlier one of the
        cluster (2 for a cluster's first): every prefix is what a larger eps leaves. Weights are 1; there is no objective.

    Raises
    ------
    CoreclipError
        For parameters out of range and a missing modality.
    """
    start = time.perf_counter()
    features = as_features(features)
    n = features.n
    if k is not None:
        check_k(k, n)
    if eps is None and k is None:
        eps = DEFAULT_EPS
    if eps is not None and not 0 <= eps < 2:
        raise CoreclipError(f"eps = {eps} is not allowed: 0 <= eps < 2 (1 - cosine); the default is {DEFAULT_EPS}")
    if n_clusters is None:
        n_clusters = max(1, math.isqrt(n))
    novel = novelty(features.vectors(modality), n_clusters, seed)
    order = np.argsort(-novel, kind="stable")
    if eps is not None:
        order = order[: np.count_nonzero(novel >= eps)]
    indices = order[:k]
    return Subset(
        indices=indices,
        weights=np.ones(len(indices)),
        gains=novel[indices],
        method="semdedup",
        parameters={
            "eps": float(novel[indices[-1]]) if eps is None else eps,
            "n_clusters": n_clusters,
            "modality": modality,
        },
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=features.fingerprint,
    )


def novelty(x: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Return 1 - the highest cosine to an earlier row of the cluster, farthest from the centroid first.

    Parameters
    ----------
    x : float32 (n, d)
        Unit rows.
    n_clusters, seed : int
        Of the k-means.

    Returns
    -------
    float64 (n,)
        2 for the first row of a cluster; follows the rows when they are reordered.
    """
    labels, centroids = spherical_kmeans(x, n_clusters, seed)
    order = canonical_order(x)
    result = np.empty(len(x))
    for members in groups(labels[order]):
        rows = order[members]
        to_centroid = x[rows] @ centroids[labels[rows[0]]]
        rows = rows[np.argsort(to_centroid, kind="stable")]
        result[rows] = 1 - _highest_earlier(x[rows])
    return result


def _highest_earlier(x: np.ndarray) -> np.ndarray:
    """Return each row's highest cosine to a row before it, float64 (n,); -1 for the first."""
    result = np.full(len(x), -1.0)
    for start in range(0, len(x), _BLOCK):
        stop = min(start + _BLOCK, len(x))
        cosines = x[start:stop] @ x[:stop].T
        cosines[np.arange(stop) >= np.arange(start, stop)[:, None]] = -1
        result[start:stop] = cosines.max(axis=1)
    return np.clip(result, -1, 1)
