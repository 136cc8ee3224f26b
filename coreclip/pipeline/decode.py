"""Compiled decoding of stored images into a batch, outside the interpreter's lock.

The decoder is the TurboJPEG that FFCV's compiled library carries, called from numba without importing ``ffcv`` (which
takes seconds). FFCV's own ``imdecode`` entry drops to RGB at full size and hides why a decode failed; here JPEGs are
decoded to their planes (colours are converted after the resize), shrunk by the inverse DCT where that is safe, with the
accurate transforms that Pillow uses, and every return code is checked. Left out: CMYK, which conversion transcodes.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import njit, types

from coreclip.errors import CoreclipError
from coreclip.pipeline.ffcv_library import REMEDY, find_ffcv_library
from coreclip.pipeline.resize import resize_planes

_ADDRESS = types.uintp
_INT = types.intc


def _external(name: str, *signature: Any) -> Callable[..., int]:
    """Declare a C function by its result's and its arguments' types; ctypes' can't be cached in compiled code."""
    result, *arguments = signature
    return cast("Callable[..., int]", types.ExternalFunction(name, result(*arguments)))


_decompress_header = _external("tjDecompressHeader3", _INT, *(_ADDRESS,) * 7)
_decompress_to_planes = _external(
    "tjDecompressToYUVPlanes", _INT, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _INT, _INT
)
_decompress_to_rgb = _external(
    "tjDecompress2", _INT, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _INT, _INT, _INT, _INT, _INT
)
_new_handle = _external("tjInitDecompress", _ADDRESS)
_end_handle = _external("tjDestroy", _INT, _ADDRESS)
_error_code = _external("tjGetErrorCode", _INT, _ADDRESS)
_memcpy = _external("memcpy", _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)
_SYMBOLS = (
    "tjDecompressHeader3",
    "tjDecompressToYUVPlanes",
    "tjDecompress2",
    "tjGetErrorCode",
    "tjInitDecompress",
    "tjDestroy",
    "memcpy",
)

# From turbojpeg.h.
_FLAGS = 1024 | 4096 | 32768  # NOREALLOC, ACCURATEDCT, LIMITSCANS (a progressive file can hold a bomb)
_PIXELS_RGB = 0
_COLOURS_RGB, _COLOURS_YCC, _COLOURS_GREY = 0, 1, 2
_SHRINK_ACROSS = np.array([1, 2, 2, 1, 1, 4])  # of the chroma planes: 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1
_SHRINK_DOWN = np.array([1, 1, 2, 1, 2, 1])
_WARNING = 0

JPEG, RAW = 0, 1
"""Values of the image field's ``mode``."""
_ORDINARY_SCRATCH = 1 << 24  # bytes that a decoder may keep for good: an image of 2.8 megapixels
_PAGE_BYTES = 4096
_PADDING = 4  # a plane's sides are rounded up to whole chroma pixels
EXACT_MARGIN, TRAINING_MARGIN = 4.0, 1.5
"""How many times the output's side must be left after the inverse DCT has shrunk. On 200 photographs of 400 pixels,
halving changed pixels by 0.36/255 in the mean (0.76 on the worst photograph) at 4, by about 1/255 (3) at 1.5."""


@functools.cache
def load_decoder() -> ctypes.CDLL:
    """Load FFCV's compiled library, so that the kernels of this module find their symbols.

    Raises
    ------
    CoreclipError
        Where ffcv is not installed, or its library does not load or carries no TurboJPEG.
    """
    from llvmlite import binding

    path = find_ffcv_library()
    try:
        binding.load_library_permanently(str(path))
        library = ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:
        raise CoreclipError(f"{path} can't be loaded: {error}; {REMEDY}") from None
    missing = [name for name in _SYMBOLS if not binding.address_of_symbol(name)]
    if missing:
        raise CoreclipError(f"{path} brings no {missing[0]}; {REMEDY}")
    return library


class Decoder:
    """What one decoding task at a time needs: a buffer that grows to the largest image.

    Attributes
    ----------
    scratch : uint8 (bytes,)
    """

    def __init__(self) -> None:
        load_decoder()
        self.scratch = np.empty(0, np.uint8)

    def reserve(self, n_bytes: int) -> None:
        """Make the buffer at least ``n_bytes`` large, and give back what an outlier has left behind."""
        too_large = self.scratch.size > max(_ORDINARY_SCRATCH, 4 * n_bytes)
        if self.scratch.size < n_bytes or too_large:
            self.scratch = np.empty(0, np.uint8)  # the old one goes before the new one comes
            self.scratch = np.empty(n_bytes, np.uint8)


@njit(cache=True, nogil=True)
def dct_denominators(mode: np.ndarray, boxes: np.ndarray, size: int, margin: float) -> np.ndarray:
    """Return by how much the inverse DCT may shrink each image: 1, 2, 4 or 8, int64 (b,).

    Only as far as the crop ``boxes`` (float64 (b, 4)) still has ``margin * size`` pixels each way; raw images (``mode``
    uint8 (b,)) are not shrunk.
    """
    denominators = np.ones(mode.size, np.int64)
    for i in range(mode.size):
        side = min(abs(boxes[i, 2] - boxes[i, 0]), boxes[i, 3] - boxes[i, 1])
        while mode[i] == JPEG and denominators[i] < 8 and side >= 2 * margin * size * denominators[i]:
            denominators[i] *= 2
    return denominators


