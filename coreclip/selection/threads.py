"""One piece of work per core, for compiled code that releases the interpreter's lock."""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def n_threads() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_threads(work: Callable[[int, int], None], n: int) -> None:
    """Run ``work(start, stop)`` over 0..n-1 in one piece per core; it must release the GIL."""
    with pieces(n, n) as run:
        run(work)


@contextlib.contextmanager
def pieces(n: int, most: int) -> Iterator[Callable[[Callable[[int, int], T]], list[T]]]:
    """Give a function that runs ``work(start, stop)`` over 0..n-1, in one piece per core, by threads that are started once.

    ``work`` must release the GIL; the results come in the order of the pieces, of which there are no more than ``most``.
    """
    n_pieces = max(1, min(n_threads(), most))
    edges = [n * part // n_pieces for part in range(n_pieces + 1)]
    if n_pieces == 1:
        yield lambda work: [work(0, n)]
        return
    with ThreadPoolExecutor(n_pieces) as pool:
        yield lambda work: list(pool.map(work, edges[:-1], edges[1:]))
