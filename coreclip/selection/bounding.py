"""Candidates that bounds of their gains rule out, or in, before any is picked.

After Böther et al. 2024 (arXiv 2402.16442), who prune billions of points so. A candidate's gain is largest where nothing has been
picked, and smallest beside the picks that are most like it. Whatever no set of picks can lift among the k best is left out, and
neither greedy nor the best choice loses anything by it. Left out: their approximate bounds from samples of the neighbours, and
further rounds beside what is in.
"""

from typing import NamedTuple

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.functions import DenseFacility, Function, GraphCut, SparseFacility
from coreclip.selection.greedy import candidate_gains
from coreclip.selection.threads import in_threads

_BLOCK = 256  # rows that are copied at a time
_ROUNDING = 2.0**-52  # twice what one operation can be off by


class GainBounds(NamedTuple):
    """Bounds of every candidate's gain.

    Attributes
    ----------
    highest : float64 (m,)
        No gain beside any picks is above it.
    lowest : float64 (m,)
        No gain beside the picks that there can be is below it.
    """

    highest: np.ndarray
    lowest: np.ndarray


class Pruned(NamedTuple):
    """What bounds say of a choice of k.

    Attributes
    ----------
    candidates : int64 (c,)
        Ascending, at least k: all others are in no choice.
    certain : int64
        Ascending, at most k: these are in every choice.
    """

    candidates: np.ndarray
    certain: np.ndarray


def gain_bounds(function: Function, k: int | None = None) -> GainBounds:
    """Return bounds of what each candidate can add.

    Parameters
    ----------
    function : Function
        A graph cut or a facility location; what has been picked does not count.
    k : int or None
        Picks in all, so that a graph cut's candidate comes beside k - 1 others at most; None for beside all others.

    Returns
    -------
    GainBounds
        They hold for gains in floating point too: they are as much wider as rounding can matter.

    Raises
    ------
    CoreclipError
        For other functions and a k below 1.

    Notes
    -----
    Graph cut: a candidate's lowest gain is the one beside the k - 1 that are most similar to it. Beside all others it is
    (trade_off - 2) sum_i s_ij + s_jj, so that a trade-off of 2 leaves nothing but the similarity to itself.

    Facility location: the lowest gain is what rows lose when they go from their most similar candidate to the second; ``k`` makes
    no difference. Where the candidates are the rows, all weights 1, and nothing more similar to a row than itself, this can
    **never** remove anything: a candidate represents itself with 1 at least, so that its highest gain is not below 1, and no row
    but a candidate's own loses by its absence, at most 1. With weights of the rows, or candidates of their own, it can.
    """
    if k is not None and k < 1:
        raise CoreclipError(f"k = {k} is not allowed: at least 1 pick")
    highest = candidate_gains(function.fresh())
    if isinstance(function, GraphCut):
        n = len(highest)
        near = _largest_of_others(function.similarity, n - 1 if k is None else min(k, n) - 1)
        own = np.diagonal(function.similarity).astype(np.float64)
        margin = (n + 4) * _ROUNDING * (function.reach + own + 2 * near)
        return GainBounds(highest + margin, function.reach - own - 2 * near - margin)
    if isinstance(function, DenseFacility | SparseFacility):
        first, second, owner = _two_largest(function)
        lowest = np.bincount(owner, function.weights * (first - second), minlength=len(highest))
        margin = (len(first) + 4) * _ROUNDING
        return GainBounds(highest * (1 + margin), lowest * (1 - margin))
    raise CoreclipError(f"{type(function).__name__} has no bounds of its gains; known: graph cut, facility location")


def prune_by_bounds(highest: np.ndarray, lowest: np.ndarray, k: int) -> Pruned:
    """Return the candidates that can be in a choice of k, and those that must be.

    Parameters
    ----------
    highest, lowest : float (m,)
        Bounds of each candidate's gain beside all sets of fewer than k others, for a function with diminishing returns or
        without.
    k : int
        1 to m.

    Returns
    -------
    Pruned
        Greedy picks the same with these candidates as with all, and no best set of k holds another.

    Raises
    ------
    CoreclipError
        For bounds of unequal shapes, NaN, a lowest gain above the highest, and a k that is not 1 to m.

    Notes
    -----
    Beside fewer than k picks one of the k candidates with the largest lowest gains is still free. It adds more than a candidate
    whose highest gain is below all of theirs, which therefore is never greedy's pick and in a best set could be exchanged with a
    profit ("shrink"). A candidate whose lowest gain is above the (k + 1)-th largest of the highest, itself counted, adds more
    than all but k - 1 others, so that no k picks come without it ("grow"). Equal bounds decide nothing, and so ties go as before.
    """
    highest, lowest = np.asarray(highest, np.float64), np.asarray(lowest, np.float64)
    m = len(highest) if highest.ndim == 1 else 0
    if highest.shape != lowest.shape or not m:
        raise CoreclipError(f"bounds have shapes {highest.shape} and {lowest.shape}; both must be (candidates,)")
    wrong = np.flatnonzero(~(lowest <= highest))  # NaN too
    if len(wrong):
        j = int(wrong[0])
        raise CoreclipError(
            f"candidate {j} has a lowest gain of {lowest[j]} and a highest of {highest[j]}; it must not be above, nor NaN"
        )
    if not 1 <= k <= m:
        raise CoreclipError(f"k = {k} of {m} candidates is not allowed: 1 to {m}")
    candidates = np.flatnonzero(highest >= np.partition(lowest, m - k)[m - k])
    if k == m:
        return Pruned(candidates, candidates)
    return Pruned(candidates, np.flatnonzero(lowest > np.partition(highest, m - k - 1)[m - k - 1]))


def _largest_of_others(similarity: np.ndarray, count: int) -> np.ndarray:
    """Return the sum of each row's ``count`` largest entries beside the diagonal."""
    n = len(similarity)
    sums = np.zeros(n)

    def fill(start: int, stop: int) -> None:
        for top in range(start, stop, _BLOCK):
            rows = np.arange(top, min(top + _BLOCK, stop))
            block = similarity[rows].astype(np.float64)
            block[np.arange(len(rows)), rows] = 0.0  # adds nothing, for none is negative
            block.partition(n - count, axis=1)
            sums[rows] = block[:, n - count :].sum(axis=1)

    if count:
        in_threads(fill, n)
    return sums


def _two_largest(function: DenseFacility | SparseFacility) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's largest similarity, the second, and which candidate has the largest."""
    n = len(function.weights)
    first, second, owner = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
    if isinstance(function, DenseFacility):
        for j, values in enumerate(function.similarity):
            better = values > first
            owner[better] = j
            second = np.where(better, first, np.maximum(second, values))
            first = np.maximum(first, values)
        return first, second, owner
    order = np.lexsort((-function.values, function.rows))
    rows, values = function.rows[order], function.values[order]
    candidates = np.repeat(np.arange(function.m), np.diff(function.indptr))[order]
    at = np.searchsorted(rows, np.arange(n + 1))
    one, two = np.diff(at) > 0, np.diff(at) > 1
    first[one], owner[one] = values[at[:-1][one]], candidates[at[:-1][one]]
    second[two] = values[at[:-1][two] + 1]
    return first, second, owner
