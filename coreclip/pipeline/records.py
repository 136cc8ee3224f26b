"""What a source yields: records that refer to an image and hold its text, and rejects with their reasons."""

import contextlib
import gzip
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

MAX_IMAGE_BYTES = 256 << 20
MAX_TEXT_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 4 << 30
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CAPTION_NAMES = ("caption", "captions", "text", "title")


@dataclass(frozen=True, slots=True)
class ImageReference:
    """Where an image's bytes lie, so that any process can read them.

    Attributes
    ----------
    path : str
        Absolute path of the file, or the URL of a remote archive.
    offset, size : int
        Range of bytes in the file, or in what the file unpacks to where it is an IDX ``.gz``. In a parquet file,
        ``offset`` is the row; in a RecordIO file, where a record of several parts begins.
    height, width, channels : int
        Of unencoded pixels, one byte each: 1 channel is grey, 3 are RGB; all 0 for an encoded image.
    access : str
        How to read: "" (range of a file), "unpacked" (IDX), "recordio" (several parts), "parquet COLUMN" with the
        column's dotted path, or "http VALIDATOR" with what an unchanged remote file answers.
    """

    path: str
    offset: int
    size: int
    height: int = 0
    width: int = 0
    channels: int = 0
    access: str = ""


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
    """A pile of pairs: scanned once without decoding the images, described for the question "is it the same?"."""

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes 0, 1, ... that the source itself knows; None where it knows none."""
        ...

    def scan(self) -> Iterator[Record | Reject]:
        """Yield every sample in the order of the source."""
        ...

    def identity(self) -> list[dict[str, Any]]:
        """Return path, size and modification time of each file that the scan depends on."""
        ...

    def split(self, parts: int) -> "Sequence[Source]":
        """Return sources, each picklable, whose scans in order are the scan of this one."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """One of several equal parts of a source."""

    number: int = 0
    of: int = 1

    def bounds(self, n: int) -> tuple[int, int]:
        """Return the first and behind the last of ``n`` things that are this part's."""
        return n * self.number // self.of, n * (self.number + 1) // self.of

    @property
    def is_last(self) -> bool:
        """Whether no part comes behind it, so that it reports what concerns the end of the source."""
        return self.number == self.of - 1


@dataclass(frozen=True, kw_only=True)
class SplitSource:
    """Base of the sources that scan the things of one part; a part is not split again."""

    part: Part = Part()

    @property
    def class_names(self) -> list[str] | None:
        """None: the source knows no names of classes."""
        return None

    def split(self, parts: int) -> list[Self]:
        """Return ``parts`` sources whose scans in order are this one's."""
        if parts < 1:
            raise ValueError(f"parts = {parts} is not allowed: it must be at least 1")
        if self.part.of > 1:
            return [self]
        return [replace(self, part=Part(i, parts)) for i in range(parts)]


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
    """Read the bytes that ``reference`` names; fewer than promised if the file has shrunk.

    Raises
    ------
    OSError
        For a local file that can't be read.
    CoreclipError
        For a remote file that has changed since the scan, or that can't be read after several attempts.
    """
    how, _, detail = reference.access.partition(" ")
    if how == "unpacked":
        return unpacked(reference.path)[reference.offset : reference.offset + reference.size]
    if how == "parquet":
        from coreclip.pipeline.parquets import read_cell

        return read_cell(reference.path, reference.offset, detail)
    if how == "recordio":
        from coreclip.pipeline.recordio import read_parts

        return read_parts(reference.path, reference.offset)[-reference.size :]
    if how == "http":
        from coreclip.pipeline.remote import read_range

        return read_range(reference.path, reference.offset, reference.size, detail)
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

    def identity(self, folder: Path) -> dict[str, Any]:
        """Return what tells ``folder``, whose files were added, from a changed one."""
        path = str(folder.resolve())
        return {"path": path, "size": self.size, "files": self.count, "digest": str(self._hash.hexdigest())}


def walk_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (directory, name) of every regular file below ``folder``, in sorted order."""
    for directory, directories, names in os.walk(folder):
        directories.sort()
        for name in sorted(names):
            if stat.S_ISREG(os.lstat(os.path.join(directory, name)).st_mode):
                yield directory, name


def images_identity(folder: Path) -> dict[str, Any]:
    """Return the identity of all images below ``folder``."""
    digest = FolderDigest()
    for directory, name in walk_files(folder):
        if name.lower().endswith(IMAGE_SUFFIXES):
            path = os.path.join(directory, name)
            digest.add(os.path.relpath(path, folder), os.stat(path))
    return digest.identity(folder)
