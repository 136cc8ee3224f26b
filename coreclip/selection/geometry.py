"""Subsets by where the embeddings lie: k-center covers them, herding keeps their mean.

k-center after Gonzalez 1985 (Sener & Savarese 2018, arXiv 1708.00489, for training sets), herding after Welling 2009. Both take
one row at a time and hold a few numbers per pair beside the embeddings. Left out: outliers, and a first pick of the caller's.
"""

import math
import time

import numpy as np

from coreclip.progress import Progress
from coreclip.selection.checks import check_k
from coreclip.selection.features import Features, as_features
from coreclip.selection.subset import Subset

_DIAMETER = 2.0  # of the unit sphere: no distance is larger


def k_center(features: Features | np.ndarray, k: int, *, modality: str = "image") -> Subset:
    """Choose k pairs so that the largest distance of any pair to its nearest chosen one is small.

    Parameters
    ----------
    features : Features or float (n, d)
        Compared by the Euclidean distance of the unit vectors.
    k : int
        1 to n.
    modality : {"image", "text", "both"}
        The first two are read where they lie, ``both`` is copied.

    Returns
    -------
    Subset
        The first pick is the pair nearest to the mean, each further one is the pair that is farthest from those before, ties to
        the lowest index. Gains are that distance, the radius before the pick, and never grow; the first's is 2, the largest distance
        of unit vectors. ``parameters["radius"]`` is the largest distance that is left, no k pairs have one below
        ``radius_lower_bound``. There is no objective, as less is better. Weights are 1.

    Raises
    ------
    CoreclipError
        For a k that is not 1 to n, and a modality that is unknown or not there.

    Notes
    -----
    The radius is at most twice the best. Proof, and the lower bound: the picks and the farthest pair that is left are k + 1 pairs,
    all at least a radius apart; two of them share a centre in any choice of k, and one of these two is at least half a radius away
    from it. ``parameters["distances"]`` counts the pairs that were compared, of the n k that the definition asks for.
    """
    from coreclip.selection.farthest import farthest_first
    from coreclip.selection.rows import in_pieces, mean_row, nearest_row, unit_rows

    start = time.perf_counter()
    features = as_features(features)
    n = features.n
    check_k(k, n)
    rows = unit_rows(features, modality)
    with in_pieces(*rows.values.shape) as run:
        first = nearest_row(run, rows, mean_row(rows), np.ones(n, bool))
    with Progress(k, "k-center", "picks") as progress:
        found = farthest_first(rows, first, k, progress)
    gains = np.sqrt(found.squares)
    gains[0] = _DIAMETER
    radius = math.sqrt(found.left)
    return Subset(
        indices=found.picks,
        weights=np.ones(k),
        gains=gains,
        method="k-center",
        parameters={
            "modality": modality,
            "radius": radius,
            "radius_lower_bound": radius / 2,
            "distances": found.compared,
        },
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=features.fingerprint,
    )


def herding(features: Features | np.ndarray, k: int, *, modality: str = "image") -> Subset:
    """Choose k pairs, the mean of whose vectors is near the mean of all, at every k.

    Parameters
    ----------
    features : Features or float (n, d)
    k : int
        1 to n.
    modality : {"image", "text", "both"}

    Returns
    -------
    Subset
        Pick t + 1 is the pair i not chosen yet with the least ``||(t + 1) mu - sum_S x_j - x_i||``, ties to the lowest index. Gains
        are what a pick takes off ``||mu - mean_S x_j||`` (that of the empty set being ||mu||) and may be negative; the objective is
        their sum, and ||mu|| its upper bound. ``parameters["mean_error"]`` is the distance that is left. Weights are 1.

    Raises
    ------
    CoreclipError
        For a k that is not 1 to n, and a modality that is unknown or not there.
    """
    from coreclip.selection.rows import in_pieces, mean_row, nearest_row, take_rows, unit_rows

    start = time.perf_counter()
    features = as_features(features)
    n = features.n
    check_k(k, n)
    rows = unit_rows(features, modality)
    mean = mean_row(rows)
    free, total = np.ones(n, bool), np.zeros(len(mean))
    picks, errors = np.empty(k, np.int64), np.empty(k + 1)
    errors[0] = np.linalg.norm(mean)
    with in_pieces(*rows.values.shape) as run, Progress(k, "herding", "picks") as progress:
        for t in range(k):
            picks[t] = nearest_row(run, rows, (t + 1) * mean - total, free)
            free[picks[t]] = False
            total += take_rows(rows, picks[t : t + 1])[0]
            errors[t + 1] = np.linalg.norm(mean - total / (t + 1))
            progress.advance()
    return Subset(
        indices=picks,
        weights=np.ones(k),
        gains=-np.diff(errors),
        objective=float(errors[0] - errors[-1]),
        upper_bound=float(errors[0]),
        method="herding",
        parameters={"modality": modality, "mean_error": float(errors[-1])},
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=features.fingerprint,
    )
