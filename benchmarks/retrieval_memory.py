"""Retrieval both ways among 100,000 images with five captions each: peak memory and seconds.

The features are random unit vectors, mapped from a file as those of FEATURES are. The ranking runs in a process of its own; its peak
RSS counts the imports and the pages of the mapped files.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fresh import main_or_part, peak_rss, run_fresh
from side_by_side import arguments, write_result

_BLOCK = 1 << 14


def main() -> None:
    options = arguments(__doc__ or "", images=100_000, captions=5, dim=256, dtype="float32", folder="")
    with tempfile.TemporaryDirectory(dir=options.folder or None) as temporary:
        folder = Path(temporary)
        texts = options.images * options.captions
        write_random(folder / "images.npy", options.images, options.dim, options.dtype, seed=0)
        write_random(folder / "texts.npy", texts, options.dim, options.dtype, seed=1)
        found = run_fresh("rank", folder, options.captions)
    lines = [
        "| features | imports, MiB | peak RSS, MiB | seconds | scores a second | R@1, R@10 text to image (chance) |",
        "|---|---|---|---|---|---|",
        f"| {options.dtype}, d = {options.dim}, {found['bytes'] / 2**20:,.0f} MiB | {found['imports'] / 2**20:,.0f} | "
        f"{found['peak_rss'] / 2**20:,.0f} | {found['seconds']:,.0f} | {options.images * texts / found['seconds']:.3g} | "
        f"{found['recall_1']:.6f} ({found['chance_1']:.6f}), {found['recall_10']:.6f} ({found['chance_10']:.6f}) |",
    ]
    title = f"Retrieval both ways: {options.images:,} images, {texts:,} captions"
    write_result("retrieval_memory", title, "\n".join(lines), "coreclip", "numpy", "torch")


def write_random(path: Path, n: int, dim: int, dtype: str, *, seed: int) -> None:
    """Write random unit vectors (n, dim), a block at a time."""
    rows = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (n, dim))
    generator = np.random.default_rng(seed)
    for start in range(0, n, _BLOCK):
        block = generator.normal(size=rows[start : start + _BLOCK].shape)
        rows[start : start + _BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    rows.flush()


def rank(folder: str, captions: str) -> dict[str, Any]:
    """Rank features that are mapped from files."""
    from coreclip.training.ranking import retrieval_recalls

    imports = peak_rss()
    images, texts = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("images", "texts"))
    offsets = np.arange(len(images) + 1) * int(captions)
    start = time.perf_counter()
    found = retrieval_recalls(images, texts, np.arange(len(images)), np.arange(len(texts)), offsets)
    return {
        "imports": imports,
        "seconds": time.perf_counter() - start,
        "peak_rss": peak_rss(),
        "bytes": images.nbytes + texts.nbytes,
        **{f"{kind}_{k}": found[f"text_to_image_{kind}_at_{k}"] for kind in ("recall", "chance") for k in (1, 10)},
    }


if __name__ == "__main__":
    main_or_part(main, rank)
