"""A scattered tenth of a data set of photographs against the whole of it, from a cold page cache: bytes read and time.

Each epoch runs in a fresh process and counts from the opening of the data set on, its tables included. Bytes are those
that the system read from the disk for the process; those needed are the images' and the tokens'.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fresh import bytes_read, drop_from_cache, main_or_part, run_fresh
from side_by_side import arguments, write_result
from synthetic import write_photos

PARTS = {
    "photographs, all, random order": ("photos", 1, "random"),
    "photographs, a tenth, random order": ("photos", 10, "random"),
    "photographs, all, in order": ("photos", 1, "in order"),
    "photographs, a tenth, in order": ("photos", 10, "in order"),
    "raw pixels, all, random order": ("raw", 1, "random"),
    "raw pixels, a tenth, random order": ("raw", 10, "random"),
}


def main() -> None:
    options = arguments(__doc__ or "", mib=2048, rounds=3, size=224, batch_size=64, folder="")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTS}
    with tempfile.TemporaryDirectory(dir=options.folder or None) as temporary:
        for kind in ("photos", "raw"):
            write_photos(Path(temporary) / kind, options.mib << 20, raw=kind == "raw")
            run_fresh("epoch", Path(temporary) / kind, 1000, "random", options.size, options.batch_size)  # compiles
        for _ in range(options.rounds):
            for name, (kind, every, order) in PARTS.items():
                drop_from_cache(Path(temporary) / kind)
                path = Path(temporary) / kind
                found[name].append(run_fresh("epoch", path, every, order, options.size, options.batch_size))
    lines = ["| | seconds | of all | images/s | MB needed | read / needed |", "|---|---|---|---|---|---|"]
    for name, rounds in found.items():
        whole = found[name.replace("a tenth", "all")]
        ratios = [own["seconds"] / theirs["seconds"] for own, theirs in zip(rounds, whole, strict=True)]
        seconds = statistics.median(one["seconds"] for one in rounds)
        reads = [one["read"] / one["needed"] for one in rounds]
        lines.append(
            f"| {name} | {seconds:.2f} | {statistics.median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f}) | "
            f"{rounds[0]['images'] / seconds:,.0f} | {rounds[0]['needed'] / 1e6:,.0f} | {statistics.median(reads):.3f} |"
        )
    body = "\n".join(lines) + (
        f"\n\nMedians of {options.rounds} rounds; photographs of 500 x 375 pixels, raw ones of 192 x 192, "
        f"to {options.size} pixels, batches of {options.batch_size}, 2 threads."
    )
    title = f"A scattered tenth of {options.mib} MiB, cold"
    write_result("subset_reads", title, body, "coreclip", "numpy", "torch")


def epoch(path: str, every: str, order: str, size: str, batch_size: str) -> dict[str, Any]:
    """Draw one epoch over one of ``every`` pairs, scattered."""
    import torch  # noqa: F401 - its import is not what is measured

    from coreclip.pipeline import Dataset, loader

    before, start = bytes_read(), time.perf_counter()
    dataset = Dataset(path)
    k = max(1, dataset.n // int(every))
    subset = None if k == dataset.n else np.sort(np.random.default_rng(0).choice(dataset.n, k, replace=False))
    batches = loader.make_loader(
        dataset, batch_size=int(batch_size), image_size=int(size), subset=subset, train=order == "random"
    )
    images = sum(int(batch.valid.sum()) for batch in batches)
    assert images == k
    seconds, read = time.perf_counter() - start, bytes_read() - before
    with dataset.open_shards() as shards:
        sizes = shards.image_size if subset is None else shards.image_size[subset]
        needed = int(sizes.sum()) + k * 2 * shards.captions_per_row * shards.context
    return {"seconds": seconds, "images": images, "needed": needed, "read": read}


if __name__ == "__main__":
    main_or_part(main, epoch)
