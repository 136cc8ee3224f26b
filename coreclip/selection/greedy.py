"""Greedy maximisation of facility location, f(S) = sum_i w_i max_{j in S} s_ij, compiled with numba.

After Minoux 1978 (lazy evaluation), Mirzasoleiman et al. 2015 (stochastic greedy, arXiv 1409.7938) and Leskovec et al. 2007
(the bound that comes with the data). Similarities are non-negative, so f is monotone and f(empty) = 0.

A gain is summed in one fixed order in float64. Each of its terms can only shrink while the set grows, and rounding is monotone,
so an old gain is an upper bound of the new one to the last bit: lazy greedy picks exactly what naive greedy picks, with ties
(zero gains and duplicates too) to the lowest index. Left out: other functions, costs, streams and partitioned greedy.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload

from coreclip.errors import CoreclipError
from coreclip.randomness import uniform

OPTIMIZERS = ("lazy", "naive", "stochastic")

# The bound is taken after these fractions of the picks: it is loose early and late gains cost as much as early ones.
_BOUND_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
_STREAM_STOCHASTIC = 101


class Columns(NamedTuple):
    """Sparse similarity: for each candidate the rows that it can represent.

    Attributes
    ----------
    indptr : int64 (m + 1,)
        Candidate j's entries are ``indptr[j]:indptr[j + 1]``.
    rows : int32 or int64 (entries,)
        Ascending within a candidate.
    values : float32 (entries,)
        Non-negative; what is not stored is 0.
    """

    indptr: np.ndarray
    rows: np.ndarray
    values: np.ndarray


Similarity = np.ndarray | Columns
"""Dense float32 (m candidates, n rows), C-contiguous, or :class:`Columns`."""


@dataclass(frozen=True, eq=False)
class Greedy:
    """What a greedy run found.

    Attributes
    ----------
    picks : int64 (k,)
        Candidates in order of choice.
    gains : float64 (k,)
        What each pick added; they sum to ``objective``.
    objective : float
        f(picks).
    upper_bound : float
        No set of k candidates has a higher f.
    """

    picks: np.ndarray
    gains: np.ndarray
    objective: float
    upper_bound: float


def maximise(
    similarity: Similarity,
    weights: np.ndarray,
    k: int,
    *,
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
) -> Greedy:
    """Pick k candidates greedily.

    Parameters
    ----------
    similarity : float32 (m, n) or Columns
        Row j holds what candidate j is worth to each of the n rows; non-negative.
    weights : float64 (n,)
        Non-negative weights of the rows.
    k : int
        1 to m.
    optimizer : {"lazy", "naive", "stochastic"}
        The first two pick the same. ``stochastic`` looks at ceil((m / k) ln(1 / epsilon)) random candidates per pick.
    epsilon : float
        Of ``stochastic``, whose expected value is at least (1 - 1/e - epsilon) of the best.
    seed : int
        Of ``stochastic``.

    Returns
    -------
    Greedy

    Raises
    ------
    CoreclipError
        For an unknown optimizer or an epsilon out of range.

    Notes
    -----
    For every set S: OPT <= f(S) + the sum of the k largest gains at S, because f is monotone and submodular. The upper bound is
    the least of these over five prefixes of the picks, from the empty one to all; the gains there are exact, not lazy ones.
    """
    if optimizer not in OPTIMIZERS:
        raise CoreclipError(f"unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    if not 0 < epsilon <= 1 - 1 / math.e:
        raise CoreclipError(
            f"epsilon = {epsilon} is not allowed: 0 < epsilon <= 1 - 1/e = 0.632, else nothing is guaranteed"
        )
    n_candidates = _n_candidates(similarity)
    best = np.zeros(len(weights))
    picks, gains = np.empty(k, np.int64), np.empty(k)
    if optimizer == "lazy":
        _lazy(similarity, weights, best, candidate_gains(similarity, weights, best), picks, gains)
    elif optimizer == "naive":
        _naive(similarity, weights, best, picks, gains)
    else:
        size = min(n_candidates, math.ceil(n_candidates / k * math.log(1 / epsilon)))
        draws = uniform(seed, 0, np.arange(k * size), _STREAM_STOCHASTIC).reshape(k, size)
        _stochastic(similarity, weights, best, draws, np.arange(n_candidates), picks, gains)
    objective = float(weights @ best)
    return Greedy(picks, gains, objective, max(objective, upper_bound(similarity, weights, picks)))


def upper_bound(similarity: Similarity, weights: np.ndarray, picks: np.ndarray) -> float:
    """Return min over prefixes S of ``picks`` of f(S) + the sum of the k largest gains at S (see :func:`maximise`)."""
    k = len(picks)
    best = np.zeros(len(weights))
    bound, done = math.inf, 0
    for stop in sorted({round(k * fraction) for fraction in _BOUND_AT}):
        for j in picks[done:stop]:
            _represent(similarity, best, j)
        done = stop
        gains = candidate_gains(similarity, weights, best)
        largest = np.partition(gains, len(gains) - k)[len(gains) - k :]
        bound = min(bound, float(weights @ best) + float(largest.sum()))
    return bound


def candidate_gains(similarity: Similarity, weights: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Return every candidate's gain, float64 (m,), where row i is represented with ``best[i]`` already."""
    gains = np.empty(_n_candidates(similarity))
    in_threads(lambda start, stop: _gains(similarity, weights, best, start, stop, gains), len(gains))
    return gains


