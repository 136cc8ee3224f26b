"""Exact facility location over all pairs of rows, from cosines that are stored rounded up to 16 bits.

A cosine is the float64 inner product of two float32 rows, clipped to 0..1. A matrix of uint16 holds upper bounds of them: a sum
over it is an upper bound of a gain, cheap and free of rounding. Lazy greedy (Minoux 1978) keeps candidates in a heap by such
bounds, and computes the exact gain only of those that no bound puts behind. With each pick rows are represented better and fewer
entries of the matrix can still count; once they are few, these alone are listed and the matrix goes, and each look at a list
shortens it. The picks are those of naive greedy on the float64 matrix, which would take four times the memory.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import overload
from threadpoolctl import threadpool_limits

from coreclip.selection.cosines import cosines_between, exact_cosine, product_error
from coreclip.selection.greedy import BOUND_AT, Greedy, largest_sum, sift_down
from coreclip.selection.threads import in_threads, n_threads

MOST_ROWS = 65_536  # a sum of more bounds could leave 32 bits

_ONE = 65535  # stands for a cosine of 1
_BLOCK = 512  # rows; a block of float32 products stays in a core's second-level cache
_TILE = 32
_FEW = 1 / 16  # of all entries: when no more than these can count, the others are dropped


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


class ListedCosines(NamedTuple):
    """The entries of :class:`RoundedCosines` that may still count.

    Attributes
    ----------
    starts, stops : int64 (n,)
        Candidate j's entries are ``starts[j]:stops[j]``.
    members, bounds : uint16 (entries,)
        The row of an entry, ascending within a candidate, and the bound of its cosine.
    rows : float32 (n, d)
        Unit rows.
    """

    starts: np.ndarray
    stops: np.ndarray
    members: np.ndarray
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
    cosines: RoundedCosines | ListedCosines = rounded_cosines(np.ascontiguousarray(x, np.float32))
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
        n_counting = _renew_all(cosines, run, done)
        bound = min(bound, float(row_weights @ run.best) + largest_sum(run.bounds, k))
        if done == k:
            break
        if isinstance(cosines, RoundedCosines) and n_counting.sum() <= _FEW * n**2:
            cosines = _list_counting(cosines, run, n_counting)
        # A pick at a time while all gains change with each, then as many as have been made.
        stop = min([mark for mark in marks if mark > done], default=k)
        stop = min(stop, max(2 * done, done + 1))
        _pick(cosines, run, picks, gains, done, stop)
        done = stop
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


def _renew_all(cosines: RoundedCosines | ListedCosines, run: _Run, t: int) -> np.ndarray:
    """Renew the bound of every candidate, t having been picked; return how many entries of each may still count, int64 (n,)."""
    n_counting = np.zeros(len(run.bounds), np.int64)
    in_threads(lambda start, stop: _renew_some(cosines, run, t, n_counting, start, stop), len(n_counting))
    _make_heap(run)
    return n_counting


def _list_counting(cosines: RoundedCosines, run: _Run, n_counting: np.ndarray) -> ListedCosines:
    """Return the entries that may still count."""
    stops = np.cumsum(n_counting)
    members, bounds = np.empty(stops[-1], np.uint16), np.empty(stops[-1], np.uint16)
    listed = ListedCosines(stops - n_counting, stops, members, bounds, cosines.rows)
    in_threads(lambda start, stop: _list_some(cosines, run, listed, start, stop), len(stops))
    return listed


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
def _make_heap(run: _Run) -> None:
    size = run.size[0]
    for at in range(size // 2 - 1, -1, -1):
        sift_down(run.heap, size, run.bounds, at)


@njit(cache=True, nogil=True)
def _renew_some(cosines: Any, run: _Run, t: int, n_counting: np.ndarray, start: int, stop: int) -> None:
    for j in range(start, stop):
        bound, n_counting[j] = look_at(cosines, run, j)
        run.bounds[j] = min(run.bounds[j], bound)
        run.known[j], run.exact[j] = t, False


@njit(cache=True, nogil=True)
def _exact_gain(cosines: Any, run: _Run, j: int, counting: np.ndarray) -> float:
    """Return sum_i w_i max(cos_ij - best_i, 0); a row's term goes into the sum of its number modulo 4."""
    sums = np.zeros(4)
    for i in counting[: find_counting(cosines, run, j, counting)]:
        more = exact_cosine(cosines.rows[i], cosines.rows[j]) - run.best[i]
        if more > 0.0:
            sums[i % 4] += run.weights[i] * more
    return (sums[0] + sums[1]) + (sums[2] + sums[3])


@njit(cache=True, nogil=True)
def _represent(cosines: Any, run: _Run, j: int, counting: np.ndarray) -> None:
    for i in counting[: find_counting(cosines, run, j, counting)]:
        cosine = exact_cosine(cosines.rows[i], cosines.rows[j])
        if cosine > run.best[i]:
            run.best[i] = cosine
            run.floor[i] = np.uint16(cosine * _ONE)


