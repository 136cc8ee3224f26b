"""What greedy facility location promises, on random problems with ties, zeros and duplicates."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.errors import CoreclipError
from coreclip.selection import Features, facility_location, neighbor_graph
from coreclip.selection.accelerated import device_graph
from coreclip.selection.dense import exact_cosines, maximise_cosines, rounded_cosines
from coreclip.selection.functions import (
    CONCAVE,
    Columns,
    facility,
    feature_based,
    graph_cut,
    mixture,
    saturated_coverage,
)
from coreclip.selection.greedy import add_all, candidate_gains, maximise, maximise_function, upper_bound
from coreclip.selection.neighbors import columns_of_graph, dense_similarity, inverted_graph

SETTINGS = settings(deadline=None, max_examples=40)


@st.composite
def problems(draw, largest=30):
    """A similarity (candidates x rows), weights and k; coarse values make many ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m, n = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    similarity = rng.integers(0, draw(st.sampled_from([2, 4, 1000])), (m, n)).astype(np.float32)
    similarity[rng.random(m) < 0.3] = similarity[0]  # duplicates
    similarity[rng.random(m) < 0.2] = 0  # candidates that never help
    weights = rng.integers(0, 3, n).astype(np.float64) if draw(st.booleans()) else np.ones(n)
    return similarity, weights, draw(st.integers(1, m))


def value(similarity, weights, picks):
    return float(weights @ similarity[list(picks)].max(axis=0)) if len(picks) else 0.0


def sparse(similarity):
    """Every entry that is not 0."""
    candidates, rows = np.nonzero(similarity)
    indptr = np.searchsorted(candidates, np.arange(len(similarity) + 1))
    return Columns(indptr.astype(np.int64), rows.astype(np.int32), similarity[candidates, rows])


@given(problems())
@SETTINGS
def test_lazy_picks_what_naive_picks_and_dense_what_sparse_picks(problem):
    similarity, weights, k = problem
    naive = maximise(similarity, weights, k, optimizer="naive")
    for other in (maximise(similarity, weights, k), maximise(sparse(similarity), weights, k)):
        np.testing.assert_array_equal(other.picks, naive.picks)
        np.testing.assert_array_equal(other.gains, naive.gains)


@given(problems())
@SETTINGS
def test_each_pick_is_the_lowest_index_among_the_best(problem):
    similarity, weights, k = problem
    found = maximise(similarity, weights, k)
    for t in range(k):
        before = found.picks[:t].tolist()
        free = [j for j in range(len(similarity)) if j not in before]
        values = [value(similarity, weights, [*before, j]) for j in free]
        assert found.picks[t] == free[int(np.argmax(values))]
    assert len(set(found.picks.tolist())) == k


@given(problems(), st.sampled_from(["lazy", "stochastic"]))
@SETTINGS
def test_gains_sum_to_the_objective_and_never_grow_in_greedy(problem, optimizer):
    similarity, weights, k = problem
    found = maximise(similarity, weights, k, optimizer=optimizer)
    assert found.objective == pytest.approx(value(similarity, weights, found.picks))
    assert found.gains.sum() == pytest.approx(found.objective)
    assert (found.gains >= 0).all()
    if optimizer == "lazy":
        assert (np.diff(found.gains) <= 1e-9).all()


@given(problems(largest=10))
@SETTINGS
def test_greedy_is_near_the_best_and_the_bound_above_it(problem):
    similarity, weights, k = problem
    best = max(value(similarity, weights, s) for s in itertools.combinations(range(len(similarity)), k))
    for optimizer in ("lazy", "stochastic"):
        found = maximise(similarity, weights, k, optimizer=optimizer)
        assert best <= found.upper_bound + 1e-9
        if optimizer == "lazy":
            assert found.objective >= (1 - 1 / np.e) * best - 1e-9


