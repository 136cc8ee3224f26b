"""Our facility location finds what apricot's finds on the same similarities.

Picks may differ at exact ties, which apricot breaks to the higher index, so values are compared.
"""

import numpy as np

from coreclip.selection import apricot_subset, facility_location


def clustered(n, d, seed):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, d))
    return (centres[rng.integers(0, 12, n)] + 0.7 * rng.normal(size=(n, d))).astype(np.float32)


def test_objective_and_gains_agree():
    x = clustered(400, 16, 0)
    ours, theirs = facility_location(x, 60), apricot_subset("FacilityLocation", x, 60)
    assert ours.objective >= (1 - 1e-6) * theirs.objective
    assert theirs.objective >= (1 - 1e-6) * ours.objective
    np.testing.assert_allclose(ours.gains, theirs.gains, atol=1e-5)
    assert theirs.objective <= ours.upper_bound
