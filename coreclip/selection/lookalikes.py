"""Copies of a picture, found by its pixels: no model is asked, so that two pictures of the same things are no copies.

A picture of 24 x 24 pixels is described by the low frequencies of its opponent colours, without the mean and the contrast, each
weighted by its frequency because natural pictures have less of the higher ones (Field 1987). It is compared as a whole with the
whole and nine crops of the others, so that a copy may be cut, brightened and compressed anew. In kind this is a perceptual hash
(Zauner 2010), kept in real numbers. Left out: mirrored and turned copies, borders, collages, cuts of much more than an eighth of a side.
"""

import math
import time
from collections.abc import Iterator, Mapping

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.checks import check_k
from coreclip.selection.clusters import spherical_kmeans
from coreclip.selection.deduplicate import check_eps, check_probes, survivors
from coreclip.selection.probing import highest_earlier, nearest_lists
from coreclip.selection.subset import Subset

DEFAULT_COPY_EPS = 0.1
THUMBNAIL_SIDE = 24  # pixels
_CROP = 22  # pixels: nine crops at the offsets 0, 1, 2
_FREQUENCIES = 8
_COLOUR = 2.0  # weight of the two colour channels beside the brightness
_OPPONENT = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])
_FLAT = 16.0  # norm of a description that is no more than the rounding of its pixels
_BLOCK = 1024  # pictures


def copies(
    metadata: Mapping[str, np.ndarray],
    k: int | None = None,
    *,
    eps: float | None = None,
    n_clusters: int | None = None,
    probes: int = 4,
    seed: int = 0,
) -> Subset:
    """Choose the pairs whose picture is no copy of an earlier one's.

    Parameters
    ----------
    metadata : mapping
        ``thumbnail``, uint8 (n, 24, 24, 3): RGB, of :func:`coreclip.pipeline.thumbnails`.
    k : int or None
        Keep at most the k most novel. Without ``eps`` exactly k: the eps that leaves k is in ``parameters``.
    eps : float or None
        A pair is dropped when its likeness to an earlier one exceeds 1 - eps; 0 to 2. None for 0.1 where there is no k.
    n_clusters : int or None
        Of the pictures, by k-means; None for the square root of n.
    probes : int
        Clusters in which each crop of a picture looks for copies; as many as there are compare all pairs of pictures.
    seed : int
        Of the clusters.

    Returns
    -------
    Subset
        The survivors, most novel first, ties to the lowest index. Gains are 1 - the highest likeness to an earlier picture that
        it was compared with. Of copies the first stays: after ``clipscore(keep=0.7)`` that is the one whose text fits best.
        Weights are 1; there is no objective.

    Raises
    ------
    CoreclipError
        For thumbnails that are missing or of another shape, and parameters out of range.

    Notes
    -----
    The likeness of two pictures is the highest cosine of the one, whole, to the other, whole or cut to 22 of 24 pixels in one of
    nine places, either way round; a function of these two alone. A picture of one colour is like none. The work is
    10 n (n / n_clusters) probes 192 multiplications. Frequencies, weights and the default of eps were fixed on drawn scenes of
    other seeds than those of ``benchmarks/planted.py``.
    """
    start = time.perf_counter()
    thumbnails = _thumbnails(metadata)
    n = len(thumbnails)
    if k is not None:
        check_k(k, n)
    eps = check_eps(eps, k, DEFAULT_COPY_EPS)
    n_clusters = max(1, math.isqrt(n)) if n_clusters is None else n_clusters
    check_probes(probes)
    novel = 1 - highest_likeness(thumbnails, n_clusters, probes, seed)
    parameters = {"n_clusters": n_clusters, "probes": probes}
    return survivors(novel, k, eps, method="copies", parameters=parameters, seed=seed, start=start)


