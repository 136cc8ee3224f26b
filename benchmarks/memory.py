"""Peak memory of an epoch: our loader against FFCV's stock one, on ordinary photographs and with one of 24 megapixels.

Each contestant runs in a fresh process, in turn, several times; what it holds after its imports is taken first, then it makes the loader and
runs one epoch, compiling included. The peak of the resident memory is the kernel's own count, reset after the imports;
of anonymous memory alone (which the page cache's share of the mapped file is no part of) it is sampled. With the large
photograph FFCV asks for a buffer of its size for every place of five batches, which most systems refuse at once; where
one lends the address space, only what is touched counts as memory.
"""

import os
import shutil
import statistics
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from photographs import describe, draw_folder, input_name, one_shard, photo_files
from side_by_side import Peer, arguments, have_peers, write_result

from coreclip.pipeline import Dataset

_SAMPLING_SECONDS = 0.002


@dataclass
class Peaks:
    """Memory of a process in MiB: resident and anonymous after its imports and at the most, address space taken since."""

    imports: float
    resident: float
    anonymous_imports: float
    anonymous: float
    asked: float
    answer: int | str


def table_row(runs: list[Peaks]) -> str:
    """Return medians as the cells of a table."""
    columns = (
        [run.imports for run in runs],
        [run.resident - run.imports for run in runs],
        [run.anonymous - run.anonymous_imports for run in runs],
        [run.resident for run in runs],
        [run.asked for run in runs],
    )
    cells = [f"{statistics.median(column):,.0f}" for column in columns]
    cells[1] += f" ({min(columns[1]):,.0f} - {max(columns[1]):,.0f})"
    return " | ".join(cells)


def status_mib(pid: int) -> dict[str, float]:
    """Return the memory lines of /proc/PID/status in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) / 1024
        for name, _, value in (line.partition(":") for line in lines if " kB" in line)
    }


def run_watched(peer: Peer) -> Peaks:
    """Run the peer's one round and watch its memory."""
    Path(f"/proc/{peer.pid}/clear_refs").write_text("5")  # the resident peak starts anew from what there is now
    before = status_mib(peer.pid)
    anonymous, done = [before["RssAnon"]], threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLING_SECONDS):
            anonymous.append(status_mib(peer.pid)["RssAnon"])

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        answer = peer()
    finally:
        done.set()
        sampler.join()
    after = status_mib(peer.pid)
    return Peaks(
        before["VmRSS"], after["VmHWM"], before["RssAnon"], max(anonymous), after["VmPeak"] - before["VmSize"], answer
    )


def with_outlier(photos: list[Path], scratch: Path) -> list[Path]:
    """Return copies of the photographs in a folder with one of 6000 x 4000 pixels."""
    folder = scratch / "mixed"
    draw_folder(scratch / "outlier", 1, 6000, 4000)
    shutil.copytree(photos[0].parent, folder)
    shutil.move(scratch / "outlier" / "000000.jpg", folder / "outlier.jpg")
    return sorted(folder.glob("*.jpg"))


def measure_epochs(dataset: Dataset, rounds: int, versions: dict[str, str], **common: Any) -> dict[str, list[Peaks]]:
    """Run an epoch of each loader in fresh processes, in turn; the peers' ``versions`` are added to."""
    contestants: dict[str, dict[str, Any]] = {
        "coreclip": {"script": "coreclip_loader", "python": sys.executable, "dataset": str(dataset.path)}
    }
    if have_peers():
        contestants["FFCV stock Loader"] = {"script": "ffcv_loader", "beton": str(dataset.shard_path(0))}
    runs: dict[str, list[Peaks]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, own in contestants.items():
            with Peer(**own, task="memory", **common) as peer:
                runs[name].append(run_watched(peer))
            if name != "coreclip":
                versions |= peer.versions
    return runs


def main() -> None:
    options = arguments(__doc__ or "", photos="", n=1200, width=500, size=224, threads=0, rounds=3, batch_size=256)
    threads = options.threads or len(os.sched_getaffinity(0))
    lines = [
        "| photographs | loader | after the imports | peak above that | of it anonymous | peak in all | address space taken |",
        "|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        photos = photo_files(options, scratch)
        for kind in ("ordinary", "one of 24 megapixels"):
            files = photos if kind == "ordinary" else with_outlier(photos, scratch)
            (scratch / kind).mkdir()
            dataset = one_shard(files, scratch / kind, workers=threads)
            runs = measure_epochs(
                dataset, options.rounds, versions, size=options.size, low=0.9, threads=threads, batch_size=options.batch_size
            )  # fmt: skip
            for name, peaks in runs.items():
                lines.append(f"| {kind} | {name} | {table_row(peaks)} |")
                if peaks[0].answer != dataset.n:
                    notes.append(f"\n{name}, {kind}: `{peaks[0].answer}`")
        lines += ["", f"In MiB. {describe(photos)}; {threads} threads, batches of {options.batch_size}.", *notes]
    write_result(
        f"memory_{input_name(options)}", "Peak memory of an epoch", "\n".join(lines), "coreclip", "numba", "torch",
        peers=versions,
    )  # fmt: skip


if __name__ == "__main__":
    main()
