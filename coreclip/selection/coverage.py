"""How evenly a choice covers the groups of what was chosen from, be they classes or clusters of the features.

The Gini coefficient is that of Lorenz's curve of the chosen over all pairs, groups in order of their share (Gini 1912).
Clusters are found on a sample, the pairs of all are then counted in blocks, so that memory does not grow with their number.
Left out: coverage by distances, which facility location's objective measures.
"""

import math
from dataclasses import dataclass

import numpy as np

from coreclip.randomness import permutation
from coreclip.selection.clusters import spherical_kmeans
from coreclip.selection.features import Features

MOST_CLUSTERS = 64

_SAMPLE = 1 << 15  # rows that the centroids are found on
_BLOCK = 1 << 14  # rows
_STREAM_SAMPLE = 151


@dataclass(frozen=True, eq=False)
class Coverage:
    """Pairs of each group, and how many of them were chosen; groups without pairs are not among them.

    Attributes
    ----------
    groups : int64 (c,)
        Numbers of the groups, ascending.
    sizes, kept : int64 (c,)
    """

    groups: np.ndarray
    sizes: np.ndarray
    kept: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Chosen pairs of each group as a fraction of its pairs, float64 (c,)."""
        return self.kept / self.sizes

    @property
    def order(self) -> np.ndarray:
        """Positions of the groups, int64 (c,), the highest share first, ties to the lowest number."""
        return np.argsort(-self.shares, kind="stable")

    @property
    def gini(self) -> float:
        """0 where every group was kept in proportion, towards 1 the more the chosen pairs come from few groups."""
        rising = self.order[::-1]
        kept = np.concatenate([[0.0], np.cumsum(self.kept[rising]) / self.kept.sum()])
        sizes = self.sizes[rising] / self.sizes.sum()
        return float(1 - (sizes * (kept[1:] + kept[:-1])).sum())


def coverage(labels: np.ndarray, indices: np.ndarray) -> Coverage:
    """Count the pairs and the chosen pairs of each group.

    Parameters
    ----------
    labels : int64 (n,)
        Group of each pair.
    indices : int64 (k,)
        Chosen pairs, one at least.
    """
    names, inverse = np.unique(labels, return_inverse=True)
    sizes = np.bincount(inverse, minlength=len(names))
    return Coverage(names, sizes, np.bincount(inverse[indices], minlength=len(names)))


def cluster(features: Features, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Put the pairs into sqrt(n), at most 64, clusters of their images (or texts, where there are no images).

    Parameters
    ----------
    features : Features
    seed : int

    Returns
    -------
    labels : int64 (n,)
    central : int64 (clusters,)
        The pair of each cluster that is nearest to its centroid; -1 for a cluster without pairs.
    """
    modality = "text" if features.image is None else "image"
    sample = np.sort(permutation(features.n, seed, stream=_STREAM_SAMPLE)[:_SAMPLE])
    n_clusters = min(MOST_CLUSTERS, math.isqrt(features.n))
    centroids = spherical_kmeans(features.take(sample).vectors(modality), n_clusters, seed)[1]
    labels = np.empty(features.n, np.int64)
    central, best = np.full(n_clusters, -1), np.full(n_clusters, -np.inf)
    for rows, block in features.blocks(_BLOCK):
        cosines = block.vectors(modality) @ centroids.T
        labels[rows] = cosines.argmax(axis=1)
        for number in np.unique(labels[rows]):
            here = np.where(labels[rows] == number, cosines[:, number], -np.inf)
            if here.max() > best[number]:
                best[number], central[number] = here.max(), rows[here.argmax()]
    return labels, central


def most_similar(features: Features, queries: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the most similar image (or text, where there are no images) of each of a few pairs among others.

    Parameters
    ----------
    features : Features
    queries : int64 (q,)
        Pairs that are looked for.
    among : int64 (m,)
        Pairs that are looked through, one at least.

    Returns
    -------
    indices : int64 (q,)
        Pairs of ``among``; the lowest index where several are equally similar.
    cosines : float32 (q,)
    """
    modality = "text" if features.image is None else "image"
    wanted = features.take(queries).vectors(modality)
    found, best = np.full(len(queries), -1), np.full(len(queries), -np.inf, np.float32)
    among = np.sort(among)
    for start in range(0, len(among), _BLOCK):
        rows = among[start : start + _BLOCK]
        cosines = wanted @ features.take(rows).vectors(modality).T
        nearest = cosines.argmax(axis=1)
        highest = cosines[np.arange(len(queries)), nearest]
        better = highest > best
        found[better], best[better] = rows[nearest[better]], highest[better]
    return found, best
