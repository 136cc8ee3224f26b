"""Similarities between all pairs of rows, dense or as an exact top-t graph, by blocked matrix products.

Only blocks on and above the diagonal are multiplied: each serves its rows and, transposed, its columns. That halves the work,
makes s_ij = s_ji to the last bit, and gives dense and sparse the same values. Memory is one block plus the result.
Left out: approximate search; the cost is n^2 d / 2 multiplications.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numba import njit

from coreclip.progress import Progress
from coreclip.selection.functions import Columns
from coreclip.selection.threads import in_threads

_BLOCK = 2048  # rows; a block of float32 is 16 MiB

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
    for rows, columns, block in _blocks(x, measure):
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
    others = min(t - include_self, n - 1)
    values = np.full((n, others), -1.0, np.float32)
    indices = np.full((n, others), -1, np.int32)
    with Progress(n * (n + 1) // 2, "neighbours", "comparisons") as progress:
        for rows, columns, block in _blocks(x, measure):
            if rows == columns:
                np.fill_diagonal(block, -1.0)
            _offer_all(block, columns.start, values[rows], indices[rows])
            if rows != columns:
                _offer_all(np.ascontiguousarray(block.T), rows.start, values[columns], indices[columns])
            progress.advance(block.size if rows != columns else len(block) * (len(block) + 1) // 2)
    order = np.lexsort((indices, -values), axis=1)
    values, indices = np.take_along_axis(values, order, 1), np.take_along_axis(indices, order, 1)
    if include_self:
        indices = np.column_stack([np.arange(n, dtype=np.int32), indices])
        values = np.column_stack([np.full(n, self_similarity, np.float32), values])
    return indices, values


def columns_of_graph(indices: np.ndarray, values: np.ndarray) -> Columns:
    """Turn each row's neighbours into each candidate's rows (the transposed sparse matrix).

    Parameters
    ----------
    indices : int32 (n, t)
    values : float32 (n, t)

    Returns
    -------
    Columns
    """
    n = len(indices)
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(indices.ravel(), minlength=n), out=indptr[1:])
    rows, column_values = np.empty(indices.size, np.int32), np.empty(indices.size, np.float32)
    _transpose(indices, values, indptr[:-1].copy(), rows, column_values)
    return Columns(indptr, rows, column_values)


def _blocks(x: np.ndarray, measure: Measure) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield (rows, columns, float32 similarities) of the blocks on and above the diagonal, columns ascending."""
    edges = [*range(0, len(x), _BLOCK), len(x)]
    spans = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    for number, rows in enumerate(spans):
        for columns in spans[number:]:
            block = measure(x[rows] @ x[columns].T, rows, columns)
            yield rows, columns, np.ascontiguousarray(block, dtype=np.float32)


def _offer_all(block: np.ndarray, first_column: int, values: np.ndarray, indices: np.ndarray) -> None:
    if values.shape[1]:
        in_threads(
            lambda start, stop: _offer(block[start:stop], first_column, values[start:stop], indices[start:stop]),
            len(block),
        )


@njit(cache=True, nogil=True)
def _offer(block: np.ndarray, first_column: int, values: np.ndarray, indices: np.ndarray) -> None:
    """Keep each row's best so far in a heap whose top is the worst: the least value, the highest index among equals.

    A row is offered its columns in ascending order, so a newcomer with the top's value never displaces it.
    """
    t = values.shape[1]
    for r in range(block.shape[0]):
        heap, names = values[r], indices[r]
        for c in range(block.shape[1]):
            value = block[r, c]
            if value <= heap[0]:
                continue
            name = first_column + c
            at = 0
            while 2 * at + 1 < t:
                child = 2 * at + 1
                if child + 1 < t and (
                    heap[child + 1] < heap[child]
                    or (heap[child + 1] == heap[child] and names[child + 1] > names[child])
                ):
                    child += 1
                if value < heap[child] or (value == heap[child] and name > names[child]):
                    break
                heap[at], names[at] = heap[child], names[child]
                at = child
            heap[at], names[at] = value, name


@njit(cache=True, nogil=True)
def _transpose(indices: np.ndarray, values: np.ndarray, at: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    for i in range(indices.shape[0]):
        for e in range(indices.shape[1]):
            j = indices[i, e]
            rows[at[j]] = i
            out[at[j]] = values[i, e]
            at[j] += 1
