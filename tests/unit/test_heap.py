"""Freed memory stays with the process: a block that is taken and freed over and over needs no fresh pages."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from coreclip.heap import keep_freed_memory
keeps = keep_freed_memory() if sys.argv[1] == "keep" else None
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 96 << 20  # above the largest threshold that glibc adjusts itself to
def touch():
    block = library.malloc(size)
    ctypes.memset(block, 1, size)
    library.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
print(keeps, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(mode: str, **environment: str) -> tuple[str, int]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], env=plain | environment, capture_output=True, text=True, check=True
    )
    keeps, faults = done.stdout.split()
    return keeps, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_blocks_that_were_freed_need_no_fresh_pages():
    _, plain = run("plain")
    keeps, kept = run("keep")
    assert keeps == "True"
    assert kept < plain / 20  # pages may be huge ones, so that no number is right everywhere


def test_what_the_environment_sets_up_stands():
    assert run("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
