"""Conversions that are killed, or of which the n-th write, fsync or rename fails.

The data set is absent or whole, never half, and the same command, run again, ends with the bytes of an undisturbed run.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import encode_jpeg, make_pixels

KINDS = ("write", "fsync", "rename")
HERE = Path(__file__).parent

# For each line "FAIL_AT TARGET" a forked child converts with the fault, and once more without; it says what came of both.
SERVER = """
import hashlib, json, mmap, os, pathlib, sys, traceback
import pyarrow.parquet, tokenizers
import coreclip.pipeline.convert, coreclip.pipeline.dataset
from coreclip.errors import CoreclipError
from coreclip.pipeline import convert

counters = memoryview(mmap.mmap(os.open(os.environ["FAULT_COUNTERS"], os.O_RDWR), 40)).cast("q")

def attempt(target, fail_at):
    for i, value in enumerate((0, 0, 0, 0, fail_at)):
        counters[i] = value
    try:
        convert(dataset=target, **json.loads(sys.argv[1]))
        said = "converted"
    except CoreclipError as error:
        said = f"refused: {error}"
    except OSError as error:
        said = f"failed: {error.strerror}"
    except BaseException:
        said = "crashed: " + traceback.format_exc()
    files = sorted(path for path in pathlib.Path(target).rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
    return {"said": said, "is_there": os.path.exists(target), "digest": digest, "counts": list(counters[:4])}

for line in sys.stdin:
    fail_at, target = line.split()
    child = os.fork()
    if child == 0:
        os.environ["FAULT_ROOT"] = os.path.dirname(target)
        os.makedirs(os.path.dirname(target))
        print(json.dumps([attempt(target, int(fail_at)), attempt(target, 0)]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    return library


def environment(shim: Path, counters: Path, **more: str) -> dict[str, str]:
    counters.write_bytes(bytes(40))
    return {**os.environ, "LD_PRELOAD": str(shim), "FAULT_COUNTERS": str(counters), "FAULT_ROOT": "", **more}


def write_pairs(path: Path, n: int, size: tuple[int, int] = (160, 120)) -> Path:
    """A tar of n pairs, one image of five being refused."""
    import io

    with tarfile.open(path, "w") as archive:
        for i in range(n):
            image = b"broken" if i % 5 == 3 else encode_jpeg(make_pixels(i, *size))
            for extension, content in (("jpg", image), ("txt", f"picture number {i}".encode())):
                info = tarfile.TarInfo(f"{i:04d}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, n: int) -> Path:
    """The same pairs as a folder with a captions table."""
    path.mkdir()
    for i in range(n):
        image = b"broken" if i % 5 == 3 else encode_jpeg(make_pixels(i, 160, 120))
        (path / f"{i:04d}.jpg").write_bytes(image)
    rows = "".join(f"{i:04d}.jpg,picture number {i}\n" for i in range(n))
    (path / "captions.csv").write_text(f"image,caption\n{rows}")
    return path


class Server:
    """A process that converts with faults of one kind."""

    def __init__(self, shim: Path, folder: Path, kind: str, arguments: dict[str, Any]) -> None:
        self.folder = folder
        command = [sys.executable, "-c", SERVER, json.dumps(arguments, default=str)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment(shim, folder / f"{kind}.counters", FAULT_KIND=kind),
        )  # fmt: skip

    def attempt(self, fail_at: int) -> list[dict[str, Any]]:
        target = self.folder / f"{fail_at}" / "data"
        self.process.stdin.write(f"{fail_at} {target}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(30) == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, Any]:
    source = write_pairs(tmp_path_factory.mktemp("source") / "pairs.tar", 14, (400, 300))
    return {"sources": [source], "workers": 1, "vocab_size": 300, "context": 8, "shard_bytes": 1 << 16}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_place_leaves_the_data_set_absent_or_whole(kind, shim, small, tmp_path):
    lanes = [tmp_path / "a", tmp_path / "b"]
    for lane in lanes:
        lane.mkdir()
    servers = [Server(shim, lane, kind, small) for lane in lanes]
    undisturbed, again = servers[0].attempt(0)
    assert undisturbed["said"] == again["said"] == "converted"
    n = undisturbed["counts"][KINDS.index(kind)]
    assert n >= {"write": 25, "fsync": 25, "rename": 5}[kind], "the shim sees the conversion's calls"

    def run(lane: int) -> list[tuple[int, list[dict[str, Any]]]]:
        return [(at, servers[lane].attempt(at)) for at in range(1 + lane, n + 1, 2)]

    with ThreadPoolExecutor(2) as pool:
        outcomes = [outcome for outcomes in pool.map(run, range(2)) for outcome in outcomes]
    for server in servers:
        server.close()
    assert sorted(at for at, _ in outcomes) == list(range(1, n + 1))
    for at, (faulty, after) in outcomes:
        assert faulty["said"].startswith(("refused: the disk of", "failed: Input/output error", "converted")), (
            at,
            faulty,
        )
        assert not faulty["is_there"] or faulty["digest"] == undisturbed["digest"], (at, faulty)
        assert after["said"] == "converted", (at, after)
        assert after["digest"] == undisturbed["digest"], (at, faulty, after)
    assert sum(faulty["said"] == "converted" for _, (faulty, _) in outcomes) <= 2, "faults are reported"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_conversion_killed_at_random_moments_ends_with_the_same_bytes_and_redoes_little(workers, shim, tmp_path):
    n = 160
    arguments = {"sources": [write_folder(tmp_path / "pairs", n)], "workers": workers, "vocab_size": 300}
    arguments |= {"context": 8, "shard_bytes": 1 << 16}
    code = "import json, sys\nfrom coreclip.pipeline import convert\nconvert(**json.loads(sys.argv[1]))"

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-c", code, json.dumps({**arguments, "dataset": tmp_path / name}, default=str)]
        counters = tmp_path / f"{name}.counters"
        counters.unlink(missing_ok=True)  # the workers of a killed one may still count in it: each start has its own
        return subprocess.Popen(command, env=environment(shim, counters), stderr=subprocess.DEVNULL)

    def decodes(name: str) -> int:
        return memoryview((tmp_path / f"{name}.counters").read_bytes()).cast("q")[3]

    assert start("first").wait(120) == 0
    begun = time.monotonic()
    assert start("undisturbed").wait(120) == 0
    seconds = time.monotonic() - begun
    good = n - len(range(3, n, 5))
    assert 0 < decodes("undisturbed") - good <= 64, "each image is decoded once, some once more for the forecast"

    shards = json.loads((tmp_path / "undisturbed" / "dataset.json").read_text())["shards"]
    at_most = workers * max(shard["rows"] for shard in shards)  # rows to do again: one shard for each worker

    generator = random.Random(workers)
    kills = 0
    for trial in range(3):
        name = f"data{trial}"
        kills += kill_until_done(start, decodes, tmp_path / name, at_most, seconds, generator)
        assert contents(tmp_path / name) == contents(tmp_path / "undisturbed")
    assert kills >= 3


def kill_until_done(
    start: Callable[[str], subprocess.Popen],
    decodes: Callable[[str], int],
    target: Path,
    at_most: int,
    seconds: float,
    generator: random.Random,
) -> int:
    """Start the conversion again and again, killing it after random times, until it ends; return the number of kills."""
    partial = target.with_name(f".{target.name}.partial")
    journal, description = partial / "work" / "journal.jsonl", partial / "dataset.json"
    for kills in range(40):
        before, whole = entries(journal), description.exists()
        process = start(target.name)
        patience = generator.uniform(0.3, 0.8) * seconds  # of a whole conversion; what is resumed needs less
        try:
            assert process.wait(patience * (1 + kills / 4)) == 0
            assert not whole or decodes(target.name) == 0, "nothing was left but to publish it"
            return kills
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if target.exists():  # it was published before the kill; the caller compares its bytes
            return kills + 1
        if description.exists():  # all is written; the journal may be gone
            continue
        done = entries(journal)
        written = sum(entry["rows"] for entry in done[len(before) :])
        forecast = 0 if before else 64
        assert decodes(target.name) - written <= at_most + forecast, "what a kill costs"
    raise AssertionError("it never ends")


def entries(journal: Path) -> list[dict[str, Any]]:
    whole = journal.read_text().splitlines() if journal.exists() else []
    return [json.loads(line) for line in whole if line.endswith("}")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
