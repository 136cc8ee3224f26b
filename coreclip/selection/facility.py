"""Facility location over the pairs' embeddings: a subset in which every pair has a good representative.

All cosines up to 20,000 pairs, a top-t neighbour graph above (sparse facility location, Lindgren et al. 2016, arXiv 1703.02690).
:func:`facility_objective` is the objective of any picks with all cosines.
"""

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.randomness import permutation
from coreclip.selection.checks import check_indices, check_k, check_weights
from coreclip.selection.features import Features, as_features
from coreclip.selection.subset import Subset

if TYPE_CHECKING:
    from coreclip.selection.greedy import Greedy, Similarity
    from coreclip.selection.neighbors import Measure

METRICS = ("cosine", "precomputed")
DENSE_LIMIT = 20_000  # pairs; the bounds of their cosines take 0.8 GB
_MOST_EXACT = 5e12  # multiplications for all similarities, each of which serves two pairs
_FLOAT64_LIMIT = 10_000  # pairs; the cosines themselves, which the other optimizers look at, take 0.8 GB
DEFAULT_NEIGHBORS = 64
_MOST_PRODUCTS = 2_000_000_000_000  # multiplications for the objective with all cosines, beside a graph
_FEWEST_ROWS = 1024  # of a sample
_STREAM_OBJECTIVE = 164


