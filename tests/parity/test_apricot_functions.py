"""Our set functions are apricot's: the same definitions, and greedy finds the same on the same float64 data.

The data are random without ties, which apricot breaks otherwise.
"""

import apricot
import numpy as np
import pytest

from coreclip.selection import (
    Features,
    feature_based,
    graph_cut,
    max_coverage,
    mixture_of,
    saturated_coverage,
    sum_redundancy,
)
from coreclip.selection.functions import facility
from coreclip.selection.functions import graph_cut as cut_of
from coreclip.selection.submodular import _cosines, _split


def clustered(n, d, seed):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, d))
    return Features.from_arrays(centres[rng.integers(0, 12, n)] + 0.7 * rng.normal(size=(n, d)))


FEATURES = clustered(300, 16, 0)
S = _cosines(FEATURES, "image", "test")
X = _split(FEATURES, "image").astype(np.float64)


def agree(ours, selector, data, value):
    """Both reach the same value by their own and by our definition, with the same gains."""
    theirs = selector.fit(data)
    assert len(set(theirs.ranking.tolist())) == ours.k
    own, other = value(ours.indices), value(theirs.ranking)
    assert own == pytest.approx(ours.objective, rel=1e-9)
    assert own >= other - 1e-6 * abs(other)
    assert other >= own - 1e-6 * abs(own)
    assert theirs.gains.sum() == pytest.approx(other, rel=1e-9)
    np.testing.assert_allclose(ours.gains, theirs.gains, atol=1e-5)


@pytest.mark.parametrize("trade_off", [2.0, 3.5, 1.0])
def test_graph_cut(trade_off):
    def value(picks):
        return trade_off * S[picks].sum() - S[np.ix_(picks, picks)].sum()

    selector = apricot.GraphCutSelection(40, metric="precomputed", alpha=trade_off, optimizer="naive")
    agree(graph_cut(FEATURES, 40, trade_off=trade_off), selector, S, value)


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_saturated_coverage(alpha):
    def value(picks):
        return np.minimum(S[picks].sum(axis=0), alpha * S.sum(axis=0)).sum()

    selector = apricot.SaturatedCoverageSelection(20, metric="precomputed", alpha=alpha, optimizer="naive")
    agree(saturated_coverage(FEATURES, 20, alpha=alpha), selector, S, value)


def test_sum_redundancy():
    selector = apricot.SumRedundancySelection(40, metric="precomputed", optimizer="naive")
    agree(sum_redundancy(FEATURES, 40), selector, S, lambda picks: -S[np.ix_(picks, picks)].sum())


@pytest.mark.parametrize(
    ("phi", "theirs", "curve"),
    [("sqrt", "sqrt", np.sqrt), ("log1p", "log", np.log1p)],
)
def test_feature_based(phi, theirs, curve):
    selector = apricot.FeatureBasedSelection(40, theirs, optimizer="naive")
    agree(feature_based(FEATURES, 40, phi=phi), selector, X, lambda picks: curve(X[picks].sum(axis=0)).sum())


def test_max_coverage():
    ours = max_coverage(FEATURES, 40)
    threshold = ours.parameters["threshold"]
    selector = apricot.MaxCoverageSelection(40, threshold, optimizer="naive")
    agree(ours, selector, X, lambda picks: np.minimum(X[picks].sum(axis=0), threshold).sum())


def test_mixture():
    """apricot does not divide by f(V): its weights are ours so divided."""
    everything = np.arange(len(S))
    whole = [S.max(axis=0).sum(), 2 * S.sum() - S[np.ix_(everything, everything)].sum()]
    ours = mixture_of([(1.0, facility(S, np.ones(len(S)))), (0.5, cut_of(S, 2.0))], 40)
    parts = [
        apricot.FacilityLocationSelection(40, metric="precomputed"),
        apricot.GraphCutSelection(40, metric="precomputed", alpha=2),
    ]
    weights = np.array([1 / whole[0], 0.5 / whole[1]])  # a list breaks it under numpy 2
    theirs = apricot.MixtureSelection(40, parts, weights, metric="precomputed", optimizer="naive").fit(S)
    np.testing.assert_allclose(ours.gains, theirs.gains, atol=1e-9)
    assert ours.objective == pytest.approx(theirs.gains.sum(), rel=1e-6)
