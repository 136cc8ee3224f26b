"""Farthest-first traversal (Gonzalez 1985), lazily: distances to the picks are brought up to date only where they may decide.

The distance of a row to its nearest pick only falls, so that an old one bounds it from above. A round takes the few thousand rows with the
largest bounds, brings these up to date, and picks among them for as long as none of the others can be farther. Most products
are those of matrices; they rule out by a margin for their rounding, and what they leave is computed as :mod:`coreclip.selection.rows`
does. So the picks are those of the definition, to the last bit.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from coreclip.progress import Progress
from coreclip.selection.cosines import product_error
from coreclip.selection.rows import Rows, element, in_pieces, squared_distance, take_rows

_POOL = 4096  # rows of a round
_BLOCK = 1024  # picks that rows are multiplied with at a time


class Traversal(NamedTuple):
    """Rows in the order of a farthest-first traversal.

    Attributes
    ----------
    picks : int64 (k,)
    squares : float64 (k,)
        Squared distance of a pick to the nearest before it, not growing; infinite for the first.
    left : float64
        The largest squared distance of any row to its nearest pick.
    compared : int
        Pairs of a row and a pick that were compared, of the n k that the definition asks for.
    """

    picks: np.ndarray
    squares: np.ndarray
    left: float
    compared: int


def farthest_first(rows: Rows, first: int, k: int, progress: Progress) -> Traversal:
    """Return ``first`` and k - 1 more rows, each the farthest from those before, ties to the lowest index.

    Parameters
    ----------
    rows : Rows
    first : int
    k : int
        1 to the number of rows.
    progress : Progress
        Told of each pick.

    Returns
    -------
    Traversal
    """
    run = _Run(rows, first, k)
    progress.advance()
    while True:
        pool, threshold = run.candidates()
        run.renew(pool, threshold)
        before = run.n_picks
        left = run.pick(pool, threshold)
        progress.advance(run.n_picks - before)
        if left is not None:
            return Traversal(run.picks, run.gains, left, run.compared)


class _Run:
    """Of each row the squared distance to the nearest of the picks that it has been compared with, -1 of a pick."""

    def __init__(self, rows: Rows, first: int, k: int) -> None:
        n = len(rows.values)
        self.rows = rows
        self.picks, self.gains = np.empty(k, np.int64), np.full(k, np.inf)
        self.picks[0] = first
        point = take_rows(rows, np.array([first]))
        self.points = np.empty((k, point.shape[1]), point.dtype)  # the picks' rows
        self.points[0] = point
        self.n_picks = 1
        self.squares = np.full(n, np.inf)
        self.known = np.zeros(n, np.int64)  # the number of picks that a row has been compared with
        self.compared = 0
        self.squares[first] = -1.0
        # A product is off by at most so much of |x| |y|; then there is the rounding of squares that are added up from differences.
        self._off = product_error(point.shape[1]) * 1.01 + 1e-6

    def candidates(self) -> tuple[np.ndarray, float]:
        """Return the rows with the largest bounds, ascending, and a threshold that all others are below."""
        if len(self.squares) <= _POOL:
            return np.flatnonzero(self.squares >= 0), 0.0
        threshold = max(float(np.partition(self.squares, -_POOL)[-_POOL]), 0.0)
        return np.flatnonzero(self.squares >= threshold), threshold

    def renew(self, pool: np.ndarray, threshold: float) -> None:
        """Compare the rows of ``pool`` with the picks that they don't know, until they are below the threshold."""
        # Each thread multiplies by itself: a library's own threads would spin beside ours between two products.
        with threadpool_limits(1), in_pieces(len(pool), self.points.shape[1] * _BLOCK) as run:
            self.compared += sum(run(lambda start, stop: self._renew_some(pool[start:stop], threshold)))

    def _renew_some(self, pool: np.ndarray, threshold: float) -> int:
        compared, oldest = 0, int(self.known[pool].min(initial=self.n_picks))
        for start in range(oldest // _BLOCK * _BLOCK, self.n_picks, _BLOCK):
            stop = min(start + _BLOCK, self.n_picks)
            behind = pool[(self.known[pool] < stop) & (self.squares[pool] >= threshold)]
            for begin in range(0, len(behind), _BLOCK):
                some = behind[begin : begin + _BLOCK]
                x, points = take_rows(self.rows, some), self.points[start:stop]
                compared += x.shape[0] * len(points)
                _compare(self.rows, some, x @ points.T, _lengths(x), points, _lengths(points), self._off, self.squares)
            self.known[behind] = stop
        return compared

    def pick(self, pool: np.ndarray, threshold: float) -> float | None:
        """Pick in ``pool`` while nothing else can be farther; return the largest square after the last pick, None before it."""
        done, left, compared = _pick(
            self.rows, pool, threshold, self.squares, self.known, self.points, self.picks, self.gains, self.n_picks
        )
        self.n_picks = done
        self.compared += compared
        return left if left >= 0 else None


def _lengths(x: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", x, x, dtype=np.float64)


@njit(cache=True, nogil=True)
def _compare(
    rows: Any,
    some: np.ndarray,
    products: np.ndarray,
    lengths: np.ndarray,
    points: np.ndarray,
    point_lengths: np.ndarray,
    off: float,
    squares: np.ndarray,
) -> None:
    """Lower the squared distances of ``some`` rows to that of the nearest point, given their products and squared lengths.

    ``off``, of the sum of two squared lengths, bounds the rounding of a distance by products: |x| |y| <= (|x|^2 + |y|^2) / 2.
    """
    for a in range(some.shape[0]):
        i = some[a]
        nearest = squares[i]
        for b in range(points.shape[0]):
            both = lengths[a] + point_lengths[b]
            if both * (1.0 - off) - 2.0 * products[a, b] < nearest:
                nearest = min(nearest, squared_distance(rows, i, points[b], nearest))
        squares[i] = nearest


@njit(cache=True, nogil=True)
def _pick(
    rows: Any,
    pool: np.ndarray,
    threshold: float,
    squares: np.ndarray,
    known: np.ndarray,
    points: np.ndarray,
    picks: np.ndarray,
    gains: np.ndarray,
    t: int,
) -> tuple[int, float, int]:
    """Return the number of picks, the largest square that is left if they are all made (else -1), and the comparisons made."""
    compared, alive = 0, pool.copy()
    size = alive.shape[0]
    while True:
        # The rows that are below the threshold leave; the first of the farthest stays first.
        kept, farthest = 0, -1
        for a in range(size):
            i = alive[a]
            if squares[i] >= threshold:
                alive[kept] = i
                kept += 1
                if farthest < 0 or squares[i] > squares[farthest]:
                    farthest = i
        size = kept
        all_picked = t == picks.shape[0]
        if farthest < 0:
            # Without a threshold the pool was all that is left.
            return t, (0.0 if all_picked and threshold == 0.0 else -1.0), compared
        if all_picked:
            return t, squares[farthest], compared
        if squares[farthest] == 0.0:
            # All that is left equals a pick, and is in the pool.
            n_more = picks.shape[0] - t
            picks[t:], gains[t:] = alive[:n_more], 0.0
            return picks.shape[0], 0.0, compared
        picks[t], gains[t] = farthest, squares[farthest]
        for c in range(points.shape[1]):
            points[t, c] = element(rows, farthest, c)
        squares[farthest] = -1.0
        for a in range(size):
            i = alive[a]
            # One that has not been compared with all picks is below the threshold, and has left.
            squares[i] = min(squares[i], squared_distance(rows, i, points[t], squares[i]))
            known[i] = t + 1
        compared += size
        t += 1
