"""Open a data set of ten million pairs and draw the first training batch: seconds and peak memory.

Memory is the process's peak RSS, so that imports and pages of mapped files count. The data set has tiny raw images in
shards of 131,072 rows, as conversion makes them; what is read at opening (1.3 GB of tables) does not depend on the images.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from fresh import bytes_read, drop_from_cache, main_or_part, peak_rss, run_fresh
from side_by_side import arguments, write_result
from synthetic import write_many_rows


def main() -> None:
    options = arguments(__doc__ or "", rows=10_000_000, rounds=3, size=224, batch_size=256, folder="")
    found: dict[str, list[dict[str, Any]]] = {"warm": [], "cold": []}
    with tempfile.TemporaryDirectory(dir=options.folder or None) as temporary:
        path = Path(temporary) / "rows"
        write_many_rows(path, options.rows)
        run_fresh("first_batch", path, options.size, options.batch_size)  # compiles
        for _ in range(options.rounds):
            found["warm"].append(run_fresh("first_batch", path, options.size, options.batch_size))
            drop_from_cache(path)
            found["cold"].append(run_fresh("first_batch", path, options.size, options.batch_size))
    lines = [
        "| page cache | imports, s | opening, s | first batch, s | together without imports, s | with them, s | peak RSS, MiB | MB read |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rounds in found.items():
        imports, opening, batch = (
            statistics.median(one[part] for one in rounds) for part in ("imports", "opening", "batch")
        )
        together = [one["opening"] + one["batch"] for one in rounds]
        lines.append(
            f"| {name} | {imports:.2f} | {opening:.2f} | {batch:.2f} | "
            f"{statistics.median(together):.2f} ({min(together):.2f} - {max(together):.2f}) | "
            f"{statistics.median(one['imports'] + one['opening'] + one['batch'] for one in rounds):.2f} | "
            f"{max(one['peak_rss'] for one in rounds) / 2**20:,.0f} | "
            f"{statistics.median(one['read'] for one in rounds) / 1e6:,.0f} |"
        )
    body = "\n".join(lines) + f"\n\nMedians of {options.rounds} rounds; the imports' own files stay in the cache."
    title = f"Opening {options.rows:,} pairs"
    write_result("many_rows", title, body, "coreclip", "numpy", "torch", "pyarrow")


def first_batch(path: str, size: str, batch_size: str) -> dict[str, Any]:
    """Import, open, draw a batch."""
    start = time.perf_counter()
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401

    from coreclip.pipeline import Dataset, loader

    imported, before = time.perf_counter(), bytes_read()
    batches = loader.make_loader(Dataset(path), image_size=int(size), batch_size=int(batch_size))
    opened = time.perf_counter()
    batch = next(iter(batches))
    done = time.perf_counter()
    assert batch.valid.all()
    return {
        "imports": imported - start,
        "opening": opened - imported,
        "batch": done - opened,
        "peak_rss": peak_rss(),
        "read": bytes_read() - before,
    }


if __name__ == "__main__":
    main_or_part(main, first_batch)
