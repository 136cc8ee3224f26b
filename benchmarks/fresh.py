"""Run a part of a measurement in a process of its own, with a cold or a warm page cache, perhaps with little memory."""

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def run_fresh(name: str, *arguments: object, group: Path | None = None, seconds: float | None = None) -> dict[str, Any]:
    """Return what the script's part ``name`` returns when a new process runs it (see :func:`main_or_part`).

    ``group`` is a control group that the process joins first; ``seconds`` is how long it may take.
    """

    def join() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, sys.argv[0], "--part", name, *map(str, arguments)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, preexec_fn=join, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{name} was given {seconds:.0f} s, which were too few") from None
    if done.returncode:
        raise SystemExit(f"{name} ended with status {done.returncode}{' (killed)' * (done.returncode == -9)}")
    return json.loads(done.stdout.splitlines()[-1])


def main_or_part(main: Callable[[], None], *parts: Callable[..., dict[str, Any]]) -> None:
    """Run the whole measurement, or, in a process of :func:`run_fresh`, the part that it is for."""
    if sys.argv[1:2] == ["--part"]:
        part = {part.__name__: part for part in parts}[sys.argv[2]]
        print(json.dumps(part(*sys.argv[3:])))
    else:
        main()


def drop_from_cache(folder: Path) -> None:
    """Make the system forget what it has read of the files in a folder."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_read() -> int:
    """Return how many bytes this process has had read from a disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def peak_rss() -> int:
    """Return the most memory, mapped files' pages included, that this process has had at a time, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def memory_group(n_bytes: int) -> Iterator[Path]:
    """Make a control group whose processes have so much memory, page cache included; remove it at the end."""
    first_version = Path("/sys/fs/cgroup/memory")
    root = first_version if first_version.is_dir() else Path("/sys/fs/cgroup")
    group = root / f"coreclip-benchmark-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise SystemExit(f"no control group can be made ({error}): run this as root on Linux") from None
    try:
        limit = group / ("memory.limit_in_bytes" if root == first_version else "memory.max")
        try:
            limit.write_text(str(n_bytes))
        except OSError as error:
            raise SystemExit(f"control groups don't limit memory here ({error})") from None
        yield group
    finally:
        group.rmdir()


def peak_of_group(group: Path) -> int:
    """Return the most bytes that a control group's processes have used at a time, page cache included."""
    names = ("memory.max_usage_in_bytes", "memory.peak")
    return next(int((group / name).read_text()) for name in names if (group / name).exists())


def out_of_memory_kills(group: Path) -> int:
    """Return how many processes of a control group were killed for want of memory."""
    file = next(group / name for name in ("memory.oom_control", "memory.events") if (group / name).exists())
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill "))
