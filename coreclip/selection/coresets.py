"""CRAIG (Mirzasoleiman et al. 2020, arXiv 1906.01827): a weighted subset whose gradients add up to nearly those of all pairs.

Gradients are those of :mod:`coreclip.selection.gradients`, frozen at the model that made the features, or any that a caller
has: :func:`craig_of_gradients` takes arrays (of a convex model the features themselves do) and the factored ones of a classifier.
Left out: selecting again during training.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.checks import check_k, check_labels
from coreclip.selection.clusters import apportion, groups, spherical_kmeans, take_turns
from coreclip.selection.facility import DEFAULT_NEIGHBORS, DENSE_LIMIT, similarity_of
from coreclip.selection.features import Features
from coreclip.selection.gradients import FactoredGradients, as_gradients, clip_gradients, resolve_temperature
from coreclip.selection.subset import Subset

if TYPE_CHECKING:
    from coreclip.selection.greedy import Similarity

_CLUSTER_PAIRS = 2000  # of a cluster, on average
_BLOCK = 4096  # rows


@dataclass(frozen=True, eq=False)
class Craig:
    """Medoids of gradients.

    Attributes
    ----------
    indices : int64 (k,)
        In order of choice.
    gains : float64 (k,)
    gamma : int64 (k,)
        Rows that each stands for; they sum to n.
    objective, upper_bound : float
        Of sum_i max_j (d_max - ||g_i - g_j||), summed over the classes with their budgets.
    """

    indices: np.ndarray
    gains: np.ndarray
    gamma: np.ndarray
    objective: float
    upper_bound: float


def _note_of_copies(gamma: np.ndarray) -> dict[str, str]:
    """Say how many picks equal an earlier one, which then stands for all, so that they weigh nothing."""
    n_copies = int((gamma == 0).sum())
    return {"note": f"{n_copies} of the {len(gamma)} chosen pairs equal an earlier one and weigh 0"} if n_copies else {}


def craig(
    features: Features,
    k: int,
    *,
    temperature: float | None = None,
    bank: int = 1024,
    labels: np.ndarray | None = None,
    clusters: int | None = None,
    seed: int = 0,
) -> Subset:
    """Choose k pairs, and weights, so that the weighted sum of their gradients is near the sum of all.

    Parameters
    ----------
    features : Features
        With image and text.
    k : int
        1 to n, shared out among the classes in proportion to their sizes.
    temperature : float or None
        Of CLIP's softmax; None for 1 / the features' ``logit_scale``, or 0.01 where they name none.
    bank : int
        Other pairs that each pair is contrasted with.
    labels : int (n,) or None
        Class of each pair; None for k-means clusters of the images and texts together.
    clusters : int or None
        Their number; None for one per 2,000 pairs.
    seed : int
        Of the bank and the clusters.

    Returns
    -------
    Subset
        ``weights`` is gamma * k / n, of mean 1, where gamma counts the pairs that a chosen one stands for; classes take turns, so
        that prefixes are balanced. The upper bound holds for the same budgets of the classes.

    Raises
    ------
    CoreclipError
        For a missing modality, labels that do not fit, and parameters out of range.
    """
    start = time.perf_counter()
    n = features.n
    check_k(k, n)
    gradients = np.hstack(clip_gradients(features, temperature=temperature, bank=bank, seed=seed))
    classes = classes_of(features, labels, clusters, seed)
    found = craig_of_gradients(gradients, k, classes)
    return Subset(
        indices=found.indices,
        weights=found.gamma * (k / n),
        gains=found.gains,
        objective=found.objective,
        upper_bound=found.upper_bound,
        method="craig",
        parameters={
            **describe(features, temperature, bank, classes, labels),
            "weights": "gamma * k / n, where gamma counts the pairs that a chosen one stands for",
            **_note_of_copies(found.gamma),
        },
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=features.fingerprint,
    )


def craig_of_gradients(gradients: np.ndarray | FactoredGradients, k: int, classes: np.ndarray) -> Craig:
    """Run CRAIG on given gradients.

    Parameters
    ----------
    gradients : float (n, d) or FactoredGradients
    k : int
        1 to n.
    classes : int64 (n,)
        A row is represented within its class, or by the nearest of all where its class's share of k is 0.

    Returns
    -------
    Craig
        ``||sum_i g_i - sum_j gamma_j g_j||`` is at most the sum of the distances to the representatives.
    """
    from coreclip.selection.greedy import maximise

    gradients = as_gradients(gradients)
    check_k(k, len(gradients))
    served, unserved = share(check_labels(classes, len(gradients)), k)
    runs = [maximise(_similarity(gradients.take(rows)), np.ones(len(rows)), budget) for rows, budget in served]
    chosen = [rows[run.picks] for (rows, _), run in zip(served, runs, strict=True)]
    gammas = [_count_nearest(gradients, rows, picks) for (rows, _), picks in zip(served, chosen, strict=True)]
    indices, gamma = np.concatenate(chosen), np.concatenate(gammas)
    if len(unserved):
        gamma = gamma + _count_nearest(gradients, unserved, indices)
    order = take_turns([budget for _, budget in served])
    return Craig(
        indices[order],
        np.concatenate([run.gains for run in runs])[order],
        gamma[order],
        sum(run.objective for run in runs),
        sum(run.upper_bound or 0.0 for run in runs),
    )


def share(classes: np.ndarray, k: int) -> tuple[list[tuple[np.ndarray, int]], np.ndarray]:
    """Share k out among the classes, in proportion to their sizes.

    Returns
    -------
    served : list of (int64 (m,), int)
        The rows of each class that gets something, and its budget.
    unserved : int64
        The rows of the other classes.
    """
    members = groups(classes)
    budgets = apportion(np.array([len(rows) for rows in members]), k)
    served = [(rows, int(budget)) for rows, budget in zip(members, budgets, strict=True) if budget]
    left = [rows for rows, budget in zip(members, budgets, strict=True) if not budget]
    return served, np.concatenate(left) if left else np.empty(0, np.int64)


def classes_of(features: Features, labels: np.ndarray | None, clusters: int | None, seed: int) -> np.ndarray:
    """Return the class of each pair, int64 (n,): its label, else its k-means cluster by image and text together.

    Raises
    ------
    CoreclipError
        For labels that do not fit, labels beside a number of clusters, and a number that is not 1 to n.
    """
    if labels is None:
        return spherical_kmeans(features.vectors("both"), clusters or -(-features.n // _CLUSTER_PAIRS), seed)[0]
    if clusters is not None:
        raise CoreclipError(f"clusters = {clusters} beside labels: classes come from one of them; leave the other out")
    return check_labels(labels, features.n)


def describe(
    features: Features, temperature: float | None, bank: int, classes: np.ndarray, labels: np.ndarray | None
) -> dict[str, Any]:
    """Return what a subset notes of the gradients and the classes."""
    return {
        "temperature": resolve_temperature(features, temperature),
        "bank": min(bank, features.n),
        "classes": len(np.unique(classes)),
        "classes_from": "clusters" if labels is None else "labels",
    }


def distance_blocks(
    gradients: FactoredGradients, rows: np.ndarray, picks: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield which of ``rows`` come next, and their distances ||g_i - g_j|| to ``picks``, float64 (b, k)."""
    squares = gradients.take(picks).squared_norms()
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(rows)))
        here = rows[block]
        squared = gradients.take(here).squared_norms()[:, None] + squares - 2 * gradients.dot(here, picks)
        squared[here[:, None] == picks] = 0.0  # rounding must not decide whether a row is near itself
        yield block, np.sqrt(np.maximum(squared, 0.0))