def highest_likeness(thumbnails: np.ndarray, n_clusters: int, probes: int, seed: int) -> np.ndarray:
    """Return each picture's highest likeness to an earlier one, float64 (n,); -1 where it was compared with none."""
    n = len(thumbnails)
    whole = np.concatenate([describe(thumbnails[i : i + _BLOCK], crops=False)[:, 0] for i in range(0, n, _BLOCK)])
    labels, centroids = spherical_kmeans(whole, n_clusters, seed)

    def queries() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for first in range(0, n, _BLOCK):
            views = describe(thumbnails[first : first + _BLOCK])  # (b, 10, 192)
            owners = np.repeat(np.arange(first, first + len(views)), views.shape[1])
            vectors = views.reshape(len(owners), -1)
            seen = vectors.any(axis=1)
            yield owners[seen], vectors[seen], nearest_lists(vectors[seen], centroids, probes)

    return highest_earlier(whole, labels, np.arange(n), queries())


def describe(thumbnails: np.ndarray, *, crops: bool = True) -> np.ndarray:
    """Return the descriptions of pictures, whole and cut.

    Parameters
    ----------
    thumbnails : uint8 (b, 24, 24, 3)
    crops : bool
        Whether to describe the crops too.

    Returns
    -------
    float32 (b, 10, 192), or (b, 1, 192) without crops
        Of unit norm; the whole picture first, then its nine crops. Zeros where there is but one colour.
    """
    pixels = np.einsum("oc,byxc->boyx", _OPPONENT, thumbnails.astype(np.float64), optimize=True)
    # Each of the four: the whole side, or 22 of its pixels from an offset on; averaged to 8 and transformed, in one matrix.
    sides = np.stack(
        [_cosines() @ _averages(*span) for span in ((0, THUMBNAIL_SIDE), (0, _CROP), (1, _CROP), (2, _CROP))]
    )
    spans = [(0, 0), *((top, left) for top in (1, 2, 3) for left in (1, 2, 3) if crops)]
    numbers = np.arange(_FREQUENCIES)
    weight = np.hypot(numbers[:, None], numbers) * np.array([1, _COLOUR, _COLOUR])[:, None, None]  # 0 for the mean
    result = np.empty((len(pixels), len(spans), weight.size), np.float32)
    for view, (top, left) in enumerate(spans):
        frequencies = (sides[top] @ pixels @ sides[left].T * weight).reshape(len(pixels), -1)
        norms = np.linalg.norm(frequencies, axis=1, keepdims=True)
        result[:, view] = np.where(norms > _FLAT, frequencies / np.maximum(norms, _FLAT), 0)
    return result


def _averages(first: int, length: int) -> np.ndarray:
    """Return the matrix (8, 24) that averages ``length`` pixels from ``first`` on down to 8."""
    edges = first + length * np.arange(_FREQUENCIES + 1) / _FREQUENCIES
    pixels = np.arange(THUMBNAIL_SIDE)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(covered, 0) * _FREQUENCIES / length


def _cosines() -> np.ndarray:
    """Return the orthonormal discrete cosine transform of 8 values (8, 8)."""
    numbers = np.arange(_FREQUENCIES)
    waves = np.cos(np.pi * numbers[:, None] * (2 * numbers + 1) / (2 * _FREQUENCIES)) * np.sqrt(2 / _FREQUENCIES)
    waves[0] /= np.sqrt(2)
    return waves


def _thumbnails(metadata: Mapping[str, np.ndarray]) -> np.ndarray:
    if "thumbnail" not in metadata:
        raise CoreclipError(
            "copies compares small pictures and is given none; give a data set with images, "
            "or from Python metadata={'thumbnail': thumbnails(dataset)}"
        )
    pictures = np.asarray(metadata["thumbnail"])
    shape = (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    if pictures.dtype != np.uint8 or pictures.shape[1:] != shape or not len(pictures):
        raise CoreclipError(
            f"thumbnails are {pictures.dtype} {pictures.shape}; they must be uint8 (n, {', '.join(map(str, shape))}), RGB; "
            "make them with coreclip.pipeline.thumbnails"
        )
    return pictures
