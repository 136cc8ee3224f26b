"""Greedy maximisation of set functions with diminishing returns, compiled with numba.

After Minoux 1978 (lazy evaluation), Mirzasoleiman et al. 2015 (stochastic greedy, arXiv 1409.7938), Badanidiyuru & Vondrak 2014
(descending thresholds) and Leskovec et al. 2007 (the bound that comes with the data). Lazy greedy picks exactly what naive greedy
picks, with ties (zero gains and duplicates too) to the lowest index. Left out: costs; parts and streams are elsewhere.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from coreclip.errors import CoreclipError
from coreclip.randomness import uniform
from coreclip.selection.functions import Columns, Function, add, facility, gain
from coreclip.selection.threads import in_threads

OPTIMIZERS = ("lazy", "naive", "stochastic", "threshold")

# The bound is taken after these fractions of the picks: it is loose early and late gains cost as much as early ones.
BOUND_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
_STREAM_STOCHASTIC = 101

Similarity = np.ndarray | Columns
"""Dense float (m candidates, n rows), C-contiguous, or :class:`~coreclip.selection.functions.Columns`."""


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
    upper_bound : float or None
        No set of k candidates has a higher f; None where f is not monotone, of which this can't be said.
    """

    picks: np.ndarray
    gains: np.ndarray
    objective: float
    upper_bound: float | None


def maximise(
    similarity: Similarity,
    weights: np.ndarray,
    k: int,
    *,
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
) -> Greedy:
    """Pick k candidates greedily for facility location, sum_i w_i max_{j in S} s_ji: :func:`maximise_function` of it.

    Parameters
    ----------
    similarity : float (m, n) or Columns
        Row j holds what candidate j is worth to each of the n rows; non-negative.
    weights : float64 (n,)
        Non-negative weights of the rows.
    k, optimizer, epsilon, seed
        See :func:`maximise_function`.

    Returns
    -------
    Greedy
    """
    return maximise_function(facility(similarity, weights), k, optimizer=optimizer, epsilon=epsilon, seed=seed)


