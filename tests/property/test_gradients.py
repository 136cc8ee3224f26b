"""Gradients by their factors are the gradients, and what is chosen by them is what is chosen by the gradients themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from coreclip.selection import FactoredGradients, craig_of_gradients, gradmatch_of_gradients
from coreclip.selection import gradients as gradients_module
from coreclip.selection.coresets import _similarity
from coreclip.selection.triangular import Cholesky

SETTINGS = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)


def classifier(seed, n, n_classes=3, d=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n, n_classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities - np.eye(n_classes)[labels], rng.normal(size=(n, d)) + 0.5, labels


def materialised(residuals, hidden, bias):
    inputs = np.column_stack([hidden, np.ones(len(hidden))]) if bias else hidden
    return np.einsum("ic,id->icd", residuals, inputs).reshape(len(residuals), -1)


@given(SEEDS, st.integers(1, 20), st.booleans(), st.booleans(), st.sampled_from([3, 4096]))
@SETTINGS
def test_factored_gradients_are_the_materialised_ones(seed, n, bias, two_layers, block):
    residuals, hidden, _ = classifier(seed, n)
    gradients, factored = materialised(residuals, hidden, bias), FactoredGradients(residuals, hidden, bias=bias)
    if two_layers:
        residuals, hidden, _ = classifier(seed + 1, n, 2, 5)
        gradients = np.hstack([gradients, materialised(residuals, hidden, not bias)])
        factored = factored.beside(FactoredGradients(residuals, hidden, bias=not bias))
    rng = np.random.default_rng(seed)
    rows, weights = rng.integers(0, n, 7), rng.normal(size=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients_module, "_BLOCK", block)
        np.testing.assert_allclose(factored.dot(rows, slice(None)), gradients[rows] @ gradients.T, atol=1e-10)
        np.testing.assert_allclose(factored.squared_norms(), (gradients**2).sum(axis=1), atol=1e-10)
        np.testing.assert_allclose(factored.sum_dot(), gradients @ gradients.sum(axis=0), atol=1e-9)
        np.testing.assert_allclose(factored.sum_dot(rows), gradients[rows] @ gradients.sum(axis=0), atol=1e-9)
        projected = factored.project(factored.total(rows, weights))
        np.testing.assert_allclose(projected, gradients @ (weights @ gradients[rows]), atol=1e-9)
        assert len(factored.take(rows)) == 7
        np.testing.assert_allclose(
            factored.take(rows).dot([0], slice(None))[0], gradients[rows[0]] @ gradients[rows].T, atol=1e-10
        )


@given(SEEDS, st.integers(1, 30))
@SETTINGS
def test_craig_compares_factored_gradients_by_their_distances(seed, n):
    residuals, hidden, _ = classifier(seed, n)
    similarity = _similarity(FactoredGradients(residuals, hidden).take(np.arange(n)))
    gradients = materialised(residuals, hidden, True)
    distances = np.linalg.norm(gradients[:, None] - gradients, axis=2)
    largest = similarity[0, 0]
    assert largest >= distances.max()
    np.testing.assert_allclose(largest - similarity, distances, atol=1e-5 * largest)


def test_craig_by_factors_misses_the_sum_by_at_most_the_distances():
    residuals, hidden, labels = classifier(0, 60)
    found = craig_of_gradients(FactoredGradients(residuals, hidden), 12, labels)
    gradients = materialised(residuals, hidden, True)
    distances = np.linalg.norm(gradients[:, None] - gradients[found.indices], axis=2)
    distances[labels[:, None] != labels[found.indices]] = np.inf
    missed = np.linalg.norm(gradients.sum(axis=0) - found.gamma @ gradients[found.indices])
    assert missed <= distances.min(axis=1).sum()
    assert found.objective <= found.upper_bound


def random_gradients(seed, n, d):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(n, d)) + 0.3 * (seed % 2)
    gradients[rng.random(n) < 0.2] = gradients[0]
    return gradients


def ridge_system(gradients, chosen, lam):
    """The least squares problem whose solution under w >= 0 the weights must be."""
    ridge = np.sqrt(lam * (gradients**2).sum(axis=1).mean()) * np.eye(len(chosen))
    return np.vstack([gradients[chosen].T, ridge]), np.concatenate([gradients.sum(axis=0), np.zeros(len(chosen))])


@given(SEEDS, st.integers(2, 30), st.integers(1, 8), st.sampled_from([0.0, 0.1, 1.0]))
@SETTINGS
def test_the_weights_of_gradmatch_are_the_best_for_its_pairs(seed, n, d, lam):
    gradients = random_gradients(seed, n, d)
    k = 1 + seed % n
    found = gradmatch_of_gradients(gradients, k, np.zeros(n, np.int64), lam=lam)
    assert (found.weights > 0).all()
    assert len(set(found.indices.tolist())) == len(found.indices) <= k
    matrix, target = ridge_system(gradients, found.indices, lam)
    _, best = nnls(matrix, target)
    ours = np.linalg.norm(matrix @ found.weights - target)
    assert ours == pytest.approx(best, abs=1e-8 * np.linalg.norm(target))
    assert found.objective == pytest.approx(target @ target - ours**2, abs=1e-8 * (1 + target @ target))
    assert found.upper_bound == pytest.approx(target @ target)
    assert found.gains.sum() == pytest.approx(found.objective)
    missed = np.linalg.norm(found.weights @ gradients[found.indices] - gradients.sum(axis=0))
    assert found.relative_error == pytest.approx(missed / np.linalg.norm(gradients.sum(axis=0)), abs=1e-7)
    if len(found.indices) < k:  # it says that no further pair helps: not even all of them together do
        _, with_all = nnls(*ridge_system(gradients, np.arange(n), lam))
        assert ours == pytest.approx(with_all, abs=1e-6 * np.linalg.norm(target))


@given(SEEDS, st.integers(2, 30), st.integers(1, 8))
@SETTINGS
def test_what_gradmatch_misses_never_grows_with_k(seed, n, d):
    gradients, labels = random_gradients(seed, n, d), np.zeros(n, np.int64)
    errors = [gradmatch_of_gradients(gradients, k, labels, lam=0.0).relative_error for k in range(1, n + 1)]
    assert (np.diff(errors) <= 1e-6).all()
    penalised = [gradmatch_of_gradients(gradients, k, labels, lam=0.5).objective for k in range(1, n + 1)]
    assert (np.diff(penalised) >= -1e-8 * max(penalised)).all()


@given(SEEDS, st.integers(3, 40))
@SETTINGS
def test_gradmatch_chooses_the_same_by_the_factors(seed, n):
    residuals, hidden, labels = classifier(seed, n)
    k = 1 + seed % n
    by_factors = gradmatch_of_gradients(FactoredGradients(residuals, hidden), k, labels)
    whole = gradmatch_of_gradients(materialised(residuals, hidden, True), k, labels)
    assert by_factors.indices.tolist() == whole.indices.tolist()
    np.testing.assert_allclose(by_factors.weights, whole.weights, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(by_factors.gains, whole.gains, rtol=1e-6, atol=1e-8)


def test_a_pair_whose_weight_falls_to_zero_leaves_and_hands_its_gain_on():
    gradients = np.array([[1.0, -1.0, 4.0], [-3.0, 4.0, -4.0], [1.0, 1.0, 4.0], [-2.0, 4.0, 2.0]])
    two, three = (gradmatch_of_gradients(gradients, k, np.zeros(4, np.int64), lam=0.0) for k in (2, 3))
    assert two.indices.tolist() == [3, 0]
    assert three.indices.tolist() == [3, 2, 1]
    np.testing.assert_allclose(three.weights @ gradients[three.indices], gradients.sum(axis=0))
    assert three.gains.sum() == pytest.approx(three.objective) == pytest.approx(109)  # the squared length of the sum
    assert three.gains[0] == pytest.approx(two.gains[0])


@given(SEEDS, st.integers(1, 70))
@SETTINGS
def test_the_growing_and_shrinking_factor_solves_like_numpy(seed, size):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(size, size + 2))
    matrix, right = vectors @ vectors.T + np.eye(size), rng.normal(size=size)
    factor, held = Cholesky(), []
    for i in range(size):
        assert factor.append(matrix[i, held], matrix[i, i], right[i])
        held.append(i)
        if rng.random() < 0.4:
            at = int(rng.integers(0, len(held)))
            factor.remove(at)
            del held[at]
    assert factor.size == len(held)
    solution = np.linalg.solve(matrix[np.ix_(held, held)], right[held])
    np.testing.assert_allclose(factor.solve(), solution, rtol=1e-6, atol=1e-8)
    assert factor.value == pytest.approx(right[held] @ solution, rel=1e-6, abs=1e-9)


def test_a_row_that_the_others_span_is_not_taken_in():
    factor = Cholesky()
    assert factor.append(np.empty(0), 2.0, 1.0)
    assert not factor.append(np.array([2.0]), 2.0, 1.0)
    assert factor.solve().tolist() == pytest.approx([0.5])
