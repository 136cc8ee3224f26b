"""The logistic regression on which CRAIG is measured."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.optimize import approx_fprime

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("craig_benchmark", BENCHMARKS / "craig.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["craig_benchmark"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture
def problem(benchmark: ModuleType) -> object:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    x = np.hstack([rng.standard_normal((60, 6)) + labels[:, None] / 5, np.ones((60, 1))])
    return benchmark.Problem(x, labels, np.full(60, 1 / 60), 0.01)


def test_gradient_is_that_of_the_value(problem) -> None:
    w = np.random.default_rng(1).standard_normal(70)
    expected = approx_fprime(w, lambda v: problem.value_and_gradient(v)[0], 1e-7)
    np.testing.assert_allclose(problem.value_and_gradient(w)[1], expected, atol=1e-5)


def test_residuals_and_images_make_up_the_gradient(problem) -> None:
    w = np.random.default_rng(1).standard_normal(70)
    mean = np.einsum("nc,nd->cd", problem.residuals(w), problem.x).ravel() / 60
    np.testing.assert_allclose(problem.value_and_gradient(w)[1], mean + 0.01 * w, atol=1e-12)


def test_the_solution_is_a_minimum_and_the_part_of_all_has_no_excess(benchmark: ModuleType, problem) -> None:
    path = benchmark.solve(problem)
    best, gradient = problem.value_and_gradient(path[-1])
    assert np.linalg.norm(gradient) <= 1e-5
    for step in np.random.default_rng(2).standard_normal((5, 70)):
        assert problem.value_and_gradient(path[-1] + 0.1 * step)[0] > best
    whole = problem.part((np.arange(60)[::-1], np.ones(60)))
    assert problem.value_and_gradient(benchmark.solve(whole)[-1])[0] == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("products", [False, True])
def test_refitted_weights_bring_the_sum_of_the_rows_nearer(benchmark: ModuleType, problem, products: bool) -> None:
    x, labels = problem.x[:, :-1], problem.labels
    rows, weights = np.arange(20)[::-1], np.full(20, 3.0)
    rows_of = benchmark.with_products(x, labels, 2) if products else lambda c: x[labels == c]

    def missing(given: np.ndarray) -> float:
        off = 0.0
        for c in range(10):
            places = np.searchsorted(np.flatnonzero(labels == c), rows[labels[rows] == c])
            off += float(np.sum((given[labels[rows] == c] @ rows_of(c)[places] - rows_of(c).sum(axis=0)) ** 2))
        return off

    same, refitted = benchmark.refitted(rows_of, labels, (rows, weights), pull=0.1)
    assert (same == rows).all()
    assert refitted.min() >= 0
    assert missing(refitted) < missing(weights)


def test_products_stand_beside_the_images_with_the_same_mean_length(benchmark: ModuleType, problem) -> None:
    x, labels = problem.x[:, :-1], problem.labels
    rows = benchmark.with_products(x, labels, 3)(4)
    assert rows.shape == (6, 6 + 6)
    np.testing.assert_array_equal(rows[:, :6], x[labels == 4])
    assert (rows[:, 6:] ** 2).sum() == pytest.approx((x[labels == 4] ** 2).sum())


def test_report_says_whether_the_goals_are_met(benchmark: ModuleType) -> None:
    def lines(excess: float, error: float) -> str:
        found = {f"random, seed {s}": benchmark.Outcome(9, 1.0 + s, [1.0, 1.0], 10.0) for s in range(3)}
        found["CRAIG"] = benchmark.Outcome(9, excess, [0.5, error], 3.0)
        return "\n".join(benchmark.report(0.01, found, [0, 7]))

    assert "0.50x the median of random's (1.00000 - 3.00000); the goal of 0.5x is met" in lines(1.0, 0.9)
    assert "in 6 of 6 comparisons, at every iterate below every random one's." in lines(1.0, 0.9)
    assert "the goal of 0.5x is missed" in lines(1.1, 0.9)
    assert "in 3 of 6 comparisons, but not below the best random one's at iterate 7 (w\\*)." in lines(1.0, 1.0)
