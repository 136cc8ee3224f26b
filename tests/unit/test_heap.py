"""Freed memory stays with the process: a block that is taken and freed over and over needs no fresh pages."""

import os
import platform
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
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], env=plain | environment, capture_output=True, text=True, check=True
    )
    keeps, faults = done.stdout.split()
    return keeps, int(faults)


LIBRARY, VERSION = platform.libc_ver()
IS_RECENT = LIBRARY == "glibc" and tuple(map(int, VERSION.split("."))) >= (2, 35)


@pytest.mark.skipif(not IS_RECENT, reason="blocks of 96 MB are kept by glibc 2.35 and later")
def test_blocks_that_were_freed_need_no_fresh_pages():
    _, plain = run("plain")
    keeps, kept = run("keep")
    assert keeps == "True"
    assert kept < plain / 4  # pages may be huge ones, so that no number is right everywhere


@pytest.mark.skipif(not IS_RECENT, reason="glibc's allocator")
@pytest.mark.parametrize(
    ("environment", "keeps"),
    [
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, "False"),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, "False"),
        ({"MALLOC_ARENA_MAX": "2"}, "True"),
    ],
)
def test_what_the_environment_sets_up_stands(environment, keeps):
    assert run("keep", **environment)[0] == keeps
