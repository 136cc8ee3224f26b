"""What greedy facility location promises, on random problems with ties, zeros and duplicates."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.selection import Features, facility_location, neighbor_graph
from coreclip.selection.greedy import Columns, maximise, upper_bound
from coreclip.selection.neighbors import columns_of_graph, dense_similarity

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
    bound = upper_bound(similarity, weights, picks)
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
    similarity = dense_similarity(Features.from_arrays(x).vectors())
    assert few.objective <= value(similarity, np.ones(n), few.indices) + 1e-9


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
