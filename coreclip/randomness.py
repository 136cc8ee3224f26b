"""Random numbers as pure functions of (seed, epoch, index), after grain's shuffle and SplitMix64 (Steele et al. 2014).

Nothing here holds state, so that a resumed, re-sharded or re-threaded run draws the same numbers.
"""

import numpy as np

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_GOLDEN_INVERSE, _FIRST_INVERSE, _SECOND_INVERSE = (pow(factor, -1, 2**64) for factor in (_GOLDEN, _FIRST, _SECOND))
_PIECE = 1 << 16  # what is computed at a time, so that it stays in a core's cache


def mix64(x: np.ndarray) -> np.ndarray:
    """Return SplitMix64's finaliser of each element.

    Parameters
    ----------
    x : uint64, any shape

    Returns
    -------
    uint64, the shape of ``x``
        A bijection of ``x`` whose bits look independent of it.
    """
    x = np.atleast_1d(np.asarray(x, dtype=np.uint64))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def hash64(seed: int, epoch: int, index: np.ndarray, stream: int = 0) -> np.ndarray:
    """Return 64 random bits for each index.

    Parameters
    ----------
    seed, epoch : int
        Non-negative.
    index : int64 (n,)
    stream : int
        Tells the uses of one (seed, epoch, index) apart: a crop's is another than a caption's.

    Returns
    -------
    uint64 (n,)
    """
    return _hash(_key(seed, epoch, stream), np.asarray(index))


def uniform(seed: int, epoch: int, index: np.ndarray, stream: int = 0) -> np.ndarray:
    """Return float64 (n,) in [0, 1): 53 bits of :func:`hash64`."""
    return (hash64(seed, epoch, index, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, seed: int, epoch: int = 0, stream: int = 0) -> np.ndarray:
    """Return the order of 0..n-1 by their :func:`hash64`, a random permutation, as int64 (n,), the same on every machine.

    The bits are sorted and each is turned back into the index that it is of: that is faster than to sort indices by
    them and takes no memory beside the result's.
    """
    key = _key(seed, epoch, stream)
    order = np.empty(n, np.uint64)
    for first in range(0, n, _PIECE):
        piece = order[first : first + _PIECE]
        piece[:] = _hash(key, np.arange(first, first + len(piece)))
    order.sort()
    for first in range(0, n, _PIECE):
        piece = order[first : first + _PIECE]
        piece[:] = (_unmix64(piece) - key) * np.uint64(_GOLDEN_INVERSE) - np.uint64(1)
    return order.view(np.int64)


def _key(seed: int, epoch: int, stream: int) -> np.ndarray:
    key = np.array([seed % 2**64], dtype=np.uint64)
    for part in (epoch, stream):
        key = mix64(key) + np.uint64(_GOLDEN * (part + 1) % 2**64)
    return mix64(key)


def _hash(key: np.ndarray, index: np.ndarray) -> np.ndarray:
    return mix64(key + np.uint64(_GOLDEN) * (index.astype(np.uint64) + np.uint64(1)))


def _unmix64(x: np.ndarray) -> np.ndarray:
    """Return what :func:`mix64` made the elements of."""
    x = (x ^ (x >> np.uint64(31)) ^ (x >> np.uint64(62))) * np.uint64(_SECOND_INVERSE)
    x = (x ^ (x >> np.uint64(27)) ^ (x >> np.uint64(54))) * np.uint64(_FIRST_INVERSE)
    return x ^ (x >> np.uint64(30)) ^ (x >> np.uint64(60))
