"""Which part of each image a batch shows: CLIP's centre crop and torchvision's random resized crop.

Pure functions of (seed, epoch, index): :func:`hash64_of` is the compiled twin of :func:`coreclip.randomness.hash64`.
Sources: ``Resize`` + ``CenterCrop`` and ``RandomResizedCrop.get_params`` of torchvision, as open_clip uses them.
A box whose right is below its left shows its part of the image mirrored. Left out: colours, see ``augment``.
"""

import math

import numpy as np
from numba import njit

from coreclip.pipeline import streams

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TRIES = 10  # each takes four streams
_LOG_ASPECT = math.log(4 / 3)  # aspect ratios 3/4 to 4/3


@njit(cache=True, nogil=True)
def _mix64(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def hash64_of(seed: int, epoch: int, index: int, stream: int) -> np.uint64:
    """Return the 64 random bits that :func:`coreclip.randomness.hash64` gives for one index."""
    key = _mix64(np.uint64(seed))
    key = _mix64(key + _GOLDEN * (np.uint64(epoch) + np.uint64(1)))
    key = _mix64(key + _GOLDEN * (np.uint64(stream) + np.uint64(1)))
    return _mix64(key + _GOLDEN * (np.uint64(index) + np.uint64(1)))


@njit(cache=True, nogil=True)
def uniform_of(seed: int, epoch: int, index: int, stream: int) -> float:
    """Return the number in [0, 1) that :func:`coreclip.randomness.uniform` gives for one index."""
    return np.float64(hash64_of(seed, epoch, index, stream) >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True)
def centre_boxes(width: np.ndarray, height: np.ndarray, size: int) -> np.ndarray:
    """Return the part of each image that "shortest side to ``size``, then centre crop" shows.

    Parameters
    ----------
    width, height : int32 (b,)
        Pixels.
    size : int
        Side of the crop, pixels.

    Returns
    -------
    float64 (b, 4)
        left, top, right, bottom in pixels of the unresized image.
    """
    boxes = np.empty((width.size, 4))
    for i in range(width.size):
        for axis, (side, other) in enumerate(((width[i], height[i]), (height[i], width[i]))):
            resized = size if side <= other else int(size * side / other)
            offset = np.rint((resized - size) / 2.0)  # to even, as Python's round
            boxes[i, axis] = offset * side / resized
            boxes[i, axis + 2] = (offset + size) * side / resized
    return boxes


@njit(cache=True, nogil=True)
def random_boxes(
    width: np.ndarray, height: np.ndarray, index: np.ndarray, seed: int, epoch: int, low: float, high: float
) -> np.ndarray:
    """Draw a random resized crop for each image.

    Parameters
    ----------
    width, height : int32 (b,)
        Pixels.
    index : int64 (b,)
        Keys of the random numbers, with ``seed`` and ``epoch``; a pair's own number, see ``order.occurrence_keys``.
    low, high : float
        Range of the crop's area as a fraction of the image's. The aspect ratio is log-uniform in 3/4 to 4/3; after ten
        crops that do not fit, the largest centred one of an allowed aspect ratio is taken.

    Returns
    -------
    float64 (b, 4)
        left, top, right, bottom: whole pixels.
    """
    boxes = np.empty((width.size, 4))
    for i in range(width.size):
        left, top, w, h = _random_box(width[i], height[i], index[i], seed, epoch, low, high)
        boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = left, top, left + w, top + h
    return boxes


@njit(cache=True, nogil=True)
def _random_box(
    width: int, height: int, index: int, seed: int, epoch: int, low: float, high: float
) -> tuple[int, int, int, int]:
    for attempt in range(_TRIES):
        stream = streams.CROP + 4 * attempt
        area = width * height * (low + (high - low) * uniform_of(seed, epoch, index, stream))
        aspect = math.exp(_LOG_ASPECT * (2.0 * uniform_of(seed, epoch, index, stream + 1) - 1.0))
        w, h = int(np.rint(math.sqrt(area * aspect))), int(np.rint(math.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            left = int(uniform_of(seed, epoch, index, stream + 2) * (width - w + 1))
            top = int(uniform_of(seed, epoch, index, stream + 3) * (height - h + 1))
            return left, top, w, h
    w = max(1, min(width, int(np.rint(height * 4 / 3))))
    h = max(1, min(height, int(np.rint(width * 4 / 3))))
    return (width - w) // 2, (height - h) // 2, w, h


@njit(cache=True, nogil=True)
def mirror_boxes(boxes: np.ndarray, index: np.ndarray, seed: int, epoch: int, probability: float) -> None:
    """Mirror each of ``boxes`` (float64 (b, 4), written) with a probability; ``index`` as in :func:`random_boxes`."""
    for i in range(index.size):
        if uniform_of(seed, epoch, index[i], streams.FLIP) < probability:
            boxes[i, 0], boxes[i, 2] = boxes[i, 2], boxes[i, 0]
