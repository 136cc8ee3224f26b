"""From the start of the process to the first batch, imports included: our loader against FFCV's stock one.

Each round starts a fresh process for each contestant, in turn, over the same ``.beton`` file with a warm page cache;
the warm-up round is the first time on the machine, in which our compiled code is stored (FFCV's can't be).
"""

import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from photographs import describe, input_name, one_shard, photo_files
from side_by_side import Peer, arguments, have_peers, ratio, write_result


def main() -> None:
    options = arguments(__doc__ or "", photos="", n=600, width=500, size=224, threads=0, rounds=7, batch_size=64)
    threads = options.threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        photos = photo_files(options, Path(temporary))
        summary = describe(photos)
        dataset = one_shard(photos, Path(temporary), workers=threads)
        common = {
            "task": "first_batch", "size": options.size, "low": 0.9, "threads": threads, "batch_size": options.batch_size
        }  # fmt: skip
        dataset_path, beton = str(dataset.path), str(dataset.shard_path(0))
        contestants = {
            "coreclip": partial(Peer, "coreclip_loader", python=sys.executable, dataset=dataset_path, **common)
        }
        if have_peers():
            contestants["FFCV stock Loader"] = partial(Peer, "ffcv_loader", beton=beton, **common)
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(1 + options.rounds):
            for name, start_peer in contestants.items():
                start = time.perf_counter()
                with start_peer() as peer:
                    if number > 0:
                        seconds[name].append(time.perf_counter() - start)
    lines = ["| | seconds, median | lowest - highest | ours takes, of theirs |", "|---|---|---|---|"]
    for name, values in seconds.items():
        share = "" if name == "coreclip" else ratio(seconds["coreclip"], values)
        lines.append(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} - {max(values):.2f} | {share} |")
    lines += ["", f"{summary}; {threads} threads, batches of {options.batch_size}."]
    write_result(
        f"startup_{input_name(options)}", "From the start of the process to the first batch", "\n".join(lines),
        "coreclip", "numba", "torch", peers=peer.versions if len(contestants) > 1 else {},
    )  # fmt: skip


if __name__ == "__main__":
    main()
