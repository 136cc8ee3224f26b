"""Bounds of gains hold, and what they rule out or in changes no choice, on random problems with ties and duplicates."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.errors import CoreclipError
from coreclip.selection import gain_bounds, prune_by_bounds
from coreclip.selection.functions import Columns, facility, feature_based, graph_cut
from coreclip.selection.greedy import add_all, candidate_gains, maximise_function

SETTINGS = settings(deadline=None, max_examples=40)
KINDS = ("cut", "dense", "sparse")


def sparse(similarity):
    candidates, rows = np.nonzero(similarity)
    indptr = np.searchsorted(candidates, np.arange(len(similarity) + 1))
    return Columns(indptr.astype(np.int64), rows.astype(np.int32), similarity[candidates, rows])


def symmetric(rng, n):
    """Either coarse numbers, of which many are equal, or cosines, with duplicates."""
    if rng.random() < 0.5:
        s = rng.integers(0, rng.choice([2, 5, 50]), (n, n)) * (rng.random(n) < 0.7)[:, None]
        return (s + s.T).astype(np.float64)
    x = rng.normal(size=(n, 3))
    x[rng.random(n) < 0.3] = x[0]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    s = np.maximum(x @ x.T, 0)
    return (s + s.T) / 2


@st.composite
def problems(draw, kinds=KINDS, largest=25):
    """A function and k; weights of the rows differ by orders of magnitude, so that there is something to prune."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, kind = draw(st.integers(2, largest)), draw(st.sampled_from(kinds))
    k = draw(st.integers(1, n))
    if kind == "cut":
        return graph_cut(symmetric(rng, n), float(rng.choice([0, 1, 2, 3, 10]))), k
    rows = int(rng.integers(1, largest))
    s = symmetric(rng, n) if rows % 2 else rng.integers(0, 4, (n, rows)).astype(np.float32)
    weights = rng.integers(0, 3, s.shape[1]) * 10.0 ** rng.integers(0, 4, s.shape[1])
    return facility(sparse(s) if kind == "sparse" else s, weights), k


def value_of(function, picks):
    state = function.fresh()
    add_all(state, np.asarray(picks, np.int64))
    return state.value()


@given(problems(), st.sampled_from(["lazy", "naive"]))
@SETTINGS
def test_greedy_picks_the_same_of_what_is_left(problem, optimizer):
    function, k = problem
    kept = prune_by_bounds(*gain_bounds(function, k), k)
    pruned = maximise_function(function, k, optimizer=optimizer, candidates=kept.candidates)
    whole = maximise_function(function, k, optimizer=optimizer)
    np.testing.assert_array_equal(pruned.picks, whole.picks)
    np.testing.assert_array_equal(pruned.gains, whole.gains)
    assert pruned.upper_bound == whole.upper_bound
    assert set(kept.certain) <= set(whole.picks) <= set(kept.candidates)


@given(problems(largest=8))
@SETTINGS
def test_no_best_choice_has_what_is_left_out_or_lacks_what_is_certain(problem):
    function, k = problem
    kept = prune_by_bounds(*gain_bounds(function, k), k)
    values = {s: value_of(function, s) for s in itertools.combinations(range(function.m), k)}
    best = max(values.values())
    for s, value in values.items():
        if value >= best - 1e-12 * abs(best):
            assert set(kept.certain) <= set(s) <= set(kept.candidates)


@given(problems(largest=8), st.booleans())
@SETTINGS
def test_every_gain_is_between_its_bounds(problem, beside_all):
    function, k = problem
    highest, lowest = gain_bounds(function, None if beside_all else k)
    most = function.m if beside_all else k
    least_seen = np.full(function.m, np.inf)
    for size in range(most):
        for picked in itertools.combinations(range(function.m), size):
            state = function.fresh()
            add_all(state, np.array(picked, np.int64))
            gains = candidate_gains(state)
            free = np.setdiff1d(np.arange(function.m), picked)
            assert (lowest[free] <= gains[free]).all()
            assert (gains[free] <= highest[free]).all()
            least_seen[free] = np.minimum(least_seen[free], gains[free])
    scale = 1e-12 * (1 + np.abs(highest).max())
    np.testing.assert_allclose(candidate_gains(function), highest, atol=scale, rtol=1e-12)
    if hasattr(function, "trade_off") or beside_all:  # then the bound is reached
        np.testing.assert_allclose(least_seen, lowest, atol=10 * scale, rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
@SETTINGS
def test_unweighted_facility_location_of_pairs_by_pairs_loses_none(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, int(rng.integers(1, 9))))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    s = np.maximum(x @ x.T, 0)
    np.fill_diagonal(s, 1)
    k = int(rng.integers(1, n))
    assert len(prune_by_bounds(*gain_bounds(facility(s, np.ones(n)), k), k).candidates) == n


