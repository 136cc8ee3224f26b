"""An index of a WebDataset archive: which members share a key, in some 100 bytes a sample however long the archive.

Members that follow each other with one key are a run. Keys are kept once a run, as bytes in a row; runs with one key are
found by a hash of it and then compared, so that a collision costs time and never makes a pair.
"""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from coreclip.pipeline.tarwalk import ArchiveEnds, ReadAt, walk

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
EXTENSIONS = (*IMAGE_EXTENSIONS, "txt", "json", "cls")
_NUMBERS = {extension: number for number, extension in enumerate(EXTENSIONS)}


class IndexedMember(NamedTuple):
    """A member of an archive: its name, extension in lower case, and range of bytes."""

    name: str
    extension: str
    offset: int
    size: int


class TarIndex:
    """Members of an archive grouped by key, in the order of the keys' first members.

    Attributes
    ----------
    size : int
        Bytes of the archive.
    problem : str
        Why the archive's rest is lost, if it is.
    has_text : bool
        Whether any member is a text.
    """

    def __init__(self, size: int) -> None:
        self.size, self.problem, self.has_text = size, "", False
        self._offsets, self._sizes, self._extensions = array("Q"), array("Q"), bytearray()
        self._keys, self._key_ends, self._hashes, self._run_starts = bytearray(), array("Q"), array("q"), array("Q")
        self._last_key: str | None = None
        self._order: np.ndarray | None = None  # of the runs, where a key has several
        self._group_starts = np.empty(0, np.int64)

    def add(self, name: str, offset: int, size: int) -> None:
        """Take in a member, unless it is none of a sample."""
        key, dot, extension = name.rpartition(".")
        number = _NUMBERS.get(extension)
        if number is None:
            number = _NUMBERS.get(extension.lower())
            if number is None:
                return
        if not dot or key[-1:] == "/":
            return
        if key != self._last_key:
            self._last_key = key
            encoded = key.encode("utf-8", "surrogateescape")
            self._keys += encoded
            self._key_ends.append(len(self._keys))
            self._hashes.append(hash(encoded))
            self._run_starts.append(len(self._offsets))
        self._offsets.append(offset)
        self._sizes.append(size)
        self._extensions.append(number)
        self.has_text |= number >= len(IMAGE_EXTENSIONS)

    @property
    def n_keys(self) -> int:
        """Different keys; two with one hash may count as one."""
        return len(self._group_starts)

    def finish(self) -> None:
        """Group the runs; called once, behind the last member."""
        hashes = np.frombuffer(self._hashes, np.int64)
        order = np.argsort(hashes, kind="stable")
        new = np.append(True, np.diff(hashes[order]) != 0)[: len(order)]
        if new.all():
            self._group_starts = np.arange(len(order))
            return
        starts = np.flatnonzero(new)
        leaders = np.empty(len(order), np.int64)
        leaders[order] = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
        self._order = np.argsort(leaders, kind="stable")
        self._group_starts = np.flatnonzero(np.append(True, np.diff(leaders[self._order]) != 0))

    def groups(self, start: int, stop: int) -> Iterator[tuple[str, list[IndexedMember]]]:
        """Yield each key with its members in the order of the archive, from group ``start`` up to ``stop``."""
        for group in range(start, stop):
            if self._order is None:
                key = self._key(group)
                yield key, self._members(group, key)
                continue
            first = self._group_starts[group]
            behind = self._group_starts[group + 1] if group + 1 < self.n_keys else len(self._order)
            by_key: dict[str, list[IndexedMember]] = {}
            for run in self._order[first:behind].tolist():
                key = self._key(run)
                by_key.setdefault(key, []).extend(self._members(run, key))
            yield from by_key.items()

    def run_keys(self) -> Iterator[str]:
        """Yield the key of each run."""
        return (self._key(run) for run in range(len(self._key_ends)))

    def _key(self, run: int) -> str:
        start = self._key_ends[run - 1] if run else 0
        return self._keys[start : self._key_ends[run]].decode("utf-8", "surrogateescape")

    def _members(self, run: int, key: str) -> list[IndexedMember]:
        start = self._run_starts[run]
        stop = self._run_starts[run + 1] if run + 1 < len(self._run_starts) else len(self._offsets)
        extensions = [EXTENSIONS[number] for number in self._extensions[start:stop]]
        return [
            IndexedMember(f"{key}.{extension}", extension, self._offsets[i], self._sizes[i])
            for i, extension in enumerate(extensions, start)
        ]


def index_archive(read_at: ReadAt, size: int, stop_at_text: bool = False) -> TarIndex:
    """Walk an archive and index its members.

    Parameters
    ----------
    read_at : callable (offset, n_bytes) -> bytes
    size : int
        Of the archive, in bytes.
    stop_at_text : bool
        Stop at the first text; for the question whether there is one.
    """
    index = TarIndex(size)
    try:
        for name, offset, n_bytes in walk(read_at, size):
            index.add(name, offset, n_bytes)
            if stop_at_text and index.has_text:
                break
    except ArchiveEnds as end:
        index.problem = str(end)
    index.finish()
    return index
