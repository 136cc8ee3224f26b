"""Antialiased separable bicubic resizing of planes, after Pillow's ``Resample.c``, straight from a crop box.

The image comes as three planes, as a JPEG stores them: chroma stays small and colours are converted at the output's
size only. The vertical pass goes first, because it vectorises over a row and leaves the fewest rows to the horizontal
one; the latter runs on blocks of 32 rows, transposed. Sums are float32 and are rounded once (Pillow rounds to 8 bits
between the passes). Left out: other filters, gamma, alpha.
"""

import math

import numpy as np
from numba import njit

_BLOCK = 32  # rows of the horizontal pass: whole registers of float32, and a block that stays in the cache
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
def resize_weights(
    low: float, high: float, n_in: int, n_out: int, shrunk: int, n_stored: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which stored pixels of one axis make each output pixel, and their weights.

    Parameters
    ----------
    low, high : float
        The part of the axis to resize, pixels; pixels beside it contribute at its borders, as with Pillow's ``box``.
    n_in, n_out : int
        Length of the whole axis, and of the output.
    shrunk : int
        1, or by how much a chroma plane is smaller. Its enlargement is part of the weights: linear from 2 ("fancy
        upsampling"), by repetition from 4, as in libjpeg.
    n_stored : int
        Length of the axis in the plane.

    Returns
    -------
    starts : int64 (n_out,)
        First stored pixel of each output pixel.
    weights : float32 (n_out, taps)
        Sum to 1; taps is a multiple of 4, with zeros at the end, so ``starts + taps`` can exceed ``n_stored``.
    """
    scale = (high - low) / n_out
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    starts = np.empty(n_out, np.int64)
    weights = np.zeros((n_out, (2 * math.ceil(support) + 3 + _GROUP) // _GROUP * _GROUP), np.float32)
    widest = 1
    for i in range(n_out):
        centre = low + (i + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(n_in, int(centre + support + 0.5))
        start = max(0, (first - 1) // 2) if shrunk == 2 else first // shrunk
        total = 0.0
        for x in range(first, last):
            total += _bicubic((x - centre + 0.5) / stretch)
        for x in range(first, last):
            weight = _bicubic((x - centre + 0.5) / stretch) / total
            near = x // shrunk - start
            if shrunk == 2:
                next_to = min(max(x // 2 + (x % 2) * 2 - 1, 0), n_stored - 1) - start
                weights[i, next_to] += 0.25 * weight
                weights[i, near] += 0.75 * weight
            else:
                weights[i, near] += weight
            widest = max(widest, near + (shrunk == 2) + 1)
        starts[i] = start
    taps = (widest + _GROUP - 1) // _GROUP * _GROUP
    return starts, weights[:, :taps].copy()


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


@njit(cache=True, nogil=True, fastmath=True)
def _sum_columns(block: np.ndarray, start: int, weights: np.ndarray, out: np.ndarray) -> None:
    """Write to ``out`` float32 (32,) the weighted sum of the rows of ``block`` float32 (w, 32) from ``start`` on."""
    for tap in range(0, weights.size, _GROUP):
        w0, w1, w2, w3 = weights[tap], weights[tap + 1], weights[tap + 2], weights[tap + 3]
        a0, a1, a2, a3 = block[start + tap], block[start + tap + 1], block[start + tap + 2], block[start + tap + 3]
        if tap == 0:
            for r in range(_BLOCK):
                out[r] = w0 * a0[r] + w1 * a1[r] + w2 * a2[r] + w3 * a3[r]
        else:
            for r in range(_BLOCK):
                out[r] += w0 * a0[r] + w1 * a1[r] + w2 * a2[r] + w3 * a3[r]


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
    for x in range(width):
        for r in range(_BLOCK):
            block[x, r] = lines[r, x]
    last = column_starts.size - 1
    for i in range(column_starts.size):
        _sum_columns(block, column_starts[i] - left, column_weights[i], out[last - i if mirrored else i])


@njit(cache=True, nogil=True, fastmath=True)
def _to_bytes(y: np.ndarray, u: np.ndarray, v: np.ndarray, is_ycc: bool, rgb: np.ndarray) -> None:
    """Write to ``rgb`` uint8 (3, m) the colours of three float32 (m,); YCbCr is JFIF's (full-range BT.601)."""
    half, top = np.float32(0.5), np.float32(255.0)
    zero = np.float32(0.0)
    red, green, blue = rgb[0], rgb[1], rgb[2]
    if is_ycc:
        for i in range(y.size):
            luma, cb, cr = y[i] + half, u[i] - np.float32(128.0), v[i] - np.float32(128.0)
            red[i] = np.uint8(min(top, max(zero, luma + np.float32(1.402) * cr)))
            green[i] = np.uint8(min(top, max(zero, luma - np.float32(0.344136) * cb - np.float32(0.714136) * cr)))
            blue[i] = np.uint8(min(top, max(zero, luma + np.float32(1.772) * cb)))
    else:
        for i in range(y.size):
            red[i] = np.uint8(min(top, max(zero, y[i] + half)))
            green[i] = np.uint8(min(top, max(zero, u[i] + half)))
            blue[i] = np.uint8(min(top, max(zero, v[i] + half)))


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
    whole = int(np.int64(1))  # a literal would be a type of its own, and the function compiled twice
    rows = resize_weights(top, bottom, size[1], height, whole, first.shape[0])
    columns = resize_weights(left, right, size[0], width, whole, first.shape[1])
    chroma_rows = resize_weights(top, bottom, size[1], height, shrunk[1], second.shape[0])
    chroma_columns = resize_weights(left, right, size[0], width, shrunk[0], second.shape[1])
    widest = max(first.shape[1], second.shape[1])
    lines = np.zeros((_BLOCK, widest), np.float32)
    # Taps of weight zero read beyond the last column: there must be numbers there, not NaN.
    block = np.zeros((widest + max(columns[1].shape[1], chroma_columns[1].shape[1]), _BLOCK), np.float32)
    sums = np.empty((3, width, _BLOCK), np.float32)
    rgb = np.empty((3, width * _BLOCK), np.uint8)
    is_grey = second.ctypes.data == first.ctypes.data
    for y0 in range(0, height, _BLOCK):
        for channel in range(1 if is_grey else 3):
            plane = first if channel == 0 else second if channel == 1 else third
            down = rows if channel == 0 else chroma_rows
            across = columns if channel == 0 else chroma_columns
            _resize_block(plane, y0, down, across, lines, block, mirrored, sums[channel])
        flat = sums.reshape(3, width * _BLOCK)
        _to_bytes(flat[0], flat[0 if is_grey else 1], flat[0 if is_grey else 2], is_ycc, rgb)
        _interleave(rgb, out[y0 : y0 + _BLOCK])


@njit(cache=True, nogil=True)
def _interleave(rgb: np.ndarray, out: np.ndarray) -> None:
    """Write to ``out`` uint8 (rows, w, 3), rows <= 32, the colours ``rgb`` uint8 (3, w * 32)."""
    for r in range(out.shape[0]):
        line = out[r]
        for x in range(out.shape[1]):
            line[x, 0] = rgb[0, x * _BLOCK + r]
            line[x, 1] = rgb[1, x * _BLOCK + r]
            line[x, 2] = rgb[2, x * _BLOCK + r]
