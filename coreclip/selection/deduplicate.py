"""SemDeDup (Abbas et al. 2023, arXiv 2303.09540): drop pairs that look like another one.

Within each k-means cluster the pairs are ordered from far to near the centroid; a pair is dropped when an earlier one's cosine to
it is above 1 - eps. The outcome does not depend on the order of the data set. Duplicates across clusters are found only on demand
(``probes``), which the paper does not have.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.checks import check_k
from coreclip.selection.clusters import canonical_order, groups, spherical_kmeans
from coreclip.selection.features import Features, as_features
from coreclip.selection.probing import highest_earlier, nearest_lists
from coreclip.selection.subset import Subset

DEFAULT_EPS = 0.05
_BLOCK = 2048  # rows


def semdedup(
    features: Features | np.ndarray,
    k: int | None = None,
    *,
    eps: float | None = None,
    n_clusters: int | None = None,
    probes: int = 1,
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
    probes : int
        Clusters in which each pair looks for earlier ones: 1, the paper's, for its own, which misses near-duplicates on both
        sides of a border; more also for those whose centroids are next nearest, as much work again each; ``n_clusters`` for all.
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
    eps = check_eps(eps, k, DEFAULT_EPS)
    check_probes(probes)
    if n_clusters is None:
        n_clusters = max(1, math.isqrt(n))
    novel = novelty(features.vectors(modality), n_clusters, seed, probes)
    parameters = {"n_clusters": n_clusters, "modality": modality, "probes": probes}
    return survivors(
        novel,
        k,
        eps,
        method="semdedup",
        parameters=parameters,
        seed=seed,
        start=start,
        fingerprint=features.fingerprint,
    )


def check_eps(eps: float | None, k: int | None, default: float) -> float | None:
    """Return eps, or the default where there is neither eps nor k; CoreclipError out of range."""
    if eps is None:
        return default if k is None else None
    if not 0 <= eps < 2:
        raise CoreclipError(f"eps = {eps} is not allowed: 0 <= eps < 2 (1 - cosine); the default is {default}")
    return eps


def check_probes(probes: int) -> None:
    if probes < 1:
        raise CoreclipError(f"probes = {probes} is not allowed: at least 1, the cluster that a pair lies in")


def survivors(
    novel: np.ndarray,
    k: int | None,
    eps: float | None,
    *,
    method: str,
    parameters: dict[str, Any],
    seed: int,
    start: float,
    fingerprint: str | None = None,
) -> Subset:
    """Return the pairs whose novelty, float64 (n,), is at least eps, at most k of them, the most novel first."""
    order = np.argsort(-novel, kind="stable")
    if eps is not None:
        order = order[: np.count_nonzero(novel >= eps)]
    indices = order[:k]
    return Subset(
        indices=indices,
        weights=np.ones(len(indices)),
        gains=novel[indices],
        method=method,
        parameters={"eps": float(novel[indices[-1]]) if eps is None else eps, **parameters},
        seed=seed,
        n=len(novel),
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint,
    )


def novelty(x: np.ndarray, n_clusters: int, seed: int, probes: int = 1) -> np.ndarray:
    """Return 1 - the highest cosine to an earlier row of the cluster, farthest from the centroid first.

    Parameters
    ----------
    x : float32 (n, d)
        Unit rows.
    n_clusters, seed : int
        Of the k-means.
    probes : int
        Clusters in which each row looks for earlier ones.

    Returns
    -------
    float64 (n,)
        2 for the first row of a cluster; follows the rows when they are reordered.
    """
    labels, centroids = spherical_kmeans(x, n_clusters, seed)
    order = canonical_order(x)
    if probes > 1:
        return 1 - _highest_probed(x, labels, centroids, order, probes)
    result = np.empty(len(x))
    for members in groups(labels[order]):
        rows = order[members]
        to_centroid = x[rows] @ centroids[labels[rows[0]]]
        rows = rows[np.argsort(to_centroid, kind="stable")]
        result[rows] = 1 - _highest_earlier(x[rows])
    return result


def _highest_probed(
    x: np.ndarray, labels: np.ndarray, centroids: np.ndarray, order: np.ndarray, probes: int
) -> np.ndarray:
    """Return each row's highest cosine to one farther from its own centroid, in its own and the next nearest clusters."""
    to_centroid = np.einsum("ij,ij->i", x, centroids[labels])
    rank = np.empty(len(x), np.int64)
    rank[order[np.argsort(to_centroid[order], kind="stable")]] = np.arange(len(x))

    def queries() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(0, len(x), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(x)))
            yield rows, x[rows], nearest_lists(x[rows], centroids, probes)

    return highest_earlier(x, labels, rank, queries())


def _highest_earlier(x: np.ndarray) -> np.ndarray:
    """Return each row's highest cosine to a row before it, float64 (n,); -1 for the first."""
    result = np.full(len(x), -1.0)
    for start in range(0, len(x), _BLOCK):
        stop = min(start + _BLOCK, len(x))
        cosines = x[start:stop] @ x[:stop].T
        cosines[np.arange(stop) >= np.arange(start, stop)[:, None]] = -1
        result[start:stop] = cosines.max(axis=1)
    return np.clip(result, -1, 1)
