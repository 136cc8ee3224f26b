"""Importance-sampled coresets: unbiased, near for every choice of centres, and of a stream within bounded memory."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.selection import Features, StreamCoreset, lightweight_sample, merge_and_reduce, sensitivity_sample
from coreclip.selection.rows import plain_rows
from coreclip.selection.sensitivity import draw, lightness, sensitivities

SETTINGS = settings(deadline=None, max_examples=30)
SEEDS = st.integers(0, 2**32 - 1)
METHODS = {"sensitivity": sensitivity_sample, "lightweight": lightweight_sample}


def make_points(n, d=5, n_clusters=6, seed=0):
    """Unit rows in clusters of unequal sizes and widths, and a few rows far from all."""
    rng = np.random.default_rng(seed)
    owners = rng.choice(n_clusters, n, p=np.arange(1, n_clusters + 1) / sum(range(n_clusters + 1)))
    x = 3 * rng.normal(size=(n_clusters, d))[owners] + rng.normal(size=(n, d)) * (0.2 + 0.1 * owners[:, None])
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def make_centers(x, k, seed):
    rng = np.random.default_rng(seed)
    return x[rng.integers(0, len(x), k)] + 0.3 * rng.normal(size=(k, x.shape[1]))


def costs_of(x, centers):
    return ((x.astype(np.float64)[:, None] - centers) ** 2).sum(axis=2).min(axis=1)


def probabilities_of(name, x, seed, weights=None):
    weights = np.ones(len(x)) if weights is None else weights
    rows = plain_rows(x)
    return lightness(rows, weights) if name == "lightweight" else sensitivities(rows, 10, weights, seed)


@pytest.mark.parametrize("name", METHODS)
def test_the_weighted_sum_is_right_in_expectation(name):
    """The mean over the seeds lies within 4.5 of its standard deviations, which the probabilities give exactly."""
    x, k, n_seeds = make_points(300), 25, 400
    costs = costs_of(x, make_centers(x, 4, 1))
    features = Features.from_arrays(x)
    estimates, variances = np.empty(n_seeds), np.empty(n_seeds)
    for seed in range(n_seeds):
        subset = METHODS[name](features, k, seed=seed)
        estimates[seed] = (subset.weights * subset.parameters["scale"]) @ costs[subset.indices]
        p = probabilities_of(name, x, seed)
        variances[seed] = ((costs**2 / p).sum() - costs.sum() ** 2) / k
    deviation = math.sqrt(variances.sum()) / n_seeds
    assert abs(estimates.mean() - costs.sum()) < 4.5 * deviation
    assert deviation < 0.02 * costs.sum()  # so that a wrong weight would show
    assert estimates.var() == pytest.approx(variances.mean(), rel=0.35)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n_centers", [1, 3, 8])
def test_the_cost_of_any_centres_is_near_on_a_large_sample(name, n_centers):
    x = make_points(6000)
    subset = METHODS[name](Features.from_arrays(x), 2500)
    weights = subset.weights * subset.parameters["scale"]
    for seed in range(15):
        costs = costs_of(x, make_centers(x, n_centers, seed))
        assert weights @ costs[subset.indices] == pytest.approx(costs.sum(), rel=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_rows_far_from_the_others_are_drawn_more_often_than_uniformly(name):
    x = np.vstack([np.tile([1.0, 0.0], (999, 1)), [[-1.0, 0.0]]])
    x[:999, 1] = 0.01 * np.random.default_rng(0).normal(size=999)
    p = probabilities_of(name, x, 0)
    assert p[-1] > 10 / 1000  # ten times as often
    assert p.sum() == pytest.approx(1)


@given(SEEDS, st.integers(1, 60), st.integers(1, 12), st.booleans())
@SETTINGS
def test_probabilities_follow_their_definition(seed, n, n_clusters, copies):
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(n, 3)), rng.uniform(0.1, 5, n)
    if copies:
        x[:] = x[0]
    n_clusters = min(n_clusters, n)
    p = lightness(plain_rows(x), weights)
    squares = ((x - weights @ x / weights.sum()) ** 2).sum(axis=1)
    spread = weights * squares / (weights @ squares) if not copies and n > 1 else weights / weights.sum()
    np.testing.assert_allclose(p, (weights / weights.sum() + spread) / 2, rtol=1e-6, atol=1e-12)
    q = sensitivities(plain_rows(x), n_clusters, weights, seed)
    assert q.sum() == pytest.approx(1)
    # A row counts as much as its copies would: with one centre the bound is known in closed form.
    if n_clusters == 1 and not copies and n > 1:
        (center,) = [i for i in range(n) if np.allclose(q, expected(x, weights, i), rtol=1e-6)]
        assert 0 <= center < n
    if copies:
        np.testing.assert_allclose(q, weights / weights.sum())


def expected(x, weights, center):
    squares = ((x - x[center]) ** 2).sum(axis=1)
    total, cost = weights.sum(), weights @ squares
    bounds = weights * (32 * squares / (cost / total) + 64 * cost / (total * (cost / total)) + 4)
    return bounds / bounds.sum()


@given(SEEDS, st.integers(1, 50), st.integers(1, 80))
@SETTINGS
def test_draws_are_merged_counted_and_only_added_to(seed, n, k):
    masses = np.random.default_rng(seed).uniform(size=n) * (np.arange(n) % 3 != 1)
    rows, draws = draw(masses / masses.sum(), k, seed)
    assert draws.sum() == k
    assert len(set(rows.tolist())) == len(rows)
    assert (masses[rows] > 0).all()
    more, _ = draw(masses / masses.sum(), k + 5, seed)
    assert more[: len(rows)].tolist() == rows.tolist()


def test_rows_are_drawn_as_often_as_their_probabilities_say():
    p = np.array([0.5, 0.0, 0.3, 0.2])
    rows, draws = draw(p, 20_000, seed=1)
    found = np.bincount(rows, draws, minlength=4)
    assert (np.abs(found - 20_000 * p) <= 4.5 * np.sqrt(20_000 * p * (1 - p))).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_stream_gives_a_coreset_in_bounded_memory(name):
    x = make_points(8000)
    stream = StreamCoreset(400, coreset=name, buffer=800)
    held = 0
    for start in range(0, 8000, 250):
        stream.add(x[start : start + 250])
        held = max(held, stream._n_pending + sum(len(level.x) for level in stream._levels.values()))
    assert held <= stream.held <= 800 * (math.log2(8000 / 800) + 3)
    assert len(stream._levels) <= math.log2(8000 / 800) + 1
    coreset, _ = stream.result()
    np.testing.assert_array_equal(coreset.x, x[coreset.indices])
    assert len(coreset.x) <= 400
    for seed in range(10):
        centers = make_centers(x, 3, seed)
        assert coreset.weights @ costs_of(coreset.x, centers) == pytest.approx(costs_of(x, centers).sum(), rel=0.25)


@pytest.mark.parametrize("name", METHODS)
def test_the_coresets_of_streams_are_right_in_expectation(name):
    """Over independent seeds: the mean lies within 4.5 of its standard errors."""
    x = make_points(240)
    costs = costs_of(x, make_centers(x, 3, 1))
    estimates = []
    for seed in range(200):
        subset = merge_and_reduce([x], 20, coreset=name, buffer=30, n_clusters=3, seed=seed)
        estimates.append((subset.weights * subset.parameters["scale"]) @ costs[subset.indices])
    error = np.std(estimates, ddof=1) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - costs.sum()) < 4.5 * error
    assert error < 0.03 * costs.sum()


@given(SEEDS, st.integers(10, 120), st.sampled_from(sorted(METHODS)))
@SETTINGS
def test_how_a_stream_is_cut_makes_no_difference(seed, n, name):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    cuts = np.sort(rng.integers(0, n + 1, 6))
    chunks = np.split(x, cuts)  # empty ones too
    one = merge_and_reduce([x], 8, coreset=name, buffer=11, n_clusters=2, seed=seed)
    other = merge_and_reduce(iter(chunks), 8, coreset=name, buffer=11, n_clusters=2, seed=seed)
    assert one.indices.tolist() == other.indices.tolist()
    assert one.weights.tolist() == other.weights.tolist()
    assert (one.n, one.parameters["draws"]) == (n, 8)


@pytest.mark.parametrize("name", METHODS)
def test_a_short_stream_is_sampled_as_the_data_set_is(name):
    x = make_points(50)
    features = Features.from_arrays(x)
    unit = features.vectors()
    stream, whole = merge_and_reduce([unit], 20, coreset=name), METHODS[name](features, 20)
    assert stream.indices.tolist() == whole.indices.tolist()
    np.testing.assert_allclose(stream.weights, whole.weights, rtol=1e-5)
    np.testing.assert_allclose(stream.gains, whole.gains, rtol=1e-5)


def test_a_stream_may_go_on_after_a_result():
    x = make_points(300)
    stopped, straight = (StreamCoreset(10, coreset="lightweight", buffer=20) for _ in range(2))
    for start in range(0, 300, 50):
        stopped.add(x[start : start + 50])
        stopped.result()
        straight.add(x[start : start + 50])
    assert stopped.result()[0].indices.tolist() == straight.result()[0].indices.tolist()


def test_the_memory_of_a_chunk_may_be_used_again():
    x, reused = make_points(100), np.empty((10, 5), np.float32)
    stream = StreamCoreset(20)
    for start in range(0, 100, 10):
        reused[:] = x[start : start + 10]
        stream.add(reused)
    coreset, _ = stream.result()
    np.testing.assert_array_equal(coreset.x, x[coreset.indices])
