"""A Cholesky factor that rows are appended to and taken out of, for least squares over a changing set; compiled with numba."""

import math

import numpy as np
from numba import njit

_CAPACITY = 32  # rows, doubled when they are full
_DEPENDENT = 1e-12  # of the diagonal: what is left of a row that the others span already


class Cholesky:
    """The factor L of a positive definite matrix A = L L^T, and the solution of A z = b.

    Attributes
    ----------
    size : int
        Rows of A, 0 in the beginning.
    """

    def __init__(self) -> None:
        self.size = 0
        self._lower = np.zeros((_CAPACITY, _CAPACITY))
        self._right = np.zeros(_CAPACITY)
        self._half = np.zeros(_CAPACITY)  # L^-1 b

    @property
    def value(self) -> float:
        """b^T A^-1 b."""
        half = self._half[: self.size]
        return float(half @ half)

    def append(self, row: np.ndarray, diagonal: float, right: float) -> bool:
        """Add a row and column to A and an element to b, in O(size^2).

        Parameters
        ----------
        row : float64 (size,)
            The new row of A, left of its diagonal.
        diagonal, right : float
            The new elements on A's diagonal and in b.

        Returns
        -------
        bool
            False, and nothing is added, where A would not be positive definite any more, to rounding.
        """
        size = self.size
        solved = row.astype(np.float64)
        _forward(self._lower, solved)
        pivot = diagonal - float(solved @ solved)
        if pivot <= _DEPENDENT * diagonal:
            return False
        if size == len(self._right):
            self._lower = np.pad(self._lower, (0, size))
            self._right, self._half = np.pad(self._right, (0, size)), np.pad(self._half, (0, size))
        self._lower[size, :size] = solved
        self._lower[size, size] = math.sqrt(pivot)
        self._right[size] = right
        self._half[size] = (right - float(solved @ self._half[:size])) / self._lower[size, size]
        self.size += 1
        return True

    def remove(self, at: int) -> None:
        """Take a row and column out of A, and the element out of b, in O(size^2)."""
        _delete(self._lower, at, self.size)
        self.size -= 1
        self._right[at : self.size] = self._right[at + 1 : self.size + 1]
        self._half[: self.size] = self._right[: self.size]
        _forward(self._lower, self._half[: self.size])

    def solve(self) -> np.ndarray:
        """Return A^-1 b, float64 (size,), in O(size^2)."""
        solution = self._half[: self.size].copy()
        _backward(self._lower, solution)
        return solution


@njit(cache=True, nogil=True)
def _forward(lower: np.ndarray, right: np.ndarray) -> None:
    for i in range(right.shape[0]):
        total = right[i]
        for j in range(i):
            total -= lower[i, j] * right[j]
        right[i] = total / lower[i, i]


@njit(cache=True, nogil=True)
def _backward(lower: np.ndarray, right: np.ndarray) -> None:
    for i in range(right.shape[0] - 1, -1, -1):
        right[i] /= lower[i, i]
        for j in range(i):
            right[j] -= lower[i, j] * right[i]


@njit(cache=True, nogil=True)
def _delete(lower: np.ndarray, at: int, size: int) -> None:
    """Take out row and column ``at``: what is below gains the square of the column that leaves, by rotations."""
    leaving = lower[at + 1 : size, at].copy()
    for i in range(at, size - 1):
        for j in range(at):
            lower[i, j] = lower[i + 1, j]
        for j in range(at, i + 1):
            lower[i, j] = lower[i + 1, j + 1]
    for c in range(at, size - 1):
        length = math.hypot(lower[c, c], leaving[c - at])
        cosine, sine = length / lower[c, c], leaving[c - at] / lower[c, c]
        lower[c, c] = length
        for i in range(c + 1, size - 1):
            lower[i, c] = (lower[i, c] + sine * leaving[i - at]) / cosine
            leaving[i - at] = cosine * leaving[i - at] - sine * lower[i, c]
