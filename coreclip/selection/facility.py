"""Facility location over the pairs' embeddings: a subset in which every pair has a good representative.

All cosines up to 20,000 pairs, a top-t neighbour graph above (sparse facility location, Lindgren et al. 2016, arXiv 1703.02690).
"""

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
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
        Training weights are all 1.

    Raises
    ------
    CoreclipError
        For parameters out of range, and features that lack the modality.

    Notes
    -----
    Greedy is within 1 - 1/e of the best (Nemhauser et al. 1978); the upper bound usually shows it to be much nearer.
    """
    from coreclip.selection.greedy import maximise

    start = time.perf_counter()
    if metric not in METRICS:
        raise CoreclipError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    if neighbors is not None and neighbors < 1:
        raise CoreclipError(f"neighbors = {neighbors} is not allowed: at least 1, the pair itself")
    if metric == "precomputed":
        precomputed = _check_precomputed(features, neighbors)
        n, fingerprint = len(precomputed), None
    else:
        features = as_features(features)
        n, fingerprint = features.n, features.fingerprint
    check_k(k, n)
    row_weights = _check_weights(weights, n)
    search: dict[str, Any] = {}
    settings: dict[str, Any] = {"optimizer": optimizer, "epsilon": epsilon, "seed": seed}
    if metric == "precomputed":
        found = maximise(precomputed, row_weights, k, **settings)
    else:
        dense_limit = DENSE_LIMIT if optimizer == "lazy" else _FLOAT64_LIMIT
        if neighbors is None and n > dense_limit:
            neighbors = DEFAULT_NEIGHBORS
        elif neighbors is not None and neighbors >= n and n <= dense_limit:
            neighbors = None
        x = as_features(features).vectors(modality)
        if device != "cpu" and (lists is not None or probes is not None):
            raise CoreclipError(f"device = {device!r} compares all pairs; leave lists and probes out")
        if device != "cpu":
            neighbors = neighbors or DEFAULT_NEIGHBORS
        elif neighbors is not None:
            lists, probes = _search_of(n, x.shape[1], lists, probes)
        search = {"lists": lists, "probes": probes, "device": device} if neighbors is not None else {}
        found = _maximise_cosines(x, neighbors, search, row_weights, k, settings)
    parameters = {"metric": metric, "modality": modality, "neighbors": neighbors, "optimizer": optimizer, **search}
    return Subset(
        indices=found.picks,
        weights=np.ones(k),
        gains=found.gains,
        objective=found.objective,
        upper_bound=found.upper_bound,
        method="facility-location",
        parameters=parameters | ({"epsilon": epsilon} if optimizer in ("stochastic", "threshold") else {}),
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint,
    )


def _search_of(n: int, d: int, lists: int | None, probes: int | None) -> tuple[int | None, int | None]:
    """Return in how many lists neighbours are looked for, and how many of them are looked into; None and None for all pairs."""
    from coreclip.selection.neighbors import DEFAULT_PROBES, default_lists

    if lists is None and probes is None and n * n * d <= 2 * _MOST_EXACT:
        return None, None
    return default_lists(n) if lists is None else lists, DEFAULT_PROBES if probes is None else probes


def _maximise_cosines(
    x: np.ndarray,
    neighbors: int | None,
    search: dict[str, Any],
    weights: np.ndarray,
    k: int,
    settings: dict[str, Any],
) -> "Greedy":
    from coreclip.selection.accelerated import device_graph
    from coreclip.selection.dense import exact_cosines, maximise_cosines
    from coreclip.selection.greedy import maximise
    from coreclip.selection.neighbors import columns_of_graph, inverted_graph

    if neighbors is not None and search["device"] != "cpu":
        graph = device_graph(x, neighbors, search["device"])
        return maximise(columns_of_graph(*graph), weights, k, **settings)
    if neighbors is not None and search["probes"] is not None:
        graph = inverted_graph(x, neighbors, lists=search["lists"], probes=search["probes"], seed=settings["seed"])
        return maximise(columns_of_graph(*graph), weights, k, **settings)
    if neighbors is not None:
        return maximise(similarity_of(x, neighbors), weights, k, **settings)
    if settings["optimizer"] == "lazy":
        return maximise_cosines(x, k, None if (weights == 1).all() else weights)
    return maximise(exact_cosines(x), weights, k, **settings)


def similarity_of(
    x: np.ndarray, neighbors: int | None, measure: "Measure | None" = None, self_similarity: float = 1.0
) -> "Similarity":
    """Return all similarities of the rows of ``x`` (None) or the largest ``neighbors`` of each."""
    from coreclip.selection.neighbors import columns_of_graph, cosine, dense_similarity, neighbor_graph

    measure = measure or cosine
    if neighbors is None:
        return dense_similarity(x, measure, self_similarity)
    return columns_of_graph(*neighbor_graph(x, neighbors, measure, self_similarity=self_similarity))


def check_k(k: int, n: int) -> None:
    """Refuse a budget that is not 1 to n."""
    if not 1 <= k <= n:
        raise CoreclipError(f"k = {k} of {n} pairs is not allowed: 1 to {n}")


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


def _check_weights(weights: np.ndarray | None, n: int) -> np.ndarray:
    if weights is None:
        return np.ones(n)
    weights = np.ascontiguousarray(weights, np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or weights.min() < 0:
        raise CoreclipError(f"weights must be {n} finite numbers, none negative; got shape {weights.shape}")
    return weights
