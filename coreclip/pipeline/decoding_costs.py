"""What the parts of decoding an image take: the same images decoded less and less far, on one thread.

A JPEG that is shrunk by 8 is read to its end, and only one of 64 coefficients is transformed: what is left is the entropy
decoding. Without the resize come the planes; the rest is the resize, with the colours that are converted on the way.
"""

import time
from collections.abc import Callable

import numpy as np

from coreclip.pipeline.decode import RAW, Decoder, decode_images, read_images, scratch_bytes
from coreclip.pipeline.loader import Loader

_IMAGES = 256
_REPEATS = 3


def decoding_costs(loader: Loader, n: int = _IMAGES) -> dict[str, float]:
    """Return the milliseconds that each part of decoding takes for an image of a loader, crops as in its first epoch.

    Parameters
    ----------
    loader : Loader
    n : int
        Images that are decoded, evenly spread over the loader's.

    Returns
    -------
    dict
        ``entropy_decode``, ``inverse_dct`` and ``resize_and_colour`` of JPEGs; ``copy`` and ``resize_and_colour`` where most images
        are raw pixels, as resident ones are.
    """
    images, rows, boxes, denominator = loader.decoding_sample(n)
    width, height = images.width[rows].astype(np.int64), images.height[rows].astype(np.int64)
    decoder = Decoder()
    decoder.reserve(scratch_bytes(width, height, np.ones_like(denominator)))
    stored = (
        images.address[rows], images.n_bytes[rows], images.mode[rows], width, height, images.tolerated[rows]
    )  # fmt: skip
    out = np.empty((len(rows), loader.image_size, loader.image_size, 3), np.uint8)
    valid = np.empty(len(rows), bool)
    whole = _milliseconds(lambda: decode_images(decoder.scratch, *stored, boxes, denominator, out, valid))
    planes = _milliseconds(lambda: read_images(decoder.scratch, *stored, denominator))
    per_image = {"resize_and_colour": max(whole - planes, 0.0)}
    if float(np.mean(stored[2] == RAW)) > 0.5:
        per_image["copy"] = planes
    else:
        entropy = min(
            _milliseconds(lambda: read_images(decoder.scratch, *stored, np.full_like(denominator, 8))), planes
        )
        per_image |= {"entropy_decode": entropy, "inverse_dct": planes - entropy}
    return {name: spent / max(len(rows), 1) for name, spent in per_image.items()}


def _milliseconds(work: Callable[[], object]) -> float:
    """Return the least of some times: it is the least disturbed."""
    best = float("inf")
    for _ in range(_REPEATS + 1):  # the first one warms up
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best * 1e3
