"""Random numbers as pure functions of (seed, epoch, index), after grain's shuffle and SplitMix64 (Steele et al. 2014).

Nothing here holds state, so that a resumed, re-sharded or re-threaded run draws the same numbers.
"""

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15


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
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
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
    key = np.array([seed % 2**64], dtype=np.uint64)
    for part in (epoch, stream):
        key = mix64(key) + np.uint64(_GOLDEN * (part + 1) % 2**64)
    return mix64(mix64(key) + np.uint64(_GOLDEN) * (np.asarray(index).astype(np.uint64) + np.uint64(1)))


def uniform(seed: int, epoch: int, index: np.ndarray, stream: int = 0) -> np.ndarray:
    """Return float64 (n,) in [0, 1): 53 bits of :func:`hash64`."""
    return (hash64(seed, epoch, index, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, seed: int, epoch: int = 0, stream: int = 0) -> np.ndarray:
    """Return a random permutation of 0..n-1 as int64 (n,), the same on every machine."""
    return np.argsort(hash64(seed, epoch, np.arange(n), stream), kind="stable").astype(np.int64)
