"""Conversion of WebDataset shards against FFCV's DatasetWriter (with the decode check) and against ``cp`` (without).

Measured is the whole command, in a process of its own, imports included, and beside it the rate that converters report
for themselves. FFCV's writer gets the same JPEG files and captions as a folder, decodes and encodes them (``jpg`` mode,
quality 90, as many workers) and does not flush; ours writes the bytes as they are, hashes them and flushes every shard.
``cp -r`` copies the shards, or the folder, and ``sync`` flushes the file system. Before each run the last output is gone, the
disk is idle (``sync``), the sources are in the page cache (``--cache warm``) or dropped from it (``cold``), and the free memory
has been used once: in a virtual machine it is slow at first, which would be whose turn it is.
"""

import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from photographs import caption_of, describe, input_name, photo_files, write_tars
from side_by_side import arguments, have_peers, peers_command, ratio, write_result

_DECODE, _HEADER = "coreclip convert", "coreclip convert --check header"
_FFCV = "FFCV DatasetWriter"
_CP_SHARDS, _CP_FILES = "cp -r and sync of the shards", "cp -r and sync of the loose files"
_MEMORY_USED = 8 << 30
_PAGE_BYTES = 32 << 20  # of FFCV's file; its 8 MiB are too few for the largest photographs


class Run(NamedTuple):
    seconds: float
    own_seconds: float  # as the command counts them, without its imports


def main() -> None:
    options = arguments(
        __doc__ or "", photos="", n=5000, width=500, workers=0, rounds=3, per_tar=1000, cache="warm", scratch=""
    )
    workers = options.workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=options.scratch or None) as temporary:
        scratch = Path(temporary)
        photos = photo_files(options, scratch)
        summary, n, n_bytes = describe(photos), len(photos), sum(photo.stat().st_size for photo in photos)
        shards, files = scratch / "shards", scratch / "files"
        write_tars(photos, shards, per_tar=options.per_tar)
        files.mkdir()
        for number, photo in enumerate(photos):
            shutil.copy(photo, files / f"{number:06d}.jpg")
            (files / f"{number:06d}.txt").write_text(caption_of(number))
        shutil.rmtree(scratch / "photos", ignore_errors=True)
        contestants = {
            _DECODE: lambda out: run_ours(shards, out, workers, n),
            _HEADER: lambda out: run_ours(shards, out, workers, n, "--check", "header"),
            _CP_SHARDS: lambda out: copy(shards, out),
            _CP_FILES: lambda out: copy(files, out),
        }
        versions: dict[str, str] = {}
        if have_peers():
            contestants[_FFCV] = lambda out: run_ffcv(files, out, workers, n, versions)
        runs = measure_conversions(contestants, [shards, files], scratch / "out", options.rounds, options.cache)
    body = table(runs, n, n_bytes)
    body += f"\n\n{summary}, {n_bytes / 1e9:.2f} GB; {workers} workers; sources {options.cache}."
    write_result(
        f"convert_{input_name(options)}_{n}_{options.cache}",
        "Conversion",
        body,
        "coreclip",
        "numpy",
        "pillow",
        peers=versions,
    )


def measure_conversions(
    contestants: dict[str, Callable[[Path], float | None]], sources: list[Path], out: Path, rounds: int, cache: str
) -> dict[str, list[Run]]:
    """Run the contestants in turn, each from the same state of the disk and of the page cache; the first round is warm-up."""
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for number in range(1 + rounds):
        for name, run in contestants.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            for file in (file for source in sources for file in source.iterdir()):
                set_cached(file, cache)
            use_free_memory()
            start = time.perf_counter()
            own_seconds = run(out)
            seconds = time.perf_counter() - start
            if number > 0:
                runs[name].append(Run(seconds, own_seconds or seconds))
    return runs


def set_cached(file: Path, state: str) -> None:
    with file.open("rb") as opened:
        if state == "warm":
            while opened.read(1 << 20):
                pass
        else:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def use_free_memory() -> None:
    """Take free memory from the system, where a run's output will lie in the page cache, and give it back."""
    free = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    mmap.mmap(-1, min(free * 7 // 8, _MEMORY_USED), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def run_ours(shards: Path, out: Path, workers: int, n: int, *more: str) -> float:
    command = [sys.executable, "-m", "coreclip", "convert", str(shards), str(out), "--workers", str(workers), "--json"]
    return run_converter([*command, *more], n)["seconds"]


def run_ffcv(files: Path, out: Path, workers: int, n: int, versions: dict[str, str]) -> float:
    out.mkdir()
    options = {"folder": str(files), "beton": str(out / "photographs.beton"), "page_bytes": _PAGE_BYTES}
    report = run_converter(peers_command("ffcv_convert", workers=workers, **options), n)
    versions |= report["versions"]
    return report["seconds"]


def run_converter(command: list[str], n: int) -> dict[str, Any]:
    """Run a converter and return its report; n pairs must have been written."""
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr}")
    report = json.loads(finished.stdout.splitlines()[-1])
    if report["pairs"] != n:
        raise SystemExit(f"{' '.join(command)} wrote {report['pairs']} of {n} pairs")
    return report


def copy(source: Path, out: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    subprocess.run(["sync", "--file-system", str(out)], check=True)


def table(runs: dict[str, list[Run]], n: int, n_bytes: int) -> str:
    """Return the rates of the commands and of their own count, and the two ratios that matter."""
    lines = ["| | MB/s, median | lowest - highest | images/s | images/s without start-up |", "|---|---|---|---|---|"]
    seconds = {name: [run.seconds for run in values] for name, values in runs.items()}
    for name, values in seconds.items():
        rates = sorted(n_bytes / 1e6 / value for value in values)
        own = statistics.median(n / run.own_seconds for run in runs[name])
        lines.append(
            f"| {name} | {statistics.median(rates):,.4g} | {rates[0]:,.4g} - {rates[-1]:,.4g} "
            f"| {n / statistics.median(values):,.4g} | {own:,.4g} |"
        )
    lines.append("")
    for ours, theirs in ((_DECODE, _FFCV), (_HEADER, _CP_SHARDS), (_HEADER, _CP_FILES)):
        if theirs in seconds:
            own_ratio = ratio([run.own_seconds for run in runs[theirs]], [run.own_seconds for run in runs[ours]])
            lines.append(
                f"{ours}, of the rate of {theirs}: {ratio(seconds[theirs], seconds[ours])}, without start-up {own_ratio}.  "
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
