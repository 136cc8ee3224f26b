"""An epoch over a data set several times as large as the memory that the process may use, against the bare disk.

Each part runs in a control group of its own (root needed) with a cold cache, but for those "in memory": without a limit, all
pages in the cache, which is what the processors alone would do. An epoch can be no faster than the slower of disk and
processors.
"""

import os
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fresh import (
    bytes_read,
    drop_from_cache,
    main_or_part,
    memory_group,
    out_of_memory_kills,
    peak_of_group,
    peak_rss,
    run_fresh,
)
from side_by_side import arguments, write_result
from synthetic import write_photos

MIB = 1 << 20
READ = 110_000  # bytes of a random read: a row of raw pixels


def main() -> None:
    options = arguments(__doc__ or "", mib=3072, limit_mib=768, size=64, batch_size=64, folder="")
    lines = [
        "| | MB/s | images/s | cores busy | read / stored bytes | peak RSS, MiB | peak of the group, MiB | killed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=options.folder or None) as temporary:
        for kind, size in (("raw", options.size), ("photos", 224)):
            path = Path(temporary) / kind
            write_photos(path, options.mib * MIB, raw=kind == "raw")
            run_fresh("epoch", path, options.batch_size, size, "random order", 1)  # compiles
            parts = [(name, "epoch", name) for name in ("random order", "in order")]
            if kind == "raw":
                parts += [
                    ("bare disk, in order", "read", "in order"),
                    (f"bare disk, {READ} bytes at random, 16 threads", "read", "random"),
                ]
            for name, part, order in [*parts, ("in memory, random order", "epoch", "random order")]:
                in_memory = name.startswith("in memory")
                if in_memory:
                    run_fresh("read", path, "in order")
                else:
                    drop_from_cache(path)
                with memory_group((4 * options.mib if in_memory else options.limit_mib) * MIB) as group:
                    given = (path, options.batch_size, size, order, 0) if part == "epoch" else (path, order)
                    found = run_fresh(part, *given, group=group)
                    rate = found["n_bytes"] / found["seconds"] / 1e6
                    images = f"{found['images'] / found['seconds']:,.0f}" if found["images"] else ""
                    lines.append(
                        f"| {kind}, {name} | {rate:,.0f} | {images} | {found['cores']:.2f} | {found['read'] / found['n_bytes']:.2f} | "
                        f"{found['peak_rss'] / MIB:,.0f} | {peak_of_group(group) / MIB:,.0f} | {out_of_memory_kills(group)} |"
                    )
            for file in path.iterdir():
                file.unlink()
    write_result(
        "larger_than_memory",
        f"A data set of {options.mib} MiB in {options.limit_mib} MiB of memory",
        "\n".join(lines) + f"\n\nRaw pixels (192 x 192) to {options.size} pixels, photographs (500 x 375 JPEG) to 224; "
        f"batches of {options.batch_size}, 2 threads.",
        "coreclip",
        "numpy",
        "torch",
    )


def epoch(path: str, batch_size: str, size: str, order: str, stop: str) -> dict[str, Any]:
    """Draw an epoch, or its first ``stop`` batches, and hold every image to be valid."""
    from coreclip.pipeline import Dataset, make_loader

    dataset = Dataset(path)
    loader = make_loader(dataset, batch_size=int(batch_size), image_size=int(size), train=order == "random order")
    before, start, busy, images = bytes_read(), time.perf_counter(), time.process_time(), 0
    for number, batch in enumerate(loader, 1):
        assert batch.valid.all()
        images += len(batch)
        if number == int(stop):
            break
    seconds, n_bytes = time.perf_counter() - start, sum(shard["bytes"] for shard in dataset.info["shards"])
    cores = (time.process_time() - busy) / seconds
    return {
        "seconds": seconds,
        "cores": cores,
        "images": images,
        "n_bytes": n_bytes,
        "read": bytes_read() - before,
        "peak_rss": peak_rss(),
    }


def read(path: str, order: str) -> dict[str, Any]:
    """Read the shards' bytes and do nothing with them."""
    files = [os.open(file, os.O_RDONLY) for file in sorted(Path(path).glob("*.beton"))]
    length, threads = (MIB, 1) if order == "in order" else (READ, 16)
    pieces = [(file, at) for file in files for at in range(0, os.fstat(file).st_size, length)]
    if order == "random":
        random.Random(0).shuffle(pieces)
        for file in files:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    before, start, busy = bytes_read(), time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        n_bytes = sum(pool.map(lambda piece: len(os.pread(piece[0], length, piece[1])), pieces))
    seconds = time.perf_counter() - start
    cores = (time.process_time() - busy) / seconds
    found = {"seconds": seconds, "cores": cores, "images": 0, "n_bytes": n_bytes}
    return {**found, "read": bytes_read() - before, "peak_rss": peak_rss()}


if __name__ == "__main__":
    main_or_part(main, epoch, read)
