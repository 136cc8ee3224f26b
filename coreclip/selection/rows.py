"""Rows of embeddings that compiled code reads where they lie: squared distances to one point, over all rows.

Float16 rows, memory-mapped ones too, are neither copied nor converted as a whole: an element becomes float32 when it is read.
Differences are taken before they are squared, so that near rows do not cancel, and added up in float64, each row by itself: a
distance does not depend on the rows around it, and that of equal rows is exactly 0. Left out: other distances.
"""

import contextlib
import math
import platform
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic, overload

from coreclip.errors import CoreclipError
from coreclip.selection.features import Features
from coreclip.selection.threads import pieces

T = TypeVar("T")

_BLOCK = 1 << 13  # rows
_CHUNK = 64  # dimensions between two looks at whether a distance is too large already
_WORTH_A_THREAD = 1 << 16  # elements
# Whether the processor converts float16; every x86 since 2012 and every 64-bit ARM does.
_HAS_HALVES = platform.machine() in ("aarch64", "arm64") or bool(binding.get_host_cpu_features().get("f16c"))


class Rows(NamedTuple):
    """Element j of row i is ``values[i, j] * scales[i]``.

    Attributes
    ----------
    values : float32, float64 or uint16 (n, d)
        uint16 holds the bits of float16 values.
    scales : float32 (n,)
    """

    values: np.ndarray
    scales: np.ndarray


def unit_rows(features: Features, modality: str) -> Rows:
    """Return the unit vectors that pairs are compared by, read in place for a single modality.

    Raises
    ------
    CoreclipError
        For a modality that is unknown or not there.
    """
    found = {"image": features.image, "text": features.text}.get(modality)
    if found is None:
        return plain_rows(features.vectors(modality))  # the two side by side, or what is wrong with the modality
    rows = plain_rows(np.asarray(found))
    for start in range(0, features.n, _BLOCK):
        block = found[start : start + _BLOCK].astype(np.float32)
        rows.scales[start : start + _BLOCK] = 1 / np.linalg.norm(block, axis=1)
    return rows


def plain_rows(x: np.ndarray) -> Rows:
    """Return the rows of a float16, float32 or float64 array (n, d) as they are."""
    if x.dtype == np.float16:
        x = x.view(np.uint16) if _HAS_HALVES else x.astype(np.float32)
    return Rows(x, np.ones(len(x), np.float32))


def check_rows(x: np.ndarray, name: str) -> np.ndarray:
    """Return ``x`` as an array of rows that distances can be taken of.

    Raises
    ------
    CoreclipError
        For a shape other than (n, d), neither of them 0, another type than numbers, and NaN or infinity.
    """
    x = np.asarray(x)
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiu":
        raise CoreclipError(f"{name}: {x.dtype} of shape {x.shape}; it must be numbers (rows, dimensions), neither 0")
    if x.dtype not in (np.float16, np.float32, np.float64):
        x = x.astype(np.float64)
    for start in range(0, len(x), _BLOCK):
        finite = np.isfinite(x[start : start + _BLOCK]).all(axis=1)
        if not finite.all():
            raise CoreclipError(f"{name}: row {start + finite.argmin()} is NaN or infinite; leave it out")
    return x


def take_rows(rows: Rows, indices: np.ndarray | slice) -> np.ndarray:
    """Return some rows as float32, or float64 where the values are, (k, d)."""
    values = rows.values[indices]
    if values.dtype == np.uint16:
        values = values.view(np.float16).astype(np.float32)
    return values * rows.scales[indices, None]


