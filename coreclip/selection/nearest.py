"""The t best of many candidates for each row, kept in heaps that blocks of similarities are offered to, in any order.

A heap's top is the worst that it holds: the least value, the highest name among equals. What a heap ends with so does not
depend on the order of the offers, which threads may make; rows of different heaps are independent.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from coreclip.selection.threads import in_threads

_CHUNK = 32  # similarities that are compared at a time before any is looked at


class Heaps(NamedTuple):
    """Heaps of n rows, in columns ``first``.. of two arrays.

    Attributes
    ----------
    values : float32 (n, t)
    names : int32 (n, t)
        -1 where nothing has been offered yet.
    first : int
    """

    values: np.ndarray
    names: np.ndarray
    first: int


def empty_heaps(n: int, t: int, first: int = 0) -> Heaps:
    """Return heaps of t - first places beside ``first`` free columns."""
    return Heaps(np.full((n, t), -1.0, np.float32), np.full((n, t), -1, np.int32), first)


def sort_heaps(heaps: Heaps) -> None:
    """Put each heap in order, the best first, equal ones by their names; it is no heap any more."""
    in_threads(lambda start, stop: _sort(heaps, start, stop), len(heaps.values))


@njit(cache=True, nogil=True)
def offer_rows(block: np.ndarray, rows: np.ndarray, columns: np.ndarray, heaps: Heaps, are_pairs: bool = True) -> None:
    """Offer ``block[r, c]``, named ``columns[c]``, to the heap of ``rows[r]``.

    Parameters
    ----------
    block : float32 (m, p)
        Similarities of at least 0.
    rows, columns : int32 (m,), (p,)
    heaps : Heaps
    are_pairs : bool
        Whether rows and columns are named alike, so that a row is not offered to itself.
    """
    first = heaps.first
    for r in range(block.shape[0]):
        i = rows[r]
        values, names, similarities = heaps.values[i, first:], heaps.names[i, first:], block[r]
        if values.shape[0] == 0:
            return
        for start in range(0, similarities.shape[0], _CHUNK):
            stop = min(start + _CHUNK, similarities.shape[0])
            worst, hits = values[0], 0
            for c in range(start, stop):
                hits += similarities[c] >= worst
            if hits:
                for c in range(start, stop):
                    if similarities[c] >= values[0] and not (are_pairs and columns[c] == i):
                        _offer(similarities[c], columns[c], values, names)


@njit(cache=True, nogil=True)
def offer_columns(block: np.ndarray, rows: np.ndarray, columns: np.ndarray, heaps: Heaps) -> None:
    """Offer ``block[r, c]``, named ``rows[r]``, to the heap of ``columns[c]``: the transposed block, without a copy of it."""
    first = heaps.first
    if heaps.values.shape[1] == first:
        return
    worst = np.empty(block.shape[1], np.float32)
    for c in range(block.shape[1]):
        worst[c] = heaps.values[columns[c], first]
    for r in range(block.shape[0]):
        similarities = block[r]
        for start in range(0, similarities.shape[0], _CHUNK):
            stop = min(start + _CHUNK, similarities.shape[0])
            hits = 0
            for c in range(start, stop):
                hits += similarities[c] >= worst[c]
            if hits:
                for c in range(start, stop):
                    if similarities[c] >= worst[c] and columns[c] != rows[r]:
                        j = columns[c]
                        _offer(similarities[c], rows[r], heaps.values[j, first:], heaps.names[j, first:])
                        worst[c] = heaps.values[j, first]


@njit(cache=True, nogil=True)
def _offer(value: float, name: int, values: np.ndarray, names: np.ndarray) -> None:
    if value < values[0] or (value == values[0] and name > names[0]):
        return
    t = values.shape[0]
    at = 0
    while 2 * at + 1 < t:
        child = 2 * at + 1
        if child + 1 < t and (
            values[child + 1] < values[child]
            or (values[child + 1] == values[child] and names[child + 1] > names[child])
        ):
            child += 1
        if value < values[child] or (value == values[child] and name > names[child]):
            break
        values[at], names[at] = values[child], names[child]
        at = child
    values[at], names[at] = value, name


@njit(cache=True, nogil=True)
def _sort(heaps: Heaps, start: int, stop: int) -> None:
    for i in range(start, stop):
        values, names = heaps.values[i, heaps.first :], heaps.names[i, heaps.first :]
        # The worst goes to the end, again and again, and what was there sinks into the shorter heap.
        for size in range(values.shape[0] - 1, 0, -1):
            value, name = values[size], names[size]
            values[size], names[size] = values[0], names[0]
            values[0], names[0] = np.float32(-np.inf), np.int32(-1)
            _offer(value, name, values[:size], names[:size])
