"""Random changes of training images, compiled: mirroring, colours, greyscale, a square cut out.

The colours are torchvision's ``ColorJitter`` and ``RandomGrayscale`` on Pillow images, byte for byte but for the hue,
which is not rounded to 256 steps in between; the square is DeVries and Taylor's (2017), wholly inside as FFCV's. Every
draw is a function of (seed, epoch, key). Mirroring costs nothing: it is part of the resize. Left out: blur, RandAugment.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from coreclip.errors import CoreclipError
from coreclip.pipeline import streams
from coreclip.pipeline.crops import hash64_of, uniform_of
from coreclip.pipeline.decode import decode_images

_BRIGHTNESS, _CONTRAST, _SATURATION = 0, 1, 2  # 3 is the hue


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What a training loader changes in its images, after the random crop and in this order.

    Attributes
    ----------
    flip : float
        Probability that an image is mirrored left to right.
    jitter : (float, float, float, float)
        Brightness, contrast, saturation, hue, applied in random order: the first three are multiplied by a factor that
        is uniform in [max(0, 1 - j), 1 + j], the hue is turned by up to ``j`` of the circle, 0.5 at most. 0 leaves one out.
    grey : float
        Probability that an image becomes grey (ITU-R 601 luma).
    cutout : float
        Side of the square that is cut out, as a fraction of the image's side; 0 cuts nothing.
    fill : "mean" or (int, int, int)
        What the square is filled with: the image's own mean colour, or an RGB colour.

    Raises
    ------
    CoreclipError
        For a value out of range.

    Examples
    --------
    >>> augment = Augment(flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2)
    >>> loader = make_loader(Dataset("flickr"), augment=augment)  # doctest: +SKIP
    """

    flip: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    grey: float = 0.0
    cutout: float = 0.0
    fill: str | tuple[int, int, int] = "mean"

    def __post_init__(self) -> None:
        for name in ("flip", "grey"):
            _check(_numbers(getattr(self, name), (0, 1)), name, getattr(self, name), "a probability, 0 to 1")
        rule = "four numbers of at least 0: brightness, contrast, saturation, hue; the hue's is 0.5 at most"
        _check(_numbers(self.jitter, *[(0, math.inf)] * 3, (0, 0.5)), "jitter", self.jitter, rule)
        _check(_numbers(self.cutout, (0, 1)), "cutout", self.cutout, "a fraction of the image's side, 0 to 1")
        _check(self.fill == "mean" or _numbers(self.fill, *[(0, 255)] * 3), "fill", self.fill, '"mean" or three of 0 to 255')  # fmt: skip

    @property
    def changes_pixels(self) -> bool:
        """Whether there is something to do beside mirroring."""
        return any(self.jitter) or self.grey > 0 or self.cutout > 0

    def settings(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what :func:`augment_image` takes: jitter, grey, cutout as float64 (6,), and the fill, float64 (3,)."""
        fill = (math.nan,) * 3 if self.fill == "mean" else self.fill
        return np.array([*self.jitter, self.grey, self.cutout], np.float64), np.array(fill, np.float64)


def _check(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise CoreclipError(f"augment.{name} = {value!r} is not allowed: it must be {rule}")


def _numbers(value: Any, *ranges: tuple[float, float]) -> bool:
    values = [value] if len(ranges) == 1 else value
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != len(ranges):
        return False
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    return numbers and all(low <= v <= high for v, (low, high) in zip(values, ranges, strict=True))


@njit(cache=True, nogil=True)
def decode_augmented(
    handle: int,
    scratch: np.ndarray,
    address: np.ndarray,
    n_bytes: np.ndarray,
    mode: np.ndarray,
    width: np.ndarray,
    height: np.ndarray,
    tolerated: np.ndarray,
    boxes: np.ndarray,
    denominator: np.ndarray,
    images: np.ndarray,
    valid: np.ndarray,
    keys: np.ndarray,
    seed: int,
    epoch: int,
    amounts: np.ndarray,
    fill: np.ndarray,
) -> None:
    """Decode some images and change each while it lies in the cache.

    The arguments are those of :func:`coreclip.pipeline.decode.decode_images`, ``keys`` int64 (b,), and those of
    :func:`augment_image`.
    """
    for i in range(address.size):
        j = i + 1
        decode_images(
            handle, scratch, address[i:j], n_bytes[i:j], mode[i:j], width[i:j], height[i:j], tolerated[i:j],
            boxes[i:j], denominator[i:j], images[i:j], valid[i:j],
        )  # fmt: skip
        if valid[i]:
            augment_image(images[i], keys[i], seed, epoch, amounts, fill)


@njit(cache=True, nogil=True)
def augment_image(image: np.ndarray, key: int, seed: int, epoch: int, amounts: np.ndarray, fill: np.ndarray) -> None:
    """Change the colours of one image, and cut out a square.

    Parameters
    ----------
    image : uint8 (h, w, 3)
        RGB, written.
    key, seed, epoch : int
        Of the random numbers.
    amounts : float64 (6,)
    fill : float64 (3,)
        See :meth:`Augment.settings`; NaN stands for the image's mean.
    """
    order = hash64_of(seed, epoch, key, streams.JITTER_ORDER) % np.uint64(24)
    left = np.arange(4)
    for n in range(4, 0, -1):
        place = np.int64(order % np.uint64(n))
        order //= np.uint64(n)
        which = left[place]
        left[place : n - 1] = left[place + 1 : n].copy()
        if amounts[which] > 0:
            draw = uniform_of(seed, epoch, key, streams.JITTER + which)
            _jitter(image, which, amounts[which], draw)
    if uniform_of(seed, epoch, key, streams.GREY) < amounts[4]:
        adjust_saturation(image, 0.0)
    if amounts[5] > 0:
        h, w = int(np.rint(amounts[5] * image.shape[0])), int(np.rint(amounts[5] * image.shape[1]))
        x = int(uniform_of(seed, epoch, key, streams.CUTOUT) * (image.shape[1] - w + 1))
        y = int(uniform_of(seed, epoch, key, streams.CUTOUT + 1) * (image.shape[0] - h + 1))
        cut_out(image, x, y, w, h, fill)


@njit(cache=True, nogil=True)
def _jitter(image: np.ndarray, which: int, amount: float, draw: float) -> None:
    low, high = max(0.0, 1.0 - amount), 1.0 + amount
    factor = low + (high - low) * draw
    if which == _BRIGHTNESS:
        adjust_brightness(image, factor)
    elif which == _CONTRAST:
        adjust_contrast(image, factor)
    elif which == _SATURATION:
        adjust_saturation(image, factor)
    else:
        turn_hue(image, amount * (2.0 * draw - 1.0))


@njit(cache=True, nogil=True)
def _luma(red: int, green: int, blue: int) -> int:
    """Return Pillow's 8-bit luma of ITU-R 601."""
    return (int(red) * 19595 + int(green) * 38470 + int(blue) * 7471 + 0x8000) >> 16


@njit(cache=True, nogil=True)
def _blend(image: np.ndarray, grey: float, factor: float) -> None:
    """Move each byte away from ``grey`` by a factor; float32 and cut off, as Pillow's ``Blend.c``."""
    flat, base, alpha = image.reshape(image.size), np.float32(grey), np.float32(factor)
    for i in range(flat.size):
        value = base + alpha * (np.float32(flat[i]) - base)
        flat[i] = np.uint8(min(np.float32(255.0), max(np.float32(0.0), value)))


@njit(cache=True, nogil=True)
def adjust_brightness(image: np.ndarray, factor: float) -> None:
    """Multiply by a factor; ``image`` uint8 (h, w, 3) is written. As ``PIL.ImageEnhance.Brightness``."""
    _blend(image, 0.0, factor)


@njit(cache=True, nogil=True)
def adjust_contrast(image: np.ndarray, factor: float) -> None:
    """Move away from the mean luma by a factor; ``image`` uint8 (h, w, 3) is written. As ``PIL.ImageEnhance.Contrast``."""
    flat = image.reshape(image.size // 3, 3)
    total = np.int64(0)
    for i in range(flat.shape[0]):
        total += _luma(flat[i, 0], flat[i, 1], flat[i, 2])
    _blend(image, np.float64(np.int64(total / flat.shape[0] + 0.5)), factor)


@njit(cache=True, nogil=True)
def adjust_saturation(image: np.ndarray, factor: float) -> None:
    """Move away from each pixel's luma; ``image`` uint8 (h, w, 3) is written. As ``PIL.ImageEnhance.Color``."""
    flat, alpha = image.reshape(image.size // 3, 3), np.float32(factor)
    for i in range(flat.shape[0]):
        grey = np.float32(_luma(flat[i, 0], flat[i, 1], flat[i, 2]))
        for c in range(3):
            value = grey + alpha * (np.float32(flat[i, c]) - grey)
            flat[i, c] = np.uint8(min(np.float32(255.0), max(np.float32(0.0), value)))


@njit(cache=True, nogil=True)
def turn_hue(image: np.ndarray, turn: float) -> None:
    """Turn the hue of HSV by a part of the circle; ``image`` uint8 (h, w, 3) is written."""
    flat = image.reshape(image.size // 3, 3)
    shift = np.float32(6.0 * (turn % 1.0))
    for i in range(flat.shape[0]):
        red, green, blue = np.float32(flat[i, 0]), np.float32(flat[i, 1]), np.float32(flat[i, 2])
        top, bottom = max(red, green, blue), min(red, green, blue)
        chroma = top - bottom
        if chroma == 0:
            continue
        if top == red:
            hue = (green - blue) / chroma
        elif top == green:
            hue = np.float32(2.0) + (blue - red) / chroma
        else:
            hue = np.float32(4.0) + (red - green) / chroma
        hue += shift  # -1 to 11
        for c in range(3):
            # HSV to RGB without its six cases: channel c is 5, 3, 1 sixths away.
            k = (np.float32(5 - 2 * c) + hue) % np.float32(6.0)
            part = max(np.float32(0.0), min(np.float32(1.0), min(k, np.float32(4.0) - k)))
            flat[i, c] = np.uint8(top - chroma * part + np.float32(0.5))


@njit(cache=True, nogil=True)
def cut_out(image: np.ndarray, x: int, y: int, w: int, h: int, fill: np.ndarray) -> None:
    """Fill a rectangle, ``w`` by ``h`` pixels at ``(x, y)``, of ``image`` uint8 (h, w, 3); see :func:`augment_image`."""
    for c in range(3):
        value = fill[c]
        if np.isnan(value):
            total = np.int64(0)
            for row in range(image.shape[0]):
                for column in range(image.shape[1]):
                    total += image[row, column, c]
            value = np.rint(total / (image.shape[0] * image.shape[1]))
        image[y : y + h, x : x + w, c] = np.uint8(value)
