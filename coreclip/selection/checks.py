"""What several selections ask of their arguments, each with the error that says what is wrong."""

import numpy as np

from coreclip.errors import CoreclipError


def check_k(k: int, n: int) -> None:
    """Refuse a budget that is not 1 to n."""
    if not 1 <= k <= n:
        raise CoreclipError(f"k = {k} of {n} pairs is not allowed: 1 to {n}")


def check_indices(indices: np.ndarray, n: int, name: str) -> np.ndarray:
    """Return numbers of pairs as int64; CoreclipError for others than whole ones from 0 to n - 1."""
    given = np.asarray(indices)
    if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
        raise CoreclipError(f"{name} are {given.dtype} of shape {given.shape}; they must be a list of whole numbers")
    if len(given) and (given.min() < 0 or given.max() >= n):
        outside = given[(given < 0) | (given >= n)][0]
        raise CoreclipError(f"{name}: {outside} is not one of the {n} pairs; it must be 0 to {n - 1}")
    return given.astype(np.int64)


def check_labels(labels: np.ndarray, n: int) -> np.ndarray:
    """Return the labels as int64 (n,); CoreclipError for others than one integer per pair."""
    labels = np.asarray(labels)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise CoreclipError(
            f"labels are {labels.dtype} of shape {labels.shape}; they must be one integer for each of {n} pairs"
        )
    return labels.astype(np.int64)


def check_weights(weights: np.ndarray | None, n: int) -> np.ndarray:
    """Return the weights of n represented rows as float64, 1 for None; CoreclipError where one is negative or not finite."""
    if weights is None:
        return np.ones(n)
    weights = np.ascontiguousarray(weights, np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or weights.min(initial=0) < 0:
        raise CoreclipError(f"weights must be {n} finite numbers, none negative; got shape {weights.shape}")
    return weights
