"""In which order an epoch visits the pairs: pure functions of (seed, epoch), after grain's ``shuffle``.

Left out: sharding over ranks; a rank can take every r-th position of the same order.
"""

import numpy as np

from coreclip.randomness import permutation

ORDER_STREAM = 1
"""Random numbers of the epoch's order."""
CAPTION_STREAM = 2
"""Random numbers of the choice of a caption. Crops have their own from 16 on."""


def epoch_order(n: int, *, seed: int, epoch: int, train: bool) -> np.ndarray:
    """Return the positions that an epoch visits, in order.

    Parameters
    ----------
    n : int
        Pairs in an epoch.
    seed, epoch : int
    train : bool
        True shuffles; False keeps the order as it is.

    Returns
    -------
    int64 (n,)
        A permutation of 0..n-1.
    """
    return permutation(n, seed, epoch, ORDER_STREAM) if train else np.arange(n, dtype=np.int64)


def batch_slices(n: int, batch_size: int, *, start: int = 0, drop_last: bool = False) -> list[slice]:
    """Cut positions ``start`` .. n-1 into batches; a short last one is left out where ``drop_last``.

    Returns
    -------
    list of slice
    """
    stop = n - (n - start) % batch_size if drop_last else n
    return [slice(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]