def _similarity(gradients: FactoredGradients) -> "Similarity":
    """Return d_max - ||g_i - g_j||, d_max being at least every distance; ``gradients`` is used up."""
    from coreclip.selection.neighbors import proximity

    n = len(gradients)
    neighbors = DEFAULT_NEIGHBORS if n > DENSE_LIMIT else None
    (residuals, hidden, _), *others = gradients.layers
    if not others and not hidden.shape[1]:
        # Centred and in float64: distances come from differences of squares, which cancel.
        residuals -= residuals.mean(axis=0)
        largest = 2 * float(np.linalg.norm(residuals, axis=1).max())
        return similarity_of(residuals, neighbors, proximity(residuals, largest), largest)
    squares = gradients.squared_norms()
    largest = 2 * float(np.sqrt(squares.max()))

    def measure(products: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        squared = squares[rows, None] + squares[None, columns] - 2 * gradients.dot(rows, columns)
        return np.maximum(largest - np.sqrt(np.maximum(squared, 0)), 0)

    # Products of the factors are no inner products of rows: the measure takes them by itself, and those of nothing are given.
    return similarity_of(np.zeros((n, 1)), neighbors, measure, largest)


def _count_nearest(gradients: FactoredGradients, rows: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Return how many of ``rows`` are nearest to each of ``picks``; ties go to the earlier pick."""
    half_squares = gradients.take(picks).squared_norms() / 2
    counts = np.zeros(len(picks), np.int64)
    for start in range(0, len(rows), _BLOCK):
        nearest = np.argmax(gradients.dot(rows[start : start + _BLOCK], picks) - half_squares, axis=1)
        counts += np.bincount(nearest, minlength=len(picks))
    return counts