@given(problems(), st.integers(0, 2**32 - 1))
@SETTINGS
def test_the_bound_holds_for_picks_of_any_origin(problem, seed):
    similarity, weights, k = problem
    rng = np.random.default_rng(seed)
    picks = rng.permutation(len(similarity))[:k]
    bound = upper_bound(facility(similarity, weights), picks)
    other = rng.permutation(len(similarity))[:k]
    assert value(similarity, weights, other) <= bound + 1e-9


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 70))
@SETTINGS
def test_the_graph_holds_the_exact_nearest_and_itself_first(seed, n, t):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    x[rng.random(n) < 0.3] = x[0]
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    similarity = dense_similarity(x)
    indices, values = neighbor_graph(x, t)
    assert indices.shape == values.shape == (n, min(t, n))
    for i in range(n):
        others = [j for j in np.lexsort((np.arange(n), -similarity[i])) if j != i]
        assert indices[i].tolist() == [i, *others][:t]
        np.testing.assert_array_equal(values[i], similarity[i, indices[i]])
    without, _ = neighbor_graph(x, t, include_self=False)
    assert without.shape == (n, min(t, n - 1))
    assert not (without == np.arange(n)[:, None]).any()


@given(st.integers(0, 2**32 - 1), st.integers(2, 50), st.integers(1, 50))
@SETTINGS
def test_sparse_is_at_most_dense_and_equal_with_all_neighbours(seed, n, t):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    k = int(rng.integers(1, n + 1))
    dense = facility_location(x, k)
    few, all_of_them = facility_location(x, k, neighbors=t), facility_location(x, k, neighbors=n)
    assert all_of_them.indices.tolist() == dense.indices.tolist()
    assert all_of_them.gains.tolist() == dense.gains.tolist()
    similarity = exact_cosines(Features.from_arrays(x).vectors())
    assert few.objective <= value(similarity, np.ones(n), few.indices) + 1e-6 * n  # a graph holds float32


def test_blocks_do_not_change_the_graph():
    """More rows than one block, so that rows are met as rows and as columns; coarse rows make ties across blocks."""
    x = np.random.default_rng(0).integers(-1, 2, (4500, 5)).astype(np.float32) + 0.5
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = dense_similarity(x)
    indices, values = neighbor_graph(x, 12)
    np.testing.assert_array_equal(similarity, similarity.T)
    for i in range(0, 4500, 97):
        row = similarity[i].copy()
        row[i] = 2  # itself first
        np.testing.assert_array_equal(indices[i], np.lexsort((np.arange(4500), -row))[:12])
    columns = columns_of_graph(indices, values)
    assert columns.indptr[-1] == 4500 * 12
    j = int(indices[17, 5])
    mine = columns.rows[columns.indptr[j] : columns.indptr[j + 1]]
    assert 17 in mine
    assert (np.diff(mine) > 0).all()


def test_stochastic_greedy_keeps_its_promise_on_average():
    similarity = np.random.default_rng(0).random((60, 60)).astype(np.float32) ** 8
    greedy = maximise(similarity, np.ones(60), 6)
    values = [
        maximise(similarity, np.ones(60), 6, optimizer="stochastic", epsilon=0.2, seed=seed).objective
        for seed in range(30)
    ]
    assert np.mean(values) >= (1 - 1 / np.e - 0.2) * greedy.upper_bound


