"""Exact retrieval ranks of any number of images and texts in bounded memory, and the recalls that they give.

Recall@k as in CLIP_benchmark and big_vision's ``retrieval.py``, with one difference that small and class-labelled data need: what is
equal is ranked as one, with its multiplicity, so a hit is any pair that says (or shows) the same as the query's own; no model can tell
equal captions apart. A score is the exact inner product of two vectors whose elements are rounded to a grid of 25 bits: float64 adds
such products up without an error, in any order. So equal vectors tie exactly, and ranks depend on neither blocks, threads nor machine.

torchmetrics' ``RetrievalHitRate`` takes one score, one target and one query number for every (query, item) at once, 85 bytes or so
each: a terabyte and more for 100,000 images and 500,000 texts. It can't be used here; a test holds these ranks against it.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numba import njit
from torch import Tensor

from coreclip.errors import CoreclipError
from coreclip.progress import Progress
from coreclip.selection.threads import pieces

RECALL_AT = (1, 5, 10)
_GRID_BITS = 25  # of an element below the length of the longest vector: twice that is within float64's 53
UNIT_GRID = 2.0 ** (1 - _GRID_BITS)  # for vectors of unit norm, which rounding may have made a little longer
_WIDE_BYTES = 1 << 26  # of items that are kept as float64 at a time
_ROWS, _COLUMNS = 1024, 2048  # of a block of scores, 16 MiB

Rows = np.ndarray | Tensor


def text_groups(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Number the different texts, case and runs of spaces aside.

    Returns
    -------
    groups : int64 (len(texts),)
        Numbered by first appearance.
    first : int64 (groups,)
        Where each group appears first.
    """
    return _groups(" ".join(text.lower().split()) for text in texts)


