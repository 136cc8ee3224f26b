"""Dropping what is ordinary: density-based pruning and D4.

Density-based pruning (Abbas et al. 2024, Effective pruning of web-scale datasets based on complexity of concept clusters,
arXiv 2401.04578) keeps more of the clusters that are spread out and lie apart. D4 (Tirumala et al. 2023, arXiv 2308.12284) clusters
again what SemDeDup leaves and drops what is nearest to the new centroids. Left out: other measures of a cluster's complexity.
"""

import math
import time
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.checks import check_k
from coreclip.selection.clusters import groups, spherical_kmeans, take_turns
from coreclip.selection.deduplicate import DEFAULT_EPS, semdedup
from coreclip.selection.features import Features, as_features
from coreclip.selection.subset import Subset

ORDERS = ("farthest", "nearest")
MOST_CLUSTERS = 500  # the paper's number for 280 M pairs
DEDUPLICATED = 0.75  # share that D4's first step leaves where no eps is given, as in its paper
_NEAR_CENTROIDS = 20


def density(
    features: Features | np.ndarray,
    k: int,
    *,
    eps: float | None = DEFAULT_EPS,
    clusters: int | None = None,
    temperature: float = 0.1,
    minimum: int = 1,
    order: str = "farthest",
    modality: str = "image",
    seed: int = 0,
) -> Subset:
    """Choose k pairs, more of them from clusters that are spread out and far from others.

    Parameters
    ----------
    features : Features or float (n, d)
    k : int
        1 to n; all that are left where removing duplicates leaves fewer.
    eps : float or None
        Of :func:`semdedup`, which comes first; None for no removal of duplicates, without which they rule the clusters.
    clusters : int or None
        Of the k-means; None for the square root of the pairs left, at most 500 and k.
    temperature : float
        Of the softmax over the clusters' complexities, above 0; the smaller, the more unequal the shares.
    minimum : int
        Pairs that each cluster keeps at least, as far as it has them.
    order : {"farthest", "nearest"}
        Which pairs of a cluster are kept: the farthest from its centroid, as in the paper, which drops the most prototypical;
        or the nearest.
    modality : {"image", "text", "both"}
    seed : int
        Of the clusters.

    Returns
    -------
    Subset
        Clusters take turns; within a cluster in the order asked for, ties to the lowest index. Gains are 1 - the cosine to the
        centroid. Weights are 1; there is no objective.

    Raises
    ------
    CoreclipError
        For parameters out of range, and a missing modality.

    Notes
    -----
    A cluster's complexity is d_intra d_inter: the mean cosine distance of its pairs to their centroid, times the mean cosine
    distance of the centroid to the 20 nearest other ones. With P the softmax of complexity / temperature, the numbers kept are
    those of the quadratic programme min ||x - P k||^2 with sum x = k and minimum <= x_c <= |C_c|, solved exactly (its solution is
    P k + lambda, clipped) and rounded by largest remainder (see :func:`share_out`).
    """
    start = time.perf_counter()
    features = as_features(features)
    check_k(k, features.n)
    _check_density(temperature, minimum, order)
    left = (
        np.arange(features.n)
        if eps is None
        else np.sort(semdedup(features, eps=eps, modality=modality, seed=seed).indices)
    )
    k = min(k, len(left))
    x = features.take(left).vectors(modality)
    if clusters is None:
        clusters = min(max(1, math.isqrt(len(left))), MOST_CLUSTERS, max(1, k // max(minimum, 1)))
    distances, members, centroids = _to_centroids(x, clusters, seed)
    sizes = np.array([len(rows) for rows in members])
    shares = _softmax(_complexities(distances, members, centroids) / temperature)
    budgets = share_out(shares * k, np.minimum(minimum, sizes), sizes, k)
    sign = -1 if order == "farthest" else 1
    picks = [
        rows[np.argsort(sign * distances[rows], kind="stable")[:budget]]
        for rows, budget in zip(members, budgets, strict=True)
    ]
    chosen = np.concatenate(picks)[take_turns(budgets)]
    parameters = {
        "eps": eps,
        "left_by_semdedup": len(left),
        "clusters": len(members),
        "temperature": temperature,
        "minimum": minimum,
        "order": order,
        "modality": modality,
    }
    return _subset(features, left[chosen], distances[chosen], "density", parameters, seed, start)


def d4(
    features: Features | np.ndarray,
    k: int | None = None,
    *,
    eps: float | None = None,
    drop: float | None = None,
    clusters: int | None = None,
    modality: str = "image",
    seed: int = 0,
) -> Subset:
    """Remove near-duplicates, cluster the rest, and drop the pairs nearest to their centroids.

    Parameters
    ----------
    features : Features or float (n, d)
    k : int or None
        1 to n. Keep at most k: the farthest from their centroids, over all clusters together.
    eps : float or None
        Of :func:`semdedup`; None to leave the most novel 75 %, but no fewer than k.
    drop : float or None
        Share of the pairs that SemDeDup left which the second step drops, 0 to below 1; None where k says it.
    clusters : int or None
        Of the second k-means; None for the square root of the pairs left.
    modality : {"image", "text", "both"}
    seed : int
        Of both k-means.

    Returns
    -------
    Subset
        The farthest from its centroid first, ties to the lowest index. Gains are 1 - the cosine to it: every prefix is what a
        larger ``drop`` leaves. Weights are 1; there is no objective.

    Raises
    ------
    CoreclipError
        For parameters out of range, neither k nor drop, and a missing modality.
    """
    start = time.perf_counter()
    features = as_features(features)
    n = features.n
    if k is not None:
        check_k(k, n)
    if k is None and drop is None:
        raise CoreclipError(
            "d4 needs a number of pairs or drop, the share to drop of what SemDeDup leaves, e.g. drop=0.5"
        )
    if drop is not None and not 0 <= drop < 1:
        raise CoreclipError(f"drop = {drop} is not allowed: a share from 0 to below 1")
    first = None if eps is not None else max(round(DEDUPLICATED * n), k or 1, 1)
    left = np.sort(semdedup(features, first, eps=eps, modality=modality, seed=seed).indices)
    kept = len(left) if drop is None else max(1, len(left) - math.floor(drop * len(left)))
    kept = kept if k is None else min(kept, k)
    x = features.take(left).vectors(modality)
    if clusters is None:
        clusters = max(1, math.isqrt(len(left)))
    distances, *_ = _to_centroids(x, clusters, seed)
    chosen = np.argsort(-distances, kind="stable")[:kept]
    parameters = {"eps": eps, "left_by_semdedup": len(left), "drop": drop, "clusters": clusters, "modality": modality}
    return _subset(features, left[chosen], distances[chosen], "d4", parameters, seed, start)


def share_out(target: np.ndarray, lower: np.ndarray, upper: np.ndarray, total: int) -> np.ndarray:
    """Return whole numbers near the target, within bounds and of a given sum.

    Parameters
    ----------
    target : float64 (c,)
    lower, upper : int64 (c,)
        ``lower <= upper``.
    total : int
        ``lower.sum()`` to ``upper.sum()``.

    Returns
    -------
    int64 (c,)
        The nearest point to the target of those in the box with that sum, rounded by largest remainder, ties to the first.

    Raises
    ------
    CoreclipError
        For bounds that leave no such numbers.
    """
    if not lower.sum() <= total <= upper.sum():
        raise CoreclipError(
            f"{total} pairs can't be shared out: the {len(lower)} clusters keep {lower.sum()} to {upper.sum()}; "
            f"take fewer clusters or a smaller minimum"
        )
    point = project(target, lower, upper, total)
    whole = np.floor(point + 1e-9).astype(np.int64)  # what rounding has put just below a whole number is that number
    rest = total - int(whole.sum())
    by_remainder = np.argsort(-np.where(whole < upper, point - whole, -1.0), kind="stable")
    whole[by_remainder[:rest]] += 1
    return whole


def project(target: np.ndarray, lower: np.ndarray, upper: np.ndarray, total: float) -> np.ndarray:
    """Return the point of the box ``lower <= x <= upper`` with ``x.sum() == total`` that is nearest to ``target``, float64 (c,).

    By the conditions of Karush, Kuhn and Tucker it is ``clip(target + shift, lower, upper)``; its sum grows with the shift and is
    linear between the shifts at which a coordinate reaches a bound, so that the right one is found by bisection over those.
    """

    def clipped(shift: float) -> np.ndarray:
        return np.clip(target + shift, lower, upper)

    bends = np.sort(np.concatenate([lower - target, upper - target]))
    low, high = 0, len(bends) - 1  # the sum is at most the total at bends[low], at least at bends[high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if clipped(bends[middle]).sum() <= total else (low, middle)
    at_low, at_high = clipped(bends[low]), clipped(bends[high])
    rise = at_high.sum() - at_low.sum()
    share = min(max((total - at_low.sum()) / rise, 0.0), 1.0) if rise > 0 else 0.0
    return at_low + share * (at_high - at_low)


def _to_centroids(x: np.ndarray, n_clusters: int, seed: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Return each row's cosine distance to its centroid, float64 (n,), and of the clusters that have any rows and centroids."""
    labels, centroids = spherical_kmeans(x, n_clusters, seed)
    distances = 1 - np.einsum("ij,ij->i", x, centroids[labels], dtype=np.float64)
    return distances, groups(labels), centroids[np.unique(labels)]


def _complexities(distances: np.ndarray, members: list[np.ndarray], centroids: np.ndarray) -> np.ndarray:
    """Return d_intra d_inter of each cluster, float64 (c,)."""
    spread = np.array([distances[rows].mean() for rows in members])
    if len(members) == 1:
        return spread
    apart = 1 - centroids.astype(np.float64) @ centroids.T
    np.fill_diagonal(apart, np.inf)
    near = min(_NEAR_CENTROIDS, len(members) - 1)
    return spread * np.sort(apart, axis=1)[:, :near].mean(axis=1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def _check_density(temperature: float, minimum: int, order: str) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise CoreclipError(f"temperature = {temperature} is not allowed: above 0; the default is 0.1")
    if minimum < 0:
        raise CoreclipError(f"minimum = {minimum} is not allowed: a number of pairs, at least 0")
    if order not in ORDERS:
        raise CoreclipError(f"unknown order {order!r}; known: {', '.join(ORDERS)}")


def _subset(
    features: Features,
    indices: np.ndarray,
    gains: np.ndarray,
    method: str,
    parameters: dict[str, Any],
    seed: int,
    start: float,
) -> Subset:
    return Subset(
        indices=indices,
        weights=np.ones(len(indices)),
        gains=gains,
        method=method,
        parameters=parameters,
        seed=seed,
        n=features.n,
        seconds=time.perf_counter() - start,
        fingerprint=features.fingerprint,
    )