@given(st.integers(0, 2**32 - 1), st.integers(1, 150), st.booleans())
@SETTINGS
def test_rounded_bounds_lead_to_the_picks_of_the_exact_cosines(seed, n, weighted):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, int(rng.integers(1, 20)))).astype(np.float32)
    x[rng.random(n) < 0.2] = x[0]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    weights = rng.integers(0, 3, n).astype(np.float64) if weighted else None
    k = int(rng.integers(1, n + 1))
    found = maximise_cosines(x, k, weights)
    naive = maximise(exact_cosines(x), np.ones(n) if weights is None else weights, k, optimizer="naive")
    np.testing.assert_allclose(found.gains, naive.gains, rtol=1e-9, atol=1e-9)
    if x.shape[1] > 2:  # else gains may be equal but for the order in which they are summed
        np.testing.assert_array_equal(found.picks, naive.picks)
    assert found.objective == pytest.approx(naive.objective)
    assert found.objective <= found.upper_bound <= naive.upper_bound + 1e-3 * n


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
@SETTINGS
def test_no_choice_exceeds_the_bound_from_rounded_cosines(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    k = int(rng.integers(1, n + 1))
    cosines = exact_cosines(x)
    best = max(value(cosines, np.ones(n), s) for s in itertools.combinations(range(n), k))
    assert best <= maximise_cosines(x, k).upper_bound + 1e-9


@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.integers(1, 700))
@SETTINGS
def test_bounds_are_above_the_cosines_and_near_them(seed, n, d):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    above = rounded_cosines(x).bounds / 65535 - exact_cosines(x)
    assert above.min() >= 0
    assert above.max() <= 3e-5 + 4e-7 * d


FUNCTIONS = ("facility", "sqrt", "log1p", "inverse", "min", "saturated", "cut", "redundancy", "mixture")


def random_function(name, rng, n):
    s = rng.integers(0, 5, (n, n)).astype(np.float64)
    s = s + s.T
    x = rng.integers(0, 4, (n, 6)).astype(np.float64)
    if name == "facility":
        return facility(s, np.ones(n))
    if name in CONCAVE:
        return feature_based(x, phi=name, threshold=3.0)
    if name == "saturated":
        return saturated_coverage(s, alpha=0.3)
    if name in ("cut", "redundancy"):
        return graph_cut(s, 2.0 if name == "cut" else 0.0)
    return mixture([(1.0, facility(s, np.ones(n))), (2.0, feature_based(x)), (0.5, graph_cut(s, 2.0))])


def value_of(function, picks):
    state = function.fresh()
    add_all(state, np.asarray(picks, np.int64))
    return state.value()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_diminishing_returns_and_its_gains_add_up(name):
    rng = np.random.default_rng(0)
    for _ in range(30):
        function = random_function(name, rng, 9)
        order = rng.permutation(9)
        small, large, j = order[: rng.integers(0, 4)], order[:6], order[7]
        assert set(small) <= set(large)
        of_small = value_of(function, [*small, j]) - value_of(function, small)
        of_large = value_of(function, [*large, j]) - value_of(function, large)
        assert of_small >= of_large - 1e-9
        state = function.fresh()
        add_all(state, small)
        assert candidate_gains(state)[j] == pytest.approx(of_small, abs=1e-9)
        assert value_of(function, []) == 0
        if function.monotone:
            assert of_large >= -1e-9


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lazy_picks_what_naive_picks_for_every_function_and_the_bound_holds(name):
    rng = np.random.default_rng(1)
    for _ in range(15):
        function, k = random_function(name, rng, 9), int(rng.integers(1, 6))
        lazy, naive = (maximise_function(function, k, optimizer=optimizer) for optimizer in ("lazy", "naive"))
        np.testing.assert_array_equal(lazy.picks, naive.picks)
        np.testing.assert_allclose(lazy.gains, naive.gains)
        assert lazy.objective == pytest.approx(lazy.gains.sum())
        best = max(value_of(function, s) for s in itertools.combinations(range(9), k))
        if function.monotone:
            assert (1 - 1 / np.e) * best - 1e-9 <= lazy.objective <= best + 1e-9 <= lazy.upper_bound + 2e-9
            falling = maximise_function(function, k, optimizer="threshold", epsilon=0.2)
            assert falling.objective >= (1 - 1 / np.e - 0.2) * best - 1e-9
        else:
            assert lazy.upper_bound is None


