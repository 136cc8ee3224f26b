"""What pairs are about by the words of all their captions: latent semantic analysis (Deerwester et al. 1990), no model needed.

Words are letters and digits between others, in lower case, weighted by log(1 + count) and by the logarithm of how few pairs have them,
so that no list of a language's stop words is asked for. Left out: word forms, word order, languages without spaces.
"""

from itertools import pairwise

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset
from coreclip.randomness import uniform
from coreclip.training import streams

WIDTH = 200
"""Dimensions at most, of Deerwester et al.'s 100 to 300."""
_FEWEST_PAIRS = 3  # that have a word: of a rarer one nothing can be learned


def caption_topics(dataset: Dataset) -> np.ndarray:
    """Return a vector for each pair whose cosines say how much its captions share with another's.

    Parameters
    ----------
    dataset : Dataset

    Returns
    -------
    float32 (n, d), unit norm
        ``d`` is 200, or fewer where there are fewer pairs or words. A pair none of whose words three pairs have gets a random one.

    Raises
    ------
    CoreclipError
        Where no two words are each in three pairs or more but not in all.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.utils.extmath import randomized_svd

    texts, offsets = dataset.all_captions()
    of_pairs = [" ".join(texts[first:last]) for first, last in pairwise(offsets.tolist())]
    vectorizer = CountVectorizer(token_pattern=r"\w+")
    try:
        counts = vectorizer.fit_transform(of_pairs).astype(np.float32)
    except ValueError:  # no caption has a word
        counts = None
    having = np.zeros(0, np.int64) if counts is None else np.bincount(counts.indices, minlength=counts.shape[1])
    is_kept = (having >= _FEWEST_PAIRS) & (having < dataset.n)
    if counts is None or is_kept.sum() < 2:
        raise CoreclipError(
            f"distill.captions: {is_kept.sum()} words of the captions of {dataset.path} are in {_FEWEST_PAIRS} pairs or more and not in "
            "all; two at least are needed to compare pairs; leave distill.captions out"
        )
    counts = counts[:, is_kept]
    counts.data = np.log1p(counts.data)
    weighted = counts.multiply(np.log(dataset.n / having[is_kept]).astype(np.float32)).tocsr()
    left, singular, _ = randomized_svd(weighted, min(WIDTH, *(side - 1 for side in weighted.shape)), random_state=0)
    vectors = left * singular
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unlike = norms[:, 0] <= 1e-6 * norms.max()
    places = np.flatnonzero(unlike)[:, None] * vectors.shape[1] + np.arange(vectors.shape[1])
    vectors[unlike] = uniform(0, 0, places, streams.TOPICS) - 0.5
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
