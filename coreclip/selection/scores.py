"""Selections that look at each pair by itself: a random one, the baseline of every comparison, and CLIPScore."""

import time

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.randomness import permutation
from coreclip.selection.facility import check_k
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
    if features.image is None or features.text is None:
        raise CoreclipError(
            "clipscore compares image and text, these features hold only one of them; embed the pairs with both"
        )
    scores = np.empty(features.n, np.float32)
    for start in range(0, features.n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, features.n))
        block = features.take(rows)
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
    check_k(k, features.n)
    scores = clip_scores(features).astype(np.float64)
    indices = np.argsort(-scores, kind="stable")[:k]
    objective = float(scores[indices].sum())
    return Subset(
        indices=indices,
        weights=np.ones(k),
        gains=scores[indices],
        objective=objective,
        upper_bound=objective,
        method="clipscore",
        n=features.n,
        seconds=time.perf_counter() - start,
        fingerprint=features.fingerprint,
    )
