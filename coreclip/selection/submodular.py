"""Set functions with diminishing returns beside facility location, greedily maximised over the pairs' embeddings.

After Schreiber et al. 2020 (apricot, JMLR 21:161), Lin & Bilmes 2011 (saturated coverage, weighted sums) and Kirchhoff &
Bilmes 2014 (feature-based functions). Functions of single pairs read the embedding's dimensions, each split into its positive and
its negative part, in O(n d) memory. Functions of two pairs read max(0, cos) of all, 0.8 GB of float64 at their limit of 10,000
pairs. Left out: neighbour graphs for the latter, which facility location has.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.checks import check_k
from coreclip.selection.features import Features, as_features
from coreclip.selection.subset import Subset

if TYPE_CHECKING:
    from coreclip.selection.functions import Function

PHI = ("sqrt", "log1p", "inverse")
PAIRWISE_LIMIT = 10_000  # pairs; their similarities take 0.8 GB
_BLOCK = 1 << 14  # rows
_SAME = 1 - 2.0**-21  # the inner product of a float32 unit row with itself may be as low


def feature_based(
    features: Features | np.ndarray,
    k: int,
    *,
    phi: str = "sqrt",
    modality: str = "image",
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
) -> Subset:
    """Choose k pairs that have much of every direction of the embedding: sum_d phi(sum_{i in S} x_id).

    Parameters
    ----------
    features : Features or float (n, d)
        Each dimension is split into its positive and its negative part, x being (n, 2 d).
    k : int
        1 to n.
    phi : {"sqrt", "log1p", "inverse"}
        What more of one direction is worth: sqrt(z), log(1 + z), z / (1 + z).
    modality : {"image", "text", "both"}
    optimizer : {"lazy", "naive", "stochastic", "threshold"}
        The first two choose the same pairs; see :func:`coreclip.selection.greedy.maximise_function`.
    epsilon : float
        Of ``stochastic`` and ``threshold``; at most 1 - 1/e.
    seed : int
        Of ``stochastic``.

    Returns
    -------
    Subset
        Gains sum to the objective; no choice of k pairs exceeds the upper bound; weights are 1.

    Raises
    ------
    CoreclipError
        For parameters out of range, and features that lack the modality.

    Notes
    -----
    Kirchhoff & Bilmes 2014.
    """
    from coreclip.selection import functions

    start = time.perf_counter()
    features = as_features(features)
    check_k(k, features.n)
    _check_phi(phi)
    function = functions.feature_based(_split(features, modality), phi=phi)
    parameters = {"phi": phi, "modality": modality}
    return _choose("feature-based", function, k, parameters, optimizer, epsilon, seed, start, features.fingerprint)


def max_coverage(
    features: Features | np.ndarray,
    k: int,
    *,
    threshold: float | None = None,
    modality: str = "image",
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
) -> Subset:
    """Choose k pairs that have enough of every direction of the embedding: sum_d min(sum_{i in S} x_id, threshold).

    Parameters
    ----------
    features : Features or float (n, d)
        Each dimension is split into its positive and its negative part, x being (n, 2 d).
    k : int
        1 to n.
    threshold : float or None
        How much of a direction is enough, above 0. None for what k pairs can give to all: the sum of the k largest
        sum_d x_id over the number of directions that are not 0 everywhere. At that threshold the choice is worth most where
        it covers all evenly, and no k pairs cover all before the last is picked. It grows with k.
    modality, optimizer, epsilon, seed
        See :func:`feature_based`.

    Returns
    -------
    Subset
        With the threshold among its parameters. Gains sum to the objective; no choice of k pairs exceeds the upper bound;
        weights are 1.

    Raises
    ------
    CoreclipError
        For parameters out of range, and features that lack the modality.

    Notes
    -----
    A pair that only has what is covered adds 0; such pairs are picked by their index.
    """
    from coreclip.selection import functions

    start = time.perf_counter()
    features = as_features(features)
    check_k(k, features.n)
    if threshold is not None and not 0 < threshold < np.inf:
        raise CoreclipError(f"threshold = {threshold} is not allowed: above 0 and finite, or none for the data's own")
    x = _split(features, modality)
    threshold = _even_share(x, k) if threshold is None else float(threshold)
    function = functions.feature_based(x, phi="min", threshold=threshold)
    parameters = {"threshold": threshold, "modality": modality}
    return _choose("max-coverage", function, k, parameters, optimizer, epsilon, seed, start, features.fingerprint)


def graph_cut(
    features: Features | np.ndarray,
    k: int,
    *,
    trade_off: float = 2.0,
    modality: str = "image",
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
) -> Subset:
    """Choose k pairs that are like many and unlike each other: trade_off sum_{i in V, j in S} s_ij - sum_{i, j in S} s_ij.

    Parameters
    ----------
    features : Features or float (n, d)
        Of 10,000 pairs at most.
    k : int
        1 to n.
    trade_off : float
        At least 0. From 2 on no pick lowers the function, and greedy is within 1 - 1/e of the best; apricot and DeepCore
        default to 1, where neither holds.
    modality, optimizer, epsilon, seed
        See :func:`feature_based`; ``threshold`` needs a trade-off of 2 or more.

    Returns
    -------
    Subset
        Gains sum to the objective. There is an upper bound only for a trade-off of 2 or more. ``pruned`` among the parameters is
        how many pairs bounds ruled out before the first pick, ``certain`` how many they ruled in; weights are 1.

    Raises
    ------
    CoreclipError
        For parameters out of range, features that lack the modality, and more pairs than the limit.

    Notes
    -----
    The bounds (:func:`coreclip.selection.bounding.gain_bounds` beside k - 1 others) change no pick of ``lazy`` and ``naive``; the
    other optimizers see fewer pairs, and promise what they do. They rule out much where k is small.
    """
    from coreclip.selection import functions
    from coreclip.selection.bounding import gain_bounds, prune_by_bounds

    start = time.perf_counter()
    features = as_features(features)
    check_k(k, features.n)
    function = functions.graph_cut(_cosines(features, modality, "graph-cut"), trade_off)
    kept = prune_by_bounds(*gain_bounds(function, k), k)
    parameters = {
        "trade_off": trade_off,
        "modality": modality,
        "pruned": features.n - len(kept.candidates),
        "certain": len(kept.certain),
    }
    return _choose(
        "graph-cut", function, k, parameters, optimizer, epsilon, seed, start, features.fingerprint, kept.candidates
    )


def saturated_coverage(
    features: Features | np.ndarray,
    k: int,
    *,
    alpha: float = 0.1,
    modality: str = "image",
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
) -> Subset:
    """Choose k pairs that cover every pair up to a share: sum_i min(sum_{j in S} s_ij, alpha sum_{j in V} s_ij).

    Parameters
    ----------
    features : Features or float (n, d)
        Of 10,000 pairs at most.
    k : int
        1 to n.
    alpha : float
        Above 0, at most 1. A pair is covered when the chosen ones have this share of all its similarities.
    modality, optimizer, epsilon, seed
        See :func:`feature_based`.

    Returns
    -------
    Subset
        Gains sum to the objective; no choice of k pairs exceeds the upper bound; weights are 1.

    Raises
    ------
    CoreclipError
        For parameters out of range, features that lack the modality, and more pairs than the limit.

    Notes
    -----
    Lin & Bilmes 2011. With an alpha well below k / n all are covered before the k-th pick, and what follows adds 0.
    """
    from coreclip.selection import functions

    start = time.perf_counter()
    features = as_features(features)
    check_k(k, features.n)
    function = functions.saturated_coverage(_cosines(features, modality, "saturated-coverage"), alpha)
    parameters = {"alpha": alpha, "modality": modality}
    return _choose("saturated-coverage", function, k, parameters, optimizer, epsilon, seed, start, features.fingerprint)


def sum_redundancy(
    features: Features | np.ndarray,
    k: int,
    *,
    modality: str = "image",
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
) -> Subset:
    """Choose k pairs that are least like each other: -sum_{i, j in S} s_ij.

    Parameters
    ----------
    features : Features or float (n, d)
        Of 10,000 pairs at most.
    k : int
        1 to n.
    modality, optimizer, epsilon, seed
        See :func:`feature_based`; ``threshold`` is refused.

    Returns
    -------
    Subset
        Gains, none above 0, sum to the objective; weights are 1. Every pick lowers the function, so that greedy promises nothing
        and there is no upper bound.

    Raises
    ------
    CoreclipError
        For parameters out of range, features that lack the modality, and more pairs than the limit.

    Notes
    -----
    All first picks are worth -1, the similarity to itself: pair 0 comes first.
    """
    from coreclip.selection import functions

    start = time.perf_counter()
    features = as_features(features)
    check_k(k, features.n)
    function = functions.graph_cut(_cosines(features, modality, "sum-redundancy"), 0.0)
    parameters = {"modality": modality}
    return _choose("sum-redundancy", function, k, parameters, optimizer, epsilon, seed, start, features.fingerprint)


def mixture(
    features: Features | np.ndarray,
    k: int,
    *,
    facility: float = 1.0,
    coverage: float = 0.0,
    graph_cut: float = 0.0,
    feature: float = 1.0,
    alpha: float = 0.1,
    phi: str = "sqrt",
    modality: str = "image",
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
) -> Subset:
    """Choose k pairs by several functions at once: sum_m w_m f_m / f_m(V), V being all pairs.

    Parameters
    ----------
    features : Features or float (n, d)
        Of 10,000 pairs at most, unless ``feature`` alone has a weight.
    k : int
        1 to n.
    facility, coverage, graph_cut, feature : float
        The weights of facility location, saturated coverage, graph cut with a trade-off of 2, and the feature-based function; at
        least 0, one of them above.
    alpha : float
        Of ``coverage``.
    phi : {"sqrt", "log1p", "inverse"}
        Of ``feature``.
    modality, optimizer, epsilon, seed
        See :func:`feature_based`; all functions look at the same modality. :func:`mixture_of` lets each look at its own data.

    Returns
    -------
    Subset
        Gains sum to the objective, which is at most the sum of the weights; no choice of k pairs exceeds the upper bound; training
        weights are 1.

    Raises
    ------
    CoreclipError
        For parameters out of range, features that lack the modality, and more pairs than the limit.

    Notes
    -----
    Lin & Bilmes 2011.
    """
    from coreclip.selection import functions

    start = time.perf_counter()
    features = as_features(features)
    n = features.n
    check_k(k, n)
    weights = {"facility": facility, "coverage": coverage, "graph_cut": graph_cut, "feature": feature}
    _check_mixed(weights)
    _check_phi(phi)
    similarity: Any = _cosines(features, modality, "mixture") if facility or coverage or graph_cut else None
    make: dict[str, Any] = {
        "facility": lambda: functions.facility(similarity, np.ones(n)),
        "coverage": lambda: functions.saturated_coverage(similarity, alpha),
        "graph_cut": lambda: functions.graph_cut(similarity, 2.0),
        "feature": lambda: functions.feature_based(_split(features, modality), phi=phi),
    }
    function = functions.mixture([(weight, make[name]()) for name, weight in weights.items() if weight])
    parameters = weights | ({"alpha": alpha} if coverage else {}) | ({"phi": phi} if feature else {})
    parameters |= {"modality": modality}
    return _choose("mixture", function, k, parameters, optimizer, epsilon, seed, start, features.fingerprint)


def mixture_of(
    parts: Sequence[tuple[float, "Function"]],
    k: int,
    *,
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
    fingerprint: str | None = None,
) -> Subset:
    """Choose k pairs by several functions, each of data of its own: sum_m w_m f_m / f_m(V).

    Parameters
    ----------
    parts : sequence of (float, Function)
        Weights above 0, and functions of :mod:`coreclip.selection.functions` whose candidates are the same n pairs; say facility
        location over the images' cosines and a feature-based function of the texts. A function that is not above 0 on all pairs
        together is not divided by that.
    k : int
        1 to n.
    optimizer, epsilon, seed
        See :func:`feature_based`.
    fingerprint : str or None
        The data set's, to be noted in the subset.

    Returns
    -------
    Subset
        As of :func:`mixture`; there is an upper bound only where no pick can lower any of the functions.

    Raises
    ------
    CoreclipError
        For no parts, weights that are not positive, functions of different candidates, and parameters out of range.
    """
    from coreclip.selection import functions

    start = time.perf_counter()
    function = functions.mixture(parts)
    check_k(k, function.m)
    parameters = {"parts": [{"function": type(part).__name__, "weight": float(weight)} for weight, part in parts]}
    return _choose("mixture", function, k, parameters, optimizer, epsilon, seed, start, fingerprint)


def _choose(
    method: str,
    function: "Function",
    k: int,
    parameters: dict[str, Any],
    optimizer: str,
    epsilon: float,
    seed: int,
    start: float,
    fingerprint: str | None,
    candidates: np.ndarray | None = None,
) -> Subset:
    from coreclip.selection.greedy import maximise_function, noted

    found = maximise_function(function, k, optimizer=optimizer, epsilon=epsilon, seed=seed, candidates=candidates)
    return Subset(
        indices=found.picks,
        weights=np.ones(k),
        gains=found.gains,
        objective=found.objective,
        upper_bound=found.upper_bound,
        method=method,
        parameters=parameters | noted(optimizer, epsilon),
        seed=seed,
        n=function.m,
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint,
    )


def _check_phi(phi: str) -> None:
    if phi not in PHI:
        raise CoreclipError(
            f"unknown phi {phi!r}; known: {', '.join(PHI)}; for the minimum with a threshold use max-coverage"
        )


def _check_mixed(weights: dict[str, float]) -> None:
    for name, weight in weights.items():
        if not 0 <= weight < np.inf:
            raise CoreclipError(f"mixture: {name} = {weight} is not allowed: at least 0 and finite, its weight")
    if not any(weights.values()):
        raise CoreclipError(f"mixture: all weights are 0; give one of {', '.join(weights)} a weight above 0")


def _split(features: Features, modality: str) -> np.ndarray:
    """Return the positive parts beside the negative parts, float32 (n, 2 d), made in blocks."""
    d = features.width(modality)
    x = np.empty((features.n, 2 * d), np.float32)
    for rows, block in features.blocks(_BLOCK):
        vectors = block.vectors(modality)
        np.maximum(vectors, 0, out=x[rows[0] : rows[-1] + 1, :d])
        np.maximum(-vectors, 0, out=x[rows[0] : rows[-1] + 1, d:])
    return x


def _even_share(x: np.ndarray, k: int) -> float:
    from coreclip.selection.greedy import largest_sum

    return largest_sum(x.sum(axis=1, dtype=np.float64), k) / int(np.count_nonzero(x.any(axis=0)))


def _cosines(features: Features, modality: str, method: str) -> np.ndarray:
    """Return max(0, cos) of all pairs, float64 (n, n), being 1 for rows that are the same up to the rounding of their lengths."""
    from coreclip.selection.dense import exact_cosines

    n = features.n
    if n > PAIRWISE_LIMIT:
        raise CoreclipError(
            f"{method} would hold {n}^2 similarities, {n * n * 8 / 1e9:.1f} GB; at most {PAIRWISE_LIMIT} pairs; filter first, "
            f"or use facility-location, which has no such limit"
        )
    similarity = exact_cosines(features.vectors(modality))
    similarity[similarity > _SAME] = 1.0
    return similarity
