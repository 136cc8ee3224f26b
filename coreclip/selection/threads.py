"""One piece of work per core, for compiled code that releases the interpreter's lock."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def n_threads() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_threads(work: Callable[[int, int], None], n: int) -> None:
    """Run ``work(start, stop)`` over 0..n-1 in one piece per core; it must release the GIL."""
    n_pieces = max(1, min(n_threads(), n))
    edges = [n * part // n_pieces for part in range(n_pieces + 1)]
    with ThreadPoolExecutor(n_pieces) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))
