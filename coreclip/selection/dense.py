"""Exact facility location over all pairs of rows, from cosines that are stored rounded up to 16 bits.

A cosine is the float64 inner product of two float32 rows, clipped to 0..1. A matrix of uint16 holds upper bounds of them: a sum
over it is an upper bound of a gain, cheap and free of rounding. Lazy greedy (Minoux 1978) keeps candidates in a heap by such
bounds, and computes the exact gain only of those that no bound puts behind. With each pick rows are represented better and fewer
entries of the matrix can still count; once they are few, these alone are kept, with their exact values. The picks are those of
naive greedy on the float64 matrix, which would take four times the memory.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from coreclip.selection.cosines import cosines_between, exact_cosine, product_error
from coreclip.selection.functions import SparseFacility
from coreclip.selection.greedy import BOUND_AT, Greedy, candidate_gains, largest_sum, lazy_from, sift_down
from coreclip.selection.threads import in_threads, n_threads

MOST_ROWS = 65_536  # a sum of more bounds could leave 32 bits

_ONE = 65535  # stands for a cosine of 1
_BLOCK = 512  # rows; a block of float32 products stays in a core's second-level cache
_TILE, _CHUNK, _SAMPLE = 32, 64, 256
_FEW = 1 / 64  # of all entries: when no more than these can count, the others are dropped


class RoundedCosines(NamedTuple):
    """Cosines of all pairs of rows.

    Attributes
    ----------
    bounds : uint16 (n, n)
        Symmetric; ``bounds / 65535`` is at least the cosine.
    rows : float32 (n, d)
        Unit rows, which the cosines themselves are computed from.
    """

    bounds: np.ndarray
    rows: np.ndarray


def rounded_cosines(x: np.ndarray) -> RoundedCosines:
    """Return the bounds of all cosines.

    Parameters
    ----------
    x : float32 (n, d)
        Unit rows, at most 65,536.

    Returns
    -------
    RoundedCosines
    """
    n, d = x.shape
    slack = product_error(d)
    bounds = np.empty((n, n), np.uint16)
    local = threading.local()

    def fill(block: tuple[int, int]) -> None:
        if not hasattr(local, "products"):
            local.products = np.empty((_BLOCK, _BLOCK), np.float32)
        top, left = block
        rows, columns = x[top : top + _BLOCK], x[left : left + _BLOCK]
        products = local.products[: len(rows), : len(columns)]
        np.matmul(rows, columns.T, out=products)
        _round_up(products, slack, bounds, top, left)

    starts = range(0, n, _BLOCK)
    # Each thread multiplies by itself: a library's own threads would spin beside ours between two products.
    with threadpool_limits(1), ThreadPoolExecutor(n_threads()) as pool:
        list(pool.map(fill, [(top, left) for top in starts for left in starts if left >= top]))
    np.fill_diagonal(bounds, _ONE)
    return RoundedCosines(bounds, x)


def exact_cosines(x: np.ndarray) -> np.ndarray:
    """Return the cosines of all pairs of unit rows (float32 (n, d)), clipped to 0..1: float64 (n, n)."""
    x = np.ascontiguousarray(x, np.float32)
    return cosines_between(x, x)


def maximise_cosines(x: np.ndarray, k: int, weights: np.ndarray | None = None) -> Greedy:
    """Pick k of the rows greedily so that sum_i w_i max_j cos(x_i, x_j) over all rows i grows most with each.

    Parameters
    ----------
    x : float32 (n, d)
        Unit rows, at most 65,536.
    k : int
        1 to n.
    weights : float64 (n,) or None
        Non-negative; None for 1.

    Returns
    -------
    Greedy
        With the bound of :func:`coreclip.selection.greedy.maximise_function`; its gains are bounds too.
    """
    cosines = rounded_cosines(np.ascontiguousarray(x, np.float32))
    n = len(cosines.rows)
    row_weights = np.ones(n) if weights is None else weights
    run = _Run(
        np.zeros(n), np.zeros(n, np.uint16), row_weights, weights is not None, np.full(n, np.inf),
        np.zeros(n, np.int64), np.zeros(n, np.bool_), np.arange(n), np.array([n]),
    )  # fmt: skip
    picks, gains = np.empty(k, np.int64), np.empty(k)
    marks = [round(k * fraction) for fraction in BOUND_AT]
    bound = np.inf
    done = 0
    while True:
        _renew_all(cosines, run, done)
        bound = min(bound, float(row_weights @ run.best) + largest_sum(run.bounds, k))
        if done == k or _share_that_counts(cosines, run) <= _FEW:
            break
        # A pick at a time while all gains change with each, then as many as have been made.
        stop = min([mark for mark in marks if mark > done], default=k)
        stop = min(stop, max(2 * done, done + 1))
        _pick_rounded(cosines, run, picks, gains, done, stop)
        done = stop
    if done < k:
        function, free = _keep_active(cosines, run)
        del cosines
        gains_now = candidate_gains(function)
        for mark in sorted({mark for mark in marks if mark > done}):
            lazy_from(function, gains_now, free, picks[done:mark], gains[done:mark])
            free = free[~np.isin(free, picks[done:mark])]
            done, gains_now = mark, candidate_gains(function)
            bound = min(bound, function.value() + largest_sum(gains_now, k))
    objective = float(row_weights @ run.best)
    return Greedy(picks, gains, objective, max(objective, bound))


class _Run(NamedTuple):
    """What a run knows: of each row how well it is represented, of each candidate the bound of its gain."""

    best: np.ndarray  # float64 (n,)
    floor: np.ndarray  # uint16 (n,): best in the unit of the bounds, rounded down
    weights: np.ndarray  # float64 (n,): of the rows
    is_weighted: bool
    bounds: np.ndarray  # float64 (n,)
    known: np.ndarray  # int64 (n,): the number of picks that a bound knows of
    exact: np.ndarray  # bool (n,): whether a bound is the gain itself
    heap: np.ndarray  # int64 (n,): the candidates that are left, the highest bound first
    size: np.ndarray  # int64 (1,): how many these are


def _renew_all(cosines: RoundedCosines, run: _Run, t: int) -> None:
    """Renew the bound of every candidate that is left, t having been picked."""
    in_threads(lambda start, stop: _renew_some(cosines, run, t, start, stop), len(run.bounds))
    _make_heap(run)


def _share_that_counts(cosines: RoundedCosines, run: _Run) -> float:
    """Return which share of the entries can still count, of some candidates."""
    some = cosines.bounds[:: -(-len(cosines.bounds) // _SAMPLE)]
    return float(np.mean([_count_above(bounds, run.floor) for bounds in some])) / len(run.floor)


def _keep_active(cosines: RoundedCosines, run: _Run) -> tuple[SparseFacility, np.ndarray]:
    """Return the function of the entries that can still count, exact and as far as it is, and the candidates left."""
    n = len(run.bounds)
    n_active = np.zeros(n, np.int64)
    in_threads(lambda start, stop: _count_active(cosines, run, n_active, start, stop), n)
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(n_active, out=indptr[1:])
    rows, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1])
    in_threads(lambda start, stop: _list_active(cosines, run, indptr, rows, values, start, stop), n)
    return SparseFacility(indptr, rows, values, run.weights, run.best), np.sort(run.heap[: run.size[0]])


@njit(cache=True, nogil=True)
def _round_up(products: np.ndarray, slack: float, bounds: np.ndarray, top: int, left: int) -> None:
    """Write a block of products as bounds, and the block that mirrors it."""
    scale, add, zero = np.float32(_ONE), np.float32(slack * _ONE + 1.0), np.float32(0.0)
    m, columns = products.shape
    for i in range(m):
        row, out = products[i], bounds[top + i, left : left + columns]
        for j in range(columns):
            # What is surely below 0 is 0: rounding up starts at the least value that may be positive.
            value = max(min(row[j] * scale + add, scale), zero)
            out[j] = np.uint16(np.int32(value))
    if left == top:
        return
    for first in range(0, m, _TILE):
        size = min(_TILE, m - first)
        for j in range(columns):
            out = bounds[left + j, top + first : top + first + size]
            for i in range(size):
                out[i] = bounds[top + first + i, left + j]


@njit(cache=True, nogil=True)
def _excess(high: np.ndarray, low: np.ndarray) -> np.uint32:
    """Return the sum of what ``high`` has above ``low``, both uint16."""
    total = np.uint32(0)
    for i in range(high.shape[0]):
        a, b = np.uint32(high[i]), np.uint32(low[i])
        total = np.uint32(total + np.uint32(max(a, b) - b))
    return total


@njit(cache=True, nogil=True)
def _weighted_excess(high: np.ndarray, low: np.ndarray, weights: np.ndarray) -> float:
    total = 0.0
    for i in range(high.shape[0]):
        a, b = np.int32(high[i]), np.int32(low[i])
        total += weights[i] * np.float64(max(a - b, np.int32(0)))
    return total


@njit(cache=True, nogil=True)
def _bound_of_gain(cosines: RoundedCosines, run: _Run, j: int) -> float:
    if run.is_weighted:
        return _weighted_excess(cosines.bounds[j], run.floor, run.weights) / _ONE * (1 + 1e-12)  # of rounding
    return np.float64(_excess(cosines.bounds[j], run.floor)) / _ONE * (1 + 1e-12)


@njit(cache=True, nogil=True)
def _renew_some(cosines: RoundedCosines, run: _Run, t: int, start: int, stop: int) -> None:
    for j in range(start, stop):
        if run.bounds[j] > 0.0:
            run.bounds[j] = min(run.bounds[j], _bound_of_gain(cosines, run, j))
        run.known[j], run.exact[j] = t, False


@njit(cache=True, nogil=True)
def _count_above(high: np.ndarray, low: np.ndarray) -> np.uint32:
    total = np.uint32(0)
    for i in range(high.shape[0]):
        total = np.uint32(total + np.uint32(high[i] > low[i]))
    return total


@njit(cache=True, nogil=True)
def _count_active(cosines: RoundedCosines, run: _Run, n_active: np.ndarray, start: int, stop: int) -> None:
    for j in range(start, stop):
        n_active[j] = _count_above(cosines.bounds[j], run.floor)


@njit(cache=True, nogil=True)
def _make_heap(run: _Run) -> None:
    size = run.size[0]
    for at in range(size // 2 - 1, -1, -1):
        sift_down(run.heap, size, run.bounds, at)


@njit(cache=True, nogil=True)
def _find_active(bounds: np.ndarray, floor: np.ndarray, active: np.ndarray) -> int:
    """List the rows that a candidate may represent better, ascending; return how many they are."""
    n, n_active = bounds.shape[0], 0
    for start in range(0, n, _CHUNK):
        stop = min(start + _CHUNK, n)
        if _excess(bounds[start:stop], floor[start:stop]):
            for i in range(start, stop):
                active[n_active] = i
                n_active += bounds[i] > floor[i]
    return n_active


@njit(cache=True, nogil=True)
def _exact_gain(cosines: RoundedCosines, run: _Run, j: int, active: np.ndarray) -> float:
    """Return sum_i w_i max(cos_ij - best_i, 0); a row's term goes into the sum of its number modulo 4."""
    sums = np.zeros(4)
    for i in active[: _find_active(cosines.bounds[j], run.floor, active)]:
        more = exact_cosine(cosines.rows[i], cosines.rows[j]) - run.best[i]
        if more > 0.0:
            sums[i % 4] += run.weights[i] * more
    return (sums[0] + sums[1]) + (sums[2] + sums[3])