def test_what_only_monotone_functions_allow_is_refused():
    cut = random_function("redundancy", np.random.default_rng(0), 5)
    with pytest.raises(CoreclipError, match="no pick can lower"):
        maximise_function(cut, 2, optimizer="threshold")


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 20))
@SETTINGS
def test_looking_into_all_lists_finds_the_exact_neighbours(seed, n, t):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    x[rng.random(n) < 0.2] = x[0]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    lists = int(rng.integers(1, min(n, 12) + 1))
    indices, values = inverted_graph(x, t, lists=lists, probes=lists)
    exact_indices, exact_values = neighbor_graph(x, t)
    # A product's last bit depends on the block that it is computed in, and decides between equals.
    np.testing.assert_allclose(values, exact_values, atol=1e-6)
    same = np.isclose(np.diff(exact_values, axis=1), 0, atol=1e-6)
    unlike = ~(np.pad(same, ((0, 0), (1, 0))) | np.pad(same, ((0, 0), (0, 1))))
    unlike[:, -1] = False  # which of equals comes last is not seen here
    np.testing.assert_array_equal(indices[unlike], exact_indices[unlike])


def test_few_lists_find_a_part_of_the_neighbours_and_nothing_else():
    x = clustered(600)
    indices, values = inverted_graph(x, 16, lists=40, probes=1)
    cosines = exact_cosines(x)
    found = indices >= 0
    np.testing.assert_array_equal(indices[:, 0], np.arange(600))
    assert 0 < (~found).sum() < indices.size  # a list with fewer than 16
    assert (values[~found] == 0).all()
    rows = np.broadcast_to(np.arange(600)[:, None], indices.shape)
    np.testing.assert_allclose(values[found], cosines[rows[found], indices[found]], atol=1e-6)
    for row, present in zip(indices, found, strict=True):
        assert len(set(row[present])) == present.sum()
    columns = columns_of_graph(indices, values)
    assert columns.indptr[-1] == found.sum()
    assert columns.rows.min() >= 0


def test_the_index_costs_little_of_the_objective_on_clustered_points():
    x = clustered(3000)
    exact = facility_location(x, 300)
    by_index = facility_location(x, 300, neighbors=64, probes=8)
    assert by_index.parameters["lists"] == 110
    assert facility_location(x, 300, neighbors=64).parameters["probes"] is None
    assert value(exact_cosines(x), np.ones(3000), by_index.indices) >= 0.98 * exact.objective


def test_lists_and_probes_out_of_range_are_refused():
    x = clustered(50)
    for arguments, message in (
        ({"lists": 51}, "lists = 51"),
        ({"lists": 0}, "lists = 0"),
        ({"probes": 0}, "probes = 0"),
    ):
        with pytest.raises(CoreclipError, match=message):
            inverted_graph(x, 5, **arguments)


def test_lists_and_probes_that_would_change_nothing_are_refused():
    for arguments in ({"lists": 5}, {"probes": 0}):
        with pytest.raises(
            CoreclipError, match="mean nothing where all similarities of 50 pairs are kept; leave them out"
        ):
            facility_location(clustered(50 + 10)[:50], 5, **arguments)


def clustered(n, d=16):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(n // 30, d))[rng.integers(0, n // 30, n)] + 0.5 * rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(1, 120), st.integers(1, 30))
@SETTINGS
def test_torch_finds_the_neighbours_that_the_processor_finds(seed, n, t):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    indices, values = device_graph(x, t, "cpu")
    exact_indices, exact_values = neighbor_graph(x, t)
    assert indices.shape == exact_indices.shape
    np.testing.assert_allclose(values, exact_values, atol=1e-6)
    positive = exact_values > 1e-6  # zeros are equal, and only some of them have a place
    np.testing.assert_array_equal(indices[positive], exact_indices[positive])


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(CoreclipError, match=r"device = 'xpu:7' can't be used .*leave it out"):
        facility_location(clustered(60), 5, device="xpu:7")
    with pytest.raises(CoreclipError, match="leave lists and probes out"):
        facility_location(clustered(60), 5, device="cuda", probes=3)
