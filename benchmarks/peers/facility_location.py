"""Facility location by one library: a round draws points nobody has seen, chooses, and answers with seconds, peak memory and objective.

The similarities are part of the time. submodlib takes the points and its own cosine, the others the clipped one.
"""

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from points import clustered_points
from serving import serve


def choose_by_coreclip(points: np.ndarray, k: int) -> np.ndarray:
    from coreclip.selection import facility_location

    return facility_location(points, k).indices


def choose_by_apricot(points: np.ndarray, k: int) -> np.ndarray:
    from apricot import FacilityLocationSelection

    exact = points.astype(np.float64)
    selector = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy")
    selector.fit(np.clip(exact @ exact.T, 0, 1))
    return selector.ranking


def choose_by_submodlib(points: np.ndarray, k: int) -> np.ndarray:
    from submodlib import FacilityLocationFunction

    function = FacilityLocationFunction(n=len(points), mode="dense", data=points, metric="cosine")
    picks = function.maximize(
        budget=k, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
    )
    return np.array([j for j, _ in picks])


LIBRARIES = {
    "coreclip": (choose_by_coreclip, ("coreclip", "numba", "numpy")),
    "apricot": (choose_by_apricot, ("apricot-select",)),
    "submodlib": (choose_by_submodlib, ("submodlib-py",)),
}


def objective(points: np.ndarray, picks: np.ndarray) -> float:
    """Return sum_i max_j max(0, cos_ij) in float64."""
    exact = points.astype(np.float64)
    return sum(float(np.clip(block @ exact[picks].T, 0, 1).max(axis=1).sum()) for block in np.array_split(exact, 20))


def prepare(library: str, n: int, d: int, k: int, first_seed: int) -> Callable[[], Any]:
    choose, seeds = LIBRARIES[library][0], iter(range(first_seed, first_seed + 1000))

    def run() -> dict[str, float]:
        points = clustered_points(n, d, next(seeds))
        start = time.perf_counter()
        picks = choose(points, k)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before the objective is computed
        return {"seconds": seconds, "peak_mib": peak, "objective": objective(points, picks)}

    return run


if __name__ == "__main__":
    import json
    import sys

    serve(prepare, *LIBRARIES[json.loads(sys.argv[1])["library"]][1])