@njit(cache=True, nogil=True)
def _represent(cosines: RoundedCosines, run: _Run, j: int, active: np.ndarray) -> None:
    for i in active[: _find_active(cosines.bounds[j], run.floor, active)]:
        cosine = exact_cosine(cosines.rows[i], cosines.rows[j])
        if cosine > run.best[i]:
            run.best[i] = cosine
            run.floor[i] = np.uint16(cosine * _ONE)


@njit(cache=True, nogil=True)
def _pick_rounded(
    cosines: RoundedCosines, run: _Run, picks: np.ndarray, gains: np.ndarray, first: int, last: int
) -> None:
    """Make the picks first..last."""
    heap, size, bounds = run.heap, run.size[0], run.bounds
    active = np.empty(bounds.shape[0] + 1, np.int64)
    for t in range(first, last):
        while True:
            j = heap[0]
            # A bound of 0 is exact already: gains are not negative.
            if bounds[j] == 0.0 or (run.known[j] == t and run.exact[j]):
                break
            if run.known[j] == t:
                bounds[j] = _exact_gain(cosines, run, j, active)
                run.exact[j] = True
            else:
                bounds[j] = min(bounds[j], _bound_of_gain(cosines, run, j))
                run.known[j], run.exact[j] = t, False
            sift_down(heap, size, bounds, 0)
        picks[t], gains[t] = j, bounds[j]
        _represent(cosines, run, j, active)
        bounds[j] = 0.0
        size -= 1
        heap[0] = heap[size]
        sift_down(heap, size, bounds, 0)
    run.size[0] = size


@njit(cache=True, nogil=True)
def _list_active(
    cosines: RoundedCosines, run: _Run, indptr: np.ndarray, rows: np.ndarray, values: np.ndarray, start: int, stop: int
) -> None:
    active = np.empty(run.bounds.shape[0] + 1, np.int64)
    for j in range(start, stop):
        for e in range(_find_active(cosines.bounds[j], run.floor, active)):
            rows[indptr[j] + e] = active[e]
            values[indptr[j] + e] = exact_cosine(cosines.rows[active[e]], cosines.rows[j])