def in_threads(work: Callable[[int, int], None], n: int) -> None:
    """Run ``work(start, stop)`` over 0..n-1 in one piece per core; it must release the GIL."""
    n_threads = max(1, min(len(os.sched_getaffinity(0)), n))
    edges = [n * part // n_threads for part in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))


def _n_candidates(similarity: Similarity) -> int:
    return len(similarity.indptr) - 1 if isinstance(similarity, Columns) else len(similarity)


def _naive(similarity: Similarity, weights: np.ndarray, best: np.ndarray, picks: np.ndarray, gains: np.ndarray) -> None:
    free = np.ones(_n_candidates(similarity), bool)
    for t in range(len(picks)):
        all_gains = np.where(free, candidate_gains(similarity, weights, best), -1.0)
        picks[t] = j = int(np.argmax(all_gains))  # the first of equals
        gains[t] = all_gains[j]
        free[j] = False
        _represent(similarity, best, j)


# One definition per kind of similarity; numba chooses by type, so that each algorithm below is written once.


def _gain(similarity: Any, weights: Any, best: Any, j: int) -> float:
    """Return sum_i w_i max(s_ij - best_i, 0); only exists compiled."""
    raise NotImplementedError


def _add(similarity: Any, best: Any, j: int) -> None:
    """Raise ``best`` to candidate j's similarities; only exists compiled."""
    raise NotImplementedError


# Four running sums let the processor work on four terms at once; their order is fixed, unlike with fastmath.


@overload(_gain)
def _gain_overload(similarity: Any, weights: Any, best: Any, j: Any) -> Any:
    def dense(similarity: Any, weights: Any, best: Any, j: Any) -> float:
        column = similarity[j]
        n = column.shape[0]
        whole = n - n % 4
        a = b = c = d = 0.0
        for i in range(0, whole, 4):
            a += weights[i] * max(np.float64(column[i]) - best[i], 0.0)
            b += weights[i + 1] * max(np.float64(column[i + 1]) - best[i + 1], 0.0)
            c += weights[i + 2] * max(np.float64(column[i + 2]) - best[i + 2], 0.0)
            d += weights[i + 3] * max(np.float64(column[i + 3]) - best[i + 3], 0.0)
        for i in range(whole, n):
            a += weights[i] * max(np.float64(column[i]) - best[i], 0.0)
        return (a + b) + (c + d)

    def sparse(similarity: Any, weights: Any, best: Any, j: Any) -> float:
        start, stop = similarity.indptr[j], similarity.indptr[j + 1]
        rows, values = similarity.rows[start:stop], similarity.values[start:stop]
        n = rows.shape[0]
        whole = n - n % 4
        a = b = c = d = 0.0
        for e in range(0, whole, 4):
            a += weights[rows[e]] * max(np.float64(values[e]) - best[rows[e]], 0.0)
            b += weights[rows[e + 1]] * max(np.float64(values[e + 1]) - best[rows[e + 1]], 0.0)
            c += weights[rows[e + 2]] * max(np.float64(values[e + 2]) - best[rows[e + 2]], 0.0)
            d += weights[rows[e + 3]] * max(np.float64(values[e + 3]) - best[rows[e + 3]], 0.0)
        for e in range(whole, n):
            a += weights[rows[e]] * max(np.float64(values[e]) - best[rows[e]], 0.0)
        return (a + b) + (c + d)

    return dense if isinstance(similarity, types.Array) else sparse


@overload(_add)
def _add_overload(similarity: Any, best: Any, j: Any) -> Any:
    def dense(similarity: Any, best: Any, j: Any) -> None:
        for i in range(best.shape[0]):
            best[i] = max(best[i], np.float64(similarity[j, i]))

    def sparse(similarity: Any, best: Any, j: Any) -> None:
        for e in range(similarity.indptr[j], similarity.indptr[j + 1]):
            i = similarity.rows[e]
            best[i] = max(best[i], np.float64(similarity.values[e]))

    return dense if isinstance(similarity, types.Array) else sparse


@njit(cache=True, nogil=True)
def _represent(similarity: Any, best: np.ndarray, j: int) -> None:
    _add(similarity, best, j)


@njit(cache=True, nogil=True)
def _gains(similarity: Any, weights: np.ndarray, best: np.ndarray, start: int, stop: int, gains: np.ndarray) -> None:
    for j in range(start, stop):
        gains[j] = _gain(similarity, weights, best, j)


@njit(cache=True, nogil=True)
def _sift_down(heap: np.ndarray, size: int, bounds: np.ndarray, at: int) -> None:
    """Restore a heap whose top has the largest bound, and the lowest index among equals."""
    moving = heap[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size:
            left, right = heap[child], heap[child + 1]
            if bounds[right] > bounds[left] or (bounds[right] == bounds[left] and right < left):
                child += 1
        other = heap[child]
        if bounds[moving] > bounds[other] or (bounds[moving] == bounds[other] and moving < other):
            break
        heap[at] = other
        at = child
    heap[at] = moving


@njit(cache=True, nogil=True)
def _lazy(
    similarity: Any, weights: np.ndarray, best: np.ndarray, bounds: np.ndarray, picks: np.ndarray, gains: np.ndarray
) -> None:
    size = bounds.shape[0]
    heap = np.arange(size)
    evaluated = np.zeros(size, np.int64)  # the number of picks that a bound knows of
    for at in range(size // 2 - 1, -1, -1):
        _sift_down(heap, size, bounds, at)
    for t in range(picks.shape[0]):
        # A bound of 0 is exact already: gains are not negative.
        while evaluated[heap[0]] < t and bounds[heap[0]] > 0.0:
            bounds[heap[0]] = _gain(similarity, weights, best, heap[0])
            evaluated[heap[0]] = t
            _sift_down(heap, size, bounds, 0)
        picks[t] = heap[0]
        gains[t] = bounds[heap[0]]
        _add(similarity, best, heap[0])
        size -= 1
        heap[0] = heap[size]
        _sift_down(heap, size, bounds, 0)


@njit(cache=True, nogil=True)
def _stochastic(
    similarity: Any,
    weights: np.ndarray,
    best: np.ndarray,
    draws: np.ndarray,
    pool: np.ndarray,
    picks: np.ndarray,
    gains: np.ndarray,
) -> None:
    left = pool.shape[0]
    for t in range(picks.shape[0]):
        chosen, gain = -1, -1.0
        for s in range(min(draws.shape[1], left)):
            other = s + int(draws[t, s] * (left - s))
            pool[s], pool[other] = pool[other], pool[s]
            new = _gain(similarity, weights, best, pool[s])
            if new > gain or (new == gain and pool[s] < pool[chosen]):
                chosen, gain = s, new
        picks[t] = pool[chosen]
        gains[t] = gain
        _add(similarity, best, picks[t])
        left -= 1
        pool[chosen] = pool[left]
