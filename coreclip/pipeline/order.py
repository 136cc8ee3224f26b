"""In which order an epoch visits the pairs, and which of them a rank takes: pure functions of (seed, epoch).

After grain's ``shuffle`` and FFCV's ``QuasiRandom`` order. A rank's share is cut from the common order, so that it can
be cut anew for another number of ranks in the middle of an epoch.
"""

import numpy as np

from coreclip.pipeline import streams
from coreclip.randomness import hash64, mix64, permutation, uniform

ORDERS = ("random", "quasi_random", "sequential")
BLOCK_BYTES = 1 << 21
"""Bytes of a shard that a quasi-random order reads as one: the smallest page of a `.beton` file."""


def epoch_order(n: int, *, seed: int, epoch: int, order: str) -> np.ndarray:
    """Return the positions that an epoch visits, in order.

    Parameters
    ----------
    n : int
        Pairs in an epoch.
    seed, epoch : int
    order : {"random", "sequential"}

    Returns
    -------
    int64 (n,)
        A permutation of 0..n-1.
    """
    return permutation(n, seed, epoch, streams.ORDER) if order == "random" else np.arange(n, dtype=np.int64)


def quasi_random_order(blocks: np.ndarray, *, seed: int, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle the blocks, then the pairs of ``window`` blocks at a time.

    Parameters
    ----------
    blocks : int32 (n,)
        The block of storage in which each position's pair lies; see :func:`storage_blocks`.
    seed, epoch : int
    window : int
        Blocks whose pairs are mixed.

    Returns
    -------
    order : int64 (n,)
        A permutation of 0..n-1.
    starts : int64 (windows,)
        Where in ``order`` each window begins.
    """
    present = np.flatnonzero(np.bincount(blocks))
    rank = np.empty(present[-1] + 1, np.int64)
    rank[present[np.argsort(hash64(seed, epoch, present, streams.BLOCK_ORDER), kind="stable")]] = np.arange(
        len(present)
    )
    shuffled = permutation(len(blocks), seed, epoch, streams.ORDER)
    windows = rank[blocks[shuffled]] // window
    by_window = np.argsort(windows.astype(np.uint16) if windows.max() < 1 << 16 else windows, kind="stable")
    starts = np.flatnonzero(np.diff(windows[by_window], prepend=-1))
    return shuffled[by_window], starts


def storage_blocks(shard: np.ndarray, address: np.ndarray) -> np.ndarray:
    """Return the block of :data:`BLOCK_BYTES` in which each image begins, int32 (n,).

    Parameters
    ----------
    shard : int32 (n,)
        Number of each image's shard, in any order.
    address : uint64 (n,)
        Of each image; only differences within a shard count.
    """
    first = np.full(int(shard.max()) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(first, shard, address)
    within = ((address - first[shard]) // np.uint64(BLOCK_BYTES)).astype(np.int32)
    blocks = np.zeros(len(first), np.int32)
    np.maximum.at(blocks, shard, within + 1)
    return within + (np.cumsum(blocks, dtype=np.int32) - blocks)[shard]


def occurrence_keys(indices: np.ndarray) -> np.ndarray:
    """Return the key of each position's random draws, int64 (k,).

    A pair's first occurrence in ``indices`` (int64 (k,)) has its index; the following ones have numbers of 62 bits and
    above, functions of (index, occurrence), so that no two draw the same.
    """
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    is_first = np.diff(ordered, prepend=-1) != 0
    if is_first.all():
        return indices
    positions = np.arange(len(indices))
    occurrence = np.empty(len(indices), np.int64)
    occurrence[order] = positions - np.maximum.accumulate(np.where(is_first, positions, 0))
    again = occurrence > 0
    draws = mix64(hash64(0, 0, indices[again], streams.OCCURRENCE) + mix64(occurrence[again]))
    keys = indices.copy()
    keys[again] = (draws >> np.uint64(2)).astype(np.int64) | (1 << 62)
    return keys


def drawn_by_weight(weights: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Draw as many positions as there are weights, each with an expected number in proportion to its weight.

    Parameters
    ----------
    weights : float64 (k,)
        At least 0, one of them above.
    seed, epoch : int

    Returns
    -------
    int64 (k,)
        Ascending, with repeats. Position i comes floor(e_i) times and at most once more, where e_i = k w_i / sum(w); equal
        weights give each position once.

    Notes
    -----
    Residual systematic resampling (Liu and Chen 1998; Carpenter et al. 1999): whole parts are certain, and the remainders are laid
    end to end in a random order and met by points at distance 1 with a random offset. Of all ways to draw with these expected
    numbers it has the least variance of each number.
    """
    k = len(weights)
    if weights.min() == weights.max():
        return np.arange(k)  # what rounding would miss now and then
    expected = weights / weights.max()
    expected = k * expected / expected.sum()
    whole = np.floor(expected)
    n_drawn = k - int(whole.sum())
    order = permutation(k, seed, epoch, streams.DRAW_ORDER)
    ends = np.cumsum((expected - whole)[order])
    ends *= n_drawn / max(ends[-1], 1e-300)
    points = uniform(seed, epoch, np.zeros(1, np.int64), streams.DRAW_OFFSET)[0] + np.arange(n_drawn)
    counts = whole.astype(np.int64)
    np.add.at(counts, order[np.minimum(np.searchsorted(ends, points, "right"), k - 1)], 1)
    return np.repeat(np.arange(k), counts)


def batch_slices(n: int, batch_size: int, *, start: int = 0, drop_last: bool = False) -> list[slice]:
    """Cut positions ``start`` .. n-1 into batches; a short last one is left out where ``drop_last``.

    Returns
    -------
    list of slice
    """
    stop = n - (n - start) % batch_size if drop_last else n
    return [slice(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]


def rank_share(batch: slice, rank: int, world_size: int) -> tuple[slice, int]:
    """Return one rank's part of a batch of all ranks.

    Returns
    -------
    slice
        Positions; the ranks' are one behind the other, and their lengths differ by 1 at most.
    int
        Rows of padding that make them equally long.
    """
    n = batch.stop - batch.start
    share = slice(batch.start + n * rank // world_size, batch.start + n * (rank + 1) // world_size)
    return share, -(-n // world_size) - (share.stop - share.start)