def maximise_function(
    function: Function,
    k: int,
    *,
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
    candidates: np.ndarray | None = None,
) -> Greedy:
    """Pick k candidates greedily.

    Parameters
    ----------
    function : Function
        With nothing picked; it is left as it is.
    k : int
        1 to the number of candidates.
    optimizer : {"lazy", "naive", "stochastic", "threshold"}
        The first two pick the same. ``stochastic`` looks at ceil((m / k) ln(1 / epsilon)) random candidates per pick.
        ``threshold`` goes over the candidates in the order of their numbers and takes those that gain at least a threshold, which
        falls by a factor 1 - epsilon from the largest gain on.
    epsilon : float
        Of ``stochastic``, whose expected value is at least (1 - 1/e - epsilon) of the best; of ``threshold``, where this is sure.
    seed : int
        Of ``stochastic``.
    candidates : int64 (c,) or None
        Ascending; those that may be picked, None for all.

    Returns
    -------
    Greedy

    Raises
    ------
    CoreclipError
        For an unknown optimizer, an epsilon out of range, and ``threshold`` with a function that is not monotone.

    Notes
    -----
    For every set S: OPT <= f(S) + the sum of the k largest gains at S, because f is monotone and submodular. The upper bound is
    the least of these over five prefixes of the picks, from the empty one to all; the gains there are exact, not lazy ones.
    It holds for sets of all candidates, those that may not be picked included.
    """
    if optimizer not in OPTIMIZERS:
        raise CoreclipError(f"unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    if not 0 < epsilon <= 1 - 1 / math.e:
        raise CoreclipError(
            f"epsilon = {epsilon} is not allowed: 0 < epsilon <= 1 - 1/e = 0.632, else nothing is guaranteed"
        )
    if optimizer == "threshold" and not function.monotone:
        raise CoreclipError("optimizer='threshold' needs a function that no pick can lower; use 'lazy'")
    state = function.fresh()
    free = np.arange(state.m) if candidates is None else np.array(candidates, np.int64)
    picks, gains = np.empty(k, np.int64), np.empty(k)
    if optimizer == "lazy":
        lazy_from(state, candidate_gains(state), free, picks, gains)
    elif optimizer == "naive":
        _naive(state, free, picks, gains)
    elif optimizer == "stochastic":
        size = min(len(free), math.ceil(len(free) / k * math.log(1 / epsilon)))
        draws = uniform(seed, 0, np.arange(k * size), _STREAM_STOCHASTIC).reshape(k, size)
        _stochastic(state, draws, free, picks, gains)
    else:
        _threshold(state, candidate_gains(state), free, epsilon, picks, gains)
    objective = state.value()
    bound = max(objective, upper_bound(function, picks)) if function.monotone else None
    return Greedy(picks, gains, objective, bound)


def noted(optimizer: str, epsilon: float) -> dict[str, Any]:
    """Return what a subset notes of how it was maximised."""
    return {"optimizer": optimizer} | ({"epsilon": epsilon} if optimizer in ("stochastic", "threshold") else {})


def upper_bound(function: Function, picks: np.ndarray) -> float:
    """Return min over prefixes S of ``picks`` of f(S) + the sum of the k largest gains at S (see :func:`maximise_function`)."""
    k = len(picks)
    state = function.fresh()
    bound, done = math.inf, 0
    for stop in sorted({round(k * fraction) for fraction in BOUND_AT}):
        add_all(state, picks[done:stop])
        done = stop
        bound = min(bound, state.value() + largest_sum(candidate_gains(state), k))
    return bound


def largest_sum(gains: np.ndarray, k: int) -> float:
    """Return the sum of the k largest."""
    return float(np.partition(gains, len(gains) - k)[len(gains) - k :].sum())


def candidate_gains(function: Function) -> np.ndarray:
    """Return every candidate's gain beside what has been picked, float64 (m,)."""
    gains = np.empty(function.m)
    in_threads(lambda start, stop: _gains(function, start, stop, gains), len(gains))
    return gains


def lazy_from(
    function: Function, gains_now: np.ndarray, free: np.ndarray, picks: np.ndarray, gains: np.ndarray
) -> None:
    """Go on picking lazily among ``free`` (int64) where ``function`` stands; fills ``picks`` and ``gains``, both (k,).

    ``gains_now`` are :func:`candidate_gains`, and are used up.
    """
    _lazy(function, gains_now, free, picks, gains, function.slack, function.monotone)


def _naive(function: Function, free: np.ndarray, picks: np.ndarray, gains: np.ndarray) -> None:
    allowed = np.zeros(function.m, bool)
    allowed[free] = True
    for t in range(len(picks)):
        all_gains = np.where(allowed, candidate_gains(function), -np.inf)
        picks[t] = j = int(np.argmax(all_gains))  # the first of equals
        gains[t] = all_gains[j]
        allowed[j] = False
        add_all(function, picks[t : t + 1])


@njit(cache=True, nogil=True)
def add_all(function: Any, picks: np.ndarray) -> None:
    """Pick the candidates ``picks`` (int64)."""
    for j in picks:
        add(function, j)


@njit(cache=True, nogil=True)
def _gains(function: Any, start: int, stop: int, gains: np.ndarray) -> None:
    for j in range(start, stop):
        gains[j] = gain(function, j)


@njit(cache=True, nogil=True)
def sift_down(heap: np.ndarray, size: int, bounds: np.ndarray, at: int) -> None:
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
def _sift_up(heap: np.ndarray, bounds: np.ndarray, at: int) -> None:
    """Move what stands at ``at`` up to its place in such a heap."""
    moving = heap[at]
    while at > 0:
        parent = heap[(at - 1) // 2]
        if bounds[parent] > bounds[moving] or (bounds[parent] == bounds[moving] and parent < moving):
            break
        heap[at] = parent
        at = (at - 1) // 2
    heap[at] = moving


@njit(cache=True, nogil=True)
def _lazy(
    function: Any,
    bounds: np.ndarray,
    free: np.ndarray,
    picks: np.ndarray,
    gains: np.ndarray,
    slack: float,
    monotone: bool,
) -> None:
    """Pick the best of ``free`` len(picks) times; ``bounds`` are all gains now, and become bounds of later ones.

    A gain that is computed anew may exceed an old one by rounding: by a share ``slack`` at most, by which bounds are raised.
    """
    size = free.shape[0]
    heap, passed_over = free.copy(), np.empty_like(free)
    exact = bounds.copy()
    evaluated = np.zeros(bounds.shape[0], np.int64)  # the number of picks that ``exact`` knows of
    bounds += slack * np.abs(bounds)
    for at in range(size // 2 - 1, -1, -1):
        sift_down(heap, size, bounds, at)
    for t in range(picks.shape[0]):
        best, n_passed = -1, 0
        # What is behind the best can't win; of equals the lower index does.
        while size and (
            best < 0 or bounds[heap[0]] > exact[best] or (bounds[heap[0]] == exact[best] and heap[0] < best)
        ):
            j = heap[0]
            size -= 1
            heap[0] = heap[size]
            sift_down(heap, size, bounds, 0)
            if evaluated[j] < t:
                # A bound of 0 is exact already where gains are not negative.
                exact[j] = 0.0 if monotone and bounds[j] == 0.0 else gain(function, j)
                evaluated[j] = t
            loser = j
            if best < 0 or exact[j] > exact[best] or (exact[j] == exact[best] and j < best):
                best, loser = j, best
            if loser >= 0:
                passed_over[n_passed] = loser
                n_passed += 1
        picks[t], gains[t] = best, exact[best]
        add(function, best)
        for j in passed_over[:n_passed]:
            bounds[j] = exact[j] + slack * abs(exact[j])
            heap[size] = j
            size += 1
            _sift_up(heap, bounds, size - 1)


@njit(cache=True, nogil=True)
def _stochastic(function: Any, draws: np.ndarray, pool: np.ndarray, picks: np.ndarray, gains: np.ndarray) -> None:
    left = pool.shape[0]
    for t in range(picks.shape[0]):
        chosen, best = -1, -np.inf
        for s in range(min(draws.shape[1], left)):
            other = s + int(draws[t, s] * (left - s))
            pool[s], pool[other] = pool[other], pool[s]
            new = gain(function, pool[s])
            if chosen < 0 or new > best or (new == best and pool[s] < pool[chosen]):
                chosen, best = s, new
        picks[t], gains[t] = pool[chosen], best
        add(function, picks[t])
        left -= 1
        pool[chosen] = pool[left]


@njit(cache=True, nogil=True)
def _threshold(
    function: Any, bounds: np.ndarray, free: np.ndarray, epsilon: float, picks: np.ndarray, gains: np.ndarray
) -> None:
    threshold = bounds[free].max()
    least = epsilon / free.shape[0] * threshold  # below it all gains together count for nothing
    taken = np.zeros(bounds.shape[0], np.bool_)
    t = 0
    while t < picks.shape[0]:
        for j in free:
            if t == picks.shape[0]:
                break
            if taken[j] or bounds[j] < threshold:
                continue
            bounds[j] = gain(function, j)
            if bounds[j] >= threshold:
                picks[t], gains[t] = j, bounds[j]
                add(function, j)
                taken[j] = True
                t += 1
        threshold = threshold * (1.0 - epsilon) if threshold > least else 0.0
