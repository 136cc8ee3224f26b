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
def augment_images(
    images: np.ndarray,
    valid: np.ndarray,
    keys: np.ndarray,
    seed: int,
    epoch: int,
    amounts: np.ndarray,
    fill: np.ndarray,
) -> None:
    """Change each of ``images`` uint8 (b, h, w, 3), written, that is ``valid`` (bool (b,)); see :func:`augment_image`."""
    for i in range(keys.size):
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
    to_grey = uniform_of(seed, epoch, key, streams.GREY) < amounts[4]
    if to_grey or max(amounts[0], amounts[1], amounts[2], amounts[3]) > 0:
        pixels = image.reshape(image.size // 3, 3)
        planes = np.empty((3, pixels.shape[0]), np.uint8)
        for i in range(pixels.shape[0]):
            planes[0, i], planes[1, i], planes[2, i] = pixels[i, 0], pixels[i, 1], pixels[i, 2]
        _jitter(planes, key, seed, epoch, amounts)
        if to_grey:
            adjust_saturation(planes, 0.0)
        for i in range(pixels.shape[0]):
            pixels[i, 0], pixels[i, 1], pixels[i, 2] = planes[0, i], planes[1, i], planes[2, i]
    if amounts[5] > 0:
        h, w = int(np.rint(amounts[5] * image.shape[0])), int(np.rint(amounts[5] * image.shape[1]))
        x = int(uniform_of(seed, epoch, key, streams.CUTOUT) * (image.shape[1] - w + 1))
        y = int(uniform_of(seed, epoch, key, streams.CUTOUT + 1) * (image.shape[0] - h + 1))
        cut_out(image, x, y, w, h, fill)


@njit(cache=True, nogil=True)
def _jitter(planes: np.ndarray, key: int, seed: int, epoch: int, amounts: np.ndarray) -> None:
    order = hash64_of(seed, epoch, key, streams.JITTER_ORDER) % np.uint64(24)
    left = np.arange(4)
    for n in range(4, 0, -1):
        place = np.int64(order % np.uint64(n))
        order //= np.uint64(n)
        which = left[place]
        for i in range(place, n - 1):
            left[i] = left[i + 1]
        amount = amounts[which]
        if amount == 0:
            continue
        draw = uniform_of(seed, epoch, key, streams.JITTER + which)
        low, high = max(0.0, 1.0 - amount), 1.0 + amount
        factor = low + (high - low) * draw
        if which == _BRIGHTNESS:
            adjust_brightness(planes, factor)
        elif which == _CONTRAST:
            adjust_contrast(planes, factor)
        elif which == _SATURATION:
            adjust_saturation(planes, factor)
        else:
            turn_hue(planes, amount * (2.0 * draw - 1.0))


@njit(cache=True, nogil=True)
def _luma(red: np.uint8, green: np.uint8, blue: np.uint8) -> np.uint32:
    """Return Pillow's 8-bit luma of ITU-R 601."""
    weighed = (
        np.uint32(19595) * np.uint32(red) + np.uint32(38470) * np.uint32(green) + np.uint32(7471) * np.uint32(blue)
    )
    return np.uint32(weighed + np.uint32(0x8000)) >> np.uint32(16)


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _blend(byte: np.uint8, grey: np.float32, factor: np.float32) -> np.uint8:
    """Move a byte away from ``grey`` by a factor; float32 and cut off, as Pillow's ``Blend.c``."""
    return np.uint8(min(np.float32(255.0), max(np.float32(0.0), grey + factor * (np.float32(byte) - grey))))


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def adjust_brightness(planes: np.ndarray, factor: float) -> None:
    """Multiply by a factor, as ``PIL.ImageEnhance.Brightness``; ``planes`` uint8 (3, pixels) is written."""
    flat, alpha = planes.reshape(planes.size), np.float32(factor)
    for i in range(flat.size):
        flat[i] = _blend(flat[i], np.float32(0.0), alpha)


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def adjust_contrast(planes: np.ndarray, factor: float) -> None:
    """Move away from the mean luma, as ``PIL.ImageEnhance.Contrast``; ``planes`` uint8 (3, pixels) is written."""
    total = np.int64(0)
    for i in range(planes.shape[1]):
        total += np.int64(_luma(planes[0, i], planes[1, i], planes[2, i]))
    flat, alpha = planes.reshape(planes.size), np.float32(factor)
    grey = np.float32(int(total / planes.shape[1] + 0.5))
    for i in range(flat.size):
        flat[i] = _blend(flat[i], grey, alpha)


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def adjust_saturation(planes: np.ndarray, factor: float) -> None:
    """Move away from each pixel's luma, as ``PIL.ImageEnhance.Color``; ``planes`` uint8 (3, pixels) is written."""
    red, green, blue = planes[0], planes[1], planes[2]
    alpha = np.float32(factor)
    for i in range(red.size):
        grey = np.float32(_luma(red[i], green[i], blue[i]))
        red[i], green[i], blue[i] = (
            _blend(red[i], grey, alpha),
            _blend(green[i], grey, alpha),
            _blend(blue[i], grey, alpha),
        )


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def turn_hue(planes: np.ndarray, turn: float) -> None:
    """Turn the hue of HSV by a part of the circle; ``planes`` uint8 (3, pixels) is written."""
    red, green, blue = planes[0], planes[1], planes[2]
    two, four, six = np.float32(2.0), np.float32(4.0), np.float32(6.0)
    shift = np.float32(6.0 * (turn % 1.0))
    for i in range(red.size):
        r, g, b = np.float32(red[i]), np.float32(green[i]), np.float32(blue[i])
        top, bottom = max(r, max(g, b)), min(r, min(g, b))
        chroma = top - bottom
        over = np.float32(1.0) / max(chroma, np.float32(1.0))
        hue = four + (r - g) * over
        hue = two + (b - r) * over if top == g else hue
        hue = (g - b) * over if top == r else hue
        hue += shift
        hue = hue - six if hue >= six else hue
        hue = hue + six if hue < np.float32(0.0) else hue
        red[i] = _hsv_channel(np.float32(5.0) + hue, top, chroma)
        green[i] = _hsv_channel(np.float32(3.0) + hue, top, chroma)
        blue[i] = _hsv_channel(np.float32(1.0) + hue, top, chroma)


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _hsv_channel(sixths: np.float32, top: np.float32, chroma: np.float32) -> np.uint8:
    """Return a channel that lies so many sixths of the circle, 0 to 12, from the hue."""
    k = sixths - np.float32(6.0) if sixths >= np.float32(6.0) else sixths
    part = max(np.float32(0.0), min(np.float32(1.0), min(k, np.float32(4.0) - k)))
    return np.uint8(top - chroma * part + np.float32(0.5))


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
