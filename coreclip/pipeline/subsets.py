"""The check of a subset, whoever made it, against the data set that it is to be used on."""

from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.dataset import Dataset


def checked_subset(subset: Any, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices int64 (k,) and weights float64 (k,) of a subset, checked against the data set; None is all of it.

    Raises
    ------
    CoreclipError
        For a subset of another data set, an empty one, indices that are outside, and weights that are not finite or
        are negative.
    """
    if subset is None:
        return np.arange(dataset.n), np.ones(dataset.n)
    fingerprint = getattr(subset, "fingerprint", None)
    if fingerprint is not None and fingerprint != dataset.fingerprint:
        raise CoreclipError(
            f"the subset was chosen from data set {fingerprint}, {dataset.path} is {dataset.fingerprint}; "
            "choose one from this data set"
        )
    indices = np.asarray(getattr(subset, "indices", subset))
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
        raise CoreclipError(
            f"subset of type {indices.dtype} and shape {indices.shape} is not allowed: it must be a non-empty list of "
            "integer indices; turn a mask into them with numpy.flatnonzero(mask)"
        )
    outside = (indices < 0) | (indices >= dataset.n)
    if outside.any():
        raise CoreclipError(
            f"subset has the index {indices[outside][0]}, which is not in {dataset.path}: it must be 0 to {dataset.n - 1}"
        )
    weights = np.asarray(getattr(subset, "weights", np.ones(len(indices))))
    allowed = weights.shape == indices.shape and weights.dtype.kind in "iuf"
    if not allowed or not np.isfinite(weights).all() or (weights < 0).any():
        raise CoreclipError(
            f"the subset's weights, of type {weights.dtype} and shape {weights.shape}, are not allowed: they must be "
            f"{len(indices)} finite numbers of at least 0, one for each index"
        )
    return indices.astype(np.int64), weights.astype(np.float64)
