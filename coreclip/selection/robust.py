"""CRUST (Mirzasoleiman, Cao & Leskovec 2020, arXiv 2011.07451): medoids of the gradients, weighted by how crowded they are.

Wrongly labelled or captioned pairs have scattered gradients: few others are near theirs, so that their medoids weigh little.
The picks are those of :mod:`coreclip.selection.coresets`, on the gradients with respect to the embeddings. Left out: mixup, and
selecting again during training.
"""

import time

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.checks import check_k
from coreclip.selection.coresets import classes_of, craig_of_gradients, describe, distance_blocks
from coreclip.selection.features import Features
from coreclip.selection.gradients import FactoredGradients, as_gradients, clip_gradients
from coreclip.selection.subset import Subset


def crust(
    features: Features,
    k: int,
    *,
    r: float | None = None,
    temperature: float | None = None,
    bank: int = 1024,
    labels: np.ndarray | None = None,
    clusters: int | None = None,
    seed: int = 0,
) -> Subset:
    """Choose k pairs among whose gradients every pair of the class has a near one, weighted by how many are near.

    Parameters
    ----------
    features : Features
        With image and text.
    k : int
        1 to n, shared out among the classes in proportion to their sizes.
    r : float or None
        Distance of gradients below which a pair counts as near, above 0. None for the median distance of the pairs that are not
        chosen to the nearest chosen one of their class.
    temperature, bank, labels, clusters, seed
        As of :func:`coreclip.selection.craig`.

    Returns
    -------
    Subset
        ``weights`` is w / ``scale``, of mean 1, where w counts the pairs of the class that are nearer than r, the chosen one itself
        included, and ``scale`` is in the parameters. Order, gains, objective and upper bound are CRAIG's.

    Raises
    ------
    CoreclipError
        For a missing modality, labels that do not fit, and parameters out of range.
    """
    start = time.perf_counter()
    n = features.n
    check_k(k, n)
    if r is not None and not 0 < r < np.inf:
        raise CoreclipError(f"r = {r} is not allowed: a distance of gradients, above 0; leave it out for the median")
    gradients = np.hstack(clip_gradients(features, temperature=temperature, bank=bank, seed=seed))
    classes = classes_of(features, labels, clusters, seed)
    found = craig_of_gradients(gradients, k, classes)
    radius = nearest_median(gradients, classes, found.indices) if r is None else r
    counts = near_counts(gradients, classes, found.indices, radius)
    scale = float(counts.mean())
    return Subset(
        indices=found.indices,
        weights=counts / scale,
        gains=found.gains,
        objective=found.objective,
        upper_bound=found.upper_bound,
        method="crust",
        parameters={
            **describe(features, temperature, bank, classes, labels),
            "r": radius,
            "scale": scale,
            "weights": "w / scale, where w counts the pairs of the class nearer than r",
        },
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=features.fingerprint,
    )


def near_counts(
    gradients: np.ndarray | FactoredGradients, classes: np.ndarray, picks: np.ndarray, r: float
) -> np.ndarray:
    """Return how many rows of its class each pick has at a distance below r, itself always included.

    Parameters
    ----------
    gradients : float (n, d) or FactoredGradients
    classes : int64 (n,)
    picks : int64 (k,)
    r : float

    Returns
    -------
    int64 (k,)
    """
    gradients, counts = as_gradients(gradients), np.zeros(len(picks), np.int64)
    for rows, positions in _by_class(classes, picks):
        for _, distances in distance_blocks(gradients, rows, picks[positions]):
            counts[positions] += (distances < r).sum(axis=0)
    return np.maximum(counts, 1)


def nearest_median(gradients: np.ndarray | FactoredGradients, classes: np.ndarray, picks: np.ndarray) -> float:
    """Return the median distance to the nearest pick of the class, over the rows that are no picks; 0 without any such row."""
    gradients, nearest = as_gradients(gradients), np.full(len(classes), np.nan)
    for rows, positions in _by_class(classes, picks):
        for block, distances in distance_blocks(gradients, rows, picks[positions]):
            nearest[rows[block]] = distances.min(axis=1)
    nearest[picks] = np.nan
    return float(np.nanmedian(nearest)) if not np.isnan(nearest).all() else 0.0


def _by_class(classes: np.ndarray, picks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of each class that has picks, and the positions of these picks."""
    return [
        (np.flatnonzero(classes == name), np.flatnonzero(classes[picks] == name)) for name in np.unique(classes[picks])
    ]
