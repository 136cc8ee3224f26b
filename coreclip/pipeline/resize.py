"""Antialiased separable bicubic resizing of planes, after Pillow's ``Resample.c``, straight from a crop box.

The image comes as three planes, as a JPEG stores them: chroma stays small and colours are converted at the output's
size only. The vertical pass goes first, because it vectorises over a row and leaves the fewest rows to the horizontal
one; the latter runs on blocks of 32 rows, transposed. Sums are float32 and are rounded once (Pillow rounds to 8 bits
between the passes). Left out: other filters, gamma, alpha.
"""

import math

import numpy as np
from numba import njit

from coreclip.pipeline.vectors import BYTE_TILE, FLOAT_TILE, WIDTH, put_bytes, transpose_tile, weighted_sum

_BLOCK = WIDTH  # rows of the horizontal pass: whole registers of float32, and a block that stays in the cache
# Of the three planes in red, green and blue, and what is added: JFIF's full-range BT.601, and a half to round by.
_YCC = np.array(
    [
        [1, 0, 1.402, 0.5 - 128 * 1.402],
        [1, -0.344136, -0.714136, 0.5 + 128 * (0.344136 + 0.714136)],
        [1, 1.772, 0, 0.5 - 128 * 1.772],
    ],
    np.float32,
)
_RGB = np.array([[1, 0, 0, 0.5], [0, 1, 0, 0.5], [0, 0, 1, 0.5]], np.float32)
_GREY = np.array([[1, 0, 0, 0.5]] * 3, np.float32)
_GROUP = 4  # taps summed before an accumulator is stored


