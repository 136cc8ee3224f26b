"""Similarities between rows, all of them or each row's t largest, exactly or among the rows of near clusters.

By blocked matrix products. Exactly, only blocks on and above the diagonal are multiplied: each serves its rows and, transposed,
its columns. That halves the work, makes s_ij = s_ji to the last bit, and gives dense and sparse the same values, for n^2 d / 2
multiplications. Memory is a block for each thread plus the result.
"""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from coreclip.errors import CoreclipError
from coreclip.progress import Progress
from coreclip.selection.clusters import nearest_centroids
from coreclip.selection.functions import Columns
from coreclip.selection.nearest import Heaps, empty_heaps, offer_columns, offer_rows, sort_heaps
from coreclip.selection.threads import n_threads

DEFAULT_PROBES = 8

_BLOCK = 1024  # rows; a block of float32 is 4 MiB
_ALL = slice(None)

Measure = Callable[[np.ndarray, slice, slice], np.ndarray]
"""Turns the inner products of some rows with some others into similarities >= 0 (in place where it can)."""


def cosine(products: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Return min(max(0, cos), 1) of unit rows: opposite directions are as unlike as unrelated ones."""
    return np.clip(products, 0.0, 1.0, out=products)


def proximity(x: np.ndarray, largest: float) -> Measure:
    """Return the measure ``max(0, largest - ||x_i - x_j||)``; ``largest`` should be at least every distance."""
    squares = np.einsum("ij,ij->i", x, x)

    def measure(products: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        squared = squares[rows, None] + squares[None, columns] - 2 * products
        return np.maximum(largest - np.sqrt(np.maximum(squared, 0)), 0)

    return measure


def dense_similarity(x: np.ndarray, measure: Measure = cosine, self_similarity: float = 1.0) -> np.ndarray:
    """Return the similarity of every pair of rows.

    Parameters
    ----------
    x : float32 or float64 (n, d)
        Unit rows for the cosine.
    measure : Measure
    self_similarity : float
        Put on the diagonal, where rounding must not decide.

    Returns
    -------
    float32 (n, n)
        Symmetric to the last bit.
    """
    result = np.empty((len(x), len(x)), np.float32)
    for rows, columns in _spans(len(x)):
        block = _similarities(x, rows, columns, measure)
        result[rows, columns] = block
        if rows != columns:
            result[columns, rows] = block.T
    np.fill_diagonal(result, self_similarity)
    return result


def neighbor_graph(
    x: np.ndarray,
    t: int,
    measure: Measure = cosine,
    *,
    include_self: bool = True,
    self_similarity: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the t most similar rows of each row, exactly.

    Parameters
    ----------
    x : float32 or float64 (n, d)
        Unit rows for the cosine.
    t : int
        At least 1; cut to what there is.
    measure : Measure
    include_self : bool
        A row's first neighbour is then itself, before any duplicate of it.
    self_similarity : float

    Returns
    -------
    indices : int32 (n, t)
        Most similar first, ties to the lowest index.
    values : float32 (n, t)
    """
    n = len(x)
    first = int(include_self)
    heaps = empty_heaps(n, min(t, n - 1 + first), first)
    names = np.arange(n, dtype=np.int32)
    locks = {start: threading.Lock() for start in range(0, n, _BLOCK)}

    def compare(block: tuple[slice, slice]) -> int:
        rows, columns = block
        similarities = _similarities(x, rows, columns, measure)
        with locks[rows.start]:
            offer_rows(similarities, names[rows], names[columns], heaps)
        if rows != columns:
            with locks[columns.start]:
                offer_columns(similarities, names[rows], names[columns], heaps)
        return similarities.size

    # Each thread multiplies by itself: a library's own threads would spin beside ours between two products.
    with (
        Progress(n * (n + _BLOCK) // 2, "neighbours", "comparisons") as progress,
        threadpool_limits(1),
        ThreadPoolExecutor(n_threads()) as pool,
    ):
        for size in pool.map(compare, _spans(n)):
            progress.advance(size)
    return _graph_of(heaps, self_similarity)


def default_lists(n: int) -> int:
    """Return into how many lists n rows are sorted: 2 sqrt(n)."""
    return min(n, max(1, round(2 * n**0.5)))


def inverted_graph(
    x: np.ndarray, t: int, *, lists: int | None = None, probes: int = DEFAULT_PROBES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return nearly the t rows of highest cosine of each row: the exact ones among those in the nearest lists.

    The rows are sorted into k-means clusters, the lists; each row is compared with the members of the lists whose centroids are
    nearest to it (Jegou et al. 2011; faiss calls it IVF), all rows that look into a list at a time, by matrix products.

    Parameters
    ----------
    x : float32 (n, d)
        Unit rows.
    t : int
        At least 1; cut to what there is.
    lists : int or None
        1 to n; None for 2 sqrt(n).
    probes : int
        Lists that each row looks into, its own included.
    seed : int
        Of the k-means.

    Returns
    -------
    indices : int32 (n, t)
        The row itself first, then the most similar; -1 where the lists held fewer.
    values : float32 (n, t)
        0 there.

    Raises
    ------
    CoreclipError
        For a number of lists or probes that is out of range.
    """
    n = len(x)
    lists = default_lists(n) if lists is None else lists
    if not 1 <= lists <= n:
        raise CoreclipError(f"lists = {lists} is not allowed: 1 to the {n} pairs")
    if probes < 1:
        raise CoreclipError(f"probes = {probes} is not allowed: at least 1, a pair's own list")
    nearest = nearest_centroids(x, lists, min(probes, lists), seed)
    members = np.argsort(nearest[:, 0], kind="stable").astype(np.int32)
    by_list = x[members]  # so that a list's rows lie together
    edges = np.searchsorted(nearest[members, 0], np.arange(lists + 1))
    askers = (np.argsort(nearest, axis=None, kind="stable") // nearest.shape[1]).astype(np.int32)
    asker_edges = np.concatenate([[0], np.cumsum(np.bincount(nearest.ravel(), minlength=lists))])
    heaps = empty_heaps(n, min(t, n), 1)

    def compare(rows: np.ndarray, columns: slice) -> None:
        products = x[rows] @ by_list[columns].T
        offer_rows(cosine(products, _ALL, _ALL), rows, members[columns], heaps)

    with (
        Progress(lists, "neighbours", "lists") as progress,
        threadpool_limits(1),
        ThreadPoolExecutor(n_threads()) as pool,
    ):
        for number in range(lists):
            rows = askers[asker_edges[number] : asker_edges[number + 1]]
            pieces = np.array_split(rows, max(n_threads(), -(-len(rows) // _BLOCK)))
            for start in range(edges[number], edges[number + 1], _BLOCK):
                columns = slice(start, min(start + _BLOCK, edges[number + 1]))
                # The pieces are of different rows, so of different heaps.
                list(pool.map(compare, pieces, itertools.repeat(columns)))
            progress.advance(1)
    return _graph_of(heaps, 1.0)


def _graph_of(heaps: Heaps, self_similarity: float) -> tuple[np.ndarray, np.ndarray]:
    sort_heaps(heaps)
    if heaps.first:
        heaps.names[:, 0], heaps.values[:, 0] = np.arange(len(heaps.names)), self_similarity
    np.maximum(heaps.values, 0, out=heaps.values)  # of places that nothing was offered for
    return heaps.names, heaps.values


def columns_of_graph(indices: np.ndarray, values: np.ndarray) -> Columns:
    """Turn each row's neighbours into each candidate's rows (the transposed sparse matrix).

    Parameters
    ----------
    indices : int32 (n, t)
        -1 where there is none.
    values : float32 (n, t)

    Returns
    -------
    Columns
    """
    n = len(indices)
    indptr = np.zeros(n + 1, np.int64)
    _count(indices, indptr[1:])
    np.cumsum(indptr, out=indptr)
    rows, column_values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    _transpose(indices, values, indptr[:-1].copy(), rows, column_values)
    return Columns(indptr, rows, column_values)


def _spans(n: int) -> list[tuple[slice, slice]]:
    """Return the rows and columns of the blocks on and above the diagonal."""
    spans = [slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]
    return [(rows, columns) for number, rows in enumerate(spans) for columns in spans[number:]]


def _similarities(x: np.ndarray, rows: slice, columns: slice, measure: Measure) -> np.ndarray:
    return np.ascontiguousarray(measure(x[rows] @ x[columns].T, rows, columns), np.float32)


@njit(cache=True, nogil=True)
def _transpose(indices: np.ndarray, values: np.ndarray, at: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    for i in range(indices.shape[0]):
        for e in range(indices.shape[1]):
            j = indices[i, e]
            if j >= 0:
                rows[at[j]] = i
                out[at[j]] = values[i, e]
                at[j] += 1


@njit(cache=True, nogil=True)
def _count(indices: np.ndarray, counts: np.ndarray) -> None:
    for i in range(indices.shape[0]):
        for e in range(indices.shape[1]):
            if indices[i, e] >= 0:
                counts[indices[i, e]] += 1
