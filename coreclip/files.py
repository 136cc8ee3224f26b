"""Outputs that are either whole or absent: written beside, fsynced, renamed, and guarded by a lock."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreclip.errors import CoreclipError

if TYPE_CHECKING:
    import numpy as np

_CHUNK = 1 << 22


def fsync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it into place, else remove it.

    Works for a file and for a directory that the block creates. A directory that is already there is replaced.
    """
    final = _absolute(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        yield temporary
        publish(temporary, final)
    finally:
        remove(temporary)


def _absolute(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` with a name of its own: ``.`` has one when it is spelled out, the root has none."""
    absolute = Path(os.path.abspath(path))
    if not absolute.name:
        raise CoreclipError(f"{path} can't be an output: it is the root of the disk; name a file or folder below it")
    return absolute


def publish(temporary: Path, final: Path) -> None:
    """Fsync ``temporary`` (with all that is below it) and rename it to ``final``, replacing what is there."""
    if temporary.is_dir():
        for below in sorted(temporary.rglob("*")):
            fsync_path(below)
    fsync_path(temporary)
    if temporary.is_dir() and final.exists():
        # A directory can't be renamed over one with content; between the two renames the old one has another name.
        old = final.with_name(f".{final.name}.{os.getpid()}.old")
        os.rename(final, old)
        os.rename(temporary, final)
        remove(old)
    else:
        os.replace(temporary, final)
    fsync_path(final.parent)


def remove(path: Path) -> None:
    """Remove a file or a tree; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_npy(path: Path, remedy: str = "make it again", *, mapped: bool = False) -> "np.ndarray":
    """Read an array of numbers, ``mapped`` into memory; nothing is unpickled.

    Raises
    ------
    CoreclipError
        For a file that is no such array, with what to do about it.
    """
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of arrays")
    except (OSError, ValueError, EOFError) as error:
        raise CoreclipError(f"{path} is not a readable .npy of numbers ({error}); {remedy}") from None
    return array


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Read JSON; ``what`` names the thing in the error for a file that is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CoreclipError(f"no {what} at {path}: the file does not exist; check the path") from None
    except IsADirectoryError:
        raise CoreclipError(f"no {what} at {path}: it is a directory; name the file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CoreclipError(f"{what} {path} is damaged ({error}); it must be JSON; make it again") from None


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the one writer's lock of output ``path`` (the file ``.NAME.lock`` beside it).

    Raises
    ------
    CoreclipError
        When another process holds it.
    """
    output = _absolute(path)
    output.parent.mkdir(parents=True, exist_ok=True)
    lock_path = output.with_name(f".{output.name}.lock")
    with open(lock_path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been unlinked by its last holder between our open and our flock.
            if not lock_path.exists() or not os.path.samestat(os.fstat(file.fileno()), os.stat(lock_path)):
                raise BlockingIOError
        except BlockingIOError:
            raise CoreclipError(
                f"{output} is being written by another process; one writer at a time; wait for it or name another output"
            ) from None
        try:
            yield
        finally:
            lock_path.unlink(missing_ok=True)


def check_free_disk(path: str | os.PathLike[str], n_bytes: int) -> None:
    """Refuse, before long work, an output of ``n_bytes`` that the disk below ``path`` can't hold.

    Raises
    ------
    CoreclipError
        Names what is needed and what is free, in MiB.
    """
    free = free_disk(path)
    if free < n_bytes:
        raise CoreclipError(
            f"not enough disk for {path}: {n_bytes >> 20} MiB needed, {free >> 20} MiB free; free some or name another disk"
        )


def free_disk(path: str | os.PathLike[str]) -> int:
    """Return the bytes that are free on the disk of a path that need not be there yet."""
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
