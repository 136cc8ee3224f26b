"""A few positions that stand for many: spread evenly from the first to the last, with no chance in it."""

import numpy as np


def spread_evenly(n: int, most: int) -> np.ndarray:
    """Return positions among 0..n-1, int64 (m,), ascending and distinct: all where ``n <= most``, else with the first and, of two or more, the last."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, most)).astype(np.int64))
