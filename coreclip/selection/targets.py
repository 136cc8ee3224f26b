"""NormSim (Wang et al. 2024, CLIPLoss and Norm-Based Data Selection, arXiv 2405.19547): images like those of the tasks to come.

A pair scores by the p-norm of its image's similarities to all target images. Where no target is known, the pool itself is the
target, the paper's NormSim-D. Texts play no part. Left out: p other than 2 and infinity.
"""

import dataclasses
import time

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.progress import Progress
from coreclip.selection.checks import check_k
from coreclip.selection.features import Features
from coreclip.selection.scores import ranked
from coreclip.selection.subset import Subset

NORMS = ("2", "inf")
_BLOCK = 1 << 14  # rows
_TILE = 2048  # rows of a tile of similarities, 16 MiB in float32


def normsim(features: Features, k: int, *, norm: str = "2", target: str | None = None, steps: int = 1) -> Subset:
    """Choose the k pairs whose images are most similar to a target's.

    Parameters
    ----------
    features : Features
        With images.
    k : int
        1 to n.
    norm : {"2", "inf"}
        ``inf`` is the similarity to the nearest target image, ``2`` counts all of them.
    target : str or None
        Path of features (see :meth:`Features.load`) of the same model, of which the images count; None for the pool itself.
    steps : int
        Without a target and with norm 2: the pool is cut down to k in this many equal steps, and after each the target is what
        is left. 1 cuts all at once.

    Returns
    -------
    Subset
        The highest norm first, ties to the lowest index. Gains are the norms, with steps those of the last one. Their sum is the
        objective, which no other choice exceeds; with steps there is none.

    Raises
    ------
    CoreclipError
        For features or a target without images, widths that differ, and parameters out of range.
    """
    start = time.perf_counter()
    check_k(k, features.n)
    if steps < 1:
        raise CoreclipError(f"steps = {steps} is not allowed: at least 1, which cuts all at once")
    if steps > 1 and (target is not None or norm != "2"):
        raise CoreclipError(f"steps = {steps} has a meaning only without a target and with norm 2; leave it out")
    if steps == 1:
        scores = normsim_scores(features, None if target is None else Features.load(target), norm=norm)
    else:
        scores = _shrinking(features, k, steps)
    subset = ranked(
        scores,
        k,
        method=f"normsim-{norm}",
        start=start,
        parameters={"target": target, "norm": norm} | ({"steps": steps} if target is None and norm == "2" else {}),
        fingerprint=features.fingerprint,
    )
    return subset if steps == 1 else dataclasses.replace(subset, objective=None, upper_bound=None, scores=None)


def normsim_2(features: Features, k: int, *, target: str | None = None, steps: int = 1) -> Subset:
    """Choose by :func:`normsim` with norm 2."""
    return normsim(features, k, norm="2", target=target, steps=steps)


def normsim_inf(features: Features, k: int, *, target: str | None = None) -> Subset:
    """Choose by :func:`normsim` with norm inf."""
    return normsim(features, k, norm="inf", target=target)


def normsim_scores(features: Features, target: Features | None = None, *, norm: str = "2") -> np.ndarray:
    """Return the norm of each image's similarities to the target's images, float64 (n,); higher is better.

    Parameters
    ----------
    features : Features
    target : Features or None
        None for the pool itself.
    norm : {"2", "inf"}

    Raises
    ------
    CoreclipError
        For features without images, widths that differ and an unknown norm.

    Notes
    -----
    Norm 2 is sqrt(u^T M u) with the d x d second moments M = sum over the target of v v^T: O((n + m) d^2) for m target images.
    With the pool as the target it includes the image itself, which adds the same to all; norm inf leaves it out, as it would be 1
    for all. Norm inf takes n m d multiplications, in tiles, half of that for the pool itself.
    """
    if norm not in NORMS:
        raise CoreclipError(f"unknown norm {norm!r}; known: {', '.join(NORMS)}")
    _check_images(features, "these features")
    if target is not None:
        _check_images(target, "the target's features")
        if target.dim != features.dim:
            raise CoreclipError(
                f"the target's images have {target.dim} dimensions, the pool's {features.dim}; embed both with one model"
            )
    if norm == "2":
        return _norms(features, second_moments(features if target is None else target))
    return _nearest_other(features) if target is None else _nearest(features, target)


def second_moments(features: Features) -> np.ndarray:
    """Return the sum of u u^T over the images, float64 (d, d)."""
    total = np.zeros((features.dim, features.dim))
    for _, block in features.blocks(_BLOCK):
        images = block.vectors("image")
        total += images.T @ images
    return total


def _norms(features: Features, moments: np.ndarray) -> np.ndarray:
    moments = moments.astype(np.float32)
    squares = np.empty(features.n)
    for rows, block in features.blocks(_BLOCK):
        images = block.vectors("image")
        squares[rows] = np.einsum("ij,ij->i", images @ moments, images, dtype=np.float64)
    return np.sqrt(np.maximum(squares, 0))


def _shrinking(features: Features, k: int, steps: int) -> np.ndarray:
    """Return the norms to what was left before the last step, NaN for what had gone by then."""
    left, moments = np.arange(features.n), second_moments(features)
    for step in range(1, steps):
        norms = _norms(features.take(left), moments)
        n_left = k + (features.n - k) * (steps - step) // steps
        order = np.argsort(-norms, kind="stable")
        gone, left = left[order[n_left:]], np.sort(left[order[:n_left]])
        if len(gone):
            moments -= second_moments(features.take(gone))
    scores = np.full(features.n, np.nan)
    scores[left] = _norms(features.take(left), moments)
    return scores


def _nearest(features: Features, target: Features) -> np.ndarray:
    nearest = np.zeros(features.n, np.float32)
    with Progress(features.n, "nearest targets", "pairs") as progress:
        for rows, block in features.blocks(_BLOCK):
            images = block.vectors("image")
            for _, others in target.blocks(_TILE):
                similarity = images @ others.vectors("image").T
                nearest[rows] = np.maximum(nearest[rows], _largest(similarity, 1))
            progress.advance(len(rows))
    return nearest.astype(np.float64)


def _nearest_other(features: Features) -> np.ndarray:
    nearest = np.zeros(features.n, np.float32)
    with Progress(features.n, "nearest images", "pairs") as progress:
        for rows, block in features.blocks(_TILE):
            images = block.vectors("image")
            # Tiles on and above the diagonal; each serves its rows and its columns.
            for start in range(int(rows[0]), features.n, _TILE):
                others = np.arange(start, min(start + _TILE, features.n))
                similarity = images @ (images if others[0] == rows[0] else features.take(others).vectors("image")).T
                if others[0] == rows[0]:
                    np.fill_diagonal(similarity, 0)
                nearest[rows] = np.maximum(nearest[rows], _largest(similarity, 1))
                nearest[others] = np.maximum(nearest[others], _largest(similarity, 0))
            progress.advance(len(rows))
    return nearest.astype(np.float64)


def _largest(similarity: np.ndarray, axis: int) -> np.ndarray:
    return np.maximum(similarity.max(axis=axis), -similarity.min(axis=axis))


def _check_images(features: Features, what: str) -> None:
    if features.image is None:
        raise CoreclipError(f"normsim compares images, and {what} hold only texts; embed the images")