def test_weights_of_the_rows_let_facility_location_lose_some_and_be_certain_of_others():
    s = np.eye(5)
    s[0, 1] = s[1, 0] = 0.9
    bounds = gain_bounds(facility(s, np.array([1.0, 1, 100, 7, 50])), 2)
    np.testing.assert_allclose(bounds.highest, [1.9, 1.9, 100, 7, 50])
    np.testing.assert_allclose(bounds.lowest, [0.1, 0.1, 100, 7, 50])
    kept = prune_by_bounds(*bounds, 2)
    assert kept.candidates.tolist() == kept.certain.tolist() == [2, 4]


def test_a_trade_off_of_2_leaves_only_the_similarity_to_itself_beside_all_others():
    s = symmetric(np.random.default_rng(3), 20)
    np.testing.assert_allclose(gain_bounds(graph_cut(s, 2.0)).lowest, np.diagonal(s), atol=1e-9)
    np.testing.assert_allclose(gain_bounds(graph_cut(s, 2.0), 99).lowest, np.diagonal(s), atol=1e-9)
    np.testing.assert_allclose(gain_bounds(graph_cut(s, 2.0), 1).lowest, gain_bounds(graph_cut(s, 2.0)).highest)


def test_blocks_of_rows_do_not_change_the_bounds():
    rng = np.random.default_rng(0)
    s = rng.random((700, 700))
    s += s.T
    others = s - np.diag(np.diagonal(s))
    near = np.sort(others, axis=1)[:, -9:].sum(axis=1)
    expected = 2 * s.sum(axis=0) - np.diagonal(s) - 2 * near
    np.testing.assert_allclose(gain_bounds(graph_cut(s, 2.0), 10).lowest, expected, rtol=1e-9)


def test_equal_bounds_decide_nothing():
    equal = prune_by_bounds(np.ones(4), np.ones(4), 2)
    assert equal.candidates.tolist() == [0, 1, 2, 3]
    assert equal.certain.tolist() == []
    assert prune_by_bounds(np.ones(4), np.zeros(4), 4).certain.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("highest", "lowest", "k", "message"),
    [
        (np.ones(3), np.ones(2), 1, r"bounds have shapes \(3,\) and \(2,\)"),
        (np.ones((3, 1)), np.ones((3, 1)), 1, "both must be"),
        (np.ones(0), np.ones(0), 1, r"shapes \(0,\) and \(0,\)"),
        (np.ones(3), np.array([0, 2, 0]), 1, "candidate 1 has a lowest gain of 2.0 and a highest of 1.0"),
        (np.array([1, np.nan]), np.zeros(2), 1, "candidate 1 has a lowest gain of 0.0 and a highest of nan"),
        (np.ones(3), np.ones(3), 0, "k = 0 of 3 candidates is not allowed"),
        (np.ones(3), np.ones(3), 4, "k = 4 of 3 candidates is not allowed"),
    ],
)
def test_wrong_bounds_are_refused(highest, lowest, k, message):
    with pytest.raises(CoreclipError, match=message):
        prune_by_bounds(highest, lowest, k)


def test_other_functions_and_no_picks_are_refused():
    with pytest.raises(CoreclipError, match="FeatureBased has no bounds of its gains; known: graph cut, facility"):
        gain_bounds(feature_based(np.ones((3, 2))), 1)
    with pytest.raises(CoreclipError, match="k = 0 is not allowed: at least 1 pick"):
        gain_bounds(graph_cut(np.eye(3), 2.0), 0)
