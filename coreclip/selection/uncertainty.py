"""How unsure a model was of each pair, and the selections that rank by it.

Least confidence, margin and entropy, as Selection via Proxy uses them (Coleman et al. 2019, arXiv 1906.11829). The selections read
what training has stored of the probabilities, in the last pass that a pair was seen in. Left out: ensembles and dropout.
"""

from collections.abc import Callable, Mapping

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.difficulty import blocks, check_probabilities, rank_by
from coreclip.selection.subset import Subset


def least_confidence(signals: Mapping[str, np.ndarray], k: int, *, passes: int = 1) -> Subset:
    """Choose the k pairs whose most probable class is least probable, the least sure first.

    Parameters
    ----------
    signals : mapping of str to array
        With ``confidence``, float (passes, n), the largest probability.
    k : int
        1 to the number of pairs that were seen.
    passes : int
        Of the passes that a pair was seen in, the last so many are averaged.

    Returns
    -------
    Subset
        Gains are 1 - the largest probability; ties go to the lowest index.

    Raises
    ------
    CoreclipError
        For a signal that is not there, a k that is too large, and ``passes`` below 1.
    """
    return rank_by(signals, k, "confidence", passes=passes, method="least-confidence")


def margin(signals: Mapping[str, np.ndarray], k: int, *, passes: int = 1) -> Subset:
    """Choose the k pairs whose two most probable classes are nearest to each other, the nearest first.

    Parameters
    ----------
    signals : mapping of str to array
        With ``probability_margin``, float (passes, n), the largest probability minus the second largest. (The signal ``margin``
        is another one, of the loss.)
    k : int
        1 to the number of pairs that were seen.
    passes : int
        Of the passes that a pair was seen in, the last so many are averaged.

    Returns
    -------
    Subset
        Gains are minus the margins; ties go to the lowest index.

    Raises
    ------
    CoreclipError
        For a signal that is not there, a k that is too large, and ``passes`` below 1.
    """
    return rank_by(signals, k, "probability_margin", passes=passes, method="margin")


def entropy(signals: Mapping[str, np.ndarray], k: int, *, passes: int = 1) -> Subset:
    """Choose the k pairs whose probabilities have the largest entropy, the largest first.

    Parameters
    ----------
    signals : mapping of str to array
        With ``entropy``, float (passes, n), in nats.
    k : int
        1 to the number of pairs that were seen.
    passes : int
        Of the passes that a pair was seen in, the last so many are averaged.

    Returns
    -------
    Subset
        Gains are the entropies; ties go to the lowest index.

    Raises
    ------
    CoreclipError
        For a signal that is not there, a k that is too large, and ``passes`` below 1.
    """
    return rank_by(signals, k, "entropy", passes=passes, method="entropy")


def least_confidence_scores(probabilities: np.ndarray) -> np.ndarray:
    """Return 1 - the largest probability.

    Parameters
    ----------
    probabilities : float (n, C)
        Of each class; NaN for a pair that was not seen.

    Returns
    -------
    float64 (n,)
        0 to 1 - 1 / C, higher is less sure; NaN for a pair that was not seen.

    Raises
    ------
    CoreclipError
        For another shape, fewer than 2 classes, and rows that are no probabilities.
    """
    return _by_rows(probabilities, lambda rows: 1 - rows.max(axis=1))


def margin_scores(probabilities: np.ndarray) -> np.ndarray:
    """Return minus the difference of the two largest probabilities; see :func:`least_confidence_scores`.

    Returns
    -------
    float64 (n,)
        -1 to 0, higher is less sure; NaN for a pair that was not seen.
    """
    return _by_rows(probabilities, _margins)


def entropy_scores(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy -sum p log p in nats; see :func:`least_confidence_scores`.

    Returns
    -------
    float64 (n,)
        0 to log C, higher is less sure; NaN for a pair that was not seen.
    """
    return _by_rows(probabilities, _entropies)


def _margins(rows: np.ndarray) -> np.ndarray:
    top = np.partition(rows, -2, axis=1)
    return top[:, -2] - top[:, -1]


def _entropies(rows: np.ndarray) -> np.ndarray:
    logs = np.log(rows, out=np.zeros_like(rows), where=rows != 0)  # 0 log 0 = 0
    return 0.0 - np.einsum("ij,ij->i", rows, logs)


def _by_rows(probabilities: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or 0 in probabilities.shape or probabilities.shape[1] < 2:
        raise CoreclipError(
            f"probabilities have shape {probabilities.shape}; it must be (n, classes), of at least 2 classes"
        )
    scores = np.empty(len(probabilities))
    for rows in blocks(*probabilities.shape):
        scores[rows] = score(check_probabilities(probabilities[rows]))
    return scores
