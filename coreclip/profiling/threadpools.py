"""The computing threads of this process: how many there are, and fewer for a while."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

THREAD_LIMIT = "thread-limit"
"""Name of the trial in which there are no more computing threads than cores."""


def thread_trial(cores: float) -> dict[str, Callable[[], AbstractContextManager[object]]]:
    """Return the trial with no more computing threads than cores, where there are more; else none."""
    most = max(1, int(cores))
    if computing_threads() <= most:
        return {}
    return {THREAD_LIMIT: lambda: limited_threads(most)}


def computing_threads() -> int:
    """Return how many threads torch, or a BLAS library that is loaded, computes on; 1 where there is none."""
    counts = [1]
    if "torch" in sys.modules:
        import torch

        counts.append(torch.get_num_threads())
    with contextlib.suppress(ImportError):
        from threadpoolctl import threadpool_info

        counts += [pool["num_threads"] for pool in threadpool_info()]
    return max(counts)


@contextlib.contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Let torch and BLAS libraries compute on at most ``threads`` threads inside."""
    with contextlib.ExitStack() as stack:
        if "torch" in sys.modules:
            import torch

            before = torch.get_num_threads()  # first: the limit below changes what torch says
            stack.callback(torch.set_num_threads, before)
        with contextlib.suppress(ImportError):
            from threadpoolctl import threadpool_info, threadpool_limits

            fewer = {pool["prefix"]: min(pool["num_threads"], threads) for pool in threadpool_info()}
            stack.enter_context(threadpool_limits(limits=fewer))
        if "torch" in sys.modules:
            torch.set_num_threads(min(before, threads))
        yield
