"""Every certified method but facility location, from float16 embeddings to a subset: time and memory at full scale.

Images lie around n // 100 centres and a caption near its image; one in five captions belongs to another image, one in ten images is
nearly a copy of another. CCS takes minus the cosine for difficulty, k-center the images, the others both. Each method runs in a process of its own,
in which a small problem has been solved before.
"""

import statistics
import time
from typing import Any

import numpy as np
from fresh import main_or_part, peak_rss, run_fresh
from side_by_side import arguments, write_result

_BLOCK = 65_536  # rows
METHODS = ("semdedup", "ccs", "clipcov", "k-center", "craig", "gradmatch", "negcliploss")


def pairs(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images and captions, float16 (n, d), drawn in blocks so that the peak of memory is not theirs."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(2, n // 100), d), np.float32)
    images, texts = np.empty((n, d), np.float16), np.empty((n, d), np.float16)
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        block = centres[rng.integers(len(centres), size=size)] + 0.7 * rng.standard_normal((size, d), np.float32)
        copies, originals = rng.permutation(size)[: size // 10], rng.permutation(size)[: size // 10]
        block[copies] = block[originals] + 0.05 * rng.standard_normal((len(copies), d), np.float32)
        captions = block + 0.7 * rng.standard_normal((size, d), np.float32)
        wrong = rng.permutation(size)[: size // 5]
        captions[wrong] = captions[np.roll(wrong, 1)]
        images[start : start + size], texts[start : start + size] = block, captions
    return images, texts


def choose(method: str, n: str, d: str, k: str, seed: str) -> dict[str, Any]:
    import coreclip.selection as selection

    run = getattr(selection, method.replace("-", "_"))

    def subset_of(n: int, k: int, seed: int) -> tuple[Any, float]:
        features = selection.Features.from_arrays(*pairs(n, int(d), seed))
        start = time.perf_counter()
        subset = run(k, features=features) if method == "ccs" else run(features, k)
        return subset, time.perf_counter() - start

    subset_of(3000, 300, 999)  # compiles
    subset, seconds = subset_of(int(n), int(k), int(seed))
    return {"seconds": seconds, "peak": peak_rss(), "k": len(subset.indices)}


def main() -> None:
    options = arguments(
        __doc__ or "", n=1_000_000, d=128, k=100_000, rounds=1, methods=",".join(METHODS), name="certified"
    )
    lines = ["| method | seconds, median | lowest - highest | peak MiB | chosen |", "|---|---|---|---|---|"]
    for method in options.methods.split(","):
        runs = [run_fresh("choose", method, options.n, options.d, options.k, seed) for seed in range(options.rounds)]
        seconds = [run["seconds"] for run in runs]
        lines.append(
            f"| {method} | {statistics.median(seconds):,.3g} | {min(seconds):,.3g} - {max(seconds):,.3g} "
            f"| {max(run['peak'] for run in runs) / 2**20:,.0f} | {runs[0]['k']:,} |"
        )
        print(lines[-1], flush=True)
    lines += [
        "",
        f"n = {options.n:,}, d = {options.d}, k = {options.k:,}; {options.rounds} draw(s). The peak holds the embeddings too, "
        f"{2 * options.n * options.d * 2 / 2**20:,.0f} MiB.",
    ]
    write_result(options.name, "Certified methods at full scale", "\n".join(lines), "coreclip", "numba", "numpy")


if __name__ == "__main__":
    main_or_part(main, choose)
