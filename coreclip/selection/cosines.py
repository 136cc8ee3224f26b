"""Exact cosines of unit rows in compiled code: float64 inner products of float32 rows, clipped to 0..1."""

import numpy as np
from numba import njit

from coreclip.selection.threads import in_threads


def product_error(d: int) -> float:
    """Return what a float32 inner product of unit rows (d,), added in whatever order, misses the true one by at most.

    After Higham 2002, section 3.1.
    """
    return (d + 2) * 2.0**-24 * 1.01


def cosines_between(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return max(0, cos) of float32 unit rows (b, d) and (r, d): float64 (b, r), each by itself."""
    result = np.empty((len(x), len(y)))
    in_threads(lambda start, stop: _fill(x, y, result, start, stop), len(x))
    return result


# The sum may be taken in an order that suits the processor: the same for all rows, and for (x, y) as for (y, x).
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def exact_cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Return max(0, cos) of two float32 unit rows (d,)."""
    total = 0.0
    for c in range(x.shape[0]):
        total += np.float64(x[c]) * np.float64(y[c])
    return min(max(total, 0.0), 1.0)


@njit(cache=True, nogil=True)
def _fill(x: np.ndarray, y: np.ndarray, result: np.ndarray, start: int, stop: int) -> None:
    for i in range(start, stop):
        for j in range(y.shape[0]):
            result[i, j] = exact_cosine(x[i], y[j])