def facility_location(
    features: Features | np.ndarray,
    k: int,
    *,
    metric: str = "cosine",
    modality: str = "image",
    neighbors: int | None = None,
    lists: int | None = None,
    probes: int | None = None,
    device: str = "cpu",
    optimizer: str = "lazy",
    epsilon: float = 0.1,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> Subset:
    """Choose k pairs that maximise the sum over all pairs of the similarity to the nearest chosen one.

    Parameters
    ----------
    features : Features or float (n, d)
        With ``metric="precomputed"`` a float (n, n) array instead: row j is what candidate j is worth to each pair, >= 0.
    k : int
        1 to n.
    metric : {"cosine", "precomputed"}
        The cosine is max(0, cos).
    modality : {"image", "text", "both"}
        What pairs are compared by; ``both`` is the mean of the two cosines.
    neighbors : int or None
        Similarities kept per pair, its own included; the others count as 0. None keeps all up to 20,000 pairs (10,000 where
        the optimizer is not ``lazy``), 64 above.
    lists, probes : int or None
        Look for neighbours among the pairs of the ``probes`` nearest of ``lists`` clusters only. None and None look at all pairs
        while that takes 5e12 multiplications at most (140,000 pairs of 512 dimensions), else into 8 of 2 sqrt(n) clusters.
    device : str
        ``"cuda"`` compares all pairs on a GPU, by torch, where a graph is used (without ``lists`` and ``probes``).
    optimizer : {"lazy", "naive", "stochastic", "threshold"}
        The first two choose the same pairs; see :func:`coreclip.selection.greedy.maximise_function`.
    epsilon : float
        Of ``stochastic`` and ``threshold``; at most 1 - 1/e.
    weights : float (n,) or None
        How much each represented pair counts, >= 0; None for 1.
    seed : int
        Of ``stochastic`` and the clusters.

    Returns
    -------
    Subset
        Gains sum to the objective; the upper bound holds for the same similarities (with ``neighbors`` the kept ones).
        Training weights are all 1. Where similarities were left out, ``parameters["dense_objective"]`` is the picks' objective
        with all of them, which is at least as high: computed from ``dense_objective_rows`` pairs, of all while n k d is at most
        2e12, else estimated from that many random ones, with the standard error ``dense_objective_error``.

    Raises
    ------
    CoreclipError
        For parameters out of range, and features that lack the modality.

    Notes
    -----
    Greedy is within 1 - 1/e of the best (Nemhauser et al. 1978); the upper bound usually shows it to be much nearer.
    """
    from coreclip.selection.greedy import maximise, noted

    start = time.perf_counter()
    if metric not in METRICS:
        raise CoreclipError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    if neighbors is not None and neighbors < 1:
        raise CoreclipError(f"neighbors = {neighbors} is not allowed: at least 1, the pair itself")
    settings: dict[str, Any] = {"optimizer": optimizer, "epsilon": epsilon, "seed": seed}
    search: dict[str, Any] = {}
    dense: dict[str, Any] = {}
    if metric == "precomputed":
        similarity = _check_precomputed(features, neighbors)
        n, fingerprint = len(similarity), None
        check_k(k, n)
        found = maximise(similarity, check_weights(weights, n), k, **settings)
    else:
        features = as_features(features)
        n, fingerprint = features.n, features.fingerprint
        check_k(k, n)
        row_weights = check_weights(weights, n)
        neighbors, search = _search_of(features, modality, neighbors, lists, probes, device, optimizer)
        found = maximise_features(features, k, modality, neighbors, row_weights, settings, **search)
        if neighbors is not None:
            dense = _dense_objective(features, found.picks, modality, row_weights, seed)
    return Subset(
        indices=found.picks,
        weights=np.ones(k),
        gains=found.gains,
        objective=found.objective,
        upper_bound=found.upper_bound,
        method="facility-location",
        parameters={
            "metric": metric,
            "modality": modality,
            "neighbors": neighbors,
            **noted(optimizer, epsilon),
            **search,
            **dense,
        },
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint,
    )


def _search_of(
    features: Features,
    modality: str,
    neighbors: int | None,
    lists: int | None,
    probes: int | None,
    device: str,
    optimizer: str,
) -> tuple[int | None, dict[str, Any]]:
    """Return how many similarities are kept per pair (None for all), and how they are looked for where not all are."""
    from coreclip.selection.neighbors import DEFAULT_PROBES, default_lists

    if device != "cpu":
        if lists is not None or probes is not None:
            raise CoreclipError(f"device = {device!r} compares all pairs; leave lists and probes out")
        return neighbors or DEFAULT_NEIGHBORS, {"lists": None, "probes": None, "device": device}
    neighbors = resolve_neighbors(neighbors, features.n, optimizer)
    if neighbors is None:
        if lists is not None or probes is not None:
            raise CoreclipError(
                f"lists = {lists}, probes = {probes} mean nothing where all similarities of {features.n} pairs are kept; "
                f"leave them out, or give neighbors"
            )
        return None, {}
    products = features.n**2 * features.width(modality)
    if lists is not None or probes is not None or products > 2 * _MOST_EXACT:
        lists = default_lists(features.n) if lists is None else lists
        probes = DEFAULT_PROBES if probes is None else probes
    return neighbors, {"lists": lists, "probes": probes, "device": device}


def facility_objective(
    features: Features | np.ndarray,
    indices: np.ndarray,
    *,
    modality: str = "image",
    weights: np.ndarray | None = None,
) -> float:
    """Return sum_i w_i max_{j in indices} max(0, cos_ij) over all pairs i, exactly.

    Parameters
    ----------
    features : Features or float (n, d)
        Read in blocks; there are never n k similarities at once.
    indices : int (k,)
        Picks of any origin, such as a subset's ``indices``; none have the objective 0.
    modality : {"image", "text", "both"}
    weights : float (n,) or None
        How much each represented pair counts, >= 0; None for 1.

    Returns
    -------
    float
        Of float64 cosines, added in float64. It takes n k d multiplications.

    Raises
    ------
    CoreclipError
        For indices that are no pairs, weights that do not fit, and features that lack the modality.
    """
    from coreclip.selection.representation import represent

    features = as_features(features)
    picks = check_indices(indices, features.n, "indices")
    row_weights = check_weights(weights, features.n)
    return float(row_weights @ represent(features, modality, picks, weights=row_weights)[0])


def _dense_objective(
    features: Features, picks: np.ndarray, modality: str, weights: np.ndarray, seed: int
) -> dict[str, Any]:
    """Return what a subset notes of the objective with all similarities."""
    from coreclip.selection.representation import represent

    n = features.n
    m = min(n, max(_FEWEST_ROWS, _MOST_PRODUCTS // (len(picks) * features.width(modality))))
    rows = np.sort(permutation(n, seed, stream=_STREAM_OBJECTIVE)[:m])
    values = weights[rows] * represent(features, modality, picks, rows=rows)[0]
    error = n * math.sqrt((1 - m / n) * float(values.var(ddof=1)) / m) if m < n else 0.0
    return {
        "dense_objective": float(values.sum()) * (n / m),
        "dense_objective_error": error,
        "dense_objective_rows": m,
    }


def resolve_neighbors(neighbors: int | None, n: int, optimizer: str = "lazy") -> int | None:
    """Return how many similarities are kept per pair; None for all."""
    dense_limit = DENSE_LIMIT if optimizer == "lazy" else _FLOAT64_LIMIT
    if n > dense_limit:
        return DEFAULT_NEIGHBORS if neighbors is None else neighbors
    return None if neighbors is None or neighbors >= n else neighbors


def maximise_features(
    features: Features,
    k: int,
    modality: str,
    neighbors: int | None,
    weights: np.ndarray,
    settings: dict[str, Any],
    *,
    lists: int | None = None,
    probes: int | None = None,
    device: str = "cpu",
) -> "Greedy":
    """Pick k pairs greedily by the cosines that :func:`resolve_neighbors` says; ``settings`` are those of ``maximise``."""
    from coreclip.selection.accelerated import device_graph
    from coreclip.selection.dense import exact_cosines, maximise_cosines
    from coreclip.selection.greedy import maximise
    from coreclip.selection.neighbors import columns_of_graph, inverted_graph, neighbor_graph

    x = features.vectors(modality)
    if neighbors is None and settings["optimizer"] == "lazy":
        return maximise_cosines(x, k, None if (weights == 1).all() else weights)
    if neighbors is None:
        return maximise(exact_cosines(x), weights, k, **settings)
    if device != "cpu":
        graph = device_graph(x, neighbors, device)
    elif probes is not None:
        graph = inverted_graph(x, neighbors, lists=lists, probes=probes, seed=settings["seed"])
    else:
        graph = neighbor_graph(x, neighbors)
    return maximise(columns_of_graph(*graph), weights, k, **settings)


def similarity_of(
    x: np.ndarray, neighbors: int | None, measure: "Measure | None" = None, self_similarity: float = 1.0
) -> "Similarity":
    """Return all similarities of the rows of ``x`` (None) or the largest ``neighbors`` of each."""
    from coreclip.selection.neighbors import columns_of_graph, cosine, dense_similarity, neighbor_graph

    measure = measure or cosine
    if neighbors is None:
        return dense_similarity(x, measure, self_similarity)
    return columns_of_graph(*neighbor_graph(x, neighbors, measure, self_similarity=self_similarity))


def _check_precomputed(similarity: Features | np.ndarray, neighbors: int | None) -> np.ndarray:
    if isinstance(similarity, Features):
        raise CoreclipError(
            "metric='precomputed' takes an (n, n) array of similarities, not features; use metric='cosine'"
        )
    if neighbors is not None:
        raise CoreclipError("neighbors has no meaning with metric='precomputed'; leave it out")
    similarity = np.ascontiguousarray(similarity, np.float32)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise CoreclipError(f"precomputed similarities have shape {similarity.shape}; it must be (n, n)")
    if not np.isfinite(similarity).all() or similarity.min(initial=0) < 0:
        raise CoreclipError("precomputed similarities must be finite and not negative; clip them at 0")
    return similarity