@njit(cache=True, nogil=True)
def _bicubic(x: float) -> float:
    """Return Keys' cubic with a = -0.5."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


@njit(cache=True, nogil=True)
def resize_weights(low: float, high: float, n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels of one axis make each output pixel, and their weights.

    Parameters
    ----------
    low, high : float
        The part of the axis to resize, pixels; pixels beside it contribute at its borders, as with Pillow's ``box``.
    n_in, n_out : int
        Length of the whole axis, and of the output.

    Returns
    -------
    starts : int64 (n_out,)
        First pixel of each output pixel.
    weights : float32 (n_out, taps)
        Sum to 1; taps is a multiple of 4, with zeros at the end, so ``starts + taps`` can exceed ``n_in``.
    """
    scale = (high - low) / n_out
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    starts = np.empty(n_out, np.int64)
    weights = np.zeros((n_out, _whole_groups(2 * math.ceil(support) + 1)), np.float32)
    widest = 1
    for i in range(n_out):
        centre = low + (i + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(n_in, int(centre + support + 0.5))
        total = 0.0
        for x in range(first, last):
            weight = _bicubic((x - centre + 0.5) / stretch)
            weights[i, x - first] = weight
            total += weight
        for tap in range(last - first):
            weights[i, tap] /= total
        widest = max(widest, last - first)
        starts[i] = first
    return starts, weights[:, : _whole_groups(widest)].copy()


@njit(cache=True, nogil=True)
def chroma_weights(
    starts: np.ndarray, weights: np.ndarray, n_in: int, shrunk: int, n_stored: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return for a plane that is ``shrunk`` times as small what :func:`resize_weights` returned for a whole one.

    Its enlargement becomes part of the weights: linear from 2 ("fancy upsampling"), by repetition from 4, as in libjpeg.
    ``n_stored`` is the length of the axis in the plane.
    """
    n_out, taps = weights.shape
    own_starts, own = np.empty(n_out, np.int64), np.zeros((n_out, _whole_groups(taps // shrunk + 3)), np.float32)
    widest = 1
    for i in range(n_out):
        start = max(0, (starts[i] - 1) // 2) if shrunk == 2 else starts[i] // shrunk
        for tap in range(min(taps, n_in - starts[i])):
            x, weight = starts[i] + tap, weights[i, tap]
            if weight == 0:
                continue
            near = x // shrunk - start
            if shrunk == 2:
                next_to = min(max(x // 2 + (x % 2) * 2 - 1, 0), n_stored - 1) - start
                own[i, next_to] += np.float32(0.25) * weight
                own[i, near] += np.float32(0.75) * weight
            else:
                own[i, near] += weight
            widest = max(widest, near + (shrunk == 2) + 1)
        own_starts[i] = start
    return own_starts, own[:, : _whole_groups(widest)].copy()


@njit(cache=True, nogil=True)
def _whole_groups(taps: int) -> int:
    return (taps + _GROUP - 1) // _GROUP * _GROUP


@njit(cache=True, nogil=True, fastmath=True)
def _sum_rows(plane: np.ndarray, start: int, weights: np.ndarray, left: int, row: np.ndarray) -> None:
    """Write to ``row`` float32 (w,) the weighted sum of the plane's rows from ``start`` on, columns ``left`` on."""
    last = plane.shape[0] - 1
    width = row.size
    for tap in range(0, weights.size, _GROUP):
        w0, w1, w2, w3 = weights[tap], weights[tap + 1], weights[tap + 2], weights[tap + 3]
        y = start + tap
        a0 = plane[min(y, last), left : left + width]
        a1 = plane[min(y + 1, last), left : left + width]
        a2 = plane[min(y + 2, last), left : left + width]
        a3 = plane[min(y + 3, last), left : left + width]
        if tap == 0:
            for x in range(width):
                row[x] = (
                    w0 * np.float32(a0[x]) + w1 * np.float32(a1[x]) + w2 * np.float32(a2[x]) + w3 * np.float32(a3[x])
                )
        else:
            for x in range(width):
                row[x] += (
                    w0 * np.float32(a0[x]) + w1 * np.float32(a1[x]) + w2 * np.float32(a2[x]) + w3 * np.float32(a3[x])
                )


@njit(cache=True, nogil=True)
def _resize_block(
    plane: np.ndarray,
    y0: int,
    rows: tuple[np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray],
    lines: np.ndarray,
    block: np.ndarray,
    mirrored: bool,
    out: np.ndarray,
) -> None:
    """Write to ``out`` float32 (n_out, 32) the output rows from ``y0`` on of one plane, transposed."""
    row_starts, row_weights = rows
    column_starts, column_weights = columns
    left = column_starts[0]
    width = min(plane.shape[1], column_starts[-1] + column_weights.shape[1]) - left
    for r in range(min(_BLOCK, row_starts.size - y0)):
        _sum_rows(plane, row_starts[y0 + r], row_weights[y0 + r], left, lines[r, :width])
    for x in range(0, width, FLOAT_TILE):
        for r in range(0, _BLOCK, FLOAT_TILE):
            transpose_tile(lines, r * lines.shape[1] + x, lines.shape[1], block, x * _BLOCK + r, _BLOCK)
    last, taps = column_starts.size - 1, column_weights.shape[1]
    for i in range(column_starts.size):
        start, to = (column_starts[i] - left) * _BLOCK, (last - i if mirrored else i) * _BLOCK
        weighted_sum(block, start, column_weights, i * taps, taps, out, to)


@njit(cache=True, nogil=True)
def resize_planes(
    first: np.ndarray,
    second: np.ndarray,
    third: np.ndarray,
    size: tuple[int, int],
    scale: float,
    shrunk: tuple[int, int],
    is_ycc: bool,
    box: np.ndarray,
    out: np.ndarray,
) -> None:
    """Resize a box of three planes to an interleaved RGB image.

    Parameters
    ----------
    first, second, third : uint8 (h_c, w_c)
        Y, Cb, Cr or R, G, B; the last two are of one size. A grey image is its one plane three times.
    size : (int, int)
        Columns and rows of the first plane that are image; what lies beyond is padding.
    scale : float
        Pixels of the first plane per pixel of the source.
    shrunk : (int, int)
        By how much the other planes are smaller than the first, across and down.
    is_ycc : bool
        Whether the planes are YCbCr.
    box : float64 (4,)
        left, top, right, bottom in pixels of the source image; mirrored where right is below left.
    out : uint8 (size_h, size_w, 3)
        Written.
    """
    height, width = out.shape[0], out.shape[1]
    mirrored = box[2] < box[0]
    left, right = min(box[0], box[2]) * scale, max(box[0], box[2]) * scale
    top, bottom = box[1] * scale, box[3] * scale
    rows = resize_weights(top, bottom, size[1], height)
    columns = resize_weights(left, right, size[0], width)
    chroma_rows, chroma_columns = rows, columns
    if shrunk[1] > 1:
        chroma_rows = chroma_weights(rows[0], rows[1], size[1], shrunk[1], second.shape[0])
    if shrunk[0] > 1:
        chroma_columns = chroma_weights(columns[0], columns[1], size[0], shrunk[0], second.shape[1])
    widest = max(first.shape[1], second.shape[1])
    lines = np.zeros((_BLOCK, widest + FLOAT_TILE), np.float32)
    # Taps of weight zero read beyond the last column: there must be numbers there, not NaN.
    taps = max(columns[1].shape[1], chroma_columns[1].shape[1])
    block = np.zeros((widest + max(taps, FLOAT_TILE), _BLOCK), np.float32)
    sums = np.empty((3, width, _BLOCK), np.float32)
    rgb = np.empty((width, 3, _BLOCK), np.uint8)
    is_grey = second.ctypes.data == first.ctypes.data
    colours = _GREY if is_grey else _YCC if is_ycc else _RGB
    if is_grey:
        sums[1:] = 0  # what is not written could be NaN
    for y0 in range(0, height, _BLOCK):
        for channel in range(1 if is_grey else 3):
            plane = first if channel == 0 else second if channel == 1 else third
            down = rows if channel == 0 else chroma_rows
            across = columns if channel == 0 else chroma_columns
            _resize_block(plane, y0, down, across, lines, block, mirrored, sums[channel])
        for x in range(width):
            for channel in range(3):
                put_bytes(sums, x * _BLOCK, colours, channel, rgb, (3 * x + channel) * _BLOCK)
        _put_rows(rgb, y0, out)


@njit(cache=True, nogil=True)
def _put_rows(rgb: np.ndarray, y0: int, out: np.ndarray) -> None:
    """Write to the rows ``y0``, ... of ``out`` uint8 (h, w, 3) the up to 32 that ``rgb`` uint8 (w, 3, 32) has as columns."""
    n_rows, n_bytes = min(_BLOCK, out.shape[0] - y0), 3 * out.shape[1]
    whole = n_rows // BYTE_TILE * BYTE_TILE if n_bytes >= BYTE_TILE else 0
    for r in range(0, whole, BYTE_TILE):
        for at in range(0, n_bytes, BYTE_TILE):
            place = min(at, n_bytes - BYTE_TILE)  # the last tile overlaps the one before
            transpose_tile(rgb, place * _BLOCK + r, _BLOCK, out, (y0 + r) * n_bytes + place, n_bytes)
    for r in range(whole, n_rows):
        line = out[y0 + r]
        for x in range(out.shape[1]):
            line[x, 0], line[x, 1], line[x, 2] = rgb[x, 0, r], rgb[x, 1, r], rgb[x, 2, r]
