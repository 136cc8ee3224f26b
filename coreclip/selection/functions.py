"""Set functions with diminishing returns, as named tuples that compiled code can grow pick by pick.

Each holds its data and its state, and knows two compiled operations: ``gain(function, j)``, what candidate j adds to what has been
picked, and ``add(function, j)``, which picks it. Definitions after Schreiber et al. 2020 (apricot, JMLR 21:161) and Lin & Bilmes
2011; similarities are never negative. Left out: everything about the order of picks, which is :mod:`coreclip.selection.greedy`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numba.extending import overload

from coreclip.errors import CoreclipError
from coreclip.selection.checks import check_weights

CONCAVE = ("sqrt", "log1p", "inverse", "min")
"""Functions of a sum z: sqrt(z), log(1 + z), z / (1 + z), min(z, threshold)."""


class Columns(NamedTuple):
    """Sparse similarity: for each candidate the rows that it can represent.

    Attributes
    ----------
    indptr : int64 (m + 1,)
        Candidate j's entries are ``indptr[j]:indptr[j + 1]``.
    rows : int32 or int64 (entries,)
        Ascending within a candidate.
    values : float32 or float64 (entries,)
        Non-negative; what is not stored is 0.
    """

    indptr: np.ndarray
    rows: np.ndarray
    values: np.ndarray


class DenseFacility(NamedTuple):
    """sum_i weights_i max_{j in S} similarity_ji; ``best`` (n,) is that maximum so far."""

    similarity: np.ndarray  # float (m, n), C-contiguous
    weights: np.ndarray  # float64 (n,)
    best: np.ndarray  # float64 (n,)

    @property
    def monotone(self) -> bool:
        """Whether no pick can lower it."""
        return True

    @property
    def slack(self) -> float:
        """By what share rounding may raise a gain that is computed anew: each term only shrinks, and rounding is monotone."""
        return 0.0

    @property
    def m(self) -> int:
        """Candidates."""
        return len(self.similarity)

    def fresh(self) -> Self:
        """Return the function with nothing picked; the data are shared."""
        return self._replace(best=np.zeros_like(self.best))

    def value(self) -> float:
        """Return the function of what has been picked."""
        return float(self.weights @ self.best)


class SparseFacility(NamedTuple):
    """The same of :class:`Columns`."""

    indptr: np.ndarray
    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    best: np.ndarray

    @property
    def monotone(self) -> bool:
        """Whether no pick can lower it."""
        return True

    @property
    def slack(self) -> float:
        """By what share rounding may raise a gain that is computed anew."""
        return 0.0

    @property
    def m(self) -> int:
        """Candidates."""
        return len(self.indptr) - 1

    def fresh(self) -> Self:
        """Return the function with nothing picked; the data are shared."""
        return self._replace(best=np.zeros_like(self.best))

    def value(self) -> float:
        """Return the function of what has been picked."""
        return float(self.weights @ self.best)


class FeatureBased(NamedTuple):
    """sum_d weights_d phi(sum_{j in S} x_jd), with phi of :data:`CONCAVE`; ``min`` makes it maximum coverage."""

    x: np.ndarray  # float32 or float64 (m, d), non-negative
    weights: np.ndarray  # float64 (d,)
    phi: int  # its place in CONCAVE
    threshold: float
    total: np.ndarray  # float64 (d,)

    @property
    def monotone(self) -> bool:
        """Whether no pick can lower it."""
        return True

    @property
    def slack(self) -> float:
        """By what share rounding may raise a gain that is computed anew."""
        return 1e-12

    @property
    def m(self) -> int:
        """Candidates."""
        return len(self.x)

    def fresh(self) -> Self:
        """Return the function with nothing picked; the data are shared."""
        return self._replace(total=np.zeros_like(self.total))

    def value(self) -> float:
        """Return the function of what has been picked."""
        z = self.total
        curve = (np.sqrt(z), np.log1p(z), z / (1 + z), np.minimum(z, self.threshold))[self.phi]
        return float(self.weights @ curve)


class SaturatedCoverage(NamedTuple):
    """sum_i min(sum_{j in S} similarity_ji, cap_i)."""

    similarity: np.ndarray  # float (m, n), C-contiguous
    cap: np.ndarray  # float64 (n,)
    covered: np.ndarray  # float64 (n,)

    @property
    def monotone(self) -> bool:
        """Whether no pick can lower it."""
        return True

    @property
    def slack(self) -> float:
        """By what share rounding may raise a gain that is computed anew."""
        return 1e-12

    @property
    def m(self) -> int:
        """Candidates."""
        return len(self.similarity)

    def fresh(self) -> Self:
        """Return the function with nothing picked; the data are shared."""
        return self._replace(covered=np.zeros_like(self.covered))

    def value(self) -> float:
        """Return the function of what has been picked."""
        return float(np.minimum(self.covered, self.cap).sum())


class GraphCut(NamedTuple):
    """trade_off * sum_{i in V, j in S} s_ij - sum_{i, j in S} s_ij, of a symmetric s; monotone from a trade-off of 2 on.

    With a trade-off of 0 it is the sum of redundancies, which is nowhere monotone.
    """

    similarity: np.ndarray  # float (n, n), symmetric
    reach: np.ndarray  # float64 (n,): trade_off * sum_i s_ij
    trade_off: float
    inside: np.ndarray  # float64 (n,): sum_{i in S} s_ij
    total: np.ndarray  # float64 (1,)

    @property
    def slack(self) -> float:
        """By what share rounding may raise a gain that is computed anew."""
        return 0.0

    @property
    def monotone(self) -> bool:
        """Whether no pick can lower it."""
        return self.trade_off >= 2

    @property
    def m(self) -> int:
        """Candidates."""
        return len(self.similarity)

    def fresh(self) -> Self:
        """Return the function with nothing picked; the data are shared."""
        return self._replace(inside=np.zeros_like(self.inside), total=np.zeros(1))

    def value(self) -> float:
        """Return the function of what has been picked."""
        return float(self.total[0])


class Mixture(NamedTuple):
    """first_weight * first + second_weight * second, of any two functions of the same candidates, mixtures too."""

    first: Any
    second: Any
    first_weight: float
    second_weight: float

    @property
    def slack(self) -> float:
        """By what share rounding may raise a gain that is computed anew."""
        return 1e-12

    @property
    def monotone(self) -> bool:
        """Whether no pick can lower it."""
        return bool(self.first.monotone and self.second.monotone)

    @property
    def m(self) -> int:
        """Candidates."""
        return int(self.first.m)

    def fresh(self) -> Self:
        """Return the function with nothing picked; the data are shared."""
        return self._replace(first=self.first.fresh(), second=self.second.fresh())

    def value(self) -> float:
        """Return the function of what has been picked."""
        return self.first_weight * self.first.value() + self.second_weight * self.second.value()


Function = DenseFacility | SparseFacility | FeatureBased | SaturatedCoverage | GraphCut | Mixture


def facility(similarity: np.ndarray | Columns, weights: np.ndarray) -> DenseFacility | SparseFacility:
    """Return the facility location of a dense similarity (m, n) or of columns, with weights (n,) of the rows."""
    weights = np.ascontiguousarray(weights, np.float64)
    if isinstance(similarity, Columns):
        return SparseFacility(*similarity, weights, np.zeros(len(weights)))
    return DenseFacility(similarity, weights, np.zeros(len(weights)))


def feature_based(
    x: np.ndarray, weights: np.ndarray | None = None, *, phi: str = "sqrt", threshold: float = 1.0
) -> FeatureBased:
    """Return sum_d weights_d phi(sum_j x_jd) of non-negative x (m, d); see :data:`CONCAVE` for phi."""
    if phi not in CONCAVE:
        raise CoreclipError(f"unknown concave function {phi!r}; known: {', '.join(CONCAVE)}")
    x = np.ascontiguousarray(x, np.float32 if getattr(x, "dtype", None) == np.float32 else np.float64)
    if x.ndim != 2 or not np.isfinite(x).all() or x.min(initial=0) < 0:
        raise CoreclipError("feature-based functions need finite features, none negative; split signs or shift them")
    if not threshold > 0:
        raise CoreclipError(f"threshold = {threshold} is not allowed: above 0")
    weights = check_weights(weights, x.shape[1])
    return FeatureBased(x, weights, CONCAVE.index(phi), threshold, np.zeros(x.shape[1]))


def saturated_coverage(similarity: np.ndarray, alpha: float) -> SaturatedCoverage:
    """Return sum_i min(sum_{j in S} s_ij, alpha * sum_j s_ij) of non-negative similarities (m candidates, n rows)."""
    if not 0 < alpha <= 1:
        raise CoreclipError(f"alpha = {alpha} is not allowed: above 0, at most 1, the share at which a row is covered")
    similarity = np.ascontiguousarray(similarity)
    n = similarity.shape[1]
    return SaturatedCoverage(similarity, alpha * similarity.sum(axis=0, dtype=np.float64), np.zeros(n))


def graph_cut(similarity: np.ndarray, trade_off: float) -> GraphCut:
    """Return trade_off * sum_{i in V, j in S} s_ij - sum_{i, j in S} s_ij of symmetric similarities (n, n)."""
    if not 0 <= trade_off < np.inf:
        raise CoreclipError(f"trade_off = {trade_off} is not allowed: at least 0, and 2 for a function that only grows")
    similarity = np.ascontiguousarray(similarity)
    n = len(similarity)
    reach = trade_off * similarity.sum(axis=0, dtype=np.float64)
    return GraphCut(similarity, reach, float(trade_off), np.zeros(n), np.zeros(1))


def mixture(parts: Sequence[tuple[float, Any]]) -> Any:
    """Return sum_m w_m f_m / f_m(V) of (weight, function) pairs over the same candidates, V being all of them.

    Each function may look at data of its own. One that is not above 0 on all candidates is not divided.
    """
    if not parts or any(not 0 < weight < np.inf for weight, _ in parts) or len({f.m for _, f in parts}) > 1:
        raise CoreclipError("a mixture needs one function or more over the same candidates, each with a weight above 0")
    scaled = [(weight / _value_of_all(function), function) for weight, function in parts]
    scale, mixed = scaled[0]
    for weight, function in scaled[1:]:
        mixed, scale = Mixture(mixed, function, scale, weight), 1.0
    return mixed if len(parts) > 1 else Mixture(mixed, mixed, scale, 0.0)


def _value_of_all(function: Any) -> float:
    from coreclip.selection.greedy import add_all

    state = function.fresh()
    add_all(state, np.arange(state.m))
    value = state.value()
    return value if value > 0 else 1.0


# One definition per kind of function; numba chooses by type, so that each algorithm is written once.


def gain(function: Any, j: int) -> float:
    """Return what candidate j adds; only exists compiled."""
    raise NotImplementedError


def add(function: Any, j: int) -> None:
    """Pick candidate j; only exists compiled."""
    raise NotImplementedError


def _is(function: Any, kind: type) -> bool:
    return getattr(function, "instance_class", None) is kind  # of a numba type


@overload(gain, inline="never")
def _gain(function: Any, j: Any) -> Any:
    return _implementation(
        function,
        {
            DenseFacility: _gain_of_dense,
            SparseFacility: _gain_of_sparse,
            FeatureBased: _gain_of_features,
            SaturatedCoverage: _gain_of_saturated,
            GraphCut: _gain_of_cut,
            Mixture: _gain_of_mixture,
        },
    )


@overload(add, inline="never")
def _add(function: Any, j: Any) -> Any:
    return _implementation(
        function,
        {
            DenseFacility: _add_to_dense,
            SparseFacility: _add_to_sparse,
            FeatureBased: _add_to_features,
            SaturatedCoverage: _add_to_saturated,
            GraphCut: _add_to_cut,
            Mixture: _add_to_mixture,
        },
    )


def _implementation(function: Any, implementations: dict[type, Any]) -> Any:
    return next((made for kind, made in implementations.items() if _is(function, kind)), None)


# Four running sums let the processor work on four terms at once; their order is fixed, unlike with fastmath.


def _gain_of_dense(function: Any, j: Any) -> float:
    column, weights, best = function.similarity[j], function.weights, function.best
    n = column.shape[0]
    whole = n - n % 4
    a = b = c = d = 0.0
    for i in range(0, whole, 4):
        a += weights[i] * max(np.float64(column[i]) - best[i], 0.0)
        b += weights[i + 1] * max(np.float64(column[i + 1]) - best[i + 1], 0.0)
        c += weights[i + 2] * max(np.float64(column[i + 2]) - best[i + 2], 0.0)
        d += weights[i + 3] * max(np.float64(column[i + 3]) - best[i + 3], 0.0)
    for i in range(whole, n):
        a += weights[i] * max(np.float64(column[i]) - best[i], 0.0)
    return (a + b) + (c + d)


def _gain_of_sparse(function: Any, j: Any) -> float:
    start, stop = function.indptr[j], function.indptr[j + 1]
    rows, values, weights, best = (
        function.rows[start:stop],
        function.values[start:stop],
        function.weights,
        function.best,
    )
    n = rows.shape[0]
    whole = n - n % 4
    a = b = c = d = 0.0
    for e in range(0, whole, 4):
        a += weights[rows[e]] * max(np.float64(values[e]) - best[rows[e]], 0.0)
        b += weights[rows[e + 1]] * max(np.float64(values[e + 1]) - best[rows[e + 1]], 0.0)
        c += weights[rows[e + 2]] * max(np.float64(values[e + 2]) - best[rows[e + 2]], 0.0)
        d += weights[rows[e + 3]] * max(np.float64(values[e + 3]) - best[rows[e + 3]], 0.0)
    for e in range(whole, n):
        a += weights[rows[e]] * max(np.float64(values[e]) - best[rows[e]], 0.0)
    return (a + b) + (c + d)


def _gain_of_features(function: Any, j: Any) -> float:
    x, weights, total = function.x[j], function.weights, function.total
    gained = 0.0
    for c in range(x.shape[0]):
        if x[c] > 0.0:
            before, after = total[c], total[c] + x[c]
            if function.phi == 0:
                gained += weights[c] * (x[c] / (np.sqrt(after) + np.sqrt(before)))  # their difference would cancel
            elif function.phi == 1:
                gained += weights[c] * np.log1p(x[c] / (1.0 + before))
            elif function.phi == 2:
                gained += weights[c] * (x[c] / ((1.0 + before) * (1.0 + after)))
            else:
                gained += weights[c] * min(np.float64(x[c]), max(function.threshold - before, 0.0))
    return gained


def _gain_of_saturated(function: Any, j: Any) -> float:
    column, cap, covered = function.similarity[j], function.cap, function.covered
    gained = 0.0
    for i in range(column.shape[0]):
        gained += min(np.float64(column[i]), max(cap[i] - covered[i], 0.0))
    return gained


def _gain_of_cut(function: Any, j: Any) -> float:
    return function.reach[j] - 2.0 * function.inside[j] - np.float64(function.similarity[j, j])


def _gain_of_mixture(function: Any, j: Any) -> float:
    return function.first_weight * gain(function.first, j) + function.second_weight * gain(function.second, j)


def _add_to_dense(function: Any, j: Any) -> None:
    best = function.best
    for i in range(best.shape[0]):
        best[i] = max(best[i], np.float64(function.similarity[j, i]))


def _add_to_sparse(function: Any, j: Any) -> None:
    for e in range(function.indptr[j], function.indptr[j + 1]):
        i = function.rows[e]
        function.best[i] = max(function.best[i], np.float64(function.values[e]))


def _add_to_features(function: Any, j: Any) -> None:
    for c in range(function.total.shape[0]):
        function.total[c] += function.x[j, c]


def _add_to_saturated(function: Any, j: Any) -> None:
    for i in range(function.covered.shape[0]):
        function.covered[i] += np.float64(function.similarity[j, i])


def _add_to_cut(function: Any, j: Any) -> None:
    function.total[0] += function.reach[j] - 2.0 * function.inside[j] - np.float64(function.similarity[j, j])
    for i in range(function.inside.shape[0]):
        function.inside[i] += np.float64(function.similarity[j, i])


def _add_to_mixture(function: Any, j: Any) -> None:
    add(function.first, j)
    add(function.second, j)
