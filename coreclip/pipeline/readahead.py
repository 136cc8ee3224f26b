"""Asks the system for stored rows before they are needed, in the order in which they lie on the disk.

A page fault brings a page, or the whole read-ahead of the disk around it; several threads that wait for their own
faults leave a disk idle. So a loader says a few batches before which rows it will want. The requests only ever fill the
system's page cache: a row that was not asked for, or whose pages were given up again, is still read, only later.
Left out: giving pages up after their use, which the system does by itself.
"""

import ctypes
import mmap
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from coreclip.pipeline.dataset import ShardSet

_REQUEST = 1 << 17
"""Bytes of a request; Linux cuts larger ones to the disk's read-ahead or largest transfer, of which this is the default."""
_GAP_PAGES = 4
"""Pages between two rows that are read with them: that takes less time than another request."""
_SMALL = 8192
"""Mean bytes of an image below which a request for it alone would take the disk as long as one for 16 of them."""
_AHEAD_BYTES = 1 << 26
"""How far behind the batches that are being decoded is read: a disk's latency times its rate is 1 MB, and disks stall."""


def page_runs(first: np.ndarray, end: np.ndarray, page: int = mmap.PAGESIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs of pages that cover ranges of memory, neighbours put together.

    Parameters
    ----------
    first, end : uint64 (b,)
        Addresses; ``end`` is the first one behind a range.

    Returns
    -------
    first, end : int64 (runs,)
        Addresses, multiples of ``page``, ascending and apart.
    """
    order = np.argsort(first)
    start = first[order].astype(np.int64) // page
    stop = np.maximum.accumulate(-(-end[order].astype(np.int64) // page))
    fresh = np.append(True, start[1:] > stop[:-1] + _GAP_PAGES)[: len(start)]
    last = np.append(fresh[1:], True)[: len(start)]
    return start[fresh] * page, stop[last] * page


def fresh_windows(first: np.ndarray, end: np.ndarray, known: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows of memory that touch ranges as in :func:`page_runs` and are not ``known``, and add them to it.

    Returns
    -------
    first, end : int64 (windows,)
        Addresses, multiples of the window's 128 KiB.
    """
    touched = np.unique(np.append(first // _REQUEST, (end - np.uint64(1)) // _REQUEST)).tolist()
    fresh = np.array([window for window in touched if window not in known], np.int64)
    known.update(fresh.tolist())
    return fresh * _REQUEST, (fresh + 1) * _REQUEST


def request(first: np.ndarray, end: np.ndarray) -> None:
    """Ask the system to read mapped memory from ``first`` to ``end`` (int64 (runs,), addresses of pages).

    Nothing is waited for but room in the disk's queue. Addresses that are not mapped (any more) are passed over.
    """
    for start, stop in zip(first.tolist(), end.tolist(), strict=True):
        for part in range(start, stop, _REQUEST):
            _madvise(part, min(_REQUEST, stop - part), mmap.MADV_WILLNEED)


def expect_random_reads(mapping: mmap.mmap) -> None:
    """Let a page fault bring no other pages, which are read only because they are asked for."""
    mapping.madvise(mmap.MADV_RANDOM)


class ReadAhead:
    """The reading of an epoch, ahead of its decoding, on a thread of its own until :meth:`close`.

    Parameters
    ----------
    shards : ShardSet
    batches : iterable of int64 (b,)
        The pairs of each batch, in the epoch's order; each is drawn when it is to be read.
    """

    def __init__(self, shards: "ShardSet", batches: Iterable[np.ndarray]) -> None:
        self._shards, self._batches = shards, iter(batches)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="coreclip-read")
        self._asked: deque[int] = deque()  # bytes of the batches that are asked for and not yet decoded
        self._ahead = 0
        # Small images are asked for with all that lies around them, once an epoch.
        is_small = int(shards.image_size.sum()) < _SMALL * shards.n
        self._windows: set[int] | None = set() if is_small else None

    def advance(self) -> None:
        """Ask for the next batch, which is going to be decoded now, and for those behind it; returns at once."""
        while not self._asked or self._ahead - self._asked[0] < _AHEAD_BYTES:
            batch = next(self._batches, None)
            if batch is None:
                break
            if len(batch):
                self._thread.submit(self._shards.prefetch, batch, self._windows)
            n_bytes = int(self._shards.image_size[batch].sum()) if self._windows is None else _REQUEST * len(batch)
            self._asked.append(n_bytes)
            self._ahead += self._asked[-1]
        if self._asked:
            self._ahead -= self._asked.popleft()

    def close(self) -> None:
        """Ask for no more and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _find_madvise() -> "ctypes._NamedFuncPointer":
    # Unlike mmap.madvise it lets other threads run meanwhile, and needs an address alone.
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


_madvise = _find_madvise()