@njit(cache=True, nogil=True)
def _pick(cosines: Any, run: _Run, picks: np.ndarray, gains: np.ndarray, first: int, last: int) -> None:
    """Make the picks first..last."""
    heap, size, bounds = run.heap, run.size[0], run.bounds
    counting = np.empty(bounds.shape[0] + 1, np.int64)
    for t in range(first, last):
        while True:
            j = heap[0]
            # A bound of 0 is exact already: gains are not negative.
            if bounds[j] == 0.0 or (run.known[j] == t and run.exact[j]):
                break
            if run.known[j] == t:
                bounds[j] = _exact_gain(cosines, run, j, counting)
                run.exact[j] = True
            else:
                bounds[j] = min(bounds[j], look_at(cosines, run, j)[0])
                run.known[j], run.exact[j] = t, False
            sift_down(heap, size, bounds, 0)
        picks[t], gains[t] = j, bounds[j]
        _represent(cosines, run, j, counting)
        bounds[j] = 0.0
        size -= 1
        heap[0] = heap[size]
        sift_down(heap, size, bounds, 0)
    run.size[0] = size


# What is done with a candidate's entries, once for the matrix and once for the lists; numba chooses by type.


def look_at(cosines: Any, run: _Run, j: int) -> tuple[float, int]:
    """Return the bound of a candidate's gain and how many of its entries may still count; only exists compiled."""
    raise NotImplementedError


def find_counting(cosines: Any, run: _Run, j: int, counting: np.ndarray) -> int:
    """List the rows that a candidate may represent better, ascending; return how many they are. Only exists compiled."""
    raise NotImplementedError


@overload(look_at, inline="never")
def _look_at(cosines: Any, run: Any, j: Any) -> Any:
    return _look_at_row if cosines.instance_class is RoundedCosines else _look_at_list


@overload(find_counting, inline="never")
def _find_counting(cosines: Any, run: Any, j: Any, counting: Any) -> Any:
    return _find_in_row if cosines.instance_class is RoundedCosines else _find_in_list


def _look_at_row(cosines: Any, run: Any, j: Any) -> Any:
    high, low, n_counting = cosines.bounds[j], run.floor, np.uint32(0)
    if run.is_weighted:
        weighted = 0.0
        for i in range(high.shape[0]):
            a, b = np.int32(high[i]), np.int32(low[i])
            weighted += run.weights[i] * np.float64(max(a - b, np.int32(0)))
            n_counting += np.uint32(a > b)
        return weighted / _ONE * (1 + 1e-12), np.int64(n_counting)  # more than what was rounded off
    total = np.uint32(0)
    for i in range(high.shape[0]):
        c, d = np.uint32(high[i]), np.uint32(low[i])
        total = np.uint32(total + np.uint32(max(c, d) - d))
        n_counting = np.uint32(n_counting + np.uint32(c > d))
    return np.float64(total) / _ONE * (1 + 1e-12), np.int64(n_counting)


def _look_at_list(cosines: Any, run: Any, j: Any) -> Any:
    """Drop the entries that do not count any more on the way."""
    start = cosines.starts[j]
    kept, weighted, total = start, 0.0, np.int64(0)
    for e in range(start, cosines.stops[j]):
        i, bound = cosines.members[e], cosines.bounds[e]
        excess = np.int64(bound) - np.int64(run.floor[i])
        cosines.members[kept], cosines.bounds[kept] = i, bound
        if excess > 0:
            kept += 1
            total += excess
            if run.is_weighted:
                weighted += run.weights[i] * np.float64(excess)
    cosines.stops[j] = kept
    return (weighted if run.is_weighted else np.float64(total)) / _ONE * (1 + 1e-12), kept - start


def _find_in_row(cosines: Any, run: Any, j: Any, counting: Any) -> Any:
    high, low, n = cosines.bounds[j], run.floor, 0
    for i in range(high.shape[0]):
        counting[n] = i  # overwritten if it does not count: faster than to branch
        n += high[i] > low[i]
    return n


def _find_in_list(cosines: Any, run: Any, j: Any, counting: Any) -> Any:
    n = 0
    for e in range(cosines.starts[j], cosines.stops[j]):
        i = cosines.members[e]
        counting[n] = i
        n += cosines.bounds[e] > run.floor[i]
    return n


@njit(cache=True, nogil=True)
def _list_some(cosines: RoundedCosines, run: _Run, listed: ListedCosines, start: int, stop: int) -> None:
    counting = np.empty(run.bounds.shape[0] + 1, np.int64)
    for j in range(start, stop):
        at = listed.starts[j]
        for i in counting[: find_counting(cosines, run, j, counting)]:
            listed.members[at], listed.bounds[at] = np.uint16(i), cosines.bounds[j, i]
            at += 1
