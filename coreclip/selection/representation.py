"""How well chosen rows represent all rows: exact values, and the chosen rows most like each, in blocks of bounded memory.

A row's value is its largest cosine with a chosen one, a float64 inner product of float32 unit rows clipped to 0..1. Products of
blocks are taken in float32; what may exceed a row's value so far is computed anew in float64, so that the values are those of the
definition and depend on no block. Left out: other similarities.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from coreclip.progress import Progress
from coreclip.selection.cosines import exact_cosine, product_error
from coreclip.selection.features import Features
from coreclip.selection.functions import Columns
from coreclip.selection.nearest import empty_heaps, offer_rows
from coreclip.selection.neighbors import columns_of_graph
from coreclip.selection.threads import n_threads

if TYPE_CHECKING:
    from coreclip.selection.greedy import Similarity

T = TypeVar("T")

_ROWS, _PICKS = 1024, 512  # of a block of products: 2 MiB a thread


def represent(
    features: Features,
    modality: str,
    picks: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return how well picks represent rows.

    Parameters
    ----------
    features : Features
    modality : {"image", "text", "both"}
    picks : int64 (k,)
    rows : int64 (r,) or None
        The rows that are represented; None for all.
    weights : float64 (r,) or None
        Theirs; None for 1.

    Returns
    -------
    best : float64 (r,)
        max(0, the largest cosine with a pick).
    gains : float64 (k,)
        What each pick adds to ``weights @ best`` beside those before it.
    """
    rows = np.arange(features.n) if rows is None else rows
    weights = np.ones(len(rows)) if weights is None else weights
    chosen = features.take(picks).vectors(modality)
    best, gains = np.zeros(len(rows)), np.zeros(len(picks))

    def work(start: int, x: np.ndarray) -> np.ndarray:
        here = slice(start, start + len(x))
        return _gains_of_block(x, chosen, weights[here], best[here])

    for of_block in _over_blocks(features, modality, rows, work):
        gains += of_block
    return best, gains


def compare_parts(
    features: Features, modality: str, parts: Sequence[np.ndarray], t: int
) -> tuple[list[np.ndarray], "Similarity"]:
    """Return how well each of several lists of picks represents all pairs, and what all of them together are like.

    Parameters
    ----------
    features : Features
    modality : {"image", "text", "both"}
    parts : sequence of int64 (k_p,)
        Disjoint.
    t : int
        Candidates kept for each pair: those most like it, ties to the lowest index.

    Returns
    -------
    gains : list of float64 (k_p,)
        Of each list by itself, as :func:`represent` gives them.
    similarity : float32 (m, n) or Columns
        Of the m candidates in ascending order; an array where ``t`` is m or more.
    """
    n, candidates = features.n, np.sort(np.concatenate(parts))
    names = [np.searchsorted(candidates, part).astype(np.int32) for part in parts]
    chosen = [features.take(part).vectors(modality) for part in parts]
    gains = [np.zeros(len(part)) for part in parts]
    keeper = _KeepAll(n, len(candidates)) if t >= len(candidates) else _KeepSome(n, t)

    def of_part(start: int, x: np.ndarray, y: np.ndarray, own: np.ndarray) -> np.ndarray:
        def keep(products: np.ndarray, first: int) -> None:
            keeper.keep(start, products, own[first : first + products.shape[1]])

        return _gains_of_block(x, y, np.ones(len(x)), np.zeros(len(x)), keep)

    def work(start: int, x: np.ndarray) -> list[np.ndarray]:
        return [of_part(start, x, y, own) for y, own in zip(chosen, names, strict=True)]

    for of_block in _over_blocks(features, modality, np.arange(n), work):
        for total, more in zip(gains, of_block, strict=True):
            total += more
    return gains, keeper.similarity(len(candidates))


class _KeepAll:
    """All similarities of the candidates, float32 (m, n)."""

    def __init__(self, n: int, m: int) -> None:
        self.values = np.empty((m, n), np.float32)

    def keep(self, start: int, products: np.ndarray, names: np.ndarray) -> None:
        self.values[names, start : start + len(products)] = np.clip(products, 0.0, 1.0).T

    def similarity(self, m: int) -> np.ndarray:
        return self.values


class _KeepSome:
    """Those of the t candidates most like each row."""

    def __init__(self, n: int, t: int) -> None:
        self.heaps = empty_heaps(n, t)

    def keep(self, start: int, products: np.ndarray, names: np.ndarray) -> None:
        rows = np.arange(start, start + len(products), dtype=np.int32)
        offer_rows(np.clip(products, 0.0, 1.0), rows, names, self.heaps, False)

    def similarity(self, m: int) -> Columns:
        columns = columns_of_graph(self.heaps.names, self.heaps.values)
        return columns._replace(indptr=columns.indptr[: m + 1])


def _over_blocks(
    features: Features, modality: str, rows: np.ndarray, work: Callable[[int, np.ndarray], T]
) -> Iterator[T]:
    """Yield ``work(start, unit vectors)`` of each block of ``rows``, in order; a block a thread."""

    def of_block(start: int) -> T:
        return work(start, features.take(rows[start : start + _ROWS]).vectors(modality))

    starts = range(0, len(rows), _ROWS)
    # Each thread multiplies by itself: a library's own threads would spin beside ours between two products.
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(n_threads()) as pool,
        Progress(len(rows), "representing") as progress,
    ):
        for start, result in zip(starts, pool.map(of_block, starts), strict=True):
            yield result
            progress.advance(min(_ROWS, len(rows) - start))


def _gains_of_block(
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    best: np.ndarray,
    look: Callable[[np.ndarray, int], None] | None = None,
) -> np.ndarray:
    """Raise ``best`` of the rows x by the picks y in their order, and return what each adds; ``look`` sees the products."""
    slack = product_error(x.shape[1])
    gains = np.zeros(len(y))
    for first in range(0, len(y), _PICKS):
        some = y[first : first + _PICKS]
        products = x @ some.T
        _raise_best(products, slack, x, some, weights, best, gains[first : first + _PICKS])
        if look is not None:
            look(products, first)
    return gains


@njit(cache=True, nogil=True)
def _raise_best(
    products: np.ndarray,
    slack: float,
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    best: np.ndarray,
    gains: np.ndarray,
) -> None:
    for r in range(products.shape[0]):
        for c in range(products.shape[1]):
            if np.float64(products[r, c]) + slack > best[r]:
                value = exact_cosine(x[r], y[c])
                if value > best[r]:
                    gains[c] += weights[r] * (value - best[r])
                    best[r] = value
