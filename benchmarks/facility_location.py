"""Exact facility location against apricot's lazy optimiser, on the same similarities, fresh points every round."""

import itertools
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
from side_by_side import arguments, write_result


def clustered_points(n: int, d: int, seed: int) -> np.ndarray:
    """Return float32 (n, d) unit vectors around n // 100 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(2, n // 100), d))
    points = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.standard_normal((n, d))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def run_ours(points: np.ndarray, k: int) -> np.ndarray:
    from coreclip.selection import facility_location

    return facility_location(points, k).indices


def run_apricot(points: np.ndarray, k: int) -> np.ndarray:
    from apricot import FacilityLocationSelection

    exact = points.astype(np.float64)
    similarity = np.clip(exact @ exact.T, 0, 1)
    selector = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy")
    selector.fit(similarity)
    return selector.ranking


def contest(name: str, n: int, d: int, k: int, rounds: int) -> None:
    """One contestant in its own process, for its own peak memory: a line of seconds and objective per round."""
    run = {"coreclip": run_ours, "apricot": run_apricot}[name]
    run(clustered_points(1000, d, 10_000), 50)  # compiles
    for seed in itertools.count(1):
        if seed > rounds:
            break
        points = clustered_points(n, d, seed)
        start = time.perf_counter()
        picks = run(points, k)
        seconds = time.perf_counter() - start
        objective = sum(
            np.clip(block @ points[picks].T.astype(np.float64), 0, 1).max(axis=1).sum()
            for block in np.array_split(points.astype(np.float64), 20)
        )
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(seconds, objective, peak_mib)


def main() -> None:
    options = arguments(__doc__ or "", n=10_000, d=64, k=1_000, rounds=5, contestant="")
    if options.contestant:
        contest(options.contestant, options.n, options.d, options.k, options.rounds)
        return
    rows = {}
    for name in ("coreclip", "apricot"):
        output = subprocess.run(
            [sys.executable, __file__, "--contestant", name, *sys.argv[1:]], capture_output=True, text=True, check=True
        ).stdout
        rows[name] = [tuple(map(float, line.split())) for line in output.splitlines()]
    lines = ["| | seconds, median | lowest - highest | peak MiB | objective, mean |", "|---|---|---|---|---|"]
    for name, values in rows.items():
        seconds = [row[0] for row in values]
        lines.append(
            f"| {name} | {statistics.median(seconds):.3g} | {min(seconds):.3g} - {max(seconds):.3g} "
            f"| {max(row[2] for row in values):,.0f} | {statistics.mean(row[1] for row in values):.4f} |"
        )
    speedups = [theirs[0] / ours[0] for ours, theirs in zip(rows["coreclip"], rows["apricot"], strict=True)]
    ratios = [ours[1] / theirs[1] for ours, theirs in zip(rows["coreclip"], rows["apricot"], strict=True)]
    lines += [
        "",
        f"Faster by {statistics.median(speedups):.1f}x ({min(speedups):.1f} - {max(speedups):.1f}); objective ratio {min(ratios):.8f} at worst. "
        f"n = {options.n:,}, d = {options.d}, k = {options.k:,}, similarities included, {options.rounds} fresh draws.",
    ]
    write_result(
        "facility_location",
        "Facility location, exact",
        "\n".join(lines),
        "coreclip",
        "apricot-select",
        "numba",
        "numpy",
    )


if __name__ == "__main__":
    main()
