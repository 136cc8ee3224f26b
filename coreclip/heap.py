"""Memory that a loop frees and asks for again in every step, kept by the process between the steps.

The C library gives a large block back to the kernel as soon as it is freed, and the kernel clears fresh pages for the next
one. A training step on a CPU frees and takes the same activations over and over, so that this costs a part of every step.
"""

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # glibc's names of mallopt's parameters
_LARGEST_BLOCK = 1 << 30  # bytes; a larger one still comes from the kernel and goes back to it
_LARGEST_BLOCK_ONCE = 1 << 25  # the most that older releases of glibc take
_NEVER = -1  # give back what is free at the heap's end
_WISHES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "LD_PRELOAD")
_AHEAD = 64 << 20  # bytes asked for at once


def keep_freed_memory() -> bool:
    """Let this process's allocator keep freed memory for the next step, from now on.

    The peak of its memory stays; what it falls back to afterwards rises to it. Where the environment sets the allocator up
    (``MALLOC_TRIM_THRESHOLD_`` and the like, ``GLIBC_TUNABLES``, ``LD_PRELOAD`` of another one), that stands.

    Returns
    -------
    bool
        Whether it does, of blocks up to 1 GiB, 32 MiB in older releases of glibc; False without glibc's allocator, or where
        the environment has its own wish.

    Notes
    -----
    ``mallopt(3)``; setting a threshold also ends glibc's own adjusting of it.

    Examples
    --------
    >>> keep_freed_memory() in (True, False)
    True
    """
    if any(os.environ.get(name) for name in _WISHES) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    library = ctypes.CDLL(None)
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False
    blocks = any(library.mallopt(_MMAP_THRESHOLD, size) == 1 for size in (_LARGEST_BLOCK, _LARGEST_BLOCK_ONCE))
    end = library.mallopt(_TRIM_THRESHOLD, _NEVER) == 1
    ahead = library.mallopt(_TOP_PAD, _AHEAD) == 1
    return blocks and end and ahead