def image_groups(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the different images by the hashes of their stored bytes, object (n,); returns what :func:`text_groups` does."""
    return _groups(hashes.tolist())


def _groups(keys: Iterator[str] | list[str]) -> tuple[np.ndarray, np.ndarray]:
    number: dict[str, int] = {}
    groups = np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)
    return groups, np.unique(groups, return_index=True)[1]


def retrieval_recalls(
    images: Rows, texts: Rows, image_groups: np.ndarray, text_groups: np.ndarray, offsets: np.ndarray
) -> dict[str, float]:
    """Return recalls both ways, and what a random order reaches.

    Parameters
    ----------
    images : float (image groups, d)
        The features of each different image.
    texts : float (text groups, d)
        The features of each different text.
    image_groups : int64 (n,)
        Which image each pair shows.
    text_groups : int64 (captions,)
        Which text each caption is.
    offsets : int64 (n + 1,)
        Captions of pair i are ``offsets[i]:offsets[i + 1]``.

    Returns
    -------
    dict of str to float
        ``image_to_text_recall_at_1``, ``..._chance_at_1`` (5, 10), and for ``text_to_image``: fractions of the images and of the
        captions, equal ones counted as often as they are there.
    """
    image_counts, text_counts = (
        np.bincount(groups, minlength=len(rows)) for groups, rows in ((image_groups, images), (text_groups, texts))
    )
    owners = np.repeat(image_groups, np.diff(offsets))
    right = np.unique(np.stack([owners, text_groups]), axis=1)  # int64 (2, entries)
    ranks = ranks_both_ways(images, texts, right, image_counts, text_counts)
    result: dict[str, float] = {}
    for way, own, queries, items in (("image_to_text", 0, image_counts, text_counts), ("text_to_image", 1, text_counts, image_counts)):  # fmt: skip
        n_right = np.bincount(right[own], weights=items[right[1 - own]], minlength=len(queries))
        for k in RECALL_AT:
            result[f"{way}_recall_at_{k}"] = recall_at(ranks[own], k, queries)
            result[f"{way}_chance_at_{k}"] = float(np.average(chance_at(k, n_right, int(items.sum())), weights=queries))
    return result


def best_ranks(queries: Rows, items: Rows, right: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Return for each query how many wrong items come before its first right one.

    Parameters
    ----------
    queries : float16, float32 or float64 (q, d)
        May be mapped from a file, as ``items``.
    items : as queries (m, d)
    right : int64 (2, entries)
        Pairs (query, item) that belong together, in any order.
    counts : int64 (m,), optional
        How many equal items each one stands for; None: one.

    Returns
    -------
    int64 (q,)
        0 for a hit at once; for a query without a right item, all items. Of equal scores the item of the lower number comes first, so
        that a model that has collapsed is at chance, not at 1.

    Raises
    ------
    CoreclipError
        For features that are NaN or infinite.
    """
    return ranks_both_ways(queries, items, right, None, counts)[0]


def ranks_both_ways(
    queries: Rows,
    items: Rows,
    right: np.ndarray,
    query_counts: np.ndarray | None = None,
    item_counts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`best_ranks` of the queries among the items, int64 (q,), and of the items among the queries, int64 (m,).

    Each score is computed once, for both. Beside the features there are 64 MiB of items as float64, a block of scores of 16 MiB, and
    some numbers a row.

    Notes
    -----
    No right item comes before the first right one, so it is enough to count all that come before it: a first pass over ``right``
    finds each query's best right item, and the second counts what scores more, or as much and has a lower number.
    """
    queries, items = _as_array(queries), _as_array(items)
    units = _grid(queries, "the queries"), _grid(items, "the items")
    scores = _scores_of(queries, items, right, units)
    rows = _Side(len(queries), len(items), right[0], right[1], scores, query_counts)
    columns = _Side(len(items), len(queries), right[1], right[0], scores, item_counts)
    wide = max(_COLUMNS, _WIDE_BYTES // (8 * items.shape[1]))
    buffer = torch.empty(_ROWS * _COLUMNS, dtype=torch.float64)
    with pieces(_ROWS, _ROWS) as run, Progress(len(queries) * len(items), "ranking", "scores") as progress:
        for start in range(0, len(items), wide):
            some = on_grid(items[start : start + wide], units[1])
            for i in range(0, len(queries), _ROWS):
                left = on_grid(queries[i : i + _ROWS], units[0])
                for j in range(0, len(some), _COLUMNS):
                    right_part = some[j : j + _COLUMNS]
                    block = buffer[: len(left) * len(right_part)].view(len(left), len(right_part))
                    torch.mm(left, right_part.T, out=block)
                    _count_block(run, block.numpy(), rows, columns, i, start + j)
                    progress.advance(block.numel())
    return rows.before, columns.before


class _Side:
    """What is counted of one side: ``before`` int64 (n,), how much of the other comes before ``best`` float64 (n,) at ``place``."""

    def __init__(
        self, n: int, n_other: int, own: np.ndarray, other: np.ndarray, scores: np.ndarray, counts: np.ndarray | None
    ) -> None:
        self.counts = np.ones(n, np.int64) if counts is None else counts.astype(np.int64)
        self.before = np.zeros(n, np.int64)
        self.best, self.place = np.full(n, -np.inf), np.full(n, n_other, np.int64)
        np.maximum.at(self.best, own, scores)
        is_best = scores == self.best[own]
        np.minimum.at(self.place, own[is_best], other[is_best])


def _as_array(rows: Rows) -> np.ndarray:
    return rows.cpu().numpy() if isinstance(rows, Tensor) else rows


def _grid(rows: np.ndarray, name: str) -> float:
    """Return the power of two that the elements are rounded to multiples of."""
    longest = 0.0
    for start in range(0, len(rows), _ROWS):
        length = float(np.linalg.norm(np.asarray(rows[start : start + _ROWS], np.float64), axis=1).max())
        if not math.isfinite(length):  # a comparison with NaN is false: such a model would come out as perfect
            raise CoreclipError(
                f"features of {name} are NaN or infinite; ranks need numbers; look at the run's loss, or embed again"
            )
        longest = max(longest, length)
    return 2.0 ** (math.frexp(longest)[1] - _GRID_BITS)


def on_grid(rows: np.ndarray, unit: float = UNIT_GRID) -> Tensor:
    """Return rows (n, d) as float64, rounded to multiples of a power of two, so that their products add up exactly."""
    return torch.from_numpy(np.asarray(rows, np.float64) / unit).round_().mul_(unit)


def _scores_of(queries: np.ndarray, items: np.ndarray, pairs: np.ndarray, units: tuple[float, float]) -> np.ndarray:
    """Return the score of each pair, float64 (entries,)."""
    scores = np.empty(pairs.shape[1])
    for start in range(0, len(scores), _ROWS):
        part = slice(start, start + _ROWS)
        left, right = on_grid(queries[pairs[0, part]], units[0]), on_grid(items[pairs[1, part]], units[1])
        scores[part] = (left * right).sum(1).numpy()
    return scores


def _count_block(run, block: np.ndarray, rows: _Side, columns: _Side, i: int, j: int) -> None:  # type: ignore[no-untyped-def]
    """Count a block of scores whose first row and column are ``i`` and ``j``, a part of its rows on each core."""
    down, across = slice(i, i + block.shape[0]), slice(j, j + block.shape[1])
    own = (rows.best[down], rows.place[down], rows.counts[down], rows.before[down])
    others = (columns.best[across], columns.place[across], columns.counts[across])
    found = run(lambda start, stop: _count(block, start, min(stop, len(block)), i, j, *own, *others))
    columns.before[across] += sum(found)


@njit(cache=True, nogil=True)
def _count(
    scores: np.ndarray,
    start: int,
    stop: int,
    first_row: int,
    first_column: int,
    row_best: np.ndarray,
    row_place: np.ndarray,
    row_counts: np.ndarray,
    row_before: np.ndarray,
    column_best: np.ndarray,
    column_place: np.ndarray,
    column_counts: np.ndarray,
) -> np.ndarray:
    """Add to ``row_before`` of the rows ``start`` to ``stop``; return what these rows add to each column's, int64 (columns,)."""
    n = scores.shape[1]
    column_before = np.zeros(n, np.int64)
    for i in range(start, stop):
        best, place, count, line = row_best[i], row_place[i] - first_column, row_counts[i], scores[i]
        before = 0
        for j in range(n):
            score = line[j]
            ahead = (score > best) | ((score == best) & (j < place))
            before += column_counts[j] * ahead
            ahead = (score > column_best[j]) | ((score == column_best[j]) & (first_row + i < column_place[j]))
            column_before[j] += count * ahead
        row_before[i] += before
    return column_before


def recall_at(ranks: np.ndarray, k: int, weights: np.ndarray | None = None) -> float:
    """Return the (weighted) fraction of queries with a right item among the first ``k``.

    Parameters
    ----------
    ranks : int64 (q,)
        Wrong items before the first right one.
    k : int
    weights : number (q,), optional
    """
    return float(np.average(ranks < k, weights=weights))


def chance_at(k: int, right: np.ndarray, pool: int) -> np.ndarray:
    """Return the probability, float64 (q,), that one of ``right`` (q,) of ``pool`` items is among the first ``k`` of a random order."""
    miss = np.ones(len(right))
    for drawn in range(min(k, pool)):
        miss *= np.maximum(pool - right - drawn, 0) / (pool - drawn)
    return 1 - miss
