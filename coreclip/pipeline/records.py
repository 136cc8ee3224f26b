"""What a source yields: records that refer to an image and hold its text, and rejects with their reasons."""

import contextlib
import gzip
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

MAX_IMAGE_BYTES = 256 << 20
MAX_TEXT_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class ImageReference:
    """Where an image's bytes lie, so that any process can read them.

    Attributes
    ----------
    path : str
        Absolute path of the file.
    offset, size : int
        Range of bytes in the file, or in what the file unpacks to where it is an IDX ``.gz``.
    height, width : int
        Of unencoded grey pixels, one byte each; 0 for an encoded image.
    """

    path: str
    offset: int
    size: int
    height: int = 0
    width: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One candidate pair of a source.

    Attributes
    ----------
    key : str
        Names the pair within its source.
    image : ImageReference
    captions : list of str
    label : int or None
    columns : dict
        Whatever else the source says about the pair: str, int, float, bool or None.
    source : str
        File name of the source.
    """

    key: str
    image: ImageReference
    captions: list[str]
    label: int | None
    columns: dict[str, Any]
    source: str


@dataclass(frozen=True, slots=True)
class Reject:
    """A sample that is left out, with a reason that a person understands."""

    source: str
    key: str
    reason: str


class Source(Protocol):
    """A pile of pairs: scanned once without reading the images, described for the question "is it the same?"."""

    def scan(self) -> Iterator[Record | Reject]:
        """Yield every sample in the order of the source."""
        ...

    def identity(self) -> list[dict[str, Any]]:
        """Return path, size and modification time of each file that the scan depends on."""
        ...


@dataclass(frozen=True, slots=True)
class TextProblem(Exception):
    """Text that can't be used; ``reason`` goes to the ledger of rejects."""

    reason: str


def file_identity(path: Path) -> dict[str, Any]:
    """Return what tells a file from a changed one, without reading it."""
    status = path.stat()
    return {"path": str(path.resolve()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8, raising :class:`TextProblem` for anything else."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextProblem(f"{name} is not UTF-8 (byte {error.start})") from None


def read_image(reference: ImageReference) -> bytes:
    """Read the bytes that ``reference`` names; fewer than promised if the file has shrunk."""
    if reference.height:
        return unpacked(reference.path)[reference.offset : reference.offset + reference.size]
    descriptor = os.open(reference.path, os.O_RDONLY)
    try:
        return os.pread(descriptor, reference.size, reference.offset)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)
def unpacked(path: str) -> bytes:
    """Return the content of an IDX file, unpacked if it is gzip; the last one stays in memory."""
    with open(path, "rb") as file:
        start = file.read(2)
        file.seek(0)
        with gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else contextlib.nullcontext(file) as content:
            return content.read(MAX_UNPACKED_BYTES)


@dataclass(slots=True)
class FolderDigest:
    """SHA-256 over names, sizes and modification times of files, in the order in which they are added."""

    count: int = 0
    size: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)

    def add(self, name: str, status: os.stat_result) -> None:
        """Take in one file."""
        self.count += 1
        self.size += status.st_size
        self._hash.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))

    def hexdigest(self) -> str:
        """Return the digest of what was added."""
        return str(self._hash.hexdigest())
