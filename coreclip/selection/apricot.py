"""Any selector of apricot (Schreiber et al. 2020, JMLR 21:161) on our features, with our similarity, as a Subset.

apricot holds a dense float64 matrix, so this is for the functions that are not our own and for up to 20,000 pairs. Its selectors
of pairwise functions get ``metric="precomputed"`` and max(0, cos): its own ``cosine`` squares, so that opposite vectors count as
equal. Its ``FeatureBased`` and ``MaxCoverage`` need columns that are not negative: each dimension of the embedding is split into
its positive part and its negative part.
"""

import inspect
import time
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.checks import check_k
from coreclip.selection.facility import DENSE_LIMIT
from coreclip.selection.features import Features, as_features
from coreclip.selection.subset import Subset

# Whether a selector reads similarities or columns, and the optimizer it gets: lazy evaluation needs diminishing returns and
# gains that are not negative, which a graph cut and a sum of redundancies do not promise.
SELECTORS = {
    "FacilityLocationSelection": ("similarity", "lazy"),
    "FeatureBasedSelection": ("columns", "lazy"),
    "GraphCutSelection": ("similarity", "naive"),
    "MaxCoverageSelection": ("columns", "lazy"),
    "SaturatedCoverageSelection": ("similarity", "lazy"),
    "SumRedundancySelection": ("similarity", "naive"),
}
# These take functions or other selectors as parameters, which only Python can give them.
PYTHON_SELECTORS = {
    "CustomGraphSelection": ("similarity", "naive"),
    "CustomSelection": ("columns", "naive"),
    "MixtureSelection": ("similarity", "naive"),
}
_OURS = {"self", "n_samples", "metric", "n_neighbors", "random_state", "verbose"}


def apricot_subset(
    name: str, features: Features | np.ndarray, k: int, *, modality: str = "image", seed: int = 0, **parameters: Any
) -> Subset:
    """Choose k pairs with one of apricot's selectors.

    Parameters
    ----------
    name : str
        The class, e.g. ``"FacilityLocationSelection"``; ``Selection`` may be left out.
    features : Features or float (n, d)
    k : int
        1 to n.
    modality : {"image", "text", "both"}
        What pairs are compared by.
    seed : int
        apricot's ``random_state``.
    **parameters
        Of the class, e.g. ``alpha`` or ``optimizer``; not its ``metric`` and ``n_neighbors``.

    Returns
    -------
    Subset
        Gains and their sum, the objective, are apricot's own; there is no upper bound; weights are 1.

    Raises
    ------
    CoreclipError
        For an unknown class or parameter, more pairs than its matrix allows, whatever apricot refuses, and when it returns
        too few pairs or a pair twice (it does for some functions that are not monotone).

    Notes
    -----
    apricot's ``GraphCut`` is monotone only for ``alpha`` of at least 2, and its default is 1.
    """
    import apricot

    start = time.perf_counter()
    name = full_name(name)
    features = as_features(features)
    n = features.n
    check_k(k, n)
    reads, optimizer = (SELECTORS | PYTHON_SELECTORS)[name]
    selector_class = getattr(apricot, name)
    known = inspect.signature(selector_class).parameters.keys()
    for parameter in parameters.keys() - (known - _OURS):
        raise CoreclipError(f"apricot:{name} has no parameter {parameter!r}; known: {', '.join(sorted(known - _OURS))}")
    if n > DENSE_LIMIT and reads == "similarity":
        raise CoreclipError(
            f"apricot:{name} would hold {n}^2 similarities in float64, {n * n * 8 >> 30} GiB; at most {DENSE_LIMIT} pairs; "
            f"filter first, or use facility-location, which has no such limit"
        )
    if optimizer == "naive" and parameters.get("optimizer") == "approximate-lazy":
        raise CoreclipError(
            f"apricot:{name} never ends with optimizer='approximate-lazy', for its gains can be negative; use 'naive'"
        )
    settings = {"optimizer": optimizer, "random_state": seed % 2**32, **parameters}
    settings |= {"metric": "precomputed"} if "metric" in known else {}
    try:
        selector = selector_class(k, **settings).fit(_matrix(features.vectors(modality), reads))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise CoreclipError(
            f"apricot:{name} refused ({type(error).__name__}: {error}); change its parameters"
        ) from error
    picks = np.asarray(selector.ranking, dtype=np.int64)
    _check_picks(name, picks, k)
    return Subset(
        indices=picks,
        weights=np.ones(k),
        gains=selector.gains,
        objective=float(np.sum(selector.gains)),
        method=f"apricot:{name}",
        parameters={"modality": modality, "optimizer": str(settings["optimizer"])}
        | {
            parameter: value if isinstance(value, int | float | str) else str(value)
            for parameter, value in parameters.items()
        },
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=features.fingerprint,
    )


def full_name(name: str) -> str:
    """Return the name of apricot's class, ``Selection`` added where it was left out."""
    full = name if name.endswith("Selection") else f"{name}Selection"
    if full not in SELECTORS | PYTHON_SELECTORS:
        raise CoreclipError(f"apricot has no selector {name!r}; known: {', '.join(SELECTORS | PYTHON_SELECTORS)}")
    return full


def _matrix(vectors: np.ndarray, reads: str) -> np.ndarray:
    from coreclip.selection.neighbors import dense_similarity

    if reads == "similarity":
        return dense_similarity(vectors).astype(np.float64)
    return np.hstack([np.maximum(vectors, 0), np.maximum(-vectors, 0)]).astype(np.float64)


def _check_picks(name: str, picks: np.ndarray, k: int) -> None:
    if len(np.unique(picks)) < len(picks) or len(picks) < k:
        raise CoreclipError(
            f"apricot:{name} returned {len(picks)} picks, {len(np.unique(picks))} of them different, instead of {k}; "
            f"it does so where adding a pair lowers the function: use optimizer='naive' or a smaller k"
        )
