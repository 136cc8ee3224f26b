"""Images a second of our loader on 1, 2, ... all cores: as many threads as cores, and only these cores for all of us.

The efficiency is the rate over that of one core times the number of cores, round by round. What the machine itself
allows stands beside it: the same for entropy decoding alone, which shares nothing but the machine's memory and clock.
"""

import contextlib
import math
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from decode import entropy_decoding
from photographs import describe, input_name, one_shard, photo_files
from side_by_side import arguments, measure, write_result

from coreclip.pipeline import make_loader


def main() -> None:
    options = arguments(__doc__ or "", photos="", n=600, width=500, size=224, rounds=7, batch_size=64, images=3000)
    cores = one_thread_of_each_core_first()
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count < len(cores)] + [len(cores)]
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        photos = photo_files(options, Path(temporary))
        summary = describe(photos)
        dataset = one_shard(photos, Path(temporary), workers=len(cores))
        epochs = math.ceil(options.images / dataset.n)
        jpegs = [dataset.image_bytes(index) for index in range(dataset.n)] * epochs
        contestants = {}
        for count in counts:
            loader = make_loader(dataset, batch_size=options.batch_size, image_size=options.size, workers=count)
            contestants[f"coreclip {count}"] = pinned(cores[:count], lambda loader=loader: epochs_of(loader, epochs))
            contestants[f"limit {count}"] = pinned(cores[:count], entropy_decoding(stack, jpegs, count))
        items = epochs * dataset.n
        seconds = measure(contestants, rounds=options.rounds, expected=items)
    lines = [
        "| cores | images/s, median | lowest - highest | efficiency per core | that of entropy decoding alone |",
        "|---|---|---|---|---|",
    ]
    for count in counts:
        rates = sorted(items / value for value in seconds[f"coreclip {count}"])
        lines.append(
            f"| {count} | {statistics.median(rates):,.4g} | {rates[0]:,.4g} - {rates[-1]:,.4g} "
            f"| {efficiency(seconds, 'coreclip', count)} | {efficiency(seconds, 'limit', count)} |"
        )
    lines += ["", f"{summary}; batches of {options.batch_size}."]
    write_result(
        f"scaling_{input_name(options)}", "Scaling of the loader over cores", "\n".join(lines), "coreclip", "numba"
    )


def one_thread_of_each_core_first() -> list[int]:
    """Return the processors that we may use, hardware threads that share a core with an earlier one last."""
    seen: set[str] = set()
    first, second = [], []
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text() if siblings.exists() else str(cpu)
        (second if core in seen else first).append(cpu)
        seen.add(core)
    return first + second


def pinned(cpus: list[int], run: Callable[[], int]) -> Callable[[], int]:
    """Return ``run`` on these processors; the threads that it starts inherit them."""

    def on_these() -> int:
        os.sched_setaffinity(0, cpus)
        return run()

    return on_these


def epochs_of(loader, epochs: int) -> int:
    return sum(len(batch) for _ in range(epochs) for batch in loader)


def efficiency(seconds: dict[str, list[float]], name: str, count: int) -> str:
    shares = [one / (count * all_) for one, all_ in zip(seconds[f"{name} 1"], seconds[f"{name} {count}"], strict=True)]
    return f"{statistics.median(shares):.2f} ({min(shares):.2f} - {max(shares):.2f})"


if __name__ == "__main__":
    main()
