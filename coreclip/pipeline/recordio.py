"""MXNet's RecordIO of images (dmlc-core ``recordio.h``, mxnet ``recordio.py``): ``.rec``, with a list ``.lst`` for names.

A record is the magic number, a word of 3 bits "which part" and 29 bits length, the data, and padding to 4 bytes. Data that
hold the magic number were cut there into parts. The data begin with a header: flag, label, id, id2; where flag is not 0,
it counts float labels that follow. An index (``.idx``) says nothing that the file does not say. Left out: packed pixels.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreclip.pipeline.records import MAX_IMAGE_BYTES, ImageReference, Record, Reject, SplitSource, file_identity

_MAGIC = 0xCED7230A
_MAGIC_BYTES = _MAGIC.to_bytes(4, "little")
_WORDS = struct.Struct("<II")
_IMAGE_HEADER = struct.Struct("<IfQQ")
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_MAX_RECORD_BYTES = MAX_IMAGE_BYTES + (1 << 20)
_MAX_LABELS = 1 << 16
_MAX_PARTS = 1 << 16


class _Damage(Exception):
    """Says what is wrong, and at which byte."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """A record: where it begins, its parts' ranges of data, and where the next one begins."""

    offset: int
    parts: list[tuple[int, int]]
    end: int

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.parts) + 4 * (len(self.parts) - 1)


@dataclass(frozen=True)
class RecordioSource(SplitSource):
    """One ``.rec`` file; its parts are ranges of bytes."""

    path: Path

    def identity(self) -> list[dict[str, Any]]:
        """Return path, size and modification time of the file and its list."""
        names = self.path.with_suffix(".lst")
        return [file_identity(path) for path in (self.path, names) if path.is_file()]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield the records in order; behind one that is damaged nothing is read."""
        names = _read_list(self.path.with_suffix(".lst"))
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            start, stop = self.part.bounds(size)
            offset = 0
            while offset < stop:
                try:
                    frame = _read_frame(descriptor, offset, size)
                except _Damage as damage:
                    if offset >= start:
                        yield Reject(self.path.name, "", f"{damage}; the rest of the file is left out")
                    return
                if offset >= start:
                    yield self._to_record(descriptor, frame, names)
                offset = frame.end
        finally:
            os.close(descriptor)

    def _to_record(self, descriptor: int, frame: _Frame, names: dict[int, str]) -> Record | Reject:
        def reject(reason: str) -> Reject:
            return Reject(self.path.name, f"byte {frame.offset}", reason)

        if frame.size > _MAX_RECORD_BYTES:
            return reject(f"the record has {frame.size >> 20} MiB; {_MAX_RECORD_BYTES >> 20} MiB are allowed")
        head = _join(descriptor, frame, _IMAGE_HEADER.size)
        if len(head) < _IMAGE_HEADER.size:
            return reject(f"the record has {frame.size} bytes; the header of an image alone has {_IMAGE_HEADER.size}")
        flag, label, number, _ = _IMAGE_HEADER.unpack(head)
        n_labels = min(flag, _MAX_LABELS + 1)
        skipped = _IMAGE_HEADER.size + 4 * n_labels
        if n_labels > _MAX_LABELS or skipped > frame.size:
            return reject(f"its header announces {flag} labels, more than there is room for")
        labels = (label,)
        if flag:
            labels = struct.unpack(f"<{n_labels}f", _join(descriptor, frame, skipped)[_IMAGE_HEADER.size :])
        columns: dict[str, Any] = {"record_id": number} if number < 1 << 63 else {}
        class_number = None
        if len(labels) == 1 and float(labels[0]).is_integer() and 0 <= labels[0] < 1 << 31:
            class_number = int(labels[0])
        elif len(labels) == 1:
            columns["source_label"] = float(labels[0])
        else:
            columns["source_labels"] = " ".join(f"{value:g}" for value in labels)
        image_size = frame.size - skipped
        if len(frame.parts) == 1:
            image = ImageReference(str(self.path.resolve()), frame.parts[0][0] + skipped, image_size)
        else:
            image = ImageReference(str(self.path.resolve()), frame.offset, image_size, access="recordio")
        return Record(names.get(number, f"{number:08d}"), image, [], class_number, columns, self.path.name)


def read_parts(path: str, offset: int) -> bytes:
    """Return the data of the record at ``offset``, put together; what there is of it where the file is damaged."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        frame = _read_frame(descriptor, offset, os.fstat(descriptor).st_size)
        return _join(descriptor, frame, _MAX_RECORD_BYTES)
    except _Damage:
        return b""
    finally:
        os.close(descriptor)


def _join(descriptor: int, frame: _Frame, n_bytes: int) -> bytes:
    """Return the first ``n_bytes`` of a record's data; between two parts the magic number was taken out."""
    joined = bytearray()
    for number, (start, stop) in enumerate(frame.parts):
        if len(joined) >= n_bytes:
            break
        between = _MAGIC_BYTES if number else b""
        joined += between + os.pread(descriptor, min(stop - start, n_bytes), start)
    return bytes(joined[:n_bytes])


def _read_frame(descriptor: int, offset: int, size: int) -> _Frame:
    parts: list[tuple[int, int]] = []
    at = offset
    while True:
        words = os.pread(descriptor, _WORDS.size, at)
        if len(words) < _WORDS.size:
            raise _Damage(f"the file is cut short at byte {at}")
        magic, word = _WORDS.unpack(words)
        if magic != _MAGIC:
            what = "the file is damaged" if at else "the file is no RecordIO"
            raise _Damage(f"{what}: at byte {at} is {words[:4].hex()}, not the magic number {_MAGIC_BYTES.hex()}")
        which, length = word >> _LENGTH_BITS, word & ((1 << _LENGTH_BITS) - 1)
        if which not in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)):
            raise _Damage(f"the file is damaged: at byte {at} is a part of the kind {which}, which has no place there")
        start = at + _WORDS.size
        if start + length > size:
            raise _Damage(f"the file is cut short within the record at byte {offset}")
        parts.append((start, start + length))
        if len(parts) > _MAX_PARTS:
            raise _Damage(f"the file is damaged: the record at byte {offset} has more than {_MAX_PARTS} parts")
        at = start + -(-length // 4) * 4
        if which in (_WHOLE, _LAST):
            return _Frame(offset, parts, at)


def _read_list(path: Path) -> dict[int, str]:
    """Return the names of a ``.lst`` by id: lines of id, labels and path, separated by tabs."""
    if not path.is_file():
        return {}
    names = {}
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) >= 3 and fields[0].strip().isdigit() and fields[0].isascii():
                names[int(fields[0])] = fields[-1]
    return names