def scratch_bytes(width: np.ndarray, height: np.ndarray, denominator: np.ndarray) -> int:
    """Return the buffer that :func:`decode_images` needs for the largest of some images."""
    w = -(-width.astype(np.int64) // denominator) + _PADDING
    h = -(-height.astype(np.int64) // denominator) + _PADDING
    return int((6 * w * h).max(initial=0))  # three planes, and three more where RGB comes interleaved


@njit(cache=True, nogil=True)
def decode_images(
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
) -> None:
    """Decode, crop and resize some images.

    Parameters
    ----------
    scratch : uint8, at least :func:`scratch_bytes`
    address, n_bytes : uint64 (b,)
        Where the stored bytes lie in this process's memory.
    mode : uint8 (b,)
        :data:`JPEG` or :data:`RAW`.
    width, height : int64 (b,)
        Stored dimensions; a file that has others is not decoded.
    tolerated : bool (b,)
        Conversion has seen the decoder's warning and kept the image.
    boxes : float64 (b, 4)
        left, top, right, bottom of the crop, pixels of the stored image; mirrored where right is below left.
    denominator : int64 (b,)
        See :func:`dct_denominators`.
    images : uint8 (b, size, size, 3)
        Written; zeros where ``valid`` becomes False.
    valid : bool (b,)
        Written.
    """
    layout = np.zeros(5, np.int64)
    planes = np.zeros(3, np.uintp)
    for i in range(address.size):
        w, h = width[i], height[i]
        if mode[i] == RAW:
            valid[i] = _read_raw(scratch, address[i], n_bytes[i], w, h, layout)
        else:
            # A new one for each image: a decompressor keeps the tables and the state that the image before has left.
            handle = _new_handle()
            valid[i] = _read_jpeg(
                handle, scratch, planes, address[i], n_bytes[i], w, h, tolerated[i], denominator[i], layout
            )
            _end_handle(handle)
        if valid[i]:
            _resize(scratch, layout, denominator[i], boxes[i], images[i])
        else:
            images[i] = 0


@njit(cache=True, nogil=True)
def touch_pages(address: np.ndarray, n_bytes: np.ndarray) -> int:
    """Have the system bring ranges of mapped memory (uint64 (b,) each) from the disk, as far as they are not there; the sum means nothing."""
    byte, total = np.empty(1, np.uint8), np.int64(0)
    for i in range(address.size):
        last = np.int64(n_bytes[i]) - 1
        for page in range(0, last + _PAGE_BYTES, _PAGE_BYTES):
            offset = page if page < last else last  # the last byte may lie on a page of its own
            _memcpy(byte.ctypes.data, address[i] + np.uint64(offset), 1)
            total += np.int64(byte[0])
    return int(total)


@njit(cache=True, nogil=True)
def read_images(
    scratch: np.ndarray,
    address: np.ndarray,
    n_bytes: np.ndarray,
    mode: np.ndarray,
    width: np.ndarray,
    height: np.ndarray,
    tolerated: np.ndarray,
    denominator: np.ndarray,
) -> int:
    """Decode some images to their planes and no further, each over the one before; arguments as of :func:`decode_images`.

    Returns how many were good.
    """
    layout, planes, good = np.zeros(5, np.int64), np.zeros(3, np.uintp), 0
    for i in range(address.size):
        if mode[i] == RAW:
            good += _read_raw(scratch, address[i], n_bytes[i], width[i], height[i], layout)
        else:
            handle = _new_handle()
            good += _read_jpeg(
                handle,
                scratch,
                planes,
                address[i],
                n_bytes[i],
                width[i],
                height[i],
                tolerated[i],
                denominator[i],
                layout,
            )
            _end_handle(handle)
    return good


@njit(cache=True, nogil=True)
def _read_raw(scratch: np.ndarray, address: int, n_bytes: int, w: int, h: int, layout: np.ndarray) -> bool:
    """Put raw pixels into ``scratch`` as planes, and describe them in ``layout``; True where they are good."""
    if np.int64(n_bytes) != 3 * w * h:
        return False
    _memcpy(scratch[3 * w * h :].ctypes.data, address, n_bytes)
    _separate(scratch, w, h, layout)
    return True


@njit(cache=True, nogil=True)
def _read_jpeg(
    handle: int,
    scratch: np.ndarray,
    planes: np.ndarray,
    address: int,
    n_bytes: int,
    width: int,
    height: int,
    tolerated: bool,
    denominator: int,
    layout: np.ndarray,
) -> bool:
    """Decode a JPEG into ``scratch`` as planes, and describe them in ``layout``; True where they are good."""
    header = np.zeros(4, np.intc)  # width, height, subsampling, colour space
    at = header.ctypes.data
    code = _decompress_header(handle, address, n_bytes, at, at + 4, at + 8, at + 12)
    if header[0] != width or header[1] != height:
        return False
    subsampling, colours = np.int64(header[2]), np.int64(header[3])
    w, h = -(-width // denominator), -(-height // denominator)
    if tolerated:  # what is accepted with a warning must not show the image before
        scratch[: 6 * (w + _PADDING) * (h + _PADDING)] = 0
    # The header's call also fails for a chroma layout without a name, which tjDecompress2 reads all the same.
    named = code == 0 and 0 <= subsampling < _SHRINK_ACROSS.size
    if named and (colours == _COLOURS_YCC or colours == _COLOURS_GREY):  # noqa: SIM109 - costs a second of compiling
        layout[0], layout[1], layout[4] = w, h, colours
        layout[2], layout[3] = _SHRINK_ACROSS[subsampling], _SHRINK_DOWN[subsampling]
        luma, chroma = _plane_bytes(layout)
        # The caller's array: numba frees a local one after its last use, which taking its address is.
        planes[0] = scratch.ctypes.data
        planes[1], planes[2] = planes[0] + np.uintp(luma), planes[0] + np.uintp(luma + chroma)
        code = _decompress_to_planes(handle, address, n_bytes, planes.ctypes.data, w, 0, h, _FLAGS)
        return _accepted(handle, code, tolerated)
    if colours != _COLOURS_RGB and colours != _COLOURS_YCC and colours != _COLOURS_GREY:
        return False
    pixels = scratch[3 * w * h :].ctypes.data
    code = _decompress_to_rgb(handle, address, n_bytes, pixels, w, 0, h, _PIXELS_RGB, _FLAGS)
    if not _accepted(handle, code, tolerated):
        return False
    _separate(scratch, w, h, layout)
    return True


@njit(cache=True, nogil=True)
def _accepted(handle: int, code: int, tolerated: bool) -> bool:
    return code == 0 or (tolerated and _error_code(handle) == _WARNING)


@njit(cache=True, nogil=True)
def _separate(scratch: np.ndarray, w: int, h: int, layout: np.ndarray) -> None:
    """Turn the interleaved RGB that lies in ``scratch`` behind the room for its three planes into them."""
    n = w * h
    red, green, blue = scratch[:n], scratch[n : 2 * n], scratch[2 * n : 3 * n]
    pixels = scratch[3 * n : 6 * n]
    for i in range(n):
        red[i], green[i], blue[i] = pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2]
    layout[0], layout[1], layout[2], layout[3], layout[4] = w, h, 1, 1, _COLOURS_RGB


@njit(cache=True, nogil=True)
def _plane_bytes(layout: np.ndarray) -> tuple[int, int]:
    """Return the bytes of the first plane and of each other one.

    ``layout`` int64 (5,) is: columns and rows of the image, by how much chroma is smaller across and down, colours.
    """
    across, down = layout[2], layout[3]
    chroma = -(-layout[0] // across) * -(-layout[1] // down)
    return chroma * across * down, chroma


@njit(cache=True, nogil=True, inline="always")  # or all of the resize is optimised once more: 2 s
def _resize(scratch: np.ndarray, layout: np.ndarray, denominator: int, box: np.ndarray, out: np.ndarray) -> None:
    across, down, colours = layout[2], layout[3], layout[4]
    chroma_w, chroma_h = -(-layout[0] // across), -(-layout[1] // down)
    n_luma, n_chroma = _plane_bytes(layout)
    luma = scratch[:n_luma].reshape(chroma_h * down, chroma_w * across)
    blue, red = luma, luma
    if colours != _COLOURS_GREY:
        blue = scratch[n_luma : n_luma + n_chroma].reshape(chroma_h, chroma_w)
        red = scratch[n_luma + n_chroma : n_luma + 2 * n_chroma].reshape(chroma_h, chroma_w)
    resize_planes(
        luma, blue, red, (layout[0], layout[1]), 1.0 / denominator, (across, down), colours == _COLOURS_YCC, box, out
    )


@njit(cache=True, nogil=True)
def gather_tokens(
    address: np.ndarray, draws: np.ndarray, captions_per_row: int, tokens: np.ndarray, caption: np.ndarray
) -> None:
    """Copy the tokens of one caption of each pair.

    Parameters
    ----------
    address : uint64 (b,)
        Of the uint16 (captions_per_row, context) token arrays.
    draws : uint64 (b,)
        Caption ``draws % captions present`` is taken; zeros take the first.
    tokens : int64 (b, context)
        Written.
    caption : int64 (b,)
        Written: which caption was taken.
    """
    context = tokens.shape[1]
    stored = np.empty((captions_per_row, context), np.uint16)
    for i in range(address.size):
        _memcpy(stored.ctypes.data, address[i], 2 * stored.size)
        present = 1
        while present < captions_per_row and stored[present, 0] != 0:
            present += 1
        caption[i] = np.int64(draws[i] % np.uint64(present))
        for j in range(context):  # an assignment of rows would compile its error's text, for seconds
            tokens[i, j] = stored[caption[i], j]
