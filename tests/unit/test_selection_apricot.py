"""apricot's selectors by name, on our features, and what is refused."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import apricot_subset
from coreclip.selection.apricot import _check_picks


def rows(n=40, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("name", ["MaxCoverage", "SumRedundancySelection"])
def test_selectors_choose_k_different_pairs(name):
    subset = apricot_subset(name, rows(), 8)
    assert len(set(subset.indices.tolist())) == subset.k == 8
    assert subset.method == f"apricot:{name.removesuffix('Selection')}Selection"
    assert subset.objective == pytest.approx(subset.gains.sum())
    assert subset.weights.tolist() == [1] * 8


def test_parameters_reach_the_selector():
    one, four = (apricot_subset("GraphCut", rows(), 8, alpha=alpha) for alpha in (1.0, 4.0))
    assert four.objective > one.objective
    assert four.parameters["alpha"] == 4.0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Facility", {}, "no selector 'Facility'; known: FacilityLocationSelection, FeatureBasedSelection"),
        ("GraphCut", {"beta": 1}, "has no parameter 'beta'; known: alpha, initial_subset"),
        ("GraphCut", {"metric": "cosine"}, "has no parameter 'metric'"),
        ("GraphCut", {"optimizer": "magic"}, "refused .ValueError: Optimizer must be"),
        ("GraphCut", {"optimizer": "approximate-lazy"}, "never ends with optimizer='approximate-lazy'"),
        ("GraphCut", {"k": 41}, "k = 41 of 40 pairs"),
    ],
)
def test_wrong_arguments_are_refused(name, arguments, message):
    with pytest.raises(CoreclipError, match=message):
        apricot_subset(name, rows(), **({"k": 4} | arguments))


def test_more_pairs_than_its_matrix_can_hold_are_refused():
    with pytest.raises(CoreclipError, match=r"would hold 20001\^2 similarities in float64, 2 GiB; at most 20000 pairs"):
        apricot_subset("GraphCut", np.ones((20_001, 1), np.float32), 4)


@pytest.mark.parametrize("picks", [[1, 2, 1], [1, 2]])
def test_repeated_or_missing_picks_are_refused(picks):
    with pytest.raises(CoreclipError, match=f"returned {len(picks)} picks, 2 of them different, instead of 3"):
        _check_picks("SumRedundancySelection", np.array(picks), 3)
