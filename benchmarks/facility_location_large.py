"""Facility location with a neighbour graph, from embeddings to picks: time and memory; what the index costs of the objective.

The points lie around n // 100 centres. Each size runs in a process of its own, in which a small problem has been solved before,
as one that is used for more than one selection.
"""

import statistics
import time
from typing import Any

import numpy as np
from fresh import main_or_part, peak_rss, run_fresh
from peers.points import clustered_points
from side_by_side import arguments, write_result

SIZES = ((100_000, 512, 10_000), (1_000_000, 128, 100_000))
FORCED = (20_000, 128, 2_000)


def choose(n: str, d: str, k: str, seed: str) -> dict[str, Any]:
    from coreclip.selection import Features, facility_location

    facility_location(clustered_points(3000, int(d), 999), 30, neighbors=64, probes=8)  # compiles
    facility_location(clustered_points(3000, int(d), 999), 30, neighbors=64)
    features = Features.from_arrays(clustered_points(int(n), int(d), int(seed)).astype(np.float16))
    start = time.perf_counter()
    subset = facility_location(features, int(k))
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak": peak_rss(),
        "ratio": subset.objective / subset.upper_bound,
        "probes": subset.parameters["probes"],
        "neighbors": subset.parameters["neighbors"],
    }


def force(n: str, d: str, k: str, seed: str) -> dict[str, Any]:
    """The index, probes and neighbours of the largest size at one that can be solved exactly."""
    from coreclip.selection import facility_location
    from coreclip.selection.neighbors import DEFAULT_PROBES, default_lists

    x = clustered_points(int(n), int(d), int(seed))
    exact = facility_location(x, int(k))
    by_index = facility_location(x, int(k), neighbors=64, lists=default_lists(int(n)), probes=DEFAULT_PROBES)
    best = np.concatenate([(block @ x[by_index.indices].T).max(axis=1) for block in np.array_split(x, 20)])
    return {"ratio": float(np.clip(best, 0, 1).astype(np.float64).sum()) / exact.objective}


def main() -> None:
    options = arguments(__doc__ or "", rounds=3, largest=1_000_000)
    lines = [
        "| n | d | k | neighbours, lists looked into | seconds, median | lowest - highest | peak MiB | objective / bound |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for n, d, k in SIZES:
        if n > options.largest:
            continue
        runs = [run_fresh("choose", n, d, k, seed) for seed in range(options.rounds)]
        seconds = [run["seconds"] for run in runs]
        looked = "all" if runs[0]["probes"] is None else str(runs[0]["probes"])
        lines.append(
            f"| {n:,} | {d} | {k:,} | {runs[0]['neighbors']}, {looked} | {statistics.median(seconds):.1f} "
            f"| {min(seconds):.1f} - {max(seconds):.1f} | {max(run['peak'] for run in runs) / 2**20:,.0f} "
            f"| {min(run['ratio'] for run in runs):.4f} |"
        )
    n, d, k = FORCED
    ratios = [run_fresh("force", n, d, k, seed)["ratio"] for seed in range(options.rounds)]
    lines += [
        "",
        f"With the index, the probes and the neighbours forced at n = {n:,}, d = {d}, k = {k:,}: "
        f"{min(ratios):.4f} of the exact objective at worst, of {options.rounds} draws.",
        "",
        "Bounds are those of the graph. Embeddings are float16; the peak includes them, and all imports.",
    ]
    packages = ("coreclip", "faiss-cpu", "numba", "numpy")
    write_result("facility_location_large", "Facility location of many pairs", "\n".join(lines), *packages)


if __name__ == "__main__":
    main_or_part(main, choose, force)