def mean_row(rows: Rows, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the (weighted) mean, float64 (d,)."""
    n, total = len(rows.values), np.zeros(rows.values.shape[1])
    weights = np.ones(n) if weights is None else weights
    for start in range(0, n, _BLOCK):
        total += weights[start : start + _BLOCK] @ take_rows(rows, slice(start, start + _BLOCK)).astype(np.float64)
    return total / weights.sum()


def in_pieces(n: int, d: int) -> contextlib.AbstractContextManager[Callable[[Callable[[int, int], T]], list[T]]]:
    """Give a function that runs ``work(start, stop)`` over n rows of d elements: :func:`~coreclip.selection.threads.pieces`."""
    return pieces(n, n * d // _WORTH_A_THREAD)


def squared_distances(rows: Rows, point: np.ndarray) -> np.ndarray:
    """Return the squared distance of every row to a point, float64 (n,)."""
    result = np.empty(len(rows.values))
    with in_pieces(*rows.values.shape) as run:
        run(lambda start, stop: _distances(rows, point, start, stop, result))
    return result


def nearest_row(
    run: Callable[[Callable[[int, int], tuple[int, float]]], list[tuple[int, float]]],
    rows: Rows,
    point: np.ndarray,
    free: np.ndarray,
) -> int:
    """Return which of the ``free`` rows (bool (n,)) is nearest to a point, the first of equals; ``run`` is :func:`in_pieces`'."""
    found = run(lambda start, stop: _nearest(rows, point, free, start, stop))
    return min(found, key=lambda piece: piece[1])[0]


class Nearest:
    """The squared distance of every row to the nearest of some points, which are added one by one.

    Attributes
    ----------
    squares : float64 (n,)
        Infinite before the first point.
    owners : int32 (n,)
        The number of the nearest point, the first of equals.
    evaluated : int
        Distances that were computed; the others follow from the triangle inequality.

    Notes
    -----
    With c the nearest point of row i and p a new one, ||c - p|| >= 2 ||i - c|| means that ||i - p|| >= ||i - c||, so that nothing
    changes for i. The margin covers the rounding of the distances, so that the outcome is the same to the last bit.
    """

    _MARGIN = 1 - 1e-5  # of a quarter of a squared distance; rounding is below 1e-6

    def __init__(self, rows: Rows) -> None:
        n = len(rows.values)
        self.squares = np.full(n, np.inf)
        self.owners = np.zeros(n, np.int32)
        self.evaluated = 0
        self._rows = rows
        self._points, self._n_points = np.empty(64, np.int64), 0

    def add(self, run: Callable[[Callable[[int, int], int]], list[int]], index: int) -> None:
        """Add a row as a point; ``run`` is :func:`in_pieces`'."""
        number = self._n_points
        point = take_rows(self._rows, np.array([index]))[0]
        quarters = np.zeros(number + 1)  # of the squared distances from the new point to those before, and to itself
        _distances_of(self._rows, self._points[:number], point, quarters)
        quarters *= self._MARGIN / 4
        if number == len(self._points):
            self._points = np.concatenate([self._points, np.empty(number, np.int64)])
        self._points[number] = index
        self._n_points += 1
        evaluated = run(
            lambda start, stop: _absorb(self._rows, point, number, quarters, self.squares, self.owners, start, stop)
        )
        self.evaluated += number + sum(evaluated)


# One definition per kind of values; numba chooses by type.


def _real(value: Any) -> float:
    """Return a number of :class:`Rows`; only exists compiled."""
    raise NotImplementedError


def _convert_bits(typing_context: Any, bits: Any) -> Any:
    """Convert float16 bits to float32, exactly."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


_of_bits: Any = intrinsic(_convert_bits)


@overload(_real)
def _real_overload(value: Any) -> Any:
    def bits(value: Any) -> float:
        return _of_bits(value)

    def number(value: Any) -> float:
        return value

    return bits if value == types.uint16 else number


# The sum may be taken in an order that suits the processor. It is the same for every row, so that equal rows stay equal.
@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def _chunk_distance(values: np.ndarray, scale: float, point: np.ndarray) -> float:
    total = 0.0
    for j in range(point.shape[0]):
        total += np.float64(_real(values[j]) * scale - point[j]) ** 2
    return total


@njit(cache=True, nogil=True)
def element(rows: Any, i: int, j: int) -> float:
    """Return element j of row i, as :func:`take_rows` does."""
    return _real(rows.values[i, j]) * rows.scales[i]


@njit(cache=True, nogil=True)
def squared_distance(rows: Any, i: int, point: np.ndarray, limit: float) -> float:
    """Return ||row i - point||^2, or something between ``limit`` and it.

    Sums of squares only grow, also when they are rounded: what has reached the limit can't come back below it.
    """
    values, scale = rows.values[i], rows.scales[i]
    total = 0.0
    for first in range(0, point.shape[0], _CHUNK):
        stop = first + _CHUNK
        total += _chunk_distance(values[first:stop], scale, point[first:stop])
        if total >= limit:
            return total
    return total


@njit(cache=True, nogil=True)
def _distances(rows: Any, point: np.ndarray, start: int, stop: int, out: np.ndarray) -> None:
    for i in range(start, stop):
        out[i] = squared_distance(rows, i, point, math.inf)


@njit(cache=True, nogil=True)
def _distances_of(rows: Any, indices: np.ndarray, point: np.ndarray, out: np.ndarray) -> None:
    for t in range(indices.shape[0]):
        out[t] = squared_distance(rows, indices[t], point, math.inf)


@njit(cache=True, nogil=True)
def _nearest(rows: Any, point: np.ndarray, free: np.ndarray, start: int, stop: int) -> tuple[int, float]:
    nearest, least = start, math.inf
    for i in range(start, stop):
        if free[i]:
            square = squared_distance(rows, i, point, least)
            if square < least:
                nearest, least = i, square
    return nearest, least


@njit(cache=True, nogil=True)
def _absorb(
    rows: Any,
    point: np.ndarray,
    number: int,
    quarters: np.ndarray,
    squares: np.ndarray,
    owners: np.ndarray,
    start: int,
    stop: int,
) -> int:
    """Return how many distances were computed."""
    evaluated = 0
    for i in range(start, stop):
        if squares[i] > quarters[owners[i]]:
            evaluated += 1
            square = squared_distance(rows, i, point, squares[i])
            if square < squares[i]:
                squares[i] = square
                owners[i] = number
    return evaluated
