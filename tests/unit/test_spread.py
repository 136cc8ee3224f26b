"""Positions that stand for many."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coreclip.spread import spread_evenly


@given(st.integers(0, 5000), st.integers(2, 300))
def test_positions_are_distinct_even_and_reach_both_ends(n, most):
    at = spread_evenly(n, most)
    assert len(at) == min(n, most)
    if n:
        assert (at[0], at[-1]) == (0, n - 1)
        gaps = np.diff(at)
        assert gaps.size == 0 or gaps.min() >= 1
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
