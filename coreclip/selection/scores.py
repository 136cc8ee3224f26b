"""Selections that look at each pair by itself: a random one, the baseline of every comparison, and CLIPScore."""

import time
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.randomness import permutation
from coreclip.selection.checks import check_k
from coreclip.selection.features import Features
from coreclip.selection.subset import Subset

_BLOCK = 1 << 16  # rows
_STREAM_RANDOM = 102


def random_subset(n: int, k: int, seed: int = 0) -> Subset:
    """Choose k of n pairs at random; a larger k with the same seed only adds to them.

    Returns
    -------
    Subset
        Gains are 0 and weights 1.

    Raises
    ------
    CoreclipError
        For a k that is not 1 to n.
    """
    start = time.perf_counter()
    check_k(k, n)
    indices = permutation(n, seed, stream=_STREAM_RANDOM)[:k]
    return Subset(
        indices=indices,
        weights=np.ones(k),
        gains=np.zeros(k),
        method="random",
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
    )


def clip_scores(features: Features) -> np.ndarray:
    """Return the cosine of each pair's image and text, float32 (n,); higher is better (Hessel et al. 2021).

    Raises
    ------
    CoreclipError
        When one of the two embeddings is missing.
    """
    features.check_both("clipscore compares")
    scores = np.empty(features.n, np.float32)
    for rows, block in features.blocks(_BLOCK):
        # einsum adds each row by itself: a score does not depend on the rows around it.
        scores[rows] = np.einsum("ij,ij->i", block.vectors("image"), block.vectors("text"))
    return scores


def clipscore(features: Features, k: int) -> Subset:
    """Choose the k pairs whose image and text agree best, the best first, ties to the lowest index.

    Returns
    -------
    Subset
        Gains are the scores, the objective is their sum, which no other choice exceeds; weights are 1.

    Raises
    ------
    CoreclipError
        When one of the two embeddings is missing, or k is not 1 to n.
    """
    start = time.perf_counter()
    return ranked(clip_scores(features), k, method="clipscore", fingerprint=features.fingerprint, start=start)


def ranked(
    scores: np.ndarray,
    k: int,
    *,
    method: str,
    start: float,
    higher_is_better: bool = True,
    parameters: dict[str, Any] | None = None,
    seed: int = 0,
    fingerprint: str | None = None,
) -> Subset:
    """Return the k pairs of the best scores, the best first, ties to the lowest index.

    Parameters
    ----------
    scores : float (n,)
        NaN where a pair has none; infinities are allowed for.
    k : int
        1 to the number of pairs that have a score.
    method : str
    start : float
        ``time.perf_counter()`` when the selection began.
    higher_is_better : bool
    parameters : dict or None
    seed : int
    fingerprint : str or None

    Returns
    -------
    Subset
        Gains are the scores; an infinite one is noted as the largest finite float64, as gains must be finite. Weights are 1. The
        objective, where higher is better, is the scores' sum, which no other choice exceeds.

    Raises
    ------
    CoreclipError
        For a k that is not 1 to n, or more than there are pairs with a score.
    """
    scores = np.asarray(scores, np.float64)
    check_k(k, len(scores))
    n_known = int(np.count_nonzero(~np.isnan(scores)))
    if k > n_known:
        raise CoreclipError(
            f"{method}: k = {k}, and only {n_known} of the {len(scores)} pairs have a score; "
            f"choose at most {n_known}, or train a full pass over all pairs first"
        )
    order = np.argsort(-scores if higher_is_better else scores, kind="stable")  # NaN comes last either way
    indices = order[:k]
    gains = np.nan_to_num(scores[indices])
    objective = float(gains.sum()) if higher_is_better and np.isfinite(scores[indices]).all() else None
    return Subset(
        indices=indices,
        weights=np.ones(k),
        gains=gains,
        objective=objective,
        upper_bound=objective,
        method=method,
        parameters=parameters or {},
        seed=seed,
        n=len(scores),
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint,
        scores=scores,
    )
